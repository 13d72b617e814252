"""Intervals over seeds and questions that cross: known cases, coverage, and what a verdict is made of."""

import math

import numpy as np
import pytest

from examples import intervals
from examples.intervals import Estimate


def test_of_one_value_for_all_there_is_nothing_to_doubt():
    found = intervals.estimate(np.full((3, 50), 0.25))
    assert found.by_seed == pytest.approx((25, 25, 25))
    assert found[:4] == pytest.approx((25, 25, 25, 0))


def test_the_t_interval_is_students():
    found = intervals.estimate(np.array([[0.1], [0.2], [0.3]]) * np.ones((3, 40)))
    assert found.mean == pytest.approx(20) and found.t_half == pytest.approx(4.303 * 10 / math.sqrt(3), rel=1e-3)
    assert intervals.estimate(np.ones((1, 40))).t_half is None


def test_a_question_that_is_hard_for_all_seeds_is_in_the_interval_and_does_not_average_out():
    rng = np.random.default_rng(0)
    hard = rng.integers(0, 2, 100).astype(float)
    alike = intervals.estimate(np.tile(hard, (5, 1)))
    apart = intervals.estimate(np.stack([rng.permutation(hard) for _ in range(5)]))
    assert alike.high - alike.low == pytest.approx(2 * 1.96 * 100 * hard.std() / 10, rel=0.05)
    assert apart.high - apart.low < 0.75 * (alike.high - alike.low)


def test_seeds_that_differ_widen_it():
    same = np.tile(np.linspace(0, 1, 200), (3, 1))
    differ = same + np.array([[-0.2], [0.0], [0.2]])
    widths = [found.high - found.low for found in map(intervals.estimate, (same, differ))]
    assert widths[1] > 2 * widths[0]


@pytest.mark.parametrize(
    ("mean", "low", "high", "said"),
    [
        (8.0, 2.0, 14.0, "for"),
        (8.0, -1.0, 17.0, "undecided"),
        (4.0, 1.0, 7.0, "undecided"),  # above 0, and too small as an estimate, but 5 is not excluded
        (2.0, 1.0, 3.0, "against"),  # a difference that is there, and that is not of interest
        (-9.0, -12.0, -6.0, "against"),
    ],
)
def test_a_verdict_needs_the_interval_and_the_size(mean, low, high, said):
    assert intervals.verdict(Estimate(mean, low, high, None, ())) == said


@pytest.mark.parametrize(
    ("mean", "low", "high", "half", "said"),
    [
        (8.0, 2.0, 14.0, 5.0, "Both intervals are above 0, and the difference is of interest"),
        (8.0, 2.0, 14.0, 9.0, "Undecided: above 0 by the bootstrap"),
        (4.0, 1.0, 7.0, 2.0, "There is a difference, but the runs do not show whether it reaches 5 points"),
        (2.0, 1.0, 3.0, 1.0, "There is a difference, smaller than the 5 points"),
        (1.0, -2.0, 4.0, 2.0, "A difference of interest, 5 points or more, is excluded"),
        (2.7, 0.2, 4.9, 7.4, "Undecided: above 0 by the bootstrap"),
        (1.0, -2.0, 4.0, 7.0, "Undecided: the intervals exclude neither 0"),
        (-6.0, -11.0, -0.1, 9.0, "A difference of interest, 5 points or more, is excluded"),
        (3.0, -2.0, 8.0, 4.0, "Undecided: the intervals exclude neither 0"),
        (-2.0, -3.0, -1.0, 1.0, "The difference goes the other way"),
        (-9.0, -12.0, -6.0, 2.0, "The difference goes the other way, and is of interest"),
    ],
)
def test_words_say_what_the_intervals_exclude(mean, low, high, half, said):
    found = Estimate(mean, low, high, half, ())
    assert intervals.in_words(found).startswith(said)
    assert (intervals.verdict(found) == "for") == said.startswith("Both")


def noisy(means, spread=0.05, seed=0):
    rng = np.random.default_rng(seed)
    return [m + spread * rng.standard_normal((3, 200)) for m in means]


def test_a_curve_crosses_where_its_line_does():
    x = [0.1, 0.3, 0.5, 0.7, 0.9]
    found, missed = intervals.crossing(x, noisy([0.3, 0.2, 0.1, -0.1, -0.2]))
    assert found is not None and missed == 0
    assert found.at == pytest.approx(0.6, abs=0.02) and found.low < found.at < found.high


@pytest.mark.parametrize("means", [[0.3, 0.2, 0.1], [-0.3, -0.2, -0.1], [-0.1, 0.1, 0.2], [0.3, -0.3, 0.3]])
def test_a_curve_that_does_not_fall_through_0_has_no_crossing(means):
    found, missed = intervals.crossing([0.1, 0.5, 0.9], noisy(means))
    assert found is None and missed == 1.0


def test_a_crossing_that_a_twentieth_of_draws_miss_is_none():
    found, missed = intervals.crossing([0.1, 0.5], noisy([0.3, 0.0], spread=0.5))
    assert found is None and 0.05 < missed < 0.95


def test_clusters_are_resampled_within_their_kind():
    kinds = ("a",) * 6 + ("b",) * 3
    clusters = ("x", "x", "x", "y", "y", "z", "x", "y", "z")
    found = intervals.clustered(kinds, clusters, 2000)
    assert found.sum(1) == pytest.approx(np.ones(2000))
    assert found[:, :6].sum(1) == pytest.approx(np.full(2000, 6 / 9))  # a kind keeps its share
    assert (found[:, 0] == found[:, 1]).all() and (found[:, 3] == found[:, 4]).all()  # a cluster stays together
    assert found.mean(0) == pytest.approx(np.full(9, 1 / 9), rel=0.3)  # a ratio, of clusters that are far from equal
    assert len(np.unique(found[:, 0])) > 2 and not (found[:, 0] == found[:, 6]).all()  # each kind's topics apart


def test_answers_that_are_alike_within_a_cluster_widen_the_interval():
    rng = np.random.default_rng(0)
    by_cluster = np.repeat(rng.integers(0, 2, 40), 5).astype(float)[None]
    clusters = tuple(str(i // 5) for i in range(200))
    apart = intervals.estimate(by_cluster)
    together = intervals.estimate(by_cluster, intervals.clustered(("k",) * 200, clusters))
    assert together.high - together.low == pytest.approx(5**0.5 * (apart.high - apart.low), rel=0.15)
