"""Intervals of means over seeds and questions that cross: every seed's model answers the same questions.

Questions are resampled once for all seeds and seeds beside them (a bootstrap of both, so that what a hard question or a
lucky seed does to all of a mean is in the interval); beside it stands a t interval over the seeds' means.
"""

from collections.abc import Sequence
from functools import cache
from typing import NamedTuple

import numpy as np

OF_INTEREST = 5.0
"""Points: the smallest difference that a study looks for (docs/design.md)."""
N_DRAWS = 10_000
DIGITS = 6
"""Of what is given: another machine adds in another order, and a page is the same on both."""
T_95 = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262)
"""Quantiles 0.975 of Student's t with 1, 2 ... degrees of freedom."""


class Estimate(NamedTuple):
    """A mean in points, and its 95 % intervals."""

    mean: float
    low: float
    high: float
    """Of the bootstrap over seeds and questions."""
    t_half: float | None
    """Half the width of the t interval over seeds' means; None of one seed."""
    by_seed: tuple[float, ...]
    """Each seed's mean."""

    def __str__(self) -> str:
        half = "" if self.t_half is None else f"; t ± {self.t_half:.1f}"
        return f"{self.mean:+.1f} ({self.low:+.1f} to {self.high:+.1f}{half})"


@cache
def weights(n_seeds: int, n_questions: int, n_draws: int = N_DRAWS, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """How often each draw takes a seed, [n_draws, n_seeds], and a question, [n_draws, n_questions]; rows sum to 1."""
    rng = np.random.default_rng(seed)
    seeds = rng.multinomial(n_seeds, np.full(n_seeds, 1 / n_seeds), n_draws) / n_seeds
    questions = rng.multinomial(n_questions, np.full(n_questions, 1 / n_questions), n_draws) / n_questions
    return seeds, questions


@cache
def clustered(kinds: tuple[str, ...], clusters: tuple[str, ...], n_draws: int = N_DRAWS, seed: int = 0) -> np.ndarray:
    """How often each draw takes a question, [n_draws, n_questions], where clusters of questions are resampled within
    their kind, which keeps its share of all; rows sum to 1.
    """
    rng = np.random.default_rng(seed)
    made = np.zeros((n_draws, len(kinds)))
    for kind in dict.fromkeys(kinds):
        of_kind = [i for i, k in enumerate(kinds) if k == kind]
        names = list(dict.fromkeys(clusters[i] for i in of_kind))
        taken = rng.multinomial(len(names), np.full(len(names), 1 / len(names)), n_draws)
        counts = taken[:, [names.index(clusters[i]) for i in of_kind]].astype(float)
        made[:, of_kind] = counts / counts.sum(1, keepdims=True) * len(of_kind) / len(kinds)
    return made


def draws(values: np.ndarray, questions: np.ndarray | None = None) -> np.ndarray:
    """Means of bootstrap draws, [N_DRAWS], of values [seeds, questions]. questions: weights of these, as `clustered`
    has them; None for questions that are resampled one by one.
    """
    seeds, alone = weights(*values.shape)
    return ((seeds @ values) * (alone if questions is None else questions)).sum(1)


def estimate(values: np.ndarray, questions: np.ndarray | None = None) -> Estimate:
    """Of values [seeds, questions], fractions; in points. questions: as in `draws`."""
    values = 100 * np.asarray(values, float)
    low, high = np.quantile(draws(values, questions), (0.025, 0.975))
    means, n = values.mean(1), len(values)
    half = None if n == 1 else round(T_95[n - 2] * float(means.std(ddof=1)) / n**0.5, DIGITS)
    mean, low, high, *by_seed = (round(float(x), DIGITS) for x in (means.mean(), low, high, *means))
    return Estimate(mean, low, high, half, tuple(by_seed))


def verdict(found: Estimate, of_interest: float = OF_INTEREST) -> str:
    """What a difference says of a claim that it is positive: "for", where both intervals are above 0 and it is of
    interest; "against", where both end below what is of interest; or "undecided".
    """
    if is_above(found) and found.mean >= of_interest:
        return "for"
    return "against" if ends(found)[1] < of_interest else "undecided"


def ends(found: Estimate) -> tuple[float, float]:
    """From the lower end of both intervals to the higher."""
    half = found.t_half or 0.0
    return min(found.low, found.mean - half), max(found.high, found.mean + half)


def is_above(found: Estimate) -> bool:
    """Whether a difference is above 0 by both intervals."""
    return ends(found)[0] > 0


def is_below(found: Estimate) -> bool:
    """Whether a difference is below 0 by both intervals."""
    return ends(found)[1] < 0


def in_words(found: Estimate, of_interest: float = OF_INTEREST) -> str:
    """The same in a sentence without its numbers: what the intervals exclude, and what they do not."""
    if is_below(found):
        if found.mean <= -of_interest:
            return "The difference goes the other way, and is of interest"
        return "The difference goes the other way"
    if ends(found)[1] < of_interest and not is_above(found):
        return f"A difference of interest, {of_interest:g} points or more, is excluded"
    if found.low <= 0:
        return "Undecided: the intervals exclude neither 0 nor a difference of interest"
    if not is_above(found):
        return "Undecided: above 0 by the bootstrap over seeds and questions, but not by the t interval over seeds"
    if found.mean >= of_interest:
        return "Both intervals are above 0, and the difference is of interest"
    if ends(found)[1] < of_interest:
        return f"There is a difference, smaller than the {of_interest:g} points that are of interest"
    return f"There is a difference, but the runs do not show whether it reaches {of_interest:g} points"


class Crossing(NamedTuple):
    """Where a curve goes from above 0 to below."""

    at: float
    low: float
    high: float


def crossing(x: Sequence[float], values: Sequence[np.ndarray]) -> tuple[Crossing | None, float]:
    """(where differences change from positive to negative, and stay so, with its 95 % interval; the share of draws in
    which they do not). None where the means do not, or in more than 5 % of draws.

    x: ascending. values: of each point [seeds, questions], the same seeds and questions at all of them.
    """
    seeds, questions = weights(*values[0].shape)
    curves = np.stack([((seeds @ v) * questions).sum(1) for v in values], 1)  # [N_DRAWS, points]
    found = np.array([_only_crossing(x, curve) for curve in curves])
    at = _only_crossing(x, np.array([v.mean() for v in values]))
    missed = float(np.isnan(found).mean())
    if np.isnan(at) or missed > 0.05:
        return None, missed
    low, high = np.nanquantile(found, (0.025, 0.975))
    return Crossing(float(at), float(low), float(high)), missed


def _only_crossing(x: Sequence[float], y: np.ndarray) -> float:
    """Where y goes below 0, if it is above before and not after; else no number."""
    n = int((y > 0).sum())
    if not 0 < n < len(y) or not (y[:n] > 0).all():
        return float("nan")
    return x[n - 1] + (x[n] - x[n - 1]) * y[n - 1] / (y[n - 1] - y[n])
