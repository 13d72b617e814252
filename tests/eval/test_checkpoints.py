"""Epochs as they appear, and which of them are removed."""

import json
import threading

import pytest

from eval import checkpoints
from system.errors import InputError


def run_folder(path, n, *, epochs=3, model="nowhere", more=""):
    (path / "config.yaml").parent.mkdir(parents=True, exist_ok=True)
    (path / "config.yaml").write_text(f"model: {model}\nepochs: {epochs}\nmax_steps: null\n{more}")
    for i in range(1, n + 1):
        add_epoch(path, i)
    return path


def add_epoch(path, i):
    folder = path / f"epoch-{i:02d}"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    with open(path / "metrics.jsonl", "a") as file:
        file.write(json.dumps({"step": 10 * i, "epoch": float(i)}) + "\n")


def names(found):
    return [c.name for c in found]


def test_epochs_are_in_order_and_whole(tmp_path):
    run = run_folder(tmp_path / "run", 11, epochs=11)
    (run / "epoch-12.tmp").mkdir()
    (run / "epoch-13").mkdir()  # not written through: no config.json
    assert names(checkpoints.of(run)) == [f"epoch-{i:02d}" for i in range(1, 12)]
    assert names(checkpoints.find(run / "epoch-02", with_base=True)) == ["epoch-02"]
    with pytest.raises(InputError, match="neither a checkpoint nor a run"):
        checkpoints.find(tmp_path, with_base=False)


def test_the_base_is_what_config_yaml_names(tmp_path):
    (tmp_path / "base").mkdir()
    run = run_folder(tmp_path / "run", 2, model=str(tmp_path / "base"))
    assert names(checkpoints.find(run, with_base=True)) == ["base", "epoch-01", "epoch-02"]
    assert names(checkpoints.find(run, with_base=False)) == ["epoch-01", "epoch-02"]


def test_a_watch_gives_each_epoch_once_and_ends_with_the_run(tmp_path, monkeypatch):
    monkeypatch.setattr(checkpoints, "WATCH_SECONDS", 0.02)
    run = run_folder(tmp_path / "run", 1)
    seen = []
    for checkpoint in checkpoints.watch(run, with_base=True):
        seen.append(checkpoint.name)
        if len(seen) < 3:
            threading.Timer(0.05, add_epoch, (run, len(seen) + 1)).start()
    assert seen == ["epoch-01", "epoch-02", "epoch-03"]


def add_step(run, n):
    (run / f"step-{n:06d}").mkdir()
    (run / f"step-{n:06d}/config.json").write_text("{}")


def test_checkpoints_inside_epochs_stand_between_them(tmp_path):
    """Epochs of 10 steps."""
    run = run_folder(tmp_path / "run", 2)
    for step in (25, 5, 15):
        add_step(run, step)
    (run / "step-000030.tmp").mkdir()
    in_order = ["step-000005", "epoch-01", "step-000015", "epoch-02", "step-000025"]
    assert names(checkpoints.of(run)) == names(checkpoints.find(run, with_base=False)) == in_order
    (run / "state").mkdir()
    (run / "state/finished.json").write_text('{"steps": 25, "why": "--early-stop: ..."}')
    assert checkpoints.is_over(run)
    assert names(checkpoints.watch(run, with_base=False)) == in_order


def test_a_run_that_has_measured_before_its_first_step_is_not_over(tmp_path):
    run = run_folder(tmp_path / "run", 0)
    (run / "metrics.jsonl").write_text('{"step": 0, "epoch": 0.0, "eval_loss": 0.7}\n')
    assert not checkpoints.is_over(run)


def test_the_folder_that_best_is_a_link_to_is_not_pruned(tmp_path):
    run = run_folder(tmp_path / "run", 4, epochs=4)
    add_step(run, 15)
    (run / "step-000019.old.tmp").mkdir()  # left by a prune that was killed
    (run / "best").symlink_to("step-000015")
    assert names(checkpoints.find(run / "best", with_base=False)) == ["step-000015"]
    values = {"epoch-01": 0.1, "step-000015": 0.2, "epoch-02": 0.9, "epoch-03": 0.4}
    assert checkpoints.prune(run, values, set()) == ["epoch-01", "epoch-03"]
    assert names(checkpoints.of(run)) == ["step-000015", "epoch-02", "epoch-04"] and not list(run.glob("*.tmp"))


@pytest.mark.parametrize(("more", "n", "over"), [("", 2, False), ("", 3, True), ("max_steps: 20", 2, True)])
def test_a_run_is_over_with_its_last_epoch_or_step(tmp_path, more, n, over):
    run = run_folder(tmp_path / "run", n)
    text = (run / "config.yaml").read_text()
    (run / "config.yaml").write_text(text.replace("max_steps: null", more) if more else text)
    assert checkpoints.is_over(run) == over


def test_the_best_the_newest_and_those_without_a_score_stay(tmp_path):
    run = run_folder(tmp_path / "run", 6, epochs=6)
    (run / "epoch-00.old.tmp").mkdir()  # left by a prune that was killed
    values = {"epoch-01": 0.1, "epoch-02": 0.9, "epoch-03": 0.4, "epoch-04": 0.3}
    assert checkpoints.prune(run, values, {"epoch-04"}) == ["epoch-01", "epoch-03"]
    assert names(checkpoints.of(run)) == ["epoch-02", "epoch-04", "epoch-05", "epoch-06"]
    assert not list(run.glob(".removed*"))
    assert checkpoints.prune(run, {}, set()) == []
