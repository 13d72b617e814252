"""Splitting steps over ranks and micro-batches, the order of an epoch, and KTO's mismatched partners."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from data import batching as plan

sizes_of_steps = st.lists(st.integers(1, 2000), min_size=0, max_size=40)


def ultrafeedback_sizes(n, rng):
    """Tokens of pairs: skewed lengths of a prompt and two responses, each cut at 512."""
    prompt = np.minimum(rng.lognormal(4.6, 0.9, n), 512)
    responses = np.minimum(rng.lognormal(5.4, 0.7, (2, n)), 512).sum(axis=0)
    return (prompt + responses).astype(int).tolist()


@given(sizes_of_steps, st.integers(1, 10))
def test_the_ranks_hold_every_example_exactly_once_in_the_steps_order(sizes, n_ranks):
    ranks = plan.split_ranks(sizes, n_ranks)
    assert len(ranks) == n_ranks
    assert sorted(i for indices in ranks for i in indices) == list(range(len(sizes)))
    assert all(indices == sorted(indices) for indices in ranks)


@given(sizes_of_steps.filter(len), st.integers(1, 10))
def test_no_rank_is_further_above_the_mean_than_one_example_explains(sizes, n_ranks):
    loads = [sum(sizes[i] for i in indices) for indices in plan.split_ranks(sizes, n_ranks)]
    # whoever got the last example had least before it: Graham's bound
    assert max(loads) <= sum(sizes) / n_ranks + (1 - 1 / n_ranks) * max(sizes) + 1e-9


@given(st.integers(1, 10), st.integers(1, 10), st.integers(1, 500))
def test_equal_examples_are_spread_evenly(per_rank, n_ranks, size):
    assert {len(indices) for indices in plan.split_ranks([size] * per_rank * n_ranks, n_ranks)} == {per_rank}


def test_the_slowest_of_eight_ranks_is_near_the_mean_on_real_lengths():
    rng = np.random.default_rng(0)
    split, in_order = [], []
    for _ in range(200):
        sizes = ultrafeedback_sizes(16, rng)
        loads = [sum(sizes[i] for i in indices) for indices in plan.split_ranks(sizes, 8)]
        split.append(max(loads) / (sum(sizes) / 8))
        in_order.append(max(a + b for a, b in zip(sizes[::2], sizes[1::2], strict=True)) / (sum(sizes) / 8))
    assert np.mean(split) < 1.2
    assert np.mean(in_order) > 1.25  # what the order of the file would give: the lengths are uneven enough to tell


def test_fewer_examples_than_ranks_leave_ranks_without_any():
    assert sorted(map(len, plan.split_ranks([5, 7], 4))) == [0, 0, 1, 1]


@given(sizes_of_steps, st.integers(1, 3000))
def test_micro_batches_keep_the_order_and_the_budget(sizes, budget):
    indices = list(range(len(sizes)))[::-1]
    batches = plan.split_micro(indices, sizes, budget)
    assert [i for batch in batches for i in batch] == indices
    for batch in batches:
        assert batch and (len(batch) == 1 or sum(sizes[i] for i in batch) <= budget)


@given(st.lists(st.integers(1, 2000), min_size=1, max_size=12), st.integers(1, 3000))
def test_there_are_no_more_micro_batches_than_it_takes_and_the_largest_is_as_small_as_that_allows(sizes, budget):
    n = len(sizes)
    largest = {}  # with k batches over the first i examples: the least size of the largest one; cuts tried one by one
    for i in range(1, n + 1):
        largest[i, 1] = sum(sizes[:i])
        for k in range(2, i + 1):
            largest[i, k] = min(max(largest[j, k - 1], sum(sizes[j:i])) for j in range(k - 1, i))
    allowed = max(budget, *sizes)
    fewest = next(k for k in range(1, n + 1) if largest[n, k] <= allowed)
    batches = plan.split_micro(range(n), sizes, budget)
    if max(sizes) <= budget:
        assert len(batches) == fewest
        assert max(sum(sizes[i] for i in batch) for batch in batches) == largest[n, fewest]


def test_a_budget_is_used_to_its_last_token():
    assert plan.split_micro([0, 1, 2, 3], [4, 6, 11, 1], 10) == [[0, 1], [2], [3]]


def test_none_is_left_over_small():
    assert plan.split_micro(range(10), [1] * 10, 9) == [[0, 1, 2, 3, 4], [5, 6, 7, 8, 9]]


def test_no_places_make_no_micro_batch():
    assert plan.split_micro([], [1, 2], 10) == []


@given(st.integers(0, 200), st.integers(0, 2**32), st.integers(1, 20))
def test_the_order_of_an_epoch_is_a_permutation_made_by_its_seed(n, seed, epoch):
    order = plan.epoch_order(n, seed=seed, epoch=epoch, shuffle=True)
    assert sorted(order.tolist()) == list(range(n))
    assert np.array_equal(order, plan.epoch_order(n, seed=seed, epoch=epoch, shuffle=True))


def test_the_order_differs_by_epoch_and_by_seed():
    orders = {
        tuple(plan.epoch_order(100, seed=seed, epoch=epoch, shuffle=True).tolist())
        for seed in range(4)
        for epoch in range(1, 5)
    }
    assert len(orders) == 16 and tuple(range(100)) not in orders


def test_the_order_does_not_touch_the_global_generator():
    np.random.seed(0)
    before = np.random.get_state()[1].copy()
    plan.epoch_order(10, seed=0, epoch=1, shuffle=True)
    assert np.array_equal(before, np.random.get_state()[1])


@pytest.mark.parametrize("epoch", [1, 2])
def test_without_shuffling_every_epoch_has_the_files_order(epoch):
    assert plan.epoch_order(5, seed=3, epoch=epoch, shuffle=False).tolist() == [0, 1, 2, 3, 4]


@given(st.lists(st.sampled_from([b"a", b"b", b"c"]), max_size=12))
def test_the_mismatched_partner_is_the_next_one_around_with_another_prompt(prompts):
    n = len(prompts)
    for i, partner in enumerate(plan.mismatched(prompts)):
        if partner is None:
            assert len(set(prompts)) == 1
            continue
        assert prompts[partner] != prompts[i]
        skipped = range(i + 1, partner if partner > i else partner + n)
        assert all(prompts[j % n] == prompts[i] for j in skipped)


def test_partners_skip_the_other_half_of_an_unpaired_pair_and_go_around():
    assert plan.mismatched([b"a", b"a", b"b", b"b", b"a"]) == [2, 2, 4, 4, 2]


@pytest.mark.parametrize("prompts", [[], [b"a"], [b"a"] * 3])
def test_a_step_of_one_prompt_has_nothing_to_mismatch(prompts):
    assert plan.mismatched(prompts) == [None] * len(prompts)
