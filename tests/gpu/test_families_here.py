"""What tests/gpu/test_families_gpu.py is made of, on the CPU: so that its first run on a GPU is not its first run."""

import pytest
import torch

from engine.model import FAMILIES, Weighing, attention
from tests.gpu import families

SHORT: list[tuple[int, ...]] = [(70, 60, 131), (30, 1, 40)]


def test_every_family_is_among_them_with_heads_of_every_size():
    configs = {name: families.random_model(name).config for name in families.RAW}
    assert {config.model_type for config in configs.values()} == {family.model_type for family in FAMILIES}
    assert {config.head_size for config in configs.values()} == {64, 128, 256}
    longest = sorted(p + max(r) for p, *r in families.LENGTHS)
    windows = {layer.window for config in configs.values() for layer in config.layers} - {None}
    assert windows == {families.WINDOW} and longest[2] > 2 * families.WINDOW
    originals = {n for config in configs.values() for n in config.originals}
    assert originals == {families.ORIGINAL} and longest[0] < families.ORIGINAL < longest[2]


@pytest.mark.parametrize("cap", [None, 50.0])
@pytest.mark.parametrize("window", [None, 1, 64, 1000])
@pytest.mark.parametrize("way", [attention.dense, attention.by_document])
def test_the_borders_key_is_seen_as_the_definition_says(way, window, cap):
    forest = families.border_forest("cpu")
    found = families.border(forest, way(forest), Weighing(window, 1 / 64, cap), 64, torch.float32)
    assert torch.equal(found.found, found.expected)
    assert found.gradient.item() == pytest.approx(2 * found.expected.sum().item(), rel=1e-5)


def test_a_window_of_one_less_is_told_apart():
    forest = families.border_forest("cpu")
    attend = attention.dense(forest)
    found = families.border(forest, lambda q, k, v, how: attend(q, k, v, how._replace(window=63)),
                            Weighing(64, 1 / 64), 64, torch.float32)  # fmt: skip
    assert (found.found != found.expected).sum() == 2  # a token of each response


@pytest.mark.parametrize("name", ["qwen2", "granite"])
def test_the_fused_pass_is_the_one_with_masks(name):
    model = families.random_model(name)
    forest = families.forest_of(model, [(40, 30, 80), (5, 3, 1)])
    exact = families.passed(model, forest, attention.dense(forest))
    assert max(families.compared(families.fused(model, forest), exact)) < 1e-4


@pytest.mark.slow
@pytest.mark.parametrize("name", families.RAW)
def test_bf16_with_masks_is_near_float32(name):
    """The bounds on a GPU are twice these."""
    model = families.random_model(name)
    forest = families.forest_of(model, SHORT)
    exact = families.passed(model, forest, attention.dense(forest))
    narrow = families.random_model(name).bfloat16()
    found = families.compared(families.passed(narrow, forest, attention.dense(forest)), exact)
    assert found.logps < 5e-3 and found.gradients < 3e-2 and found.worst < 6e-2
