"""The preference pairs of the real model's study (docs/design.md), by name; each made once.

    clair          the repair of A, a sample of the model, over A
    control        the repair of B, another sample that breaks the rule, over A
    judged         of two samples the one that keeps more of the rule, from as many prompts as it takes
    clair-judged   CLAIR on the judged set's prompts
    stronger       an answer of a stand-in for a stronger model over A

Revisions are asked for over HTTP, by the recipe of revise/. clair and control have the same prompts and the same
losers. The others have as many pairs, of each kind of rule as many, as far as there are so many.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from statistics import fmean
from typing import Any, NamedTuple

from data.rows import Example, Limits, Reading, load_rows, open_model, read_examples
from engine.score import score_under, shape_of
from examples.real import demo, measure, reviser, stronger, task
from examples.real.task import Task
from revise import recipe_runner
from revise.recipes import ClairConfig, clair_recipe
from system import files

ARMS = ("clair", "control")
NAMES = (*ARMS, "judged", "clair-judged", "stronger")
N_DRAWS = 8
"""Of another sample, until one breaks the rule and can be repaired."""
N_BLOCKS = 6
"""Of N_PROMPTS prompts each that judged pairs are made of, at most."""


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
    """For sets, and for samples of the model."""
    n_prompts: int = demo.N_PROMPTS
    _pairs: dict[str, list[Pair]] = field(default_factory=dict)

    def file(self, name: str) -> Path:
        """A set's pairs, as engine.train takes them."""
        path = self.folder / f"{name}.jsonl"
        if not path.exists():
            rows = [{"prompt": p.task.prompt, "chosen": p.chosen, "rejected": p.rejected} for p in self.pairs(name)]
            files.write_rows(path, rows)
        return path

    def pairs(self, name: str) -> list[Pair]:
        """A set. Raises KeyError where there is none of that name."""
        if name not in self._pairs:
            if name in ARMS:
                self._pairs |= self._arms()
            else:
                makers = {"judged": self._judged, "clair-judged": self._clair_judged, "stronger": self._stronger}
                self._pairs[name] = makers[name]()
        return self._pairs[name]

    # --- the model's samples ---

    @cached_property
    def _tasks(self) -> list[Task]:
        return task.tasks(task.TOPICS, self.n_prompts, seed=0)

    def _samples(self, tasks: Sequence[Task], name: str, draw: int) -> list[str]:
        out = self.folder / f"samples/{name}-{draw}.jsonl"
        out.parent.mkdir(parents=True, exist_ok=True)
        heat = measure.TEMPERATURES["sampled"]
        return measure.answer(self.base, [t.prompt for t in tasks], heat, out, seed=1 + draw)

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

    def _judged(self) -> list[Pair]:
        wanted, found = Counter(p.task.kind for p in self.pairs("clair")), list[Pair]()
        for block in range(N_BLOCKS):
            tasks = task.tasks(task.TOPICS, self.n_prompts, seed=100 + block)
            known = {p.task.prompt for p in found}
            tasks = [t for t in tasks if wanted[t.kind] > 0 and t.prompt not in known]
            if not tasks:
                break
            both = (self._samples(tasks, f"judged-{block}", draw) for draw in (0, 1))
            for one, *texts in zip(tasks, *both, strict=True):
                degrees = [one.degree(text) for text in texts]
                if degrees[0] != degrees[1] and wanted[one.kind] > 0:
                    better = degrees.index(max(degrees))
                    found.append(Pair(one, texts[better], texts[1 - better]))
                    wanted[one.kind] -= 1
        return found

    def _clair_judged(self) -> list[Pair]:
        """The worse of the two samples, which breaks the rule, is A here; where it cannot be repaired there is none."""
        judged = self.pairs("judged")
        own = {p.task.prompt: p.rejected for p in judged}
        tasks = [p.task for p in judged if is_repairable(p.task, p.rejected)]
        revised = self._revised("clair-judged", tasks, own)
        return [Pair(t, revised[t.prompt], own[t.prompt]) for t in tasks if t.prompt in revised]

    def _stronger(self) -> list[Pair]:
        return [Pair(p.task, stronger.answer(p.task), p.rejected) for p in self.pairs("clair")]

    def _revised(self, name: str, tasks: Sequence[Task], answers: dict[str, str]) -> dict[str, str]:
        """Revisions by prompt, asked for over HTTP."""
        made = self.folder / "made"
        made.mkdir(parents=True, exist_ok=True)
        prompts, out = made / f"{name}.prompts.jsonl", made / f"{name}.jsonl"
        if not out.exists():
            rows = [{"prompt": t.prompt, "response": answers[t.prompt]} for t in tasks if t.prompt in answers]
            files.write_rows(prompts, rows)
            with reviser.serve_both() as address:
                recipe_runner.make(clair_recipe(ClairConfig(
                    model="reviser", min_length_ratio=0.2, prompts=str(prompts), out=str(out),
                    store=str(made / f"{name}.sqlite"), endpoint=(address,),
                )))  # fmt: skip
        return {row["prompt"]: row["chosen"][-1]["content"] for row in load_rows(out)}


def is_repairable(one: Task, text: str) -> bool:
    """Whether an answer breaks the rule, and has a repair."""
    return not one.is_kept(text) and one.repair(text) is not None


# --- what a set is like --------------------------------------------------------------------------------------------


def facts(sets: Sets, name: str) -> dict[str, Any]:
    """What goes into a record of a set: pairs of each kind, and of each winner whether it keeps the rule, is broken,
    its characters, and its log-prob a token under the model before training.
    """
    pairs = sets.pairs(name)
    logps = log_probs(sets.base, sets.file(name))
    return {
        "set": name, "pairs": len(pairs), "kinds": dict(Counter(p.task.kind for p in pairs)),
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
    found = score_under(base, examples, micro_tokens=1024)
    return [logps.item() / e.lengths[0] for logps, e in zip(found, examples, strict=True)]


def winner_alone(example: Example) -> Example:
    """A pair without its loser."""
    return Example(example.location, example.prompt, example.responses[:1])


def examples_of(base: Path, path: Path) -> list[Example]:
    """Rows of a file as the trainer reads them for a model."""
    folder, chat = open_model(str(base))
    return read_examples([str(path)], chat, Limits(), Reading(), n_ids=shape_of(folder).vocab_size).examples
