"""Log-probs of given tokens, without ever holding [rows, vocabulary] for more than a chunk of rows.

The head returns log-probs, not logits: float32 logits of one chunk are made, used and dropped. Where all rows fit
into one chunk the logits are kept and turned into their gradient in place (3 products with the weight); otherwise
they are made again in the backward pass (4 products).
"""

# R rows, C rows of a chunk, D hidden, V vocabulary

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

CHUNK_BYTES = 256 * 2**20
PIECE_BYTES = 32 * 2**20


class Head(nn.Module):
    """The last linear layer and the log-softmax at given targets. Without a weight of its own where it is tied."""

    def __init__(self, vocab_size: int | None, hidden_size: int) -> None:
        super().__init__()
        self.weight = None if vocab_size is None else nn.Parameter(torch.empty(vocab_size, hidden_size))
        self.chunk_bytes = CHUNK_BYTES

    def matrix(self, tied: Tensor | None) -> Tensor:
        """The weight [V, D]: its own, or the embedding that is handed in."""
        weight = self.weight if tied is None else tied
        assert weight is not None  # one of the two is there by construction
        return weight

    def forward(self, hidden: Tensor, targets: Tensor, tied: Tensor | None = None) -> Tensor:
        """Log-prob of targets [R] at hidden [R, D]: [R] nats, float32 (float64 for a float64 model)."""
        weight = self.matrix(tied)
        chunk_rows = max(1, self.chunk_bytes // (weight.shape[0] * 4))
        return TargetLogps.apply(hidden, weight, targets, chunk_rows)  # pyright: ignore[reportReturnType]


class TargetLogps(torch.autograd.Function):
    """logits = hidden @ weight.T; logps = logits[target] - logsumexp(logits)."""

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, targets: Tensor, chunk_rows: int) -> Tensor:
        """Log-probs [R], nats, float32 or better; the logits are kept where all rows fit in a chunk."""
        keeps = len(hidden) <= chunk_rows and any(ctx.needs_input_grad)
        wide = torch.float64 if hidden.dtype == torch.float64 else torch.float32
        kept = hidden.new_empty(len(hidden), len(weight), dtype=wide) if keeps else None
        logps, logsumexps = (hidden.new_empty(len(hidden), dtype=wide) for _ in range(2))
        for piece in _pieces(hidden, weight, chunk_rows):
            logits = wide_logits(hidden[piece], weight, out=None if kept is None else kept[piece])  # [C, V]
            logsumexps[piece] = logits.logsumexp(dim=1)
            logps[piece] = logits.gather(1, targets[piece, None]).squeeze(1) - logsumexps[piece]
        ctx.save_for_backward(hidden, weight, targets, logsumexps, *([] if kept is None else [kept]))
        ctx.chunk_rows = chunk_rows
        return logps

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, None, None]:
        """Gradients of hidden [R, D] and weight [V, D]; kept logits are used up."""
        (gradient,) = gradients
        hidden, weight, targets, logsumexp, *kept = ctx.saved_tensors
        d_hidden = torch.empty_like(hidden)
        d_weight = torch.zeros(weight.shape, dtype=logsumexp.dtype, device=weight.device)
        for start in range(0, len(hidden), ctx.chunk_rows):
            rows = slice(start, start + ctx.chunk_rows)
            logits = kept[0] if kept else wide_logits(hidden[rows], weight)
            _turn_into_gradient(logits, targets[rows], logsumexp[rows], gradient[rows])
            d_logits = logits.to(hidden.dtype)
            d_hidden[rows] = d_logits @ weight
            _add_product(d_weight, d_logits, hidden[rows])
        return d_hidden, d_weight.to(weight.dtype), None, None


def _turn_into_gradient(logits: Tensor, targets: Tensor, logsumexp: Tensor, gradient: Tensor) -> None:
    """In place: d logp / d logits = onehot(target) - softmax, times the gradient of each log-prob."""
    for piece in _pieces(logits, logits.T, len(logits)):
        part = logits[piece].sub_(logsumexp[piece, None]).exp_().mul_(-gradient[piece, None])
        part.scatter_add_(1, targets[piece, None], gradient[piece, None].to(part.dtype))


def _pieces(rows: Tensor, weight: Tensor, chunk_rows: int) -> Iterator[slice]:
    """Slices of rows whose logits are made and used at once.

    On the CPU of PIECE_BYTES: what is that small the allocator hands out again instead of asking for fresh pages. A
    pass without gradient over 16 pairs, vocabulary 32,000: 3.3 s instead of 3.9 with 256 MB, 4.8 with 8 MB.
    """
    n = chunk_rows if rows.is_cuda else min(chunk_rows, max(1, PIECE_BYTES // (len(weight) * 4)))
    return (slice(start, min(start + n, len(rows))) for start in range(0, len(rows), n))


def wide_logits(rows: Tensor, weight: Tensor, out: Tensor | None = None) -> Tensor:
    """rows [C, D] x weight [V, D] -> [C, V], float32 or better: bf16 logits would add 0.2 to 0.4 nats of noise.

    out: where they are put.
    """
    if rows.dtype in (torch.float32, torch.float64):
        return torch.mm(rows, weight.T, out=out)
    if rows.is_cuda:  # no float32 copy of the weight
        made = torch.mm(rows, weight.T, out_dtype=torch.float32)
        return made if out is None else out.copy_(made)
    return torch.mm(rows.float(), weight.T.float(), out=out)


def _add_product(total: Tensor, left: Tensor, right: Tensor) -> None:
    """total += left.T @ right, summed in total's dtype."""
    if left.dtype == total.dtype:
        total.addmm_(left.T, right)
    elif left.is_cuda:
        total += torch.mm(left.T, right, out_dtype=torch.float32)
    else:
        total += left.T.float() @ right.float()
