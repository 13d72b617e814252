"""The paper's seven objectives against closed forms written out here, in float64.

x log-ratio, r = beta * x reward, m = r_w - r_l margin, s the logistic function, d its derivative.
"""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import losses
from losses import LossError, Responses
from tests.losses.samples import d, labels_of, s, sp

NAMES = ["dpo", "apo_zero", "apo_down", "apo_zero_unpaired", "kto", "kto_pair", "sft"]
PAIRS = ["dpo", "apo_zero", "apo_down", "kto_pair"]
LABELLED = ["apo_zero_unpaired", "kto"]
FAR = [[0, 200, -200, 200, -200, 0, 200, 1e4, -1e4, 1e4], [0, -200, 200, 200, -200, 200, 0, -1e4, 1e4, 1e4]]  # x_w, x_l
REF = -256.0
CENTRE = [[0.0], [0.0]]
small = st.floats(-30, 30)
betas = st.sampled_from([0.05, 0.1, 0.5, 1.0])


def assert_close(got, expected):
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-12)


def points(seed=0, shift=0.0):
    """Log-ratios [2, 74]: 64 random ones within +-30, the centre, +-200 and +-1e4."""
    x = 60 * torch.rand(2, 64, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)) - 30
    return torch.cat([(x + shift).clamp(-30, 30), torch.tensor(FAR, dtype=torch.float64)], dim=1)


def tensor(values, dtype=torch.float64):
    return torch.as_tensor(values, dtype=dtype)


def columns(x):
    """Leaves logps and ref_logps of the shape of x, both asking for a gradient."""
    ref_logps = torch.full_like(x, REF).requires_grad_()
    return (ref_logps.detach() + x).requires_grad_(), ref_logps


def call(name, x, **arguments):
    """(result, logps, ref_logps) of the objective on x [2, n]: as pairs, or its 2n responses one after the other."""
    x = tensor(x) if not isinstance(x, torch.Tensor) else x
    logps, ref_logps = columns(x)
    if name in PAIRS:
        given_columns = tuple(map(Responses, logps, ref_logps))
    else:
        lengths = torch.arange(1, x.numel() + 1)
        given_columns = (Responses(logps.flatten(), ref_logps.flatten(), lengths),)
        if name in LABELLED:
            given_columns += (labels_of(x.numel()),)
        if name == "kto" and "kl" not in arguments and "mismatched" not in arguments:
            arguments["kl"] = 1.5
    return losses.get(name)(*given_columns, **arguments), logps, ref_logps


def gradient(name, x, **arguments):
    result, logps, _ = call(name, x, **arguments)
    result.losses.sum().backward()
    return logps.grad


@pytest.mark.parametrize("beta", [0.1, 1.0])
def test_dpo_is_the_closed_form(beta):
    x = points()
    m = beta * (x[0] - x[1])
    assert_close(call("dpo", x, beta=beta)[0].losses, sp(-m))
    assert_close(gradient("dpo", x, beta=beta), torch.stack([-beta * s(-m), beta * s(-m)]))


@pytest.mark.parametrize("beta", [0.1, 1.0])
def test_apo_zero_is_the_closed_form(beta):
    x = points()
    r_w, r_l = beta * x
    assert_close(call("apo_zero", x, beta=beta)[0].losses, s(-r_w) + s(r_l))
    assert_close(gradient("apo_zero", x, beta=beta), torch.stack([-beta * d(r_w), beta * d(r_l)]))


@pytest.mark.parametrize("beta", [0.1, 1.0])
def test_apo_down_is_the_closed_form(beta):
    x = points()
    r_w, r_l = beta * x
    m = r_w - r_l
    assert_close(call("apo_down", x, beta=beta)[0].losses, s(r_w) + s(-m))
    assert_close(gradient("apo_down", x, beta=beta), torch.stack([beta * (d(r_w) - d(m)), beta * d(m)]))


@pytest.mark.parametrize("beta", [0.1, 1.0])
@pytest.mark.parametrize("weights", [(1.0, 1.0), (1.3, 0.4)])
def test_apo_zero_unpaired_is_the_closed_form(beta, weights):
    x = points()
    r, labels = beta * x.flatten(), labels_of(x.numel())
    arguments = {"beta": beta, "desirable_weight": weights[0], "undesirable_weight": weights[1]}
    assert_close(
        call("apo_zero_unpaired", x, **arguments)[0].losses, torch.where(labels, weights[0] * s(-r), weights[1] * s(r))
    )
    expected = torch.where(labels, -weights[0] * beta * d(r), weights[1] * beta * d(r))
    assert_close(gradient("apo_zero_unpaired", x, **arguments).flatten(), expected)


@pytest.mark.parametrize("beta", [0.1, 1.0])
@pytest.mark.parametrize("weights", [(1.0, 1.0), (1.3, 0.4)])
@pytest.mark.parametrize("kl", [0.0, 2.5])
def test_kto_with_a_fixed_kl_is_the_closed_form(beta, weights, kl):
    x = points()
    away, labels = beta * (x.flatten() - kl), labels_of(x.numel())
    arguments = {"beta": beta, "desirable_weight": weights[0], "undesirable_weight": weights[1], "kl": kl}
    result, logps, _ = call("kto", x, **arguments)
    assert_close(result.losses, torch.where(labels, weights[0] * s(-away), weights[1] * s(away)))
    assert_close(result.metrics["kl"], tensor(kl))
    result.losses.sum().backward()
    expected = torch.where(labels, -weights[0] * beta * d(away), weights[1] * beta * d(away))
    assert_close(logps.grad.flatten(), expected)


@pytest.mark.parametrize(("ratios", "z"), [([3.0, -1.0, 7.0], 3.0), ([1.0, -5.0, 2.0], 0.0)])
def test_kto_anchors_on_the_mean_of_the_mismatched_clamped_once(ratios, z):
    x, beta = points(), 0.1
    logps, ref_logps = columns(tensor(ratios))  # of another number than the responses
    result, own, _ = call("kto", x, beta=beta, mismatched=Responses(logps, ref_logps))
    away, labels = beta * (x.flatten() - z), labels_of(x.numel())
    assert_close(result.losses, torch.where(labels, s(-away), s(away)))
    assert_close(result.metrics["kl"], tensor(z))
    result.losses.sum().backward()
    assert_close(own.grad.flatten(), torch.where(labels, -beta * d(away), beta * d(away)))
    assert logps.grad is None and not result.metrics["kl"].requires_grad  # the anchor gets no gradient


def test_kto_takes_a_given_kl_before_the_mismatched():
    logps, ref_logps = columns(tensor([9.0]))
    result, _, _ = call("kto", points(), kl=2.0, mismatched=Responses(logps, ref_logps))
    assert_close(result.metrics["kl"], tensor(2.0))


def test_kto_without_an_anchor_is_refused():
    logps, ref_logps = columns(points()[0])
    with pytest.raises(LossError, match="kto needs mismatched sequences or a fixed kl"):
        losses.get("kto")(Responses(logps, ref_logps), labels_of(len(logps)))


KTO_PAIR_STEPS = {  # log-ratios [2, 64] whose means clamp both anchors, one of them, none
    "both above 0": (4.0, 6.0),
    "the winner's above 0": (5.0, -6.0),
    "the loser's above 0": (-5.0, 3.0),
    "both below 0": (-4.0, -6.0),
}


@pytest.mark.parametrize("beta", [0.1, 1.0])
@pytest.mark.parametrize("detach", [True, False])
@pytest.mark.parametrize("means", KTO_PAIR_STEPS.values(), ids=KTO_PAIR_STEPS)
def test_kto_pair_is_the_closed_form(beta, detach, means):
    x = 60 * torch.rand(2, 64, dtype=torch.float64, generator=torch.Generator().manual_seed(1)) - 30
    x = x - x.mean(dim=1, keepdim=True) + tensor(means)[:, None]
    (x_w, x_l), n = x, x.shape[1]
    z_w, z_l = max(0.0, means[0]), max(0.0, means[1])
    result, logps, _ = call("kto_pair", x, beta=beta, detach=detach)
    assert_close(result.losses, (s(-beta * (x_w - z_l)) + s(-beta * (z_w - x_l))) / 2)
    assert_close(result.metrics["kl"], tensor((z_w + z_l) / 2))
    result.losses.sum().backward()
    g_w, g_l = -beta / 2 * d(beta * (x_w - z_l)), beta / 2 * d(beta * (z_w - x_l))
    if not detach:  # through the mean of the other half, where the clamp lets it pass
        through_l = beta / (2 * n) * d(beta * (x_w - z_l)).sum() * (means[1] > 0)
        through_w = -beta / (2 * n) * d(beta * (z_w - x_l)).sum() * (means[0] > 0)
        g_w, g_l = g_w + through_w, g_l + through_l
    assert_close(logps.grad, torch.stack([g_w, g_l]))


@pytest.mark.parametrize("beta", [0.1, 1.0])
def test_kto_pair_with_given_anchors_is_the_closed_form_far_out_too(beta):
    x = points()
    x_w, x_l = x
    result, logps, _ = call("kto_pair", x, beta=beta, kl_chosen=2.0, kl_rejected=0.5)
    assert_close(result.losses, (s(-beta * (x_w - 0.5)) + s(-beta * (2.0 - x_l))) / 2)
    result.losses.sum().backward()
    assert_close(logps.grad, torch.stack([-beta / 2 * d(beta * (x_w - 0.5)), beta / 2 * d(beta * (2.0 - x_l))]))


def test_at_the_centre_kto_pair_without_detach_has_exactly_twice_the_gradient():
    x = torch.zeros(2, 4, dtype=torch.float64)
    assert torch.equal(gradient("kto_pair", x, detach=False), 2 * gradient("kto_pair", x, detach=True))


@pytest.mark.parametrize("beta", [0.1, 1.0])
@pytest.mark.parametrize("detach", [True, False])
@pytest.mark.parametrize("size", [1, 3, 4])
def test_kto_pair_anchors_on_groups_of_the_steps_order(beta, detach, size):
    """Ten pairs in groups of 1, of 3 and the one that is left, of 4 and the two that are left."""
    x = 20 * torch.rand(2, 10, dtype=torch.float64, generator=torch.Generator().manual_seed(2)) - 10
    groups = [range(i, min(i + size, 10)) for i in range(0, 10, size)]
    z = torch.zeros(2, 10, dtype=torch.float64)
    g = torch.zeros(2, 10, dtype=torch.float64)
    for group in map(list, groups):
        z[:, group] = x[:, group].mean(dim=1, keepdim=True).clamp(min=0)
    (x_w, x_l), (z_w, z_l) = x, z
    g[0], g[1] = -beta / 2 * d(beta * (x_w - z_l)), beta / 2 * d(beta * (z_w - x_l))
    own = g.clone()
    for group in map(list, groups) if not detach else ():  # what moves a loser moves the winners' anchor the other way
        g[0, group] -= own[1, group].sum() / len(group) * (x_w[group].mean() > 0)
        g[1, group] -= own[0, group].sum() / len(group) * (x_l[group].mean() > 0)
    result, logps, _ = call("kto_pair", x, beta=beta, detach=detach, anchor_size=size)
    assert_close(result.losses, (s(-beta * (x_w - z_l)) + s(-beta * (z_w - x_l))) / 2)
    assert_close(result.metrics["kl"], (z.sum() / 20).clone())
    result.losses.sum().backward()
    assert_close(logps.grad, g)
    whole = call("kto_pair", x, beta=beta, detach=detach)[0]
    assert not torch.allclose(whole.losses, result.losses, atol=1e-3)
    large = call("kto_pair", x, beta=beta, detach=detach, anchor_size=10)[0]
    assert_close(large.losses, whole.losses)


def test_kto_pair_needs_a_pair_in_a_group():
    with pytest.raises(LossError, match="anchor_size is 0; it has to be 1 pair at least"):
        call("kto_pair", points(), anchor_size=0)


@pytest.mark.parametrize("per", ["token", "sequence", "sum"])
def test_sft_is_the_closed_form(per):
    x = points()
    lp, n = (REF + x).flatten(), torch.arange(1, x.numel() + 1).double()
    result, logps, _ = call("sft", x, per=per)
    divisor = {"token": torch.full_like(n, n.sum().item() / len(n)), "sequence": n, "sum": torch.ones_like(n)}[per]
    assert_close(result.losses, -lp / divisor)
    result.losses.sum().backward()
    assert_close(logps.grad.flatten(), -1 / divisor)
    assert_close(result.chosen_rewards, 0.1 * x.flatten())
    assert len(result.rejected_rewards) == 0


def test_the_mean_of_sft_per_token_is_the_mean_over_tokens():
    lp, lengths = tensor([-12.0, -3.0, -40.0]), torch.tensor([5, 2, 11])
    assert_close(losses.get("sft")(Responses(lp, lengths=lengths)).losses.mean(), tensor(55 / 18))


def test_sft_takes_a_given_mean_length_before_its_own():
    lp, lengths = tensor([-12.0, -3.0]), torch.tensor([5, 2])
    assert_close(losses.get("sft")(Responses(lp, lengths=lengths), mean_length=4.0).losses, tensor([3.0, 0.75]))


def test_sft_without_a_reference_reports_beta_times_the_log_prob():
    lp = tensor([-12.0, -3.0])
    assert_close(losses.get("sft")(Responses(lp), per="sum", beta=0.5).chosen_rewards, tensor([-6.0, -1.5]))


@pytest.mark.parametrize("per", ["token", "sequence", "word"])
def test_sft_names_what_it_lacks(per):
    lengths = torch.tensor([3]) if per == "word" else None
    with pytest.raises(LossError, match=f"a likelihood per '{per}' needs lengths; per is token, sequence or sum"):
        losses.get("sft")(Responses(tensor([-1.0]), lengths=lengths), per=per)


CENTRE_LOSS = {"dpo": math.log(2), "apo_zero": 1.0, "apo_down": 1.0, "apo_zero_unpaired": 0.5, "kto_pair": 0.5}


@pytest.mark.parametrize(("name", "value"), CENTRE_LOSS.items())
def test_the_value_at_the_centre(name, value):
    assert_close(call(name, CENTRE)[0].losses, torch.full_like(call(name, CENTRE)[0].losses, value))


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("beta", [0.1, 5.0])
def test_far_out_everything_is_finite(name, dtype, beta):
    result, logps, _ = call(name, tensor(FAR, dtype), beta=beta)
    result.losses.sum().backward()
    assert result.losses.dtype == dtype
    assert torch.isfinite(result.losses).all() and torch.isfinite(logps.grad).all()


@pytest.mark.parametrize("name", NAMES)
def test_float32_gives_the_digits_of_float64(name):
    x = points()[:, :66].float()  # within +-30, the centre, 200; log-ratios that float32 holds exactly beside REF
    x = (x + REF) - REF
    single, double = call(name, x), call(name, x.double())
    assert single[0].losses.dtype == torch.float32
    torch.testing.assert_close(single[0].losses.double(), double[0].losses, rtol=1e-5, atol=1e-30)
    for result, _, _ in (single, double):
        result.losses.sum().backward()
    # differences of two slopes (apo_down's winner) lose digits of the larger one: beta / 4 at most, in float32's 1e-7
    torch.testing.assert_close(single[1].grad.double(), double[1].grad, rtol=1e-5, atol=1e-8)


# Figure 3: which way each objective pushes. A negative gradient raises the likelihood.


@pytest.mark.parametrize("name", ["dpo", "apo_zero"])
def test_dpo_and_apo_zero_raise_every_winner_and_lower_every_loser(name):
    g_w, g_l = gradient(name, points()[:, :65])
    assert (g_w < 0).all() and (g_l > 0).all()


def test_dpo_pushes_both_equally():
    g_w, g_l = gradient("dpo", points())
    assert torch.equal(g_w, -g_l)
    assert_close(gradient("dpo", CENTRE), tensor([[-0.05], [0.05]]))


def test_apo_zero_pushes_the_winner_harder_only_where_it_is_nearer_to_the_reference():
    x = points()[:, :64]
    g_w, g_l = gradient("apo_zero", x).abs()
    assert torch.equal(g_w > g_l, x[0].abs() < x[1].abs())


def test_apo_downs_first_step_moves_the_loser_only():
    g_w, g_l = gradient("apo_down", CENTRE, beta=0.1)
    assert g_w.item() == 0.0
    assert_close(g_l, tensor([0.025]))


def test_apo_down_lowers_every_loser_and_the_winner_where_it_is_nearer_than_the_margin():
    x = points()[:, :64]
    g_w, g_l = gradient("apo_down", x)
    nearer = x[0].abs() < (x[0] - x[1]).abs()
    assert nearer.any() and (~nearer).any()
    assert (g_l > 0).all() and torch.equal(g_w > 0, nearer) and torch.equal(g_w < 0, ~nearer)


@pytest.mark.parametrize("x", [(-3.0, -6.0), (5.0, 10.0), (4.0, 0.0), (-7.0, 0.0)])
def test_apo_downs_winner_rests_where_the_loser_is_twice_as_far_or_at_the_reference(x):
    assert_close(gradient("apo_down", tensor(x)[:, None])[0], tensor([0.0]))


def test_a_step_of_apo_down_can_shrink_a_saturated_margin():
    g_w, g_l = gradient("apo_down", [[0.0], [-60.0]], beta=0.1)
    assert g_l - g_w < 0


@pytest.mark.parametrize("name", LABELLED)
def test_unpaired_objectives_raise_the_desirable_and_lower_the_others(name):
    x = points()[:, :64]
    g, labels = gradient(name, x).flatten(), labels_of(x.numel())
    assert (g[labels] < 0).all() and (g[~labels] > 0).all()


# What is the same for all of them.


@pytest.mark.parametrize("name", NAMES)
def test_rewards_and_metrics_are_detached(name):
    result, logps, _ = call(name, points())
    assert logps.requires_grad and result.losses.requires_grad
    for values in (result.chosen_rewards, result.rejected_rewards, *result.metrics.values()):
        assert not values.requires_grad
    assert result.state is None


@pytest.mark.parametrize("name", NAMES)
def test_no_gradient_goes_into_the_reference(name):
    result, logps, ref_logps = call(name, points())
    result.losses.sum().backward()
    assert logps.grad.any() and ref_logps.grad is None


@pytest.mark.parametrize("name", ["dpo", "apo_zero", "apo_down", "kto_pair"])
def test_rewards_of_pairs_are_beta_times_the_log_ratio(name):
    x = points()
    result, _, _ = call(name, x, beta=0.3)
    assert_close(result.chosen_rewards, 0.3 * x[0])
    assert_close(result.rejected_rewards, 0.3 * x[1])


@pytest.mark.parametrize("name", LABELLED)
def test_rewards_of_labelled_responses_go_to_their_own_class(name):
    x = points()
    result, _, _ = call(name, x, beta=0.3)
    labels = labels_of(x.numel())
    assert_close(result.chosen_rewards, 0.3 * x.flatten()[labels])
    assert_close(result.rejected_rewards, 0.3 * x.flatten()[~labels])


@pytest.mark.parametrize("name", LABELLED)
@pytest.mark.parametrize("value", [True, False])
def test_a_step_of_one_class_has_no_rewards_of_the_other(name, value):
    logps, ref_logps = columns(points()[0])
    arguments = {"kl": 0.0} if name == "kto" else {}
    result = losses.get(name)(Responses(logps, ref_logps), torch.full(logps.shape, value), **arguments)
    assert len(result.chosen_rewards) == value * len(logps)
    assert len(result.rejected_rewards) == (not value) * len(logps)
    assert torch.isfinite(result.losses).all()


@pytest.mark.parametrize("name", [n for n in NAMES if n != "sft"])
def test_an_objective_with_a_reference_says_so_where_there_is_none(name):
    x = points()
    given_columns = (Responses(x[0]), Responses(x[1])) if name in PAIRS else (Responses(x[0]), labels_of(len(x[0])))
    arguments = {"kl": 0.0} if name == "kto" else {}
    with pytest.raises(LossError, match="needs reference log-probs"):
        losses.get(name)(*given_columns, **arguments)


@pytest.mark.parametrize("name", PAIRS)
def test_permuting_the_pairs_permutes_the_losses(name):
    x = points(shift=3.0)[:, :64]
    order = torch.randperm(64, generator=torch.Generator().manual_seed(2))
    assert_close(call(name, x[:, order])[0].losses, call(name, x)[0].losses[order])


@pytest.mark.parametrize("name", PAIRS)
def test_duplicating_the_step_leaves_its_mean(name):
    x = points(shift=3.0)[:, :64]
    assert_close(call(name, x.repeat(1, 2))[0].losses.mean(), call(name, x)[0].losses.mean())


@given(st.lists(st.tuples(small, small), min_size=1, max_size=8), st.floats(-500, 500), betas)
def test_what_is_added_to_policy_and_reference_alike_changes_nothing(rows, c, beta):
    x = tensor(rows).T
    for name in PAIRS:
        shifted = [Responses(REF + c + row, torch.full_like(row, REF + c)) for row in x]
        got = losses.get(name)(*shifted, beta=beta).losses
        # numbers near 800 are 1e-13 apart in float64, and each passes four additions
        torch.testing.assert_close(got, call(name, x, beta=beta)[0].losses.detach(), rtol=0, atol=2e-12)


@given(small, small, st.floats(-30, 30), betas)
def test_only_the_margin_enters_dpo(x_w, x_l, c, beta):
    moved = call("dpo", [[x_w + c], [x_l + c]], beta=beta)[0].losses
    torch.testing.assert_close(moved, call("dpo", [[x_w], [x_l]], beta=beta)[0].losses, rtol=0, atol=2e-12)


@pytest.mark.parametrize("name", ["apo_zero", "apo_down", "kto_pair"])
def test_a_shift_of_both_log_ratios_changes_the_anchored_objectives(name):
    arguments = {"kl_chosen": 0.0, "kl_rejected": 0.0} if name == "kto_pair" else {}
    here, there = (call(name, x, beta=1.0, **arguments)[0].losses.item() for x in ([[1.0], [-2.0]], [[4.0], [1.0]]))
    assert abs(here - there) > 0.05


@given(small, small, betas, st.sampled_from([0.5, 2.0, 4.0]))
def test_scaling_beta_down_and_log_ratios_up_changes_nothing(x_w, x_l, beta, c):
    for name in PAIRS:
        scaled = call(name, [[c * x_w], [c * x_l]], beta=beta / c)[0].losses
        torch.testing.assert_close(scaled, call(name, [[x_w], [x_l]], beta=beta)[0].losses, rtol=0, atol=1e-12)


@given(small, small, betas)
def test_swapping_winner_and_loser(x_w, x_l, beta):
    def both(name):
        return (call(name, x, beta=beta)[0].losses for x in ([[x_w], [x_l]], [[x_l], [x_w]]))

    r_w, r_l = beta * tensor([x_w]), beta * tensor([x_l])
    here, swapped = both("apo_zero")
    assert_close(here + swapped, tensor([2.0]))
    here, swapped = both("dpo")
    assert_close(swapped - here, r_w - r_l)
    here, swapped = both("apo_down")
    assert_close(here + swapped, 1 + s(r_w) + s(r_l))


@given(st.lists(st.tuples(small, small), min_size=1, max_size=8), betas)
def test_on_unpaired_pairs_the_mean_is_half_of_apo_zeros(rows, beta):
    x = tensor(rows).T
    logps, ref_logps = columns(x)
    labels = torch.tensor([True, False])[:, None].expand_as(x).flatten()
    unpaired = losses.get("apo_zero_unpaired")(Responses(logps.flatten(), ref_logps.flatten()), labels, beta=beta)
    assert_close(unpaired.losses.mean(), call("apo_zero", x, beta=beta)[0].losses.mean() / 2)
    kto = losses.get("kto")(Responses(logps.flatten(), ref_logps.flatten()), labels, beta=beta, kl=0.0)
    assert_close(kto.losses, unpaired.losses)  # KTO whose anchor is 0


@given(small, small, betas)
def test_losses_and_slopes_of_the_anchored_objectives_are_bounded(x_w, x_l, beta):
    for name in ("apo_zero", "apo_down"):
        result, logps, _ = call(name, [[x_w], [x_l]], beta=beta)
        assert 0 < result.losses.item() < 2
        result.losses.sum().backward()
        assert (logps.grad.abs() <= beta / 4 + 1e-15).all()


@given(small, small, st.floats(0.1, 20), betas)
def test_a_likelier_winner_or_a_less_likely_loser_lowers_the_loss(x_w, x_l, step, beta):
    for name in ("dpo", "apo_zero", "kto_pair"):
        arguments = {"kl_chosen": 1.0, "kl_rejected": 1.0} if name == "kto_pair" else {}
        here, up, down = (
            call(name, x, beta=beta, **arguments)[0].losses.item()
            for x in ([[x_w], [x_l]], [[x_w + step], [x_l]], [[x_w], [x_l - step]])
        )
        assert up <= here and down <= here
