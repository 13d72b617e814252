"""The preference pairs of the real model's study (docs/design.md), by name; each made once.

    clair          the repair of A, a sample of the model, over A
    control        the repair of B, another sample that breaks the rule, over A
    judged         of two samples the one that keeps more of the rule, from as many prompts as it takes; the worse has
                   a repair
    clair-judged   CLAIR on the judged set's prompts and losers
    stronger       an answer of a stand-in for a stronger model over A

Revisions are asked for over HTTP, by the recipe of revise/. clair and control have the same prompts and the same
losers. The others have as many pairs, and of each kind of rule as many, as far as the model's samples give them.
"""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from statistics import fmean
from typing import Any, NamedTuple

from rapidfuzz.distance import Levenshtein

from data.contrast import jaccard
from data.rows import Example, Limits, Reading, load_rows, open_model, read_examples
from data.text import Tokenizer
from engine.score import score_under, shape_of
from examples.real import demo, measure, reviser, stronger, task
from examples.real.task import Task
from examples.studies import as_lines, called_by, digest, write_if_other
from revise import recipe_runner
from revise.recipes import ClairConfig, clair_recipe
from system import RunError, files

ARMS, OF_JUDGE = ("clair", "control"), ("judged", "clair-judged")
NAMES = (*ARMS, *OF_JUDGE, "stronger")
N_DRAWS = 8
"""Of another sample, until one breaks the rule and can be repaired."""
N_BLOCKS, SPARE = 8, 1.15
"""Of N_PROMPTS prompts each that judged pairs are made of, at most; and how many times as many are looked for as are
wanted, since some make no revision."""


class Pair(NamedTuple):
    """A preference pair."""

    task: Task
    chosen: str
    rejected: str


@dataclass
class Sets:
    """Sets of pairs of one base model."""

    base: Path
    folder: Path
    """For sets."""
    samples: Path
    """For samples of the model, of which all sets are made."""
    n_prompts: int = demo.N_PROMPTS
    _pairs: dict[str, list[Pair]] = field(default_factory=dict)

    def file(self, name: str) -> Path:
        """A set's pairs, as engine.train takes them."""
        path = self.folder / f"{name}.jsonl"
        rows = [{"prompt": p.task.prompt, "chosen": p.chosen, "rejected": p.rejected} for p in self.pairs(name)]
        self.folder.mkdir(parents=True, exist_ok=True)
        write_if_other(path, as_lines(rows))
        return path

    def pairs(self, name: str) -> list[Pair]:
        """A set. Raises KeyError where there is none of that name."""
        if name not in self._pairs:
            makers = {**dict.fromkeys(ARMS, self._arms), **dict.fromkeys(OF_JUDGE, self._of_judge),
                      "stronger": self._stronger}  # fmt: skip
            self._pairs |= makers[name]()
        return self._pairs[name]

    # --- the model's samples ---

    @cached_property
    def _tasks(self) -> list[Task]:
        return task.tasks(task.TOPICS, self.n_prompts, seed=0)

    def _samples(self, tasks: Sequence[Task], name: str, draw: int) -> list[str]:
        out = self.samples / f"{name}-{draw}.jsonl"
        out.parent.mkdir(parents=True, exist_ok=True)
        heat = measure.TEMPERATURES["sampled"]
        return measure.answer(self.base, [t.prompt for t in tasks], heat, out, seed=1 + draw, dtype="float32")

    @cached_property
    def _own(self) -> dict[str, str]:
        """A by prompt."""
        return dict(zip((t.prompt for t in self._tasks), self._samples(self._tasks, "own", 0), strict=True))

    def _others(self, tasks: Sequence[Task]) -> dict[str, str]:
        """B by prompt, where one is found; asked for again of those alone that have none yet."""
        found: dict[str, str] = {}
        for draw in range(1, N_DRAWS + 1):
            left = [t for t in tasks if t.prompt not in found]
            if not left:
                break
            for one, text in zip(left, self._samples(left, "another", draw), strict=True):
                if text != self._own[one.prompt] and is_repairable(one, text):
                    found[one.prompt] = text
        return found

    # --- the sets ---

    def _arms(self) -> dict[str, list[Pair]]:
        """CLAIR and its control, on the prompts that both have."""
        tasks = [t for t in self._tasks if is_repairable(t, self._own[t.prompt])]
        of_own = self._revised("clair", tasks, self._own)
        of_another = self._revised("control", tasks, self._others(tasks))
        both = [t for t in tasks if t.prompt in of_own and t.prompt in of_another]
        return {
            name: [Pair(t, revised[t.prompt], self._own[t.prompt]) for t in both]
            for name, revised in zip(ARMS, (of_own, of_another), strict=True)
        }

    def _of_judge(self) -> dict[str, list[Pair]]:
        """The better of two samples over the worse, and the repair of the worse over it, on the same prompts: as many
        pairs as CLAIR has, of each kind as many as far as there are, the others of whatever kinds are there. Raises
        RunError where there are too few.
        """
        wanted = Counter(p.task.kind for p in self.pairs("clair"))
        judged = self._judged({kind: math.ceil(SPARE * n) for kind, n in wanted.items()})
        losers = {p.task.prompt: p.rejected for p in judged}
        revised = self._revised("clair-judged", [p.task for p in judged], losers)
        judged = [p for p in judged if p.task.prompt in revised]
        taken, spare = list[Pair](), list[Pair]()
        for p in judged:
            wanted[p.task.kind] -= 1
            (taken if wanted[p.task.kind] >= 0 else spare).append(p)
        n = len(self.pairs("clair"))
        if len(judged) < n:
            raise RunError(f"judged pairs: {N_BLOCKS} blocks of {self.n_prompts} prompts give {len(judged)}, not {n}")
        taken += spare[: n - len(taken)]
        return {"judged": taken, "clair-judged": [p._replace(chosen=revised[p.task.prompt]) for p in taken]}

    def _judged(self, wanted: Mapping[str, int]) -> list[Pair]:
        """Pairs of two samples: of each kind so many at least, or those of all blocks."""
        found, known = list[Pair](), set[str]()
        for block in range(N_BLOCKS):
            so_far = Counter(p.task.kind for p in found)
            tasks = task.tasks(task.TOPICS, self.n_prompts, seed=100 + block)
            tasks = [t for t in tasks if so_far[t.kind] < wanted.get(t.kind, 0) and t.prompt not in known]
            if not tasks:
                break
            known |= {t.prompt for t in tasks}
            both = (self._samples(tasks, f"judged-{block}", draw) for draw in (0, 1))
            found += [p for one, *texts in zip(tasks, *both, strict=True) if (p := judge(one, *texts))]
        return found

    def _stronger(self) -> dict[str, list[Pair]]:
        return {"stronger": [Pair(p.task, stronger.answer(p.task), p.rejected) for p in self.pairs("clair")]}

    def _revised(self, name: str, tasks: Sequence[Task], answers: dict[str, str]) -> dict[str, str]:
        """Revisions by prompt, asked for over HTTP."""
        if not tasks:
            return {}
        made = self.folder / "made"
        made.mkdir(parents=True, exist_ok=True)
        rows = [{"prompt": t.prompt, "response": answers[t.prompt]} for t in tasks if t.prompt in answers]
        text = as_lines(rows)
        name = called_by(name, text)
        prompts, out = made / f"{name}.prompts.jsonl", made / f"{name}.jsonl"
        if not out.exists():
            files.write_text(prompts, text)
            with reviser.serve_both() as address:
                recipe_runner.make(clair_recipe(ClairConfig(
                    model="reviser", min_length_ratio=0.2, prompts=str(prompts), out=str(out),
                    store=str(made / f"{name}.sqlite"), endpoint=(address,),
                )))  # fmt: skip
        return {row["prompt"]: row["chosen"][-1]["content"] for row in load_rows(out)}


def judge(one: Task, *texts: str) -> Pair | None:
    """The pair of two samples, where one keeps more of the rule, and the other has a repair. None of an empty one."""
    degrees = [one.degree(text) for text in texts]
    better = degrees.index(max(degrees))
    if degrees[0] == degrees[1] or not texts[better].strip() or not is_repairable(one, texts[1 - better]):
        return None
    return Pair(one, texts[better], texts[1 - better])


def is_repairable(one: Task, text: str) -> bool:
    """Whether an answer is there and breaks the rule, and has a repair."""
    return bool(text.strip()) and not one.is_kept(text) and one.repair(text) is not None


# --- what a set is like --------------------------------------------------------------------------------------------


def facts(sets: Sets, name: str) -> dict[str, Any]:
    """What goes into a record of a set: the kind and the topic of each pair, the contrast of winners and losers as
    Table 1 of the paper has it, and of each winner whether it keeps the rule, is broken, its characters, and its
    log-prob a token under the model before training.
    """
    pairs = sets.pairs(name)
    logps = log_probs(sets.base, sets.file(name))
    encode = Tokenizer(sets.base).encode
    return {
        "set": name, "pairs": len(pairs), "sha256": digest(sets.file(name)),
        "kinds": [p.task.kind for p in pairs], "topics": [stronger.topic_of(p.task.prompt) for p in pairs],
        "contrast": {
            "jaccard": [round(jaccard(*map(list, encode([p.chosen, p.rejected]))), 4) for p in pairs],
            "levenshtein": [Levenshtein.distance(p.chosen, p.rejected) for p in pairs],
        },
        "winners": {
            "kept": [int(p.task.is_kept(p.chosen)) for p in pairs],
            "broken": [int(task.is_broken(p.chosen)) for p in pairs],
            "characters": [len(p.chosen) for p in pairs],
            "logp": [round(x, 4) for x in logps],
        },
        "losers_kept": fmean(p.task.is_kept(p.rejected) for p in pairs),
    }  # fmt: skip


def log_probs(base: Path, pairs: Path) -> list[float]:
    """Nats a token of each winner under a model."""
    examples = [winner_alone(e) for e in examples_of(base, pairs)]
    found = score_under(base, examples, dtype="float32", micro_tokens=1024)
    return [logps.item() / e.lengths[0] for logps, e in zip(found, examples, strict=True)]


def winner_alone(example: Example) -> Example:
    """A pair without its loser."""
    return Example(example.location, example.prompt, example.responses[:1])


def examples_of(base: Path, path: Path) -> list[Example]:
    """Rows of a file as the trainer reads them for a model."""
    folder, chat = open_model(str(base))
    return read_examples([str(path)], chat, Limits(), Reading(), n_ids=shape_of(folder).vocab_size).examples
