"""What the bench counts and times: closed forms, a clock of our own, and a real run of it."""

import json
import math
import re
import subprocess
import sys
from typing import get_args

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from data.forest import PackingOptions, pack
from engine import weights
from engine.bench import bench, measure, peers, table
from engine.bench.bench import write_model
from engine.model import SHAPES, FrozenLinear, FusedForward, Shape, Transformer, adapters, raw_config, read_config
from engine.planning.flops import Documents, forward_flops
from system import InputError
from tests import forks, tiny
from tests.engine.adapted import adapted


def shape(**changes):
    return read_config(tiny.raw_config(**changes), "config.json")


def test_operations_of_a_pair_are_those_of_its_products():
    """Prompt of 5, responses of 4 and 3: inputs 5 + 3 + 2 = 10, predictions 4 + 3 = 7. Hidden 32, 4 heads of 8, 2 kv
    heads, intermediate 56, 3 layers, vocabulary 101.
    """
    forest = pack(tiny.random_examples([(5, 4, 3)]))
    linear = 32 * 32 + 2 * 32 * 16 + 32 * 32 + 3 * 32 * 56  # q; k, v; o; gate, up, down
    seen = sum(range(1, 9)) + (6 + 7)  # the first document is causal; the branch sees the trunk and its own
    blocks = 3 * (2 * 10 * linear + 2 * 2 * seen * 4 * 8)  # scores and values
    assert forward_flops(shape(), forest) == (blocks, 2 * 7 * 32 * 101)


@pytest.mark.parametrize(
    ("layout", "n_tokens", "n_rows"),
    [
        (PackingOptions(), 10, 7),
        (PackingOptions(shares_prompts=False), 8 + 7, 7),
        (PackingOptions(predicts_all=True), 10, 10 + 1),  # the last prompt row predicts twice
        (PackingOptions(shares_prompts=False, pads=True), 8 + 8, 7),
    ],
)
def test_what_is_put_back_is_counted(layout, n_tokens, n_rows):
    forest = pack(tiny.random_examples([(5, 4, 3)]), layout)
    blocks, head = forward_flops(shape(num_hidden_layers=1), forest)
    assert forest.n_tokens == n_tokens and head == 2 * n_rows * 32 * 101
    assert blocks > 2 * n_tokens * 32 * 32


PUBLISHED = {  # numbers of parameters as the hub counts them in the released weights; of Gemma 3 without what sees
    "llama3-8b": 8_030_261_248,
    "llama3-70b": 70_553_706_496,
    "qwen3-8b": 8_190_735_360,
    "qwen2.5-7b": 7_615_616_512,
    "smollm3-3b": 3_075_098_624,
    "smollm2-135m": 134_515_008,
    "mistral-7b": 7_241_732_096,
    "gemma2-9b": 9_241_705_984,
    "phi4-mini": 3_836_021_760,
    "olmo2-7b": 7_298_617_344,
    "olmo3-7b": 7_298_011_136,
    "apertus-8b": 8_053_338_176,
    "granite3.3-8b": 8_170_864_640,
}
ROUNDED = {  # as their makers say, in billions
    "llama3-405b": 406, "qwen3-0.6b": 0.60, "gemma3-4b": 3.88, "ministral3-8b": 8.5, "exaone4-32b": 32.0
}  # fmt: skip


@pytest.mark.parametrize("name", SHAPES)
def test_a_shape_has_its_published_number_of_parameters(name):
    config = read_config(raw_config(name), name)
    with torch.device("meta"):
        assert config.n_parameters == sum(p.numel() for p in Transformer(config).parameters())
    if name in PUBLISHED:
        assert config.n_parameters == PUBLISHED[name]
    elif name != "tiny":
        assert config.n_parameters / 1e9 == pytest.approx(ROUNDED[name], rel=0.01)


def test_the_flag_takes_the_shapes_that_there_are():
    assert get_args(Shape) == tuple(SHAPES)


SMALL = {"hidden_size": 64, "intermediate_size": 96, "num_attention_heads": 4, "num_key_value_heads": 2,
         "vocab_size": 300, "head_dim": 16}  # fmt: skip


@pytest.mark.parametrize("name", SHAPES)
def test_a_shape_is_written_as_a_folder_that_is_read_back(tmp_path, monkeypatch, name):
    monkeypatch.setitem(SHAPES, name, SHAPES[name] | SMALL)
    write_model(tmp_path / "model", name, 6)
    model = weights.load(tmp_path / "model")
    assert len(model.blocks) == 6 and model.config.model_type == SHAPES[name]["model_type"]
    (forest,) = [pack(tiny.random_examples([(9, 12, 7)], vocab_size=300))]
    logps = FusedForward(model)(forest, with_reference=False).logps
    assert logps.isfinite().all()
    assert (-logps / forest.lengths).tolist() == pytest.approx([math.log(300)] * 2, rel=0.05)  # as of no training


def test_what_a_step_executes_of_a_capped_model_is_counted_with_what_is_made_again():
    """Its logits and its scores, beside three passes' worth and a reference's."""
    raw = SHAPES["gemma2-9b"] | SMALL | {"num_hidden_layers": 4, "sliding_window": 6}
    model = Transformer(read_config(raw | {"architectures": ["Gemma2ForCausalLM"]}, "config.json"))
    forest = pack(tiny.random_examples([(5, 4, 3)]))
    blocks, head = forward_flops(model.config, forest)
    seen = [sum(min(n, window) for n in (*range(1, 9), 6, 7)) for window in (6, 100)]
    scores = 2 * sum(seen) * 4 * 4 * 16
    linear = 64 * 4 * 16 * 2 + 2 * 64 * 2 * 16 + 3 * 64 * 96
    assert (blocks, head) == (4 * 2 * 10 * linear + scores, 2 * 7 * 64 * 300)
    found = measure._executed(FusedForward(model, model), forest, True, True, 0)
    assert found == 3 * (blocks + head) + head + scores + (blocks + head)


def test_what_a_step_executes_of_an_adapter_is_two_products_of_a_frozen_matrix_and_three_of_its_own():
    """Of the head, which is frozen too, two; of attention, which has no weights, three."""
    _, model = adapted(rank=4)
    c, forest = model.config, pack(tiny.random_examples([(5, 4, 3)]))
    q, kv, d, i = c.n_heads * c.head_size, c.n_kv_heads * c.head_size, c.hidden_size, c.intermediate_size
    frozen = c.n_layers * 2 * 10 * (2 * d * q + 2 * d * kv + 3 * d * i)
    attention = c.n_layers * 4 * (sum(range(1, 9)) + 6 + 7) * q
    sides = 2 * (d + q) + 2 * (d + kv) + 3 * (d + i)
    own, head = c.n_layers * 2 * 10 * 4 * sides, 2 * 7 * d * c.vocab_size
    expected = 2 * frozen + 3 * attention + 3 * own + 2 * head
    fused = FusedForward(model, adapters.reference_of(model, None, torch.device("cpu")))
    assert measure._executed(fused, forest, True, False, 0) == expected
    assert measure._executed(fused, forest, True, True, 0) == expected + frozen + attention + head  # without A and B
    assert measure._executed(fused, forest, False, False, 0) == frozen + attention + own + head
    model.recompute(c.n_layers)
    assert measure._executed(fused, forest, True, False, 0) == expected + frozen + attention + own
    _, model = adapted(rank=4, whole=("lm_head",))
    assert measure._executed(FusedForward(model), forest, True, False, 0) == expected + head


@pytest.mark.parametrize("held", [torch.float64, "int8"], ids=str)
def test_no_product_of_an_adapters_step_is_for_nothing(held):
    """Counted by torch: of frozen matrices and the head no gradient is made, and none of what is embedded."""
    _, model = adapted(held=held)
    forest = pack(tiny.random_examples([(5, 4, 3), (3, 6, 2)]))
    aten = torch.ops.aten

    def in_place(_, left, right, **__):
        return 2 * left[0] * left[1] * right[1]

    with FlopCounterMode(display=False, custom_mapping={aten.addmm_: in_place}) as counter:
        FusedForward(model)(forest, with_reference=False).logps.sum().backward()
    counted = counter.get_flop_counts()["Global"]
    found = {name: n for name, n in counted.items() if name in (aten.mm, aten.addmm, aten.addmm_)}
    c, whole = model.config, measure.passes_of(model, forest)
    attention = c.n_layers * 4 * Documents.of(forest).seen(None) * c.n_heads * c.head_size
    first = [m for m in model.blocks[0].attention.modules() if isinstance(m, FrozenLinear)][:3]  # q, k and v
    unasked = 2 * forest.n_tokens * sum(m.in_features * (m.out_features + 4) for m in first)
    assert sum(found.values()) == whole.forward + whole.backward - 3 * attention - unasked


def test_every_second_belongs_to_one_part(monkeypatch):
    now = iter([0, 1, 3, 7, 8, 18])  # start; forward; the head in it, which ends; backward; what was measured is taken
    monkeypatch.setattr(measure.time, "perf_counter", lambda: float(next(now)))
    stopwatch = measure.Stopwatch()
    stopwatch.turn("forward")
    stopwatch.enter("head")
    stopwatch.leave()
    stopwatch.turn("backward")
    assert stopwatch.take() == {"idle": 1, "forward": 2 + 1, "head": 4, "backward": 10}
    assert not stopwatch.seconds


ROWS = [
    {"prompt_ids": [i % 90 + 2] * 9, "chosen_ids": [3] * (20 + i), "rejected_ids": [4] * (30 + i)} for i in range(8)
]


@pytest.mark.slow
@pytest.mark.parametrize("on_gpu", [False, True])
def test_the_peer_is_tried_at_its_best_and_its_best_is_kept(monkeypatch, on_gpu):
    """By epoch: in the first its precomputed log-probs cost what they take, from the second on they are known."""
    monkeypatch.setattr("torch.cuda.is_available", lambda: on_gpu)
    monkeypatch.setattr(peers, "find_spec", lambda name: object())
    tried = peers.first(has_adapter=False)
    assert [(o["micro"], o["precompute"]) for o in tried.values()] == [(n, p) for p in (False, True) for n in (1, 2, 4)]
    assert all(options["precompute"] for options in peers.first(has_adapter=True).values())
    speeds = {
        name: (
            {"TRL, 2 at a time": 3.0, "TRL, 1 at a time": 2.5}.get(name, 1.0),
            5.0 if name == "TRL, precomputed, 4 at a time" else 2.0,
        )
        for name in tried
    }
    rate = lambda name, epoch: speeds[name][epoch]  # noqa: E731
    others = peers.more(tried, rate)
    assert [name.removeprefix("TRL, precomputed, 4 at a time, ") for name in others] == ["compiled"] + (
        ["bf16 weights", "flash attention"] if on_gpu else []
    )
    assert all(options["micro"] == 4 and options["precompute"] for options in others.values())
    speeds |= dict.fromkeys(others, (0.5, 9.0))
    last = "TRL, precomputed, 4 at a time, flash attention" if on_gpu else "TRL, precomputed, 4 at a time"
    speeds[last] = (0.5, 8.0)
    kept = ["TRL, 2 at a time", "TRL, 1 at a time", "TRL, precomputed, 4 at a time, compiled", last]
    speeds |= {name: (0.5, 7.0) for name in others if name not in kept}
    assert list(peers.kept(tried | others, rate)) == kept


def test_the_table_holds_the_first_row_against_the_best_of_each_epoch():
    def row(name, *rates):
        return {"name": name, "runs": [{"epochs": [{"pairs": a, "seconds": 1}, {"pairs": b, "seconds": 1}],
                                        "peak_bytes": 1} for a, b in rates]}  # fmt: skip

    rows = [row("all savings", (6, 8), (6, 8)), row("TRL, 1 at a time", (3, 2), (2, 2)),
            row("TRL, precomputed, 1 at a time", (1, 4), (1, 2)), row("TRL, 4 at a time", (1, 1)),
            row("TRL, precomputed, 1, compiled", (1, 3), (1, 4))]  # fmt: skip
    assert table.beside_trl(rows) == [
        "",
        "To TRL at its best: 2.50 (2.00 to 3.00) epoch 1 (TRL, 1 at a time), 2.00 (2.00 to 2.00) from epoch 2 on "
        "(TRL, precomputed, 1 at a time; TRL, precomputed, 1, compiled).",
    ]
    assert table.beside_trl(rows[:1]) == []


def test_the_bench_measures_the_real_path(tmp_path):
    model = tiny.write_model(tmp_path / "model", vocab_size=101)
    file = tiny.write_rows(tmp_path / "rows.jsonl", ROWS)
    command = [sys.executable, "-m", "engine.bench", "--shape", model, "--data", file, "--out", tmp_path / "out.json"]
    command += ["--steps", "2", "--batch-size", "4", "--rounds", "1", "--beside", "ld_dpo", "tdpo2"]
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    made = json.loads((tmp_path / "out.json").read_text())
    row, common, both = made["rows"]
    assert row["name"] == "all savings" and "| all savings |" in done.stdout and "| --loss ld_dpo |" in done.stdout
    (run,) = row["runs"]
    sums, tokens, divergence = ([e["flops"] for e in one["runs"][0]["epochs"]] for one in (row, common, both))
    assert sums == tokens and all(a < b for a, b in zip(sums, divergence, strict=True))
    # A divergence takes the reference in every epoch; measured are steps of other rows.
    assert abs(divergence[0] / divergence[1] - 1) < 0.1 < sums[0] / sums[1] - 1
    assert run["peak_bytes"] > 0 and run["matmul_peak"] > 1e9
    for number, epoch in enumerate(run["epochs"]):
        assert epoch["pairs"] == 4  # the first step of each epoch is a warm-up
        whole = sum(epoch.get(part, 0) for part in measure.PARTS)
        assert whole == pytest.approx(epoch["seconds"])  # the parts add up to the step
        assert all(epoch[part] > 0 for part in ("data", "forward", "head", "backward", "optimizer", "communication"))
        assert epoch["idle"] > -0.01 * whole  # what is left over, never less than nothing
        assert (epoch["flops"] > run["epochs"][1]["flops"]) == (number == 0)  # the reference has left the walk


@pytest.mark.slow
def test_an_adapters_run_is_measured_beside_one_of_all_parameters(tmp_path):
    file = tiny.write_rows(tmp_path / "rows.jsonl", ROWS)
    command = [sys.executable, "-m", "engine.bench", "--shape", tiny.write_model(tmp_path / "model", vocab_size=101)]
    command += ["--data", file, "--out", tmp_path / "out.json", "--steps", "2", "--batch-size", "4", "--rounds", "1"]
    command += ["--lora-rank", "2", "--base-dtype", "int8"]
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    rows = json.loads((tmp_path / "out.json").read_text())["rows"]
    assert [row["name"] for row in rows] == ["all savings", "all parameters"]
    adapter, whole = ([epoch["flops"] for epoch in row["runs"][0]["epochs"]] for row in rows)
    assert all(a < b for a, b in zip(adapter, whole, strict=True))
    run = rows[0]["runs"][0]
    assert all(seconds > 0 for seconds in run["kernels"].values())
    for epoch in run["epochs"]:
        assert epoch["flops"] == pytest.approx(epoch["useful_flops"], rel=0.1)
        assert sum(epoch.get(part, 0) for part in measure.PARTS) == pytest.approx(epoch["seconds"])


@pytest.mark.parametrize(
    ("flags", "missing", "said"),
    [
        (["--lora-alpha", "8"], "", "--lora-alpha: needs --lora-rank"),
        (["--base-dtype", "int8"], "", "--base-dtype int8: applies to frozen weights"),
        (["--lora-rank", "0"], "", "--lora-rank: 0 has to be above 0"),
        (
            ["--lora-rank", "4", "--master-weights", "split"],
            "",
            "--master-weights split: cannot be combined with an adapter",
        ),
        (
            ["--lora-rank", "4", "--base-dtype", "nf4", "--peer", "trl"],
            "",
            "--base-dtype nf4: cannot be combined with --peer",
        ),
        (["--peer", "trl"], "trl", "--peer trl: TRL is not installed; pip install -e '.[peer]'"),
        (["--lora-rank", "4", "--peer", "trl"], "peft", "--peer trl: PEFT is not installed; pip install -e '.[peer]'"),
    ],
)
def test_what_cannot_be_measured_is_a_sentence_before_a_model_is_made(monkeypatch, flags, missing, said):
    found = dict.fromkeys(("trl", "peft"), True) | {missing: None}
    monkeypatch.setattr(bench, "find_spec", lambda package: found[package])
    monkeypatch.setattr(bench, "Bench", None)
    with pytest.raises(InputError, match=re.escape(said)):
        bench.main(flags)


def test_too_few_rows_are_told(tmp_path):
    model = tiny.write_model(tmp_path / "model", vocab_size=101)
    file = tiny.write_rows(tmp_path / "rows.jsonl", [{"prompt_ids": [2], "chosen_ids": [3], "rejected_ids": [4]}])
    command = [sys.executable, "-m", "engine.bench", "--shape", str(model), "--data", str(file)]
    done = forks.run(command)
    assert done.returncode == 2 and "1 pairs, but 48 are needed; lower --steps or --batch-size" in done.stderr


@pytest.mark.parametrize(("given", "ranks", "threads"), [("3", 1, "3"), ("1", 2, "1"), (None, 1, "8"), (None, 2, "4")])
def test_a_measured_process_has_the_threads_that_the_environment_gives(monkeypatch, tmp_path, given, ranks, threads):
    """Two jobs of as many threads as cores would wait for each other."""
    seen = []
    monkeypatch.setattr(bench.os, "cpu_count", lambda: 8)
    monkeypatch.setattr(bench.subprocess, "run", lambda *_, env, **__: seen.append(env) or Done(tmp_path))
    if given is None:
        monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    else:
        monkeypatch.setenv("OMP_NUM_THREADS", given)
    one = bench.Bench.__new__(bench.Bench)
    one._folder, one._count = tmp_path, 0
    assert one._run("a", "engine.bench.measure", {}, ranks) == {}
    assert [env["OMP_NUM_THREADS"] for env in seen] == [threads]


class Done:
    """A process that has written its result."""

    returncode = 0

    def __init__(self, folder):
        (folder / "2.json").write_text("{}")
