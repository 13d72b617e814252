"""Where the runs of a grid run: each on a GPU of its own, or sharded over several."""

import itertools
import json
import re
import sys

import pytest

from engine import train
from engine.config import TrainConfig
from examples import grid
from examples.grid import Cell
from examples.slots import Slots
from tests import tiny
from tests.rows import id_rows

NAMES = ("prompt_ids", "chosen_ids", "rejected_ids")


@pytest.fixture
def small(tmp_path):
    """What a grid of a tiny model is given."""
    model = tiny.write_model(tmp_path / "m", vocab_size=101)
    rows = tiny.write_rows(tmp_path / "pairs.jsonl", [{name: row[name] for name in NAMES} for row in id_rows(8)])
    return {"model": str(model), "rows": rows, "rest": {"settings": None, "score": None}}


@pytest.mark.slow
def test_runs_side_by_side_have_a_gpu_each(small, tmp_path, monkeypatch):
    """The processes that train and score see one, and never two at a time the same."""
    monkeypatch.setattr("examples.slots.visible_gpus", lambda: ["6", "7"])
    cells = [
        Cell("mine", small["rows"], loss, 0, 1e-5, (("epochs", "1"),)) for loss in ("dpo", "sft", "apo_zero", "ipo")
    ]
    told = "import os, sys, time; print('begins', time.time(), 'on', os.environ['CUDA_VISIBLE_DEVICES']); time.sleep(1)"
    rest = small["rest"] | {
        "slots": Slots(at_once=None),
        "score": f'{{python}} -c "{told}; print(time.time(), sys.argv[1])" {{run}}',
    }
    grid.run_all(cells, tmp_path / "g", model=small["model"], **rest)
    spans = {}
    for log in (tmp_path / "g").rglob("*.log"):
        begun, gpu, ended = re.search(r"begins (\S+) on (\S+)\n(\S+) ", log.read_text()).groups()
        spans.setdefault(gpu, []).append((float(begun), float(ended)))
    assert set(spans) == {"6", "7"} and sum(map(len, spans.values())) == 4
    for of_one in map(sorted, spans.values()):
        assert all(ended <= after for (_, ended), (after, _) in itertools.pairwise(of_one))


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.skipif(sys.platform != "linux", reason="the ranks' processes are found in /proc")
def test_a_run_of_two_gpus_is_sharded_over_two_ranks(small, tmp_path, monkeypatch):
    """Two ranks without a GPU stand for two with one; the run is that of a single process."""
    monkeypatch.setattr("examples.slots.visible_gpus", lambda: ["6", "7"])
    for name, value in tiny.environment().items():
        monkeypatch.setenv(name, value)
    told = {"epochs": "2", "batch_size": "4", "dtype": "float32", "lr": "1e-3"}
    cell = Cell("mine", small["rows"], "dpo", 0, 1e-3, tuple(told.items()))
    slots = Slots(at_once=None, gpus=2)
    assert slots.n == 1
    grid.run_all([cell], tmp_path / "g", model=small["model"], slots=slots, **small["rest"])
    run = grid.folder(tmp_path / "g", cell)
    said = run.with_name(f"{run.name}.log").read_text()
    assert "--nproc_per_node 2" in said, said
    alone = tmp_path / "alone"
    train.run(TrainConfig(
        model=small["model"], data=(str(small["rows"]),), out=str(alone), loss="dpo", seed=0, epochs=2, batch_size=4,
        dtype="float32", lr=1e-3,
    ))  # fmt: skip
    ours, theirs = (
        [line for line in map(json.loads, (folder / "metrics.jsonl").read_text().splitlines()) if "loss" in line]
        for folder in (run, alone)
    )
    assert len(ours) == len(theirs) == 4
    for a, b in zip(ours, theirs, strict=True):
        assert a["loss"] == pytest.approx(b["loss"], rel=1e-5) and a["grad_norm"] == pytest.approx(
            b["grad_norm"], rel=1e-4
        )
    assert ours[-1]["loss"] != pytest.approx(ours[0]["loss"], rel=1e-3)
