"""RMSprop on float32 masters on a GPU, one pass over memory: torch's foreach takes five, and clipping one more."""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

from engine.optim.formulas import RMSPROP, Formula


class FusedRMSprop(torch.optim.RMSprop):
    """torch.optim.RMSprop(foreach=True) on CUDA, bit for bit, without momentum or weight decay; its state is torch's.

    20 bytes of traffic a parameter with clipping, where torch's take 60; no memory of its own, where torch's holds 4
    bytes a parameter for the step. Of a sharded parameter each rank updates what it holds.
    """

    def __init__(
        self,
        parameters: Iterable[nn.Parameter] | Iterable[dict[str, Any]],
        *,
        lr: float,
        alpha: float = 0.99,
        eps: float = 1e-8,
    ):
        super().__init__(parameters, lr=lr, alpha=alpha, eps=eps)
        self.factor: Tensor | None = None
        """What every gradient is multiplied with in the next step, [1] float32: clipping without another pass."""

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Updates every parameter that has a gradient."""
        from engine.optim.rmsprop_kernels import update_whole  # needs Triton, which comes with torch for CUDA

        assert closure is None
        step_fused(self, RMSPROP, update_whole, self.factor)
        self.factor = None


def step_fused(
    optimizer: torch.optim.Optimizer, formula: Formula, update: Callable[..., None], factor: Tensor | None
) -> None:
    """Updates every parameter that has a gradient by one kernel, with its group's numbers; its state is as torch's.

    update: of (master, *moments, gradient) flat, what this rank holds of each. factor: [1] float32; None: 1.
    """
    for group in optimizer.param_groups:
        for p in group["params"]:
            if p.grad is None:
                continue
            state = optimizer.state[p]
            if not state:
                state |= {"step": torch.zeros(())} | {name: torch.zeros_like(p) for name in formula.moments}
            state["step"] += 1
            factor = torch.ones(1, device=p.device) if factor is None else factor
            parts = (held(x) for x in (p, *(state[name] for name in formula.moments), p.grad))
            update(*parts, factor=factor, **formula.numbers(group, int(state["step"])))


def held(x: Tensor) -> Tensor:
    """What this rank holds of it, flat: [n]. Not by the type DTensor, whose import takes a second."""
    return (x.to_local() if hasattr(x, "to_local") else x).view(-1)  # pyright: ignore[reportAttributeAccessIssue]
