"""A finished run that is gone on with in a folder of its own: weights, moments, and the reference that stays."""

import shutil
import subprocess
import sys

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch.optim.lr_scheduler import LambdaLR

from engine import train
from engine.config import TrainConfig
from engine.inputs import TrainingInputs
from engine.step import Hooks
from system import InputError
from tests import tiny
from tests.metrics import lines
from tests.rows import id_rows


@pytest.fixture
def go(tmp_path):
    """A function that runs a training of epochs of 3 steps at a rate that does not fall, in a folder by name."""
    model = tiny.write_model(tmp_path / "model", vocab_size=101)
    rows = tiny.write_rows(tmp_path / "rows.jsonl", id_rows(22))

    def config(name, **changes):
        settings = {"model": str(model), "data": str(rows), "lr": 3e-4, "batch_size": 6, "eval_pairs": 4}
        return TrainConfig(**(settings | {"loss": "dpo", "epochs": 2, "out": str(tmp_path / name)} | changes))

    def run(name, **changes):
        return train.run(config(name, **changes), Hooks(begin=constant))

    run.tmp, run.model, run.rows, run.config = tmp_path, model, rows, config
    return run


def constant(training):
    training.schedule = LambdaLR(training.optimizer, lambda done: 1.0)


def last(result):
    return load_file(result.checkpoints[-1] / "model.safetensors")


def same(a, b):
    return all(torch.equal(a[name], b[name]) for name in a) and a.keys() == b.keys()


SHAPES = {
    "rmsprop": {},
    "adamw": {"optimizer": "adamw"},  # whose moments count their steps
    "split": {"master_weights": "split", "save_dtype": "float32"},
    "state of its own": {"loss": "bco"},
    "moving": {"reference_update": "soft", "reference_update_steps": 2},
}


@pytest.mark.parametrize(
    "kind",
    ["adamw", "split", "moving", *(pytest.param(k, marks=pytest.mark.slow) for k in ("rmsprop", "state of its own"))],
)
def test_two_runs_of_two_epochs_are_one_of_four(go, kind):
    """To the last bit, at a rate that does not fall: weights, moments, and the orders of rows of epochs 3 and 4."""
    settings = SHAPES[kind] | ({"eval_pairs": 0} if kind == "state of its own" else {})
    whole = go("whole", **settings, epochs=4)
    first = go("first", **settings, keep_final_state=True)
    more = go("more", **settings, continue_from=str(first.out))
    assert same(last(whole), last(more)) and not same(last(first), last(more))
    n = len(lines(first.out))
    for a, b in zip(lines(whole.out)[n:], lines(more.out), strict=True):
        for name in ("loss", "grad_norm", "rewards/chosen", "rewards/rejected"):
            assert a.get(name) == b.get(name)
    if kind == "adamw":  # and again, from a run that has gone on itself
        third = go("third", **settings, epochs=6)
        again = go("again", **settings, continue_from=str(go("more2", **settings, continue_from=str(first.out),
                   keep_final_state=True).out))  # fmt: skip
        assert same(last(third), last(again))


def test_the_reference_is_the_model_that_the_first_run_began_with(go):
    first = go("first", keep_final_state=True)
    more = go("more", continue_from=str(first.out), eval_every=1, epochs=1, reference="precompute")
    start, *_ = lines(more.out)
    for name in ("eval_loss", "eval_rewards/chosen", "eval_rewards/margins", "eval_logps/rejected"):
        assert start[name] == pytest.approx(lines(first.out)[-1][name], abs=1e-9)
    assert abs(start["eval_rewards/margins"]) > 1e-3  # 0 against its own start
    one, two = (out / "reference.safetensors" for out in (first.out, more.out))
    found = [(f.metadata(), f.get_tensor("ref_logps")) for f in (safe_open(p, "pt") for p in (one, two))]
    assert found[0][0] == found[1][0] and torch.equal(found[0][1], found[1][1])
    assert f"reference_cache: taken from {one}" in (more.out / "config.yaml").read_text()
    before = one.read_bytes()
    one.rename(go.tmp / "kept")
    anew = go("anew", continue_from=str(first.out), epochs=1, reference="precompute")  # by the model that it began with
    tables = [load_file(path)["ref_logps"] for path in (go.tmp / "kept", anew.out / "reference.safetensors")]
    assert torch.allclose(*tables, rtol=0, atol=1e-4)  # of another pass
    assert [x["loss"] for x in lines(anew.out)] == pytest.approx([x["loss"] for x in lines(more.out)[1:]], abs=1e-5)
    one.write_bytes(before)
    other = tiny.write_rows(go.tmp / "other.jsonl", id_rows(22, seed=7))
    go("other", continue_from=str(first.out), epochs=1, data=str(other))
    assert one.read_bytes() == before  # which does not fit, and stays as it is


def test_without_a_final_state_the_weights_of_the_last_folder_go_on_and_moments_begin_anew(go, capsys):
    first = go("first", early_stop="rewards/accuracies:1", lr=3e-4, epochs=3)
    capsys.readouterr()
    more = go("more", continue_from=str(first.out), eval_every=1, epochs=1)
    said = capsys.readouterr().err
    assert f"continues with the weights of {first.checkpoints[-1]}, in float32" in said
    assert "has kept no final state (--keep-final-state), so that the optimizer's moments begin at 0" in said
    assert lines(more.out)[0]["eval_loss"] == pytest.approx(lines(first.out)[-1]["eval_loss"], abs=1e-9)


def test_another_optimizer_takes_the_weights_and_begins_its_moments_anew(go, capsys):
    first = go("first", keep_final_state=True)
    more = go("more", continue_from=str(first.out), optimizer="adamw", eval_every=1, epochs=1)
    assert "but not with its optimizer's moments, since rmsprop is not adamw" in capsys.readouterr().err
    assert lines(more.out)[0]["eval_loss"] == lines(first.out)[-1]["eval_loss"]


def test_a_run_that_goes_on_is_stopped_and_resumed_as_any_other(go):
    first = go("first", keep_final_state=True)
    whole = go("whole", continue_from=str(first.out))
    for step in (1, 3, None):
        parts = go("parts", continue_from=str(first.out), resume=True, stop_after=step)
    assert same(last(whole), last(parts))
    (first.out / "state/step-000006/manifest.json").write_text("{}")
    with pytest.raises(InputError, match=r"continued from: step 6, .* -> step 6"):
        go("parts", continue_from=str(first.out), resume=True)


def test_what_cannot_be_gone_on_with_is_refused(go):
    done = go("done", keep_final_state=True, epochs=1)
    stopped = go("stopped", stop_after=1)
    other = tiny.write_model(go.tmp / "other", vocab_size=101, seed=5)
    moved = go("moved", reference_update="hard", reference_update_steps=1, epochs=1)
    bare = shutil.copytree(done.out, go.tmp / "bare")
    shutil.rmtree(bare / "epoch-01")
    shutil.rmtree(bare / "state/step-000003")
    torn = shutil.copytree(done.out, go.tmp / "torn")
    next((torn / "state/step-000003").glob("*.distcp")).write_bytes(b"")
    for said, run, changes in (
        ("holds no run; give a run's folder", go.tmp / "nowhere", {}),
        ("is not finished; finish it first, with --resume", stopped.out, {}),
        ("began with another model than --model", done.out, {"model": str(other)}),
        ("its final state holds other master weights; add --master-weights", done.out, {"master_weights": "split"}),
        ("was trained with --reference-update hard", moved.out, {}),
        ("its reference was updated", moved.out, {"reference_update": "hard", "reference_update_steps": 1}),
        ("its last checkpoint, epoch-01 or step-000003, is missing", bare, {}),
        (r"not the .* bytes that were written; restore it, or remove", torn, {}),
        ("is the same folder as --out", go.tmp / "more", {}),
        ("cannot be combined with --stages", done.out, {"stages": 2}),
    ):
        with pytest.raises(InputError, match=said):
            go("more", continue_from=str(run), **changes)
        assert not (go.tmp / "more/metrics.jsonl").exists() or not lines(go.tmp / "more")
        shutil.rmtree(go.tmp / "more", ignore_errors=True)


@pytest.mark.slow
def test_two_ranks_take_up_what_one_has_left(go):
    """Weights and moments by shards: the losses of one process within 1e-5, the reference's table the same."""
    first = go("first", keep_final_state=True, optimizer="adamw")
    flags = ["--model", str(go.model), "--data", str(go.rows), "--loss", "dpo", "--optimizer", "adamw", "--lr", "3e-4"]
    flags += ["--batch-size", "6", "--eval-pairs", "4", "--epochs", "1", "--eval-every", "1"]
    flags += ["--continue-from", str(first.out), "--out"]
    for n in (1, 2):
        launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(n)]
        done = subprocess.run(
            [*launch, "-m", "engine.train", *flags, str(go.tmp / f"on-{n}")], capture_output=True, text=True,
            env=tiny.environment(), cwd=tiny.ROOT, timeout=300, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr[-3000:]
    one, two = (lines(go.tmp / f"on-{n}") for n in (1, 2))
    assert len(one) == 4 and one[0]["eval_loss"] == pytest.approx(lines(first.out)[-1]["eval_loss"], abs=1e-9)
    for a, b in zip(one, two, strict=True):
        for name in ("loss", "eval_loss"):
            assert a.get(name) == (None if name not in b else pytest.approx(b[name], abs=1e-5))


def test_rows_come_in_orders_that_the_first_run_has_not_had(go):
    first = go("first", keep_final_state=True)
    more = TrainingInputs(go.config("more", continue_from=str(first.out)))
    whole = TrainingInputs(go.config("whole", epochs=4))
    assert [more.steps.step(n).ids.tolist() for n in range(1, 7)] == [
        whole.steps.step(n).ids.tolist() for n in range(7, 13)
    ]
