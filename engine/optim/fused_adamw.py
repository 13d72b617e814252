"""AdamW on float32 masters on a GPU in one pass over memory, without memory of its own, as fused_rmsprop.py."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from engine.optim.formulas import ADAMW, adamw_numbers
from engine.optim.fused_rmsprop import held


class FusedAdamW(torch.optim.AdamW):
    """torch.optim.AdamW(foreach=True) on CUDA, bit for bit, without amsgrad; its state is torch's.

    28 bytes of traffic a parameter with clipping. Of a sharded parameter each rank updates what it holds.
    """

    factor: Tensor | None = None
    """What every gradient is multiplied with in the next step, [1] float32: clipping without another pass."""

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Updates every parameter that has a gradient."""
        from engine.optim.adamw_kernels import update_whole  # needs Triton, which comes with torch for CUDA

        assert closure is None
        factor = self.factor
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is None:
                    continue
                state = self.state[p]
                if not state:
                    state["step"] = torch.zeros(())
                    state |= {name: torch.zeros_like(p) for name in ADAMW.moments}
                state["step"] += 1
                factor = torch.ones(1, device=p.device) if factor is None else factor
                parts = (held(x) for x in (p, state["exp_avg"], state["exp_avg_sq"], p.grad))
                update_whole(*parts, factor=factor, **adamw_numbers(group, int(state["step"])))
        self.factor = None
