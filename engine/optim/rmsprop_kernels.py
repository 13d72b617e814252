# Triton's language is Python by its looks only: its types are not those that a checker knows.
# pyright: basic, reportMissingImports=false, reportIndexIssue=false, reportArgumentType=false
"""One step of RMSprop as CUDA kernels, on whole and on split masters. Imported where there is CUDA alone: needs Triton.

Multiplications and additions are contracted as torch's own kernels on CUDA do it, and nowhere else (enable_fp_fusion is
off): the result is that of torch.optim.RMSprop on the float32 master, bit for bit.
"""

# n numbers of a parameter; factor [1]: what each gradient is multiplied with; rest: 1 - alpha, in float64 as torch does

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

BLOCK = 4096
OPTIONS = {"BLOCK": BLOCK, "num_warps": 8, "enable_fp_fusion": False}


def update_whole(
    master: Tensor, square_avg: Tensor, grad: Tensor, *, factor: Tensor, lr: float, alpha: float, eps: float
) -> None:
    """One step on float32 masters [n], in place: 20 bytes a parameter."""
    if n := len(master):  # else a parameter of fewer rows than there are ranks
        _whole[(triton.cdiv(n, BLOCK),)](master, square_avg, grad, factor, n, lr, alpha, 1 - alpha, eps, **OPTIONS)


def update_split(
    high: Tensor, low: Tensor, moments: Sequence[Tensor], grad: Tensor, *, factor: Tensor | None, keys: Sequence[int],
    lr: float, alpha: float, eps: float,
) -> None:  # fmt: skip
    """One step on split masters [n], in place: 14 bytes a parameter with square_avg in bf16, 18 with it in float32.

    moments: square_avg alone; keys: of its rounding comes first.
    """
    (square_avg,), key, n = moments, keys[0], len(high)
    factor = torch.ones(1, device=high.device) if factor is None else factor
    _split[(triton.cdiv(n, BLOCK),)](
        high.view(torch.int16), low, square_avg, grad, factor, n, key, lr, alpha, 1 - alpha, eps,
        IS_ROUNDED=square_avg.dtype == torch.bfloat16, **OPTIONS,
    )  # fmt: skip


@triton.jit
def _whole(master, square_avg, grad, factor, n, lr, alpha, rest, eps, BLOCK: tl.constexpr):
    """Updates master and square_avg (float32) in place; grad in any dtype."""
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = at < n
    g = tl.load(grad + at, inside, 0.0).to(tl.float32) * tl.load(factor)
    v = _mean(tl.load(square_avg + at, inside, 0.0), g, alpha, rest)
    tl.store(master + at, _moved(tl.load(master + at, inside, 0.0), v, g, lr, eps), inside)
    tl.store(square_avg + at, v, inside)


@triton.jit
def _split(
    high, low, square_avg, grad, factor, n, key, lr, alpha, rest, eps, IS_ROUNDED: tl.constexpr, BLOCK: tl.constexpr
):
    """Updates high (bf16, as int16), low (int16) and square_avg (float32 or bf16) in place (split_master.py)."""
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = at < n
    bits = (tl.load(high + at, inside, 0).to(tl.int32) << 16) + tl.load(low + at, inside, 0).to(tl.int32)
    g = tl.load(grad + at, inside, 0.0).to(tl.float32) * tl.load(factor)
    v = _mean(tl.load(square_avg + at, inside, 0.0).to(tl.float32), g, alpha, rest)
    bits = _moved(bits.to(tl.float32, bitcast=True), v, g, lr, eps).to(tl.int32, bitcast=True)
    upper = (bits + 0x8000) >> 16
    tl.store(high + at, upper.to(tl.int16), inside)
    tl.store(low + at, (bits - (upper << 16)).to(tl.int16), inside)
    if IS_ROUNDED:
        x = at.to(tl.uint32) * 0x9E3779B1 + key.to(tl.uint32)
        x = (x ^ (x >> 16)) * 0x85EBCA6B
        x = (x ^ (x >> 13)) * 0xC2B2AE35
        x = (x ^ (x >> 16)) & 0xFFFF
        rounded = (v.to(tl.int32, bitcast=True) + x.to(tl.int32)) >> 16
        tl.store(square_avg + at, rounded.to(tl.int16).to(tl.bfloat16, bitcast=True), inside)
    else:
        tl.store(square_avg + at, v, inside)


@triton.jit
def _mean(square_avg, g, alpha, rest):
    return tl.fma(g * g, rest, square_avg * alpha)


@triton.jit
def _moved(master, square_avg, g, lr, eps):
    return tl.fma(tl.div_rn(g, tl.sqrt_rn(square_avg) + eps), -lr, master)
