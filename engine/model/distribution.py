"""What objectives ask of whole next-token distributions: entropies and divergences, in the head's chunks of rows.

Logits of a chunk are there anyway, so no more of [rows, vocabulary] is held than for log-probs alone: for a divergence
those of the policy and of the reference side by side. They are made again in the backward pass.
"""

# R rows, C rows of a chunk, D hidden, V vocabulary; p the policy's probabilities, q the reference's

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any, NamedTuple

import torch
from torch import Tensor

from engine.model.logits import (
    AS_THEY_ARE,
    CACHE_BYTES,
    PIECE_BYTES,
    Squash,
    add_product,
    rows_of,
    slices,
    wide,
    wide_logits,
)

DIVERGENCES = ("kl_ref_policy", "kl_policy_ref")
"""Those that take the reference's distribution too: KL(q || p) and KL(p || q)."""
STATISTICS = ("entropy", "log_sum_squares", *DIVERGENCES)
"""What can be asked for, nats: the entropy of p, log of the sum of p squared, and the divergences."""
BUFFERS, BUFFERS_OF_TWO = 3, 6
"""[C, V] float32 tensors that are there at once, of one model and of two."""


class OtherModel(NamedTuple):
    """The reference's side of a divergence."""

    hidden: Tensor
    """[R, D], without gradient."""
    weight: Callable[[], AbstractContextManager[Tensor]]
    """Its head's weight [V, D] while it is used, gathered where it is sharded: in the forward and in the backward pass.
    Collective there."""
    squash: Squash = AS_THEY_ARE
    """What becomes of its head's products."""


def measure(
    hidden: Tensor, weight: Tensor, targets: Tensor, names: tuple[str, ...], chunk_rows: int,
    other: OtherModel | None, squash: Squash = AS_THEY_ARE,
) -> Tensor:  # fmt: skip
    """Log-probs of targets [R] at hidden [R, D], and the statistics of these names: [1 + len(names), R] nats, float32
    (float64 for a float64 model), in that order. All have gradients into hidden and weight [V, D].

    chunk_rows: rows whose float32 logits may be held at once, were there nothing beside them. other: needed for
    DIVERGENCES. squash: what becomes of the products of hidden and weight.
    """
    n = BUFFERS if other is None else BUFFERS_OF_TWO
    rows = max(1, chunk_rows // n)
    if not hidden.is_cuda:
        rows = min(rows, rows_of(PIECE_BYTES, weight))
    others = (None, None, AS_THEY_ARE) if other is None else other
    return _Distributions.apply(hidden, weight, targets, names, rows, squash, *others)  # pyright: ignore[reportReturnType]


class _Distributions(torch.autograd.Function):
    """One pass over chunks of rows for all that is asked for; the gradient of each is a multiple of p or q.

    With log-probs lp and lq, H the entropy, S = sum p^2, F = KL(q || p), B = KL(p || q), by the logits z:
        d lp[target] = onehot - p      dH = -p (lp + H)      d log S = 2 (p^2 / S - p)
        dF = p - q                     dB = p (lp - lq - B)
    """

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        targets: Tensor,
        names: tuple[str, ...],
        piece_rows: int,
        squash: Squash,
        other_hidden: Tensor | None,
        other_weight: Callable[[], AbstractContextManager[Tensor]] | None,
        other_squash: Squash,
    ) -> Tensor:
        """[1 + len(names), R]."""
        ctx.names, ctx.piece_rows, ctx.other_weight = names, piece_rows, other_weight
        ctx.squash, ctx.other_squash = squash, other_squash
        found = hidden.new_empty(1 + len(names), len(hidden), dtype=wide(hidden.dtype))
        with _held(other_weight) as theirs:
            for rows in slices(len(hidden), piece_rows):
                ours = squash(wide_logits(hidden[rows], weight))
                others = _other_logits(other_hidden, rows, theirs, other_squash)
                for part in _parts(ours):
                    log_p = _log_softmax(ours[part])
                    log_q = None if others is None else _log_softmax(others[part])
                    found[:, rows][:, part] = _measure(log_p, log_q, targets[rows][part], names)
                del ours, others  # before the next ones are made
        ctx.save_for_backward(hidden, weight, targets, other_hidden, found)
        return found

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        """Gradients of hidden [R, D] and weight [V, D], the latter where it trains."""
        (gradient,) = gradients
        hidden, weight, targets, other_hidden, found = ctx.saved_tensors
        d_hidden, d_weight = torch.empty_like(hidden), None
        with _held(ctx.other_weight) as theirs:
            for rows in slices(len(hidden), ctx.piece_rows):
                slopes = ctx.squash(wide_logits(hidden[rows], weight))  # [C, V], written over in place
                others = _other_logits(other_hidden, rows, theirs, ctx.other_squash)
                for part in _parts(slopes):
                    of_squash = ctx.squash.slope(slopes[part])
                    log_p = _log_softmax(slopes[part])
                    log_q = None if others is None else _log_softmax(others[part])
                    values = (x[:, rows][:, part] for x in (gradient, found))
                    found_slopes = _slopes(log_p, log_q, targets[rows][part], ctx.names, *values)
                    slopes[part] = found_slopes if ctx.squash == AS_THEY_ARE else found_slopes * of_squash
                narrow = slopes.to(hidden.dtype)
                d_hidden[rows] = narrow @ weight
                if ctx.needs_input_grad[1]:
                    d_weight = add_product(d_weight, narrow, hidden[rows])
                del slopes, narrow, others
        if ctx.needs_input_grad[1]:
            d_weight = torch.zeros_like(weight) if d_weight is None else d_weight.to(weight.dtype)
        return d_hidden, d_weight, *(None,) * 7


def _held(weight: Callable[[], AbstractContextManager[Tensor]] | None) -> AbstractContextManager[Tensor | None]:
    return nullcontext() if weight is None else weight()


def _other_logits(hidden: Tensor | None, rows: slice, weight: Tensor | None, squash: Squash) -> Tensor | None:
    return None if hidden is None or weight is None else squash(wide_logits(hidden[rows], weight))


def _parts(logits: Tensor) -> list[slice]:
    """Rows [C, V] that are worked on at once: what fits into a core's cache, on the CPU."""
    return list(slices(len(logits), len(logits) if logits.is_cuda else rows_of(CACHE_BYTES, logits.T)))


def _log_softmax(logits: Tensor) -> Tensor:
    """Log-probs [C, V], in the place of the logits; the same bits at a target as those of log-probs alone."""
    logits -= logits.amax(dim=1, keepdim=True)
    logits -= logits.exp().sum(dim=1, keepdim=True).log()
    return logits


def _measure(log_p: Tensor, log_q: Tensor | None, targets: Tensor, names: tuple[str, ...]) -> Tensor:
    """[1 + len(names), C]."""
    p = log_p.exp()
    found = [log_p.gather(1, targets[:, None])[:, 0]]
    for name in names:
        if name == "entropy":
            found.append(-(p * log_p).sum(dim=1))
        elif name == "log_sum_squares":
            found.append(p.square().sum(dim=1).log())
        elif name == "kl_ref_policy":
            found.append((_other(log_q).exp() * (_other(log_q) - log_p)).sum(dim=1))
        else:
            found.append((p * (log_p - _other(log_q))).sum(dim=1))
    return torch.stack(found)


def _slopes(
    log_p: Tensor, log_q: Tensor | None, targets: Tensor, names: tuple[str, ...], gradient: Tensor, found: Tensor
) -> Tensor:
    """d / d logits [C, V] of what was measured, for the gradient of each [1 + len(names), C]."""
    p = log_p.exp()
    by_name = {name: (g[:, None], v[:, None]) for name, g, v in zip(names, gradient[1:], found[1:], strict=True)}
    factor = -gradient[0][:, None].expand_as(p).clone()  # of p
    if "entropy" in by_name:
        g, entropy = by_name["entropy"]
        factor -= g * (log_p + entropy)
    if "log_sum_squares" in by_name:
        g, log_s = by_name["log_sum_squares"]
        factor += 2 * g * (p / log_s.exp() - 1)
    if "kl_policy_ref" in by_name:
        g, divergence = by_name["kl_policy_ref"]
        factor += g * (log_p - _other(log_q) - divergence)
    slopes = factor.mul_(p)
    if "kl_ref_policy" in by_name:
        g, _ = by_name["kl_ref_policy"]
        slopes += g * (p - _other(log_q).exp())
    return slopes.scatter_add_(1, targets[:, None], gradient[0][:, None])


def _other(log_q: Tensor | None) -> Tensor:
    assert log_q is not None  # what takes the reference is asked for with its side
    return log_q
