"""--reference-model: a reference that is another model than the start, in whole runs and number by number."""

import hashlib
import json
import shutil
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from data.forest import pack
from data.rows.examples import Example
from engine import plan, score, train, weights
from engine.config import TrainConfig
from engine.inputs import TrainingInputs
from engine.layout import plan_in
from engine.model import FusedForward, raw_config, read_config
from engine.planning import MemoryInputs, cost, memory
from engine.step import fingerprint, reference_passes
from losses import Result, TokenResponses, loss
from system import InputError
from system.errors import Stopped
from tests import tiny
from tests.engine.kills import outcome
from tests.engine.padded import padded_logps
from tests.metrics import lines, values_of
from tests.proofs import Watch, counted
from tests.rows import id_rows

SHORT = {"shape": "llama3.1", "num_hidden_layers": 2, "hidden_size": 24, "intermediate_size": 40,
         "num_attention_heads": 2, "num_key_value_heads": 1, "rms_norm_eps": 1e-3}  # fmt: skip
LONG = {"shape": "llama3.2", "num_hidden_layers": 5, "hidden_size": 48, "intermediate_size": 72,
        "num_attention_heads": 6, "num_key_value_heads": 3}  # fmt: skip


@pytest.fixture
def job(tmp_path):
    """A function that runs a training of 22 pairs, and gives its result and lines; what it did is in its `watch`."""
    model = tiny.write_model(tmp_path / "model", vocab_size=101)
    rows = tiny.write_rows(tmp_path / "rows.jsonl", id_rows(22))
    count = iter(range(100))

    def go(**changes):
        settings = {"model": str(model), "data": str(rows), "out": str(tmp_path / f"run{next(count)}"), "lr": 1e-4}
        settings |= {"batch_size": 8, "epochs": 2, "loss": "dpo"}
        go.watch = Watch()
        result = train.run(TrainConfig(**(settings | changes)), go.watch.hooks)
        return result, lines(result.out)

    go.model, go.rows, go.tmp = model, rows, tmp_path
    go.short = str(tiny.write_model(tmp_path / "short", vocab_size=101, seed=1, **SHORT))
    go.long = str(tiny.write_model(tmp_path / "long", vocab_size=101, seed=2, **LONG))
    return go


def assert_close(a, b, atol=1e-5):
    """The same lines, every number within atol, or within that share where it is above 1."""
    assert [x["step"] for x in a] == [x["step"] for x in b] and a
    for x, y in zip(map(values_of, a), map(values_of, b), strict=True):
        assert x.keys() == y.keys()
        for name in x:
            assert abs(x[name] - y[name]) <= atol * max(1, abs(y[name])), (x["step"], name, x[name], y[name])


def scored(folder, job, name="rows.jsonl"):
    """engine.score's log-probs of the rows under the model in a folder, [n, 2] float64."""
    out = job.tmp / "scored.jsonl"
    out.unlink(missing_ok=True)
    score.main(["--model", str(folder), "--data", str(job.tmp / name), "--out", str(out)])
    found = [json.loads(line) for line in out.read_text().splitlines()]
    return torch.tensor([[x["logps/chosen"], x["logps/rejected"]] for x in found], dtype=torch.float64)


# --- one walk over two models that differ --------------------------------------------------------------------------


@pytest.mark.parametrize("other", [SHORT, LONG], ids=["fewer blocks", "more blocks"])
def test_each_model_gives_its_own_log_probs_whatever_the_other_is(other):
    policy, reference = tiny.random_llama(dtype=torch.float64), tiny.random_llama(seed=1, dtype=torch.float64, **other)
    examples = tiny.random_examples([(5, 4, 6), (1, 1, 1), (12, 20, 11), (3, 1, 5)])
    found = FusedForward(policy, reference)(pack(examples), with_reference=True)
    ours, theirs = padded_logps(policy, examples), padded_logps(reference, examples)
    assert (ours - theirs).abs().min() > 1e-3
    torch.testing.assert_close(found.logps, ours, rtol=0, atol=1e-10)
    torch.testing.assert_close(found.ref_logps, theirs, rtol=0, atol=1e-10)
    grown = torch.autograd.grad(found.logps.sum(), list(policy.parameters()))
    alone = torch.autograd.grad(ours.sum(), list(policy.parameters()))
    for a, b in zip(grown, alone, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-9)


def test_a_divergence_is_of_both_models_heads(registered, job):
    """Of one step, in float64 by hand: the mean over a response's tokens of KL(reference || policy)."""

    @loss("kl_alone", data="pairs", level="token", reference=True, needs=("kl_ref_policy",))
    def kl_alone(chosen: TokenResponses, rejected: TokenResponses) -> Result:
        zero = torch.zeros_like(chosen.lengths, dtype=torch.float64)
        return Result(chosen.per_sequence(chosen.kl_ref_policy), zero, zero)

    _, found = job(loss="kl_alone", reference_model=job.long, epochs=1, max_steps=1, shuffle=False)
    models = [weights.load(folder, torch.float64) for folder in (job.model, job.long)]
    divergences = []
    for row in id_rows(22)[:8]:
        ids = torch.tensor(row["prompt_ids"] + row["chosen_ids"])
        log_p, log_q = (_log_probs(model, ids)[len(row["prompt_ids"]) - 1 : -1] for model in models)
        divergences.append((log_q.exp() * (log_q - log_p)).sum())
    assert found[0]["loss"] == pytest.approx(torch.stack(divergences).mean().item(), abs=1e-4)
    assert divergences[0] > 1


def _log_probs(model, ids):
    """Of one conversation [T, V], by the plain formula."""
    T = len(ids)
    causal = torch.ones(T, T, dtype=torch.bool).tril()

    def attend(q, k, v, _):
        q, k, v = (x.transpose(0, 1) for x in (q, k, v))
        k, v = (x.repeat_interleave(len(q) // len(k), dim=0) for x in (k, v))
        return torch.nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=causal).transpose(0, 1)

    with torch.no_grad():
        x = model.embed(ids)
        for block in model.blocks:
            x = block(x, tiny.turned(model, T, torch.float64), attend)
        return torch.log_softmax(model.norm(x) @ model.head.matrix(model.tied).T, dim=-1)


# --- whole runs ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["fused", "precompute"])
def test_naming_the_start_changes_no_bit_and_neither_does_a_copy_of_it(job, mode, monkeypatch):
    settings = {"reference": mode, "eval_pairs": 4, "lr": 1e-3}
    alone = counted(monkeypatch, reference_passes, "_alone")
    plain, found = job(**settings)
    same, _ = job(**settings, reference_model=str(job.model))
    assert not alone  # the start is the reference, as it is where none is named
    shutil.copytree(job.model, job.tmp / "copy")
    copied, _ = job(**settings, reference_model=str(job.tmp / "copy"))
    assert len(alone) == (mode == "precompute")  # another folder is read for itself
    assert outcome(plain.out) == outcome(same.out) == outcome(copied.out)
    assert found[0]["rewards/chosen"] == 0.0 != found[-1]["rewards/chosen"]
    tables = [load_file(run.out / "reference.safetensors")["ref_logps"] for run in (plain, same, copied)]
    assert torch.equal(tables[0], tables[1]) and torch.equal(tables[0], tables[2])


def test_the_card_of_a_checkpoint_names_it(job):
    result, _ = job(reference_model=job.long, max_steps=1)
    known = json.loads((result.out / "state/identity.json").read_text())["reference weights"]
    card = (result.checkpoints[-1] / "README.md").read_text()
    assert f"- reference: `long`, digest of its files {known}\n" in card and "--reference-model long" in card


@pytest.mark.parametrize("other", ["short", "long"])
def test_the_table_is_what_engine_score_gives_of_that_model_fused_and_precomputed(job, other):
    folder = getattr(job, other)
    fused, found = job(reference_model=folder, reference="fused")
    assert [one.step for one in job.watch.of_reference] == [1, 2, 3]
    first, precomputed = job(reference_model=folder, reference="precompute")
    assert not job.watch.of_reference and not job.watch.before  # never beside the policy
    expected, start = scored(folder, job), scored(job.model, job)
    assert (expected - start).abs().min() > 1e-2
    for run in (fused, first):
        table = load_file(run.out / "reference.safetensors")["ref_logps"]
        torch.testing.assert_close(table, expected, rtol=0, atol=1e-4)  # float32 sums of up to 13 tokens, of about 60
    assert_close(found, precomputed)
    assert found[0]["rewards/chosen"] != 0.0


def test_a_run_is_the_one_whose_table_was_computed_by_hand(job):
    """The table of the start's own weights is replaced by one of float64 log-probs under another model."""
    start, _ = job(epochs=1)
    path = start.out / "reference.safetensors"
    examples = [
        Example("", _ids(r["prompt_ids"]), (_ids(r["chosen_ids"]), _ids(r["rejected_ids"]))) for r in id_rows(22)
    ]
    with torch.no_grad():
        by_hand = padded_logps(weights.load(job.long, torch.float64), examples).view(22, 2)
    made_of, digest = fingerprint(job.model, examples, torch.float32), hashlib.sha256(by_hand.numpy().tobytes())
    save_file({"ref_logps": by_hand}, path, {"fingerprint": made_of, "sha256": digest.hexdigest()})
    _, expected = job(reference_cache=str(path))
    assert not job.watch.of_reference
    for mode in ("fused", "precompute"):
        _, found = job(reference_model=job.long, reference=mode)
        assert_close(found, expected, atol=1e-4)
    _, without = job()
    assert abs(expected[0]["loss"] - without[0]["loss"]) > 0.01


def _ids(values):
    return np.array(values, dtype=np.int32)


@pytest.mark.parametrize("mode", ["fused", "precompute"])
def test_held_out_rows_are_measured_against_that_model(job, mode):
    rows = id_rows(30)
    tiny.write_rows(job.tmp / "first.jsonl", rows[:22])
    held = tiny.write_rows(job.tmp / "held.jsonl", rows[22:])
    result, found = job(data=str(job.tmp / "first.jsonl"), eval_data=str(held), reference_model=job.short,
                        reference=mode, keep_checkpoints=None)  # fmt: skip
    reference = scored(job.short, job, "held.jsonl")
    for epoch, line in zip(result.checkpoints, [x for x in found if "eval_logps/chosen" in x], strict=True):
        policy = scored(epoch, job, "held.jsonl")
        ratios = 0.1 * (policy - reference)
        assert line["eval_rewards/chosen"] == pytest.approx(ratios[:, 0].mean().item(), abs=1e-4)
        assert line["eval_rewards/margins"] == pytest.approx((ratios[:, 0] - ratios[:, 1]).mean().item(), abs=1e-4)


@pytest.mark.usefixtures("registered")
@pytest.mark.parametrize("mode", ["fused", "precompute"])
def test_a_table_of_tokens_and_entropies_is_that_models(job, mode):
    @loss("seeing", data="pairs", level="token", reference=True, needs=("ref_entropy",))
    def seeing(chosen: TokenResponses, rejected: TokenResponses) -> Result:
        r_w, r_l = (c.per_sequence(c.logratios * c.ref_entropy) for c in (chosen, rejected))
        return Result(-torch.nn.functional.logsigmoid(r_w - r_l), r_w.detach(), r_l.detach())

    result, _ = job(loss="seeing", reference_model=job.long, reference=mode, eval_pairs=2)
    table, model, expected = load_file(result.out / "reference.safetensors"), weights.load(job.long, torch.float64), []
    held = set(np.random.default_rng((0, 0)).choice(22, 2, replace=False).tolist())
    for row in (r for i, r in enumerate(id_rows(22)) if i not in held):
        for name in ("chosen_ids", "rejected_ids"):
            ids = torch.tensor(row["prompt_ids"] + row[name])
            log_q = _log_probs(model, ids)[len(row["prompt_ids"]) - 1 : -1]
            expected.append(-(log_q.exp() * log_q).sum(dim=1))
    torch.testing.assert_close(table["ref_entropy"], torch.cat(expected), rtol=0, atol=1e-4)


def test_kto_walks_it_in_every_step(job):
    data = str(tiny.write_rows(job.tmp / "labelled.jsonl", id_rows(22, form="unpaired")))
    _, found = job(loss="kto", data=data, reference_model=job.short)
    assert len(found) == 6  # two epochs: in the first for the rows' own sequences, and always for mismatched ones
    assert sorted(one.step for one in job.watch.of_reference) == [1, 1, 2, 2, 3, 3, 4, 5, 6]
    assert found[0]["rewards/chosen"] != 0.0


# --- the table, shared ---------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_table_is_found_by_the_reference_and_not_by_the_policy(job):
    shared = str(job.tmp / "shared")
    job(reference_model=job.short, reference_cache=shared)
    assert job.watch.of_reference
    job(reference_cache=shared)
    assert job.watch.of_reference  # another reference
    job(reference_model=job.long, reference_cache=shared)
    assert job.watch.of_reference
    assert len(list((job.tmp / "shared").iterdir())) == 3
    _, alike = job(model=job.long, reference_model=job.short)
    _, taken = job(model=job.long, reference_model=job.short, reference_cache=shared)
    assert not job.watch.of_reference  # of another policy, the same table
    assert_close(alike, taken)
    _, own = job(model=job.short, reference_cache=shared)
    assert not job.watch.of_reference and own[0]["rewards/chosen"] == pytest.approx(0.0, abs=1e-5)


# --- gone on with --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["fused", "precompute", pytest.param("moving", marks=pytest.mark.slow)])
def test_a_run_that_stops_after_every_step_is_the_same_run(job, kind):
    settings = {"reference_model": job.short, "eval_pairs": 4, "epochs": 3}
    settings |= {"reference": kind} if kind != "moving" else {}
    if kind == "moving":
        settings |= {"reference_update": "soft", "reference_update_steps": 2}
        settings["reference_model"] = str(tiny.write_model(job.tmp / "alike", vocab_size=101, seed=3))
    whole, _ = job(**settings)
    out = str(job.tmp / "stopped")
    for step in (1, 2, 3, 4, 5, 7, None):
        job(**settings, out=out, resume=True, stop_after=step)
    assert len(lines(out)) == 9 and outcome(whole.out) == outcome(job.tmp / "stopped")


def test_another_reference_is_another_run_and_a_copy_of_it_is_the_same_one(job):
    settings = {"out": str(job.tmp / "run"), "resume": True}
    job(**settings, reference_model=job.short, stop_after=2)
    shutil.copytree(job.short, job.tmp / "elsewhere")
    job(**settings, reference_model=str(job.tmp / "elsewhere"), stop_after=3)
    assert job.watch.steps == [3]
    with pytest.raises(InputError, match=r"reference weights: [0-9a-f]{16} -> [0-9a-f]{16}\)"):
        job(**settings, reference_model=job.long)
    with pytest.raises(InputError, match=r"reference weights: [0-9a-f]{16} -> None"):
        job(**settings)


def test_a_signal_is_heard_while_the_other_model_is_asked(job, monkeypatch):
    fill = reference_passes.compute_batch
    calls = []

    def slow(*given, **named):
        calls.append(1)
        if len(calls) == 2:
            signal.raise_signal(signal.SIGTERM)
        return fill(*given, **named)

    monkeypatch.setattr(reference_passes, "compute_batch", slow)
    settings = {"reference_model": job.short, "reference": "precompute", "out": str(job.tmp / "stopped")}
    with pytest.raises(Stopped, match=r"stopped before step 1; start it again with --resume"):
        job(**settings)
    monkeypatch.setattr(reference_passes, "compute_batch", fill)
    _, found = job(**settings, resume=True)
    assert len(calls) == 2
    assert_close(found, job(reference_model=job.short, reference="precompute")[1])


# --- two ranks -----------------------------------------------------------------------------------------------------

JOBS = """
import json, sys
from engine import train
from engine.config import TrainConfig
for job in json.load(open(sys.argv[1])):
    train.run(TrainConfig(**job | {"out": f"{job['out']}-{sys.argv[2]}"}))
"""


@pytest.mark.slow
def test_two_ranks_equal_one_fused_and_precomputed_and_moving(job):
    plain = {"model": str(job.model), "data": str(job.rows), "lr": 1e-4, "batch_size": 4, "epochs": 1, "loss": "dpo"}
    plain |= {"eval_pairs": 3, "micro_tokens": 60}
    alike = str(tiny.write_model(job.tmp / "alike", vocab_size=101, seed=3))
    jobs = {
        "short": {"reference_model": job.short, "reference": "fused"},
        "long": {"reference_model": job.long, "reference": "fused"},
        "before": {"reference_model": job.long, "reference": "precompute"},
        "bfloat16": {"reference_model": job.short, "reference": "precompute", "dtype": "bfloat16"},
        "bfloat16 fused": {"reference_model": job.short, "reference": "fused", "dtype": "bfloat16"},
        "moving": {"reference_model": alike, "reference_update": "soft", "reference_update_steps": 2},
    }
    (job.tmp / "jobs.json").write_text(
        json.dumps([plain | more | {"out": str(job.tmp / name)} for name, more in jobs.items()])
    )
    (job.tmp / "jobs.py").write_text(JOBS)
    for n in (1, 2):
        launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(n)]
        command = [
            *(launch if n > 1 else [sys.executable]),
            str(job.tmp / "jobs.py"),
            str(job.tmp / "jobs.json"),
            str(n),
        ]
        done = subprocess.run(command, capture_output=True, text=True, env=tiny.environment(), timeout=400, check=False)
        assert done.returncode == 0, done.stderr[-3000:]
    for name in jobs:
        one, two = (lines(job.tmp / f"{name}-{n}") for n in (1, 2))
        assert len(one) == 5
        assert_close([_measured(x) for x in one], [_measured(x) for x in two], 0.05 if "bf" in name else 1e-4)
    bf16, fused = (
        load_file(job.tmp / f"{name}-2" / "reference.safetensors") for name in ("bfloat16", "bfloat16 fused")
    )
    assert torch.equal(bf16["ref_logps"], fused["ref_logps"])


def _measured(line):
    names = ("rewards/chosen", "rewards/rejected", "logps/chosen", "logps/rejected")
    return {name: x for name, x in line.items() if name == "step" or name.removeprefix("eval_") in names}


# --- what it takes -------------------------------------------------------------------------------------------------


def test_before_the_policy_is_read_the_other_model_is_gone(job, monkeypatch):
    there = []
    build = reference_passes.weights.build

    def kept(folder, *dtype):
        there.append(build(folder, *dtype))
        return there[-1]

    monkeypatch.setattr(reference_passes.weights, "build", kept)
    plain = train.build_models

    def checked(*given):
        (other,) = [m for m in there if m.config.n_layers == 5 and not m.embed.weight.is_meta]
        assert sum(p.untyped_storage().size() for p in other.parameters()) == 0
        assert all(p.is_meta for p in given[0].policy.parameters())
        return plain(*given)

    monkeypatch.setattr(train, "build_models", checked)
    job(reference_model=job.long, reference="precompute", eval_pairs=2)
    assert there


def planned(job, other, **changes):
    config = TrainConfig(
        model=str(job.model), data=str(job.rows), out=str(job.tmp / "planned"), loss="dpo", reference_model=other,
        **changes,
    )  # fmt: skip
    return plan_in(TrainingInputs(config), config, "cpu", torch.float32, 10**12)


@pytest.mark.parametrize("mode", ["fused", "precompute"])
def test_the_plan_counts_the_references_own_weights_and_operations(job, mode):
    own, other = (planned(job, folder, reference=mode) for folder in (None, job.long))
    theirs = weights.build(Path(job.long)).config
    a, b = own.memory, other.memory
    assert b.other_reference.n_parameters == theirs.n_parameters > a.shape.n_parameters
    assert memory._staying(b)["reference"] == (4 * theirs.n_parameters if mode == "fused" else 0)
    found, flops = (cost.run_flops(p.memory, p.statistics, 18, has_reference=True) for p in (own, other))
    one, two = (cost.forward_of_example(shape, own.statistics) for shape in (a.shape, theirs))
    assert flops - found == pytest.approx(22 * (two - one), rel=1e-9)
    assert memory.total(replace(b, other_reference=None)) == memory.total(a)


def test_a_reference_that_is_much_larger_decides_what_a_run_needs_before_its_first_step():
    eight, seventy = (read_config(raw_config(f"llama3-{n}b"), "") for n in (8, 70))
    s = MemoryInputs(shape=eight, device="cuda", dtype=torch.bfloat16, n_shards=8)
    alone, beside = replace(s, other_reference=seventy), replace(s, other_reference=seventy, holds_reference=True)
    one = replace(alone, n_shards=1)
    assert "weights" not in memory.needs(one) and memory.needs(one)["reference"] == 2 * seventy.n_parameters
    assert memory.total(one) > 2 * seventy.n_parameters > memory.total(replace(one, other_reference=None))
    assert memory.total(alone) >= memory.total(s)  # the larger of what the two take, one after the other
    assert memory.needs(beside)["reference"] == 2 * seventy.n_parameters // 8
    assert memory.total(beside) > memory.total(s) + 2 * seventy.n_parameters // 8


def test_the_command_plans_for_it(job, capsys):
    plain = ["--shape", "llama3-8b", "--gpus", "8", "--json"]
    plan.main(plain)
    plan.main([*plain, "--reference-model", str(job.model)])
    own, other = (json.loads(part) for part in capsys.readouterr().out.replace("}\n{", "}\n\x00{").split("\x00"))
    beside = (found["layouts"][0]["bytes"]["reference"] for found in (own, other))
    assert [next(beside), next(beside)] == [
        2 * n // 8 for n in (8_030_261_248, weights.build(job.model).config.n_parameters)
    ]
    assert other["chosen"]["flops"] < own["chosen"]["flops"]
    plan.main([*plain[:-1], "--reference-model", str(job.model)])
    assert "0.00 billion parameters in --reference-model\n" in capsys.readouterr().out
    with pytest.raises(InputError, match="--reference-model: simpo takes no reference"):
        plan.main([*plain, "--reference-model", str(job.model), "--loss", "simpo"])


def test_split_masters_have_it_beside_them_or_before(job):
    tables = []
    for mode in ("fused", "precompute"):
        result, found = job(reference_model=job.long, reference=mode, master_weights="split", eval_pairs=3)
        tables.append(load_file(result.out / "reference.safetensors")["ref_logps"])
        assert found[0]["rewards/chosen"] != 0.0
    assert torch.equal(*tables)
    held = set(np.random.default_rng((0, 0)).choice(22, 3, replace=False).tolist())
    expected = scored(job.long, job)[[i for i in range(22) if i not in held]]
    torch.testing.assert_close(tables[0], expected, rtol=0.02, atol=1.0)  # bf16


# --- what cannot be ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"reference_model": "no/such/thing"}, "no such file or folder"),
        ({"stages": 2}, "--reference-model: cannot be combined with --stages"),
        ({"loss": "simpo"}, "--reference-model: simpo takes no reference; leave it out, or add --reference fused"),
        ({"loss": "simpo", "reference": "none"}, "--reference-model: cannot be combined with --reference none; leave"),
        ({"reference": "none"}, "--reference none: dpo needs a reference"),
        (
            {"reference_update": "soft"},
            r"--reference-update soft: .*long is of another shape than --model \(hidden_size: 48 and 32\)",
        ),
    ],
)
def test_what_cannot_be_is_said_in_a_sentence(job, changes, said):
    with pytest.raises(InputError, match=said) as caught:
        job(**({"reference_model": job.long} | changes))
    assert "\n" not in str(caught.value)


def test_simpo_logs_its_rewards_against_it_where_that_is_asked_for(job):
    _, found = job(loss="simpo", reference="fused", reference_model=job.long, epochs=1)
    assert job.watch.of_reference and found


@pytest.mark.slow
def test_a_reference_that_follows_starts_at_the_model_named(job):
    alike = str(tiny.write_model(job.tmp / "alike", vocab_size=101, seed=3))
    settings = {"reference_model": alike, "epochs": 3, "shuffle": False}
    _, still = job(**settings)
    _, moved = job(**settings, reference_update="hard", reference_update_steps=2)
    assert_close([{k: v for k, v in x.items() if k != "reference/updates"} for x in moved[:2]], still[:2])
    assert abs(moved[2]["rewards/chosen"]) < 1e-9 < abs(still[2]["rewards/chosen"])


# --- one vocabulary ------------------------------------------------------------------------------------------------

TEXTS = ["the cat sat on the mat and looked at the dog", "a dog ran to the river and drank all of the water"]


def folders(tmp_path, *, n_theirs=400, change=None, tokenizers=(True, True)):
    """A model and a reference with tokenizers of one vocabulary but for what `change` does to the latter's file."""
    made = []
    for name, n, has in zip(("model", "other"), (400, n_theirs), tokenizers, strict=True):
        tiny.write_model(tmp_path / name, vocab_size=n, bos_token_id=395, eos_token_id=396)
        if has:
            tiny.write_tokenizer(tmp_path / name, TEXTS, 400)
        made.append(tmp_path / name)
    if change:
        path = tmp_path / "other/tokenizer.json"
        held = json.loads(path.read_text())
        change(held)
        path.write_text(json.dumps(held))
    return made


def inputs(tmp_path, rows=None, **more):
    rows = rows or [{"prompt": "the cat", "chosen": "sat on the mat", "rejected": "ran"}] * 2
    flags = {"model": str(tmp_path / "model"), "reference_model": str(tmp_path / "other"), "loss": "dpo"}
    data, out = str(tiny.write_rows(tmp_path / "rows.jsonl", rows)), str(tmp_path / "out")
    return TrainingInputs(TrainConfig(**flags | {"data": data, "out": out} | more))


def test_embeddings_may_differ_by_padding(tmp_path, capsys):
    folders(tmp_path, n_theirs=448)
    assert inputs(tmp_path).other.config.vocab_size == 448
    assert "tokenizer" not in capsys.readouterr().err


def swap(held):
    vocab = held["model"]["vocab"]
    a, b = (word for word, i in vocab.items() if i in (40, 41))
    vocab[a], vocab[b] = vocab[b], vocab[a]


def test_a_token_that_is_another_is_named_with_both_folders(tmp_path):
    folders(tmp_path, change=swap)
    vocab = {i: w for w, i in json.loads((tmp_path / "model/tokenizer.json").read_text())["model"]["vocab"].items()}
    said = f"{tmp_path}/other: token 40 is {vocab[41]!r}, and {vocab[40]!r} in {tmp_path}/model; "
    with pytest.raises(InputError) as fault:
        inputs(tmp_path)
    assert str(fault.value) == said + "--reference-model has to have the vocabulary of --model"


def lose_eot(held):
    held["added_tokens"] = [t for t in held["added_tokens"] if t["content"] != "<|eot_id|>"]


def test_a_token_that_it_lacks_is_a_fault_of_the_rows_that_hold_it(tmp_path):
    folders(tmp_path, change=lose_eot)
    with pytest.raises(
        InputError, match=r"rows\.jsonl:1: holds token \d+ \(<\|eot_id\|>\), which .*other does not have"
    ):
        inputs(tmp_path)
    ids = [{"prompt_ids": [5, 6], "chosen_ids": [7, 8], "rejected_ids": [9]}] * 2
    assert list(inputs(tmp_path, ids).other.lacks.values()) == ["<|eot_id|>"]


@pytest.mark.parametrize("tokenizers", [(True, False), (False, True), (False, False)])
def test_without_a_tokenizer_sizes_are_compared_and_said(tmp_path, capsys, tokenizers):
    ids = [{"prompt_ids": [5, 6], "chosen_ids": [7, 8], "rejected_ids": [9]}] * 2
    folders(tmp_path, tokenizers=tokenizers)
    inputs(tmp_path, ids)
    has = dict(zip(("model", "other"), tokenizers, strict=True))
    missing = " and ".join(f"{tmp_path}/{name}" for name in ("other", "model") if not has[name])
    assert (
        f"{tmp_path}/other: assumed to have the vocabulary of {tmp_path}/model, since both have rows for 400 tokens; "
        f"there is no tokenizer in {missing} to compare"
    ) in capsys.readouterr().err
    shutil.rmtree(tmp_path / "other")
    tiny.write_model(tmp_path / "other", vocab_size=448)
    if tokenizers[1]:
        tiny.write_tokenizer(tmp_path / "other", TEXTS, 400)
    with pytest.raises(InputError, match=f"other: has rows for 448 tokens, and .*no tokenizer in {missing}: put it"):
        inputs(tmp_path, ids)


def test_a_divergence_needs_as_many_tokens_in_both(tmp_path, registered):
    @loss("by_kl", data="pairs", level="token", reference=True, needs=("kl_ref_policy",))
    def by_kl(chosen: TokenResponses, rejected: TokenResponses) -> Result:
        return Result(chosen.per_sequence(chosen.kl_ref_policy), chosen.lengths, rejected.lengths)

    folders(tmp_path, n_theirs=448)
    with pytest.raises(InputError, match=r"other: has rows for 448 tokens, and .*model for 400; by_kl compares whole"):
        inputs(tmp_path, loss="by_kl")


def test_rows_beyond_its_context_are_refused_and_taken_where_that_is_asked(tmp_path):
    folders(tmp_path)
    shutil.rmtree(tmp_path / "other")
    tiny.write_model(tmp_path / "other", vocab_size=400, max_position_embeddings=12)
    tiny.write_tokenizer(tmp_path / "other", TEXTS, 400)
    with pytest.raises(
        InputError, match=r"rows\.jsonl:1: \d+ tokens after the cut, and the context of .*other .* has 12"
    ):
        inputs(tmp_path)
    assert inputs(tmp_path, beyond_context=True).other is not None
