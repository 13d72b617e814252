"""Muon for the matrices inside the blocks, AdamW for all else: one optimizer to the loop.

    m <- 0.95 m + 0.05 g; u = 0.05 g + 0.95 m (Nesterov); w <- (1 - lr decay) w - 0.2 lr sqrt(max(rows, columns)) o(u)

o: about the nearest matrix of orthogonal rows or columns, by five Newton-Schulz steps in bf16, which are torch's. The
factor makes an update as large as AdamW's is, so that one --lr serves both: arXiv 2502.16982, torch's
"match_rms_adamw".
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from engine.weights import ShardAccess
from system import torch_private

MOMENTUM = 0.95


class Muon(Optimizer):
    """torch.optim.Muon(adjust_lr_fn="match_rms_adamw") on matrices, bit for bit, beside an AdamW on the others.

    A matrix that is sharded has its update gathered in bf16 and made orthogonal on every rank, of which each keeps its
    rows: the numbers do not depend on how many ranks there are. Its step is collective.
    """

    def __init__(self, matrices: Sequence[dict[str, Any]], others: torch.optim.AdamW, access: ShardAccess) -> None:
        """matrices: groups as torch's optimizers take them, each with its lr and weight_decay. access: who holds which
        rows of them.
        """
        super().__init__([*matrices, *others.param_groups], {})
        self._matrices, self._others, self._access = self.param_groups[: len(matrices)], others, access
        others.param_groups, others.state = self.param_groups[len(matrices) :], self.state

    def kinds(self, parameter: Tensor) -> tuple[str, ...]:
        """The tensors of a parameter's state, by name."""
        is_matrix = any(parameter is p for group in self._matrices for p in group["params"])
        return ("momentum_buffer",) if is_matrix else ("step", "exp_avg", "exp_avg_sq")

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Updates every parameter that has a gradient. Collective."""
        assert closure is None
        for group in self._matrices:
            for p in group["params"]:
                if p.grad is not None:
                    self._update(p, p.grad, lr=group["lr"], decay=group["weight_decay"])
        self._others.step()

    def _update(self, p: Tensor, grad: Tensor, *, lr: float, decay: float) -> None:
        state = self.state[p]
        if not state:
            state["momentum_buffer"] = torch.zeros_like(p)
        momentum = state["momentum_buffer"].lerp_(grad, 1 - MOMENTUM)
        update = grad.lerp(momentum, MOMENTUM).bfloat16()
        # All ranks hold a part of p, and get here in the order of the groups.
        made = torch_private.orthogonalise(self._access.full_tensor(update))
        rows, first = self._access.local(p)
        rows.mul_(1 - lr * decay)
        rows.add_(made[first : first + len(rows)], alpha=-lr * 0.2 * math.sqrt(max(p.shape)))
