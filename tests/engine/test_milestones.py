"""What is measured and saved inside an epoch, which folder is kept as the best, and when a run ends early."""

import json
import signal
import subprocess
import sys
import time

import pytest
import torch

from engine import train, weights
from engine.config import TrainConfig
from engine.inputs import TrainingInputs
from engine.run.best import Record
from engine.score import score_under
from engine.step import HeldOut, Hooks, heldout_names
from eval import checkpoints
from system import InputError
from tests import tiny
from tests.engine.kills import TIMES, outcome
from tests.metrics import lines
from tests.rows import id_rows

N_STEPS = 9  # 3 epochs of 3
INSIDE = {"eval_every": 2, "save_every": 2}
MEASURE = HeldOut.measure


@pytest.fixture
def go(tmp_path):
    """A function that runs a training of 3 epochs of 3 steps, 4 pairs held out, in a folder by name."""
    model = tiny.write_model(tmp_path / "model", vocab_size=101)
    rows = tiny.write_rows(tmp_path / "rows.jsonl", id_rows(22))

    def config(name, **changes):
        settings = {"model": str(model), "data": str(rows), "lr": 1e-4, "batch_size": 6, "epochs": 3, "eval_pairs": 4}
        return TrainConfig(**(settings | {"loss": "dpo", "out": str(tmp_path / name)} | changes))

    def run(name, hooks=None, **changes):
        return train.run(config(name, **changes), hooks or Hooks())

    run.tmp, run.model, run.rows, run.config = tmp_path, model, rows, config
    return run


def folders(out):
    return sorted(path.name for path in out.iterdir() if path.name.startswith(("epoch-", "step-")))


def without_clock(line):
    return {name: value for name, value in line.items() if name not in TIMES}


def measured(out, name="eval_loss"):
    """A held-out number by step."""
    return {line["step"]: line[name] for line in lines(out) if name in line}


def test_a_share_of_the_steps_is_so_many_of_them_rounded_up(go):
    """transformers: ceil(share * steps); 0.4 of 9 steps are 4, 0.2 are 2."""
    out = go("shares", save_every=0.4, eval_every=0.2).out
    assert folders(out) == ["epoch-01", "epoch-02", "epoch-03", "step-000004", "step-000008"]
    assert sorted(measured(out)) == [0, 2, 3, 4, 6, 8, 9]


def test_a_run_that_measures_and_saves_inside_its_epochs_is_the_same_run(go):
    plain, inside = go("plain"), go("inside", **INSIDE)
    first, *rest = lines(inside.out)
    assert first.keys() == {"step", "epoch", *(name for name in first if name.startswith("eval_"))}
    assert (first["step"], first["epoch"]) == (0, 0) and first["eval_loss"] == pytest.approx(0.6931471805599453)
    assert first["eval_rewards/chosen"] == first["eval_rewards/rejected"] == 0
    assert [*measured(plain.out)] == [3, 6, 9] and [*measured(inside.out)] == [0, 2, 3, 4, 6, 8, 9]
    for a, b in zip(lines(plain.out), rest, strict=True):
        a, b = without_clock(a), without_clock(b)
        assert {name: b[name] for name in a} == a and all(name.startswith("eval_") for name in b.keys() - a.keys())
    names = ["step-000002", "epoch-01", "step-000004", "epoch-02", "step-000008", "epoch-03"]
    assert [path.name for path in inside.checkpoints] == names and folders(inside.out) == sorted(names)
    assert [path.name for path in plain.checkpoints] == ["epoch-01", "epoch-02", "epoch-03"]
    for name in ("epoch-01", "epoch-02", "epoch-03"):
        whole, other = ((out / name / "model.safetensors").read_bytes() for out in (plain.out, inside.out))
        assert whole == other


def test_without_a_reference_held_out_rewards_are_of_log_probs_as_in_training(go):
    """sft's reward is beta times the log-ratio where the run has a reference, and beta times the log-prob where not."""
    last = lines(go("alone", loss="sft", eval_every=1, max_steps=2).out)[-1]
    assert last["rewards/chosen"] == pytest.approx(0.1 * last["logps/chosen"])
    assert last["eval_rewards/chosen"] == pytest.approx(0.1 * last["eval_logps/chosen"])
    assert abs(last["eval_logratios/chosen"] - last["eval_logps/chosen"]) > 1


def test_a_folder_inside_an_epoch_holds_the_weights_of_its_step(go):
    """Its log-probs of the held-out pairs are those in the step's own line, and those of the step before are others."""
    out = go("run", **INSIDE, epochs=2).out
    heldout = TrainingInputs(go.config("again")).heldout
    for step in (2, 4):
        found = torch.stack(list(score_under(out / f"step-{step:06d}", heldout)))[:, 0].mean().item()
        said = measured(out, "eval_logps/chosen")
        assert found == pytest.approx(said[step], abs=1e-5)
        assert abs(said[step] - said[step - 1 if step > 2 else 0]) > 1e-3


JOBS = {
    "best": {"keep_best": "loss", "eval_every": 1},
    "few": {"keep_best": "rewards/accuracies", "keep_checkpoints": 1, **INSIDE},
    "early": {"early_stop": "loss:2", "keep_best": "rewards/margins", "eval_every": 1, "lr": 1e-3},
}


@pytest.mark.parametrize("kind", ["early", *(pytest.param(k, marks=pytest.mark.slow) for k in ("best", "few"))])
def test_a_run_that_stops_after_every_step_is_the_same_run(go, kind):
    whole = go("whole", **JOBS[kind])
    assert whole.is_finished and (whole.n_steps < N_STEPS) == (kind == "early")
    for step in range(1, whole.n_steps):
        assert not go("stopped", **JOBS[kind], resume=True, stop_after=step).is_finished
    assert go("stopped", **JOBS[kind], resume=True).is_finished
    assert outcome(whole.out) == outcome(go.tmp / "stopped")


# --- the best ------------------------------------------------------------------------------------------------------


def scripted(monkeypatch, values):
    """Lets held-out losses be these, one for each measurement."""
    given = iter(values)
    monkeypatch.setattr(HeldOut, "measure", lambda *a: MEASURE(*a) | {"eval_loss": next(given)})


def test_best_is_a_link_to_the_folder_of_the_best_measurement_however_old(go, monkeypatch, capsys):
    """Measured after steps 2 and 4 too, which have folders as long as they are the best alone."""
    seen = {}

    def look(step, line):
        best = go.tmp / "run/best"
        seen[step.number] = best.readlink().name if best.exists() else None

    scripted(monkeypatch, [9.0, 0.5, 0.6, 0.4, 0.7, 0.8, 0.9])  # steps 0, 2, 3, 4, 6, 8, 9
    result = go("run", Hooks(after_log=look), keep_best="loss", eval_every=2, keep_checkpoints=1)
    assert seen == dict(zip(range(1, 10), [None, *["step-000002"] * 2, *["step-000004"] * 6], strict=True))
    assert [path.name for path in result.checkpoints] == ["step-000004", "epoch-03"] == folders(result.out)[::-1]
    assert "the best is step-000004, eval_loss 0.4, the smallest" in capsys.readouterr().err
    weights.load(result.out / "best")
    assert [c.name for c in checkpoints.find(result.out / "best", with_base=False)] == ["step-000004"]
    assert checkpoints.prune(result.out, {"step-000004": 0.1, "epoch-03": 0.9}, set()) == []  # the link leads there


def test_a_folder_that_was_asked_for_stays_when_it_is_the_best_no_more(go, monkeypatch):
    scripted(monkeypatch, [9.0, 0.5, 0.6, 0.4, 0.3, 0.8, 0.9])
    result = go("run", keep_best="loss", eval_every=2, save_every=4)
    names = [path.name for path in result.checkpoints]
    assert names == ["epoch-01", "step-000004", "epoch-02", "step-000008", "epoch-03"]
    assert (result.out / "best").readlink().name == "epoch-02"


def test_the_best_of_a_state_stays_until_a_newer_state_is_whole(go, monkeypatch):
    """A run dies after step 3, its best, and goes on from step 2, where the best was step 2; step 3 is worse then."""
    settings = {"keep_best": "loss", "eval_every": 1, "state_every": 2, "keep_checkpoints": 1}

    def die(step, line):
        if step.number == 3:
            raise RuntimeError("the power is gone")

    scripted(monkeypatch, [9.0, 0.6, 0.5, 0.4])
    with pytest.raises(RuntimeError, match="the power is gone"):
        go("run", Hooks(after_log=die), **settings)
    out = go.tmp / "run"
    assert [p.name for p in (out / "state").glob("step-*")] == ["step-000002"]
    assert folders(out) == ["epoch-01", "step-000002"] and (out / "best").readlink().name == "epoch-01"
    scripted(monkeypatch, [0.55, 0.7, 0.7, 0.7, 0.7, 0.7, 0.7])  # steps 3 to 9
    go("run", **settings, resume=True)
    assert folders(out) == ["epoch-03", "step-000002"] and (out / "best").readlink().name == "step-000002"


def test_the_best_of_a_run_with_mismatched_sequences_is_by_its_own_loss(go):
    """KTO's held-out loss and KL; a name that is not among its own is refused before the run begins, as any is."""
    result = go("run", loss="kto", keep_best="loss", early_stop="kl:99", eval_every=2, epochs=1)
    found = measured(result.out)
    best = min((step for step in found if step), key=lambda step: (found[step], step))
    name = (result.out / "best").readlink().name
    assert name == ("epoch-01" if best == result.n_steps else f"step-{best:06d}")
    with pytest.raises(
        InputError, match=r"--keep-best: no metric of the held-out rows is called 'los'; perhaps eval_loss"
    ) as fault:
        go("other", loss="kto", keep_best="los", eval_every=2)
    assert not (go.tmp / "other").exists()
    there = str(fault.value).partition("there are: ")[2].split(", ")
    assert there == sorted(name for name in lines(result.out)[0] if name.startswith("eval_"))


@pytest.mark.parametrize("loss", ["dpo", "simpo", "sft", "bco", "tdpo1", "f_dpo", "apo_zero_revised"])
def test_the_names_that_can_be_followed_are_those_that_are_measured(go, loss):
    """Before weights are read, by log-probs that are made up; and in the run's line of step 0."""
    inputs = TrainingInputs(go.config("names", loss=loss))
    result = go("run", loss=loss, eval_every=1, max_steps=1)
    found = [name for name in lines(result.out)[0] if name.startswith("eval_")]
    assert sorted(heldout_names(inputs.objective, inputs.heldout)) == sorted(found)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"keep_best": "los"}, r"--keep-best: no metric of the held-out rows is called 'los'; perhaps eval_loss;"),
        ({"early_stop": "margins:2"}, r"--early-stop: no metric of the held-out rows is called 'margins'"),
        ({"early_stop": "loss"}, r"--early-stop: 'loss' is not METRIC:PATIENCE, such as eval_loss:3"),
        ({"early_stop": "loss:0"}, r"is not METRIC:PATIENCE"),
        ({"eval_every": 2.5}, r"--eval-every: 2.5 is neither a whole number nor a share below 1"),
        ({"save_every": 1.5}, r"--save-every: 1.5 is neither a whole number nor a share below 1"),
        ({"eval_every": 0}, r"--eval-every: 0 has to be above 0"),
        ({"save_every": 0}, r"--save-every: 0 has to be above 0"),
        ({"eval_every": 2, "eval_pairs": 0}, r"--eval-every 2: nothing is held out; name --eval-data or --eval-pairs"),
        ({"keep_best": "loss", "eval_pairs": 0}, r"--keep-best loss: nothing is held out"),
        ({"early_stop": "loss:1", "eval_pairs": 0}, r"--early-stop loss:1: nothing is held out"),
    ],
)
def test_what_cannot_be_followed_is_refused_before_a_folder_is_made(go, changes, said):
    with pytest.raises(InputError, match=said):
        go("run", **changes)
    assert not (go.tmp / "run").exists()


# --- an early end --------------------------------------------------------------------------------------------------


def test_a_run_ends_where_nothing_has_become_better_and_is_finished(go, monkeypatch, capsys):
    """0.5 after step 1 is the best; those after steps 2 and 3 are not better, an equal one neither."""
    scripted(monkeypatch, [0.7, 0.5, 0.5, 0.6, 0.1])
    result = go("run", early_stop="loss:2", eval_every=1, keep_best="loss", epochs=4, batch_size=5)  # epochs of 4 steps
    assert result.n_steps == 3 and result.is_finished and not (result.out / "state/step-000003").exists()
    said = capsys.readouterr().err
    assert "ended after step 3 of 16 (--early-stop: eval_loss was 2 times no better than 0.5 after step 1)" in said
    assert folders(result.out) == ["step-000001", "step-000003"]
    assert json.loads((result.out / "state/finished.json").read_text())["steps"] == 3
    before = (result.out / "metrics.jsonl").read_bytes()
    again = go("run", early_stop="loss:2", eval_every=1, keep_best="loss", epochs=4, batch_size=5, resume=True)
    said = capsys.readouterr().err
    assert "is finished, ended after step 3 (--early-stop: eval_loss" in said and "nothing is left to do" in said
    assert again.n_steps == 3 and again.is_finished and again.metrics["step"] == 3
    assert (result.out / "metrics.jsonl").read_bytes() == before
    assert checkpoints.is_over(result.out)  # for --watch, and for examples.grid
    assert [c.name for c in checkpoints.watch(result.out, with_base=False)] == ["step-000001", "step-000003"]


def test_a_run_that_is_not_over_is_still_watched(go):
    go("run", early_stop="loss:2", stop_after=4)
    assert not checkpoints.is_over(go.tmp / "run")


def test_a_run_killed_between_its_last_state_and_its_end_is_finished_by_resume(go, monkeypatch):
    settings = {"early_stop": "loss:1", "eval_every": 1, "keep_final_state": True}
    scripted(monkeypatch, [0.7, 0.5, 0.6])
    result = go("run", **settings)
    assert result.n_steps == 2 and (result.out / "state/step-000002").is_dir()
    (result.out / "state/finished.json").unlink()
    before = (result.out / "metrics.jsonl").read_bytes()
    again = go("run", **settings, resume=True)
    assert again.n_steps == 2 and again.is_finished and (result.out / "state/finished.json").exists()
    assert (result.out / "metrics.jsonl").read_bytes() == before


def test_other_milestones_are_another_run_where_they_change_what_comes_out(go):
    go("run", stop_after=1, **INSIDE)
    for said, change in {
        "eval_every: 2 -> 1": {"eval_every": 1},
        "keep_best: None -> loss": {"keep_best": "loss"},
        "early_stop: None -> loss:9": {"early_stop": "loss:9"},
    }.items():
        with pytest.raises(InputError, match=said):
            go("run", **(INSIDE | change), resume=True)
    go("run", **(INSIDE | {"save_every": 5}), resume=True, stop_after=5)
    assert folders(go.tmp / "run") == ["epoch-01", "step-000005"]


# --- beside it -----------------------------------------------------------------------------------------------------


def test_what_narrower_folders_lose_is_measured_at_every_folder(go):
    """With the log-probs of its own step, measured there or not."""
    out = go("run", loss="dpo", save_every=1, save_dtype="bfloat16", epochs=2, lr=1e-3).out
    found = lines(out)
    assert all("saved/margins" in line for line in found)
    for line in found:
        if "eval_rewards/margins" in line:
            assert line["saved/computed_margins"] == pytest.approx(line["eval_rewards/margins"], abs=1e-9)
    assert len({line["saved/computed_margins"] for line in found}) == len(found)


def test_a_hook_saves_beside_the_folders_of_steps_too(go):
    seen = []
    hooks = Hooks(save_epoch=lambda training, folder: seen.append(folder.name))
    go("run", hooks, save_every=2, epochs=1)
    assert seen == ["step-000002", "epoch-01"]


def test_stages_that_end_early_hand_on_what_they_ended_with(go):
    """With a rate at which nothing moves every measurement after the first is no better."""
    result = go("run", early_stop="rewards/accuracies:1", stages=2, epochs=3, lr=1e-12)
    assert result.is_finished and [path.name for path in result.checkpoints] == ["epoch-01", "epoch-02"]
    assert [len(lines(go.tmp / "run" / f"stage-0{i}")) for i in (1, 2)] == [4, 4]


@pytest.mark.slow
def test_a_kill_between_any_two_steps_leaves_best_where_it_was(go):
    """A real process, killed by SIGKILL again and again, and gone on with."""
    flags = ["--model", str(go.model), "--data", str(go.rows), "--loss", "dpo", "--lr", "1e-3", "--batch-size", "6"]
    flags += ["--epochs", "3", "--eval-pairs", "4", "--eval-every", "1", "--keep-best", "rewards/margins"]
    flags += ["--early-stop", "loss:4", "--keep-checkpoints", "1", "--state-every", "2", "--out"]
    whole, killed = go.tmp / "whole", go.tmp / "killed"
    command = [sys.executable, "-m", "engine.train", *flags]
    for step in (3, 5, None):
        child = subprocess.Popen([*command, killed, "--resume"], env=tiny.environment(), cwd=tiny.ROOT, stderr=-1)
        while step and child.poll() is None and not (killed.exists() and _has_line(killed, step)):
            time.sleep(0.01)
        if step:
            child.send_signal(signal.SIGKILL)
        _, said = child.communicate(timeout=200)
        assert child.returncode == (-signal.SIGKILL if step else 0), said.decode()
        best = killed / "best"
        assert not best.is_symlink() or (best / "model.safetensors").is_file()
    done = subprocess.run([*command, whole], env=tiny.environment(), cwd=tiny.ROOT, capture_output=True, check=False)
    assert done.returncode == 0, done.stderr.decode()
    assert outcome(whole) == outcome(killed)


def _has_line(out, step):
    path = out / "metrics.jsonl"
    return path.exists() and any(line["step"] >= step for line in lines(out))


@pytest.mark.slow
def test_two_ranks_measure_and_save_inside_an_epoch_and_end_alike(go):
    """Against themselves without, stopped in between, and against one process."""
    jobs = go.tmp / "jobs.json"
    plain = {"model": str(go.model), "data": [str(go.rows)], "lr": 1e-3, "batch_size": 6, "epochs": 3, "loss": "dpo"}
    plain |= {"eval_pairs": 4, "state_every": 2}
    inside = plain | {"eval_every": 1, "save_every": 2, "keep_best": "loss", "early_stop": "rewards/margins:99"}
    asked = [plain | {"out": "plain"}, inside | {"out": "inside"}]
    asked += [inside | {"out": "parts", "resume": True, "stop_after": n} for n in (2, 5, None)]
    jobs.write_text(json.dumps([one | {"out": str(go.tmp / one["out"])} for one in asked]))
    script = go.tmp / "jobs.py"
    script.write_text(
        "import json, sys\nfrom engine import train\nfrom engine.config import TrainConfig\n"
        "for job in json.load(open(sys.argv[1])):\n    train.run(TrainConfig(**job | {'data': tuple(job['data'])}))\n"
    )
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    done = subprocess.run(
        [*launch, str(script), str(jobs)], capture_output=True, text=True, env=tiny.environment(), timeout=500,
        check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    assert outcome(go.tmp / "inside") == outcome(go.tmp / "parts")
    for name in ("epoch-01", "epoch-02", "epoch-03"):
        a, b = ((go.tmp / run / name / "model.safetensors").read_bytes() for run in ("plain", "inside"))
        assert a == b
    alone = go("alone", **{name: x for name, x in inside.items() if name not in ("model", "data")})
    for a, b in zip(lines(alone.out), lines(go.tmp / "inside"), strict=True):
        assert abs(a["eval_loss"] - b["eval_loss"]) < 1e-5
    record = Record("loss")
    record.restore(line for line in lines(alone.out) if line["step"])
    assert (alone.out / "best").readlink() == (go.tmp / "inside/best").readlink()
    assert f"{record.best()[0]}" in (alone.out / "best").readlink().name or record.best()[0] % 3 == 0
