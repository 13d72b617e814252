"""What the checks of LoRA on a GPU are made of, on the CPU: so that its first run on a GPU is not its first run."""

import json

import pytest
import torch

from engine.distributed import Ranks
from engine.model import raw_config, read_config
from engine.step import Batch, MicroBatching
from tests.gpu import lora

pytestmark = pytest.mark.slow  # the fast set has tests/engine/test_adapters.py

TINY = read_config(raw_config("tiny", 2), "config.json")


@pytest.fixture(autouse=True)
def few_tokens(monkeypatch):
    monkeypatch.setattr(lora, "LONGEST", (12, 20, 20))
    monkeypatch.setattr(lora, "USUAL", (9, 11, 12))


@pytest.mark.parametrize("b", [0.0, 0.02])
@pytest.mark.parametrize("held", [torch.bfloat16, "int8", "nf4"])
def test_a_model_that_is_made_in_place_starts_at_a_ratio_of_0(held, b):
    ranks = Ranks.join(dtype=torch.bfloat16, has_adapter=True)
    batch = Batch(lora.random_pairs(3, TINY.vocab_size))
    batch.pack(ranks, MicroBatching(micro_tokens=60))
    assert len(batch.micro_batches) == 2
    fused = lora.random_model(TINY, ranks, held, b=b, n_recomputed=1)
    assert {p.device.type for p in fused.parameters()} == {"cpu"}
    assert all(bool(layer.matrix().any()) for layer in lora.frozen_layers(fused.policy))
    assert not lora.ratios(fused, batch, ranks.device).any()
    with torch.no_grad():
        next(p for n, p in fused.policy.named_parameters() if n.endswith("lora_B")).add_(0.01)
    assert lora.ratios(fused, batch, ranks.device).any()


@pytest.mark.parametrize("held", [None, "nf4"])
def test_steps_are_measured_beside_the_plan(tmp_path, held):
    case = lora.Case(shape="tiny", layers=2, base_dtype=held, pairs=3, steps=2, out=str(tmp_path / "found.json"))
    found = lora.measure(case)
    assert found["largest_reward"] == 0 and found["grad_norm"] > 0
    assert len(found["fused"]) == len(found["known"]) == 2 and found["peak_bytes"] > 0 and found["fits"]
    sides = 2 * (256 + 256) + 2 * (256 + 128) + 3 * (256 + 688)
    assert found["n_trained"] == 2 * lora.RANK * sides
    rows = {row.check: row for row in lora.rows_of("x", 16, json.loads(json.dumps(found)))}
    assert rows["x: rewards of step 1"].holds and rows["x: peak memory"].holds
    assert "steps/s" in rows["x: with its log-probs known"].figure


def test_what_does_not_hold_is_said():
    found = {
        "peak_bytes": 17e9, "used_bytes": 16e9, "planned_bytes": 15e9, "largest_reward": 1e-3, "grad_norm": 0.0,
        "passes": 1, "pass_tokens": 10, "recomputed": 0, "fused": [0.5, 0.25], "known": [], "pairs": 4,
    }  # fmt: skip
    rows = lora.rows_of("x", 16, found)
    assert [row.holds for row in rows] == [False, False, False, False, None, None]
    assert rows[-1].figure == "4.00 steps/s, 16.0 pairs/s (steps: 0.50, 0.25 s)"
    assert lora.rows_of("x", 17, found | {"planned_bytes": 16.5e9})[1].holds


def test_rewards_are_0_in_the_first_step_alone():
    ranks = Ranks.join(has_adapter=True)
    batch = Batch(lora.random_pairs(2, TINY.vocab_size))
    batch.pack(ranks, MicroBatching(micro_tokens=1000))
    steps = lora.Steps(lora.random_model(TINY, ranks, torch.float32), batch, ranks, lora.config_of(lr=1e-3))
    first, second, third = (steps.take(with_reference=w)[0] for w in (True, True, False))
    assert first == 0 < min(second, third)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # of the compiler's own
@pytest.mark.parametrize("kind", ["int8", "nf4"])
def test_a_compiled_quantised_product_is_the_plain_one(kind):
    torch.compiler.reset()
    found = lora.compiled_product(kind, Ranks.join(dtype=torch.bfloat16, has_adapter=True), 40, 200, 70)
    assert found.same_matrix and found.forward < 4e-3 and found.backward < 4e-3
