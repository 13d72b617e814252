"""Families of models on a GPU: bfloat16 against float32, a window's border, and what windows and caps cost in time.

Three items of ./launch.sh gpu-checks; "compiled" and "speed" in a test's name tell which it is part of. What these
tests are made of runs on the CPU too (tests/gpu/test_families_here.py).
"""

from collections.abc import Callable
from statistics import median

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

from data.forest import Forest, pack
from engine.model import PLAIN, Attend, Transformer, Weighing, attention
from tests import tiny
from tests.gpu import families

pytestmark = [
    pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU, or ./launch.sh gpu-checks does not run"),
    pytest.mark.filterwarnings("ignore"),
]

LOGPS, GRADIENTS, WORST = 1e-2, 6e-2, 0.12
"""Relative errors that bf16 may make of log-probs, of all gradients, and of one parameter's. On the CPU masks in bf16
come to 0.004, 0.027 and 0.05 at most (tests/gpu/test_families_here.py)."""
BESIDE_MASKS = 1.5
"""And in units of what bf16 with masks makes on the same card."""


def on_gpu(name: str, dtype: torch.dtype) -> tuple[Transformer, Forest]:
    model = families.random_model(name)
    return model.to("cuda", dtype), families.forest_of(model).to("cuda")


def with_masks(model: Transformer, forest: Forest) -> families.Pass:
    with sdpa_kernel(SDPBackend.MATH):  # no kernel at all
        return families.passed(model, forest, attention.dense(forest))


def check(name: str, *, is_compiled: bool) -> None:
    exact = with_masks(*on_gpu(name, torch.float32))
    model, forest = on_gpu(name, torch.bfloat16)
    plain = families.compared(with_masks(model, forest), exact)
    if is_compiled:
        torch.compiler.reset()  # as many kinds of block as may be compiled in a process are fewer than families
        model.compile_blocks()
    found = families.compared(families.fused(model, forest), exact)
    how = "compiled, " if is_compiled else ""
    numbers = [f"{value:.1e} ({beside:.1e} with masks)" for value, beside in zip(found, plain, strict=True)]
    print(f"FIGURE {name}, {how}bf16 against float32, log-probs; gradients; worst parameter: {'; '.join(numbers)}")
    assert found.logps < LOGPS and found.gradients < GRADIENTS and found.worst < WORST
    assert found.logps < BESIDE_MASKS * plain.logps + 1e-4
    assert found.gradients < BESIDE_MASKS * plain.gradients + 1e-3


@pytest.mark.parametrize("name", families.RAW)
def test_a_family_in_bf16_is_near_float32(name):
    check(name, is_compiled=False)


@pytest.mark.parametrize("name", ["gemma2", "gemma3_text", "phi3", "apertus"])
def test_a_compiled_family_in_bf16_is_near_float32(name):
    """Between them: norms on both sides, of each head; gelu and xIELU; caps; two ropes, half heads that turn."""
    check(name, is_compiled=True)


@pytest.mark.parametrize("head_size", [64, 128, 256])
@pytest.mark.parametrize("window", [None, 1, 2, 64, 100, 200, 1000])
@pytest.mark.parametrize("cap", [None, 50.0])
def test_a_key_is_seen_at_a_distance_of_one_less_than_the_window_and_not_at_the_window(window, head_size, cap):
    forest = families.border_forest("cuda")
    how = Weighing(window, 1 / head_size, cap)
    found = families.border(forest, attention.varlen(forest), how, head_size, torch.bfloat16)
    assert torch.equal(found.found, found.expected)
    n_seen = found.expected.sum(dtype=torch.float32).item()
    assert found.gradient.item() == pytest.approx(2 * n_seen, rel=0.01)  # of two heads; bf16 has three digits


# --- speed ---------------------------------------------------------------------------------------------------------


def milliseconds(calls: list[Callable[[], object]], rounds: int = 7) -> list[list[float]]:
    """Of each call in every round; calls take turns, after two rounds that do not count."""
    found: list[list[float]] = [[] for _ in calls]
    for n in range(rounds + 2):
        for call, times in zip(calls, found, strict=True):
            begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            begin.record()
            call()
            end.record()
            torch.cuda.synchronize()
            if n >= 2:
                times.append(begin.elapsed_time(end))
    return found


def both_ways(attend: Attend, forest: Forest, heads: tuple[int, int, int], how: Weighing) -> Callable[[], object]:
    """A call of the forward and the backward pass. heads: H, K, E."""
    n, n_kv, size = heads
    shapes = [(forest.n_tokens, x, size) for x in (n, n_kv, n_kv)]
    q, k, v = (torch.randn(x, device=forest.tokens.device).bfloat16().requires_grad_() for x in shapes)
    slopes = torch.ones_like(q)

    def call() -> object:
        return torch.autograd.grad(attend(q, k, v, how), (q, k, v), slopes)

    return call


def report(what: str, times: list[list[float]]) -> None:
    """The first call's time beside the second's."""
    ours, other = times
    ratios = sorted(b / a for a, b in zip(ours, other, strict=True))
    said = (
        f"{median(ratios):.2f} ({ratios[0]:.2f} to {ratios[-1]:.2f}); {median(ours):.2f} against {median(other):.2f} ms"
    )
    print(f"FIGURE {what}: {said}")


@pytest.mark.parametrize("window", [512, 1024, 4096])
@pytest.mark.parametrize("heads", [(32, 8, 128), (8, 4, 256)], ids=str)
def test_the_speed_of_a_window(window, heads):
    forest = pack(tiny.random_examples([(1, 8192, 1)] * 4)).to("cuda")
    attend = attention.varlen(forest)
    times = milliseconds([both_ways(attend, forest, heads, Weighing(window)), both_ways(attend, forest, heads, PLAIN)])
    report(f"window of {window} in 8,192 tokens, {heads[0]} heads of {heads[2]}, times as fast as without", times)


@pytest.mark.parametrize("lengths", [[(160, 350, 350)] * 16, [(512, 2048, 2048)] * 4], ids=["short", "long"])
@pytest.mark.parametrize("window", [None, 4096])
def test_the_speed_of_a_cap(lengths, window):
    """Gemma 2's heads: what goes document by document through plain products, beside the kernel that has no cap."""
    forest, heads = pack(tiny.random_examples(lengths)).to("cuda"), (16, 8, 256)
    attend = attention.varlen(forest)
    hows = Weighing(window, cap=50.0), Weighing(window)
    torch.cuda.reset_peak_memory_stats()
    times = milliseconds([both_ways(attend, forest, heads, how) for how in hows])
    peak = torch.cuda.max_memory_allocated() / 1e9
    report(f"cap, {len(lengths)} pairs of {lengths[0]} tokens, window {window}, times as fast as the kernel", times)
    print(f"FIGURE cap, {len(lengths)} pairs of {lengths[0]} tokens, window {window}, peak GB: {peak:.2f}")
