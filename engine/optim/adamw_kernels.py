# Triton's language is Python by its looks only: its types are not those that a checker knows.
# pyright: basic, reportMissingImports=false, reportIndexIssue=false, reportArgumentType=false
"""One step of AdamW as CUDA kernels, on whole and on split masters. Imported where there is CUDA alone: needs Triton.

Multiplications and additions are contracted as torch's own kernels on CUDA do it, and nowhere else, as in
rmsprop_kernels.py: the result is to be that of torch.optim.AdamW on the float32 master, bit for bit.
"""

# n numbers of a parameter; factor [1]: what each gradient is multiplied with; keep, step_size, correction:
# formulas.adamw_numbers; rest1, rest2: 1 - beta1 and 1 - beta2, in float64 as torch does

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from engine.optim.rmsprop_kernels import BLOCK, OPTIONS


def update_whole(
    master: Tensor, exp_avg: Tensor, exp_avg_sq: Tensor, grad: Tensor, *, factor: Tensor, keep: float, beta1: float,
    beta2: float, eps: float, step_size: float, correction: float,
) -> None:  # fmt: skip
    """One step on float32 masters [n], in place: 28 bytes a parameter."""
    if n := len(master):  # else a parameter of fewer rows than there are ranks
        _whole[(triton.cdiv(n, BLOCK),)](
            master, exp_avg, exp_avg_sq, grad, factor, n, keep, 1 - beta1, beta2, 1 - beta2, eps, step_size, correction,
            **OPTIONS,
        )  # fmt: skip


def update_split(
    high: Tensor, low: Tensor, moments: Sequence[Tensor], grad: Tensor, *, factor: Tensor | None, keys: Sequence[int],
    keep: float, beta1: float, beta2: float, eps: float, step_size: float, correction: float,
) -> None:  # fmt: skip
    """One step on split masters [n], in place: 18 bytes a parameter with moments in bf16, 26 with them in float32.

    moments: exp_avg and exp_avg_sq; keys: of their rounding.
    """
    (exp_avg, exp_avg_sq), (key1, key2), n = moments, keys, len(high)
    factor = torch.ones(1, device=high.device) if factor is None else factor
    _split[(triton.cdiv(n, BLOCK),)](
        high.view(torch.int16), low, exp_avg, exp_avg_sq, grad, factor, n, key1, key2, keep, 1 - beta1, beta2,
        1 - beta2, eps, step_size, correction, IS_ROUNDED=exp_avg.dtype == torch.bfloat16, **OPTIONS,
    )  # fmt: skip


@triton.jit
def _whole(
    master, exp_avg, exp_avg_sq, grad, factor, n, keep, rest1, beta2, rest2, eps, step_size, correction,
    BLOCK: tl.constexpr,
):  # fmt: skip
    """Updates master and both moments (float32) in place; grad in any dtype."""
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = at < n
    g = tl.load(grad + at, inside, 0.0).to(tl.float32) * tl.load(factor)
    m = _first(tl.load(exp_avg + at, inside, 0.0), g, rest1)
    v = _second(tl.load(exp_avg_sq + at, inside, 0.0), g, beta2, rest2)
    tl.store(master + at, _moved(tl.load(master + at, inside, 0.0), m, v, keep, eps, step_size, correction), inside)
    tl.store(exp_avg + at, m, inside)
    tl.store(exp_avg_sq + at, v, inside)


@triton.jit
def _split(
    high, low, exp_avg, exp_avg_sq, grad, factor, n, key1, key2, keep, rest1, beta2, rest2, eps, step_size, correction,
    IS_ROUNDED: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Updates high (bf16, as int16), low (int16) and both moments (float32 or bf16) in place (split_master.py)."""
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = at < n
    bits = (tl.load(high + at, inside, 0).to(tl.int32) << 16) + tl.load(low + at, inside, 0).to(tl.int32)
    g = tl.load(grad + at, inside, 0.0).to(tl.float32) * tl.load(factor)
    m = _first(tl.load(exp_avg + at, inside, 0.0).to(tl.float32), g, rest1)
    v = _second(tl.load(exp_avg_sq + at, inside, 0.0).to(tl.float32), g, beta2, rest2)
    moved = _moved(bits.to(tl.float32, bitcast=True), m, v, keep, eps, step_size, correction)
    bits = moved.to(tl.int32, bitcast=True)
    upper = (bits + 0x8000) >> 16
    tl.store(high + at, upper.to(tl.int16), inside)
    tl.store(low + at, (bits - (upper << 16)).to(tl.int16), inside)
    if IS_ROUNDED:
        tl.store(exp_avg + at, _rounded(m, at, key1), inside)
        tl.store(exp_avg_sq + at, _rounded(v, at, key2), inside)
    else:
        tl.store(exp_avg + at, m, inside)
        tl.store(exp_avg_sq + at, v, inside)


@triton.jit
def _first(exp_avg, g, rest):
    """torch's lerp: from the end that is nearer."""
    near = tl.fma(g - exp_avg, rest, exp_avg)
    far = tl.fma(exp_avg - g, 1 - rest, g)
    return tl.where(tl.abs(rest) < 0.5, near, far)


@triton.jit
def _second(exp_avg_sq, g, beta2, rest):
    return tl.fma(g * g, rest, exp_avg_sq * beta2)


@triton.jit
def _moved(master, exp_avg, exp_avg_sq, keep, eps, step_size, correction):
    divisor = tl.div_rn(tl.sqrt_rn(exp_avg_sq), correction) + eps
    return tl.fma(tl.div_rn(exp_avg, divisor), -step_size, master * keep)


@triton.jit
def _rounded(x, at, key):
    """float32 -> bf16, up or down at random (engine/weights/rounding.py)."""
    h = at.to(tl.uint32) * 0x9E3779B1 + key.to(tl.uint32)
    h = (h ^ (h >> 16)) * 0x85EBCA6B
    h = (h ^ (h >> 13)) * 0xC2B2AE35
    h = (h ^ (h >> 16)) & 0xFFFF
    rounded = (x.to(tl.int32, bitcast=True) + h.to(tl.int32)) >> 16
    return rounded.to(tl.int16).to(tl.bfloat16, bitcast=True)
