"""A float32 master in two halves of 16 bits: the high one computes as bf16, the low one is what is left, bit for bit.

    master bits = (high << 16) + low        4 bytes a parameter, where float32 masters with a bf16 copy take 6

What one card needs to train all parameters of a model: no copy of the weights to compute with, and gradients in bf16,
or none at all where the optimizer steps inside the backward pass. Sharded training (engine/distributed/) keeps plain
float32 masters.
"""

# n numbers of a parameter

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from engine.optim.formulas import ADAMW, Formula
from engine.weights import SingleProcess, hash_of, round_half_away, round_stochastically

CHUNK = 2**24  # numbers that the CPU updates at once: float32 copies of these, and of no more, are held


def split(master: Tensor) -> tuple[Tensor, Tensor]:
    """float32 -> (high in bf16, low in int16), of the same shape.

    high is rounded half away from zero, so that what is left fits 16 bits; rounding half to even, as a cast does,
    would leave 2^15 now and then. The two differ where a number lies in the middle: 0.0007 % of them.
    """
    high = round_half_away(master)
    return high, (master.view(torch.int32) - (high.view(torch.int16).to(torch.int32) << 16)).to(torch.int16)


def join(high: Tensor, low: Tensor) -> Tensor:
    """The float32 that `split` was given."""
    return ((high.view(torch.int16).to(torch.int32) << 16) + low.to(torch.int32)).view(torch.float32)


def copy_rounded(parameter: Tensor, rows: Tensor) -> None:
    """Takes rows of a checkpoint for a reference: rounded as the policy's are, so that they start as the same bits."""
    parameter.copy_(split(rows.to(parameter.device, torch.float32))[0])


class SplitMasterWeights(SingleProcess):
    """The low halves of a model's parameters, which are the high ones; reads and writes both as one float32."""

    def __init__(self, model: nn.Module) -> None:
        """model: in bf16, on its device."""
        self.low: dict[Tensor, Tensor] = {
            p: torch.zeros_like(p, dtype=torch.int16, requires_grad=False) for p in model.parameters()
        }

    def copy_into(self, parameter: Tensor, rows: Tensor) -> None:
        """Takes rows of a checkpoint, in any float dtype, as the parameter's master."""
        high, low = split(rows.to(parameter.device, torch.float32))
        parameter.copy_(high)
        self.low[parameter].copy_(low)

    def local(self, parameter: Tensor) -> tuple[Tensor, int]:
        """All of a parameter, float32."""
        return self.full_tensor(parameter), 0

    def full_tensor(self, parameter: Tensor) -> Tensor:
        """A parameter's master, float32."""
        return join(parameter.detach(), self.low[parameter])


class SplitOptimizer(Optimizer):
    """torch.optim.RMSprop, or AdamW, on the float32 master of bf16 parameters, bit for bit.

    Its running means are in float32, or in bf16, rounded stochastically: 0.7 % of error and no bias, where rounding to
    nearest would lose the small additions. A parameter is updated by one kernel on CUDA, in chunks on the CPU.
    """

    def __init__(
        self,
        masters: SplitMasterWeights,
        formula: Formula,
        groups: Sequence[dict[str, Any]] | None = None,
        *,
        moments: torch.dtype,
        **options: Any,
    ) -> None:
        """groups: the masters' parameters as torch's optimizers take them; one of all of them where it is None.

        moments: dtype of the running means. options: what torch's optimizer of that formula takes, for every group that
        has no own.
        """
        super().__init__([{"params": list(masters.low)}] if groups is None else groups, options)
        self._formula = formula
        for p, low in masters.low.items():
            means = {name: torch.zeros_like(p, dtype=moments, requires_grad=False) for name in formula.moments}
            self.state[p] = {"step": torch.zeros(()), "low": low, **means}
        self.factor: Tensor | None = None
        """What every gradient is multiplied with in the next step, [1] float32: clipping without another rounding."""
        self._squares: list[Tensor] = []
        self._in_backward = False
        self._numbers: dict[Tensor, int] = {p: number for number, p in enumerate(masters.low)}
        self._groups: dict[Tensor, dict[str, Any]] = {p: group for group in self.param_groups for p in group["params"]}

    def step_in_backward(self) -> None:
        """From now on every parameter is updated as soon as its gradient is there, which is then dropped.

        Nothing may be known of the whole gradient before, so that there is no clipping by its norm.
        """
        self._in_backward = True
        for p in self._parameters():
            p.register_post_accumulate_grad_hook(self._take)

    def _take(self, parameter: Tensor) -> None:
        grad = parameter.grad
        assert grad is not None  # the hook follows its accumulation
        self._squares.append(_norm([grad]).square())
        self._update(parameter)
        parameter.grad = None

    def grad_norm(self) -> Tensor:
        """The global norm of the gradients that are held, or that were taken in the last backward pass: [] float32."""
        if self._in_backward:
            found, self._squares = self._squares, []
            return torch.stack(found).sum().sqrt()
        return _norm([p.grad for p in self._parameters() if p.grad is not None])

    def step(self, closure: Callable[[], Any] | None = None) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Updates every parameter that has a gradient."""
        assert closure is None
        for p in self._parameters():
            if p.grad is not None:
                self._update(p)
        self.factor = None

    def _parameters(self) -> Iterable[nn.Parameter]:
        return (p for group in self.param_groups for p in group["params"])

    @torch.no_grad()
    def _update(self, p: Tensor) -> None:
        state, formula, grad = self.state[p], self._formula, p.grad
        state["step"] += 1
        step = int(state["step"])
        assert grad is not None  # who calls has looked
        first = hash_of(step, self._numbers[p]) >> 1  # 31 bits: the kernel's whole numbers have a sign
        keys = [first, hash_of(first, 1) >> 1]
        moments = [state[name].view(-1) for name in formula.moments]
        parts = p.view(-1), state["low"].view(-1), moments, grad.view(-1)
        numbers = formula.numbers(self._groups[p], step)
        if p.is_cuda:
            _kernel_of(formula)(*parts, factor=self.factor, keys=keys, **numbers)
        else:
            update_in_chunks(*parts, factor=self.factor, keys=keys, formula=formula, **numbers)


def _kernel_of(formula: Formula) -> Callable[..., None]:
    """Needs Triton, which comes with torch for CUDA."""
    if formula is ADAMW:
        from engine.optim.adamw_kernels import update_split
    else:
        from engine.optim.rmsprop_kernels import update_split
    return update_split


def _norm(gradients: list[Tensor]) -> Tensor:
    """Their global norm, [] float32, summed in float32 whatever they are."""
    return torch.stack([torch.linalg.vector_norm(g, dtype=torch.float32) for g in gradients]).norm()


def update_in_chunks(
    high: Tensor, low: Tensor, moments: Sequence[Tensor], grad: Tensor, *, factor: Tensor | None, keys: Sequence[int],
    formula: Formula, **numbers: float,
) -> None:  # fmt: skip
    """One step on a parameter's halves [n], in place. keys: one for each moment's rounding."""
    for start in range(0, len(high), CHUNK):
        upper, lower, g, *held = (x[start : start + CHUNK] for x in (high, low, grad, *moments))
        master, gradient = join(upper, lower), g.float() if factor is None else g.float() * factor
        means = [m.float() for m in held]
        formula.apply(master, gradient, *means, **numbers)
        for m, mean, key in zip(held, means, keys, strict=False):
            if m.dtype == torch.bfloat16:
                places = torch.arange(start, start + len(m), device=m.device)
                m.copy_(round_stochastically(mean, places, key))
            else:
                m.copy_(mean)
        for half, made in zip((upper, lower), split(master), strict=True):
            half.copy_(made)
