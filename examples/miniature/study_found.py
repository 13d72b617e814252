"""What the miniature's study has found, as its tables need it: gains and their intervals, of records alone."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from statistics import fmean
from typing import Any

import numpy as np

from eval.tables import number
from examples import intervals, studies
from examples.intervals import Estimate
from examples.miniature import study_plan
from examples.miniature.study_plan import ARMS, SEEDS, called
from examples.miniature.study_sets import TABLE
from examples.studies import Job


@dataclass(frozen=True)
class Found:
    """What is on record."""

    runs: Mapping[Job, Mapping[str, Any]]
    bases: Mapping[int, Mapping[str, Any]]
    """Of the model before training, by seed."""
    sets: Mapping[tuple[int, str], Mapping[str, Any]]

    @cached_property
    def gained(self) -> studies.Gained:
        """The primary outcome of each run."""
        return {job: study_plan.gain(job, run, self.bases[job.seed]) for job, run in self.runs.items()}

    def gains(self, job: Job) -> np.ndarray:
        """Of each checkpoint and question, [checkpoints, questions]."""
        return study_plan.gains(job, self.runs[job], self.bases[job.seed])

    def values(self, name: str, loss: str, lr: float | None, seeds: Iterable[int] | None = None) -> np.ndarray | None:
        """Gain of each seed and question, mean over checkpoints, [seeds, questions]; None where one is not there.

        seeds: unset, those that the two are compared with.
        """
        seeds = study_plan.seeds(loss, name) if seeds is None else seeds
        jobs = [Job(called(name), loss, lr, seed) for seed in seeds] if lr is not None else []
        if not jobs or any(job not in self.runs for job in jobs):
            return None
        return np.stack([self.gains(job).mean(0) for job in jobs])

    def estimate(self, name: str, loss: str, lr: float | None) -> Estimate | None:
        """The primary outcome, over seeds."""
        values = self.values(name, loss, lr)
        return None if values is None else intervals.estimate(values)

    def best_checkpoint(self, name: str, loss: str, lr: float) -> float:
        """Points of the best checkpoint, mean over seeds."""
        every = (self.gains(Job(called(name), loss, lr, seed)) for seed in study_plan.seeds(loss, name))
        return fmean(100 * float(gains.mean(1).max()) for gains in every)

    def searched(self, loss: str, name: str) -> dict[float, float]:
        """Gain in the search by rate."""
        return study_plan.searched(loss, name, self.gained)

    def rate(self, loss: str, name: str, names: Sequence[str] = TABLE, *, own: bool = True) -> float | None:
        """The rate chosen on this set alone, or (own=False) on all of `names`; None as long as the search goes on."""
        if study_plan.missing_rates(loss, names, self.gained):
            return None
        return study_plan.rates_of(loss, name, names, self.gained)[own]

    def of_sets(self, name: str, what: str, seeds: Iterable[int] = SEEDS) -> float | None:
        """A number of a set's record, mean over seeds; "right.own" for one inside."""
        records: list[Any] = [self.sets.get((seed, called(name))) for seed in seeds]
        for key in what.split("."):
            records = [record and record[key] for record in records]
        return None if any(record is None for record in records) else fmean(records)

    @property
    def n_left(self) -> int:
        """Runs that are known to be left."""
        return len([*study_plan.wanted(self.gained)])


def cell(value: object) -> str:
    """For a table: a dash where there is nothing."""
    return number(None) if value is None else str(value)


Compared = tuple[str, str, float | None]
"""A set, an objective and its rate."""


def difference(found: Found, first: Compared, second: Compared) -> Estimate | None:
    """Gain of the first minus that of the second, over the seeds that both have; None where a run is not there."""
    shared = [seed for seed in study_plan.seeds(first[1], first[0]) if seed in study_plan.seeds(second[1], second[0])]
    values = [found.values(*which, shared) for which in (first, second)]
    return None if values[0] is None or values[1] is None else intervals.estimate(values[0] - values[1])


def said(estimate: Estimate) -> str:
    """A difference in words."""
    return f"{intervals.in_words(estimate)}: {estimate} points"


def of_control(found: Found, loss: str) -> Estimate | None:
    """CLAIR minus the control, each at its own rate."""
    first, second = ((name, loss, found.rate(loss, name)) for name in ARMS)
    return difference(found, first, second)


def apart_by_rate(first: Mapping[float, float], second: Mapping[float, float]) -> str:
    """The first search minus the second at each rate that both have; nothing where there is none."""
    return ", ".join(f"{lr:g} {first[lr] - second[lr]:+.1f}" for lr in sorted(first.keys() & second.keys()))


def of_rate(rate: float | None) -> str:
    """A rate in a table."""
    return f"{rate:g}" if rate else cell(None)


def verdict(estimate: Estimate | None) -> str:
    """Of a difference in a table."""
    return cell(None) if estimate is None else intervals.verdict(estimate)
