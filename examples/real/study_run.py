"""One run of the real model's study: trained, its answers judged, its prices measured; what came out is in one file.

    python -m examples.real.study_run JOB.json       what examples.real.study starts

The file says what is run, and gets what came out under "found". The run's folder is removed at the end; a run that was
stopped goes on from it, with the answers that it has already.
"""

import json
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from data.rows import Example
from engine import train
from engine.config import TrainConfig
from examples.miniature.study_run import pack
from examples.real import demo, measure, study_sets, task
from examples.real.task import Task
from examples.studies import Job
from system import RunError, cli, files
from system.errors import Stopped

N_DEVELOPMENT = 135
GROUPS = {"development": (task.DEVELOPMENT_TOPICS, N_DEVELOPMENT), "test": (task.HELDOUT_TOPICS, demo.N_TEST)}
"""Topics and number of tasks of each group."""
TEXTS = Path(__file__).with_name("ordinary.jsonl")
"""Openings of books and speeches in the public domain, which no model wrote."""


def tasks_of(group: str) -> list[Task]:
    """The tasks that a group's models answer."""
    topics, n = GROUPS[group]
    return task.tasks(topics, n, seed=1)


def ordinary(base: Path, folder: Path, group: str, texts: Path) -> dict[str, list[Example]]:
    """What the price is measured on: "samples", the model's own at temperature 1 without nucleus, to questions without
    a rule, whose mean change is minus KL(before || after); and "texts".
    """
    out = folder / f"{group}-ordinary.jsonl"
    out.parent.mkdir(parents=True, exist_ok=True)
    return {
        "samples": measure.ordinary(base, out, GROUPS[group][0], temperature=1.0, top_p=1.0),
        "texts": study_sets.examples_of(base, texts),
    }


def likelihoods(folder: Path, examples: Mapping[str, Sequence[Example]]) -> dict[str, list[float]]:
    """Nats a token of each under a model."""
    return {
        name: [round(float(x), 4) for x in measure.log_likelihood(folder, found)] for name, found in examples.items()
    }


def judged(folder: Path, group: str, answers: Path) -> dict[str, Any]:
    """Of each way to draw answers: packed verdicts on single ones, whether it keeps its rule, and whether it is broken,
    and their characters. answers: folder for these.
    """
    tasks = tasks_of(group)
    answers.mkdir(parents=True, exist_ok=True)
    found = {}
    for how, heat in measure.TEMPERATURES.items():
        said = measure.answer(folder, [t.prompt for t in tasks], heat, answers / f"{how}.jsonl")
        found[how] = {
            "kept": pack([t.is_kept(a) for t, a in zip(tasks, said, strict=True)]),
            "broken": pack([task.is_broken(a) for a in said]),
            "characters": round(float(np.mean([len(a) for a in said])), 1),
        }
    return found


def run(told: Mapping[str, Any], out: Path) -> dict[str, Any]:
    """Trains and measures; or {"failed": its sentence} of a run that could not go on."""
    job, base, group = Job(**told["job"]), Path(told["base"]), told["group"]
    flags: dict[str, Any] = demo.TRAINING | {"lr": job.lr} | told.get("training", {})
    begun = time.perf_counter()
    try:
        result = train.run(TrainConfig(
            model=str(base), data=(told["data"],), loss=job.loss, seed=job.seed, out=str(out), resume=True,
            keep_checkpoints=1, keep_state=1, track=("none",),
            reference_cache=str(Path(told["data"]).parent / "reference"), **flags,
        ))  # fmt: skip
    except Stopped:
        raise
    except RunError as fault:
        return {"failed": str(fault)}
    trained = time.perf_counter() - begun
    (*_, folder) = map(Path, result.checkpoints)
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    held = {name: value for name, value in lines[-1].items() if name.startswith("eval_")}
    examples = ordinary(base, Path(told["answers"]), group, Path(told["texts"]))
    return {
        "answers": judged(folder, group, out / "answers"),
        "ordinary": likelihoods(folder, examples),
        "heldout": {name: round(float(value), 4) for name, value in held.items()},
        "seconds": {"training": round(trained, 1), "all": round(time.perf_counter() - begun, 1)},
    }


def main(argv: Sequence[str]) -> None:
    """The process."""
    path = Path(argv[0])
    told = json.loads(path.read_text())
    out = path.with_suffix("")
    found = run(told, out)
    files.write_json(path, told | {"found": found})
    files.remove_folder(out)


if __name__ == "__main__":
    cli.run(main)
