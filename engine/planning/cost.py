"""What training costs, worked out before it starts: operations, time, what crosses between GPUs, and disk."""

# N parameters, T tokens of a forest, R rows that predict

import functools
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import torch

from data.forest import PackingOptions, n_tokens
from data.rows import Example, in_form
from engine.model import ModelConfig
from engine.planning.flops import Documents, capped_flops, counted_flops, matmul_peak, training_flops
from engine.planning.memory import MemoryInputs

DATASHEET = 989e12
"""bf16 operations per second of an H100 SXM or an H200, without sparsity."""
REACHED = 0.5
"""Share of a GPU's datasheet that a step is expected to reach (docs/performance.md: 54 %)."""
OF_A_PRODUCT = {"cuda": 0.63, "cpu": 0.6}
"""The same as a share of a plain product, timed on the device: an H200's reached 789e12 (docs/performance.md)."""
PAPERS_PAIRS = 29_000
IMBALANCE = 1.08
"""The slowest of several ranks against their mean: batches of 16 over 8."""
GPUS_PER_NODE = 8
IN_NODE, BETWEEN_NODES = 300e9, 200e9
"""Bytes per second and GPU of a collective (bus bandwidth): NVLink 4, and eight 400 Gb/s adapters a node. Assumed."""


@dataclass(frozen=True, kw_only=True)
class Speed:
    """What a device does in a second."""

    computing: float = REACHED * DATASHEET
    """Operations of a step. Assumed, where neither measured nor given: half of an H100's datasheet."""
    in_node: float = IN_NODE
    """Bytes of a collective inside a node, for each GPU."""


@functools.cache
def speed_here(device: str, dtype: torch.dtype) -> Speed:
    """Of this machine's GPU or CPU, from a plain product that is timed in some milliseconds."""
    peak = matmul_peak(dtype, torch.device(device), {"cuda": 4096, "cpu": 512}[device])
    return Speed(computing=OF_A_PRODUCT[device] * peak)


@dataclass(frozen=True, kw_only=True)
class TokenStatistics:
    """What rows ask for."""

    n: int
    """Examples of an epoch."""
    tokens: float
    """Mean T of an example."""
    rows: float
    """Mean R of an example."""
    documents: Documents
    """Whose keys are seen, of all examples."""
    most_scores: int
    """Queries times keys of the largest document to be expected."""
    longest: int
    """T of the longest example."""
    step: int
    """T of the largest step to be expected, of one rank."""
    is_mismatched: bool = False
    """Whether a step gives every prompt another one's response, too, which both models walk without gradient."""
    whole_step: bool = False
    """Whether a step of several passes takes each without gradient first."""
    n_distributions: int = 0
    """Models of whose whole next-token distributions something is computed: the policy, or both. With the reference's,
    no table will do: it computes in every epoch.
    """

    @property
    def seen(self) -> float:
        """Mean number of keys seen, over all queries of an example, where there is no window."""
        return self.documents.seen(None)

    @property
    def is_reference_kept(self) -> bool:
        """Whether what the reference gives of the rows in one epoch serves the others."""
        return self.n_distributions < 2

    @staticmethod
    def of(
        examples: Sequence[Example],
        packing: PackingOptions,
        batch_size: int,
        n_ranks: int = 1,
        *,
        is_mismatched: bool = False,
        whole_step: bool = False,
        n_distributions: int = 0,
    ) -> "TokenStatistics":
        """Of rows. The largest of many random steps is nearer to the mean than to the worst that could be drawn: a
        quarter of the way.
        """
        sizes = np.sort([n_tokens(e, packing) for e in examples])[::-1]
        n = min(batch_size, len(sizes))
        mean, worst = n * float(sizes.mean()), float(sizes[:n].sum())
        documents = _documents(examples, packing)
        return TokenStatistics(
            n=len(examples),
            tokens=float(sizes.mean()),
            rows=float(np.mean([sum(e.lengths) for e in examples])),
            documents=documents,
            most_scores=documents.most_scores,
            longest=int(sizes[0]),
            step=int((mean + (worst - mean) / 4) / n_ranks),
            is_mismatched=is_mismatched,
            whole_step=whole_step,
            n_distributions=n_distributions,
        )

    @staticmethod
    def of_lengths(
        lengths: tuple[int, int, int],
        packing: PackingOptions,
        batch_size: int,
        n_ranks: int = 1,
        *,
        form: str = "pairs",
        side: Literal["chosen", "rejected"] = "chosen",
    ) -> "TokenStatistics":
        """29,000 pairs whose prompts, winners and losers all have so many tokens. form, side: as in of_the_paper."""
        prompt, chosen, rejected = (np.zeros(k, dtype=np.int32) for k in lengths)
        rows = in_form([Example("--lengths", prompt, (chosen, rejected))] * batch_size, form, side=side)
        found = TokenStatistics.of(rows, packing, batch_size, n_ranks)
        return replace(found, n=PAPERS_PAIRS * len(rows) // batch_size)

    @staticmethod
    def of_the_paper(
        batch_size: int, n_ranks: int = 1, *, form: str = "pairs", side: Literal["chosen", "rejected"] = "chosen"
    ) -> "TokenStatistics":
        """29,000 pairs of UltraFeedback's lengths, cut at 512 tokens: a prompt of 162, responses of 348 and 349.

        form, side: as an objective takes them (`in_form`): each pair as two labelled examples, or one side of it.
        """
        prompt, chosen, rejected = (np.zeros(k, dtype=np.int32) for k in (162, 348, 349))
        rows = in_form([Example("the paper's rows", prompt, (chosen, rejected))], form, side=side)
        mean = TokenStatistics.of(rows, PackingOptions(), batch_size)
        step = int(1.2 * batch_size * mean.tokens / n_ranks)
        longest = 1023 if len(rows[0].responses) == 1 else 1534
        return TokenStatistics(
            n=PAPERS_PAIRS * len(rows), tokens=mean.tokens, rows=mean.rows,
            documents=mean.documents, most_scores=1023**2, longest=longest, step=step,
        )  # fmt: skip


def _documents(examples: Sequence[Example], packing: PackingOptions) -> Documents:
    """The trunk with its first branch is one, every other branch another, whose queries see the trunk's keys too; where
    a prompt is not shared, each response with a prompt of its own.
    """
    sizes = []
    for example in examples:
        prompt, shares = len(example.prompt), packing.shares(example)
        for i, response in enumerate(example.responses):
            whole = prompt + len(response) - 1
            sizes.append((whole - prompt if shares and i else whole, whole))
    queries, keys = np.array(sizes, dtype=np.int64).reshape(-1, 2).T
    return Documents(queries=queries, keys=keys, n_examples=len(examples))


def forward_of_example(shape: ModelConfig, statistics: TokenStatistics) -> float:
    """Operations of one forward pass over a mean example."""
    return sum(counted_flops(shape, statistics.tokens, statistics.documents, statistics.rows))


def training_of_example(s: MemoryInputs, statistics: TokenStatistics) -> tuple[float, float]:
    """Operations of a mean example: (of a forward pass, of a forward and a backward pass) of what trains."""
    return training_flops(s.shape, s.adapted, statistics.tokens, statistics.documents, statistics.rows)


def reference_of_example(s: MemoryInputs, statistics: TokenStatistics) -> float:
    """Operations of the reference's forward pass over a mean example."""
    on_base = 0 if s.adapted is None or not s.adapted.shares_base else s.adapted.n_of_reference
    return forward_of_example(s.reference_shape, statistics) + 2 * statistics.tokens * on_base


def run_flops(s: MemoryInputs, statistics: TokenStatistics, epochs: float, *, has_reference: bool) -> float:
    """Of a whole run: a forward and a backward pass for each example and epoch, one for the reference, in every epoch
    where it is not kept, one for each model's mismatched sequence, and what is done again.
    """
    of_reference = min(1, epochs) if statistics.is_reference_kept and not s.moves_reference else epochs
    once, both = training_of_example(s, statistics)
    theirs = reference_of_example(s, statistics)
    flops = epochs * both + has_reference * of_reference * theirs
    flops += epochs * statistics.is_mismatched * (once + theirs)
    flops += epochs * (s.n_recomputed / s.shape.n_layers + (statistics.whole_step and s.has_several_passes)) * once
    flops += epochs * _more_heads(s, statistics) * _head_of_example(s.shape, statistics)
    return statistics.n * (flops + epochs * capped_flops(s.shape, statistics.documents))


def _head_of_example(shape: ModelConfig, statistics: TokenStatistics) -> float:
    return counted_flops(shape, statistics.tokens, statistics.documents, statistics.rows)[1]


def _more_heads(s: MemoryInputs, statistics: TokenStatistics) -> float:
    """Products with a head's weight beside those of plain log-probs: logits of whole distributions, or with a cap, are
    made again in the backward pass, and the reference's beside the policy's in both.
    """
    theirs = s.reference_shape.hidden_size / s.shape.hidden_size
    is_capped = s.shape.logit_cap is not None
    return {0: int(is_capped), 1: 1, 2: 1 + 2 * theirs}[statistics.n_distributions]


def step_bytes(s: MemoryInputs, n_passes: int, n_gpus: int) -> tuple[float, float]:
    """Bytes that a GPU's collectives move in a step: (in the node, between nodes).

    Every pass gathers bf16 weights, twice where they are given back in between, and sums gradients in float32. Of an
    adapter's run these are few, and codes of a quantised base lie on every rank.
    """
    if n_gpus == 1:
        return 0.0, 0.0
    n, gathered = s.n_trained, 2 * s.shape.n_parameters
    if s.adapted is not None:
        gathered = (s.adapted.frozen_bytes + 4 * n) if s.n_shards > 1 else 0
    moved = n_passes * (gathered * (2 if s.reshards else 1) + 4.0 * n)
    inside, between = (moved, 0.0) if s.n_shards <= GPUS_PER_NODE else (0.0, moved)
    copies = n_passes * 2 * 4.0 * n / s.n_shards if s.n_shards < n_gpus else 0.0  # they add their gradients up
    return inside, between + copies


def step_seconds(
    s: MemoryInputs, statistics: TokenStatistics, batch_size: int, n_gpus: int, speed: Speed
) -> tuple[float, float]:
    """(computing, communicating) seconds of a step with the reference cached, if it can be; they overlap at best."""
    once, both = training_of_example(s, statistics)
    flops = both + once * (s.n_recomputed / s.shape.n_layers + statistics.is_mismatched)
    flops += ((statistics.n_distributions == 2) + statistics.is_mismatched) * reference_of_example(s, statistics)
    flops += _more_heads(s, statistics) * _head_of_example(s.shape, statistics)
    flops += capped_flops(s.shape, statistics.documents)
    computing = batch_size * flops / (n_gpus * speed.computing) * (IMBALANCE if n_gpus > 1 else 1.0)
    n_passes = max(1, -(-int(batch_size * statistics.tokens / n_gpus) // s.micro_tokens))
    inside, between = step_bytes(s, n_passes, n_gpus)
    return computing, inside / speed.in_node + between / BETWEEN_NODES


def checkpoint_bytes(shape: ModelConfig, dtype: torch.dtype) -> int:
    """A checkpoint folder whose weights are stored in that dtype."""
    return dtype.itemsize * shape.n_parameters


def adapter_bytes(s: MemoryInputs) -> int:
    """An adapter's folder: float32, whatever computes."""
    return 4 * s.n_trained


def state_bytes(s: MemoryInputs) -> int:
    """What --resume needs, at one time: masters and the optimizer's numbers, and a reference that moves."""
    moved = replace(s, n_shards=1).reference_bytes if s.moves_reference else 0
    return int(s.n_trained * (4 + s.square_avg_bytes * s.n_moments)) + moved
