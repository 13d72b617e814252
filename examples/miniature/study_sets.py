"""The preference pairs of the miniature's studies (docs/design.md), by name, for one seed; each made once.

Every seed has its own base model and its own draw of prompts. The model answers each prompt once (A), and more often
where a set needs another sample. Models and samples are kept on record, so that all sets are the same wherever they are
made. Revisions and answers of a stronger model are asked for over HTTP, by the recipes of revise/; answers of other
models, whose quality has to be set, are made here.

    clair, clair-light, clair-strong    the repair of A, over A
    another-sample                      the repair of B, another sample, over A
    judge-on-policy                     the better of two samples over the worse
    stronger-preferred                  always right, in a style of its own, over A
    stronger-habit                      the same, with a habit that breaks a rule which the model keeps
    shift-near-0.9 ...                  winners that the model's own answer beats in so many pairs of all, found by how
                                        often their facts are wrong (shift) or by how many are bad (mix); losers one
                                        fact worse (near) or nearly all wrong (far)
    best-over-worst                     the best over the worst of four models that get 60 to 90 % of values wrong
"""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from statistics import fmean
from typing import Any, NamedTuple

import numpy as np
from rapidfuzz.distance import Levenshtein

from data.contrast import jaccard
from data.text import Tokenizer
from engine import convert
from examples.miniature import model, sets, world
from examples.miniature.score import answer
from examples.miniature.world import Question
from examples.studies import as_lines, called_by, digest, write_if_other
from revise import recipe_runner, recipes
from system import RunError, files

TABLE = ("clair", "another-sample", "judge-on-policy", "judge-off-policy", "stronger-preferred")
"""The five sets of the table."""
POINTS = (0.1, 0.3, 0.5, 0.7, 0.9)
"""Shares of pairs in which the model's own answer is better than the winner."""
LINES = ("shift-near", "shift-far", "mix-near")
SAME_AS = {"judge-off-policy": "shift-near-0.9"}
"""A set of the table that is a point of the curve, too."""
STRENGTHS = {"clair-light": "light", "clair-strong": "strong"}
TUNING_SEED = 1000
N_PAIRS = 240
"""Of every set, in the search and after it, so that all runs are of the same length; 32 of them are held out."""
N_PROMPTS, N_SEARCHED = 450, 400
"""Prompts of a seed, drawn from those that the search does not have, and of the search."""
OF_MODEL = ("config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json")
N_DRAWS = 8
"""Samples besides A that there are of each prompt."""
OWN_RIGHT, FEWEST_RIGHT = 3, 2
"""Facts that the own answer has right in the curve's sets, and that a winner has at least."""
BAD, GOOD = 0.9, 0.0
"""Shares of values that the bad and the good winners of a mixed set get wrong."""
FAR = 0.95
"""The same of losers that are nearly all wrong."""
N_SIMULATED = 1500


class Pair(NamedTuple):
    """A preference pair, and the model's own answer A to the same prompt."""

    question: Question
    chosen: str
    rejected: str
    own: str

    @property
    def own_is_better(self) -> float:
        """1 where the own answer has more facts right than the winner, a half where as many."""
        own, won = (world.n_right(self.question, text) for text in (self.own, self.chosen))
        return (own > won) + 0.5 * (own == won)


@dataclass
class Seed:
    """A seed's base model, prompts and sets."""

    number: int
    root: Path
    """Folder for the models of all seeds, and for the sets of each."""
    records: Path
    """Folder for what sets are made of: models and samples."""
    n: int = N_PAIRS
    """Pairs of a set."""
    _pairs: dict[str, list[Pair]] = field(default_factory=dict)

    @property
    def kept(self) -> Path:
        """The folder for what is on record of this seed."""
        return self.records / f"seed-{self.number}"

    @cached_property
    def base(self) -> Path:
        """The model before training: in bfloat16, and trained where it is not on record."""
        folder = self.kept / "base"
        if not folder.is_dir():
            made, rounded = model.base_model(self.root, self.number), self.root / f"base-{self.number}-bfloat16"
            if rounded.exists():  # of a start that was ended here
                files.remove_folder(rounded)
            convert.main(["--model", str(made), "--out", str(rounded), "--dtype", "bfloat16"])
            with files.whole_folder(folder) as temporary:
                for name in OF_MODEL:
                    (temporary / name).write_bytes((rounded / name).read_bytes())
        return folder

    @cached_property
    def folder(self) -> Path:
        """For the sets."""
        made = self.root / f"sets-{self.number}"
        made.mkdir(parents=True, exist_ok=True)
        return made

    @cached_property
    def questions(self) -> list[Question]:
        """The prompts: those of the search, or a draw of the others."""
        every = model.split_questions()[1]
        if self.number == TUNING_SEED:
            return every[-N_SEARCHED:]
        rest = every[:-N_SEARCHED]
        drawn = np.random.default_rng(self.number).choice(len(rest), N_PROMPTS, replace=False)
        return [rest[i] for i in drawn.tolist()]

    @cached_property
    def own(self) -> list[str]:
        """The model's answer A to each prompt."""
        return self.samples(0)

    def samples(self, draw: int) -> list[str]:
        """Answers of the model, one to each prompt, at temperature 1. draw: 0, 1 ..., each another sample."""
        kept = self.kept / f"samples-{draw}.json"
        if not kept.exists():
            kept.parent.mkdir(parents=True, exist_ok=True)
            drawn = answer(self.base, self.questions, temperature=1.0, seed=1000 * (draw + 1) + self.number)
            files.write_json(kept, drawn)
        return json.loads(kept.read_text())

    def file(self, name: str) -> Path:
        """A set's pairs, as engine.train takes them."""
        path = self.folder / f"{name}.jsonl"
        rows = [{"prompt": p.question.prompt, "chosen": p.chosen, "rejected": p.rejected} for p in self.pairs(name)]
        write_if_other(path, as_lines(rows))
        return path

    def pairs(self, name: str) -> list[Pair]:
        """A set. Raises KeyError where there is none of that name, RunError where the prompts give too few pairs."""
        name = SAME_AS.get(name, name)
        if name not in self._pairs:
            made = _maker(name)(self)
            of_curve = {q.prompt: own for q, own in answers_of_curve(self)} if _is_of_curve(name) else {}
            every = zip(self.questions, self.own, strict=True)
            found = [Pair(q, *made[q.prompt], of_curve.get(q.prompt, own)) for q, own in every if q.prompt in made]
            if len(found) < self.n:
                raise RunError(f"{name}, seed {self.number}: the prompts give {len(found)} pairs, not {self.n}")
            self._pairs[name] = found[: self.n]
        return self._pairs[name]


Texts = dict[str, tuple[str, str]]
"""(chosen, rejected) by prompt."""


def _is_of_curve(name: str) -> bool:
    return name.rpartition("-")[0] in LINES


def _maker(name: str) -> Callable[[Seed], Texts]:
    if name in ("clair", "another-sample"):
        return lambda seed: _both_arms(seed)[name]
    if name in STRENGTHS:
        return lambda seed: _in_both(seed, _revised(seed, name, seed.own, STRENGTHS[name]))
    if name == "best-over-worst":
        return _best_over_worst
    if _is_of_curve(name):
        line, _, share = name.rpartition("-")
        return lambda seed: _of_quality(seed, line, float(share))
    return {"judge-on-policy": _judged, "stronger-preferred": _stronger, "stronger-habit": _stronger_habit}[name]


# --- revisions -----------------------------------------------------------------------------------------------------


def _both_arms(seed: Seed) -> dict[str, Texts]:
    """CLAIR and its control, on the prompts that both have."""
    own = dict(zip((q.prompt for q in seed.questions), seed.own, strict=True))
    of_own = _revised(seed, "clair", seed.own)
    of_another = _revised(seed, "another-sample", another_samples(seed))
    both = [prompt for prompt in of_own if prompt in of_another]
    return {
        "clair": {prompt: of_own[prompt] for prompt in both},
        "another-sample": {prompt: (of_another[prompt][0], own[prompt]) for prompt in both},
    }


def _in_both(seed: Seed, found: Texts) -> Texts:
    """Those pairs whose prompts CLAIR and its control have."""
    both = _both_arms(seed)["clair"]
    return {prompt: texts for prompt, texts in found.items() if prompt in both}


def another_samples(seed: Seed) -> list[str | None]:
    """To each prompt a sample that is not A, not exact, and can be repaired; None where none of the draws is one."""
    found: list[str | None] = [None] * len(seed.questions)
    for draw in range(1, N_DRAWS + 1):
        for i, (question, text) in enumerate(zip(seed.questions, seed.samples(draw), strict=True)):
            if found[i] is None and text != seed.own[i] and is_repairable(question, text):
                found[i] = text
    return found


def is_repairable(question: Question, text: str) -> bool:
    """Whether an answer is there and not exact, and a repair of it is."""
    return bool(text.strip()) and not world.is_exact(question, text) and world.revise(question, text) is not None


def _revised(seed: Seed, name: str, answers: Sequence[str | None], strength: str = "standard") -> Texts:
    """Revisions over the answers that they are of, asked for over HTTP; of None there is none."""
    rows = [
        {"prompt": q.prompt, "response": text}
        for q, text in zip(seed.questions, answers, strict=True)
        if text is not None and is_repairable(q, text)
    ]
    return _by_recipe(
        seed,
        name,
        rows,
        lambda told: recipes.clair_recipe(recipes.ClairConfig(model="reviser", strength=strength, **told)),  # pyright: ignore[reportArgumentType]
    )


# --- a judge, and a stronger model ---------------------------------------------------------------------------------


def _judged(seed: Seed) -> Texts:
    both = zip(seed.questions, seed.own, seed.samples(1), strict=True)
    rows = [{"prompt": q.prompt, "responses": [a, b]} for q, a, b in both if a != b and a.strip() and b.strip()]
    return _by_recipe(
        seed,
        "judge-on-policy",
        rows,
        lambda told: recipes.judge_recipe(recipes.JudgeConfig(model="judge", **told), recipes.Positions()),
    )


def _stronger(seed: Seed, name: str = "stronger-preferred", who: str = "stronger") -> Texts:
    both = zip(seed.questions, seed.own, strict=True)
    rows = [{"prompt": q.prompt, "response": own} for q, own in both if own.strip()]
    return _by_recipe(seed, name, rows, lambda told: recipes.stronger_recipe(recipes.StrongerConfig(model=who, **told)))


def _stronger_habit(seed: Seed) -> Texts:
    return _stronger(seed, "stronger-habit", "habit")


def _by_recipe(
    seed: Seed, name: str, rows: list[dict[str, Any]], recipe: Callable[[dict[str, Any]], recipe_runner.Recipe]
) -> Texts:
    """What a recipe of revise/ makes of rows that bring the model's answers with them."""
    made, text = seed.folder / "made", as_lines(rows)
    made.mkdir(exist_ok=True)
    name = called_by(name, text)
    prompts, out = made / f"{name}.prompts.jsonl", made / f"{name}.jsonl"
    if not out.exists():
        files.write_text(prompts, text)
        with sets.serve_teachers() as address:
            told = {"prompts": str(prompts), "out": str(out), "store": str(made / f"{name}.sqlite")}
            recipe_runner.make(recipe(told | {"endpoint": (address,), "seed": seed.number}))
    found = map(json.loads, out.read_text().splitlines())
    return {row["prompt"]: (row["chosen"][-1]["content"], row["rejected"][-1]["content"]) for row in found}


# --- answers of other models ---------------------------------------------------------------------------------------


def _best_over_worst(seed: Seed) -> Texts:
    rng = np.random.default_rng(seed.number)
    found: Texts = {}
    for question in seed.questions:
        texts = [world.noisy_answer(question, rng, wrong=wrong) for wrong in sets.OTHERS_WRONG]
        grades = [sets.grade(question, text) for text in texts]
        best, worst = int(np.argmax(grades)), int(np.argmin(grades))
        if grades[best] > grades[worst]:
            found[question.prompt] = texts[best], texts[worst]
    return found


def _of_quality(seed: Seed, line: str, share: float) -> Texts:
    """Winners of the quality at which the own answer is better in such a share of pairs, and losers."""
    way, losers = line.split("-")
    amount = quality(Seed(TUNING_SEED, seed.root, seed.records), way, share)
    rng = np.random.default_rng((seed.number, int(1000 * share)))  # the same winners for either kind of loser
    winners = [(q, winner(q, way, amount, rng)) for q, _ in answers_of_curve(seed)]
    rng = np.random.default_rng((seed.number, int(1000 * share), 1))
    return {q.prompt: (text, loser(q, text, losers, rng)) for q, text in winners}


def answers_of_curve(seed: Seed) -> list[tuple[Question, str]]:
    """The prompts of the curve's sets, and the own answer to each: the first sample that has three of its four facts
    right, so that a winner can be better and, with two right, worse, and still have a loser below it.
    """
    every = [seed.samples(draw) for draw in range(N_DRAWS + 1)]
    found = []
    for question, *texts in zip(seed.questions, *every, strict=True):
        own = next((text for text in texts if world.n_right(question, text) == OWN_RIGHT), None)
        if own is not None:
            found.append((question, own))
    return found


def winner(question: Question, way: str, amount: float, rng: np.random.Generator) -> str:
    """An answer with two facts right at least. amount: of "shift" the share of values that are wrong, of "mix" the
    share of answers that are bad.
    """
    wrong = amount if way == "shift" else BAD if rng.random() < amount else GOOD
    while True:
        text = world.noisy_answer(question, rng, wrong=wrong)
        if world.n_right(question, text) >= FEWEST_RIGHT:
            return text


def loser(question: Question, winning: str, how: str, rng: np.random.Generator) -> str:
    """Worse than the winner: "near", the same with one right fact made wrong; "far", another answer, nearly all wrong.
    Both are in a phrasing that is drawn.
    """
    if how == "far":
        while True:
            text = world.noisy_answer(question, rng, wrong=FAR)
            if world.n_right(question, text) < world.n_right(question, winning):
                return text
    parsed = world.parse(winning)
    if parsed is None:
        raise RunError(f"{winning!r} is no answer of this world")
    facts, _ = parsed
    right = [i for i, fact in enumerate(facts) if fact == world.truth(fact.animal, fact.attribute)]
    changed = right[int(rng.integers(len(right)))]
    others = [value for value in world.VALUES[facts[changed].attribute] if value != facts[changed].value]
    facts[changed] = facts[changed]._replace(value=str(rng.choice(others)))
    return world.render(facts, world.PHRASINGS[int(rng.integers(len(world.PHRASINGS)))])


def quality(search: Seed, way: str, share: float) -> float:
    """The amount (see `winner`) at which the own answers of the search's model are better than winners in this share of
    pairs, half of those that are as good counted. Found by bisection on N_SIMULATED draws. Raises RunError where none
    is.
    """
    kept = search.kept / "quality.json"
    known: dict[str, float] = json.loads(kept.read_text()) if kept.exists() else {}
    if f"{way}-{share}" not in known:
        asked = answers_of_curve(search)
        low, high = 0.0, 1.0 if way == "mix" else BAD
        if not _share_better(asked, way, low) <= share <= _share_better(asked, way, high):
            raise RunError(f"no winners are of such a quality that the model's own is better in {share:.0%} of pairs")
        for _ in range(8):
            middle = (low + high) / 2
            low, high = (middle, high) if _share_better(asked, way, middle) < share else (low, middle)
        known[f"{way}-{share}"] = (low + high) / 2
        files.write_json(kept, known)
    return known[f"{way}-{share}"]


def _share_better(asked: Sequence[tuple[Question, str]], way: str, amount: float) -> float:
    rng = np.random.default_rng(0)
    repeated = (asked[i % len(asked)] for i in range(N_SIMULATED))
    found = [Pair(q, winner(q, way, amount, rng), "", own).own_is_better for q, own in repeated]
    return sum(found) / len(found)


# --- what a set is like --------------------------------------------------------------------------------------------


def facts(seed: Seed, name: str) -> dict[str, Any]:
    """What goes into a record of a set: pairs, how often the own answer is better than the winner, and how often A is,
    shares of facts right, how many pairs are CLAIR's, too, and the contrast of winners and losers as Table 1 of the
    paper has it.
    """
    ordinary = dict(zip((q.prompt for q in seed.questions), seed.own, strict=True))
    pairs, clair = seed.pairs(name), {p.question.prompt: p for p in seed.pairs("clair")}
    n_facts = sum(len(p.question.facts) for p in pairs)

    def right(texts: Sequence[str]) -> float:
        return sum(world.n_right(p.question, text) for p, text in zip(pairs, texts, strict=True)) / n_facts

    of_clair = [clair.get(p.question.prompt) for p in pairs]
    encode = Tokenizer(seed.base).encode
    tokens = [encode([p.chosen, p.rejected]) for p in pairs]
    return {
        "set": name, "seed": seed.number, "pairs": len(pairs), "sha256": digest(seed.file(name)),
        "own_better": fmean(p.own_is_better for p in pairs),
        "ordinary_better": fmean(
            p._replace(own=ordinary[p.question.prompt]).own_is_better for p in pairs
        ),
        "winner_better": fmean(p.own_is_better == 0 for p in pairs),
        "right": {
            "chosen": right([p.chosen for p in pairs]), "rejected": right([p.rejected for p in pairs]),
            "own": right([p.own for p in pairs]),
        },
        "exact_winners": fmean(world.is_exact(p.question, p.chosen) for p in pairs),
        "same_as_clair": fmean(
            c is not None and c[1:3] == p[1:3] for c, p in zip(of_clair, pairs, strict=True)
        ),
        "jaccard": fmean(jaccard(list(w), list(lost)) for w, lost in tokens),
        "levenshtein": fmean(Levenshtein.distance(p.chosen, p.rejected) for p in pairs),
    }  # fmt: skip
