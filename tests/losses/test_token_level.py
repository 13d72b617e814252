"""What objectives of token level are given, and the package's own against closed forms in Python floats, row by row.

x log-ratio of a response, D its summed KL(reference || policy), m margin; sums over the tokens of a row.
"""

import math

import pytest
import torch

import losses
from losses import LossError, Responses, Result, TokenResponses
from tests.losses.ragged import Row, columns, gradients
from tests.losses.samples import assert_close

WITH_KL = ["tdpo1", "tdpo2", "pmpo"]


def s(z):
    """The logistic function of a float."""
    return 1 / (1 + math.exp(-z)) if z > 0 else math.exp(z) / (1 + math.exp(z))


def sp(z):
    """log(1 + exp(z)) of a float."""
    return max(z, 0) + math.log1p(math.exp(-abs(z)))


def x_of(row: Row) -> list[float]:
    return [a - b for a, b in zip(row.lp, row.ref, strict=True)]


def near(got, expected):
    """Equal to 1e-11: margins are differences of sums of 1e4, of which float64 holds 2e-12."""
    torch.testing.assert_close(got, expected, rtol=1e-11, atol=1e-11)


# What objectives are given.


def small() -> TokenResponses:
    """Rows of 2, 1 and 3 tokens."""
    lp = torch.tensor([-1.0, -2.0, -3.0, -4.0, -5.0, -6.0], dtype=torch.float64, requires_grad=True)
    sequence, position = torch.tensor([0, 0, 1, 2, 2, 2]), torch.tensor([0, 1, 0, 0, 1, 2])
    return TokenResponses(lp, lp.detach() - 1, sequence, position, torch.tensor([2, 1, 3]))


def test_values_are_summed_over_the_rows_they_belong_to():
    given = small()
    sums = given.per_sequence(given.logps)
    assert sums.tolist() == [-3.0, -3.0, -15.0]
    (slope,) = torch.autograd.grad((sums * torch.tensor([1.0, 10.0, 100.0])).sum(), given.logps)
    assert slope.tolist() == [1, 1, 10, 100, 100, 100]
    assert given.logratios.tolist() == [1.0] * 6


def test_what_a_mask_leaves_out_is_0_and_has_no_gradient():
    given = small()
    mask = torch.tensor([True, False, False, True, True, False])
    masked = given.masked(given.logps, mask)
    assert masked.tolist() == [-1, 0, 0, -4, -5, 0]
    (slope,) = torch.autograd.grad(masked.sum(), given.logps)
    assert slope.tolist() == [1, 0, 0, 1, 1, 0]
    infinite = torch.full((6,), -math.inf, dtype=torch.float64)
    assert given.masked(infinite, torch.zeros(6, dtype=torch.bool)).tolist() == [0] * 6


def test_the_common_length_is_that_of_the_shorter_response_of_each_pair():
    winners = small()
    lp = torch.zeros(7, dtype=torch.float64)
    losers = TokenResponses(
        lp, None, torch.tensor([0, 1, 1, 1, 1, 2, 2]), torch.tensor([0, 0, 1, 2, 3, 0, 1]), torch.tensor([1, 4, 2])
    )
    in_w, in_l = losses.common(winners, losers)
    assert in_w.tolist() == [True, False, True, True, True, False]
    assert in_l.tolist() == [True, True, False, False, False, True, True]


# Closed forms: of each pair its loss, and the slopes of each token's log-prob and KL, winner and loser.


def of_margin(z: float, weights, kl, beta: float):
    """sp(-z) where every token of the winner has the weight weights[0] in z / beta, of the loser -weights[1]."""
    g = beta * s(-z)
    lp = [[-g * v for v in weights[0]], [g * v for v in weights[1]]]
    return sp(-z), lp, [[-g * v for v in kl[0]], [g * v for v in kl[1]]]


def ld_dpo(win: Row, lose: Row, beta=0.1, alpha=0.5):
    shorter = min(len(win.lp), len(lose.lp))
    weights = [[1.0 if t < shorter else alpha for t in range(len(row.lp))] for row in (win, lose)]
    x_w, x_l = (
        sum(a * b for a, b in zip(x_of(row), v, strict=True)) for row, v in zip((win, lose), weights, strict=True)
    )
    none = [[0.0] * len(row.lp) for row in (win, lose)]
    return of_margin(beta * (x_w - x_l), weights, none, beta)


def tdpo1(win: Row, lose: Row, beta=0.1):
    z = beta * ((sum(x_of(win)) - sum(x_of(lose))) - (sum(lose.kl) - sum(win.kl)))
    ones = [[1.0] * len(row.lp) for row in (win, lose)]
    return of_margin(z, ones, ones, beta)


def tdpo2(win: Row, lose: Row, beta=0.1, alpha=0.5):
    z = beta * ((sum(x_of(win)) - sum(x_of(lose))) - alpha * (sum(lose.kl) - sum(win.kl)))
    ones = [[1.0] * len(row.lp) for row in (win, lose)]
    return of_margin(z, ones, [[0.0] * len(win.lp), [alpha] * len(lose.lp)], beta)


def wpo(win: Row, lose: Row, beta=0.1, cap=math.inf):
    means = [sum(a - b for a, b in zip(row.lp, row.lss, strict=True)) / len(row.lp) for row in (win, lose)]
    weight = min(math.exp(sum(means)), cap)
    ones = [[1.0] * len(row.lp) for row in (win, lose)]
    none = [[0.0] * len(row.lp) for row in (win, lose)]
    value, lp, kl = of_margin(beta * (sum(x_of(win)) - sum(x_of(lose))), ones, none, beta)
    return weight * value, [[weight * v for v in side] for side in lp], kl


FORMS = [
    (ld_dpo, {}), (ld_dpo, {"alpha": 0.0, "beta": 1.0}), (ld_dpo, {"alpha": 0.3}),
    (tdpo1, {}), (tdpo1, {"beta": 1.0}), (tdpo2, {}), (tdpo2, {"beta": 1.0, "alpha": 0.2}),
    (wpo, {}), (wpo, {"beta": 1.0, "cap": 1.0}),
]  # fmt: skip


@pytest.mark.parametrize(("form", "arguments"), FORMS, ids=[f"{f.__name__}-{a}" for f, a in FORMS])
def test_an_objective_of_pairs_is_its_closed_form(form, arguments):
    winners, losers = columns()
    found = losses.get(form.__name__)(winners.given, losers.given, **arguments).losses
    expected = [form(win, lose, **arguments) for win, lose in zip(winners.rows, losers.rows, strict=True)]
    near(found, torch.tensor([value for value, _, _ in expected], dtype=torch.float64))
    for side, column in enumerate((winners, losers)):
        lp, kl, lss, ref = gradients(found, column)
        near(lp, torch.tensor([v for _, slopes, _ in expected for v in slopes[side]], dtype=torch.float64))
        near(kl, torch.tensor([v for _, _, slopes in expected for v in slopes[side]], dtype=torch.float64))
        assert not lss.any() and not ref.any()


@pytest.mark.parametrize(("alpha", "beta"), [(0.5, 1.0), (0.2, 3.0), (0.0, 1.0), (1.0, 0.0)])
def test_pmpo_is_its_closed_form(alpha, beta):
    column, _ = columns()
    labels = torch.arange(len(column.rows)) % 3 != 0
    result = losses.get("pmpo")(column.given, labels, alpha=alpha, beta=beta)
    weights = [-2 * alpha if good else 2 * (1 - alpha) for good in labels.tolist()]
    assert_close(
        result.losses,
        torch.tensor(
            [v * sum(row.lp) + beta * sum(row.kl) for v, row in zip(weights, column.rows, strict=True)],
            dtype=torch.float64,
        ),
    )
    lp, kl, lss, ref = gradients(result.losses, column)
    each = [v for v, row in zip(weights, column.rows, strict=True) for _ in row.lp]
    assert_close(lp, torch.tensor(each, dtype=torch.float64))
    assert_close(kl, torch.full_like(kl, beta))
    assert not lss.any() and not ref.any()
    assert len(result.chosen_rewards) == labels.sum() and len(result.rejected_rewards) == (~labels).sum()


def test_pmpos_mean_over_a_balanced_step_is_the_papers():
    """alpha times the mean -lp of desirable ones, 1 - alpha times the mean lp of the others, beta times the mean D."""
    column, _ = columns()
    labels = torch.arange(len(column.rows)) % 2 == 0
    found = losses.get("pmpo")(column.given, labels, alpha=0.3, beta=2.0).losses.mean().item()
    good = [sum(row.lp) for row in column.rows[0::2]]
    bad = [sum(row.lp) for row in column.rows[1::2]]
    kl = [sum(row.kl) for row in column.rows]
    mean = [sum(values) / len(values) for values in (good, bad, kl)]
    assert found == pytest.approx(-0.3 * mean[0] + 0.7 * mean[1] + 2.0 * mean[2], rel=1e-12)


REWARDS = {  # of a row, at beta 0.1: what the loss compares
    "ld_dpo": None,
    "tdpo1": lambda row: 0.1 * (sum(x_of(row)) + sum(row.kl)),
    "tdpo2": lambda row: 0.1 * (sum(x_of(row)) + 0.5 * sum(row.kl)),
    "wpo": lambda row: 0.1 * sum(x_of(row)),
}


@pytest.mark.parametrize("name", REWARDS)
def test_rewards_are_beta_times_what_the_loss_compares(name):
    winners, losers = columns()
    result = losses.get(name)(winners.given, losers.given)
    m = result.chosen_rewards - result.rejected_rewards
    if name != "wpo":  # which weighs the same
        assert_close(-torch.nn.functional.logsigmoid(m), result.losses.detach())
    if (of := REWARDS[name]) is not None:
        assert_close(result.chosen_rewards, torch.tensor([of(row) for row in winners.rows], dtype=torch.float64))
        assert_close(result.rejected_rewards, torch.tensor([of(row) for row in losers.rows], dtype=torch.float64))


def test_a_response_that_the_policy_would_write_weighs_one():
    """Every token as likely as the policy's own draws are on average."""
    winners, losers = columns()
    given = [c.given._replace(log_sum_squares=c.given.logps.detach()) for c in (winners, losers)]
    result = losses.get("wpo")(*given)
    dpo = losses.get("dpo")(*(_summed(c.given) for c in (winners, losers)))
    assert torch.equal(result.losses, dpo.losses) and result.metrics["weight"] == 1


def _summed(given: TokenResponses) -> Responses:
    """The plain sums of a column."""
    return Responses(given.per_sequence(given.logps), given.per_sequence(given.ref_logps), given.lengths)


def test_nothing_cut_and_no_kl_is_dpo_to_the_last_bit():
    winners, losers = columns()
    given = winners.given, losers.given
    dpo = losses.get("dpo")(_summed(winners.given), _summed(losers.given))
    for name, arguments in (("ld_dpo", {"alpha": 1.0}), ("tdpo2", {"alpha": 0.0})):
        found = losses.get(name)(*given, **arguments)
        for a, b in zip(found[:3], dpo[:3], strict=True):
            assert_close(a, b)
    found = losses.get("ld_dpo")(*given, alpha=1.0)
    assert torch.equal(found.losses, dpo.losses) and torch.equal(found.chosen_rewards, dpo.chosen_rewards)
    assert torch.equal(gradients(found.losses, winners)[0], gradients(dpo.losses, winners)[0])


def test_tdpo2_holds_the_policy_back_along_losers_only():
    winners, losers = columns()
    found = losses.get("tdpo2")(winners.given, losers.given).losses
    assert not gradients(found, winners)[1].any() and (gradients(found, losers)[1] >= 0).all()
    both = losses.get("tdpo1")(winners.given, losers.given).losses
    assert (gradients(both, winners)[1] <= 0).all() and gradients(both, winners)[1].any()


@pytest.mark.parametrize("alpha", [-0.1, 1.5, math.nan])
@pytest.mark.parametrize("name", ["ld_dpo", "pmpo"])
def test_an_alpha_that_is_no_share_is_refused(name, alpha):
    winners, losers = columns()
    second = losers.given if name == "ld_dpo" else torch.ones(len(losers.rows), dtype=torch.bool)
    with pytest.raises(LossError, match=f"alpha is {alpha}; it has to be between 0 and 1"):
        losses.get(name)(winners.given, second, alpha=alpha)


@pytest.mark.parametrize("name", [*WITH_KL, "wpo"])
def test_what_is_asked_for_and_absent_is_said(name):
    given = columns()[0].given._replace(kl_ref_policy=None, log_sum_squares=None)
    second = torch.ones(len(given.lengths), dtype=torch.bool) if name == "pmpo" else given
    field = "log_sum_squares" if name == "wpo" else "kl_ref_policy"
    with pytest.raises(LossError, match=rf'needs {field}; declare it .*needs=\("{field}",\)'):
        losses.get(name)(given, second)


# What the decorator refuses.


def pair(chosen, rejected, *, beta: float = 0.1) -> Result: ...


def one(responses, *, beta: float = 0.1) -> Result: ...


@pytest.mark.parametrize(
    ("function", "arguments", "said"),
    [
        (
            one,
            {"data": "ranked", "level": "token"},
            "level='token' takes pairs, unpaired or single data, and not ranked",
        ),
        (pair, {"data": "pairs", "level": "word"}, "level='word' is not sequence or token"),
        (pair, {"data": "pairs", "needs": ("entropy",)}, r"needs=\['entropy'\] applies to single tokens; say"),
        (
            pair,
            {"data": "pairs", "level": "token", "needs": ("kl_policy_ref",)},
            r"needs=\['kl_policy_ref'\] needs a reference; say reference=True",
        ),
        (
            one,
            {"data": "single", "level": "token", "needs": ("revised",)},
            r"needs=\('revised',\) compares two responses; say data='pairs'",
        ),
    ],
)
def test_what_cannot_go_together_is_refused_and_not_registered(function, arguments, said):
    with pytest.raises(LossError, match=f"^objective 'x': {said}"):
        losses.loss("x", **arguments)(function)
    assert "x" not in losses.names()


def test_an_objective_knows_its_level():
    assert {name for name in losses.names() if losses.get(name).level == "token"} >= {"ld_dpo", *WITH_KL, "wpo"}
    assert losses.get("dpo").level == losses.get("wpo_sequence").level == "sequence"
    assert losses.get("tdpo1").needs == {"kl_ref_policy"} and losses.get("wpo").needs == {"log_sum_squares"}
