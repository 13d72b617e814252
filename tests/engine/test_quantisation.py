"""A quantised matrix against quantiles of the normal distribution, a slow quantiser and bitsandbytes; its product."""

import math
import warnings

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import checkpoint

from engine.model import quantisation
from engine.model.quantisation import dequantise, levels, n_bytes, product, quantise, shapes
from system import torch_private

pytestmark = pytest.mark.slow  # the fast set has tests/engine/test_adapters.py

LEVELS = levels()
KINDS = ("int8", "nf4")
WIDTHS = (64, 192, 100, 77, 63, 1)  # whole blocks; a short last one, also of an odd row; less than a block; one number


def normal(n, n_in, dtype=torch.float32, seed=0):
    return torch.randn(n, n_in, generator=torch.Generator().manual_seed(seed)).to(dtype)


def unpacked(codes, n_in):
    """NF4 codes [n, in], first the high half of each byte."""
    return torch.stack([codes // 16, codes % 16], dim=2).flatten(1)[:, :n_in].long()


def nearest_codes(rows):
    """NF4 codes [n, in] and scales [n, ceil(in / 64)] of a quantiser that tries all levels, in float64."""
    known = torch.tensor(LEVELS, dtype=torch.float64)
    codes, scales = [], []
    for block in rows.double().split(64, dim=1):
        absmax = block.abs().amax(dim=1, keepdim=True)
        codes.append((block[:, :, None] / absmax[:, :, None] - known).abs().argmin(dim=2))  # the lower one of two
        scales.append(absmax)
    return torch.cat(codes, dim=1), torch.cat(scales, dim=1)


# --- the levels, and the codes of a matrix --------------------------------------------------------------------------


def test_the_levels_are_quantiles_of_the_normal_distribution():
    """Section 3 of arXiv 2305.14314, with the offset of bitsandbytes: 7 below 0, 8 above it, of equal probability."""
    above = torch.special.ndtri(torch.linspace(0.9677083, 0.5, 9, dtype=torch.float64)[:-1])
    below = torch.special.ndtri(torch.linspace(0.9677083, 0.5, 8, dtype=torch.float64)[:-1])
    expected = torch.cat([-below, torch.zeros(1, dtype=torch.float64), above.flip(0)]) / above[0]
    torch.testing.assert_close(torch.tensor(LEVELS, dtype=torch.float64), expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("n_in", WIDTHS)
def test_every_nf4_code_is_that_of_the_nearest_level_of_its_block(n_in, dtype):
    rows = normal(40, n_in, dtype)
    codes, scales = quantise(rows, "nf4")
    expected, absmax = nearest_codes(rows)
    assert torch.equal(unpacked(codes, n_in), expected)
    assert torch.equal(scales, absmax.bfloat16())
    found = torch.tensor(LEVELS)[expected]
    wide = scales.float().repeat_interleave(64, dim=1)[:, :n_in]
    assert torch.equal(dequantise(codes, scales, "nf4", n_in, torch.float32), found * wide)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("n_in", WIDTHS)
def test_every_int8_code_is_the_nearest_multiple_of_its_row_s_scale(n_in, dtype):
    rows = normal(40, n_in, dtype)
    codes, scales = quantise(rows, "int8")
    torch.testing.assert_close(scales.double(), rows.double().abs().amax(1, keepdim=True) / 127, rtol=1e-7, atol=0)
    assert (codes - rows.double() / scales.double()).abs().max() <= 0.5 + 1e-5  # bf16 rows have numbers between two
    assert torch.equal(dequantise(codes, scales, "int8", n_in, torch.float32), codes.float() * scales)
    assert torch.equal(codes.short().abs().amax(1), torch.full((40,), 127, dtype=torch.int16))


def test_the_first_number_stands_in_the_high_half_of_a_byte():
    codes, scales = quantise(torch.tensor([[-2.0, 2.0, 0.0]]), "nf4")
    assert codes.tolist() == [[0x0F, 0x77]]  # the spare half is that of a 0
    assert scales.tolist() == [[2.0]]
    assert dequantise(codes, scales, "nf4", 3, torch.float32).tolist() == [[-2.0, 2.0, 0.0]]


def test_a_number_between_two_levels_takes_the_lower_one():
    """As bitsandbytes has it on every device. Halves of the levels beside 0 are exact."""
    rows = torch.tensor([[1.0, LEVELS[8] / 2, LEVELS[6] / 2, 0.0]])
    assert unpacked(quantise(rows, "nf4")[0], 4).tolist() == [[15, 7, 6, 7]]


def test_an_outlier_reaches_no_further_than_its_block():
    rows = normal(3, 200)
    spoiled = rows.clone()
    spoiled[1, 130] = 1e4  # in the third block: 128 to 191
    before, after = (dequantise(*quantise(m, "nf4"), "nf4", 200, torch.float32) for m in (rows, spoiled))
    assert after[1, 128:192].count_nonzero() == 1  # beside 1e4 the others are none
    after[1, 128:192] = before[1, 128:192]
    assert torch.equal(before, after)


@pytest.mark.parametrize(("kind", "error"), [("nf4", 0.0920), ("int8", 0.0083)])
def test_the_error_of_a_normal_matrix(kind, error):
    rows = normal(512, 2048)
    found = dequantise(*quantise(rows, kind), kind, 2048, torch.float32)
    assert (found - rows).norm() / rows.norm() == pytest.approx(error, abs=1e-4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_codes_are_those_of_bitsandbytes(dtype):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        bitsandbytes = pytest.importorskip("bitsandbytes")
    for n, n_in in ((512, 2048), (8, 352), (8, 77)):
        rows = normal(n, n_in, dtype, seed=n_in)
        rows[0, :64] *= 0.1
        rows[0, :2] = torch.tensor(
            [2.4305214881896973, 0.7097457647323608]
        )  # times 1 / a is not over a: 1 in 17 million
        codes, scales = quantise(rows, "nf4")
        found = dequantise(codes, scales, "nf4", n_in, dtype)
        for theirs in [slice(n)] if n_in % 64 == 0 else [slice(i, i + 1) for i in range(n)]:  # their blocks cross rows
            packed, state = bitsandbytes.functional.quantize_4bit(rows[theirs], quant_type="nf4", blocksize=64)
            assert torch.equal(codes[theirs].flatten(), packed.flatten())
            assert torch.equal(scales[theirs].flatten(), state.absmax.bfloat16())
            state.absmax = state.absmax.bfloat16().float()
            with torch.compiler.set_stance("force_eager"):
                assert torch.equal(found[theirs], bitsandbytes.functional.dequantize_4bit(packed, state))


# --- what is at the edge --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_zeros_stay_zeros(kind):
    rows = normal(3, 150)
    rows[1] = 0
    rows[2, 64:128] = 0
    found = dequantise(*quantise(rows, kind), kind, 150, torch.float32)
    assert found.isfinite().all() and not found[1].any() and not found[2, 64:128].any()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("size", [1e-37, 1e-39, 1e-42, 1e-45, 3e38])
def test_the_smallest_and_largest_numbers_come_back_no_larger_and_with_their_sign(kind, size):
    rows = normal(4, 128) / 8 * size  # 3e38 is not far from the largest, 1e-39 has lost digits, 1e-45 is the last one
    found = dequantise(*quantise(rows, kind), kind, 128, torch.float32)
    assert found.isfinite().all()
    assert (found.abs() <= 1.01 * rows.abs().amax()).all() and (found * rows.sign() >= 0).all()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("value", [math.inf, -math.inf, math.nan])
def test_a_number_that_is_not_finite_is_not_hidden(kind, value):
    rows = normal(2, 64)
    rows[0, 5] = value
    found = dequantise(*quantise(rows, kind), kind, 64, torch.float32)
    assert not found[0].isfinite().any() and found[1].isfinite().all()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("n_in", WIDTHS)
def test_rows_are_quantised_each_for_itself(kind, n_in):
    """So that half of the rows is half of the bytes."""
    rows = normal(9, n_in)
    whole = quantise(rows, kind)
    parts = [quantise(part, kind) for part in (rows[:0], rows[:4], rows[4:])]
    for of_all, *of_parts in zip(whole, *parts, strict=True):
        assert torch.equal(of_all, torch.cat(of_parts))


@pytest.mark.parametrize("kind", KINDS)
def test_many_rows_are_done_a_chunk_at_a_time(kind):
    """Whatever is made on the way is small beside the matrix; the last chunk is a short one, and none is left out."""
    rows = normal(2600, 704, torch.bfloat16)
    chunk = quantisation.CHUNKS["cpu"]
    assert rows.numel() > 4 * chunk and len(rows) % (chunk // 704)
    with Sizes() as sizes:
        codes, scales = quantise(rows, kind)
        values = dequantise(codes, scales, kind, 704, torch.bfloat16)
    results = {codes.shape, values.shape, scales.shape}
    assert max(shape.numel() for shape in sizes.found - results) <= chunk
    for i in (0, 1, 371, 372, 373, 1000, 2599):
        alone = quantise(rows[i : i + 1], kind)
        assert torch.equal(alone[0][0], codes[i]) and torch.equal(alone[1][0], scales[i])
        assert torch.equal(values[i], dequantise(*alone, kind, 704, torch.bfloat16)[0])
    assert torch.nn.functional.cosine_similarity(values.float(), rows.float()).min() > 0.99  # of every row


class Sizes(TorchDispatchMode):
    """Collects the shapes of all tensors that are made."""

    def __init__(self):
        super().__init__()
        self.found = set()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        made = function(*args, **(kwargs or {}))
        self.found |= {one.shape for one in (made if isinstance(made, tuple) else (made,)) if torch.is_tensor(one)}
        return made


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("n_in", WIDTHS)
def test_shapes_and_bytes_are_known_before(kind, n_in):
    made = quantise(normal(5, n_in), kind)
    assert tuple((tuple(t.shape), t.dtype) for t in made) == shapes(kind, 5, n_in)
    assert n_bytes(kind, 5, n_in) == sum(t.numel() * t.element_size() for t in made)


def test_bits_of_a_parameter():
    n = 14336 * 4096  # Llama-3-8B's largest matrices
    assert n_bytes("nf4", 14336, 4096) * 8 == 4.25 * n
    assert n_bytes("int8", 14336, 4096) * 8 == (8 + 32 / 4096) * n


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_a_matrix_is_the_same_numbers_in_every_dtype(kind, dtype):
    """Codes times scales in float32, rounded once."""
    stored = quantise(normal(7, 100), kind)
    expected = dequantise(*stored, kind, 100, torch.float32).to(dtype)
    assert torch.equal(dequantise(*stored, kind, 100, dtype), expected)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("n_in", WIDTHS)
def test_the_compiler_is_given_the_same_matrix(kind, n_in, monkeypatch):
    """It is given other operations than those that are fast one by one."""
    codes, scales = quantise(normal(40, n_in), kind)
    expected = dequantise(codes, scales, kind, n_in, torch.float32)
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    assert torch.equal(dequantise(codes, scales, kind, n_in, torch.float32), expected)


# --- the product ----------------------------------------------------------------------------------------------------


def case(kind, dtype=torch.float64, *, n_in=100, n_out=9, rows=5):
    """x [rows, in], codes, scales and a bias, and the matrix that they stand for."""
    codes, scales = quantise(normal(n_out, n_in), kind)
    x, bias = normal(rows, n_in, dtype, seed=1), normal(1, n_out, dtype, seed=2)[0]
    return x.requires_grad_(), codes, scales, bias, dequantise(codes, scales, kind, n_in, dtype)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("has_bias", [False, True])
def test_the_product_is_that_with_the_matrix_forward_and_backward(kind, dtype, has_bias):
    x, codes, scales, bias, matrix = case(kind, dtype)
    y = product(x, codes, scales, kind, 100, bias if has_bias else None)
    dy = normal(5, 9, dtype, seed=3)
    y.backward(dy)
    assert x.grad is not None and y.dtype == x.grad.dtype == dtype
    expected = x.detach() @ matrix.T + (bias if has_bias else 0)
    tolerance = {torch.float64: 1e-12, torch.float32: 1e-4, torch.bfloat16: 0.25}[dtype]  # sums near 30; bf16: a step
    torch.testing.assert_close(y.detach(), expected, rtol=0, atol=tolerance)
    torch.testing.assert_close(x.grad, dy @ matrix, rtol=0, atol=tolerance / 4)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("trains_bias", [False, True])
def test_gradients_are_those_of_finite_differences(kind, trains_bias):
    x, codes, scales, bias, _ = case(kind, n_in=70, n_out=4, rows=3)
    bias.requires_grad_(trains_bias)
    assert torch.autograd.gradcheck(lambda x, bias: product(x, codes, scales, kind, 70, bias), (x, bias))
    assert torch.autograd.gradgradcheck(lambda x, bias: product(x, codes, scales, kind, 70, bias), (x, bias))


@pytest.mark.parametrize("kind", KINDS)
def test_a_bias_learns_below_an_input_that_does_not(kind):
    x, codes, scales, bias, _ = case(kind)
    x, bias = x.detach(), bias.requires_grad_()
    dy = normal(5, 9, torch.float64, seed=3)
    product(x, codes, scales, kind, 100, bias).backward(dy)
    assert x.grad is None
    torch.testing.assert_close(bias.grad, dy.sum(dim=0), rtol=0, atol=1e-12)


@pytest.mark.parametrize("kind", KINDS)
def test_codes_and_scales_are_all_that_is_kept_for_the_backward_pass(kind):
    x, codes, scales, bias, _ = case(kind)
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        product(x, codes, scales, kind, 100, bias)
    assert [t.data_ptr() for t in kept] == [codes.data_ptr(), scales.data_ptr()]


@pytest.mark.parametrize("kind", KINDS)
def test_no_grad_gives_the_same_and_no_graph(kind):
    x, codes, scales, bias, _ = case(kind)
    expected = product(x, codes, scales, kind, 100, bias)
    with torch.no_grad():
        found = product(x, codes, scales, kind, 100, bias)
    assert torch.equal(found, expected.detach()) and not found.requires_grad


@pytest.mark.parametrize("kind", KINDS)
def test_no_rows_give_no_rows_and_an_empty_gradient(kind):
    x, codes, scales, bias, _ = case(kind, rows=0)
    y = product(x, codes, scales, kind, 100, bias)
    y.sum().backward()
    assert y.shape == (0, 9) and x.grad is not None and x.grad.shape == (0, 100)


def squared(x, codes, scales, kind, bias):
    """Two products after another with something between them, as in a block."""
    y = product(x, codes, scales, kind, x.shape[1], bias)
    return product(torch.nn.functional.silu(y), codes, scales, kind, x.shape[1], bias)


@pytest.mark.parametrize("kind", KINDS)
def test_recomputed_activations_change_nothing(kind):
    x, codes, scales, bias, _ = case(kind, n_in=96, n_out=96)
    found = []
    for recomputed in (False, True):
        x.grad = None
        args = (x, codes, scales, kind, bias)
        y = checkpoint(squared, *args, use_reentrant=False) if recomputed else squared(*args)
        y.square().sum().backward()
        found.append((y.detach(), x.grad))
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # of the compiler's own
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("size", [96, 77])
def test_compiled_equals_eager_in_one_graph_and_keeps_no_matrix(kind, size):
    """Of any number of rows: those that keep more than a matrix for their activations, and those that keep less."""
    torch_private.let_compiler_recompute()
    torch.compiler.reset()
    compiled = torch.compile(squared, dynamic=True, fullgraph=True)
    for rows in (400, 7, 30):
        x, codes, scales, bias, _ = case(kind, torch.float32, n_in=size, n_out=size, rows=rows)
        found, kept = [], []
        for run in (squared, compiled, lambda *args: checkpoint(compiled, *args, use_reentrant=False)):
            x.grad, tensors = None, []
            with torch.autograd.graph.saved_tensors_hooks(lambda t, s=tensors: s.append(t) or t, lambda t: t):
                y = run(x, codes, scales, kind, bias)
            y.square().sum().backward()
            found.append((y.detach(), x.grad))
            kept.append([t.shape for t in tensors if t.is_floating_point()])
        for expected, *others in zip(*found, strict=True):
            for other in others:  # sums in another order
                torch.testing.assert_close(other, expected, rtol=0, atol=1e-6 * expected.abs().max().item())
        assert kept[1] and (size, size) not in kept[1]
