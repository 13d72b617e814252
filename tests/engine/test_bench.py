"""What the bench counts and times: closed forms, a clock of our own, and a real run of it."""

import json
import subprocess
import sys

import pytest

from data.forest import PackingOptions, pack
from engine.bench import measure
from engine.model import SHAPES, read_config
from engine.planning.flops import forward_flops
from tests import tiny


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


def test_llama_3_8b_has_its_published_number_of_parameters():
    raw = tiny.raw_config() | SHAPES["llama3-8b"]
    assert read_config(raw, "config.json").n_parameters == 8_030_261_248


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


@pytest.mark.slow
def test_the_bench_measures_the_real_path(tmp_path):
    model = tiny.write_model(tmp_path / "model", vocab_size=101)
    rows = [
        {"prompt_ids": [i % 90 + 2] * 9, "chosen_ids": [3] * (20 + i), "rejected_ids": [4] * (30 + i)} for i in range(8)
    ]
    file = tiny.write_rows(tmp_path / "rows.jsonl", rows)
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


def test_too_few_rows_are_told(tmp_path):
    model = tiny.write_model(tmp_path / "model", vocab_size=101)
    file = tiny.write_rows(tmp_path / "rows.jsonl", [{"prompt_ids": [2], "chosen_ids": [3], "rejected_ids": [4]}])
    command = [sys.executable, "-m", "engine.bench", "--shape", str(model), "--data", str(file)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2 and "1 pairs, and 48 are needed; lower --steps or --batch-size" in done.stderr
