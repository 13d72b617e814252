"""A grid of runs: trained once, gone on with, and its table from what the runs have written."""

import os
import re
from pathlib import Path

import pytest
import yaml

import losses
from engine.step.objective import Objective
from examples import grid
from examples.grid import Cell, GridConfig
from system import InputError
from system.errors import RunError
from tests import tiny

SCORER = """
import json, pathlib, sys
run = pathlib.Path(sys.argv[1])
seed, loss = run.parts[-3], run.name
value = {"dpo": 0.2, "dpo_dpo.beta=0.3": 0.2, "sft": 0.4}[loss] + 0.1 * int(seed[-1])
lines = [{"checkpoint": name, "benchmark": "mine", "version": "1", "metric": "overall", "value": v, "stderr": None,
          "judge": None} for name, v in (("base", 0.1), ("epoch-01", value), ("epoch-02", value - 0.1))]
(run / "eval").mkdir(exist_ok=True)
(run / "eval/scores.jsonl").write_text("".join(json.dumps(line) + "\\n" for line in lines))
"""
MINE = """
from torch.nn.functional import logsigmoid
from losses import Result, loss


@loss("mine", data="pairs", reference=True)
def mine(chosen, rejected, *, beta: float = 0.1, by: float = 1.0) -> Result:
    \"\"\"For these tests.\"\"\"
    return Result(-logsigmoid(beta * (chosen.logratios - rejected.logratios) - by), chosen.logps, rejected.logps)
"""


@pytest.mark.slow
def test_every_cell_is_trained_once_and_the_table_is_of_their_scores(tmp_path):
    model = tiny.write_model(tmp_path / "m", ["hello world"] * 9)
    rows = tiny.write_rows(
        tmp_path / "pairs.jsonl", [{"prompt": f"a {i}", "chosen": "hello", "rejected": "world"} for i in range(4)]
    )
    (tmp_path / "scorer.py").write_text(SCORER)
    (tmp_path / "train.yaml").write_text("epochs: 2\nbatch_size: 2\neval_pairs: 1\n")
    flags = ["--model", str(model), "--data", f"mine={rows}", "--loss", "dpo", "dpo dpo.beta=0.3", "sft"]
    flags += ["--lr", "dpo=1e-5", "sft=1e-4"]
    flags += ["--seeds", "2", "--at-once", "2", "--out", str(tmp_path / "g"), "--train", str(tmp_path / "train.yaml")]
    flags += ["--score", f"python {tmp_path / 'scorer.py'} {{run}}"]
    grid.main(flags)
    metrics = sorted((tmp_path / "g").glob("seed-*/mine/*/metrics.jsonl"))
    assert [str(path.parent.relative_to(tmp_path / "g")) for path in metrics] == [
        f"seed-{seed}/mine/{name}" for seed in (0, 1) for name in ("dpo", "dpo_dpo.beta=0.3", "sft")
    ]
    said = (tmp_path / "g/report/tables/grid.md").read_text()
    # dpo: gains 10 and 20 points at best, 5 and 15 on average; the deviation of two is their distance by sqrt(2)
    assert "| mine | dpo | 2 | +15.00 | 7.07 | +10.00 | 7.07 |" in said
    assert "| mine | dpo dpo.beta=0.3 | 2 |" in said
    assert "| mine | sft | 2 | +35.00 | 7.07 | +30.00 | 7.07 |" in said
    times = (tmp_path / "g/report/tables/table-5.md").read_text()
    assert all(f"| pairs | {name} |" in times for name in ("dpo beta=0.1", "dpo beta=0.3", "sft"))
    times = [path.stat().st_mtime_ns for path in metrics]
    grid.main(flags)
    assert [path.stat().st_mtime_ns for path in metrics] == times
    assert (tmp_path / "g/report/report.html").read_text().index("over seeds") < 20_000  # first on the page


def test_rates_are_one_for_all_or_one_for_each():
    shared = {"model": "m", "data": ("a=b.jsonl",), "loss": ("dpo", "sft"), "out": "o"}
    assert GridConfig(lr=("1e-5",), **shared).rates() == {"dpo": 1e-5, "sft": 1e-5}
    assert GridConfig(lr=("sft=1e-4", "dpo=1e-5"), **shared).cells()[1] == Cell("a", Path("b.jsonl"), "sft", 0, 1e-4)
    with pytest.raises(InputError, match="NAME=RATE for every --loss; 'sft' is missing"):
        GridConfig(lr=("dpo=1e-5",), **shared)
    for changed, words in (
        ({"data": ("pairs.jsonl",)}, "NAME=FILE"),
        ({"data": ("clair=",)}, "NAME=FILE"),
        ({"data": ("a=b.jsonl", "a=c.jsonl")}, "--data: a stands there twice"),
        ({"loss": ("dpo", "dpo")}, "--loss: dpo stands there twice"),
        ({"loss": ("dpo beta=x",)}, "x is not a number"),
        ({"loss": ("dro beta=1",)}, "dro has no beta"),
        ({"loss": ("apo_zero apo_zero.bet=1",)}, "perhaps --apo_zero.beta"),
        ({"loss": ("dpo out=elsewhere",)}, "out is the grid's to say"),
        ({"loss": ("dpo bacth_size=8",)}, "--loss: dpo bacth_size=8: "),
        ({"loss": ("dpo lr=fast",)}, "--loss: dpo lr=fast: "),
        ({"score": "no-such-program {run}"}, "there has to be a program"),
        ({"score": "true"}, "where it is told the run's folder"),
        ({"score": "true {folder}"}, "cannot be read"),
    ):
        with pytest.raises(InputError, match=re.escape(words)):
            GridConfig(**(shared | changed))


def test_an_objective_is_told_flags_of_its_own(tmp_path):
    for text, name, flags in (
        ("apo_zero", "apo_zero", {}),
        ("apo_zero beta=0.3 batch_size=8", "apo_zero", {"beta": "0.3", "batch-size": "8"}),
        ("my files/a=b.py:mine  mine.by_much=2", "my files/a=b.py:mine", {"mine.by_much": "2"}),
        ("apo_zero:1,sft:0.1 lr=1e-6", "apo_zero:1,sft:0.1", {"lr": "1e-6"}),
    ):
        assert grid.parse_loss(text) == (name, flags)
    assert grid._spelt({"shuffle": "false", "skip-bad-rows": "true", "x.y": "true", "lr": "1"}) == [
        "--no-shuffle", "--skip-bad-rows", "--x.y", "true", "--lr", "1",
    ]  # fmt: skip
    grid.check_loss("dpo shuffle=false skip_bad_rows=true")
    (tmp_path / "train.yaml").write_text("reference_update: soft\n")
    grid.check_loss("dpo reference_update_steps=64", str(tmp_path / "train.yaml"))
    with pytest.raises(InputError, match="goes with --reference-update"):
        grid.check_loss("dpo reference_update_steps=64")
    rates = {"model": "m", "data": ("a=b.jsonl",), "out": "o", "loss": ("dpo", "dpo beta=0.3"), "lr": ("dpo=1e-5",)}
    assert [cell.lr for cell in GridConfig(**rates).cells()] == [1e-5, 1e-5]


def test_a_finished_run_is_not_taken_for_another(tmp_path):
    """One that was told something else, or whose objective or rows have changed since."""
    data, mine = tmp_path / "pairs.jsonl", tmp_path / "mine.py"
    cell = Cell("a", data, f"{mine}:mine", 0, 1e-4, (("beta", "0.5"),))
    where = grid.folder(tmp_path, cell)
    data.write_text("")
    mine.write_text(MINE)
    where.mkdir(parents=True)
    settings = (
        f"model: m\ndata:\n- {data}\nloss: {mine}:mine\nlr: 0.0001\nseed: 0\nbeta: 0.5\nmine.by: 1.0\nepochs: 3\n"
    )
    (where / "config.yaml").write_text(settings)
    flags = {"model": "m", "data": str(data), "loss": cell.loss, "lr": "1e-4", "seed": "0", "beta": "0.50"}
    grid.check_same(where, flags, None)
    for name, value in (("lr", "3e-4"), ("model", "n"), ("batch-size", "8")):
        with pytest.raises(InputError, match=f"was trained with {name.replace('-', '_')} .*, not {value}; remove it"):
            grid.check_same(where, flags | {name: value}, None)
    grid.check_same(where, flags | {"mine.beta": "0.5"}, None)  # which config.yaml calls beta
    grid.check_same(where, flags | {"beta": "0.3", "mine.beta": "0.5"}, None)  # the one over the other
    with pytest.raises(InputError, match=r"was trained with mine\.by 1\.0, not 2"):
        grid.check_same(where, flags | {"mine.by": "2"}, None)
    with pytest.raises(InputError, match=r"was trained with mine\.beta 0\.5, not 0\.3"):
        grid.check_same(where, flags | {"beta": "0.3"}, None)
    (where / "config.yaml").write_text(settings + "keep: 1\nmaster: whole\n")  # as release 0.1 wrote it
    grid.check_same(where, flags | {"keep-checkpoints": "1", "master-weights": "float32"}, None)
    grid.check_same(where, flags | {"keep": "1", "master": "whole"}, None)
    path = where / "config.yaml"  # whatever an objective is called with is the same again, where nothing was told
    for name in losses.names():
        objective = Objective(name)
        path.write_text(yaml.safe_dump({"model": "m", "data": [str(data)], "loss": name, **objective.settings}))
        grid.check_same(where, {"model": "m", "data": str(data), "loss": name}, None)
        if "beta" in objective.settings:
            told = {"beta": str(objective.settings["beta"])}
            grid.check_same(where, {"model": "m", "data": str(data), "loss": name, **told}, None)
    path.write_text(settings)
    for path in (mine, data):
        later = where.stat().st_mtime + 60
        os.utime(path, (later, later))
        with pytest.raises(InputError, match=f"{path.name} has changed since it was trained"):
            grid.check_same(where, flags, None)
        os.utime(path, (1, 1))


def test_a_run_that_fails_ends_the_grid_with_its_last_words(tmp_path):
    cell = Cell("mine", tmp_path / "absent.jsonl", "dpo", 0, 1e-5)
    with pytest.raises(RunError, match=r"dpo\.log: error: .*absent\.jsonl.* \(exit code 2\)"):
        grid.run_all(
            [cell],
            tmp_path,
            model=str(tiny.write_model(tmp_path / "m", vocab_size=101)),
            settings=None,
            score=None,
            at_once=1,
        )
