"""Rounded factors: how near they are, what a product's gradient is of them, and that a run still starts at 0."""

import json

import pytest
import torch

from engine import train
from engine.config import TrainConfig
from examples import fp8
from system import InputError
from tests import tiny
from tests.rows import id_rows

NUMBERS = torch.randn(7, 32, generator=torch.Generator().manual_seed(0))
HALF_STEP = {"bf16": 2.0**-8, "fp8 by tensor": 2.0**-4, "fp8 by row": 2.0**-4}
"""Most that rounding to nearest moves a number, relative to it: their significands have eight and four bits."""


@pytest.mark.parametrize("kind", fp8.KINDS)
def test_factors_are_rounded_to_the_nearest_with_that_many_bits(kind):
    rounded, _ = fp8.KINDS[kind]
    found, large = rounded(NUMBERS), NUMBERS.abs() > 0.05  # below, fp8 has subnormal numbers
    error = ((found - NUMBERS) / NUMBERS).abs()[large].max()
    assert HALF_STEP[kind] / 2 < error <= HALF_STEP[kind] * (1 + 1e-6)


def test_a_scale_belongs_to_its_row():
    """Rows of unlike size are as near as each other by row; by tensor the small one has nothing left."""
    unlike = torch.stack([NUMBERS[0], NUMBERS[1] * 1e-6])
    (by_row, _), (by_tensor, _) = fp8.KINDS["fp8 by row"], fp8.KINDS["fp8 by tensor"]
    assert torch.allclose(by_row(unlike)[1], by_row(NUMBERS[1:2])[0] * 1e-6, rtol=1e-5)
    assert (by_tensor(unlike)[1] == 0).all()


@pytest.mark.parametrize("kind", fp8.KINDS)
def test_a_products_gradients_are_products_of_rounded_factors(kind):
    layer = torch.nn.Linear(32, 5, bias=False)
    x = NUMBERS.clone().requires_grad_()
    grad = torch.randn(7, 5, generator=torch.Generator().manual_seed(1))
    with fp8.Products(kind):
        y = layer(x)
    y.backward(grad)
    rounded, of_gradient = fp8.KINDS[kind]
    in_bf16 = fp8.to_bfloat16
    with torch.no_grad():
        w = layer.weight
        assert torch.equal(y, in_bf16(rounded(NUMBERS) @ rounded(w).T))
        assert torch.equal(x.grad, in_bf16(of_gradient(grad) @ rounded(w.T).T))
        assert torch.equal(w.grad, in_bf16(of_gradient(grad.T) @ rounded(NUMBERS.T).T))
        assert not torch.equal(x.grad, grad @ w)  # or rounding is nothing


def test_a_run_starts_at_a_log_ratio_of_0_and_goes_another_way(tmp_path):
    rows, lines = tiny.write_rows(tmp_path / "rows.jsonl", id_rows(8)), {}
    folder = tiny.write_model(tmp_path / "model")
    for kind in ("float32", "fp8 by row"):
        config = TrainConfig(
            model=str(folder), data=(str(rows),), out=str(tmp_path / kind), batch_size=4, epochs=1, lr=1e-3,
            beta=0.5, state_every=0,
        )  # fmt: skip
        with fp8.products(kind):
            train.run(config)
        lines[kind] = [json.loads(line) for line in (tmp_path / kind / "metrics.jsonl").read_text().splitlines()]
    (first, second), (plain, plain_second) = lines["fp8 by row"], lines["float32"]
    assert first["rewards/chosen"] == first["rewards/rejected"] == plain["rewards/chosen"] == 0
    assert first["logps/chosen"] != plain["logps/chosen"]
    assert second["rewards/chosen"] != plain_second["rewards/chosen"] != 0


def test_what_is_not_there_is_said(tmp_path):
    with pytest.raises(InputError, match=r"holds no finished demo; run \./launch\.sh demo first"):
        fp8.main([str(tmp_path / "pairs.jsonl"), "--demo", str(tmp_path)])
