"""RMSprop on float32 masters on a GPU in one pass over memory, where torch's foreach takes six."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

BLOCK = 4096


class FusedRMSprop(torch.optim.RMSprop):
    """torch.optim.RMSprop(foreach=True) on CUDA, bit for bit: 20 bytes a parameter instead of 52, none of its own.

    Its state is torch's. Sharded parameters are updated on each rank by the rows that it holds.
    """

    factor: Tensor | None = None
    """What every gradient is multiplied with in the next step, [1] float32: clipping without another pass."""

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Updates every parameter that has a gradient."""
        assert closure is None
        group = self.param_groups[0]
        numbers = {name: group[name] for name in ("lr", "alpha", "eps")}
        for p in group["params"]:
            if p.grad is None:
                continue
            state = self.state[p]
            if not state:
                state |= {"step": torch.zeros(()), "square_avg": torch.zeros_like(p)}
            state["step"] += 1
            update(*(_rows(x) for x in (p, state["square_avg"], p.grad)), factor=self.factor, **numbers)
        self.factor = None


def _rows(x: Tensor) -> Tensor:
    """The numbers of it that this rank holds, [n]: a DTensor's shard."""
    return getattr(x, "to_local", lambda: x)().view(-1)


def update(
    master: Tensor, square_avg: Tensor, grad: Tensor, *, factor: Tensor | None, lr: float, alpha: float, eps: float
) -> None:
    """One step on n numbers [n] on CUDA, in place."""
    from engine.rmsprop_kernels import on_whole  # needs Triton, which comes with torch for CUDA

    kernel: Any = on_whole  # a checker does not know that it is one
    n = len(master)
    if n == 0:  # a parameter of fewer rows than there are ranks
        return
    factor = torch.ones(1, device=master.device) if factor is None else factor
    kernel[(-(-n // BLOCK),)](
        master, square_avg, grad, factor, n, lr, alpha, 1 - alpha, eps,
        BLOCK=BLOCK, num_warps=8, enable_fp_fusion=False,
    )  # fmt: skip
