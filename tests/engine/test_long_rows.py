"""Rows whose responses lie on both sides of LongRoPE's original context, and dynamic RoPE, whose context is an end."""

import json

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from data.forest import PackingOptions, n_tokens, pack
from engine import score, train, weights
from engine.config import TrainConfig
from engine.generate import Answerer, Sampling
from engine.generate import main as generate_command
from engine.inputs import TrainingInputs
from engine.model import FusedForward, Transformer, attention
from engine.planning import TokenStatistics
from system import InputError
from tests import tiny
from tests.families import Subject, write_peer
from tests.family_table import Variant
from tests.metrics import lines
from tests.rows import id_rows

FAR = {"short_factor": [1.0, 1.0, 1.1, 1.2], "long_factor": [4.0, 8.0, 12.0, 20.0]}
PHI = {"model_type": "phi3", "original_max_position_embeddings": 16, "rope_scaling": {"type": "longrope"} | FAR}
DYNAMIC = {"rope_scaling": {"rope_type": "dynamic", "factor": 2.0}, "max_position_embeddings": 16}
# Prompt and responses; 16 tokens are within.
DIVIDED = [(10, 4, 12), (10, 6, 7), (15, 1, 2), (1, 30, 3)]
WHOLE = [(5, 4, 6), (20, 3, 25), (16, 1, 5), (10, 6, 6)]
ROWS = 22


def longrope(folder, **changes):
    """A folder of a Phi-3 with LongRoPE."""
    return write_peer(folder, Variant("phi3 far", "Phi3ForCausalLM", PHI | changes))


@pytest.fixture(scope="module")
def subject(tmp_path_factory) -> Subject:
    """That Phi-3, and transformers' of it."""
    folder = longrope(tmp_path_factory.mktemp("long") / "m")
    return Subject(Variant("phi3 far", "Phi3ForCausalLM", PHI), folder)


def examples():
    return tiny.random_examples([*DIVIDED, *WHOLE], seed=3)


def logps(model: Transformer, rows, packing: PackingOptions) -> torch.Tensor:
    with torch.no_grad():
        return FusedForward(model)(pack(rows, packing), with_reference=False).logps


# --- one pass ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("way", [attention.dense, attention.by_document])
def test_a_row_on_both_sides_is_what_each_sequence_is_alone(subject, way, monkeypatch):
    monkeypatch.setattr(attention, "for_forest", lambda forest, dtype: way(forest))
    subject.__dict__["examples"] = rows = examples()
    packing = PackingOptions(divides_at=subject.ours.config.originals)
    found = logps(subject.ours, rows, packing)
    alone = [e._replace(responses=(r,), predicted=None) for e in rows for r in e.responses]
    each = torch.cat([logps(subject.ours, [e], PackingOptions()) for e in alone])
    torch.testing.assert_close(found, each, rtol=0, atol=1e-10)
    torch.testing.assert_close(found, subject.exact, rtol=0, atol=1e-9)  # transformers'
    shared = logps(subject.ours, rows, PackingOptions())
    assert (shared - each).abs()[0 : 2 * len(DIVIDED) : 2].max() > 0.1  # nothing of this would be so with one prompt
    torch.testing.assert_close(shared[2 * len(DIVIDED) :], each[2 * len(DIVIDED) :], rtol=0, atol=1e-10)


def test_prompts_of_the_others_are_there_once_and_the_plan_counts_so():
    packing, rows = PackingOptions(divides_at=(16,)), examples()
    once = [p + sum(rs) - 2 for p, *rs in (*DIVIDED, *WHOLE)]
    twice = [n + p * (i < len(DIVIDED)) for i, (n, (p, *_)) in enumerate(zip(once, (*DIVIDED, *WHOLE), strict=True))]
    assert [n_tokens(e, packing) for e in rows] == twice == [pack([e], packing).n_tokens for e in rows]
    assert [n_tokens(e) for e in rows] == once
    found = TokenStatistics.of(rows, packing, batch_size=3)
    q, k = (np.diff(x.numpy()).astype(int) for x in (pack(rows, packing).cu_q, pack(rows, packing).cu_k))
    assert found.seen * len(rows) == (q * k - q * (q - 1) // 2).sum()
    assert found.tokens * len(rows) == sum(twice) and found.longest == max(twice)


# --- whole runs ----------------------------------------------------------------------------------------------------


@pytest.fixture
def job(tmp_path):
    """A function that trains on rows of ids, many of them on both sides of 12, and gives the result and its lines."""
    rows = tiny.write_rows(tmp_path / "rows.jsonl", id_rows(ROWS))
    count = iter(range(100))

    def go(model, **changes):
        told = {"model": str(model), "data": str(rows), "out": str(tmp_path / f"run{next(count)}"), "loss": "dpo"}
        told |= {"lr": 1e-3, "batch_size": 8, "epochs": 2, "save_dtype": "float32"}
        result = train.run(TrainConfig(**told | changes))
        return result, lines(result.out)

    go.rows, go.tmp = rows, tmp_path
    return go


def scored(folder, job) -> torch.Tensor:
    """engine.score's log-probs of the rows under the model in a folder, [n, 2] float64."""
    out = job.tmp / "scored.jsonl"
    out.unlink(missing_ok=True)
    score.main(["--model", str(folder), "--data", str(job.rows), "--out", str(out)])
    found = [json.loads(line) for line in out.read_text().splitlines()]
    return torch.tensor([[x["logps/chosen"], x["logps/rejected"]] for x in found], dtype=torch.float64)


def alone(folder) -> torch.Tensor:
    """The same in float64, each sequence by itself."""
    model = weights.load(folder, torch.float64)
    found = []
    for row in id_rows(ROWS):
        prompt, *responses = (np.array(row[f"{name}_ids"]) for name in ("prompt", "chosen", "rejected"))
        found += [logps(model, [tiny.Example("", prompt, (r,))], PackingOptions()) for r in responses]
    return torch.cat(found).view(ROWS, 2)


def n_divided(original: int) -> int:
    totals = [[len(r["prompt_ids"]) + len(r[f"{name}_ids"]) for name in ("chosen", "rejected")] for r in id_rows(ROWS)]
    return sum(min(pair) <= original < max(pair) for pair in totals)


@pytest.mark.slow
def test_a_run_on_such_rows_its_reference_and_engine_score_agree(job):
    folder = longrope(job.tmp / "phi", original_max_position_embeddings=12)
    assert n_divided(12) > 5
    start = alone(folder)
    torch.testing.assert_close(scored(folder, job), start, rtol=0, atol=1e-4)
    fused, found = job(folder, reference="fused", eval_data=str(job.rows))
    ahead, others = job(folder, reference="precompute", eval_data=str(job.rows))
    for run in (fused, ahead):
        table = load_file(run.out / "reference.safetensors")["ref_logps"]
        torch.testing.assert_close(table, start, rtol=0, atol=1e-4)
    for a, b in zip(found, others, strict=True):
        for name in ("loss", "grad_norm", "logps/chosen", "logps/rejected"):
            assert a[name] == pytest.approx(b[name], abs=1e-3), (a["step"], name)
    end = scored(fused.checkpoints[-1], job)
    torch.testing.assert_close(end, alone(fused.checkpoints[-1]), rtol=0, atol=1e-4)
    for i, name in enumerate(("chosen", "rejected")):
        assert found[-1][f"eval_logps/{name}"] == pytest.approx(end[:, i].mean().item(), abs=1e-4)
    assert (end - start).abs().min() > 1e-4


@pytest.mark.parametrize("mode", ["fused", "precompute"])
def test_another_reference_divides_the_rows_of_a_policy_that_does_not(job, mode):
    model = tiny.write_model(job.tmp / "llama", vocab_size=101)
    other = longrope(job.tmp / "phi", original_max_position_embeddings=12)
    run, _ = job(model, reference_model=str(other), reference=mode, epochs=1)
    table = load_file(run.out / "reference.safetensors")["ref_logps"]
    torch.testing.assert_close(table, alone(other), rtol=0, atol=1e-4)


# --- dynamic RoPE --------------------------------------------------------------------------------------------------

SAID = r"rows\.jsonl:\d+: \d+ tokens after the cut, but with dynamic RoPE no sequence is longer than .*, 16"


@pytest.fixture
def dynamic(tmp_path):
    """A Llama with dynamic RoPE up to 16."""
    return tiny.write_model(tmp_path / "dynamic", vocab_size=101, **DYNAMIC)


@pytest.mark.parametrize("beyond_context", [False, True])
def test_rows_beyond_dynamic_ropes_context_are_refused_by_its_key(job, dynamic, beyond_context):
    with pytest.raises(InputError, match=SAID):
        job(dynamic, beyond_context=beyond_context)
    flags = ["--beyond-context"] if beyond_context else []
    with pytest.raises(InputError, match=SAID):
        score.main(["--model", str(dynamic), "--data", str(job.rows), "--out", str(job.tmp / "s.jsonl"), *flags])
    model = tiny.write_model(job.tmp / "llama", vocab_size=101)
    said = r"rows\.jsonl:\d+: .* the dynamic RoPE of .*dynamic cannot go beyond max_position_embeddings \(16\), not ev"
    with pytest.raises(InputError, match=said):
        job(model, reference_model=str(dynamic), beyond_context=beyond_context)


def test_a_mismatched_sequence_beyond_it_is_refused(job, dynamic):
    """Each row fits, and the longest prompt with the longest response does not."""
    rows = [([3] * 12, [4] * 4), ([5] * 4, [6] * 12)]
    told = [{"prompt_ids": p, "completion_ids": c, "label": bool(i)} for i, (p, c) in enumerate(rows)]
    tiny.write_rows(job.rows, told)
    settings = {"model": str(dynamic), "data": str(job.rows), "out": str(job.tmp / "run"), "loss": "kto", "lr": 1e-4}
    with pytest.raises(InputError, match=r"\(a mismatched sequence\): 24 .* max_position_embeddings \(16\)"):
        TrainingInputs(TrainConfig(**settings))
    told[0]["prompt_ids"] = [3] * 4
    tiny.write_rows(job.rows, told)
    assert TrainingInputs(TrainConfig(**settings)).originals == ()


def test_answers_end_at_dynamic_ropes_context_and_beyond_context_is_refused(dynamic):
    said = r"--beyond-context: .*dynamic has dynamic RoPE, which cannot go beyond max_position_embeddings \(16\)"
    with pytest.raises(InputError, match=said):
        Answerer.open(str(dynamic), beyond_context=True)
    answerer, sampling = Answerer.open(str(dynamic)), Sampling(temperature=0, max_new_tokens=20)
    answers = answerer.answer([[1] * 12, [2] * 15], sampling)
    assert [len(a.ids) for a in answers if a.finish == "length"] == [4, 1]
    with pytest.raises(InputError, match=r"a context of 16 \(max_position_embeddings\), which dynamic RoPE"):
        answerer.answer([[1] * 16], sampling)


def test_the_commands_end_a_prompt_that_fills_it_in_a_sentence_without_a_remedy_that_is_none(dynamic, tmp_path):
    rows = tiny.write_rows(tmp_path / "p.jsonl", [{"prompt_ids": [1] * 16}])
    with pytest.raises(InputError) as fault:
        generate_command(["--model", str(dynamic), "--prompts", str(rows), "--out", str(tmp_path / "a.jsonl")])
    assert "max_position_embeddings" in str(fault.value) and "--beyond-context" not in str(fault.value)


def test_within_it_a_row_of_a_llama_with_dynamic_rope_is_that_of_one_without(job, dynamic):
    rows = [
        row
        for row in id_rows(60)
        if len(row["prompt_ids"]) + max(len(row["chosen_ids"]), len(row["rejected_ids"])) <= 16
    ]
    tiny.write_rows(job.rows, rows)
    plain = tiny.write_model(job.tmp / "plain", vocab_size=101, max_position_embeddings=16)
    assert len(rows) > 10 and torch.equal(scored(dynamic, job), scored(plain, job))
