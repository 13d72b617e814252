"""Which runs the miniature's study still wants, and what those that are done say: pure functions of what is on record.

docs/design.md says what is asked. `wanted` gives the runs that are missing, first things first; where a rate has to be
chosen, the runs that need it come once it is.
"""

from collections.abc import Iterator, Mapping, Sequence
from statistics import fmean
from typing import Any

import numpy as np

from examples.miniature.study_run import COMPARED, SEARCHED, Questions, unpack
from examples.miniature.study_sets import LINES, POINTS, SAME_AS, STRENGTHS, TABLE, TUNING_SEED
from examples.studies import LADDER, Gained, Job, around, best, missing

SHARED_RATES = (1e-5, 3e-5, 1e-4)
"""One rate for all objectives, as the paper trains: claims are counted at each; every search begins with them."""
OBJECTIVES = ("apo_zero", "dpo", "apo_down", "kto_pair", "sft")
"""The paper's, those whose runs are never cut first."""
CORE, ARMS = ("apo_zero", "dpo"), ("clair", "another-sample")
"""What is never cut."""
REVISED = ("apo_zero_revised", "apo_down_revised", "dpo_revised")
REVISED_SETS = ("clair", "stronger-preferred")
HABIT, OF_HABIT = "stronger-habit", ("apo_zero", "dpo", "sft")
CURVE_RATES = {"apo_zero": (1e-5, 3e-5, 1e-4), "apo_down": (3e-6, 1e-5, 3e-5)}
EARLIER_SET = "best-over-worst"
UNPAIRED = {"kto": "kto_pair", "apo_zero_unpaired": "apo_zero"}
"""Table 5's objectives, and those whose rates they take."""
SEEDS = (0, 1, 2)
CORE_SEEDS = (0, 1, 2, 3, 4)


def called(name: str) -> str:
    """A set by the name that records have."""
    return SAME_AS.get(name, name)


def seeds(loss: str, name: str) -> tuple[int, ...]:
    """Those that an objective is compared with on a set."""
    return CORE_SEEDS if loss in CORE and name in ARMS else SEEDS


def questions(seed: int) -> Questions:
    """What a seed's models are asked."""
    return SEARCHED if seed == TUNING_SEED else COMPARED


def gains(job: Job, found: Mapping[str, Any], before: Mapping[str, Any]) -> np.ndarray:
    """Of each checkpoint and question the verdict minus that on the model before training, [checkpoints, questions]. Of
    a run that could not go on, all is lost: one row. found: the run's record. before: that of the model.
    """
    n = questions(job.seed).n
    own = unpack(before["exact"], n).astype(int)
    if "failed" in found:
        return -own[None]
    return np.array([unpack(epoch["exact"], n).astype(int) for epoch in found["epochs"]]) - own


def gain(job: Job, found: Mapping[str, Any], before: Mapping[str, Any]) -> float:
    """The primary outcome: points over the model before training, mean over checkpoints."""
    return 100 * float(gains(job, found, before).mean())


# --- rates ---------------------------------------------------------------------------------------------------------


def searched(loss: str, name: str, gained: Gained) -> dict[float, float]:
    """Gain in the search by rate."""
    jobs = (Job(called(name), loss, rate, TUNING_SEED) for rate in LADDER)
    return {job.lr: gained[job] for job in jobs if job in gained}


def means(loss: str, names: Sequence[str], gained: Gained) -> dict[float, float]:
    """Gain in the search by rate, mean over sets, of rates that all of them have."""
    found = [searched(loss, name, gained) for name in names]
    shared = set(found[0]).intersection(*found[1:])
    return {rate: fmean(by_rate[rate] for by_rate in found) for rate in sorted(shared)}


def missing_rates(loss: str, names: Sequence[str], gained: Gained) -> list[Job]:
    """Runs that a search still wants, until the best rate of each set, and that of all together, has two on either side
    (or the ladder's end).
    """
    found = {name: searched(loss, name, gained) for name in names}
    wanted = {name: set(SHARED_RATES) for name in names}
    for name, by_rate in found.items():
        if by_rate.keys() >= wanted[name]:
            wanted[name] |= set(around(best(by_rate), 2))
    if all(by_rate.keys() >= set(SHARED_RATES) for by_rate in found.values()):
        for rates in wanted.values():
            rates |= set(around(best(means(loss, names, gained)), 2))
    return [
        Job(called(name), loss, rate, TUNING_SEED)
        for name in names
        for rate in sorted(wanted[name] - found[name].keys())
    ]


def rates_of(loss: str, name: str, names: Sequence[str], gained: Gained) -> tuple[float, float]:
    """The rate chosen for an objective on all sets, and the one chosen on this set alone."""
    return best(means(loss, names, gained)), best(searched(loss, name, gained))


# --- what is wanted ------------------------------------------------------------------------------------------------


def wanted(gained: Gained) -> Iterator[Job]:
    """Runs that are not done and whose settings are known by now, each once, the first to be done first."""
    return missing((job for part in PARTS for job in part(gained)), gained)


def _table(gained: Gained) -> Iterator[Job]:
    """The searches, and the seeds of each that has ended, those of the core first."""
    for losses in (CORE, tuple(loss for loss in OBJECTIVES if loss not in CORE)):
        for loss in losses:
            yield from missing_rates(loss, TABLE, gained)
        for names in (ARMS, TABLE):
            for loss in losses:
                if not missing_rates(loss, TABLE, gained):
                    yield from _seeds(loss, names, TABLE, gained)


def _seeds(loss: str, names: Sequence[str], searched_on: Sequence[str], gained: Gained) -> Iterator[Job]:
    """Each set's own rate, a seed of all before the next, and then the rate that is chosen on all of `searched_on`."""
    for which in (1, 0):
        for seed in CORE_SEEDS:
            for name in (name for name in names if seed in seeds(loss, name)):
                yield Job(called(name), loss, rates_of(loss, name, searched_on, gained)[which], seed)


def _searched_and_compared(loss: str, names: Sequence[str], gained: Gained) -> Iterator[Job]:
    yield from missing_rates(loss, names, gained)
    if not missing_rates(loss, names, gained):
        yield from _seeds(loss, names, names, gained)


def points() -> list[str]:
    """The sets of the curve."""
    return [f"{line}-{share}" for line in LINES for share in POINTS] + [EARLIER_SET]


def _curve(gained: Gained) -> Iterator[Job]:
    for line in (*LINES, EARLIER_SET):  # one after the other
        names = [name for name in points() if name.startswith(line)]
        for name in names:
            for loss in CURVE_RATES:
                yield from (Job(name, loss, rate, TUNING_SEED) for rate in missing_curve_rates(loss, name, gained))
        for name in names:
            for loss in CURVE_RATES:
                if (rate := curve_rate(loss, name, gained)) is not None:
                    yield from (Job(name, loss, rate, seed) for seed in SEEDS)


def missing_curve_rates(loss: str, name: str, gained: Gained) -> list[float]:
    """Rates that a point's search still wants: three, and further ones until the best of all has one on either side."""
    found, asked = searched(loss, name, gained), set(CURVE_RATES[loss])
    if found.keys() >= asked:
        asked |= set(around(best(found), 1))
    return sorted(asked - found.keys())


def curve_rate(loss: str, name: str, gained: Gained) -> float | None:
    """An objective's rate at a point of the curve: the best that was tried; None as long as the search goes on."""
    return None if missing_curve_rates(loss, name, gained) else best(searched(loss, name, gained))


def _habit(gained: Gained) -> Iterator[Job]:
    """At the rate that is best on CLAIR: the best of a search on pairs that hurt is the one that changes nothing."""
    for loss in OF_HABIT:
        if (rate := habit_rate(loss, gained)) is not None:
            yield from (Job(HABIT, loss, rate, seed) for seed in SEEDS)


def habit_rate(loss: str, gained: Gained) -> float | None:
    """An objective's rate in the second world; None as long as that on CLAIR is searched for."""
    return None if missing_rates(loss, TABLE, gained) else rates_of(loss, "clair", TABLE, gained)[1]


def _revised(gained: Gained) -> Iterator[Job]:
    for loss in REVISED:
        yield from _searched_and_compared(loss, REVISED_SETS, gained)


def _strengths(gained: Gained) -> Iterator[Job]:
    for name in STRENGTHS:
        yield from _searched_and_compared("apo_zero", (name,), gained)


def _unpaired(gained: Gained) -> Iterator[Job]:
    for loss, like in UNPAIRED.items():
        if not missing_rates(like, TABLE, gained):
            rate, _ = rates_of(like, "clair", TABLE, gained)
            yield from (Job("clair", loss, rate, seed) for seed in SEEDS)


PARTS = (_table, _curve, _habit, _strengths, _revised, _unpaired)
