"""Log-probs of given tokens, without ever holding [rows, vocabulary] for more than a chunk of rows.

The head returns log-probs, not logits: float32 logits of one chunk are made, used and dropped. Where all rows fit
into one chunk, the logits are turned in place into what the backward pass multiplies with (3 products with the
weight); otherwise they are made again in the backward pass (4 products).
"""

# R rows, C rows of a chunk, D hidden, V vocabulary

from typing import Any

import torch
from torch import Tensor, nn

from engine.model.distribution import OtherModel, measure
from engine.model.logits import (
    AS_THEY_ARE,
    CACHE_BYTES,
    CHUNK_BYTES,
    PIECE_BYTES,
    Squash,
    add_product,
    rows_of,
    slices,
    wide,
    wide_logits,
)


class Head(nn.Module):
    """The last linear layer and the log-softmax at given targets. Without a weight of its own where it is tied."""

    def __init__(self, vocab_size: int | None, hidden_size: int, squash: Squash = AS_THEY_ARE) -> None:
        super().__init__()
        self.squash = squash
        self.weight = None if vocab_size is None else nn.Parameter(torch.empty(vocab_size, hidden_size))
        self.chunk_bytes: int | None = None
        """Most bytes of logits that are held at once; None: what suits the device."""
        self.keeps_logits = True
        """Whether logits that fit into a chunk are kept for the backward pass; not doing so is for measuring."""

    def matrix(self, tied: Tensor | None) -> Tensor:
        """The weight [V, D]: its own, or the embedding that is handed in."""
        weight = self.weight if tied is None else tied
        assert weight is not None  # one of the two is there by construction
        return weight

    def chunk_rows(self, vocab_size: int, device: torch.device) -> int:
        """Rows whose logits are held at once."""
        return max(1, (self.chunk_bytes or CHUNK_BYTES[device.type]) // (vocab_size * 4))

    def forward(
        self,
        hidden: Tensor,
        targets: Tensor,
        tied: Tensor | None = None,
        *,
        statistics: tuple[str, ...] = (),
        other: OtherModel | None = None,
    ) -> Tensor:
        """Log-prob of targets [R] at hidden [R, D]: [R] nats, float32 (float64 for a float64 model).

        statistics: of the whole distributions (engine/model/distribution.py); then [1 + len(statistics), R], log-probs
        first. other: the reference's side of a divergence.
        """
        weight = self.matrix(tied).to(hidden.dtype)  # of one that trains beside a frozen base, in float32
        chunk_rows = self.chunk_rows(weight.shape[0], hidden.device)
        if statistics:
            return measure(hidden, weight, targets, statistics, chunk_rows, other, self.squash)
        keeps = self.keeps_logits and self.squash.cap is None  # a cap's slope is made of what exp() writes over
        return TargetLogps.apply(hidden, weight, targets, chunk_rows, keeps, self.squash)  # pyright: ignore[reportReturnType]


class TargetLogps(torch.autograd.Function):
    """logits = squash(hidden @ weight.T); logps = logits[target] - logsumexp(logits).

    d logp / d logits = onehot(target) - exp(logits) / sum(exp(logits)): a product of one number per row, which can
    multiply the narrow side of the products that follow, and `spread` = exp(logits) - onehot * sum(exp(logits)),
    which the forward pass leaves in the place of the logits. No pass over [C, V] is left for the backward.
    """

    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, targets: Tensor, chunk_rows: int, keeps: bool, squash: Squash
    ) -> Tensor:
        """Log-probs [R], nats, float32 or better."""
        ctx.squash = squash
        ctx.keeps = keeps and len(hidden) <= chunk_rows and any(ctx.needs_input_grad)
        ctx.piece_rows = chunk_rows if hidden.is_cuda else min(chunk_rows, rows_of(PIECE_BYTES, weight))
        logps, totals = (hidden.new_empty(len(hidden), dtype=wide(hidden.dtype)) for _ in range(2))
        kept = []
        for rows in slices(len(hidden), ctx.piece_rows):
            logits = squash(wide_logits(hidden[rows], weight))  # [C, V]
            logps[rows], totals[rows] = _spread(logits, targets[rows])
            kept += [logits] if ctx.keeps else []
            del logits  # before the next ones are made
        ctx.save_for_backward(hidden, weight, targets, totals, *kept)
        return logps

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor | None, None, None, None, None]:
        """Gradients of hidden [R, D] and weight [V, D], the latter where it trains."""
        (gradient,) = gradients
        hidden, weight, targets, totals, *kept = ctx.saved_tensors
        d_hidden = torch.empty_like(hidden)
        d_weight = None
        pieces = list(slices(len(hidden), ctx.piece_rows))
        for i, rows in enumerate(pieces):
            slope: Tensor | float = 1 / ctx.squash.divisor
            spread = kept[i] if ctx.keeps else ctx.squash(wide_logits(hidden[rows], weight))
            if not ctx.keeps:
                slope = ctx.squash.slope(spread)
                _, totals[rows] = _spread(spread, targets[rows])  # as they were
            if isinstance(slope, Tensor):  # of a cap: nothing is kept of it
                spread, slope = spread.mul_(slope), 1.0
            spread = spread.to(hidden.dtype)  # [C, V]
            scale = (-gradient[rows] / totals[rows] * slope)[:, None]
            d_hidden[rows] = (spread @ weight) * scale
            if not ctx.needs_input_grad[1]:
                continue
            right = (hidden[rows] * scale).to(hidden.dtype)
            is_whole = len(pieces) == 1 and hidden.is_cuda  # nothing to add up: rounded once, by the product itself
            d_weight = spread.T @ right if is_whole else add_product(d_weight, spread, right)
            del spread
        if ctx.needs_input_grad[1]:
            d_weight = torch.zeros_like(weight) if d_weight is None else d_weight.to(weight.dtype)
        return d_hidden, d_weight, None, None, None, None


def _spread(logits: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Log-probs of targets [C] and the rows' sums of exp(logits - their largest) [C]; logits [C, V] become
    exp(logits - their largest) - onehot(target) * sum.
    """
    logps, totals = (logits.new_empty(len(logits)) for _ in range(2))
    for rows in slices(len(logits), len(logits) if logits.is_cuda else rows_of(CACHE_BYTES, logits.T)):
        part, target = logits[rows], targets[rows, None]
        part -= part.amax(dim=1, keepdim=True)
        found = part.gather(1, target)
        total = part.exp_().sum(dim=1, keepdim=True)
        part.scatter_add_(1, target, -total)
        logps[rows], totals[rows] = (found - total.log()).squeeze(1), total.squeeze(1)
    return logps, totals
