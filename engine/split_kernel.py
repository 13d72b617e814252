# Triton's language is Python by its looks only: its types are not those that a checker knows.
# pyright: basic, reportMissingImports=false
"""One step of RMSprop on split masters (engine/split.py) as a CUDA kernel. Imported where there is CUDA alone."""

import triton
import triton.language as tl


@triton.jit
def rmsprop(
    high, low, square_avg, grad, factor, n, key, lr, alpha, rest, eps, IS_ROUNDED: tl.constexpr, BLOCK: tl.constexpr
):
    """Updates high (bf16, as int16), low (int16) and square_avg (float32 or bf16) in place.

    Multiplications and additions are contracted as torch's own kernels on CUDA do it, and nowhere else
    (enable_fp_fusion is off): the result is that of torch.optim.RMSprop on the float32 master, bit for bit.
    """
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = at < n
    bits = (tl.load(high + at, inside, 0).to(tl.int32) << 16) + tl.load(low + at, inside, 0).to(tl.int32)
    master = bits.to(tl.float32, bitcast=True)
    g = tl.load(grad + at, inside, 0.0).to(tl.float32) * tl.load(factor)
    v = tl.load(square_avg + at, inside, 0.0).to(tl.float32)
    v = tl.fma(g * g, rest, v * alpha)
    step = tl.div_rn(g, tl.sqrt_rn(v) + eps)
    bits = tl.fma(step, -lr, master).to(tl.int32, bitcast=True)
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
