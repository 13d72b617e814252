"""What is said of rows before weights are read: steps without an anchor, classes out of balance, rows that weigh."""

import numpy as np
import pytest

from data.rows.examples import Example
from data.rows.records import Ratings
from engine.config import DataConfig, ScheduleConfig
from engine.step import Objective, Steps, notices, weights_report
from system import InputError


def rows(prompts, labels=None, weights=None):
    ids = np.arange(1, 100, dtype=np.int32)
    given = zip(prompts, labels or [True, False] * 99, weights or [None] * len(prompts), strict=False)
    return [
        Example(f"f:{i}", ids[p : p + 2], (ids[:3],), label, Ratings(weight=weight))
        for i, (p, label, weight) in enumerate(given)
    ]


def said(examples, loss="kto", batch_size=4, epochs=2, **hyperparameters):
    objective = Objective(
        loss, hyperparameters={name.replace("__", "."): str(x) for name, x in hyperparameters.items()}
    )
    schedule = ScheduleConfig(batch_size=batch_size, epochs=epochs)
    return notices(objective, examples, Steps(examples, DataConfig(sources=("f",), shuffle=False), schedule, objective))


def test_steps_of_one_row_say_that_nothing_is_anchored():
    (sentence,) = said(rows(range(6)), batch_size=1)
    assert sentence.startswith("kto: every step has rows of one prompt") and "the KL estimate is always 0" in sentence
    assert sentence.endswith("raise --batch-size, or give rows of more prompts")


def test_some_steps_of_one_prompt_are_counted():
    (sentence,) = said(rows([1, 1, 1, 1, 2, 3], [True, False] * 3), batch_size=4, epochs=3, kto__beta=0.2)
    assert sentence.startswith("kto: 3 of 6 steps have rows of one prompt alone")
    assert sentence.endswith("the KL estimate is 0 there")
    (sentence,) = said(rows([1, 2, 3, 4, 5] * 2), batch_size=9, epochs=1)
    assert sentence.startswith("kto: 1 of 2 steps has rows of one prompt alone")
    assert said(rows(range(8))) == [] and said(rows(range(6)), batch_size=1, kto__kl=1.0) == []
    assert said(rows(range(6)), "apo_zero_unpaired", batch_size=1) == []


@pytest.mark.parametrize(
    ("n_desirable", "weights", "ratio"),
    [(9, (1, 1), 9.0), (2, (1, 1), 0.25), (5, (2, 1), 2.0), (9, (1, 3), 3.0), (5, (1, 1.1), 1 / 1.1)],
)
@pytest.mark.parametrize("loss", ["kto", "apo_zero_unpaired"])
def test_classes_out_of_balance_are_said_with_what_would_balance_them(loss, n_desirable, weights, ratio):
    labels = [True] * n_desirable + [False] * (10 - n_desirable)
    named = dict(zip((f"{loss}__desirable_weight", f"{loss}__undesirable_weight"), weights, strict=True))
    (sentence,) = said(rows(range(10), labels), loss, batch_size=5, **named)
    assert sentence.startswith(f"{loss}: {n_desirable} desirable and {10 - n_desirable} undesirable rows, of weights ")
    assert f"they count {ratio:.3g} to 1" in sentence and f"--{loss}.desirable_weight " in sentence
    up, down = (sentence.split(f"--{loss}.{kind}_weight ")[1].split(",")[0].split(" to ") for kind in
                ("desirable", "undesirable"))  # fmt: skip
    for value, share in zip(up, (1, 4 / 3), strict=True):  # either brings it to the advised range
        assert float(value) * n_desirable / (weights[1] * (10 - n_desirable)) == pytest.approx(share, rel=0.01)
        assert said(rows(range(10), labels), loss, batch_size=5, **(named | {f"{loss}__desirable_weight": value})) == []
    for value, share in zip(down, (4 / 3, 1), strict=True):
        assert weights[0] * n_desirable / (float(value) * (10 - n_desirable)) == pytest.approx(share, rel=0.01)


def test_classes_within_the_advised_range_and_pairs_say_nothing():
    for n, weight in ((5, 1), (5, 4 / 3), (4, 2), (8, 0.3)):
        labels = [True] * n + [False] * (10 - n)
        assert said(rows(range(10), labels), batch_size=5, kto__desirable_weight=weight) == [], (n, weight)
    assert said(rows(range(10)), "kto,apo_zero_unpaired", batch_size=5) == []


def test_rows_weights_count_in_the_balance_and_one_class_alone_is_said():
    labels = [True] * 5 + [False] * 5
    (sentence,) = said(rows(range(10), labels, [3.0] * 5 + [None] * 5), batch_size=5)
    assert "they count 3 to 1" in sentence
    assert said(rows(range(10), labels, [1.2] * 5 + [None] * 5), batch_size=5) == []
    (sentence,) = said(rows(range(10), [True] * 10), batch_size=5)
    assert sentence.startswith("kto: 10 desirable and 0 undesirable rows: no row is undesirable")


def test_weights_are_named_with_their_mean():
    dpo = Objective("dpo")
    assert weights_report(dpo, rows([1, 2])) == ""
    assert weights_report(dpo, rows([1, 2], None, [0.5, 2.0])) == "rows weigh 1.25 on average (0.5 to 2)"
    assert weights_report(dpo, rows(range(4), None, [0.0, None, 0.0, 3.0])) == (
        "rows weigh 1 on average (0 to 3), 1 without a weight count 1, 2 of weight 0 move nothing (the first is f:0)"
    )
    assert weights_report(Objective("bco"), rows([1, 2], None, [0.5, 2.0])).endswith(", as bco itself makes of it")


def test_rows_that_all_weigh_nothing_are_refused():
    with pytest.raises(InputError, match="f:0: its weight is 0 and so is every other row's"):
        weights_report(Objective("dpo"), rows([1, 2], None, [0.0, 0.0]))
