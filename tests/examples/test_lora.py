"""LoRA on the real model: what the demo, the search and the page work out, and the whole search on a tiny model."""

import json
import shutil
import subprocess

import pytest
import torch

from data.rows import Example
from engine import weights
from engine.model import Transformer, adapters
from examples.miniature import tune
from examples.real import demo, lora_bases, lora_demo, lora_memory, lora_page, lora_search, task
from system import InputError, RunError
from system.errors import Stopped
from tests import tiny
from tests.pages import ROOT

pytestmark = pytest.mark.slow  # the fast set has tests/engine/test_adapters.py

N = 100


def record(way, lr, seed, group, kept, sound, *, seconds=6.0, peak=10**9, ordinary=-0.1):
    """A run's, of 100 tasks; seconds: of each of ten steps."""
    shares = {"kept": [kept, N], "sound": [sound, N], "broken": [N - sound, N]}
    return {
        "model": "m", "loss": "apo_zero", "n_pairs": 250, "epochs": 2, "batch_size": 16, "beta": 0.1, "way": way,
        "lr": lr, "seed": seed, "group": group, "scores": {"sampled": shares, "greedy": shares}, "lora_rank": 16,
        "ordinary": [ordinary, 0.01], "seconds": [seconds] * 10, "peak_bytes": peak, "micro_tokens": 1024,
        "machine": "2 cores", "torch": "2",
    }  # fmt: skip


def searched():
    found = [record("base", None, None, group, 20, 18) for group in ("development", "test")]
    for way, by_rate in {"all": {3e-6: 30, 1e-5: 60, 3e-5: 60}, "lora": {3e-5: 40, 1e-4: 70, 3e-4: 80}}.items():
        found += [record(way, rate, 0, "development", 90, sound) for rate, sound in by_rate.items()]
    found += [record("all", 1e-5, seed, "test", 60 + seed, 55) for seed in (1, 2, 3)]
    found += [record("lora", 3e-4, seed, "test", 70 + 2 * seed, 66, seconds=4.2, peak=6 * 10**8) for seed in (1, 2, 3)]
    return found


def test_the_smallest_rate_within_a_standard_error_of_the_best_is_taken():
    """Of 100 answers 80 are sound at the top: the standard error is 4."""
    for n_below, expected in ((76, 1e-4), (75, 3e-4)):
        by_rate = {
            lr: {"scores": {"sampled": {"sound": [n, 100]}}} for lr, n in ((1e-4, n_below), (3e-4, 79), (1e-3, 80))
        }
        assert lora_page.top_rate(by_rate) == 1e-3 and lora_page.best_rate(by_rate) == expected


def test_the_best_rate_keeps_most_rules_without_repeating_and_is_the_smaller_of_equals():
    by_rate = {r["lr"]: r for r in searched() if r["way"] == "all" and r["group"] == "development"}
    assert lora_page.best_rate(by_rate) == 1e-5
    assert lora_page.best_rate(dict(reversed(by_rate.items()))) == 1e-5


def test_the_comparison_is_of_the_tests_topics_over_seeds():
    compared, rates = lora_page.search_tables(searched())
    assert [row[0] for row in compared.rows] == ["before", "all parameters, 1e-05", "LoRA, 0.0003"]
    before, whole, lora = compared.rows
    assert before[1:] == ("", "20.0", "20.0", "18.0", "", "", "")
    assert whole[1:] == ("3", "62.0 ± 1.0", "62.0 ± 1.0", "55.0 ± 0.0", "-0.100 ± 0.000", "1.0 ± 0.0", "1.00 ± 0.00")
    assert lora[1:5] == ("3", "74.0 ± 2.0", "74.0 ± 2.0", "66.0 ± 0.0") and lora[6:] == ("0.7 ± 0.0", "0.60 ± 0.00")
    assert "seed by seed: +11.0, +12.0, +13.0 points, +12.0 ± 1.0." in compared.notes[0]
    assert len(lora_page.comparison([r for r in searched() if r["seed"] in (None, 1)]).notes) == 1  # one says nothing
    taken = [row[:2] for row in rates.rows if "taken" in row[1]]
    assert len(rates.rows) == 6 and taken == [("all parameters", "1e-05, taken"), ("LoRA", "0.0003, taken")]
    assert rates.rows[0][2].startswith("90.0 % (82.6 to ")  # Wilson, of 100


def demo_record():
    shares = {name: {"kept": [k, 270], "sound": [k, 270], "broken": [9, 270]} for name, k in (("b", 50), ("l", 180))}
    rounds = {
        "all": [{"seconds": [16.0, 14.0], "peak_bytes": 2 * 10**9, "expected_bytes": 2 * 10**9}] * 2,
        "lora": [
            {"seconds": [12.0, 10.0], "peak_bytes": 10**9, "expected_bytes": 11 * 10**8},
            {"seconds": [12.0, 9.0], "peak_bytes": 12 * 10**8, "expected_bytes": 11 * 10**8},
        ],
    }
    return {
        "model": "m", "loss": "apo_zero", "n_pairs": 250, **demo.TRAINING, **lora_demo.ADAPTER, "rounds": rounds,
        "micro_tokens": 1024, "n_timed": 48, "n_trained": 4_884_480, "n_parameters": 134_515_008,
        "by_operations": [1.33, 1.42], "ordinary": [-0.05, 0.01], "machine": "2 cores", "torch": "2",
        "scores": {way: {"sampled": shares[s], "greedy": shares[s]} for way, s in (("base", "b"), ("lora", "l"))},
    }  # fmt: skip


def test_ratios_are_of_runs_measured_one_after_the_other():
    found = lora_page.ratios(demo_record())
    assert found["first"] == pytest.approx([16 / 12] * 2) and found["later"] == pytest.approx([14 / 10, 14 / 9])
    assert found["memory"] == pytest.approx([0.5, 0.6])
    said = lora_page.demo_in_words(demo_record())
    assert "1.33 times the steps a second" in said and "1.48 times from epoch 2 on" in said
    assert "learning rate 0.0001" in said and "by the operations that each needs it would be 1.33 and 1.42" in said
    assert "0.55 of the memory (the plan says 0.55: 1.10 GB of 2.00)" in said
    assert "66.7 % (60.8 to 72.0) of the rules, the model before 18.5 % (" in said
    cells = {row[0]: row[2:] for row in lora_page.demo_table(demo_record()).rows}
    assert cells["steps a minute, from epoch 2"] == ("4.29", "6.33", "1.48 (1.40 to 1.56)")


def test_what_is_made_goes_between_its_marks_and_nothing_else_changes():
    page = "A\n<!-- one -->\nold\n<!-- end -->\nB\n<!-- two -->\n<!-- end -->\nC\n"
    made = lora_page.filled(page, {"one": r"new \1", "two": "x\n"})
    assert made == "A\n<!-- one -->\nnew \\1\n<!-- end -->\nB\n<!-- two -->\nx\n<!-- end -->\nC\n"
    assert lora_page.filled(made, {"one": r"new \1", "two": "x"}) == made
    with pytest.raises(InputError, match="<!-- three --> has to occur once"):
        lora_page.filled(page, {"three": ""})


@pytest.mark.slow
def test_the_page_is_what_records_and_plan_give():
    page = (lora_page.DOCS / "adapters.md").read_text(encoding="utf-8")
    assert page == lora_page.filled(page, lora_page.parts()), "run python -m examples.real.lora_page"
    page = (lora_page.DOCS / "lora.md").read_text(encoding="utf-8")
    assert page == lora_page.filled(page, {"brief": lora_page.in_brief()}), "run python -m examples.real.lora_page"


def test_the_comparison_is_said_in_a_sentence():
    said = lora_page.search_in_words(searched())
    assert (
        "3 seeds, each way at its best learning rate: an adapter of rank 16 (learning rate 0.0003) keeps 74.0" in said
    )
    assert "all parameters (learning rate 1e-05) keep 62.0 ± 1.0 % of the rules in 1.0 ± 0.0 minutes" in said
    assert "nats a token with the adapter, and by -0.100 ± 0.000 with all parameters" in said
    assert lora_page.search_in_words([r for r in searched() if r["way"] != "lora"]) == ""


@pytest.mark.parametrize("fits", [True, False])
def test_a_layout_in_words(fits):
    layout = {"fits": fits, "bytes": {"a": 15 * 10**9, "b": 4 * 10**9}, "pass_tokens": 3456, "recompute_blocks": 12}
    assert lora_memory.cell(layout) == ("19.0 GB: 3,456 tokens, 12 recomputed" if fits else "no")


def test_operations_are_three_products_of_what_trains_and_two_of_what_is_frozen():
    """One pair, prompt 5, responses 4 and 6: tokens of the forest, keys seen and predicting rows counted by hand."""
    shape = tiny.random_llama(vocab_size=101).config
    example = Example("x:1", torch.arange(5).numpy(), (torch.arange(4).numpy(), torch.arange(6).numpy()))
    n_tokens, n_rows = 5 + 3 + 5, 4 + 6
    seen = sum(range(1, 6)) + sum(range(6, 9)) + sum(range(6, 11))
    linear = 2 * n_tokens * shape.n_layers * shape.n_matrix_parameters
    attention = 4 * shape.n_layers * seen * shape.n_heads * shape.head_size
    head = 2 * n_rows * shape.hidden_size * shape.vocab_size
    n_trained = 1000
    whole = 3 * (linear + attention + head)
    adapter = 2 * (linear + head) + 3 * attention + 6 * n_tokens * n_trained
    reference = linear + attention + head
    found = lora_demo.by_operations(shape, [example], n_trained)
    assert found == pytest.approx([(whole + reference) / (adapter + reference), whole / adapter], rel=1e-6)


@pytest.mark.parametrize("kind", lora_bases.KINDS)
@pytest.mark.filterwarnings("ignore")  # of transformers' own
def test_a_quantised_base_is_measured_against_the_same_weights_held_whole(tmp_path, kind):
    """Log-probs and KL against transformers' logits of both models, each sequence alone."""
    from transformers import AutoModelForCausalLM

    plain = tiny.random_llama(vocab_size=101)
    weights.save(plain, tmp_path / "m", dtype=torch.float32)
    examples = tiny.random_examples([(7, 5, 4), (3, 6, 8)])
    found = lora_bases.measure(plain, tmp_path / "m", kind, examples)
    held = lora_bases.quantised(tmp_path / "m", kind)
    dense = Transformer(plain.config)
    dense.load_state_dict(plain.state_dict())
    with torch.no_grad():
        for name, layer in adapters.quantised_layers(held):
            dense.get_parameter(f"{name}.weight").copy_(layer.matrix())
    weights.save(dense, tmp_path / "dense", dtype=torch.float32)
    both = [AutoModelForCausalLM.from_pretrained(tmp_path / name, dtype=torch.float32) for name in ("m", "dense")]
    kl, change, n = 0.0, [], 0
    for e in examples:
        for response in e.responses:
            ids = torch.tensor([*e.prompt.tolist(), *response.tolist()])
            with torch.no_grad():
                p, q = (m(ids[None]).logits[0, len(e.prompt) - 1 : -1].double().log_softmax(-1) for m in both)
            targets = ids[len(e.prompt) :, None]
            change.append((q - p).gather(-1, targets).sum().item())
            kl, n = kl + (p.exp() * (p - q)).sum().item(), n + len(response)
    assert found["logps"] == pytest.approx(change, abs=1e-4)
    assert found["kl"] == pytest.approx(kl / n, rel=1e-3)
    assert 0.005 < found["matrix_error"] < 0.02 if kind == "int8" else 0.05 < found["matrix_error"] < 0.12


ANSWERS = ("It is good, and it is old. People like it.", "Well, it is made of wood. It is useful, too.")


@pytest.fixture
def small(tmp_path, monkeypatch):
    """A search on a tiny model and a few pairs: its arguments, and the folder of its records."""
    pairs = [
        {"prompt": t.prompt, "chosen": t.repair(a), "rejected": a}
        for t in task.tasks(task.TOPICS, 18, seed=0)
        for a in ANSWERS
        if not t.is_kept(a)
    ]
    texts = [text for row in pairs for text in row.values()]
    tiny.write_model(tmp_path / "m", texts)
    (tmp_path / "m/chat_template.jinja").write_text(tiny.TEMPLATE)
    monkeypatch.setattr(demo, "TRAINING", demo.TRAINING | {"batch_size": 8, "eval_pairs": 4})
    monkeypatch.setattr(demo, "N_TEST", 9)
    monkeypatch.setattr(lora_search, "N_DEVELOPMENT", 9)
    monkeypatch.setattr(lora_search, "SEEDS", (1,))
    monkeypatch.setattr(lora_search, "WAYS", {"all": {}, "lora": {"lora_rank": 4}})
    monkeypatch.setattr(lora_search, "START", {"all": (1e-5,), "lora": (1e-5,)})
    monkeypatch.setattr(tune, "LADDER", (1e-5,))
    monkeypatch.setattr(lora_search.measure, "MAX_ANSWER_TOKENS", 4)
    monkeypatch.setattr(lora_search.measure, "N_ORDINARY", 4)
    data = tiny.write_rows(tmp_path / "pairs.jsonl", pairs)
    out, records = tmp_path / "out", tmp_path / "records"
    return ["--out", str(out), "--records", str(records), "--model", str(tmp_path / "m"), "--data", str(data)], records


@pytest.mark.slow
def test_the_search_goes_on_where_records_end_and_trains_nothing_twice(small, capsys, tmp_path):
    asked, records = small
    with pytest.raises(Stopped, match="0 runs are done and others are left") as stopped:
        lora_search.main([*asked, "--minutes", "0.01"])
    assert stopped.value.code == lora_search.LEFT
    lora_search.main(asked)
    assert "Each at its best rate" in capsys.readouterr().out
    found = {path.stem: json.loads(path.read_text()) for path in records.glob("*.json")}
    assert {(r["way"], r["group"]) for r in found.values()} == {
        (way, group) for way in ("base", "all", "lora") for group in ("development", "test")
    }
    taken = {
        way: {r["lr"] for r in found.values() if (r["way"], r["group"]) == (way, "test")} for way in ("all", "lora")
    }
    assert all(len(rates) == 1 for rates in taken.values())
    assert not list((tmp_path / "out").glob("run-*/lora-search/*/"))[1:]  # answers alone are left
    for r in found.values():
        if r["way"] != "base":
            assert len(r["seconds"]) == 2 * r["per_epoch"] and r["peak_bytes"] > 0 and r["expected_bytes"] > 0
            assert set(r["scores"]) == ({"sampled"} if r["group"] == "development" else {"sampled", "greedy"})
    gone = next(records.glob("lora-*-seed-1.json"))
    gone.unlink()
    kept = {path: path.stat().st_mtime_ns for path in records.glob("*.json")}
    lora_search.main(asked)
    assert gone.exists() and {path: path.stat().st_mtime_ns for path in kept} == kept
    gone.write_text(json.dumps(json.loads(gone.read_text()) | {"n_pairs": 7}))
    with pytest.raises(InputError, match=r"seed-1.json: was measured with n_pairs 7, not \d+; remove it"):
        lora_search.main(asked)


@pytest.mark.slow
def test_the_demo_times_both_ways_in_turn_trains_and_keeps_a_record(small, capsys, tmp_path, monkeypatch):
    """A random model learns nothing in eight steps, which the demo says, when all else is there."""
    out = tmp_path / "out"
    monkeypatch.setattr(lora_demo.checkpoint, "fetch", lambda folder: tmp_path / "m")
    monkeypatch.setattr(
        demo, "make_pairs", lambda base, root, name: shutil.copy(tmp_path / "pairs.jsonl", root / f"{name}.jsonl")
    )
    monkeypatch.setattr(lora_demo, "ADAPTER", {"lora_rank": 4, "lr": 1e-4})
    monkeypatch.setattr(lora_demo, "N_TIMED", 16)
    monkeypatch.setattr(lora_demo, "ROUNDS", 1)
    with pytest.raises(RunError, match="did not improve on the base"):
        lora_demo.main(["--out", str(out)])
    (path,) = out.glob("run-*/lora.json")
    record = json.loads(path.read_text())
    layers = [m for m in weights.load(tmp_path / "m").blocks.modules() if isinstance(m, torch.nn.Linear)]
    assert record["n_trained"] == 4 * sum(m.in_features + m.out_features for m in layers)
    assert all(ratio > 1 for ratio in record["by_operations"])
    assert [len(rounds) for rounds in record["rounds"].values()] == [1, 1]
    assert all(min(*r["seconds"], r["peak_bytes"], r["expected_bytes"]) > 0 for (r,) in record["rounds"].values())
    assert "Real model, adapter of rank 4" in capsys.readouterr().out
    assert (out / path.parent.name / "lora/epoch-02/adapter_config.json").exists()


def test_the_door_says_that_lora_goes_with_the_real_model():
    done = subprocess.run([ROOT / "launch.sh", "demo", "--lora"], capture_output=True, text=True, check=False)
    assert done.returncode == 2 and "error: --lora trains an adapter of the real model; add --real" in done.stderr
