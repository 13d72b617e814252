"""An objective's own numbers: any numeric field of a row reaches a loss by its name, wherever the row comes from."""

import csv
import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from data.rows.examples import Example, in_form
from data.rows.records import Ratings, Record, read_records
from data.rows.sources import Reading
from engine import train
from engine.config.train_config import TrainConfig
from engine.run.identity import _digest
from engine.step import Batch, LossInputs, Objective
from losses import registry
from system import InputError
from tests import tiny
from tests.proofs import n_ranks_of

OBJECTIVES = '''
from torch import Tensor
from torch.nn.functional import logsigmoid

from losses import Responses, Result, loss


def dpo(chosen, rejected, beta, lead):
    r_w, r_l = beta * chosen.logratios, beta * rejected.logratios
    return Result(-logsigmoid(r_w - r_l - lead), r_w.detach(), r_l.detach())


@loss("led", data="pairs", reference=True, fields=("lead",))
def led(chosen: Responses, rejected: Responses, *, lead: Tensor, beta: float = 0.1) -> Result:
    """DPO whose winner has to lead by the row's own number."""
    return dpo(chosen, rejected, beta, lead)


@loss("led_step", data="pairs", reference=True, fields=("lead",), whole_step=True)
def led_step(chosen: Responses, rejected: Responses, *, lead: Tensor, beta: float = 0.1) -> Result:
    """The same, of the whole step at once."""
    return dpo(chosen, rejected, beta, lead)


@loss("led_by", data="pairs", reference=True)
def led_by(chosen: Responses, rejected: Responses, *, beta: float = 0.1, by: float = 1.0) -> Result:
    """The same, by a constant."""
    return dpo(chosen, rejected, beta, by)


def number(responses, x):
    logps = responses.logps.reshape(len(x), -1).sum(dim=1)
    return Result(x + 0 * logps, logps.detach(), logps.detach())


@loss("of_pair", data="pairs", fields=("x",))
def of_pair(chosen: Responses, rejected: Responses, *, x: Tensor) -> Result:
    return number(chosen, x)


@loss("of_labelled", data="unpaired", fields=("y",))
def of_labelled(responses: Responses, labels: Tensor, *, y: Tensor) -> Result:
    return number(responses, y)


@loss("of_single", data="single", fields=("x", "y"))
def of_single(responses: Responses, *, x: Tensor, y: Tensor) -> Result:
    return number(responses, 10 * x + y)


@loss("of_ranked", data="ranked", fields=("x",))
def of_ranked(responses: Responses, *, x: Tensor) -> Result:
    return number(responses, x)
'''


@pytest.fixture(autouse=True)
def mine(tmp_path, monkeypatch):
    """The objectives' file; what is registered is gone after the test."""
    for name in ("_losses", "_aliases", "_files"):
        monkeypatch.setattr(registry, name, dict(getattr(registry, name)))
    (tmp_path / "mine.py").write_text(OBJECTIVES)
    return str(tmp_path / "mine.py")


def rows(n=9, name="lead", say=lambda i: 0.5 * i - 1):
    """Pairs of token ids of unequal lengths, each with a number of its own."""
    rng = np.random.default_rng(0)
    ids = [[rng.integers(2, 101, rng.integers(1, 14)).tolist() for _ in range(3)] for _ in range(n)]
    return [{"prompt_ids": p, "chosen_ids": w, "rejected_ids": r, name: say(i)} for i, (p, w, r) in enumerate(ids)]


@pytest.fixture
def run(tmp_path, mine):
    """A function that trains with one of these objectives on rows, and gives its lines of metrics."""
    model = tiny.write_model(tmp_path / "model", vocab_size=101)
    count = iter(range(100))

    def go(loss, data, **changes):
        path = data if isinstance(data, Path) else tiny.write_rows(tmp_path / f"rows{next(count)}.jsonl", data)
        told = {"model": str(model), "data": str(path), "out": str(tmp_path / f"run{next(count)}")}
        told |= {"loss": ",".join(f"{mine}:{name}" for name in loss.split(","))}
        out = train.run(TrainConfig(**(told | {"lr": 1e-3, "batch_size": 4, "epochs": 1} | changes))).out
        return [json.loads(line) for line in (Path(out) / "metrics.jsonl").read_text().splitlines()]

    go.model = model
    return go


def examples(k=2, label=None, n=3):
    """Examples of k responses whose numbers are x = 1, 2, 3 and y = 0.1, 0.2, 0.3."""
    ids = np.arange(1, 9, dtype=np.int32)
    said = [Ratings(fields=(("x", 1.0 + i), ("y", (1.0 + i) / 10))) for i in range(n)]
    return [Example(f"f:{i}", ids, tuple(ids[: 1 + j] for j in range(k)), label, r) for i, r in enumerate(said)]


def losses_of(name, mine, made):
    objective = Objective(f"{mine}:{name}")
    made = in_form(made, objective.form, side=objective.side)
    zeros = torch.zeros(len(made), len(made[0].responses), dtype=torch.float64)
    return objective(LossInputs.of(made, zeros, zeros))


# --- what a loss is given ------------------------------------------------------------------------------------------


def test_each_pair_meets_its_own_number(run):
    """While policy and reference are one, the loss is the mean of log(1 + exp(lead))."""
    found = run("led", rows(), batch_size=9, max_steps=1)
    expected = np.log1p(np.exp([0.5 * i - 1 for i in range(9)])).mean()
    assert found[0]["loss"] == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize(
    ("name", "k", "label", "expected"),
    [
        ("of_pair", 2, None, [1.0, 2.0, 3.0]),
        ("of_labelled", 1, True, [0.1, 0.2, 0.3]),
        ("of_labelled", 2, None, [0.1, 0.1, 0.2, 0.2, 0.3, 0.3]),  # a pair that is taken apart: both rows have it
        ("of_single", 1, None, [10.1, 20.2, 30.3]),
        ("of_single", 2, None, [10.1, 20.2, 30.3]),
        ("of_ranked", 4, None, [1.0, 2.0, 3.0]),
        ("of_ranked", 2, None, [1.0, 2.0, 3.0]),
    ],
)
def test_every_form_gives_one_number_an_example_in_float64(mine, name, k, label, expected):
    found = losses_of(name, mine, examples(k, label)).losses
    assert found.dtype == torch.float64
    torch.testing.assert_close(found, torch.tensor(expected, dtype=torch.float64), rtol=0, atol=1e-15)


def test_terms_of_a_mixture_get_each_its_own(mine):
    """Of four ranked responses: a pair's x, a labelled one's y, twice and meant, a single one's both."""
    objective = Objective(f"{mine}:of_pair:1,{mine}:of_labelled:2,{mine}:of_single:1,{mine}:of_ranked:1")
    assert objective.form == "ranked" and objective.fields == ("x", "y") and not objective.arguments
    made = examples(4)
    result = objective(LossInputs.of(made, torch.zeros(3, 4, dtype=torch.float64), None))
    expected = [x + 2 * y + (10 * x + y) + x for x, y in ((1, 0.1), (2, 0.2), (3, 0.3))]
    torch.testing.assert_close(result.losses, torch.tensor(expected, dtype=torch.float64), rtol=0, atol=1e-14)


def test_a_number_that_is_the_same_in_every_row_is_a_constant(run):
    """To the last bit, and apart from another constant."""
    by_field = run("led", rows(say=lambda i: 2), epochs=2)
    by_constant = run("led_by", rows(), epochs=2, hyperparameters={"led_by.by": "2"})
    another = run("led", rows(say=lambda i: 2.5), epochs=2)
    names = ("loss", "grad_norm", "rewards/chosen", "rewards/rejected")
    assert [[x[n] for n in names] for x in by_field] == [[x[n] for n in names] for x in by_constant]
    assert len(by_field) == 6 and all(a["loss"] != b["loss"] for a, b in zip(by_field, another, strict=True))


def test_micro_batches_and_a_whole_step_meet_the_same_numbers(run, monkeypatch):
    sizes, pack = [], Batch.pack
    monkeypatch.setattr(Batch, "pack", lambda *a: sizes.append(len(pack(*a))) or pack(*a))
    plain = run("led", rows())
    assert len({line["loss"] for line in plain}) == 3 and sizes == [1, 1, 1]
    for loss, changes in (("led", {"micro_tokens": 30}), ("led_step", {}), ("led_step", {"micro_tokens": 30})):
        sizes.clear()
        found = run(loss, rows(), **changes)
        assert max(sizes) > 1 if changes else sizes == [1, 1, 1]
        assert [x["loss"] for x in found] == pytest.approx([x["loss"] for x in plain], abs=1e-5), loss
        norms = ([x["grad_norm"] for x in lines] for lines in (found, plain))
        assert next(norms) == pytest.approx(next(norms), rel=1e-5), loss  # of some 4, in float32, after two steps


@pytest.mark.slow
@pytest.mark.parametrize("loss", ["led", "led_step"])
def test_two_ranks_meet_the_same_numbers(run, mine, tmp_path, loss):
    data = tiny.write_rows(tmp_path / "pairs.jsonl", rows(name="gap"))
    one = run(loss, data, columns="lead=gap")
    flags = ["--model", run.model, "--data", data, "--loss", f"{mine}:{loss}", "--columns", "lead=gap"]
    flags += ["--out", tmp_path / "two", "--lr", "1e-3", "--batch-size", "4", "--epochs", "1", "--state-every", "1"]
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    done = subprocess.run(
        [*command, "-m", "engine.train", *map(str, flags)],
        capture_output=True, text=True, env=tiny.environment(), timeout=300, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    two = [json.loads(line) for line in (tmp_path / "two/metrics.jsonl").read_text().splitlines()]
    assert len(one) == len(two) == 3 and n_ranks_of(tmp_path / "two") == 2
    assert [x["loss"] for x in two] == pytest.approx([x["loss"] for x in one], abs=1e-5)


# --- where it comes from -------------------------------------------------------------------------------------------


def test_rows_of_tables_say_the_same(run, tmp_path):
    from pyarrow import Table, parquet

    text = [{"prompt": "1 2", "chosen": f"{i}", "rejected": f"{i + 1}", "gap": i / 4} for i in range(5)]
    files = [tiny.write_rows(tmp_path / "text.jsonl", text), tmp_path / "text.csv", tmp_path / "text.parquet"]
    with open(files[1], "w", newline="") as file:
        writer = csv.DictWriter(file, list(text[0]))
        writer.writeheader()
        writer.writerows(text)
    parquet.write_table(Table.from_pylist(text), files[2])
    for path in files:
        read = list(read_records(path, Reading(columns=(("lead", "gap"),), fields=("lead",))))
        assert [r.ratings.fields for r in read if isinstance(r, Record)] == [(("lead", i / 4),) for i in range(5)]


def test_a_source_that_is_taken_more_often_brings_its_numbers_as_often(run):
    found = run("led", rows(4), data_weights=(3,), batch_size=12, max_steps=1)
    assert found[0]["loss"] == pytest.approx(np.log1p(np.exp([-1, -0.5, 0, 0.5])).mean(), abs=1e-12)


def test_nothing_is_kept_of_a_row_that_is_not_asked_for(tmp_path):
    path = tiny.write_rows(tmp_path / "rows.jsonl", [{"prompt": "q", "completion": "a", "x": 1, "y": 2, "score": 3}])
    (plain,), (asked,) = (list(read_records(path, Reading(fields=fields))) for fields in ((), ("y",)))
    assert plain.ratings == Ratings((3.0,)) and asked.ratings == Ratings((3.0,), fields=(("y", 2.0),))


# --- rows without it -----------------------------------------------------------------------------------------------


ABSENT = "absent"


@pytest.mark.parametrize("value", [ABSENT, None, "0.5", "high", True, [1.0], 10**400], ids=lambda x: str(x)[:4])
def test_a_row_without_a_finite_number_is_named_before_training(run, tmp_path, value):
    data = rows()
    data[4]["lead"] = value
    if value is ABSENT:
        del data[4]["lead"]
    path = tiny.write_rows(tmp_path / "lacking.jsonl", data)
    with pytest.raises(InputError) as fault:
        run("led,led_by", path)
    assert str(fault.value) == f'{path}:5: led needs a finite number under "lead"; add it, or take another --loss'
    assert not list(tmp_path.glob("run*"))


@pytest.mark.parametrize("text", ["nan", "inf", "1e400", "high"])
def test_text_of_a_table_that_is_no_finite_number_is_none(tmp_path, text):
    path = tmp_path / "rows.csv"
    path.write_text(f"prompt,chosen,rejected,lead\n1,2,3,0.5\n1,2,3,{text}\n")
    made = [r.ratings.fields for r in read_records(path, Reading(fields=("lead",)))]
    assert made == [(("lead", 0.5),), ()]


def test_held_out_rows_are_asked_for_it_where_the_objective_is_measured_on_them(run, tmp_path):
    lacking = rows(4)
    del lacking[2]["lead"]
    path = tiny.write_rows(tmp_path / "heldout.jsonl", lacking)
    with pytest.raises(InputError, match=rf'^{re.escape(str(path))}:3: led needs a finite number under "lead"'):
        run("led", rows(), eval_data=str(path))
    labelled = [{"prompt_ids": [2], "completion_ids": [3 + i], "label": i % 2 == 0} for i in range(4)]
    other = tiny.write_rows(tmp_path / "labelled.jsonl", labelled)  # another form: what is of no objective
    found = run("led", rows(), eval_data=str(other))
    assert "eval_logratios/margins" in found[-1] and not {"eval_loss", "eval_rewards/margins"} & found[-1].keys()
    found = run("led", rows(), eval_data=str(tiny.write_rows(path, rows(4))))
    assert "eval_loss" in found[-1]


# --- what a run is -------------------------------------------------------------------------------------------------


def test_rows_without_fields_are_counted_as_before_there_were_any():
    """The literals are what the program gave before rows had fields: runs that were begun then go on."""
    ids = [np.asarray(x, dtype=np.int32) for x in ([1, 2], [3], [4, 5], [1], [3], [4], [7], [3])]
    known = Ratings((5.0, -1.5), 0.25, (0.9, 0.1), 1e-7, 2.0)
    made = [
        Example("a:1", ids[0], (ids[1], ids[2])),
        Example("a:2", ids[3], (ids[4], ids[5]), None, known),
        Example("a:3", ids[6], (ids[7],), True, Ratings((4.0,), None, None, None, None)),
    ]
    assert (_digest(made), _digest([])) == ("3 of 19f7d6babd60a669", "0 of e3b0c44298fc1c14")
    other = [made[0], made[1]._replace(ratings=known._replace(fields=(("x", 1.0),))), made[2]]
    another = [made[0], made[1]._replace(ratings=known._replace(fields=(("x", 2.0),))), made[2]]
    assert len({_digest(made), _digest(other), _digest(another)}) == 3


def test_a_run_goes_on_with_the_numbers_that_it_began_with(run, tmp_path):
    path = tiny.write_rows(tmp_path / "rows.jsonl", rows())
    whole = run("led", path)
    told = {"out": str(tmp_path / "stopped"), "resume": True}
    run("led", path, **told, stop_after=2)
    changed = rows()
    changed[3]["lead"] = 7.0
    tiny.write_rows(path, changed)
    with pytest.raises(InputError, match=r"--resume would resume another run \(rows: 9 of \w+ -> 9 of \w+\)"):
        run("led", path, **told)
    ignored = [row | {"other": i} for i, row in enumerate(rows())]  # which nothing asks for
    found = run("led", tiny.write_rows(path, ignored), **told)
    assert [x["loss"] for x in found] == [x["loss"] for x in whole] and len(found) == 3
