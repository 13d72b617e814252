"""Passes over the layers: the log-probs of a step's examples, of any examples, and of a batch with its gradient."""

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

from data.rows import Example
from engine.distributed import Ranks
from engine.model import FusedForward
from engine.step.steps import MicroBatching, Step


def score_step(
    walk: FusedForward, step: Step, ranks: Ranks, split: MicroBatching, *, of_reference: bool = False
) -> Tensor:
    """The policy's (or the reference's) log-probs of a step's responses, [n, K] nats, float64, the same on every rank.

    Collective.
    """
    with torch.no_grad():
        for batch in step.pack(ranks, split):
            logps, ref_logps = walk(batch.forest.to(ranks.device), with_reference=of_reference)
            step.add(batch, step.columns(batch, logps if ref_logps is None else ref_logps, None))
    ranks.reshard(walk)
    return step.gather(ranks, with_reference=False).logps


def score_examples(
    walk: FusedForward, examples: Sequence[Example], ranks: Ranks, split: MicroBatching, *, of_reference: bool = False
) -> Iterator[Tensor]:
    """The same for any number of examples with equally many responses: [K] each, in order. Collective."""
    for start in range(0, len(examples), 64):
        chunk = list(examples[start : start + 64])
        step = Step(0, 0, False, np.arange(len(chunk)), chunk)
        yield from score_step(walk, step, ranks, split, of_reference=of_reference)
