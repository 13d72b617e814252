"""A run of engine.train in a process of its own, and what it took: seconds of its steps, and the most memory.

Memory is what the process held at most above what it held before it read anything, which is the interpreter's own and
its libraries'; engine.bench has it so, too. A run that was stopped goes on; what it took is in FOLDER.json.

    python -m examples.real.apart FOLDER.json       what `train` starts
"""

import json
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from data.rows import load_rows
from engine import train as training
from engine.bench import resident
from engine.config import TrainConfig
from examples.children import Children
from system import cli, files


class Spent(NamedTuple):
    """What a finished run took."""

    seconds: list[float]
    """Of each step, without saving and what is measured between steps."""
    per_epoch: int
    """Steps of an epoch."""
    peak_bytes: int
    """Most memory, above the interpreter's own."""
    expected_bytes: int
    """The same, as the run has planned it before it began."""
    micro_tokens: int
    """Most tokens of a pass."""

    def mean_seconds(self, epoch: int) -> float:
        """Of a step of an epoch, counted from 1, but for its first, which is a warm-up."""
        found = self.seconds[(epoch - 1) * self.per_epoch : epoch * self.per_epoch]
        return sum(found[1:]) / len(found[1:])


def train(out: Path, flags: Mapping[str, Any]) -> Spent:
    """Trains into a folder by engine.train's flags (as TrainConfig has them), or goes on there; does nothing where the
    run is finished. Raises RunError with the last words of a run that fails, Stopped where a signal ended it.
    """
    job = out.with_name(f"{out.name}.json")
    known = json.loads(job.read_text()) if job.exists() and out.exists() else {}  # a run that was removed is gone
    if not known.get("is_finished"):
        out.parent.mkdir(parents=True, exist_ok=True)
        files.write_json(job, known | {"flags": {**flags, "out": str(out)}})
        with Children() as children:
            log = out.with_name(f"{out.name}.log")
            children.run([sys.executable, "-m", "examples.real.apart", str(job)], log, os.environ)
        known = json.loads(job.read_text())
    return read(out, known["peak_bytes"])


def read(out: Path, peak_bytes: int) -> Spent:
    """What a finished run's folder says it took."""
    lines = [line for line in load_rows(out / "metrics.jsonl") if line["step"]]  # step 0 is of held-out rows
    facts = yaml.safe_load((out / "config.yaml").read_text())[cli.FACTS]["layout"]
    return Spent(
        seconds=[line["perf/step_seconds"] for line in lines],
        per_epoch=round(lines[-1]["step"] / lines[-1]["epoch"]),
        peak_bytes=peak_bytes,
        expected_bytes=sum(facts["bytes"].values()),
        micro_tokens=facts["micro_tokens"],
    )


def main(argv: Sequence[str]) -> None:
    """The process: trains by the flags in the file that is named, and adds to it what it took."""
    job = Path(argv[0])
    known = json.loads(job.read_text())
    before, is_finished = resident(), False
    try:
        flags = {name: tuple(x) if isinstance(x, list) else x for name, x in known["flags"].items()}
        is_finished = training.run(TrainConfig(resume=True, **flags)).is_finished
    finally:  # also of a run that is stopped: another process goes on with it
        peak = max(known.get("peak_bytes", 0), resident(peak=True) - before)
        files.write_json(job, known | {"peak_bytes": peak, "is_finished": is_finished})


if __name__ == "__main__":
    cli.run(main)
