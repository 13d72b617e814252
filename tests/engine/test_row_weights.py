"""A row's weight multiplies its loss: in whole runs, under another column's name, held out, and gone on with."""

import csv
import json
from pathlib import Path

import pytest
import yaml

from data.rows.records import read_records
from data.rows.sources import Reading
from engine import train
from engine.config import TrainConfig
from system import InputError
from tests import tiny
from tests.metrics import lines
from tests.rows import id_rows


@pytest.fixture
def run(tmp_path):
    """A function that trains on rows, and gives the run's folder and lines."""
    model = tiny.write_model(tmp_path / "model", vocab_size=101)
    count = iter(range(100))

    def go(rows, out=None, **changes):
        path = tiny.write_rows(tmp_path / f"rows{next(count)}.jsonl", rows)
        told = {"model": str(model), "data": str(path), "out": str(tmp_path / (out or f"run{next(count)}"))}
        made = train.run(TrainConfig(**(told | {"lr": 1e-3, "batch_size": 4, "epochs": 1} | changes))).out
        return Path(made), lines(made)

    return go


def without(rows, name="weight"):
    return [{key: value for key, value in row.items() if key != name} for row in rows]


def test_the_same_weight_everywhere_multiplies_loss_and_gradient_and_the_rows_are_named(run, capsys):
    rows = id_rows(8)
    _, plain = run(rows, max_grad_norm=0.0, loss="dpo", lr=1e-9)
    folder, found = run([row | {"weight": 3} for row in rows], max_grad_norm=0.0, loss="dpo", lr=1e-9)
    for a, b in zip(plain, found, strict=True):
        assert b["loss"] == pytest.approx(3 * a["loss"], rel=1e-6)
        assert b["grad_norm"] == pytest.approx(3 * a["grad_norm"], rel=1e-5)
        assert b["rewards/chosen"] == pytest.approx(a["rewards/chosen"], abs=1e-6)
    assert "; rows weigh 3 on average (3 to 3); " in capsys.readouterr().err
    facts = yaml.safe_load((folder / "config.yaml").read_text())["facts"]
    assert facts["weights_report"] == "rows weigh 3 on average (3 to 3)"


def test_a_row_of_weight_0_moves_nothing_and_one_of_2_counts_as_two(run):
    """The mean stays over the rows of the step: of four, of which one counts nothing, or twice."""
    rows = id_rows(4)
    _, (first,) = run([row | {"weight": float(i != 2)} for i, row in enumerate(rows)], loss="apo_zero")
    _, (three,) = run([row for i, row in enumerate(rows) if i != 2], loss="apo_zero", batch_size=3)
    assert first["loss"] == pytest.approx(0.75 * three["loss"], rel=1e-9) and first["loss"] == 0.75
    assert first["grad_norm"] == pytest.approx(0.75 * three["grad_norm"], rel=1e-5)
    _, (twice,) = run([row | {"weight": 1 + (i == 2)} for i, row in enumerate(rows)], loss="apo_zero")
    _, (five,) = run([*rows, rows[2]], loss="apo_zero", batch_size=5)
    assert twice["grad_norm"] == pytest.approx(5 / 4 * five["grad_norm"], rel=1e-5)


def test_held_out_rows_weigh_in_their_loss(run, tmp_path):
    rows = id_rows(6)
    same = {"loss": "dpo", "lr": 1e-9}
    plain = tiny.write_rows(tmp_path / "plain.jsonl", rows)
    heavy = tiny.write_rows(tmp_path / "heavy.jsonl", [row | {"weight": 3} for row in rows])
    _, a = run(rows, eval_data=str(plain), **same)
    _, b = run(rows, eval_data=str(heavy), **same)
    assert b[-1]["eval_loss"] == pytest.approx(3 * a[-1]["eval_loss"], rel=1e-9)
    assert b[-1]["eval_logratios/margins"] == a[-1]["eval_logratios/margins"]


def test_another_column_can_be_the_weight(run, tmp_path):
    rows = id_rows(4, weigh=True)
    renamed = [row | {"importance": row["weight"]} for row in rows]
    _, a = run(rows, loss="dpo")
    _, b = run(without(renamed), loss="dpo", columns="weight=importance")
    _, c = run(rows, loss="dpo", ignore_columns="weight")
    _, d = run(without(rows), loss="dpo")
    assert a[0]["loss"] == b[0]["loss"] != c[0]["loss"] == d[0]["loss"]
    text = [{"prompt": "1 2", "chosen": f"{i}", "rejected": f"{i + 1}", "weight": i / 4} for i in range(3)]
    with open(tmp_path / "text.csv", "w", newline="") as file:
        writer = csv.DictWriter(file, list(text[0]))
        writer.writeheader()
        writer.writerows(text)
    assert [r.ratings.weight for r in read_records(tmp_path / "text.csv", Reading())] == [0.0, 0.25, 0.5]


@pytest.mark.parametrize("value", [-1, "heavy", True, [1], float("nan"), float("inf")])
def test_what_is_no_weight_is_told_by_file_and_line(tmp_path, value):
    rows = [
        {"prompt": "q", "chosen": "a", "rejected": "b"},
        {"prompt": "q", "chosen": "a", "rejected": "c", "weight": value},
    ]
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    good, bad = read_records(path, Reading())
    assert good.ratings.weight is None and isinstance(bad, InputError)
    assert str(bad).startswith(f"{path}:2: ")
    if value == value and value != float("inf"):  # JSON has no such numbers, which is said first
        assert "it is how much the row counts" in str(bad) and str(bad).endswith("--ignore-columns weight")
    _, taken = read_records(path, Reading(ignored=("weight",)))
    assert isinstance(taken, InputError) == (value != value or value == float("inf"))


def test_an_empty_weight_is_none(tmp_path):
    row = {"prompt": "q", "chosen": "a", "rejected": "b"}
    path = tiny.write_rows(tmp_path / "rows.jsonl", [row | {"weight": x} for x in (None, "", " ")])
    assert [r.ratings.weight for r in read_records(path, Reading())] == [None] * 3


def test_a_run_that_was_begun_when_weights_did_nothing_is_not_gone_on_with(run, tmp_path):
    rows = id_rows(8, weigh=True)
    folder, _ = run(rows, out="begun", loss="dpo", stop_after=1)
    identity = folder / "state/identity.json"
    held = json.loads(identity.read_text())
    assert held.pop("row weights") == "multiply the loss"
    identity.write_text(json.dumps(held))
    with pytest.raises(InputError, match=r"another run \(row weights: None -> multiply the loss\)"):
        run(rows, out="begun", loss="dpo", resume=True)
