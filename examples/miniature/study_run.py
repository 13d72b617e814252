"""One run of the miniature's study: trained, each checkpoint's answers judged, and what came out kept in one file.

    python -m examples.miniature.study_run JOB.json       what examples.miniature.study starts

The file says what is run (Job), and gets what came out under "found". The run's folder is removed at the end; a run
that was stopped goes on from it.
"""

import base64
import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from data.rows import load_rows
from engine import train
from engine.config import TrainConfig
from eval.runs import read_runs
from examples import findings
from examples.miniature import model, paper, score, world
from examples.studies import Job, made_by
from system import NotFinite, cli, files

TRAINING: dict[str, Any] = {
    "optimizer": "rmsprop", "batch_size": 16, "eval_pairs": 32, "state_every": 0, "warmup_steps": 10, "beta": 0.5,
    "dtype": "float32",
}  # fmt: skip


class Questions(NamedTuple):
    """Those of the 500 that no model is trained on that a seed's models are asked."""

    skip: int
    n: int


COMPARED, SEARCHED = Questions(0, 300), Questions(300, 200)
"""Of seeds that are compared, and of the one that rates are searched with."""


def pack(verdicts: Sequence[bool]) -> str:
    """Verdicts on single answers, eight to a byte, the first in the highest bit; base64."""
    return base64.b64encode(np.packbits(np.array(verdicts, bool)).tobytes()).decode()


def unpack(text: str, n: int) -> np.ndarray:
    """The n verdicts, bool [n]."""
    return np.unpackbits(np.frombuffer(base64.b64decode(text), np.uint8), count=n).astype(bool)


def verdicts(folder: Path, asked: Questions) -> dict[str, Any]:
    """{"exact": packed verdicts, "right": share of facts} of a model on questions that none is trained on."""
    questions = model.split_questions()[2][asked.skip : asked.skip + asked.n]
    answers = score.answer(folder, questions, temperature=1.0, seed=1)
    both = list(zip(questions, answers, strict=True))
    right = sum(world.n_right(q, a) for q, a in both) / sum(len(q.facts) for q in questions)
    return {"exact": pack([world.is_exact(q, a) for q, a in both]), "right": round(right, 4)}


def run(base: Path, data: Path, job: Job, out: Path, asked: Questions, epochs: int = paper.EPOCHS) -> dict[str, Any]:
    """Trains and judges; {"epochs": [of each checkpoint what `verdicts` gives], "heldout", "seconds"}, or {"failed":
    its sentence} of a run whose loss is no number any more; and how it was made.
    """
    config = TrainConfig(
        model=str(base), data=(str(data),), loss=job.loss, lr=job.lr, seed=job.seed, out=str(out), epochs=epochs,
        resume=True, reference_cache=str(data.parent / "reference"), track=("none",), **TRAINING,
    )  # fmt: skip
    begun = time.perf_counter()
    made = {"by": made_by("examples.miniature.study", TRAINING | {"epochs": epochs, "pairs": len(load_rows(data))})}
    try:
        result = train.run(config)
    except NotFinite as fault:
        return {"failed": str(fault), **made}
    trained = time.perf_counter() - begun
    found = [verdicts(Path(folder), asked) for folder in result.checkpoints]
    (read,) = read_runs([out])
    held = findings.trajectory(read)
    return {
        "epochs": found,
        "heldout": {
            "epoch": [round(x, 4) for x in held.epochs],
            "logps": {side: [round(x, 3) for x in values] for side, values in held.logps.items()},
            "rewards": {side: [round(x, 4) for x in values] for side, values in held.rewards.items()},
        },
        "seconds": {
            "steps": round(sum(float(line.get("perf/step_seconds", 0)) for line in read.metrics), 1),
            "training": round(trained, 1),
            "all": round(time.perf_counter() - begun, 1),
        },
        **made,
    }  # fmt: skip


def main(argv: Sequence[str]) -> None:
    """The process."""
    path = Path(argv[0])
    told = json.loads(path.read_text())
    out = path.with_suffix("")
    found = run(
        Path(told["base"]), Path(told["data"]), Job(**told["job"]), out, Questions(*told["questions"]), told["epochs"]
    )
    files.write_json(path, told | {"found": found})
    files.remove_folder(out)


if __name__ == "__main__":
    cli.run(main)
