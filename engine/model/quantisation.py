"""A frozen matrix in 8 or 4 bits a number, and its product with activations: the base below a LoRA adapter (QLoRA).

    int8   w ~ code * scale           a scale for each row:    max|row| / 127      code -127 .. 127
    nf4    w ~ levels[code] * scale   one for 64 numbers:      max|block|          code 0 .. 15

| kind | codes | scales | bits a number | error of a normal matrix |
|---|---|---|---|---|
| int8 | int8 [out, in] | float32 [out, 1] | 8 + 32 / in | 0.0083 |
| nf4 | uint8 [out, ceil(in / 2)] | bfloat16 [out, ceil(in / 64)] | 4.25 | 0.092 |

(The error is |found - w| / |w|, each the root of a sum of squares.) NF4's levels are quantiles of the normal
distribution between -1 and 1 with an exact 0 (QLoRA, arXiv 2305.14314, section 3), those of bitsandbytes. A byte holds
two codes, the first number's in its high half; the spare half behind an odd row's last number holds the code of 0.
Blocks do not cross rows, and a row's last one may be shorter: so many rows of a matrix are so many rows of its codes
and of its scales.

`quantise` makes codes of rows, `dequantise` gives the matrix that they stand for, `product` multiplies with it: it
makes the matrix in the dtype of the activations, once in the forward and once in the backward pass, and drops it. That
saves memory, not time. Nothing here learns, scales are not quantised once more (QLoRA's double quantisation: 4.13 bits
for the same error), no product is computed in integers, and no other library's files are read or written.
"""

# T packed tokens, N rows of a matrix (out, or some of them), B blocks of a row

import functools
from collections.abc import Iterator
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn import functional as F

Quantisation = Literal["int8", "nf4"]

BLOCK = 64
"""Numbers that share a scale in NF4."""
CHUNKS = {"cpu": 2**18, "cuda": 2**24}
"""Numbers that are converted at once, whole rows of them: 1 MiB in float32, which stays in a core's cache; 64 MiB."""
_LEAST = 1e-38  # of a scale that is divided by: about the smallest float32 that has all its digits; bitsandbytes' own


def levels() -> tuple[float, ...]:
    """What NF4's codes stand for, float32 numbers: quantiles of the normal distribution, 8 above 0 from the probability
    0.9677083 to 0.5 in equal steps and 7 below it, over the largest.

    Digit for digit those of bitsandbytes 0.50 (functional.py, get_4bit_type), so that the codes are its own, too. A
    function: of numbers that stand in a module torch 2.13 makes arguments of a dynamic graph, and then fails.
    """
    below = (-1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635)
    below += (-0.18477343022823334, -0.09105003625154495)
    above = (0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224, 0.44070982933044434)
    above += (0.5626170039176941, 0.7229568362236023, 1.0)
    return (*below, 0.0, *above)


def shapes(
    kind: Quantisation, n_out: int, n_in: int
) -> tuple[tuple[tuple[int, int], torch.dtype], tuple[tuple[int, int], torch.dtype]]:
    """Shape and dtype of the codes, and of the scales, of a matrix [n_out, n_in]."""
    if kind == "int8":
        return ((n_out, n_in), torch.int8), ((n_out, 1), torch.float32)
    return ((n_out, -(-n_in // 2)), torch.uint8), ((n_out, -(-n_in // BLOCK)), torch.bfloat16)


def n_bytes(kind: Quantisation, n_out: int, n_in: int) -> int:
    """Bytes of codes and scales of a matrix [n_out, n_in]."""
    return sum(rows * columns * dtype.itemsize for (rows, columns), dtype in shapes(kind, n_out, n_in))


def quantise(rows: Tensor, kind: Quantisation) -> tuple[Tensor, Tensor]:
    """Codes and scales of rows [N, in] of any float dtype, on their device; of shapes and dtypes as in `shapes`.

    A code is that of the nearest level, found in float32. NF4's are chosen by the block's largest magnitude as it is,
    though what is stored of it is rounded to bfloat16 (0.2 % at most, and no difference in the error), and of two
    levels equally near the lower one is taken. Both are so in bitsandbytes: these are its codes where `in` is a
    multiple of 64, and where it is not, those of each row alone. int8's are rounded by the scale as it is stored,
    halves to even. Zeros come back as zeros.

    Nothing is raised: a NaN or an infinity makes all of its row (int8) or block (NF4) come back as NaN or infinite.
    Beside the result, memory is that of a chunk of rows.
    """
    (codes_shape, codes_dtype), (scales_shape, scales_dtype) = shapes(kind, *rows.shape)
    codes = torch.empty(codes_shape, dtype=codes_dtype, device=rows.device)
    scales = torch.empty(scales_shape, dtype=scales_dtype, device=rows.device)
    for chunk in _chunks(rows, rows.shape[1]):
        codes[chunk], scales[chunk] = (_int8 if kind == "int8" else _nf4)(rows[chunk].float())
    return codes, scales


def dequantise(codes: Tensor, scales: Tensor, kind: Quantisation, n_in: int, dtype: torch.dtype) -> Tensor:
    """The matrix [N, n_in] that codes and scales stand for: multiplied in float32, and rounded once to dtype."""
    if torch.compiler.is_compiling():
        return _values(codes, scales, kind, n_in).to(dtype)  # fused: nothing but the result is ever there
    matrix = torch.empty(len(codes), n_in, dtype=dtype, device=codes.device)
    for chunk in _chunks(codes, n_in):
        matrix[chunk] = _values(codes[chunk], scales[chunk], kind, n_in)
    return matrix


def product(
    x: Tensor, codes: Tensor, scales: Tensor, kind: Quantisation, n_in: int, bias: Tensor | None = None
) -> Tensor:
    """x [T, n_in] times the matrix's transpose, plus bias [out]: [T, out] in x's dtype, as nn.Linear computes it.

    Gradients go to x, dx = dy @ matrix, and to a bias that asks for one; codes and scales have none. They are all that
    is kept for the backward pass. A compiler sees that the matrix is made twice, and keeps it after all, unless it was
    told otherwise before (system.torch_private.let_compiler_recompute, as Transformer.compile_blocks does).
    """
    return _Product.apply(x, codes, scales, kind, n_in, bias)  # pyright: ignore[reportReturnType]


class _Product(torch.autograd.Function):
    """Autograd's own product with a matrix would keep the matrix."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, codes: Tensor, scales: Tensor, kind: Quantisation, n_in: int, bias: Tensor | None
    ) -> Tensor:
        ctx.save_for_backward(codes, scales)
        ctx.kind, ctx.n_in = kind, n_in
        return F.linear(x, dequantise(codes, scales, kind, n_in, x.dtype), bias)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, None, None, None, None, Tensor | None]:
        (dy,) = gradients  # [T, out]
        dx = d_bias = None
        if ctx.needs_input_grad[0]:
            codes, scales = ctx.saved_tensors
            dx = dy @ dequantise(codes, scales, ctx.kind, ctx.n_in, dy.dtype)
        if ctx.needs_input_grad[5]:
            d_bias = dy.sum(dim=0)
        return dx, None, None, None, None, d_bias


def _chunks(rows: Tensor, n_in: int) -> Iterator[slice]:
    size = max(1, CHUNKS.get(rows.device.type, CHUNKS["cuda"]) // n_in)
    return (slice(start, start + size) for start in range(0, len(rows), size))


def _int8(rows: Tensor) -> tuple[Tensor, Tensor]:
    """Codes [N, in] and scales [N, 1] of float32 rows."""
    scales = rows.abs().amax(dim=1, keepdim=True) / 127
    return (rows / scales.clamp(min=_LEAST)).round_().to(torch.int8), scales


def _nf4(rows: Tensor) -> tuple[Tensor, Tensor]:
    """Codes [N, ceil(in / 2)] and scales [N, B], float32, of float32 rows."""
    n_in = rows.shape[1]
    blocks = F.pad(rows, (0, -n_in % BLOCK)).unflatten(1, (-1, BLOCK))  # [N, B, 64]
    scales = blocks.abs().amax(dim=2)
    parts = blocks * scales.clamp(min=_LEAST).reciprocal()[:, :, None]  # not a quotient: bitsandbytes' last digit
    codes = torch.bucketize(parts, _midpoints(rows.device), out_int32=True).to(torch.uint8).flatten(1)
    return (codes[:, 0::2] << 4 | codes[:, 1::2])[:, : -(-n_in // 2)], scales


def _values(codes: Tensor, scales: Tensor, kind: Quantisation, n_in: int) -> Tensor:
    """The matrix [N, n_in] in float32."""
    if kind == "int8":
        return codes * scales
    found = _levels_by_halves(codes) if torch.compiler.is_compiling() else _levels_by_bytes(codes)
    wide = scales[:, :, None].expand(-1, -1, BLOCK).flatten(1)  # [N, 64 B]
    return found[:, :n_in] * wide[:, :n_in]


def _levels_by_bytes(codes: Tensor) -> Tensor:
    """Levels [N, 2 * bytes], float32: both of a byte as one number, 3 times as fast on a CPU as a look-up of two."""
    return _pairs(codes.device).index_select(0, codes.flatten().int()).view(torch.float32).view(len(codes), -1)


def _levels_by_halves(codes: Tensor) -> Tensor:
    """As above for a compiler: one kernel, without a table that would be sent to the device in every pass."""
    is_first = torch.arange(2, device=codes.device) == 0
    pairs = codes[:, :, None]
    halves = torch.where(is_first, pairs >> 4, pairs).flatten(1)  # [N, 2 * bytes]; the lower 4 bits count
    found = [torch.full((), level, dtype=torch.float32, device=codes.device) for level in levels()]
    for bit in (1, 2, 4, 8):  # of 16 levels 8 have the code's lowest bit, of these 4 its next
        is_set = (halves & bit) != 0
        found = [torch.where(is_set, high, low) for low, high in zip(found[0::2], found[1::2], strict=True)]
    return found[0]


@functools.cache
def _midpoints(device: torch.device) -> Tensor:
    """Between two levels each: float32 [15]."""
    found = torch.tensor(levels(), dtype=torch.float32, device=device)
    return (found[:-1] + found[1:]) / 2


@functools.cache
def _pairs(device: torch.device) -> Tensor:
    """The two levels of every byte: two float32 as one int64, [256]."""
    found = torch.tensor(levels(), dtype=torch.float32, device=device)
    return torch.stack([found.repeat_interleave(16), found.repeat(16)], dim=1).view(torch.int64).flatten()
