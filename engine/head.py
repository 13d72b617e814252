"""Log-probs of given tokens, without ever holding [rows, vocabulary] for more than a chunk of rows.

The head returns log-probs, not logits: float32 logits of one chunk are made, used and dropped. Where all rows fit
into one chunk the logits are kept and turned into their gradient in place (3 products with the weight); otherwise
they are made again in the backward pass (4 products).
"""

# R rows, C rows of a chunk, D hidden, V vocabulary

from typing import Any

import torch
from torch import Tensor, nn

CHUNK_BYTES = 256 * 2**20


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
        return _TargetLogps.apply(hidden, weight, targets, chunk_rows)  # pyright: ignore[reportReturnType]


class _TargetLogps(torch.autograd.Function):
    """logits = hidden @ weight.T; logps = logits[target] - logsumexp(logits)."""

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, targets: Tensor, chunk_rows: int) -> Tensor:
        logps, logsumexps, logits = [], [], None
        for rows, wanted in zip(hidden.split(chunk_rows), targets.split(chunk_rows), strict=True):
            logits = wide_logits(rows, weight)  # [C, V]
            logsumexp = logits.logsumexp(dim=1)
            logps.append(logits.gather(1, wanted[:, None]).squeeze(1) - logsumexp)
            logsumexps.append(logsumexp)
        keeps = len(logps) == 1 and any(ctx.needs_input_grad)
        ctx.save_for_backward(hidden, weight, targets, torch.cat(logsumexps), *([logits] if keeps else []))
        ctx.chunk_rows = chunk_rows
        return torch.cat(logps)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, None, None]:
        (gradient,) = gradients
        hidden, weight, targets, logsumexp, *kept = ctx.saved_tensors
        wide = kept[0].dtype if kept else logsumexp.dtype
        d_hidden = torch.empty_like(hidden)
        d_weight = torch.zeros(weight.shape, dtype=wide, device=weight.device)
        for start in range(0, len(hidden), ctx.chunk_rows) if len(hidden) else ():
            rows = slice(start, start + ctx.chunk_rows)
            logits = kept[0] if kept else wide_logits(hidden[rows], weight)
            # d logp / d logits = onehot(target) - softmax, in the logits' own memory: kept logits are used up here.
            d_logits = logits.sub_(logsumexp[rows, None]).exp_().mul_(-gradient[rows, None])
            d_logits.scatter_add_(1, targets[rows, None], gradient[rows, None].to(d_logits.dtype))
            d_narrow = d_logits.to(hidden.dtype)
            d_hidden[rows] = d_narrow @ weight
            _add_product(d_weight, d_narrow, hidden[rows])
        return d_hidden, d_weight.to(weight.dtype), None, None


def wide_logits(rows: Tensor, weight: Tensor) -> Tensor:
    """rows [C, D] x weight [V, D] -> [C, V], float32 or better: bf16 logits would add 0.2 to 0.4 nats of noise."""
    if rows.dtype in (torch.float32, torch.float64):
        return rows @ weight.T
    if rows.is_cuda:
        return torch.mm(rows, weight.T, out_dtype=torch.float32)  # no float32 copy of the weight
    return rows.float() @ weight.T.float()


def _add_product(total: Tensor, left: Tensor, right: Tensor) -> None:
    """total += left.T @ right, summed in total's dtype."""
    if left.dtype == total.dtype:
        total.addmm_(left.T, right)
    elif left.is_cuda:
        total += torch.mm(left.T, right, out_dtype=torch.float32)
    else:
        total += left.T.float() @ right.float()
