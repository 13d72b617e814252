"""Rounds: the aligned model answers new prompts, its answers are revised, and it is aligned again, with itself as the
reference; beside one run on the same prompts at once, whose answers are all the first model's.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from engine import train
from engine.config import TrainConfig
from eval import plots
from eval.tables import Table, number
from examples.miniature import model, sets
from examples.miniature.score import Score, measure
from system import files

N_ROUNDS = 3
N_PROMPTS = 340  # of each round, new ones; in three rounds all that there are, those of the search for rates too
TRAINING: dict[str, Any] = {
    "batch_size": 16, "epochs": 6, "optimizer": "rmsprop", "warmup_steps": 10, "beta": 0.5, "keep_checkpoints": 1,
}  # fmt: skip
N_TEST = 300  # of the 500; by the others the rates were found


class Round(NamedTuple):
    """What one round has led to."""

    name: str
    n_pairs: int
    exact: float
    """Share of exact answers at temperature 1."""
    low: float
    high: float


def run(base: Path, root: Path, *, n_rounds: int, lr: float) -> list[Round]:
    """The base, each round, and the run on all prompts at once. What was found before is read again."""
    kept = root / f"rounds-{n_rounds}-{lr:g}.json"
    if kept.exists():
        return [Round(*line) for line in json.loads(kept.read_text())]
    _, prompts, test = model.split_questions()
    now, n_pairs, found = base, 0, [_round("before", 0, measure(base, test[:N_TEST], temperature=1.0))]
    for i in range(n_rounds):
        part = prompts[i * N_PROMPTS : (i + 1) * N_PROMPTS]
        pairs = sets.clair(now, root / f"round-{i + 1}", part)
        now = _train(now, [pairs], root / f"round-{i + 1}/apo_zero", lr)
        n_pairs += len(pairs.read_text().splitlines())
        found.append(_round(f"round {i + 1}", n_pairs, measure(now, test[:N_TEST], temperature=1.0)))
    every = [
        sets.clair(base, root / f"at-once/{i + 1}", prompts[i * N_PROMPTS : (i + 1) * N_PROMPTS])
        for i in range(n_rounds)
    ]
    whole = _train(base, every, root / "at-once/apo_zero", lr)
    n_pairs = sum(len(pairs.read_text().splitlines()) for pairs in every)
    found.append(_round("all prompts at once", n_pairs, measure(whole, test[:N_TEST], temperature=1.0)))
    files.write_text(kept, json.dumps(found))
    return found


def _round(name: str, n_pairs: int, score: Score) -> Round:
    return Round(name, n_pairs, score.exact, *score.interval)


def _train(start: Path, pairs: Sequence[Path], out: Path, lr: float) -> Path:
    config = TrainConfig(
        model=str(start), data=tuple(map(str, pairs)), loss="apo_zero", out=str(out), resume=True, lr=lr, **TRAINING
    )
    return train.run(config).checkpoints[-1]


def chart(found: Sequence[Round]) -> str:
    """The curve: exact answers by how many pairs were made, in rounds and at once."""
    before, *between, at_once = found
    series = [
        plots.Series(name, [(float(r.n_pairs), 100 * r.exact) for r in line], [50 * (r.high - r.low) for r in line], i)
        for i, (name, line) in enumerate({"in rounds": (before, *between), "at once": (before, at_once)}.items())
    ]
    return plots.chart("Exact answers after each round, 95 %", series, x="pairs made", y="%")


def table(found: Sequence[Round]) -> Table:
    """The curve as a table."""
    rows = [
        (r.name, str(r.n_pairs), number(100 * r.exact, 1), f"{100 * r.low:.1f} to {100 * r.high:.1f}") for r in found
    ]
    notes = [
        "CLAIR pairs and APO-zero in rounds: each has new prompts, answers of the model of the round before, and that "
        f"model as its reference. {N_TEST} unseen questions at temperature 1."
    ]
    return Table(
        "rounds",
        "Rounds of answers, revisions and alignment",
        ("after", "pairs so far", "exact, %", "95 %"),
        rows,
        1,
        notes,
    )
