"""Runs on a tiny checkpoint of each family that transformers made: on one rank and two, killed and gone on with.

What they write is read by transformers, which finds nothing missing or unexpected, and gives the log-probs that we do.
"""

import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from data.forest import pack
from engine import train, weights
from engine.config import OptimizerConfig, TrainConfig
from engine.model import FusedForward, Transformer, read_config
from engine.optim.groups import divide
from tests import tiny
from tests.engine import folders
from tests.engine.kills import outcome
from tests.metrics import lines
from tests.rows import id_rows

ROOT = Path(__file__).parents[2]
LENGTHS = [(3, 20), (9, 1), (4, 6), (13, 30)]  # beyond windows of 5 and 7, and an original context of 12
FAMILIES = (
    *("Llama", "Qwen2", "Qwen3", "SmolLM3", "Mistral", "Ministral3", "Granite", "Olmo2", "Olmo3", "Phi3", "Gemma2"),
    *("Gemma3", "Gemma3 that sees", "Mistral3 that sees", "Apertus", "Exaone4"),
)


def prepared(folder, family, **settings):
    """A folder with a tiny model of a family, and its rows, as tests/engine/kills.py takes it."""
    from tests.engine import peers  # brings transformers, for the slow tests alone

    peers.write(family, folder / "model")
    tiny.write_rows(folder / "rows.jsonl", id_rows(22))
    (folder / "settings.json").write_text(json.dumps(settings))
    return folder


def kills(folder, *jobs):
    """What came of each job (tests/engine/kills.py)."""
    command = [sys.executable, "-m", "tests.engine.kills", str(folder), *jobs]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=tiny.environment(), timeout=590)
    assert done.returncode == 0, done.stderr[-3000:]
    return [json.loads(line) for line in done.stdout.splitlines()]


def assert_close(found, expected, atol=1e-5):
    """Every number of every line, within atol or that share of it, but for times and what is divided among ranks."""
    assert [line["step"] for line in found] == [line["step"] for line in expected] and len(found) == 6
    for a, b in zip(found, expected, strict=True):
        names = [name for name in b if not name.startswith("perf/")]
        if b["step"] == 1:
            names.remove("rewards/accuracies")  # of rewards that are 0, and only rounding is above or below
        assert {"loss", "grad_norm", "rewards/chosen"} <= {*names}
        for name in names:
            assert abs(a[name] - b[name]) <= atol * max(1, abs(b[name])), (b["step"], name, a[name], b[name])


def assert_same_logps(folder, family):
    """transformers reads the folder, with nothing missing or unexpected, and gives the log-probs that we do."""
    from tests.engine import peers

    peer, examples = peers.read(folder, family), tiny.random_examples(LENGTHS)
    expected = [peers.logps(peer, *map(torch.tensor, (e.prompt, e.responses[0]))) for e in examples]
    model = weights.load(folder, torch.float64)
    with torch.no_grad():
        found = [float(FusedForward(model)(pack([e]), with_reference=False)[0]) for e in examples]
    assert found == pytest.approx(expected, rel=5e-6)


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
def test_a_family_trains_on_one_rank_and_two_and_goes_on_where_it_was_killed(family, tmp_path):
    prepared(tmp_path, family)
    for found in kills(tmp_path, "optimizer:5", "2/backward:4:KILL:1", "stop:3"):
        assert found["same"] and not found["damaged"] and not found["left"], found
        assert found["job"].startswith("stop") or -signal.SIGKILL in found["ended"], found
    one, two = tmp_path / "whole-1", tmp_path / "whole-2"
    assert_close(lines(two), lines(one))
    before, after = weights.load(tmp_path / "model"), weights.load(one / "epoch-02")
    same = [name for (name, a), b in zip(before.named_parameters(), after.parameters(), strict=True) if a.equal(b)]
    assert same == []  # all of them have trained
    for rank_one, rank_two in zip(after.parameters(), weights.load(two / "epoch-02").parameters(), strict=True):
        torch.testing.assert_close(rank_two, rank_one, rtol=0, atol=2e-4)  # RMSProp's first steps are signs times 1e-3
    assert_same_logps(one / "epoch-02", family)


@pytest.mark.slow
@pytest.mark.parametrize("family", ["Gemma3 that sees", "Mistral3 that sees"])
def test_the_names_that_a_wrapper_had_are_written_back(family, tmp_path):
    from tests.engine import peers

    for is_hubs in (True, False):
        folder = peers.write(family, tmp_path / f"read-{is_hubs}", save_original_format=is_hubs)
        out = tmp_path / f"written-{is_hubs}"
        weights.save(weights.load(folder), out)
        expected, found = folders.stored(folder), folders.stored(out)
        assert found.keys() == expected.keys() and ("model.language_model.norm.weight" in found) != is_hubs
        assert all(torch.equal(found[name], expected[name]) for name in found)
        assert_same_logps(out, family)


@pytest.mark.slow
@pytest.mark.parametrize("family", ["Qwen2", "Olmo3", "Gemma3", "Apertus"])
def test_split_masters_are_gone_on_with_bit_for_bit(family, tmp_path):
    """Biases; norms of queries and keys; 1 + w; numbers alone."""
    prepared(tmp_path, family, master_weights="split", dtype="bfloat16", save_dtype="float32", lr=1e-3)
    for found in kills(tmp_path, "optimizer:5"):
        assert found["same"], found
    whole = prepared_alone(tmp_path, family)
    for name in ("loss", "rewards/margins"):  # bfloat16 computes with 8 bits
        a, b = (lines(run)[-1][name] for run in (tmp_path / "whole-1", whole))
        assert abs(a - b) < 0.05 * max(1, abs(b)), (name, a, b)
    assert_same_logps(tmp_path / "whole-1/epoch-02", family)


def prepared_alone(folder, family):
    """The same run with whole masters in float32."""
    settings = {"model": str(folder / "model"), "data": str(folder / "rows.jsonl"), "loss": "apo_zero", "lr": 1e-3}
    settings |= {"batch_size": 8, "epochs": 2, "out": str(folder / "plain")}
    return train.run(TrainConfig(**settings)).out


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # of the compiler's own
@pytest.mark.parametrize(("changes", "atol"), [({"recompute_blocks": 3}, 0.0), ({"compile": "yes"}, 5e-4)])
@pytest.mark.parametrize("family", ["Qwen3", "Gemma2", "Apertus", "Ministral3"])
def test_how_blocks_are_computed_changes_nothing(family, changes, atol, tmp_path):
    """The compiler adds in another order, and RMSProp moves every number by 10 lr in its first step, whatever the size
    of its gradient: log-ratios of the second step differ by 8e-5.
    """
    prepared(tmp_path, family)
    plain = prepared_alone(tmp_path, family)
    settings = {"model": str(tmp_path / "model"), "data": str(tmp_path / "rows.jsonl"), "loss": "apo_zero", "lr": 1e-3}
    settings |= {"batch_size": 8, "epochs": 2, "out": str(tmp_path / "other")}
    other = train.run(TrainConfig(**settings | changes)).out
    if atol:
        assert_close(lines(other), lines(plain), atol)
    else:
        assert outcome(other) == outcome(plain)


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["fused", "precompute"])
def test_a_reference_of_another_family_is_followed(mode, tmp_path):
    """rewards = beta (policy - reference): a Qwen 3 against a Llama with the same vocabulary, each by transformers."""
    from tests.engine import peers

    folder = prepared(tmp_path, "Qwen3")
    peers.write("Llama", tmp_path / "other")
    settings = {"model": str(folder / "model"), "data": str(folder / "rows.jsonl"), "loss": "apo_zero", "beta": 0.25}
    settings |= {"reference_model": str(tmp_path / "other"), "reference": mode, "batch_size": 22, "max_steps": 1}
    found = lines(train.run(TrainConfig(**settings, lr=1e-4, out=str(tmp_path / "run"))).out)
    policy, reference = peers.read(folder / "model", "Qwen3"), peers.read(tmp_path / "other", "Llama")
    for side in ("chosen", "rejected"):
        pairs = [tuple(torch.tensor(row[f"{name}_ids"]) for name in ("prompt", side)) for row in id_rows(22)]
        ratios = [peers.logps(policy, *pair) - peers.logps(reference, *pair) for pair in pairs]
        assert found[0][f"rewards/{side}"] == pytest.approx(0.25 * sum(ratios) / 22, rel=1e-5)


@pytest.mark.slow
def test_the_command_trains_a_family_on_two_processes_and_goes_on(tmp_path):
    prepared(tmp_path, "Phi3")
    flags = ["--model", "model", "--data", "rows.jsonl", "--lr", "1e-4", "--batch-size", "8", "--epochs", "2"]
    flags += ["--loss", "apo_zero", "--out"]
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", "-m"]
    two, one = [*launch, "engine.train", *flags, "two"], [sys.executable, "-m", "engine.train", *flags, "one"]
    for command in ([*two, "--stop-after", "2"], [*two, "--resume"], one):
        done = subprocess.run(
            command, capture_output=True, text=True, cwd=tmp_path, env=tiny.environment(), timeout=300
        )
        assert done.returncode == 0, done.stderr[-2000:]
    assert_close(lines(tmp_path / "two"), lines(tmp_path / "one"))
    assert_same_logps(tmp_path / "two/epoch-02", "Phi3")


BIASED = folders.PHI3 | {"architectures": ["LlamaForCausalLM"], "model_type": "llama", "attention_bias": True}


@pytest.mark.parametrize("raw", [folders.APERTUS, folders.GEMMA3, folders.PHI3, BIASED], ids=lambda x: x["model_type"])
def test_norms_biases_and_single_numbers_do_not_decay_and_are_no_matrices(raw):
    """AdamW: what has one dimension has no decay. Muon: the blocks' matrices alone are its own."""
    with torch.device("meta"):
        named = dict(Transformer(read_config(raw, "config.json")).named_parameters())
    names = {p: name for name, p in named.items()}
    plain = [name for name in names.values() if ".norm" in name or "norm." in name or "bias" in name or "alpha" in name]
    assert plain and all(named[name].ndim == 1 for name in plain) and len(plain) > 4
    for optimizer in ("adamw", "muon"):
        found = divide(named.items(), None, OptimizerConfig(name=optimizer, lr=1e-3, weight_decay=0.1))
        decay = {names[p]: group.get("weight_decay", 0.1) for group in found for p in group["params"]}
        assert decay.keys() == named.keys()
        assert {name for name, value in decay.items() if not value} == {*plain}
        matrices = {names[p] for group in found if group["is_matrix"] for p in group["params"]}
        inside = {name for name in named if name.startswith("blocks.") and name not in plain}
        assert matrices == (inside if optimizer == "muon" else set())
