"""Compiled blocks with adapters: few graphs, a start at exactly 0, the numbers of blocks that are not compiled."""

import functools
import json
import subprocess
import sys

import pytest
import torch

from data.forest import pack
from engine.config import TrainConfig
from engine.model import FusedForward, adapters
from engine.train import run
from tests import tiny
from tests.engine import variants
from tests.engine.adapted import adapted, beside
from tests.rows import id_rows

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]  # of the compiler's own
LENGTHS = [(5, 4, 6), (7, 3, 2), (3, 1, 5)]


def reference(model, has_adapter):
    """The reference with the adapter that the policy has now, or with none."""
    view = adapters.reference_of(model, model.adapter if has_adapter else None, torch.device("cpu")).double()
    mine = adapters.own_parameters(model)
    with torch.no_grad():
        for name, parameter in adapters.own_parameters(view).items():
            parameter.copy_(mine[name])
    return view


@pytest.mark.parametrize(("held", "has_adapter"), [(torch.float64, False), ("nf4", True)], ids=str)
def test_both_models_have_four_graphs_of_each_half_of_a_block(monkeypatch, held, has_adapter):
    """The reference; the policy without gradient, with it, and of the first block, whose input, embedded by frozen
    weights, has none. Whatever the lengths, and with blocks computed again.
    """
    from torch._dynamo.utils import counters  # brings the compiler, for the slow tests alone

    torch.compiler.reset()
    counters.clear()
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend="eager"))  # graphs, and no code
    _, model = adapted(held=held)
    model.recompute(1)
    fused = FusedForward(model, reference(model, has_adapter))
    for one in filter(None, (model, fused.reference)):
        one.compile_blocks()
    n_graphs = []
    for seed, lengths in enumerate([LENGTHS, LENGTHS[:2], LENGTHS * 3, LENGTHS[2:]]):
        forest = pack(tiny.random_examples(lengths, seed=seed))
        for with_reference in (True, False):
            fused(forest, with_reference=with_reference).logps.sum().backward()
            with torch.no_grad():
                found = fused(forest, with_reference=True)
        assert torch.equal(found.logps, found.ref_logps) == has_adapter
        n_graphs.append(counters["stats"]["unique_graphs"])
    assert n_graphs == [8] * 4 and not counters["graph_break"]


def test_a_model_whose_blocks_differ_has_all_its_graphs(monkeypatch):
    """SmolLM3, whose layers turn or do not, with adapters in some blocks alone: more graphs than the compiler keeps
    unless it is told; it then falls back to plain code without a word.
    """
    from torch._dynamo import config
    from torch._dynamo.utils import counters

    torch.compiler.reset()
    counters.clear()
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend="eager"))
    with config.patch(fail_on_recompile_limit_hit=True):
        plain = variants.model_of("smollm3 no_rope_layers").double()
        model = beside(plain, targets=(r".*layers\.[01]\..*",))
        fused = FusedForward(model, reference(model, has_adapter=False))
        for one in filter(None, (model, fused.reference)):
            one.compile_blocks()
        forest = pack(tiny.random_examples(LENGTHS, seed=0))
        for with_reference in (True, False):
            fused(forest, with_reference=with_reference).logps.sum().backward()
            with torch.no_grad():
                fused(forest, with_reference=True)
    assert counters["stats"]["unique_graphs"] > 8


def runs(tmp_path, name, **changes):
    """A run's lines, in this process."""
    paths = {"model": str(tmp_path / "model"), "data": (str(tmp_path / "rows.jsonl"),), "out": str(tmp_path / name)}
    settings = {"lora_rank": 4, "lr": 1e-3, "batch_size": 4, "epochs": 1, "track": ("none",)} | changes
    run(TrainConfig(**paths, **settings))
    return lines(tmp_path / name)


def lines(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def moved(line):
    """The rewards of a step that are not exactly 0."""
    return {
        name
        for name in line
        if name.startswith(("rewards/chosen", "rewards/rejected", "rewards/margins")) and line[name]
    }


def test_compiled_runs_start_at_0_and_go_as_plain_ones_do(tmp_path):
    """Fresh, from an adapter with blocks computed again, in bfloat16, and on two ranks that share the weights.

    The compiler adds in another order, with whole weights too (test_train.py).
    """
    torch.compiler.reset()
    tiny.write_model(tmp_path / "model", vocab_size=101)
    tiny.write_rows(tmp_path / "rows.jsonl", id_rows(12))
    fresh, plain = runs(tmp_path, "fresh", compile="yes"), runs(tmp_path, "plain", compile="no")
    for a, b in zip(fresh, plain, strict=True):
        assert abs(a["loss"] - b["loss"]) < 5e-4 and a["grad_norm"] == pytest.approx(b["grad_norm"], rel=2e-3)
    start = {"lora_rank": None, "adapter": str(tmp_path / "plain/epoch-01")}
    given = runs(tmp_path, "given", compile="yes", recompute_blocks=2, **start)
    narrow = runs(tmp_path, "narrow", compile="yes", dtype="bfloat16", **start)
    both = runs(tmp_path, "both", compile="yes", dtype="bfloat16")  # the policy has adapters, the reference has none
    for found in (fresh, given, narrow, both):
        assert not moved(found[0]) and moved(found[-1])
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    command += ["-m", "engine.train", "--model", tmp_path / "model", "--data", tmp_path / "rows.jsonl"]
    command += ["--out", tmp_path / "ranks", "--adapter", start["adapter"], "--lr", "1e-3", "--batch-size", "4"]
    command += ["--epochs", "1", "--track", "none", "--compile", "yes", "--recompute-blocks", "2", "--shard-size", "2"]
    done = subprocess.run(
        list(map(str, command)), env=tiny.environment(), cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0 and "recompile_limit" not in done.stderr, done.stderr[-3000:]
    ranks = lines(tmp_path / "ranks")
    assert not moved(ranks[0]) and moved(ranks[-1])
    for a, b in zip(ranks, given, strict=True):
        assert abs(a["loss"] - b["loss"]) < 5e-4 and a["grad_norm"] == pytest.approx(b["grad_norm"], rel=2e-3)
