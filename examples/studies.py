"""What a study needs beside its runs: records that outlive its folder, and a loop that does first things first.

A study is a list of runs that may depend on what other runs have found (a rate that was searched for). `wanted` says
which are missing now; `do_all` does them, a process each, until none is left or the time is over. What a run has found
is on record as soon as it ends, and a run that is on record is not done again.

What runs begin from is on record, too, beside the lines: base models that were trained for a study, and what models
have said before training. Another machine goes on with the same models and the same pairs, and `Records.check` refuses
pairs that are others.
"""

import hashlib
import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import torch

from examples.children import Children, only_in
from examples.slots import Slots
from system import InputError, RunError, cli, digests, files
from system.errors import Stopped
from system.flags import check_above_zero

MOST_FAULTS = 5
"""Runs that fail in a start before it ends."""
LEFT, GOES_ON = 3, "the same command continues"
"""Exit code where runs are left, and the end of what is said then."""


LADDER = (1e-7, 3e-7, 1e-6, 3e-6, 1e-5, 3e-5, 1e-4, 3e-4, 1e-3, 3e-3, 1e-2)
"""Learning rates that searches take."""


@dataclass(frozen=True, kw_only=True)
class StretchSettings:
    """How long a study's command works."""

    minutes: float | None = None
    """Time budget in minutes, counted from the start of the command. A run starts only if it is expected to end within
    it. If runs are left, the exit code is 3; run the same command to continue. Unset: no limit."""
    at_once: int | None = None
    """Number of runs at the same time. They are spread over the GPUs, or share the cores if there is no GPU."""

    def __post_init__(self) -> None:
        if self.minutes is not None and not self.minutes > 0:
            raise InputError(f"--minutes: {self.minutes:g} has to be above 0")
        check_above_zero(self, "at_once")


class Job(NamedTuple):
    """A run, by what tells it from the others."""

    set: str
    """Name of its pairs."""
    loss: str
    lr: float
    seed: int

    @property
    def name(self) -> str:
        """As files have it."""
        return f"{self.set}-{self.loss}-{self.lr:g}-{self.seed}"


Gained = Mapping[Job, float]
"""The primary outcome of each run that is done."""
Line = dict[str, Any]
Gain = Callable[[Job, Mapping[str, Any], Mapping[str, Any]], float]
"""Of a run, its record and that of the model before training: the study's primary outcome."""


class Records:
    """What a study has found: a file of lines for each seed. A line is of a run, of the model before training ("base"),
    or of a set of pairs.
    """

    def __init__(self, folder: Path, gain: Gain) -> None:
        self.folder, self._gain = folder, gain
        self.runs: dict[Job, Line] = {}
        self.gained: dict[Job, float] = {}
        self.bases: dict[int, Line] = {}
        self.sets: dict[tuple[int, str], Line] = {}
        self._lines: dict[int, list[Line]] = {}
        for path in sorted(folder.glob("seed-*.jsonl")):
            for line in path.read_text(encoding="utf-8").splitlines():
                self._take(json.loads(line))

    def _take(self, line: Line) -> None:
        self._lines.setdefault(line["seed"], []).append(line)
        if line["kind"] == "run":
            job = Job(*(line[name] for name in Job._fields))
            self.runs[job] = line
            self.gained[job] = self._gain(job, line, self.bases[job.seed])
        elif line["kind"] == "base":
            self.bases[line["seed"]] = line
        else:
            self.sets[line["seed"], line["set"]] = line

    def add(self, kind: str, line: Mapping[str, Any]) -> None:
        """Keeps a line at once. kind: "run", "base" (before any run of that seed), or "set"."""
        self._take({"kind": kind, **line})
        self.folder.mkdir(parents=True, exist_ok=True)
        files.write_rows(self.folder / f"seed-{line['seed']}.jsonl", self._lines[line["seed"]])

    def check(self, seed: int, name: str, pairs: Path) -> None:
        """Raises InputError where the pairs of a set are not those that its record is of."""
        known = self.sets[seed, name]["sha256"]
        if (now := digest(pairs)) != known:
            raise InputError(
                f"{pairs}: holds other pairs ({now[:12]}) than those on record in {self.folder} ({known[:12]}), since "
                "they are made by other rules now, or of other samples; give another --records"
            )


def digest(path: Path) -> str:
    """SHA-256 of a file."""
    return digests([path])[0].hex()


def as_lines(rows: Iterable[Mapping[str, Any]]) -> str:
    """Rows as JSON Lines."""
    return "".join(json.dumps(row) + "\n" for row in rows)


def called_by(name: str, text: str) -> str:
    """The name with a digest of the text, so that another text gets another file."""
    return f"{name}-{hashlib.sha256(text.encode()).hexdigest()[:12]}"


def around(rate: float, n: int) -> tuple[float, ...]:
    """A rate of LADDER and up to n neighbours on either side."""
    at = LADDER.index(rate)
    return LADDER[max(0, at - n) : at + n + 1]


def write_if_other(path: Path, text: str) -> None:
    """Writes a file unless it says this already."""
    if not path.is_file() or path.read_text(encoding="utf-8") != text:
        files.write_text(path, text)


def made_by(module: str, settings: Mapping[str, Any]) -> dict[str, Any]:
    """What a run's record says of how it was made. module: the study's command. settings: engine.train's."""
    commit = _git("rev-parse", "HEAD")
    commit += "-dirty" * bool(_git("status", "--porcelain", "-uno", "--", ".", ":!docs/records"))
    on_gpu = torch.cuda.is_available()
    return {
        "command": f"python -m {module}", "settings": dict(settings), "commit": commit or "unknown",
        "machine": f"{os.cpu_count()} {platform.machine()} cores, {torch.get_num_threads()} threads",
        "device": torch.cuda.get_device_name() if on_gpu else "cpu", "torch": torch.__version__,
    }  # fmt: skip


def _git(*asked: str) -> str:
    """What git says of the project; nothing where there is none."""
    root = Path(__file__).resolve().parents[1]
    try:
        done = subprocess.run(["git", *asked], cwd=root, capture_output=True, text=True, check=False)
    except OSError:
        return ""
    return done.stdout.strip()


def best(by_rate: Mapping[float, float]) -> float:
    """The rate of the greatest gain; of equals the smallest."""
    return max(sorted(by_rate), key=lambda rate: by_rate[rate])


def missing(jobs: Iterable[Job], gained: Gained) -> Iterator[Job]:
    """Those that are not done, each once, in their order."""
    seen = set[Job]()
    for job in jobs:
        if job not in gained and job not in seen:
            seen.add(job)
            yield job


class Study(Protocol):
    """A study's own part."""

    def prepare(self, job: Job) -> Mapping[str, Any]:
        """What the run's process is told; models and pairs are made on the way. One at a time."""
        ...

    def wanted(self, gained: Gained) -> Iterator[Job]:
        """Runs that are not done and whose settings are known by now, the first to be done first."""
        ...


def do_all(
    study: Study, records: Records, *, module: str, folder: Path, at_once: int, minutes: float | None, expected: float
) -> None:
    """Does what is wanted until nothing is, or no time is left for another run. Raises Stopped where runs are left. A
    run that fails, or cannot be prepared, is left out; the first one's RunError or InputError is raised at the end, or
    after MOST_FAULTS of them.

    module: what is run as a process for each, with a file that holds what `prepare` has said and gets "found".
    folder: for these. minutes: None for no bound. expected: seconds that a run takes, until one was timed here.
    """
    start, slots = _Start(study, records, folder, minutes, expected), Slots(at_once=at_once)
    running: dict[Future[Line], tuple[Job, float]] = {}
    with only_in(folder, does="does a study's runs in it") as children, ThreadPoolExecutor(at_once) as pool:
        while True:
            ahead = start.ahead(job for job, _ in running.values())
            if ahead and len(running) < at_once and not start.is_over:
                path = start.prepare(ahead[0])
                children.raise_if_stopped()
                if path is not None:
                    command = [sys.executable, "-m", module, str(path)]
                    running[pool.submit(_run, children, slots, command, path)] = ahead[0], time.monotonic()
                continue
            if not running:
                break
            done, _ = wait(running, return_when=FIRST_COMPLETED)
            children.raise_if_stopped()  # what has just come is found by the next start
            for one in done:
                job, since = running.pop(one)
                fault = one.exception()
                if isinstance(fault, RunError) and not isinstance(fault, Stopped):
                    start.leave_out(job, fault)
                else:
                    start.keep(job, one.result(), time.monotonic() - since)
    if start.faults:
        raise next(iter(start.faults.values()))
    if ahead:
        raise Stopped(f"{len(records.runs)} runs are recorded and others are left; {GOES_ON}", LEFT)


class _Start:
    """One start of a study: what it has done, what it leaves out, and when it begins no other run."""

    def __init__(self, study: Study, records: Records, folder: Path, minutes: float | None, expected: float) -> None:
        self.faults: dict[Job, Exception] = {}
        self._unmade = set[tuple[str, int]]()
        """Sets of a seed that cannot be prepared: whatever is trained on them is left out, and counts as one fault."""
        self._study, self._records, self._folder = study, records, folder
        self._begun, self._took, self._n_before = time.monotonic(), expected, len(records.runs)
        self._end = None if minutes is None else self._begun + 60 * minutes

    @property
    def is_over(self) -> bool:
        """Whether no other run is begun: it would end too late, or too many have failed."""
        is_late = self._end is not None and time.monotonic() + self._took > self._end
        return is_late or len(self.faults) >= MOST_FAULTS

    def ahead(self, under_way: Iterable[Job]) -> list[Job]:
        """Runs that can be begun, the first to be done first."""
        out = {*under_way, *self.faults}
        wanted = self._study.wanted(self._records.gained)
        return [job for job in wanted if job not in out and (job.set, job.seed) not in self._unmade]

    def prepare(self, job: Job) -> Path | None:
        """The file that tells a run's process what to do; None where there is nothing to run: it cannot be prepared, a
        start that was killed has found it, or preparing took too long.
        """
        path = self._folder / f"{job.name}.json"
        try:
            told = json.loads(json.dumps(self._study.prepare(job)))
        except Stopped:
            raise
        except (InputError, RunError) as fault:
            self._unmade.add((job.set, job.seed))
            self.leave_out(job, fault)
            return None
        if (known := _known(path, told)) is not None:
            self.keep(job, known)
        elif not self.is_over:
            files.write_json(path, told)
            return path
        return None

    def leave_out(self, job: Job, fault: Exception) -> None:
        """Counts a run as failed, and says why."""
        self.faults[job] = fault
        cli.notify(str(fault))

    def keep(self, job: Job, found: Line, seconds: float | None = None) -> None:
        """Puts a run on record. seconds: that it took, where it was timed."""
        self._took = self._took if seconds is None else 0.7 * self._took + 0.3 * seconds
        self._records.add("run", {**job._asdict(), **found})
        for ending in (".json", ".log"):
            (self._folder / f"{job.name}{ending}").unlink(missing_ok=True)
        n_left = len([*self._study.wanted(self._records.gained)])
        passed, n = (time.monotonic() - self._begun) / 60, len(self._records.runs) - self._n_before
        said = f"{job.loss} on {job.set} at {job.lr:g}, seed {job.seed}: {self._records.gained[job]:+.1f} points"
        print(f"[{passed:.0f} min, {n} runs, {n_left} left] {said}", file=sys.stderr, flush=True)


def _run(children: Children, slots: Slots, command: list[str], path: Path) -> Line:
    log = path.with_suffix(".log")
    with slots.take() as env:
        children.run(command, log, env)
    found = json.loads(path.read_text()).get("found")
    if found is None:
        raise RunError(f"{path}: the run has ended without a result")
    return found


def _known(path: Path, told: Mapping[str, Any]) -> Line | None:
    """What a run has found that was told the same, where its file still has it."""
    if not path.is_file():
        return None
    said = json.loads(path.read_text())
    found = said.pop("found", None)
    return found if said == told else None
