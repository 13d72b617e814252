"""Objectives of revisions: the plain ones where everything counts, closed forms where it does not."""

import math

import pytest
import torch

import losses
from losses import LossError, Responses
from tests.losses.ragged import columns, gradients
from tests.losses.samples import assert_close, d, s, sp

PLAIN = {"apo_zero_revised": "apo_zero", "apo_down_revised": "apo_down", "dpo_revised": "dpo"}


def summed(given):
    """The plain sums of a column."""
    return Responses(given.per_sequence(given.logps), given.per_sequence(given.ref_logps), given.lengths)


@pytest.mark.parametrize(("name", "plain"), PLAIN.items())
@pytest.mark.parametrize("beta", [0.1, 1.0])
def test_where_all_tokens_count_alike_it_is_the_plain_objective_to_the_last_bit(name, plain, beta):
    winners, losers = columns()
    found = losses.get(name)(winners.given, losers.given, beta=beta, unrevised=1.0)
    expected = losses.get(plain)(summed(winners.given), summed(losers.given), beta=beta)
    for a, b in zip(found[:3], expected[:3], strict=True):
        assert torch.equal(a, b)
    for column in (winners, losers):
        assert torch.equal(gradients(found.losses, column)[0], gradients(expected.losses, column)[0])


def value_and_slopes(name, r_w, r_l):
    """(loss, d / d r_w, d / d r_l)."""
    m = r_w - r_l
    if name == "apo_zero_revised":
        return s(-r_w) + s(r_l), -d(r_w), d(r_l)
    if name == "apo_down_revised":
        return s(r_w) + s(-m), d(r_w) - d(m), d(m)
    return sp(-m), -s(-m), s(-m)


@pytest.mark.parametrize("name", PLAIN)
@pytest.mark.parametrize(("beta", "unrevised"), [(0.1, 0.0), (0.1, 0.3), (1.0, 0.0)])
def test_value_and_gradient_are_the_closed_form(name, beta, unrevised):
    winners, losers = columns()
    found = losses.get(name)(winners.given, losers.given, beta=beta, unrevised=unrevised)
    weights, rewards = [], []
    for column in (winners, losers):
        weights.append([[1.0 if v else unrevised for v in row.revised] for row in column.rows])
        x = [
            sum(u * (lp - ref) for u, lp, ref in zip(of, row.lp, row.ref, strict=True))
            for of, row in zip(weights[-1], column.rows, strict=True)
        ]
        rewards.append(beta * torch.tensor(x, dtype=torch.float64))
    value, *slopes = value_and_slopes(name, *rewards)
    assert_close(found.losses, value)
    assert_close(found.chosen_rewards, rewards[0])
    assert_close(found.rejected_rewards, rewards[1])
    for column, of, slope in zip((winners, losers), weights, slopes, strict=True):
        lp, kl, lss, ref = gradients(found.losses, column)
        each = [beta * g * u for g, row in zip(slope.tolist(), of, strict=True) for u in row]
        assert_close(lp, torch.tensor(each, dtype=torch.float64))
        assert torch.isfinite(lp).all() and not kl.any() and not lss.any() and not ref.any()


@pytest.mark.parametrize(("name", "at_the_centre"), [("apo_zero_revised", 1.0), ("dpo_revised", math.log(2))])
def test_a_response_without_revised_tokens_has_no_gradient(name, at_the_centre):
    winners, losers = columns()
    none = [c.given._replace(revised=torch.zeros_like(c.given.revised)) for c in (winners, losers)]
    result = losses.get(name)(*none)
    assert_close(result.losses, torch.full_like(result.losses, at_the_centre))
    for column in (winners, losers):
        assert not gradients(result.losses, column)[0].any()


@pytest.mark.parametrize("name", PLAIN)
@pytest.mark.parametrize("unrevised", [-0.1, 1.01, math.nan])
def test_a_weight_outside_of_0_and_1_is_refused(name, unrevised):
    winners, losers = columns()
    with pytest.raises(LossError, match=f"unrevised is {unrevised}; it has to be between 0 and 1"):
        losses.get(name)(winners.given, losers.given, unrevised=unrevised)


@pytest.mark.parametrize("name", PLAIN)
def test_revised_tokens_that_are_absent_are_asked_for(name):
    given = columns()[0].given._replace(revised=None)
    with pytest.raises(LossError, match="this objective needs revised; declare it"):
        losses.get(name)(given, given)
    assert losses.get(name).needs == {"revised"} and losses.get(name).level == "token"
