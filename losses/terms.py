"""Pieces that several formulas share."""

from typing import Literal

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from losses.errors import LossError
from losses.registry import Responses
from losses.token_responses import TokenResponses

Per = Literal["token", "sequence", "sum"]


def softplus(z: Tensor) -> Tensor:
    """log(1 + exp(z)) = -log s(-z). torch's own is the identity above 20: 2e-9 off in float64."""
    return -logsigmoid(-z)


def nll(responses: Responses, per: Per, mean_length: float | None) -> Tensor:
    """Negative log-likelihood [n] of responses.

    per="token": -lp / mean_length, mean_length = response tokens of the step / responses of the step, so that the
    step's mean is the mean over its tokens (computed from the lengths given where it is None); "sequence": -lp / n,
    every response weighs the same; "sum": -lp. Raises LossError where lengths are needed and absent.
    """
    lp, lengths = responses.logps, responses.lengths
    if per == "sum":
        return -lp
    if per == "sequence" and lengths is not None:
        return -lp / lengths
    if per == "token" and mean_length is None and lengths is not None:
        mean_length = lengths.to(lp.dtype).mean().item()
    if per == "token" and mean_length is not None:
        return -lp / mean_length
    raise LossError(f"a likelihood per {per!r} needs lengths; per is token, sequence or sum")


def mean_logps(responses: Responses) -> Tensor:
    """a = lp / n: log-prob per token [n]. Raises LossError where lengths are absent."""
    return responses.logps / lengths_of(responses)


def lengths_of(responses: Responses) -> Tensor:
    """Lengths [n] in the dtype of the log-probs: an integer times a float would be float32. Raises LossError."""
    if responses.lengths is None:
        raise LossError('this objective needs lengths; declare them with @loss(..., needs=("lengths",))')
    return responses.lengths.to(responses.logps.dtype)


def scores_of(responses: Responses) -> Tensor:
    """Scores in the dtype of the log-probs. Raises LossError where there are none."""
    if responses.scores is None:
        raise LossError('this objective needs scores; declare them with @loss(..., needs=("scores",))')
    return responses.scores.to(responses.logps.dtype)


def share(value: float, most: float = 1.0) -> float:
    """A label_smoothing. Raises LossError outside [0, most)."""
    if not 0 <= value < most:
        raise LossError(f"label_smoothing is {value}; it has to be 0 or above, and below {most:g}")
    return value


def between_0_and_1(name: str, value: float) -> float:
    """An argument that is a share or the weight of one. Raises LossError outside [0, 1]."""
    if not 0 <= value <= 1:
        raise LossError(f"{name} is {value}; it has to be between 0 and 1")
    return value


def needed(responses: TokenResponses, name: str) -> Tensor:
    """One of the values [N] that `needs` asks for. Raises LossError where it is absent."""
    values = getattr(responses, name)
    if values is None:
        raise LossError(f'this objective needs {name}; declare it with @loss(..., level="token", needs=("{name}",))')
    return values


def weighed(responses: TokenResponses, mask: Tensor, outside: float) -> Responses:
    """Sums over each row [n] in which tokens where mask [N] is false weigh `outside`, and the others 1.

    Policy and reference are summed apart, as everywhere: with outside=1 they are the plain sums to the last bit.
    """
    weights = torch.full_like(responses.logps, outside).masked_fill(mask, 1.0)
    reference = responses.ref_logps
    return Responses(
        responses.per_sequence(weights * responses.logps),
        None if reference is None else responses.per_sequence(weights * reference),
        responses.lengths,
        responses.scores,
    )


def log1mexp(a: Tensor) -> Tensor:
    """log(1 - exp(a)) for a < 0 (Maechler 2012): either branch where it keeps its digits.

    Both are differentiated, so the unused one is given a harmless argument. Above -1e-7 a is taken as -1e-7.
    """
    a = a.clamp(max=-1e-7)
    near = a > -0.6931471805599453
    half = torch.full_like(a, -0.6931471805599453)
    return torch.where(near, torch.log(-torch.expm1(torch.where(near, a, half))),
                       torch.log1p(-torch.exp(torch.where(near, half, a))))  # fmt: skip
