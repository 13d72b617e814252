"""One pass over the layers of both models: response log-probs under the policy and the frozen reference.

Block i of the policy, block i of the reference, block i + 1 ...: each block is a unit of its own, so that with
sharded weights one's all-gather hides behind the other's arithmetic, and the backward pass never gathers the
reference, but for its head where an objective takes a divergence from it. Where the reference is the policy's own base
(engine/model/adapters.py) its block comes first, and is gathered once for both. Both models see the same tokens through
the same kernels: where their weights agree, so do all bits. The reference may have other shapes and other positions
than the policy; what it has more of blocks comes last.
"""

# S sequences (responses), R predicting rows, T packed tokens, D hidden

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from itertools import zip_longest
from typing import NamedTuple

import torch
from torch import Tensor, nn

from data.forest import Forest
from engine.model import attention
from engine.model.distribution import DIVERGENCES, STATISTICS, OtherModel
from engine.model.transformer import Transformer, rotations


class ForwardResult(NamedTuple):
    """What a pass gives. All are float64: a few numbers, whose sums must not depend on how a batch was split."""

    logps: Tensor
    """[S] nats of each response under the policy, with gradient."""
    ref_logps: Tensor | None
    """The same under the reference, without gradient; None where it did not compute."""
    tokens: Mapping[str, Tensor]
    """[R] each, of the predictions in the forest's order: what was asked for of single tokens."""


class FusedForward(nn.Module):
    """The policy, and the reference while it is needed: their forward passes are fused block by block into one."""

    reference: Transformer | None

    def __init__(self, policy: Transformer, reference: Transformer | None = None) -> None:
        super().__init__()
        self.policy = policy
        if reference is None or not reference.shares_base:
            self.reference = reference
        else:  # no part of this module: its weights are the policy's
            object.__setattr__(self, "reference", reference)
        if reference is not None and not reference.shares_base:
            reference.requires_grad_(False)
        self.hold_block: Callable[[nn.Module | None], None] = _is_held
        """Gathers the block of the policy's that a block of the reference computes with, where it is sharded."""
        self.hold_head: Callable[[Transformer], AbstractContextManager[Tensor]] = _hold_head
        """Gives a model's head weight [V, D] for a while, gathered where it is sharded."""

    def forward(self, forest: Forest, *, with_reference: bool, token_values: tuple[str, ...] = ()) -> ForwardResult:
        """Log-probs of the forest's responses under both models.

        with_reference: whether the reference computes too. token_values: what is given of single tokens, by the names
        of losses.TokenResponses: "logps", "ref_logps", "ref_entropy", and STATISTICS of whole distributions. Those of
        the reference are given where it computes; a divergence takes both.
        """
        reference = self.reference if with_reference else None
        dtype = next(self.policy.parameters()).dtype
        ropes = dict.fromkeys(rope for model in (self.policy, reference) if model for rope in model.config.ropes)
        turned = rotations(ropes, forest.positions, forest.spans, dtype)  # what both models turn by is made once
        x = self.policy.embedded(forest.tokens)  # [T, D]
        attend = attention.for_forest(forest, x.dtype)
        with torch.no_grad():
            y = None if reference is None else reference.embedded(forest.tokens)
        lenders = (
            dict(zip(reference.blocks, self.policy.blocks, strict=True)) if reference and reference.shares_base else {}
        )
        for model, block in in_turn(self.policy, reference):
            if model is self.policy:
                x = block(x, turned, attend)
            else:
                self.hold_block(lenders.get(block))
                with torch.no_grad():
                    y = block(y, turned, attend)
        tokens: dict[str, Tensor] = {}
        ref_logps, other = None, None
        if reference is not None and y is not None:
            with torch.no_grad():  # the reference's logits are gone before the policy's, which are kept, are made
                normed = attention.gather(reference.norm(y), forest.rows)  # [R, D]
                asked = ("entropy",) if "ref_entropy" in token_values else ()
                found = _of_tokens(reference, normed, forest, asked)
                ref_logps = _sums(found["logps"], forest)
                tokens |= {f"ref_{name}": value for name, value in found.items()}
            if not set(DIVERGENCES).isdisjoint(token_values):
                other = OtherModel(normed, lambda: self.hold_head(reference), reference.head.squash)
        normed = attention.gather(self.policy.norm(x), forest.rows)
        tokens |= _of_tokens(self.policy, normed, forest, tuple(s for s in STATISTICS if s in token_values), other)
        given = {name: value for name, value in tokens.items() if name in token_values}
        return ForwardResult(_sums(tokens["logps"], forest), ref_logps, given)


def in_turn(policy: Transformer, reference: Transformer | None) -> Iterator[tuple[Transformer, nn.Module]]:
    """The blocks of both models in the order in which a pass computes them, each with its model.

    A reference that computes with the policy's weights does so while a block is gathered, before the policy gives it
    back.
    """
    if reference is not None and reference.shares_base:
        for ours, theirs in zip(policy.blocks, reference.blocks, strict=True):
            yield reference, theirs
            yield policy, ours
        return
    for ours, theirs in zip_longest(policy.blocks, () if reference is None else reference.blocks):
        if ours is not None:
            yield policy, ours
        if reference is not None and theirs is not None:
            yield reference, theirs


def _is_held(_: nn.Module | None) -> None:
    """Where nothing is sharded."""


def _hold_head(model: Transformer) -> AbstractContextManager[Tensor]:
    return nullcontext(model.head.matrix(model.tied))


def _of_tokens(
    model: Transformer, normed: Tensor, forest: Forest, statistics: tuple[str, ...], other: OtherModel | None = None
) -> dict[str, Tensor]:
    """Log-probs of the forest's targets, and the statistics that are asked for: [R] nats each, float64."""
    found = model.head(normed, forest.targets, model.tied, statistics=statistics, other=other).double()
    if not statistics:
        return {"logps": found}
    return {name: row.clone() for name, row in zip(("logps", *statistics), found, strict=True)}


def _sums(token_logps: Tensor, forest: Forest) -> Tensor:
    """[R] -> [S] nats."""
    sums = torch.zeros(forest.n_sequences + 1, dtype=torch.float64, device=token_logps.device)  # the last: of none
    return sums.index_add(0, forest.sequences, token_logps)[:-1].clone()  # FSDP hooks on no view
