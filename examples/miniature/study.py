"""The miniature's study: rates, comparisons and the curve of docs/design.md, run by run.

    python -m examples.miniature.study                     seven to ten hours on two cores
    python -m examples.miniature.study --minutes 110       what fits into so many minutes; the same command goes on

What a run has found goes into docs/records/miniature as soon as it ends, and a run that is there is not done again:
base models and pairs are made anew where a folder is gone, from the same seeds. `./launch.sh pages` makes docs/paper.md
of the records.
"""

import json
import os
import sys
import threading
import time
from collections.abc import Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from examples.children import Children
from examples.miniature import paper, study_plan, study_sets
from examples.miniature.study_run import Job, verdicts
from examples.miniature.study_sets import Seed
from system import InputError, RunError, cli, files
from system.errors import Stopped
from system.flags import PathText

EXAMPLE = "python -m examples.miniature.study --minutes 110"
RECORDS = "docs/records/miniature"
LEFT = 3
"""Exit code where runs are left."""
EXPECTED = 150.0
"""Seconds that a run has taken on two cores, two side by side: bounds what is begun until one was timed here."""


@dataclass(frozen=True, kw_only=True)
class StudyConfig:
    """Do the runs of the miniature's study that are not on record, first things first."""

    out: PathText = "runs/study"
    """Folder for base models, pairs, and the runs that are under way."""
    records: PathText = RECORDS
    """Folder for what the runs have found."""
    minutes: float | None = None
    """Begin no run that would not end within so many minutes; where runs are left the exit code is 3."""
    at_once: int | None = None
    """Runs side by side, each with its share of the cores. Unset: as many as there are cores."""

    def __post_init__(self) -> None:
        if self.minutes is not None and not self.minutes > 0:
            raise InputError(f"--minutes: {self.minutes:g} is not above 0")
        if self.at_once is not None and self.at_once < 1:
            raise InputError("--at-once has to be above 0")


class Records:
    """What the study has found: a file of runs for each seed, a line a run; and what base models and sets are like."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        self.runs: dict[Job, dict[str, Any]] = {}
        self.gained: dict[Job, float] = {}
        self.bases: dict[int, str] = {}
        self.sets: dict[tuple[int, str], dict[str, Any]] = {}
        self._lines: dict[int, list[dict[str, Any]]] = {}
        for path in sorted(folder.glob("seed-*.jsonl")):
            for line in path.read_text(encoding="utf-8").splitlines():
                self._take(json.loads(line))

    def _take(self, line: dict[str, Any]) -> None:
        self._lines.setdefault(line["seed"], []).append(line)
        if line["kind"] == "run":
            job = Job(*(line[name] for name in Job._fields))
            self.runs[job] = line
            self.gained[job] = study_plan.gain(job, line, self.bases[job.seed])
        elif line["kind"] == "base":
            self.bases[line["seed"]] = line["exact"]
        else:
            self.sets[line["seed"], line["set"]] = line

    def add(self, kind: str, line: dict[str, Any]) -> None:
        """Keeps a line at once."""
        self._take({"kind": kind, **line})
        files.write_rows(self._folder / f"seed-{line['seed']}.jsonl", self._lines[line["seed"]])


class Study:
    """Base models and pairs as they are needed, and the runs on them."""

    def __init__(
        self, out: Path, records: Records, *, epochs: int = paper.EPOCHS, n_pairs: int = paper.N_PAIRS
    ) -> None:
        self._out, self._records, self._epochs, self._n_pairs = out, records, epochs, n_pairs
        self._seeds: dict[int, Seed] = {}
        self._lock = threading.Lock()

    def seed(self, number: int) -> Seed:
        """A seed's base model and sets."""
        if number not in self._seeds:
            self._seeds[number] = Seed(number, self._out, self._n_pairs)
        return self._seeds[number]

    def prepare(self, job: Job) -> Path:
        """The run's pairs; its base model is measured and its set described on the way. One at a time."""
        with self._lock:
            seed = self.seed(job.seed)
            if job.seed not in self._records.bases:
                found = verdicts(seed.base, study_plan.questions(job.seed))
                self._records.add("base", {"seed": job.seed, **found})
            if (job.seed, job.set) not in self._records.sets:
                self._records.add("set", study_sets.facts(seed, job.set))
            return seed.file(job.set)

    def run(self, job: Job, data: Path, children: Children, env: dict[str, str]) -> dict[str, Any]:
        """What a run has found, by a process of its own."""
        name = f"{job.set}-{job.loss}-{job.lr:g}-{job.seed}"
        path = self._out / "runs" / f"{name}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        told = {
            "job": job._asdict(), "base": str(self.seed(job.seed).base), "data": str(data), "epochs": self._epochs,
            "questions": study_plan.questions(job.seed),
        }  # fmt: skip
        files.write_json(path, told)
        command = [sys.executable, "-m", "examples.miniature.study_run", str(path)]
        children.run(command, path.with_suffix(".log"), env)
        found = json.loads(path.read_text()).get("found")
        if found is None:
            raise RunError(f"{path}: the run has found nothing")
        path.unlink()
        path.with_suffix(".log").unlink()
        return found


def main(argv: Sequence[str]) -> None:
    """The command."""
    config = cli.parse(StudyConfig, argv or ["--out", StudyConfig.out], command="python -m examples.miniature.study",
                       example=EXAMPLE)  # fmt: skip
    records = Records(Path(config.records))
    at_once = config.at_once or os.cpu_count() or 1
    do_all(Study(Path(config.out), records), records, at_once=at_once, minutes=config.minutes)
    print(f"{len(records.runs)} runs are on record, and none is left")


def do_all(study: Study, records: Records, *, at_once: int, minutes: float | None) -> None:
    """Runs what is wanted until nothing is, or no time. Raises Stopped where runs are left, RunError for a run that
    fails.
    """
    begun, took, n_before = time.monotonic(), EXPECTED, len(records.runs)
    env = dict(os.environ | {"OMP_NUM_THREADS": str(max(1, (os.cpu_count() or 1) // at_once))})
    running: dict[Future[dict[str, Any]], tuple[Job, float]] = {}
    with Children() as children, ThreadPoolExecutor(at_once) as pool:
        while True:
            under_way = {job for job, _ in running.values()}
            ahead = [job for job in study_plan.wanted(records.gained) if job not in under_way]
            is_late = minutes is not None and time.monotonic() + took > begun + 60 * minutes
            while ahead and not is_late and len(running) < at_once:
                job = ahead.pop(0)
                data = study.prepare(job)
                running[pool.submit(study.run, job, data, children, env)] = job, time.monotonic()
            if not running:
                break
            done, _ = wait(running, return_when=FIRST_COMPLETED)
            for one in done:
                job, since = running.pop(one)
                records.add("run", {**job._asdict(), **one.result()})
                took = 0.7 * took + 0.3 * (time.monotonic() - since)
                _say(job, records, begun, len(records.runs) - n_before)
    if ahead:
        raise Stopped(f"{len(records.runs)} runs are on record and others are left; the same command goes on", LEFT)


def _say(job: Job, records: Records, begun: float, n_done: int) -> None:
    passed = (time.monotonic() - begun) / 60
    n_left = len([*study_plan.wanted(records.gained)])
    said = f"{job.loss} on {job.set} at {job.lr:g}, seed {job.seed}: {records.gained[job]:+.1f} points"
    print(f"[{passed:.0f} min, {n_done} runs, {n_left} known to be left] {said}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    cli.run(main)
