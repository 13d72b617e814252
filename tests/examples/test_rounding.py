"""The study of what rounding leaves: its arithmetic, its page, and the whole of it on a tiny model."""

import json

import pytest
import torch

from engine import weights
from examples.real import results_page, rounding
from system import InputError
from tests import tiny
from tests.rows import id_rows


def row(how, margin, seed=0, **more):
    found = {"lr": 1e-6, "step": 8, "rounding": how, "seed": seed, "margin": margin, "noise": 0.25}
    return found | {"reward_chosen": margin / 4, "reward_rejected": -3 * margin / 4} | more


def test_what_is_left_is_a_share_of_the_float32_folders_margin():
    rows = [row("float32", 0.8), row("nearest", 0.2, weights_moved=0.01)]
    rows += [row("stochastic", margin, seed, weights_moved=0.02) for seed, margin in enumerate((0.76, 0.8, 0.84))]
    record = {"model": "m", "trained_on": 32, "held_out": 64, "batch_size": 4, "beta": 0.1, "rows": rows}
    cells = {cells[2]: cells for cells in rounding.table(record).rows}
    assert cells["nearest"] == ("1e-06", "8", "nearest", "0.2000", "25 %", "25 %", "25 %", "0.250", "1.0 %")
    assert cells["stochastic"][4] == "100 % (95 to 105)"
    said = rounding.in_words(record)
    assert "25 % at 1e-06" in said and "100 % at 1e-06" in said and "0.25 to 0.25 nats" in said


def test_the_page_is_what_the_records_give():
    there = (results_page.DOCS / "results.md").read_text(encoding="utf-8")
    assert there == results_page.page(), "run ./launch.sh pages"
    assert "| 2e-07 | 8 | nearest |" in there and there.count("\nMeasured on 2026-") == 2


@pytest.mark.slow
def test_the_study_runs_goes_on_and_refuses_other_pairs(tmp_path, monkeypatch):
    monkeypatch.setattr(rounding, "RATES", (1e-5,))
    weights.save(tiny.random_llama(vocab_size=101), tmp_path / "m", dtype=torch.bfloat16)
    record, out = tmp_path / "record.json", tmp_path / "out"
    pairs = tiny.write_rows(tmp_path / "pairs.jsonl", id_rows(100))
    asked = ["--out", str(out), "--model", str(tmp_path / "m"), "--record", str(record)]
    rounding.main([str(pairs), *asked])
    found = json.loads(record.read_text())
    assert len(found["rows"]) == 3 * 5 and {r["step"] for r in found["rows"]} == {8, 48, 200}
    assert {p.name for p in (out / "kept-1e-05").iterdir() if p.is_dir()} == {"epoch-01", "epoch-06", "epoch-25"}
    assert not list((out / "lr-1e-05").glob("epoch-*"))  # those not needed are gone
    for whole, nearest, *drawn in (found["rows"][i : i + 5] for i in (0, 5, 10)):
        shares = [r["weights_share"] for r in drawn]
        assert shares == pytest.approx([1, 1, 1], abs=0.05) and whole["noise"] == 0
        assert abs(nearest["weights_share"] - 1) > abs(sum(shares) / 3 - 1)
    rounding.main([str(pairs), *asked])
    assert json.loads(record.read_text()) == found
    with pytest.raises(InputError, match="another --out"):
        rounding.main([str(tiny.write_rows(tmp_path / "others.jsonl", id_rows(100, seed=9))), *asked])
