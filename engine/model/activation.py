"""What stands between an MLP's products: SiLU, GELU by its approximation with tanh, xIELU, and what a gate does."""

# T packed tokens, I intermediate

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import gelu, silu, softplus


def gelu_tanh(x: Tensor) -> Tensor:
    """GELU by its approximation with tanh."""
    return gelu(x, approximate="tanh")


ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {"silu": silu, "gelu_tanh": gelu_tanh}
"""By the names that ModelConfig has."""


def gated(act: Callable[[Tensor], Tensor], gate: Tensor, up: Tensor) -> Tensor:
    """act(gate) * up [T, I], of which only gate and up are kept for the backward pass: act(gate) is made there again.

    A compiler does so by itself. Results and gradients are those of the plain product, to the last bit.
    """
    if torch.compiler.is_compiling() or act not in _BACKWARD:
        return act(gate) * up
    return _Gated.apply(act, gate, up)  # pyright: ignore[reportReturnType]


_BACKWARD: dict[Callable[[Tensor], Tensor], Callable[[Tensor, Tensor], Tensor]] = {
    silu: torch.ops.aten.silu_backward,
    gelu_tanh: lambda dy, x: torch.ops.aten.gelu_backward(dy, x, approximate="tanh"),
}


class _Gated(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, act: Callable[[Tensor], Tensor], gate: Tensor, up: Tensor) -> Tensor:
        ctx.save_for_backward(gate, up)
        ctx.act = act
        return act(gate).mul_(up)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[None, Tensor, Tensor]:
        (dy,) = gradients  # [T, I]
        gate, up = ctx.saved_tensors
        return None, _BACKWARD[ctx.act](dy * up, gate), ctx.act(gate).mul_(dy)


class XIELU(nn.Module):
    """xIELU (arXiv 2411.13010): a parabola above 0, a bent exponential below, with two trained numbers.

    x > 0: p x^2 + beta x; else n (expm1(min(x, eps)) - x) + beta x; p = softplus(alpha_p), n = beta +
    softplus(alpha_n). beta and eps are not trained: a checkpoint has them as they are.
    """

    beta: Tensor
    eps: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.alpha_p = nn.Parameter(torch.zeros(1))
        self.alpha_n = nn.Parameter(torch.zeros(1))
        self.register_buffer("beta", torch.tensor(0.5))
        self.register_buffer("eps", torch.tensor(-1e-6))

    def forward(self, x: Tensor) -> Tensor:
        """x [T, I] -> [T, I]."""
        beta, eps = self.beta.to(x.dtype), self.eps.to(x.dtype)
        above = softplus(self.alpha_p) * x * x
        below = (beta + softplus(self.alpha_n)) * (torch.expm1(torch.minimum(x, eps)) - x)
        return torch.where(x > 0, above, below) + beta * x
