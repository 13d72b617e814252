"""AdamW on float32 masters on a GPU in one pass over memory, without memory of its own, as fused_rmsprop.py."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from engine.optim.formulas import ADAMW
from engine.optim.fused_rmsprop import step_fused


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
        step_fused(self, ADAMW, update_whole, self.factor)
        self.factor = None
