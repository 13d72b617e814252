"""AlpacaEval 2: requests, preferences, win rates, and the length-controlled fit against its optimality conditions."""

import math
import statistics

import numpy as np
import pytest

from eval import alpacaeval
from eval.alpacaeval import Rows, fit, is_switched, length_controlled, messages, preference, win_rate
from system.errors import InputError
from tests.eval.upstream import TEMPLATE


def test_a_template_becomes_messages():
    assert messages("Do.", "one", " two ", TEMPLATE) == [
        {"role": "system", "content": "Be fair."},
        {"role": "user", "content": "Task: Do.\nm: one\nM:  two"},
    ]


def test_slots_are_filled_one_after_the_other_each_at_its_first_occurrence():
    shown = messages("say {output_1}", "A {output_2}", "B", TEMPLATE)[1]["content"]
    assert shown == "Task: say A B\nm: {output_1}\nM: {output_2}"


@pytest.mark.parametrize(
    "template", ["no slots", TEMPLATE.replace("{output_2}", ""), "{instruction}{output_1}{output_2}"]
)
def test_a_template_of_another_form_is_refused(template):
    with pytest.raises(InputError, match="alpaca_eval_clf"):
        messages("a", "b", "c", template)


def test_the_order_depends_on_the_instruction_and_is_fair():
    drawn = [is_switched(f"instruction {i}") for i in range(2000)]
    assert drawn == [is_switched(f"instruction {i}") for i in range(2000)]
    assert 850 < sum(drawn) < 1150  # outside once in 10^11 for a fair coin


def top(**logprobs):
    return [{"token": token, "logprob": value} for token, value in logprobs.items()]


def test_a_preference_is_the_probability_of_m_among_both():
    found = preference(top(m=math.log(0.2), M=math.log(0.6), x=math.log(0.2)), switched=False)
    assert found == pytest.approx(2 - 0.25, abs=1e-12)  # the model is shown second: M's share is 3/4
    assert preference(top(m=math.log(0.2), M=math.log(0.6)), switched=True) == pytest.approx(1 + 0.25, abs=1e-12)


def test_a_token_that_is_not_listed_has_no_probability():
    assert preference(top(m=-0.1), switched=False) == 1 and preference(top(M=-9.0), switched=False) == 2
    assert preference(top(m=-0.1), switched=True) == 2
    assert preference(top(mm=-0.1, Both=-2.0), switched=False) is None and preference([], switched=True) is None
    assert preference(top(m=-math.inf), switched=False) is None and preference(top(m=-math.inf, M=-1.0), False) == 2


def test_the_win_rate_and_its_error():
    values = [1.0, 2.0, 1.25, 1.5, 0.0, None, 3.0, -1.0, 1.75]
    y = [0, 1, 0.25, 0.5, 0.5, 0.75]
    found = win_rate(values)
    assert found["win_rate"] == pytest.approx(100 * sum(y) / 6, abs=1e-9)
    assert found["standard_error"] == pytest.approx(100 * statistics.stdev(y) / math.sqrt(6), abs=1e-9)
    assert [found[k] for k in ("n_wins", "n_wins_base", "n_draws", "n_total")] == [2, 2, 2, 6]
    assert found["discrete_win_rate"] == pytest.approx(100 * (2 + 2 / 2) / 6, abs=1e-9)  # 2 and 1.75; two draws


def test_nothing_is_said_of_no_preference():
    with pytest.raises(InputError, match="no output has a preference"):
        win_rate([None, 5.0])


# --- length control ------------------------------------------------------------------------------------------------


def rows(n=400, seed=0):
    rng = np.random.default_rng(seed)
    x = np.stack([np.tanh(rng.normal(size=n)), rng.normal(size=n), rng.integers(0, 2, n)], axis=1)
    y = 1 / (1 + np.exp(-x @ [0.8, 0.5, -1.0] + rng.normal(size=n)))
    return Rows(x, y, rng.uniform(0.1, 1, n))


@pytest.mark.parametrize("strength", [1e-4, 1e-2, 0.05, 0.2, 1.0, 20.0, 1e4])
def test_the_fit_meets_the_conditions_of_the_least(strength):
    r = rows()
    w = fit(r, strength)
    p = 1 / (1 + np.exp(-r.x @ w))
    gradient = strength * r.x.T @ (r.weight * (p - r.y))
    scale = 1e-6 * max(1, strength)
    for g, value in zip(gradient, w, strict=True):
        if value:
            assert g == pytest.approx(-np.sign(value), abs=scale)
        else:
            assert abs(g) <= 1 + scale
    assert strength > 1e-3 or not w.any()  # so weak a fit stays at nothing


def data(n=100, seed=1):
    rng = np.random.default_rng(seed)
    difficulty = rng.normal(size=n)
    gamed = [
        {"index": i % n, "preference": float(rng.beta(2, 2)), "instruction_difficulty": float(difficulty[i % n]),
         "std_delta_len": float(rng.normal(1 if i < n else -1, 0.3))}
        for i in range(2 * n)
    ]  # fmt: skip
    reference = rng.integers(500, 2000, n)
    lengths = reference + rng.integers(-300, 300, n)
    return difficulty, gamed, lengths, reference, rng


def test_a_judge_who_counts_letters_is_seen_through():
    difficulty, gamed, _, reference, rng = data(400)
    lengths = reference + rng.integers(-600, 1500, 400)
    delta = reference - lengths
    z = -2.0 * np.tanh(delta / delta.std(ddof=1)) - 0.6 + 0.3 * difficulty  # longer wins; else the model is a bit worse
    preferences = list(1 + 1 / (1 + np.exp(-z)))
    raw = win_rate(preferences)["win_rate"]
    found = length_controlled(preferences, lengths, reference, gamed)
    expected = 100 * (1 / (1 + np.exp(0.6 - 0.3 * difficulty))).mean()
    left = abs(found["length_controlled_winrate"] - expected)
    assert raw > expected + 10 and left < 0.4 * (raw - expected)  # the gamed rows, blind to length here, hold it back
    assert found["strength"] in alpacaeval.STRENGTHS


def test_missing_preferences_leave_their_rows_in_the_prediction():
    difficulty, gamed, lengths, reference, rng = data()
    preferences = [None if i % 9 == 0 else float(p) for i, p in enumerate(rng.uniform(1, 2, 100))]
    found = length_controlled(preferences, lengths, reference, gamed)
    delta = reference - lengths
    known = np.array([p is not None for p in preferences])
    x = np.stack([np.tanh(delta / delta.std(ddof=1)), difficulty, np.ones(100)], axis=1)[known]
    y = np.array([p - 1 for p in preferences if p is not None])
    g = np.array([[np.tanh(row["std_delta_len"]), row["instruction_difficulty"], 0] for row in gamed])
    weight = np.r_[np.full(200, 0.1), np.ones(known.sum())]
    train = Rows(np.r_[g, x], np.r_[[row["preference"] for row in gamed], y], weight)
    _, w_d, w_1 = fit(train, found["strength"])
    p = 1 / (1 + np.exp(-w_d * difficulty - w_1))  # of all 100
    assert found["length_controlled_winrate"] == pytest.approx(100 * p.mean(), abs=1e-9)
    assert found["lc_standard_error"] == pytest.approx(100 * p.std(ddof=1) / 10, abs=1e-9)


def test_the_folds_leave_out_every_fifth_row_from_the_end(monkeypatch):
    left_out = []
    r = rows(23)
    monkeypatch.setattr(alpacaeval, "STRENGTHS", np.array([1.0]))
    monkeypatch.setattr(alpacaeval, "fit", lambda kept, strength: left_out.append(kept.y) or np.zeros(3))
    assert alpacaeval.best_strength(r) == 1.0
    for k, kept in enumerate(left_out):
        gone = [g for g in range(23) if (22 - g) % 5 == k]
        assert list(kept) == [r.y[g] for g in range(23) if g not in gone]


def test_columns_that_do_not_fit_are_said():
    _, gamed, lengths, reference, _ = data()
    with pytest.raises(InputError, match="one each"):
        length_controlled([1.5] * 99, lengths, reference, gamed)
    with pytest.raises(InputError, match="instruction 100"):
        length_controlled([1.5] * 101, [*lengths, 3], [*reference, 4], gamed)
    with pytest.raises(InputError, match="by the same amount"):
        length_controlled([1.5] * 100, [n + 3 for n in reference], reference, gamed)
    with pytest.raises(InputError, match="by the same amount"):
        length_controlled([1.2] * 100, reference, reference, gamed)
    with pytest.raises(InputError, match="no output has a preference"):
        length_controlled([None] * 100, lengths, reference, gamed)


def test_the_reference_against_itself_is_fifty_without_a_fit():
    _, gamed, _, reference, _ = data()
    found = length_controlled([1.5] * 100, reference, reference, gamed)
    assert (found["length_controlled_winrate"], found["lc_standard_error"]) == (50.0, 0.0)


def test_a_table_of_another_program_has_what_it_has():
    assert alpacaeval.warnings({"length_controlled_winrate": 31.0}) == []


@pytest.mark.parametrize(
    ("raw", "controlled", "is_far"),
    [(20, 9.9, True), (20, 10.1, False), (20, 40.1, True), (20, 39.9, False), (50, 37, True)],
)
def test_a_move_that_is_too_far_is_told(raw, controlled, is_far):
    assert alpacaeval.is_extreme(raw, controlled) == is_far
