"""A run's folder: what may be one, whose it is, how its metrics are cut, and whether its disk has room."""

import json
import os
import re
import shutil
from collections import namedtuple
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import yaml

from engine.config import TrainConfig
from engine.distributed import Ranks
from engine.model import read_config
from engine.planning import cost
from engine.run import RunFolder, check_folder, disk_space, has_split_masters, last_line
from engine.run.folder import cut_metrics, holds_run
from system import InputError
from system.run_folder import best_of, checkpoint_name, checkpoints_of
from tests import tiny


def config(out, **flags):
    return TrainConfig(model="m", data="d", out=str(out), **flags)


def metrics(folder, *steps, tail=""):
    folder.mkdir(exist_ok=True)
    (folder / "metrics.jsonl").write_text("".join(f'{{"step": {n}, "loss": {n}.5}}\n' for n in steps) + tail)
    return folder


# --- what may be one -----------------------------------------------------------------------------------------------


def test_a_new_or_an_empty_folder_may_be_one(tmp_path):
    check_folder(tmp_path)
    check_folder(tmp_path / "a/b/c")
    assert not list(tmp_path.iterdir())  # the probe is gone


@pytest.mark.parametrize("name", ["config.yaml", "metrics.jsonl"])
def test_a_folder_that_holds_a_run_is_gone_on_with_or_refused(tmp_path, name):
    (tmp_path / name).touch()
    assert holds_run(tmp_path)
    check_folder(tmp_path, resumes=True)
    with pytest.raises(InputError, match=r"holds a run already; resume it with --resume, give another --out"):
        check_folder(tmp_path)


def test_what_is_no_folder_is_refused(tmp_path):
    (tmp_path / "file").touch()
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    for name in ("file", "link"):
        with pytest.raises(InputError, match=rf"{name}: not a folder; --out has to be one"):
            check_folder(tmp_path / name)
    with pytest.raises(InputError, match="Not a directory; give another --out"):
        check_folder(tmp_path / "file/beneath")


# --- what is in it -------------------------------------------------------------------------------------------------


def test_epochs_are_found_oldest_first_by_number(tmp_path):
    for name in ("epoch-10", "epoch-02", "epoch-9", "epoch-x", "epoch-03.tmp"):
        (tmp_path / name).mkdir()
    assert [path.name for path in checkpoints_of(tmp_path)] == ["epoch-02", "epoch-9", "epoch-10"]


def test_checkpoints_of_both_kinds_are_in_the_order_of_their_steps(tmp_path):
    """Epochs of 120 steps: epoch-02 ends with step 240. A run of 300 steps ends in epoch-03."""
    names = ["step-000040", "epoch-01", "step-000160", "epoch-02", "step-000280", "epoch-03"]
    for name in [*names[::-1], "step-x", "step-000300.tmp", "step-000041.old.tmp"]:
        (tmp_path / name).mkdir()
    text = '{"step": 0, "epoch": 0.0, "eval_loss": 1.0}\n{"step": 1, "epoch": 0.008333333333333333}\n'
    (tmp_path / "metrics.jsonl").write_text(text)
    assert [path.name for path in checkpoints_of(tmp_path)] == names
    assert [checkpoint_name(step, 120, 300) for step in (40, 120, 160, 240, 280, 300)] == names


def test_best_is_where_its_link_leads_and_nowhere_where_that_is_gone(tmp_path):
    assert best_of(tmp_path) is None
    (tmp_path / "best").symlink_to("step-000040")
    assert best_of(tmp_path) is None
    (tmp_path / "step-000040").mkdir()
    assert best_of(tmp_path) == tmp_path / "step-000040"


@pytest.mark.parametrize(
    ("text", "found"),
    [('{"master": "split"}', True), ('{"master": "whole"}', False), ("{}", None), ("[1]", None), ("no", None)],
)
def test_how_masters_lie_is_read_where_it_is_written(tmp_path, text, found):
    assert has_split_masters(tmp_path) is None
    (tmp_path / "state").mkdir()
    (tmp_path / "state/identity.json").write_text(text)
    assert has_split_masters(tmp_path) is found


# --- metrics -------------------------------------------------------------------------------------------------------


def test_metrics_are_cut_behind_the_step_that_is_gone_on_from(tmp_path):
    folder = metrics(tmp_path, 1, 2, 3, tail='{"step": 4, "lo')
    assert last_line(metrics(tmp_path, 1, 2)) == {"step": 2, "loss": 2.5}
    metrics(tmp_path, 1, 2, 3, tail='{"step": 4, "lo')
    assert cut_metrics(folder, 2) == {"step": 2, "loss": 2.5}
    assert (folder / "metrics.jsonl").read_text() == '{"step": 1, "loss": 1.5}\n{"step": 2, "loss": 2.5}\n'
    assert cut_metrics(folder, 0) == {} and (folder / "metrics.jsonl").read_text() == ""


def test_a_line_of_step_0_stays_before_those_of_steps_and_goes_where_a_run_begins_anew(tmp_path):
    folder = metrics(tmp_path, 0, 1, 2)
    assert cut_metrics(folder, 1) == {"step": 1, "loss": 1.5}
    assert (folder / "metrics.jsonl").read_text() == '{"step": 0, "loss": 0.5}\n{"step": 1, "loss": 1.5}\n'
    assert cut_metrics(folder, 0) == {} and (folder / "metrics.jsonl").read_text() == ""


@pytest.mark.parametrize("tail", ["", '{"step": 3, "loss": 3.5}', "\n", "nonsense\n"])
def test_metrics_without_the_whole_line_of_a_step_are_refused_and_left(tmp_path, tail):
    folder = metrics(tmp_path, 1, 2, tail=tail)
    before = (folder / "metrics.jsonl").read_text()
    with pytest.raises(InputError, match=r"metrics\.jsonl: the line of step 3, after which the run would resume, is"):
        cut_metrics(folder, 3)
    assert (folder / "metrics.jsonl").read_text() == before


def test_a_run_that_has_no_metrics_begins_at_0(tmp_path):
    assert cut_metrics(tmp_path, 0) == {} and not list(tmp_path.iterdir())


# --- a run begins --------------------------------------------------------------------------------------------------


@pytest.fixture
def plan():
    """As much of a plan as a folder asks for."""
    shape = read_config(tiny.raw_config(), "f")
    n_bytes = cost.checkpoint_bytes(shape, torch.bfloat16)
    sizes = {"checkpoint_bytes": n_bytes, "state_bytes": 8 * shape.n_parameters, "carried_bytes": 0}
    sizes["can_save_narrower"] = False
    return SimpleNamespace(saves=torch.bfloat16, memory=SimpleNamespace(shape=shape), **sizes)


class Steps:
    """As much of a run's steps as its folder asks for: 3 epochs of 4."""

    per_epoch = 4

    def __len__(self):
        return 12


def begin(asked, plan, identity, **facts):
    with RunFolder(asked, Ranks(dtype=torch.float32)) as folder:
        done = folder.find_state(lambda: identity)
        if not done:
            folder.begin(lambda: identity, plan=plan, steps=Steps(), settings={"dpo.beta": 0.25}, facts=facts)
            folder.write("note.txt", "said")
            folder.finish(12 if facts.get("all") else 5, 12)
        return done


def test_a_run_that_begins_writes_what_it_was_asked_for_and_what_was_found(tmp_path, plan):
    asked = config(tmp_path / "run", lr=1e-5, loss="dpo", beta=0.25)
    assert begin(asked, plan, {"a": "1"}, rows=22) is False
    written = yaml.safe_load((tmp_path / "run/config.yaml").read_text())
    assert float(written["lr"]) == 1e-5 and written["dtype"] == "float32" and written["save_dtype"] == "bfloat16"
    assert written["dpo.beta"] == 0.25 and written["facts"] == {"rows": 22}
    assert not {"config", "hyperparameters", "beta", "resume"} & set(written)
    assert set(asked.flat()) - set(written) == {"config", "hyperparameters", "beta", "resume"}
    assert json.loads((tmp_path / "run/state/identity.json").read_text()) == {"a": "1"}
    assert (tmp_path / "run/note.txt").read_text() == "said" and (tmp_path / "run/metrics.jsonl").read_text() == ""
    assert not (tmp_path / "run/state/finished.json").exists()


def test_a_finished_run_is_known_and_another_one_is_refused(tmp_path, plan):
    asked, again = (config(tmp_path / "run", resume=resumes) for resumes in (False, True))
    begin(asked, plan, {"a": "1", "b": "2"}, all=1)
    assert begin(again, plan, {"a": "1", "b": "2"}) is True
    with pytest.raises(InputError, match=r"--resume would resume another run \(b: 2 -> 3\)"):
        begin(again, plan, {"a": "1", "b": "3"})
    with pytest.raises(InputError, match="holds a run already"):
        begin(asked, plan, {"a": "1", "b": "2"})


def test_what_was_left_half_written_is_removed_when_a_run_begins(tmp_path, plan):
    for name in ("epoch-01.tmp", "epoch-02.old.tmp", "epoch-03"):
        (tmp_path / "run" / name).mkdir(parents=True)
    begin(config(tmp_path / "run"), plan, {})
    assert sorted(path.name for path in (tmp_path / "run").glob("epoch*")) == ["epoch-03"]


def test_two_at_once_cannot_write_into_one_folder(tmp_path, plan):
    asked = config(tmp_path / "run")
    with RunFolder(asked, Ranks(dtype=torch.float32)) as folder:
        folder.begin(dict, plan=plan, steps=Steps(), settings={}, facts={})
        with pytest.raises(InputError, match=rf"is writing here.*{os.getpid()}|{os.getpid()}.*is writing here"):
            begin(config(tmp_path / "run", resume=True), plan, {})


# --- room ----------------------------------------------------------------------------------------------------------

Usage = namedtuple("Usage", "total used free")


def checked(monkeypatch, out, plan, free, *, n_done=0, n_checkpoints=0, **flags):
    monkeypatch.setattr(shutil, "disk_usage", lambda _: Usage(0, 0, free))
    asked = config(out, **flags)
    plan.state_bytes = {"rmsprop": 8, "adamw": 12}[asked.optimizer.name] * plan.memory.shape.n_parameters
    disk_space.check(Path(asked.out), asked.checkpoints, plan, Steps(), n_done=n_done, n_checkpoints=n_checkpoints)


@pytest.mark.parametrize(
    ("flags", "n_states"),
    [
        ({}, 2),  # a new one is whole before the old goes
        ({"state_every": 0}, 0),
        ({"state_every": 0, "stop_after": 3}, 1),
        ({"state_every": 11}, 1),
        ({"state_every": 1, "keep_state": 4}, 5),
        ({"n_done": 4}, 1),  # the others are there
        ({"optimizer": "adamw"}, 3),  # of three numbers, not two
        ({"state_every": 0, "keep_final_state": True}, 1),
        ({"state_every": 11, "keep_final_state": True}, 2),
    ],
)
def test_a_checkpoint_and_its_states_have_to_find_room(tmp_path, monkeypatch, plan, flags, n_states):
    """bf16 checkpoints of 2 bytes; states of 4 bytes a number, masters and RMSProp's mean of squares."""
    n = plan.memory.shape.n_parameters
    needed = 2 * n + n_states * 8 * n
    checked(monkeypatch, tmp_path, plan, needed, **flags)
    with pytest.raises(
        InputError, match=r"[\d.]+ GB are free, and a checkpoint and its states take [\d.]+ GB; make room"
    ):
        checked(monkeypatch, tmp_path, plan, needed - 1, **flags)


@pytest.mark.parametrize(
    ("flags", "n_left"),
    [
        ({}, 3),
        ({"keep_checkpoints": 2}, 2),
        ({"n_checkpoints": 1}, 2),
        ({"save_every": 2}, 6),
        ({"save_every": 3}, 6),
        ({"save_every": 5}, 5),  # 2 6 10; 3 6 9; 5 10; and 4 8 12
        ({"save_every": 2, "keep_checkpoints": 2}, 2),
        ({"save_every": 2, "keep_checkpoints": 2, "keep_best": "loss", "eval_pairs": 1}, 3),
    ],
)
def test_what_will_not_all_find_room_is_said(tmp_path, monkeypatch, plan, capsys, flags, n_left):
    n = plan.memory.shape.n_parameters
    needed = n_left * 2 * n + 2 * 8 * n
    checked(monkeypatch, tmp_path, plan, needed, **flags)
    assert not capsys.readouterr().err
    checked(monkeypatch, tmp_path, plan, needed - 1, **flags)
    assert re.search(rf"and {n_left} checkpoints and states will take [\d.]+ GB:", capsys.readouterr().err)


def test_what_a_model_carries_has_to_find_room_in_a_checkpoint_and_once_beside_the_states(tmp_path, monkeypatch, plan):
    n = plan.memory.shape.n_parameters
    plan.checkpoint_bytes, plan.carried_bytes = 2 * n + 1000, 1000
    for flags, n_states, times in (({}, 2, 2), ({"n_done": 4}, 1, 1)):
        needed = 2 * n + n_states * 8 * n + times * 1000
        checked(monkeypatch, tmp_path, plan, needed, **flags)
        with pytest.raises(InputError, match=rf"its states take {needed / 1e9:.9f} GB"):
            checked(monkeypatch, tmp_path, plan, needed - 1, **flags)
