"""An adapter's run before it starts and while it runs: what trains has memory, a state and a folder; the base has none
of these.
"""

import json
import shutil
import subprocess
import sys
from collections import namedtuple
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import yaml
from safetensors import safe_open
from torch.distributed.checkpoint import FileSystemReader
from torch.utils.flop_counter import FlopCounterMode

from data.forest import pack
from engine import plan, train
from engine.config import AdapterConfig, TrainConfig
from engine.inputs import TrainingInputs
from engine.model import Adapter, FusedForward, adapters, raw_config, read_config
from engine.planning import (
    NO_ADAPTERS,
    Adapted,
    Documents,
    MemoryInputs,
    OnBase,
    TokenStatistics,
    cost,
    memory,
    plan_run,
)
from engine.planning.flops import training_flops
from engine.step import Hooks
from system import InputError
from tests import tiny
from tests.engine.adapted import adapted
from tests.metrics import lines
from tests.rows import id_rows

pytestmark = pytest.mark.slow  # the fast set has tests/engine/test_adapters.py

GB = 10**9
UNIT = {"llama3-8b": 2_621_440, "llama3-70b": 12_943_360}
"""Inputs and outputs of every layer, summed: what a rank of 1 trains."""
Usage = namedtuple("Usage", "total used free")


def shape_of(name):
    return read_config(raw_config(name), name)


def counted(shape, *, dtype=torch.bfloat16, on_base=NO_ADAPTERS, moves=False, **asked):
    return Adapted.of(shape, AdapterConfig(**{"rank": 16} | asked), dtype, on_base, moves=moves)


def pair(name, held, n_recomputed):
    """A pass over one pair of 512 + 2 x 512 in a forest."""
    shape = shape_of(name)
    found = counted(shape, base_dtype=held)
    return MemoryInputs(
        shape=shape, device="cuda", dtype=torch.bfloat16, adapted=found, holds_reference=True, pass_tokens=1534,
        n_recomputed=n_recomputed, is_compiled=True, has_several_passes=False,
    )  # fmt: skip


# --- what is counted -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", UNIT)
def test_what_trains_is_the_rank_times_the_sides_of_every_layer(name):
    found = counted(shape_of(name))
    assert found.n_trained == found.n_multiplied == 16 * UNIT[name]
    n = shape_of(name).n_parameters
    assert (found.frozen_bytes, found.code_bytes, found.largest) == (2 * n, 0, 0)


@pytest.mark.parametrize(("held", "bits"), [("int8", 8), ("nf4", 4.25)])
def test_a_quantised_base_is_its_codes_and_the_rest_in_what_computes(held, bits):
    shape = shape_of("llama3-8b")
    found = counted(shape, base_dtype=held)
    matrices = shape.n_layers * shape.n_matrix_parameters
    assert found.frozen_bytes == 2 * (shape.n_parameters - matrices)
    rows = shape.n_layers * (4096 + 2 * 1024 + 4096 + 2 * 14_336 + 4096)  # a float32 scale each
    assert found.code_bytes == matrices * bits / 8 + (4 * rows if held == "int8" else 0)
    assert found.largest == 4096 * 14_336


def test_parts_of_a_fused_matrix_share_an_a_and_a_head_that_trains_has_all_of_its_numbers():
    phi = shape_of("phi4-mini")
    d, i, kv = 3072, 8192, 1024
    sides = (d + d + 2 * kv) + (d + d) + (d + 2 * i) + (i + d)  # qkv_proj, o_proj, gate_up_proj, down_proj
    assert counted(phi).n_low_rank == 32 * 16 * sides
    assert counted(phi).n_multiplied == counted(phi).n_low_rank + 32 * 16 * (2 * d + d)
    head = counted(shape_of("llama3-8b"), train_also=("lm_head",))
    assert head.n_trained == 16 * UNIT["llama3-8b"] + 128_256 * 4096 and head.trains_head
    assert head.frozen_bytes == 2 * (shape_of("llama3-8b").n_parameters - 128_256 * 4096)


def test_the_reference_has_its_adapter_and_no_base():
    shape = shape_of("llama3-8b")
    modules = tuple(f"model.layers.{i}.self_attn.q_proj" for i in range(32))
    on_base = OnBase(reference=Adapter(rank=8, alpha=16, modules=modules))
    sizes = {}
    for name, given in {
        "nothing": {},
        "an adapter": {"on_base": on_base},
        "the policy's, since it moves": {"moves": True},
        "another model": {"on_base": OnBase(shares_base=False)},
        "nothing, beside a head that trains": {"train_also": ("lm_head",)},
    }.items():
        s = MemoryInputs(shape=shape, device="cuda", dtype=torch.bfloat16, adapted=counted(shape, **given))
        sizes[name] = s.reference_bytes
    assert list(sizes.values()) == [
        0, 4 * 8 * 32 * (4096 + 4096), 4 * 16 * UNIT["llama3-8b"], 2 * shape.n_parameters, 2 * 128_256 * 4096
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("name", "held", "recomputed", "kept"),
    [
        ("llama3-8b", None, 18.9, 23.1),
        ("llama3-8b", "int8", 12.0, 16.2),
        ("llama3-8b", "nf4", 8.7, 12.9),
        ("llama3-70b", "int8", 81.5, 102),
        ("llama3-70b", "nf4", 48.7, 69.5),
    ],
)
def test_a_pair_takes_what_was_worked_out_by_hand(name, held, recomputed, kept):
    """By hand with half a GB of CUDA's context, which is gone before a run asks what is free."""
    n_layers = shape_of(name).n_layers
    for n, by_hand in ((n_layers, recomputed), (0, kept)):
        found = memory.needs(pair(name, held, n))
        assert sum(found.values()) / GB + 0.5 == pytest.approx(by_hand, rel=0.03)
        assert sum(found.values()) / GB == pytest.approx(by_hand, rel=0.1)
        assert found["optimizer"] == found["adapter"] == 4 * 16 * UNIT[name] and "reference" not in found


def test_frozen_weights_have_no_master_no_gradient_and_no_copy_that_is_gathered_by_one_process():
    s = replace(pair("llama3-8b", None, 0), has_several_passes=True)
    assert s.is_plain and memory.needs(s)["gradients"] == 4 * 16 * UNIT["llama3-8b"]
    assert "gathered" not in memory.needs(s) and memory.needs(s)["weights"] == 2 * s.shape.n_parameters
    whole = replace(s, adapted=None)
    assert memory.needs(whole)["weights"] == 4 * s.shape.n_parameters
    assert memory._head(s, 1000) == memory._head(whole, 1000) - 2 * 128_256 * 4096  # the weight's gradient


# --- operations ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("whole", [(), ("lm_head",)])
def test_operations_are_those_that_a_counter_sees(whole):
    """Products alone: what attention's kernel does is not what is needed. The first block's queries, keys and values
    are of embeddings that do not train, which have no gradient.
    """
    _, model = adapted(rank=4, whole=whole)
    c, forest = model.config, pack(tiny.random_examples([(5, 4, 6), (7, 3, 2), (3, 1, 5)], seed=3))
    in_place = torch.ops.aten.addmm_  # which the counter does not know
    known = {in_place: lambda _, a, b, **__: 2 * a[0] * a[1] * b[1]}
    with FlopCounterMode(display=False, custom_mapping=known) as counter:
        FusedForward(model)(forest, with_reference=False).logps.sum().backward()
    seen = counter.get_flop_counts()["Global"]
    found = sum(n for op, n in seen.items() if op in (torch.ops.aten.mm, torch.ops.aten.addmm, in_place))
    none = Documents(queries=forest.positions[:0].numpy(), keys=forest.positions[:0].numpy())
    sizes = (forest.n_tokens, none, forest.rows.numel())
    count = counted(c, dtype=torch.float64, rank=4, train_also=whole)
    once, both = training_flops(c, count, *sizes)
    q, kv = c.n_heads * c.head_size, c.n_kv_heads * c.head_size
    first = 2 * forest.n_tokens * c.hidden_size * (q + 2 * kv + 3 * 4)
    assert found == both - first
    share = both / training_flops(c, None, *sizes)[1]
    assert 0.6 < share < 1.2 and once > training_flops(c, None, *sizes)[0]


def test_eight_billion_parameters_take_seven_tenths_of_the_operations():
    shape, load = shape_of("llama3-8b"), TokenStatistics.of_the_paper(16)
    full = MemoryInputs(shape=shape, device="cuda", dtype=torch.bfloat16)
    lora = replace(full, adapted=counted(shape))
    steps = [cost.training_of_example(s, load)[1] for s in (lora, full)]
    assert steps[0] / steps[1] == pytest.approx(0.676, abs=0.005)  # two of three products, and 0.6 % of adapters
    again = [replace(s, n_recomputed=32) for s in (lora, full)]
    runs = [cost.run_flops(s, load, 1, has_reference=False) for s in again]
    assert runs[0] / runs[1] == pytest.approx(0.757, abs=0.005)  # three of four


# --- layouts and what is said --------------------------------------------------------------------------------------


def laid_out(name, n_ranks, budget, **changes):
    config = TrainConfig(model="m", data=("d",), out="o", **{"lora_rank": 16} | changes)
    return plan_run(
        config, shape_of(name), ["fused"], TokenStatistics.of_the_paper(16, n_ranks),
        device="cuda", dtype=torch.bfloat16, n_ranks=n_ranks, budget=budget * GB,
    )  # fmt: skip


def test_a_base_lies_whole_on_every_gpu_where_it_fits_else_on_as_few_as_hold_it():
    assert laid_out("llama3-8b", 8, 80).memory.n_shards == 1
    seventy = laid_out("llama3-70b", 8, 80)
    assert seventy.fits and seventy.memory.n_shards == 4
    assert laid_out("llama3-70b", 8, 80, base_dtype="nf4").memory.n_shards == 1
    assert laid_out("llama3-8b", 8, 80, shard_size=4).memory.n_shards == 4
    assert not laid_out("llama3-8b", 8, 80, lora_rank=None).memory.n_shards < 8


def test_an_adapters_masters_are_never_split():
    assert not laid_out("llama3-8b", 1, 20).memory.is_split


def planned(capsys, *flags):
    plan.main(["--shape", "llama3-8b", "--gpus", "1", *flags])
    return capsys.readouterr().out


def test_the_command_says_what_trains_and_what_fits(capsys):
    asked = ["--lora-rank", "16", "--base-dtype", "nf4", "--gpu-memory", "24"]
    said = planned(capsys, *asked)
    assert said.startswith("8.03 billion parameters frozen, 41.9 million train, on 1 GPU of 24 GB")
    assert "3.0 GB for 18 checkpoints in float32, 0.3 GB for 1 state" in said
    found = json.loads(planned(capsys, *asked, "--json"))
    assert found["chosen"]["checkpoint_bytes"] == 18 * 4 * 41_943_040
    assert found["chosen"]["state_bytes"] == 8 * 41_943_040 == 335_544_320
    assert found["layouts"][0]["fits"] and found["layouts"][0]["save_dtype"] == "float32"
    adamw = json.loads(planned(capsys, *asked, "--json", "--optimizer", "adamw"))
    assert adamw["chosen"]["state_bytes"] == 12 * 41_943_040


def test_what_does_not_fit_is_told_the_base_that_does(capsys):
    with pytest.raises(InputError, match=r"^the run needs 8\.2 GB of memory, and 6\.0 GB are free; lower"):
        planned(capsys, "--lora-rank", "16", "--base-dtype", "nf4", "--gpu-memory", "6")
    said = planned(capsys, "--lora-rank", "16", "--gpu-memory", "10")
    assert "flags: --base-dtype nf4 " in said
    said = planned(capsys, "--lora-rank", "16", "--gpu-memory", "13")
    assert "flags: --base-dtype int8 " in said


@pytest.mark.parametrize(
    ("memory_of", "flags", "end"),
    [
        ("24", [], r"or train an adapter: --lora-rank 16 \(2[34]\.\d GB\)$"),
        ("14", [], r"or train an adapter: --lora-rank 16 --base-dtype int8 \(1[34]\.\d GB\)$"),
        ("9", [], r"or train an adapter: --lora-rank 16 --base-dtype nf4 \([89]\.\d GB\)$"),
        ("5", [], "or take more GPUs$"),
        ("24", ["--optimizer", "muon"], "or take more GPUs$"),  # which does not go with one
    ],
)
def test_what_does_not_fit_with_all_weights_is_told_the_adapter_that_does(capsys, memory_of, flags, end):
    with pytest.raises(InputError, match=end):
        planned(capsys, "--gpu-memory", memory_of, *flags)


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--base-dtype", "nf4"], "--base-dtype nf4: applies to frozen weights, and all weights are trained; add"),
        (["--lora-rank", "16", "--lora-targets", "qkv_proj"], "--lora-targets: qkv_proj: no linear layer"),
        (["--lora-rank", "5000"], "--lora-rank: rank 5000 is above the smaller side"),
        (["--adapter", "somewhere"], "--adapter: needs --model, its base"),
        (["--lora-rank", "16", "--save-dtype", "bfloat16"], "--save-dtype bfloat16: cannot be combined with an"),
        (["--reference-model", "base"], "--reference-model base: means the base of an adapter, and all weights are"),
    ],
)
def test_the_command_refuses_what_a_run_would(capsys, flags, said):
    with pytest.raises(InputError) as fault:
        planned(capsys, "--gpu-memory", "80", *flags)
    assert str(fault.value).startswith(said)


# --- a run ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def model(tmp_path):
    return tiny.write_model(tmp_path / "model", vocab_size=101)


def settings(tmp_path, **more):
    rows = tiny.write_rows(tmp_path / "rows.jsonl", id_rows(8))
    asked = {"model": str(tmp_path / "model"), "data": str(rows), "out": str(tmp_path / "run"), "batch_size": 4}
    return asked | {"epochs": 1, "lr": 1e-3, "lora_rank": 4, "micro_tokens": 40, "dtype": "float32"} | more


@pytest.mark.parametrize("changes", [{}, {"base_dtype": "nf4"}, {"recompute_blocks": 3}])
def test_no_frozen_weight_has_a_gradient_or_a_number_of_the_optimizers(tmp_path, model, changes):
    """While a step runs, and in the state and the folder that it leaves; both have the size that was planned."""
    seen = []

    def look(training, step, phase):
        named = dict(training.policy.named_parameters())
        own = {name for name in named if name.endswith(("lora_A", "lora_B"))}
        assert {name for name, p in named.items() if p.grad is not None} <= own
        assert set(training.optimizer.state) <= {named[name] for name in own}
        seen.append((step, phase, len([p for p in named.values() if p.grad is not None])))

    held = {}
    hooks = Hooks(
        begin=lambda training: held.update(training=training),
        on_phase=lambda step, phase: look(held["training"], step, phase),
        after_step=lambda training, step: look(training, step, "after"),
    )
    config = TrainConfig(**settings(tmp_path, keep_final_state=True) | changes)
    train.run(config, hooks)
    layers = len(adapters.layers_of(held["training"].policy))
    assert max(n for *_, n in seen) == 2 * layers
    plan_made = held["training"].plan
    n = plan_made.memory.n_trained
    assert n == sum(p.numel() for _, p in held["training"].policy.trained())
    (state,) = (tmp_path / "run/state").glob("step-*")
    held_there = FileSystemReader(state).read_metadata().state_dict_metadata
    assert {name.split(".")[0] for name in held_there} == {"policy", "optimizer", "ref_logps", "random"}
    of_weights = {name: found for name, found in held_there.items() if name.startswith(("policy.", "optimizer."))}
    assert all("lora_" in name for name in of_weights)
    numbers = sum(found.size.numel() for name, found in of_weights.items() if not name.endswith(".step"))
    assert plan_made.state_bytes == 4 * numbers == 8 * n
    with safe_open(tmp_path / "run/epoch-01/adapter_model.safetensors", "pt") as file:
        assert sum(file.get_tensor(name).numel() for name in file.keys()) == n  # noqa: SIM118
    assert plan_made.checkpoint_bytes == 4 * n and plan_made.saves == torch.float32
    assert (tmp_path / "run/epoch-01/adapter_model.safetensors").stat().st_size < 4 * n + 20_000


def test_room_on_disk_is_asked_for_adapters_alone(tmp_path, model, monkeypatch):
    """And where there is none, no other dtype is advised: an adapter is written in float32."""
    config = TrainConfig(**settings(tmp_path))
    job = TrainingInputs(config)
    n = sum(p.numel() for _, p in job.policy.trained())
    monkeypatch.setattr(shutil, "disk_usage", lambda _: Usage(0, 0, 4 * n - 1))
    with pytest.raises(InputError, match=r"GB are free, and a checkpoint and its states take [\d.]+ GB; make room, or"):
        train.train(job, train.join(job))
    assert not (tmp_path / "run/metrics.jsonl").exists()


def test_a_given_adapter_is_planned_with_its_own_rank(tmp_path, model, capsys):
    train.run(TrainConfig(**settings(tmp_path)))
    capsys.readouterr()
    given = ["--model", str(model), "--gpus", "0", "--gpu-memory", "40", "--json", "--epochs", "1"]
    plan.main([*given, "--adapter", str(tmp_path / "run/epoch-01")])
    found = json.loads(capsys.readouterr().out)
    plan.main([*given, "--lora-rank", "4"])
    fresh = json.loads(capsys.readouterr().out)
    assert found["chosen"]["checkpoint_bytes"] == fresh["chosen"]["checkpoint_bytes"]
    n = fresh["chosen"]["checkpoint_bytes"] // 4
    assert found["layouts"][0]["bytes"]["reference"] == 4 * n  # the start, which is the reference's
    plan.main([*given, "--adapter", str(tmp_path / "run/epoch-01"), "--reference-model", "base"])
    assert "reference" not in json.loads(capsys.readouterr().out)["layouts"][0]["bytes"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("flags", "shared"), [([], 1), (["--shard-size", "2"], 2), (["--shard-size", "2", "--reshard", "yes"], 2)]
)
def test_two_ranks_train_what_one_does_however_the_base_lies(tmp_path, model, flags, shared):
    """Several passes a step, whose gradients add up while a base that is shared is given back in between.

    In the first step B alone has a gradient, and moves by its sign: of the second, what is noise moves as far.
    """
    asked = settings(tmp_path, micro_tokens=12)
    alone = train.run(TrainConfig(**asked | {"out": str(tmp_path / "one")})).out
    typed = [x for name, value in asked.items() for x in (f"--{name.replace('_', '-')}", str(value))]
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    subprocess.run([*command, "-m", "engine.train", *typed, *flags], check=True, cwd=Path(__file__).parents[2])
    ours, theirs = lines(tmp_path / "run"), lines(alone)
    assert ours[0]["loss"] == pytest.approx(theirs[0]["loss"], abs=1e-6)
    assert ours[0]["grad_norm"] == pytest.approx(theirs[0]["grad_norm"], rel=1e-5)
    assert ours[1]["loss"] == pytest.approx(theirs[1]["loss"], abs=1e-3)
    layout = yaml.safe_load((tmp_path / "run/config.yaml").read_text())["facts"]["layout"]
    assert layout["shard_size"] == shared
