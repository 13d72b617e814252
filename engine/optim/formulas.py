"""A step of each optimizer on plain float32 tensors, in place: torch's operations in torch's order, bit for bit.

What split masters are stepped by on the CPU, in chunks (split_master.py), and what the kernels on a GPU are held to.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor


@dataclass(frozen=True)
class Formula:
    """An optimizer, as far as one parameter is concerned."""

    moments: tuple[str, ...]
    """The running means that it keeps of each number, by torch's names."""
    numbers: Callable[[Mapping[str, Any], int], dict[str, float]]
    """(options of the parameter's group, the step's number from 1) -> what `apply` is given by name."""
    apply: Callable[..., None]
    """(master, gradient, *moments, **numbers): writes the first and the moments."""


def rmsprop(master: Tensor, gradient: Tensor, square_avg: Tensor, *, lr: float, alpha: float, eps: float) -> None:
    """v <- alpha v + (1 - alpha) g^2; w <- w - lr g / (sqrt(v) + eps)."""
    square_avg.mul_(alpha).addcmul_(gradient, gradient, value=1 - alpha)
    master.addcdiv_(gradient, square_avg.sqrt().add_(eps), value=-lr)


def adamw(
    master: Tensor, gradient: Tensor, exp_avg: Tensor, exp_avg_sq: Tensor, *, keep: float, beta1: float, beta2: float,
    eps: float, step_size: float, correction: float,
) -> None:  # fmt: skip
    """w <- keep w; m <- beta1 m + (1 - beta1) g; v <- beta2 v + (1 - beta2) g^2;
    w <- w - step_size m / (sqrt(v) / correction + eps): arXiv 1711.05101, with `adamw_numbers` of its step.
    """
    master.mul_(keep)
    exp_avg.lerp_(gradient, 1 - beta1)
    exp_avg_sq.mul_(beta2).addcmul_(gradient, gradient, value=1 - beta2)
    master.addcdiv_(exp_avg, (exp_avg_sq.sqrt() / correction).add_(eps), value=-step_size)


def rmsprop_numbers(group: Mapping[str, Any], step: int) -> dict[str, float]:
    """Those of every step."""
    return {name: group[name] for name in ("lr", "alpha", "eps")}


def adamw_numbers(group: Mapping[str, Any], step: int) -> dict[str, float]:
    """keep: 1 - lr decay; step_size: lr / (1 - beta1^t); correction: sqrt(1 - beta2^t)."""
    (beta1, beta2), lr = group["betas"], group["lr"]
    return {
        "keep": 1 - lr * group["weight_decay"], "beta1": beta1, "beta2": beta2, "eps": group["eps"],
        "step_size": lr / (1 - beta1**step), "correction": (1 - beta2**step) ** 0.5,
    }  # fmt: skip


RMSPROP = Formula(("square_avg",), rmsprop_numbers, rmsprop)
ADAMW = Formula(("exp_avg", "exp_avg_sq"), adamw_numbers, adamw)
