"""LoRA on a GPU: quantised products that are compiled, a run that starts at 0, and one process that wraps nothing.

The item "lora" of ./launch.sh gpu-checks. What these tests are made of runs on the CPU too
(tests/gpu/test_lora_here.py).
"""

import json
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch._dynamo.utils import counters

from data.forest import pack
from engine import weights
from engine.config import TrainConfig
from engine.distributed import Ranks
from engine.model import FusedForward, raw_config, read_config
from engine.step import Batch, Hooks, MicroBatching, Training
from engine.train import run
from tests import tiny
from tests.gpu import lora
from tests.rows import id_rows

pytestmark = [
    pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU, or ./launch.sh gpu-checks does not run"),
    pytest.mark.filterwarnings("ignore"),
]

HELD = [None, "int8", "nf4"]
SHAPE = read_config(raw_config("llama3-8b", 2), "config.json")
LENGTHS = [(162, 348, 349), (30, 512, 1), (1, 1, 1), (512, 512, 512), (77, 40, 300), (200, 1, 17)]


@pytest.fixture
def ranks() -> Iterator[Ranks]:
    """One process, which wraps nothing; nothing compiled is left behind."""
    torch.compiler.reset()
    yield Ranks.join(has_adapter=True)
    torch.cuda.empty_cache()


def model(ranks: Ranks, held: Any, **changes: Any) -> FusedForward:
    return lora.random_model(SHAPE, ranks, held or ranks.dtype, **changes)


@pytest.mark.parametrize("kind", ["int8", "nf4"])
def test_a_compiled_quantised_product_is_the_plain_one(ranks, kind):
    found = lora.compiled_product(kind, ranks, 1534, 4096, 14336)
    print(f"FIGURE {kind}, compiled against plain, product and gradient: {found.forward:.1e}, {found.backward:.1e}")
    assert found.same_matrix
    assert found.forward < 4e-3 and found.backward < 4e-3  # of another order of sums, rounded to bf16


@pytest.mark.parametrize("b", [0.0, 0.02], ids=["fresh", "given"])
@pytest.mark.parametrize("held", HELD, ids=str)
@pytest.mark.parametrize("changes", [{"is_compiled": True}, {"is_compiled": True, "n_recomputed": 1}, {}], ids=str)
def test_a_run_starts_at_a_ratio_of_exactly_0(ranks, held, b, changes):
    batch = Batch(lora.random_pairs(4, SHAPE.vocab_size))
    batch.pack(ranks, MicroBatching(micro_tokens=2000))
    fused = model(ranks, held, b=b, **changes)
    assert not lora.ratios(fused, batch, ranks.device).any()
    if b:  # and would not, were the reference another
        with torch.no_grad():
            next(p for n, p in fused.policy.named_parameters() if n.endswith("lora_B")).mul_(2)
        assert lora.ratios(fused, batch, ranks.device).any()


def test_nothing_is_compiled_again_after_the_second_pass(ranks):
    fused = model(ranks, "nf4", is_compiled=True)
    n_graphs = []
    for seed, lengths in enumerate([LENGTHS, LENGTHS[:3], LENGTHS[1:], LENGTHS[3:], LENGTHS * 2]):
        forest = pack(tiny.random_examples(lengths, vocab_size=1000, seed=seed)).to("cuda")
        for with_reference in (True, False):
            fused(forest, with_reference=with_reference).logps.sum().backward()
        with torch.no_grad():
            fused(forest, with_reference=True)
        n_graphs.append(counters["stats"]["unique_graphs"])
    print(f"FIGURE graphs of policy with and without gradient and of the reference: {n_graphs[-1]}")
    assert n_graphs[1:] == n_graphs[1:2] * (len(n_graphs) - 1), n_graphs


@pytest.mark.parametrize("held", HELD, ids=str)
def test_a_run_of_one_process_wraps_nothing_learns_and_goes_on_where_it_was_stopped(tmp_path, held):
    tiny.write_model(tmp_path / "model", std=0.05, hidden_size=64, num_attention_heads=4)
    tiny.write_rows(tmp_path / "rows.jsonl", id_rows(22))

    def begin(training: Training) -> None:
        assert not training.ranks.is_sharded
        assert {p.dtype for _, p in training.policy.trained()} == {torch.float32}

    def trained(name: str, **changes: Any) -> tuple[Any, list[dict[str, float]]]:
        settings = {"epochs": 2, "batch_size": 4, "lr": 1e-3, "max_prompt_tokens": 64, "lora_rank": 4} | changes
        paths = {"model": str(tmp_path / "model"), "data": (str(tmp_path / "rows.jsonl"),), "out": str(tmp_path / name)}
        result = run(TrainConfig(**paths, base_dtype=held, **settings), Hooks(begin=begin))
        return result, [json.loads(line) for line in (tmp_path / name / "metrics.jsonl").read_text().splitlines()]

    whole, lines = trained("whole")
    assert lines[0]["rewards/margins"] == 0
    assert lines[-1]["loss"] < lines[0]["loss"]
    trained("parts", stop_after=3)
    parts, again = trained("parts", resume=True)
    differences = [abs(a["loss"] - b["loss"]) for a, b in zip(lines, again, strict=True)]
    assert max(differences) < 1e-3
    folders = [weights.read_adapter(result.checkpoints[-1]) for result in (whole, parts)]
    same = folders[0].digests() == folders[1].digests()
    print(f"FIGURE adapter, base in {held}: stopped and gone on with, same bits: {same}, losses {max(differences):.1e}")
