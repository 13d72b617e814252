"""The trainer as a user meets it: whole runs on tiny models, on one and two processes."""

import json
import os
import shutil
import subprocess
import sys
import typing
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from transformers import AutoModelForCausalLM, AutoTokenizer

import losses
from engine import score, train, weights
from engine.config import host
from engine.config.running import Technique
from engine.config.train_config import TrainConfig
from engine.model import attention, head, transformer
from engine.step import Objective
from losses import registry
from system import InputError, RunError
from tests import tiny
from tests.engine.padded import padded_logps
from tests.metrics import lines
from tests.proofs import Watch, counted, watched
from tests.rows import id_rows

REAL = Path(__file__).parents[3] / "shared/data/alpaca_pairs.jsonl"


@pytest.fixture
def job(tmp_path):
    """A function that runs a training with defaults of its own, and gives its lines of metrics.

    What the last run did is in its `watch`.
    """
    model = tiny.write_model(tmp_path / "model", vocab_size=101)
    rows = tiny.write_rows(tmp_path / "rows.jsonl", id_rows(22))
    count = iter(range(100))

    def go(**changes):
        out = tmp_path / f"run{next(count)}"
        settings = {
            "model": str(model),
            "data": str(rows),
            "out": str(out),
            "lr": 1e-4,
            "batch_size": 8,
            "epochs": 2,
            "keep_checkpoints": 1,
        }
        go.watch = Watch()
        result = train.run(TrainConfig(**(settings | changes)), go.watch.hooks)
        return result, lines(result.out)

    go.model, go.rows, go.tmp = model, rows, tmp_path
    return go


def torchrun(n, *flags, timeout=300):
    command = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc_per_node",
        str(n),
        "-m",
        "engine.train",
    ]
    env = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.run([*command, *flags], capture_output=True, text=True, env=env, timeout=timeout, check=False)


def assert_same(a, b, atol=1e-5):
    """Equal within atol, or within that share where a number is above 1: IPO's and SPPO's losses are."""
    assert [x["step"] for x in a] == [x["step"] for x in b] and len(a) > 0
    for x, y in zip(a, b, strict=True):
        for name in ("loss", "rewards/chosen", "rewards/rejected", "learning_rate"):
            if name in x:
                assert abs(x[name] - y[name]) < atol * max(1, abs(y[name])), (x["step"], name, x[name], y[name])


ALL = [n for n in losses.names() if losses.get(n).function.__module__.startswith("losses.")]
MIXTURE = "apo_zero:1,kto_pair:0.5,npo:0.01,apo_down_unpaired:2"  # three forms, two of the whole step


GROUPS = {"kto_pair.anchor_size": "3", "kto_pair.detach": "false"}  # of steps of 8 and 6


@pytest.mark.parametrize("loss", [*ALL, MIXTURE, "kto_pair in groups"])
def test_micro_batches_change_nothing(job, loss):
    # DPOP's slope jumps by a factor of 51 where x_w passes 0, and there every run begins.
    hyperparameters = {"dpop": {"dpop.lam": "1"}, "kto_pair in groups": GROUPS}.get(loss, {})
    loss = loss.removesuffix(" in groups")
    rows = tiny.write_rows(job.tmp / "weighed.jsonl", id_rows(22, weigh=True))
    same = {"loss": loss, "epochs": 1, "hyperparameters": hyperparameters, "data": str(rows)}
    _, whole = job(**same)
    assert set(job.watch.per_step()) == {1}
    _, split = job(**same, micro_tokens=30)
    assert min(job.watch.per_step()) > 1
    trained, ahead = len(job.watch.trained), len(job.watch.passes) - len(job.watch.trained)
    assert ahead == Objective(loss).whole_step * trained or (loss == "kto" and ahead > 0)
    # Once, though the policy walks twice; of KTO's mismatched sequences too.
    assert len(job.watch.of_reference) in (0, trained) or (loss == "kto" and len(job.watch.passes) == trained + ahead)
    assert_same(whole, split)
    assert len(whole) == 3 or len(whole) == 6  # unpaired rows are twice as many
    assert whole[0]["loss"] != whole[-1]["loss"] and whole[0]["grad_norm"] > 0


LEAD = (
    "from torch.nn.functional import logsigmoid\nfrom losses import Responses, Result, loss\n"
    '@loss("lead_by", data="pairs", reference=True)\n'
    "def lead_by(chosen: Responses, rejected: Responses, *, beta: float = 0.1, by: float = 1.0) -> Result:\n"
    "    r_w, r_l = beta * chosen.logratios, beta * rejected.logratios\n"
    "    return Result(-logsigmoid(r_w - r_l - by), r_w.detach(), r_l.detach())\n"
)


def ranked_rows(n, k=4):
    """Rows of token ids with k scored completions each."""
    rng = np.random.default_rng(5)
    texts = [[rng.integers(2, 101, rng.integers(1, 12)).tolist() for _ in range(k)] for _ in range(n)]
    scores = [rng.permutation(k).tolist() for _ in range(n)]
    return [{"prompt_ids": [2 + i, 3], "completions_ids": texts[i], "scores": scores[i]} for i in range(n)]


@pytest.mark.parametrize("shape", [pytest.param("llama3", marks=pytest.mark.slow), "llama3.2"])  # untied and tied
def test_two_ranks_equal_one(tmp_path, shape):
    """9 pairs in steps of 4 on 2 ranks, in every objective: uneven counts, and a rank that gets nothing.

    A mixture, ranked rows, a moving reference, stages and an objective from a file too.
    """
    model = tiny.write_model(tmp_path / "model", vocab_size=101, shape=shape)
    rows = tiny.write_rows(tmp_path / "rows.jsonl", id_rows(11, weigh=True))
    ranked = tiny.write_rows(tmp_path / "ranked.jsonl", ranked_rows(11))
    (tmp_path / "lead.py").write_text(LEAD)
    plain = {"model": str(model), "data": [str(rows)], "lr": 1e-4, "batch_size": 4, "epochs": 1, "keep_checkpoints": 1}
    plain |= {"micro_tokens": 40, "eval_pairs": 2}
    jobs = {name: {"loss": name} for name in ALL} if shape == "llama3" else {}
    jobs |= {name: {"loss": name, "epochs": 2} for name in ("apo_zero", "kto")}
    jobs |= {
        "mixture": {"loss": MIXTURE},
        "groups": {"loss": "kto_pair", "hyperparameters": GROUPS},
        "ranked": {"loss": "exo_ranked", "data": [str(ranked)]},
        "moving": {"loss": "dpo", "reference_update": "soft", "reference_update_steps": 2, "epochs": 2},
        "stages": {"loss": "dpo", "stages": 2},
        "outside": {"loss": f"{tmp_path}/lead.py:lead_by"},
        "in order": {"loss": "apo_zero", "disable": ["balance"], "micro_tokens": 1},
        "even": {"loss": "apo_zero", "micro_tokens": 1},
    }
    (tmp_path / "jobs.json").write_text(json.dumps({name: plain | job for name, job in jobs.items()}))
    script = tmp_path / "every.py"
    script.write_text(
        "import json, os, sys\nfrom pathlib import Path\nimport pytest\nfrom engine import train\n"
        "from engine.config import TrainConfig\nfrom tests.proofs import Watch, counted\n"
        "from torch.distributed.fsdp._fully_shard import _fsdp_param_group as units\n"
        "reduced = counted(pytest.MonkeyPatch(), units, 'foreach_reduce')\n"
        "for name, job in json.load(open(sys.argv[1])).items():\n"
        "    watch, out = Watch(), f'{sys.argv[2]}/{name}'\n"
        "    reduced.clear()\n"
        "    train.run(TrainConfig(**job | {'data': tuple(job['data']), 'out': out}), watch.hooks)\n"
        "    watch.write(Path(f'{out}.did/{os.environ.get(\"RANK\", 0)}.json'))\n"
        "    Path(f'{out}.reduced').write_text(str(len(reduced)))\n"
    )
    env = tiny.environment()
    for n in (1, 2):
        launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(n)]
        arguments = [str(script), str(tmp_path / "jobs.json"), str(tmp_path / f"on{n}")]
        command = [*(launch if n > 1 else [sys.executable]), *arguments]
        done = subprocess.run(command, capture_output=True, text=True, env=env, timeout=400, check=False)
        assert done.returncode == 0, done.stderr[-3000:]
    n_units, even = (4 if shape == "llama3.2" else 5), Watch.read(tmp_path / "on2/even.did/0.json")
    assert len(even.trained) > len(even.steps) == int((tmp_path / "on2/even.reduced").read_text()) / n_units
    even, in_order = (Watch.read(tmp_path / "on2" / f"{name}.did/0.json") for name in ("even", "in order"))
    assert [one.n_tokens for one in even.trained] != [one.n_tokens for one in in_order.trained]
    for name in jobs:
        inside = "stage-02" if name == "stages" else "."
        one, two = (tmp_path / f"on{n}" / name / inside for n in (1, 2))
        alone, *both = (Watch.read(tmp_path / f"on{n}" / f"{name}.did/{r}.json") for n, r in ((1, 0), (2, 0), (2, 1)))
        shares = [sum(one.n_sequences for one in each.trained) for each in both]
        assert sum(shares) == sum(one.n_sequences for one in alone.trained) and min(shares) > 0, name
        assert len(both[0].passes) == len(both[1].passes) and alone.mesh == [] and both[0].mesh == [2]
        assert_same(lines(one), lines(two))
        assert abs(lines(one)[-1]["eval_logps/chosen"] - lines(two)[-1]["eval_logps/chosen"]) < 1e-3 or name == "npo"
        a, b = (weights.load(max(folder.glob("epoch-*"))) for folder in (one, two))
        for p, q in zip(a.parameters(), b.parameters(), strict=True):
            torch.testing.assert_close(p, q, rtol=0, atol=1e-4)


@pytest.mark.parametrize("mode", ["fused", "precompute"])
def test_rewards_start_at_exactly_0_and_move(job, mode):
    result, found = job(reference=mode)
    assert found[0]["rewards/chosen"] == found[0]["rewards/rejected"] == 0.0
    assert found[0]["loss"] == 1.0
    assert found[-1]["rewards/margins"] > 0.01
    assert result.metrics == found[-1]


def test_where_the_reference_comes_from_changes_nothing(job):
    first, fused = job(reference="fused")
    assert [one.step for one in job.watch.of_reference] == [1, 2, 3] and not job.watch.before
    _, precomputed = job(reference="precompute")
    assert len(job.watch.before) == 3 and not job.watch.of_reference
    _, cached = job(reference_cache=str(first.out / "reference.safetensors"))
    assert not job.watch.before and not job.watch.of_reference
    assert_same(fused, precomputed)
    assert_same(fused, cached)
    assert [p.name for p in sorted(first.out.glob("epoch-*"))] == ["epoch-02"]  # --keep-checkpoints 1


def said_of_cache(result):
    return yaml.safe_load((result.out / "config.yaml").read_text())["facts"]["reference_cache"]


def test_a_cache_of_other_rows_or_weights_is_computed_anew_and_said(job):
    first, _ = job()
    cache = str(first.out / "reference.safetensors")
    other = tiny.write_rows(job.tmp / "other.jsonl", id_rows(22, seed=1))
    changed = weights.load(job.model)
    with torch.no_grad():
        changed.norm.weight[0] += 1e-3
    weights.save(changed, job.tmp / "changed")
    for change in ({"data": str(other)}, {"max_response_tokens": 5}, {"model": str(job.tmp / "changed")}):
        copy = str(shutil.copy(cache, job.tmp / "copy.safetensors"))
        again, there = job(reference_cache=copy, **change)
        assert len(job.watch.of_reference) == 3
        assert said_of_cache(again) == f"{copy} was computed from other weights, rows, limits or dtype: computed again"
        assert_same(there, job(**change)[1])
        taken, once_more = job(reference_cache=copy, **change)  # it was put in the place of what did not fit
        assert said_of_cache(taken) == f"taken from {copy}" and not job.watch.of_reference
        assert_same(there, once_more)


@pytest.mark.parametrize("damage", ["a bit", "cut", "no file"])
def test_a_damaged_cache_is_never_used(job, damage):
    first, found = job()
    path = first.out / "reference.safetensors"
    content = bytearray(path.read_bytes())
    content[-3] ^= 1
    path.write_bytes(content if damage == "a bit" else content[:-9] if damage == "cut" else b"")
    again, there = job(reference_cache=str(path))
    assert "computed again" in said_of_cache(again) and len(job.watch.of_reference) == 3
    assert_same(found, there)


@pytest.mark.slow
def test_a_folder_of_caches_serves_every_objective_of_a_sweep(job):
    shared = job.tmp / "shared"
    results, n_walked = {}, []
    for loss in ("dpo", "apo_zero", "apo_down", "kto_pair"):
        results[loss] = job(loss=loss, reference_cache=str(shared))
        n_walked.append(len(job.watch.of_reference))
    assert n_walked == [3, 0, 0, 0]
    (table,) = shared.iterdir()  # computed once
    said = [said_of_cache(result) for result, _ in results.values()]
    assert said == ["computed in this run"] + [f"taken from {table}"] * 3
    for loss, (_, found) in results.items():
        assert_same(found, job(loss=loss)[1])
    job(loss="apo_zero_unpaired", reference_cache=str(shared))
    assert len(list(shared.iterdir())) == 2  # other sequences, another table


WRITERS = """
import sys, time
from pathlib import Path
import torch
from engine.step.reference import Cache
folder = Path(sys.argv[1])
table = {"ref_logps": torch.full((9, 2), float(sys.argv[2]), dtype=torch.float64)}
for i in range(150):
    Cache(lambda: f"{i:032d}", folder / sys.argv[2] / "reference.safetensors", folder / "shared").write(table)
"""


@pytest.mark.slow
def test_runs_that_end_an_epoch_together_share_their_tables(tmp_path):
    env = tiny.environment()
    args = [[sys.executable, "-c", WRITERS, str(tmp_path), str(i)] for i in (1, 2)]
    runs = [subprocess.Popen(one, env=env, stderr=subprocess.PIPE, text=True) for one in args]
    said = [run.communicate(timeout=120)[1] for run in runs]
    assert said == ["", ""] and [run.returncode for run in runs] == [0, 0]
    made = sorted(p.name for p in (tmp_path / "shared").iterdir())
    assert made == [f"{i:032d}.safetensors" for i in range(150)]


def test_a_place_that_cannot_hold_the_table_is_told_before_or_does_not_end_the_run(job, capfd):
    file, folder = job.tmp / "file", job.tmp / "folder.safetensors"
    file.write_text("mine")
    folder.mkdir()
    for path in (file, folder):
        with pytest.raises(InputError, match=r"name a folder that runs share, or a run's reference\.safetensors"):
            job(reference_cache=str(path))
    assert file.read_text() == "mine"
    _, there = job(reference_cache=str(file / "below"))
    assert "cannot be written (Not a directory)" in capfd.readouterr().err
    assert_same(job()[1], there)
    long = job.tmp / f"{'x' * 230}.safetensors"  # found out while it is written: what it is called until then is longer
    _, written = job(reference_cache=str(long))
    assert "cannot be written (File name too long)" in capfd.readouterr().err
    assert_same(written, there)


def test_a_table_that_was_computed_before_step_1_is_not_computed_twice(job, monkeypatch):
    """A run that is killed before its first state goes on with it."""

    def fall(*arguments):
        raise RunError("no more")

    _, there = job(reference="precompute")
    with monkeypatch.context() as patched:
        patched.setattr(train, "forward_backward", fall)
        with pytest.raises(RunError, match="no more"):
            job(reference="precompute", out=str(job.tmp / "fallen"))
    again, found = job(reference="precompute", out=str(job.tmp / "fallen"), resume=True)
    assert not job.watch.before and job.watch.steps == [1, 2, 3, 4, 5, 6]
    assert said_of_cache(again) == f"taken from {again.out / 'reference.safetensors'}"
    assert_same(there, found)


class Done(typing.NamedTuple):
    """A run of `exact_run`: its metrics, its passes, and calls by the function's name."""

    lines: list
    watch: Watch
    calls: dict


COUNTED = ((attention, "dense"), (attention, "by_document"), (attention, "masked"), (head, "_spread"),
           (head, "wide_logits"), (transformer.Block, "_inside"), (host, "keep_pages"))  # fmt: skip


def n_walks(done):
    """Passes over a model's layers: a reference that walks along takes one of its own."""
    return len(done.watch.passes) + len(done.watch.of_reference)


# Every setting that claims to change the speed only, and what shows that it was in force. On one process "balance" does
# nothing: see test_two_ranks_equal_one.
EXACT = {
    "prompts once per response": ({"without": ("prompt-sharing",)}, lambda a, b: a.watch.n_tokens < b.watch.n_tokens),
    "padded": (
        {"without": ("packing",), "micro_tokens": 200},
        lambda a, b: a.watch.n_tokens < b.watch.n_tokens and a.watch.n_rows == b.watch.n_rows,
    ),
    "every row through the head": (
        {"without": ("response-rows",)},
        # the last token of a prompt predicts twice
        lambda a, b: a.watch.n_rows < a.watch.n_tokens == b.watch.n_tokens == b.watch.n_rows - 2 * 22,
    ),
    "reference walked in every epoch": (
        {"without": ("reference-cache",), "reference": "fused"},
        lambda a, b: (
            {one.step for one in a.watch.of_reference} == {1, 2, 3} and len(b.watch.of_reference) == len(b.watch.passes)
        ),
    ),
    "logits made again": (
        {"without": ("kept-logits",)},
        lambda a, b: (
            a.calls["wide_logits"] == n_walks(a) and b.calls["wide_logits"] == n_walks(b) + len(b.watch.trained)
        ),
    ),
    "fresh pages": (
        {"without": ("used-pages",)},
        lambda a, b: (a.calls["keep_pages"], b.calls["keep_pages"]) == (1, 0),
    ),
    "all of it": (
        {"without": typing.get_args(Technique), "reference": "fused"},
        lambda a, b: a.watch.n_tokens < b.watch.n_tokens == b.watch.n_rows and b.calls["keep_pages"] == 0,
    ),
    "one example at a time": ({"micro_tokens": 1}, lambda a, b: b.watch.per_step() == [8, 8, 6] * 2),
    "all examples at once": (
        {"micro_tokens": 10**6},
        lambda a, b: min(a.watch.per_step()) > 1 and b.watch.per_step() == [1] * 6,
    ),
    "reference before the first step": (
        {"reference": "precompute"},
        lambda a, b: not a.watch.before and b.watch.before and not b.watch.of_reference,
    ),
    "blocks computed again": (
        {"recompute_blocks": 2},
        lambda a, b: (
            a.calls["_inside"] == 3 * n_walks(a) and b.calls["_inside"] == 3 * n_walks(b) + 2 * len(b.watch.trained)
        ),
    ),
}


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    """The run that the settings of EXACT have to repeat."""
    return exact_run(tmp_path_factory.mktemp("exact"), {})


def exact_run(folder, changes):
    """Of 6 steps, in passes of a few examples each."""
    model = tiny.write_model(folder / "model", vocab_size=101)
    rows = tiny.write_rows(folder / "rows.jsonl", id_rows(22))
    settings = {"model": str(model), "data": str(rows), "out": str(folder / "run"), "batch_size": 8, "epochs": 2}
    settings |= {"micro_tokens": 60, "lr": 1e-4, "loss": "apo_zero"} | changes
    with pytest.MonkeyPatch.context() as patched:
        calls = {name: counted(patched, owner, name) for owner, name in COUNTED}
        found, watch = watched(TrainConfig(**settings))
    return Done(found, watch, {name: len(of) for name, of in calls.items()})


@pytest.mark.parametrize(("changes", "differs"), EXACT.values(), ids=EXACT)
def test_a_setting_that_claims_to_be_exact_changes_no_loss(plain, tmp_path, changes, differs):
    there = exact_run(tmp_path, changes)
    assert differs(plain, there), (plain.calls, there.calls)
    assert_same(plain.lines, there.lines)


@pytest.mark.parametrize("path", ["one example at a time", "by document"])
def test_either_attention_changes_no_loss(plain, tmp_path, monkeypatch, path):
    dense, by_document = attention.dense, attention.by_document
    paths = {"one example at a time": lambda forest: dense(forest, run_tokens=1), "by document": by_document}
    monkeypatch.setattr(attention, "for_forest", lambda forest, dtype: paths[path](forest))
    there = exact_run(tmp_path, {})
    assert plain.calls["dense"] == len(plain.watch.passes) and plain.calls["by_document"] == 0
    assert plain.calls["masked"] == 3 * n_walks(plain) < there.calls["masked"]  # 3 layers
    assert_same(plain.lines, there.lines)


@pytest.mark.parametrize("chunk_rows", [1, 7])
def test_a_head_in_small_chunks_changes_no_loss(plain, tmp_path, monkeypatch, chunk_rows):
    monkeypatch.setitem(head.CHUNK_BYTES, "cpu", 4 * 101 * chunk_rows)
    there = exact_run(tmp_path, {})
    walked = sum(-(-one.n_rows // chunk_rows) * (1 + one.walks_reference) for one in there.watch.passes)
    again = sum(-(-one.n_rows // chunk_rows) for one in there.watch.trained if one.n_rows > chunk_rows)
    assert plain.calls["_spread"] == n_walks(plain) and there.calls["_spread"] == walked + again
    assert_same(plain.lines, there.lines)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # of the compiler's own
def test_compiled_parts_change_no_loss(plain, tmp_path):
    from torch._dynamo import reset
    from torch._dynamo.utils import counters  # brings the compiler, for the slow tests alone

    reset()  # graphs of other tests of this process would do
    before = counters["stats"]["unique_graphs"]
    there = exact_run(tmp_path, {"compile": "yes"})
    assert counters["stats"]["unique_graphs"] > before
    assert_same(plain.lines, there.lines)


def test_what_cannot_be_kept_cannot_be_precomputed(job):
    with pytest.raises(InputError, match="cannot be combined with --disable reference-cache; use fused"):
        job(reference="precompute", disable=("reference-cache",))


def test_the_schedule_falls_linearly_from_lr_to_lr_over_n(job):
    _, found = job(lr=1e-4)
    assert [x["learning_rate"] for x in found] == pytest.approx([1e-4 * (6 - i) / 6 for i in range(6)], abs=1e-15)


def test_a_step_is_rmsprop_on_the_clipped_gradient(job):
    """One step by hand: gradient of the mean DPO loss, clipped to 0.5, RMSProp's first update."""
    result, found = job(loss="dpo", max_steps=1, shuffle=False, max_grad_norm=0.5)
    before, after = weights.load(job.model), weights.load(result.checkpoints[-1])
    before = before.double()
    rows = [json.loads(line) for line in job.rows.read_text().splitlines()][:8]
    examples = [
        tiny.Example("", np.array(r["prompt_ids"]), (np.array(r["chosen_ids"]), np.array(r["rejected_ids"])))
        for r in rows
    ]
    logps = padded_logps(before, examples).view(-1, 2)
    x = logps - logps.detach()
    (torch.log1p(torch.exp(-0.1 * (x[:, 0] - x[:, 1]))).sum() / 8).backward()
    norm = torch.sqrt(sum(p.grad.square().sum() for p in before.parameters()))
    assert norm > 0.5 and found[0]["grad_norm"] == pytest.approx(norm.item(), rel=1e-5)
    for p, q in zip(before.parameters(), after.parameters(), strict=True):
        g = p.grad * 0.5 / norm
        expected = p.detach() - 1e-4 * g / (torch.sqrt(0.01 * g * g) + 1e-8)
        sure = g.abs() > 1e-6  # below, float32 noise decides
        torch.testing.assert_close(q.detach().double()[sure], expected[sure], rtol=0, atol=1e-6)


def test_a_run_leaves_what_the_design_says(job):
    result, found = job(eval_pairs=4, keep_checkpoints=None)
    assert sorted(p.name for p in result.out.iterdir() if "tfevents" not in p.name) == [
        "config.yaml", "epoch-01", "epoch-02", "first_example.txt", "metrics.jsonl", "reference.safetensors",
        "run.lock", "state",
    ]  # fmt: skip
    config = yaml.safe_load((result.out / "config.yaml").read_text())
    assert config["lr"] == 1e-4 and config["beta"] == 0.1 and config["facts"]["rows"] == 22
    assert len(found) == 6 and "eval_rewards/margins" in found[2] and "eval_rewards/margins" not in found[1]
    board = EventAccumulator(str(result.out))
    board.Reload()
    assert [e.step for e in board.Scalars("loss")] == [1, 2, 3, 4, 5, 6]
    assert [e.value for e in board.Scalars("loss")] == pytest.approx([x["loss"] for x in found], rel=1e-6)
    AutoModelForCausalLM.from_pretrained(result.checkpoints[-1])


def test_a_runs_config_starts_the_same_run_again(job):
    result, found = job(loss="dpo", beta=0.3)
    config = train.cli.parse(
        TrainConfig,
        ["--config", str(result.out / "config.yaml"), "--out", str(job.tmp / "again")],
        command="x",
        example="x",
    )
    train.run(config)
    assert_same(found, lines(job.tmp / "again"), atol=0.0 + 1e-12)


def test_a_folder_that_holds_a_run_is_refused(job):
    result, _ = job()
    with pytest.raises(InputError, match="holds a run already"):
        job(out=str(result.out))


def test_a_non_finite_loss_stops_before_the_weights_change(job, monkeypatch):
    monkeypatch.setattr(registry, "_losses", dict(registry._losses))  # what the file registers goes again
    row = json.loads(job.rows.read_text().splitlines()[2])
    lengths = len(row["chosen_ids"]), len(row["rejected_ids"])
    path = job.tmp / "hole.py"
    path.write_text(
        "import torch\nfrom losses import Responses, Result, loss\n"
        '@loss("hole", data="pairs", needs=("lengths",))\n'
        "def hole(chosen: Responses, rejected: Responses, *, w: int = 0, l: int = 0) -> Result:\n"
        "    bad = (chosen.lengths == w) & (rejected.lengths == l) & (chosen.logps < -3.5 * w)\n"
        "    losses = torch.where(bad, torch.nan, rejected.logps - chosen.logps)\n"
        "    return Result(losses, chosen.logps.detach(), rejected.logps.detach())\n"
    )
    arguments = {f"hole.{name}": str(n) for name, n in zip("wl", lengths, strict=True)}
    with pytest.raises(RunError, match=r"step 1: the loss of \S*rows\.jsonl:3 is not finite"):
        job(loss=f"{path}:hole", hyperparameters=arguments, shuffle=False)


def test_unpaired_and_sft_rows_train_too(job):
    rows = tiny.write_rows(job.tmp / "unpaired.jsonl", id_rows(13, form="unpaired"))
    for loss in ("kto", "apo_zero_unpaired"):
        _, found = job(loss=loss, data=str(rows))
        assert found[0]["loss"] == 0.5 and found[-1]["loss"] < 0.5
    with pytest.raises(InputError, match="pairs"):
        job(loss="dpo", data=str(rows))
    single = [{"prompt_ids": r["prompt_ids"], "completion_ids": r["chosen_ids"]} for r in id_rows(13)]
    _, found = job(loss="sft", data=str(tiny.write_rows(job.tmp / "sft.jsonl", single)))
    assert found[-1]["loss"] < found[0]["loss"]


def test_no_row_that_is_held_out_is_trained_on(job):
    result, _ = job(data_weights=(3,), eval_pairs=6, keep_checkpoints=None)
    facts = yaml.safe_load((result.out / "config.yaml").read_text())["facts"]
    assert facts["rows"] == 66 and result.n_steps == 2 * 6  # 16 of 22 rows, three times each, in eights


def test_an_objective_from_outside_trains_without_any_other_change(job, monkeypatch):
    monkeypatch.setattr(registry, "_losses", dict(registry._losses))  # what the file registers goes again
    path = job.tmp / "lead.py"
    path.write_text(LEAD)
    _, found = job(loss=f"{path}:lead_by", hyperparameters={"lead_by.by": "2"})
    assert found[0]["loss"] == pytest.approx(np.log1p(np.exp(2.0)), abs=1e-12)
    assert found[-1]["loss"] < found[0]["loss"]


def test_an_objective_that_means_its_losses_is_told_so(job, monkeypatch):
    for name in ("_losses", "_aliases", "_files"):
        monkeypatch.setattr(registry, name, dict(getattr(registry, name)))
    path = job.tmp / "mean.py"
    path.write_text(LEAD.replace("Result(-logsigmoid(r_w - r_l - by)", "Result(-logsigmoid(r_w - r_l - by).mean()"))
    with pytest.raises(InputError, match=r"lead_by gave losses of shape \[\] for 8 examples; give one for each, \[n\]"):
        job(loss=f"{path}:lead_by")
    path.write_text(LEAD.replace("Result(-logsigmoid(r_w - r_l - by)", "Result(-logsigmoid(r_w - r_l - by).squeeze()"))
    with pytest.raises(InputError, match=r"lead_by gave losses of shape \[\] for 1 examples"):
        job(loss=f"{path}:lead_by")  # a pass of a single pair comes late, or on another machine alone
    spread = "Result((r_l - r_w) * (float('nan') if len(r_w) == 1 else 1.0)"  # as torch.std gives
    path.write_text(LEAD.replace("Result(-logsigmoid(r_w - r_l - by)", spread))
    with pytest.raises(InputError, match="when other rows share its pass"):
        job(loss=f"{path}:lead_by")


def test_words_of_a_row_do_not_reach_the_terminal_as_they_are(job, capfd):
    rows = [*id_rows(9), {"prompt_ids": [3], "\x1b]52;c;aGk=\x07": 1}]
    job(data=str(tiny.write_rows(job.tmp / "escapes.jsonl", rows)), skip_bad_rows=True)
    said = capfd.readouterr().err
    assert "\x1b" not in said and "\x07" not in said and "9 rows" in said


def test_a_mixture_is_the_weighted_sum_of_its_parts(job):
    _, found = job(loss="dpo:0.7,sft:0.2", hyperparameters={"dpo.beta": "0.3"})
    _, dpo = job(loss="dpo", beta=0.3)
    _, sft = job(loss="sft")
    assert found[0]["loss/dpo"] == dpo[0]["loss"] and abs(found[0]["loss/sft"] - sft[0]["loss"]) < 1e-6
    for line in found:
        assert line["loss"] == pytest.approx(0.7 * line["loss/dpo"] + 0.2 * line["loss/sft"], abs=1e-12)
    assert found[-1]["loss/sft"] < found[0]["loss/sft"] and found[-1]["rewards/margins"] > 0


def test_a_part_that_takes_pairs_apart_means_over_both_responses(job):
    _, found = job(loss="apo_zero:1,apo_zero_unpaired:2")  # of which the second is half of the first
    for line in found:
        assert line["loss/apo_zero_unpaired"] == pytest.approx(line["loss/apo_zero"] / 2, abs=1e-12)
    _, alone = job(loss="apo_zero", lr=1e-4)
    assert found[0]["loss"] == 2 * alone[0]["loss"] and found[-1]["loss"] != found[0]["loss"]


def test_what_an_objective_carries_goes_from_step_to_step(job):
    _, found = job(loss="bco_pair", epochs=2)
    total, n = 0.0, 0
    for line, size in zip(found, (8, 8, 6, 8, 8, 6), strict=True):  # D is the mean of all rewards seen
        total, n = total + size * (line["rewards/chosen"] + line["rewards/rejected"]), n + 2 * size
        assert line["delta"] == pytest.approx(total / n, abs=1e-9)
    assert abs(found[-1]["delta"]) > 1e-4


@pytest.mark.slow
def test_several_completions_to_a_prompt_train_together(job):
    data = str(tiny.write_rows(job.tmp / "ranked.jsonl", ranked_rows(13)))
    for loss in ("infonca", "nca_ranked", "exo_ranked", "dro_ranked"):
        _, found = job(loss=loss, data=data, micro_tokens=40)
        assert min(job.watch.per_step()) > 1
        _, whole = job(loss=loss, data=data)
        assert max(job.watch.per_step()) == 1
        assert_same(found, whole)
        assert found[0]["rewards/chosen"] == 0.0 and found[-1]["rewards/margins"] > 0
    _, found = job(loss="apo_zero", data=data)  # the best against the worst
    assert found[-1]["rewards/margins"] > 0


@pytest.mark.parametrize("kind", ["soft", "hard"])
def test_a_reference_that_follows_moves_every_few_steps(job, kind):
    settings = {"reference_update": kind, "reference_update_steps": 2, "reference_update_alpha": 0.6, "epochs": 3}
    result, found = job(loss="dpo", shuffle=False, keep_checkpoints=None, eval_pairs=6, batch_size=8, **settings)
    _, frozen = job(loss="dpo", shuffle=False, eval_pairs=6, batch_size=8, epochs=3)
    assert_same(found[:2], frozen[:2])
    first, last = (weights.load(c) for c in (job.model, result.checkpoints[0]))  # 16 rows: an epoch is two steps
    alpha = 0.6 if kind == "soft" else 1.0
    moved = weights.load(job.model)
    with torch.no_grad():
        for p, a, b in zip(moved.parameters(), first.parameters(), last.parameters(), strict=True):
            p.copy_((1 - alpha) * a + alpha * b)
    weights.save(moved, job.tmp / f"moved-{kind}", dtype=torch.float32)
    rows = [json.loads(line) for line in job.rows.read_text().splitlines()]
    expected = logps_under(job.tmp / f"moved-{kind}", rows, job.tmp)
    ours = logps_under(result.checkpoints[0], rows, job.tmp)
    step3 = [i for i in range(22) if i not in held_out(22, 6)][:8]  # the rows of the third step, in order
    reward = 0.1 * np.mean([ours[i] - expected[i] for i in step3])
    assert found[2]["rewards/chosen"] == pytest.approx(reward, abs=1e-5)
    assert (
        abs(found[2]["rewards/chosen"]) < 1e-9 if kind == "hard" else abs(frozen[2]["rewards/chosen"]) > 2 * abs(reward)
    )


def held_out(n, k, seed=0):
    return set(np.random.default_rng((seed, 0)).choice(n, k, replace=False).tolist())


def logps_under(folder, rows, tmp):
    """Log-probs of the chosen responses under a checkpoint."""
    out = tmp / f"logps-{folder.name}.jsonl"
    out.unlink(missing_ok=True)
    score.main(["--model", str(folder), "--data", str(tiny.write_rows(tmp / "scored.jsonl", rows)), "--out", str(out)])
    return [json.loads(line)["logps/chosen"] for line in out.read_text().splitlines()]


def test_stages_go_on_from_one_another_with_a_reference_of_their_own(job):
    settings = {"loss": "dpo", "epochs": 1, "lr": 1e-3, "batch_size": 8, "keep_checkpoints": 1}
    config = TrainConfig(model=str(job.model), data=(str(job.rows),), out=str(job.tmp / "staged"), stages=2, **settings)
    result = train.run(config)
    one, two = (lines(job.tmp / f"staged/stage-0{k}") for k in (1, 2))
    assert len(one) == len(two) == 2 and result.checkpoints == [job.tmp / "staged/stage-02/epoch-01"]
    with pytest.raises(InputError, match="stage-01: holds a run already"):
        train.run(config)
    assert two[0]["rewards/chosen"] == 0.0 and two[0]["learning_rate"] == 1e-3  # measured anew, begun anew
    rows = job.rows.read_text().splitlines(keepends=True)
    (job.tmp / "first.jsonl").write_text("".join(rows[:11]))
    (job.tmp / "second.jsonl").write_text("".join(rows[11:]))
    by_hand, found = job(loss="dpo", epochs=1, lr=1e-3, data=str(job.tmp / "first.jsonl"))
    assert_same(one, found)
    _, found = job(
        loss="dpo", epochs=1, lr=1e-3, data=str(job.tmp / "second.jsonl"), model=str(by_hand.checkpoints[-1])
    )
    assert_same(two, found)


def test_a_row_without_what_an_objective_needs_is_named(job):
    rows = [json.loads(line) for line in job.rows.read_text().splitlines()]
    del rows[4]["chosen_score"]
    data = str(tiny.write_rows(job.tmp / "lacking.jsonl", rows))
    with pytest.raises(InputError, match=r"lacking\.jsonl:5: odpo needs a score of each response"):
        job(loss="odpo", data=data)
    rows[4]["chosen_score"] = rows[4]["rejected_score"]
    data = str(tiny.write_rows(job.tmp / "lacking.jsonl", rows))
    with pytest.raises(InputError, match=r"lacking\.jsonl:5: odpo: the winner's score has to be above the loser's"):
        job(loss="odpo", data=data)
    job(loss="odpo", data=data, hyperparameters={"odpo.offset": "linear"}, max_steps=1)
    for row in rows:
        del row["own_score"]
    data = str(tiny.write_rows(job.tmp / "no_own.jsonl", rows))
    with pytest.raises(InputError, match="needs a score of the model's own answer"):
        job(loss="apo_select", data=data)
    _, found = job(loss="apo_select", data=data, own_score="rejected", max_steps=1)
    assert 0.8 < found[0]["p_zero"] <= 1


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"loss": "apo_zero:0,sft:1"}, "the weight 0 of apo_zero has to be above 0"),
        ({"loss": "dpo:1,sigmoid:1"}, "dpo is named twice"),
        ({"loss": "kto:1,dpo:1"}, "use kto_pair, or fix its KL: --kto.kl 0"),
        ({"loss": "robust_dpo", "hyperparameters": {"robust_dpo.label_smoothing": "0.7"}}, "label_smoothing is 0.7"),
        ({"loss": "dpo", "hyperparameters": {"dpo.beta": "0"}}, "--dpo.beta: 0 has to be above 0"),
        ({"reference_update": "soft", "reference": "precompute"}, "needs a reference model in every step"),
        ({"loss": "simpo", "reference_update": "hard"}, "every step, and simpo uses none"),
        ({"stages": 30}, "30 stages need more than 22 rows"),
        ({"reference_update": "hard", "reference_update_alpha": 0.5}, "--reference-update-alpha: needs"),
        ({"reference_update_steps": 5}, "--reference-update-steps: needs --reference-update"),
        ({"own_score": "rejected"}, "apo_zero does not use that score"),
        ({"loss": "discopop", "hyperparameters": {"discopop.tau": "0"}}, "is not finite before the first step"),
        ({"loss": "bco_pair", "hyperparameters": {"bco_pair.shift": "no"}}, "is not a bool"),
        ({"loss": "apo_zer"}, "perhaps 'apo_zero'"),
        ({"hyperparameters": {"apo_zero.betta": "1"}}, "--apo_zero.beta"),
        ({"hyperparameters": {"apo_zero.beta": "much"}}, "is not a float"),
        ({"lr": -1.0}, "--lr"),
        ({"reference": "none"}, "needs a reference"),
        ({"data": "nowhere.jsonl"}, "no such file"),
        ({"model": "no/such/thing"}, "no such file or folder"),
        ({"eval_pairs": 22}, "--eval-pairs"),
        ({"loss": "kto", "reference": "precompute"}, "use fused"),
    ],
)
def test_what_cannot_be_is_said_in_a_sentence(job, changes, said):
    with pytest.raises(InputError, match=said) as caught:
        job(**changes)
    assert "\n" not in str(caught.value)


def test_bad_rows_stop_the_run_and_are_located(job):
    good = job.rows.read_text().splitlines()
    path = job.tmp / "bad.jsonl"
    path.write_text(
        "\n".join([good[0], '{"prompt": "a"', '{"prompt": "a", "chosen": "", "rejected": "b"}', *good[1:]]) + "\n"
    )
    with pytest.raises(InputError, match=r"bad\.jsonl:2: not JSON") as caught:
        job(data=str(path))
    assert 'bad.jsonl:3: "chosen" is empty' in str(caught.value) and not (job.tmp / "run0").exists()
    result, found = job(data=str(path), skip_bad_rows=True)
    assert found[0]["data/skipped_rows"] == 2
    assert len(yaml.safe_load((result.out / "config.yaml").read_text())["facts"]["skipped"]) == 2


def test_what_is_cut_is_counted(job):
    rows = [json.loads(line) for line in job.rows.read_text().splitlines()]
    long = sum(len(r[k]) > 6 for r in rows for k in ("chosen_ids", "rejected_ids"))
    prompts = sum(len(r["prompt_ids"]) > 3 for r in rows)
    result, found = job(max_response_tokens=6, max_prompt_tokens=3)
    facts = yaml.safe_load((result.out / "config.yaml").read_text())["facts"]
    assert (facts["cut_responses"], facts["cut_prompts"]) == (long, prompts) and long > 0 and prompts > 0
    assert found[0]["data/cut_responses"] == long


def test_score_gives_the_log_probs_of_the_padded_pass(job):
    out = job.tmp / "scores.jsonl"
    score.main(["--model", str(job.model), "--data", str(job.rows), "--out", str(out)])
    model = weights.load(job.model).double()
    for line, row in zip(out.read_text().splitlines(), job.rows.read_text().splitlines(), strict=True):
        found, r = json.loads(line), json.loads(row)
        example = tiny.Example("", np.array(r["prompt_ids"]), (np.array(r["chosen_ids"]), np.array(r["rejected_ids"])))
        expected = padded_logps(model, [example])
        assert found["logps/chosen"] == pytest.approx(expected[0].item(), abs=1e-3)
        assert found["logps/rejected"] == pytest.approx(expected[1].item(), abs=1e-3)
        assert found["tokens/chosen"] == len(r["chosen_ids"])


def test_rows_beyond_the_models_context_are_refused_and_taken_where_that_is_asked(job):
    row = {"prompt_ids": [5] * 400, "chosen_ids": [6] * 200, "rejected_ids": [7] * 9}
    file = tiny.write_rows(job.tmp / "long.jsonl", [row])
    told = ["--model", str(job.model), "--data", str(file), "--out", str(job.tmp / "long.scores")]
    with pytest.raises(InputError, match=r"long\.jsonl:1: 600 tokens after the cut, but .* has 512; lower"):
        score.main(told)
    with pytest.raises(InputError, match=r"^1 of 1 rows cannot be used; .*\n.*or accept such rows: --beyond-context$"):
        job(data=str(file))
    assert not list(job.tmp.glob("run*"))
    score.main([*told, "--beyond-context"])
    assert json.loads((job.tmp / "long.scores").read_text())["tokens/chosen"] == 200


def test_a_run_writes_down_what_was_cut_left_out_and_held_out_twice(job, capsys):
    rows = [{"prompt_ids": [2, 3, 4], "chosen_ids": [5] * n, "rejected_ids": [6], "id": n} for n in (1, 2, 3, 9)] + [
        {"prompt_ids": [2] * 8, "chosen_ids": [5], "rejected_ids": [6]}
    ]
    data = tiny.write_rows(job.tmp / "data.jsonl", rows)
    heldout = tiny.write_rows(job.tmp / "heldout.jsonl", [rows[0], rows[0] | {"prompt_ids": [9]}])
    result, found = job(data=str(data), eval_data=str(heldout), max_tokens=6, batch_size=2)
    written = yaml.safe_load((result.out / "config.yaml").read_text())
    assert [written[f"max_{name}"] for name in ("tokens", "prompt_tokens", "response_tokens")] == [6, None, None]
    facts = written["facts"]
    assert (facts["rows"], facts["too_long_prompts"]) == (4, 1)
    assert facts["cut_shares"] == {"prompts": 0.0, "chosen": 0.25, "rejected": 0.0}
    assert (facts["heldout_rows_in_data"], facts["heldout_prompts_in_data"]) == (1, 1)
    said = capsys.readouterr().err
    for sentence in (
        "4 rows, 0 prompts and 1 responses cut (25.0 % of chosen), 1 rows left out because their prompts leave",
        "1 of 2 held-out rows are trained on too, and 1 share their prompt with a training row: what is measured on",
    ):
        assert sentence in said
    assert found[-1]["data/too_long_prompts"] == 1


def test_bf16_compute_keeps_float32_masters(job):
    result, found = job(dtype="bfloat16", lr=1e-6, save_dtype="float32")
    assert found[0]["rewards/chosen"] == 0.0
    before, after = weights.load(job.model), weights.load(result.checkpoints[-1])
    moved = [(p != q).double().mean().item() for p, q in zip(before.parameters(), after.parameters(), strict=True)]
    assert min(moved) > 0.2  # plain bf16 weights would hardly move at this rate


@pytest.mark.slow
@pytest.mark.skipif(not REAL.exists(), reason="the real pairs are not at hand")
def test_real_pairs_on_two_ranks(tmp_path):
    rows = [json.loads(line) for line in REAL.read_text().splitlines()[:40]]
    model = tiny.write_model(
        tmp_path / "m", [r["chosen"] for r in rows], vocab_size=600, std=0.05, max_position_embeddings=1024
    )
    flags = ["--model", str(model), "--data", str(REAL), "--loss", "apo_zero", "--max-steps", "4", "--dtype", "float32"]
    done = torchrun(2, *flags, "--out", str(tmp_path / "run"))
    assert done.returncode == 0, done.stderr[-2000:]
    found = lines(tmp_path / "run")
    assert found[0]["rewards/chosen"] == found[0]["rewards/rejected"] == 0.0 and len(found) == 4
    AutoModelForCausalLM.from_pretrained(tmp_path / "run/epoch-01")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "run/epoch-01")
    assert tokenizer.apply_chat_template([{"role": "user", "content": "hi"}], tokenize=False).startswith(
        "<|begin_of_text|>"
    )
