"""Rounds: the aligned model answers new prompts, its answers are revised, and it is aligned again, with itself as the
reference; beside one run on the same prompts at once, whose answers are all the first model's.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from eval import checkpoints, plots
from eval.tables import Table, number
from examples import align
from examples.miniature import model, sets
from examples.miniature.score import Score, measure
from system import files

N_ROUNDS = 3
N_PROMPTS = 340  # of each round, new ones; in three rounds all that there are, those of the search for rates too
TRAINING: dict[str, Any] = {
    "loss": "apo_zero", "batch_size": "16", "epochs": "6", "optimizer": "rmsprop", "warmup_steps": "10", "beta": "0.5",
    "keep_checkpoints": "1",
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
    parts = [prompts[i * N_PROMPTS : (i + 1) * N_PROMPTS] for i in range(n_rounds)]
    root.mkdir(parents=True, exist_ok=True)
    for name, questions in {**dict(enumerate(parts, 1)), "all": [q for part in parts for q in part]}.items():
        files.write_rows(root / f"prompts-{name}.jsonl", [{"prompt": q.prompt} for q in questions])
    found = [_round("before", 0, measure(base, test[:N_TEST], temperature=1.0))]
    in_rounds = _recipe(base, root / "in-rounds", root / "prompts-{round}.jsonl", lr, rounds=n_rounds)
    align.follow(in_rounds)
    n_pairs = 0
    for i in range(1, n_rounds + 1):
        aligned, n = _end_of(in_rounds.out / f"round-{i}")
        n_pairs += n
        found.append(_round(f"round {i}", n_pairs, measure(aligned, test[:N_TEST], temperature=1.0)))
    at_once = _recipe(base, root / "at-once", root / "prompts-all.jsonl", lr, rounds=1)
    align.follow(at_once)
    whole, n = _end_of(at_once.out / "round-1")
    found.append(_round("all prompts at once", n, measure(whole, test[:N_TEST], temperature=1.0)))
    files.write_text(kept, json.dumps(found))
    return found


def _recipe(base: Path, out: Path, prompts: Path, lr: float, *, rounds: int) -> align.Recipe:
    """CLAIR and APO-zero, so many times."""
    clair = {
        "prompts": str(prompts), "endpoint": ["{teacher}"], "model": "reviser",
        "target_max_tokens": str(sets.MAX_ANSWER_TOKENS),
    }  # fmt: skip
    train = TRAINING | {"model": str(base), "lr": f"{lr:g}"}
    return align.Recipe(
        path=str(out), out=out, rounds=rounds, teacher=sets.TEACHER, revise={"clair": clair}, train=train
    )


def _end_of(folder: Path) -> tuple[Path, int]:
    """A round's newest checkpoint, and how many pairs it was trained on."""
    n_pairs = len((folder / "pairs/clair.jsonl").read_text().splitlines())
    return checkpoints.of(folder / "runs/seed-0/clair/apo_zero")[-1].folder, n_pairs


def _round(name: str, n_pairs: int, score: Score) -> Round:
    return Round(name, n_pairs, score.exact, *score.interval)


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
