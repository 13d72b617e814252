"""Which runs the real model's study still wants, and what the primary outcome of one is: pure functions of records.

docs/design.md says what is asked. APO-zero on CLAIR and its control comes first, then SFT on both, then DPO.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from examples.miniature.study_run import unpack
from examples.real.study_run import GROUPS
from examples.real.study_sets import ARMS, OF_JUDGE
from examples.studies import LADDER, Gained, Job, around, best, missing

SEARCH_SEED, SEEDS = 0, (1, 2, 3)
START = (3e-6, 1e-5, 3e-5)
FEWEST = 4
"""Rates of a search at least."""
CORE = ("apo_zero", "dpo")
ONE_SEED = ("kto_pair", "apo_down")
"""On CLAIR alone, with one seed."""


def group(seed: int) -> str:
    """Whose topics a seed's models answer."""
    return "development" if seed == SEARCH_SEED else "test"


def verdicts(found: Mapping[str, Any], seed: int, how: str = "sampled") -> dict[str, np.ndarray]:
    """ "kept", "broken" and "sound" (kept and not broken) of a record's answers, bool [tasks]."""
    n = GROUPS[group(seed)].n[how]
    made = {what: unpack(found["answers"][how][what], n) for what in ("kept", "broken")}
    return {**made, "sound": made["kept"] & ~made["broken"]}


def gain(job: Job, found: Mapping[str, Any], before: Mapping[str, Any]) -> float:
    """The primary outcome over the model before training, in points. Of a run that could not go on, all is lost."""
    own = verdicts(before, job.seed)["sound"].mean()
    after = 0.0 if "failed" in found else verdicts(found, job.seed)["sound"].mean()
    return 100 * float(after - own)


def searched(loss: str, name: str, gained: Gained) -> dict[float, float]:
    """Gain on development topics by rate."""
    jobs = (Job(name, loss, rate, SEARCH_SEED) for rate in LADDER)
    return {job.lr: gained[job] for job in jobs if job in gained}


def missing_rates(loss: str, name: str, gained: Gained) -> list[Job]:
    """Runs that a search still wants: until the best rate has one on either side, and there are four."""
    found, asked = searched(loss, name, gained), set(START)
    if found.keys() >= asked:
        asked |= set(around(best(found), 1))
        if asked <= found.keys() and len(found) < FEWEST:
            at = LADDER.index(best(found))
            low, high = (LADDER.index(rate) for rate in (min(found), max(found)))
            asked.add(LADDER[high + 1] if at - low >= high - at else LADDER[low - 1])
    return [Job(name, loss, rate, SEARCH_SEED) for rate in sorted(asked - found.keys())]


def rate(loss: str, name: str, gained: Gained) -> float | None:
    """The rate chosen for a set; None as long as the search goes on."""
    return None if missing_rates(loss, name, gained) else best(searched(loss, name, gained))


def wanted(gained: Gained) -> Iterator[Job]:
    """Runs that are not done and whose settings are known by now, each once, the first to be done first."""
    return missing(_all(gained), gained)


def _all(gained: Gained) -> Iterator[Job]:
    first, *others = CORE
    yield from _compared((first,), ARMS, SEEDS, gained)
    yield from _quality(gained)
    yield from _compared(others, ARMS, SEEDS, gained)
    yield from _compared(CORE, ("stronger",), SEEDS, gained)
    yield from _compared(ONE_SEED, ARMS[:1], SEEDS[:1], gained)
    yield from _compared(CORE, OF_JUDGE, SEEDS, gained)


def _compared(objectives: Sequence[str], names: Sequence[str], seeds: Sequence[int], gained: Gained) -> Iterator[Job]:
    """The searches, and then the seeds of each that has ended, a seed of all before the next."""
    for loss in objectives:
        for name in names:
            yield from missing_rates(loss, name, gained)
    chosen = {(loss, name): rate(loss, name, gained) for loss in objectives for name in names}
    for seed in seeds:
        yield from (Job(name, loss, lr, seed) for (loss, name), lr in chosen.items() if lr is not None)


def _quality(gained: Gained) -> Iterator[Job]:
    """SFT on the winners of both arms, at the rate that is best on CLAIR's: are they equally good to imitate?"""
    yield from missing_rates("sft", ARMS[0], gained)
    if (lr := rate("sft", ARMS[0], gained)) is not None:
        yield from (Job(name, "sft", lr, seed) for seed in SEEDS for name in ARMS)
