"""Objectives with a statistic of the step, of single responses, and of ranked ones, against closed forms in float64."""

import math

import pytest
import torch

import losses
from losses import LossError, Responses
from tests.losses.samples import REF, assert_close, call, d, labels_of, points, s, scores_of, sp


def leaves(x):
    """logps that ask for a gradient, and ref_logps, at log-ratios x."""
    ref_logps = torch.full_like(x, REF)
    return (ref_logps + x).requires_grad_(), ref_logps


@pytest.mark.parametrize("beta", [0.1, 1.0])
@pytest.mark.parametrize("e", [0.0, 0.2])
def test_aot_compares_the_kth_margins(beta, e):
    g = torch.Generator().manual_seed(3)
    lp, ref = (torch.randn(2, 40, dtype=torch.float64, generator=g) * 20 for _ in range(2))
    lp.requires_grad_()
    result = losses.get("aot")(Responses(lp[0], ref[0]), Responses(lp[1], ref[1]), beta=beta, label_smoothing=e)
    margins, others = (lp[0] - lp[1]).tolist(), sorted((ref[0] - ref[1]).tolist())
    rank = {value: k for k, value in enumerate(sorted(margins))}
    difference = beta * torch.tensor([v - others[rank[v]] for v in margins], dtype=torch.float64)
    assert_close(result.losses, (1 - e) * sp(-difference) + e * sp(difference))
    result.losses.sum().backward()
    slope = beta * (s(difference) - (1 - e))
    assert_close(lp.grad, torch.stack([slope, -slope]))


def test_aot_unpaired_compares_the_kth_log_ratios():
    x = points()[:, :64]
    made = call("aot_unpaired", x, beta=0.3, label_smoothing=0.1)
    x_w, x_l = (REF + x) - REF
    order_w, order_l = x_w.argsort(), x_l.argsort()
    difference = 0.3 * (x_w[order_w] - x_l[order_l])
    slope = 0.3 * (s(difference) - 0.9)
    expected = torch.zeros(3, 64, dtype=torch.float64)
    expected[0, order_w] = 0.9 * sp(-difference) + 0.1 * sp(difference)
    expected[1, order_w], expected[2, order_l] = slope, -slope
    assert_close(made.result.losses, expected[0])
    assert_close(made.gradient(), expected[1:])


def test_one_pair_alone_makes_aot_dpo():
    x = torch.tensor([[3.0], [-4.0]], dtype=torch.float64)
    for name in ("aot", "aot_unpaired"):
        assert_close(call(name, x).result.losses, call("dpo", x).result.losses)


def test_the_mean_of_all_rewards_seen_is_bcos_anchor():
    state, seen = None, []
    for seed in range(3):
        x = points(seed)[:, : 5 + 7 * seed]
        made = call("bco_pair", x, beta=0.5, state=state)
        seen += (0.5 * ((REF + x) - REF)).flatten().tolist()
        delta = sum(seen) / len(seen)
        assert_close(made.result.metrics["delta"], torch.tensor(delta, dtype=torch.float64))
        r_w, r_l = 0.5 * ((REF + x) - REF)
        assert_close(made.result.losses, sp(-(r_w - delta)) + sp(r_l - delta))
        assert_close(
            made.gradient(), torch.stack([-0.5 * s(delta - r_w), 0.5 * s(r_l - delta)])
        )  # none through the anchor
        state = made.result.state
    assert state == {"mean": pytest.approx(delta), "count": len(seen)}


@pytest.mark.parametrize("delta", [None, 0.4])
def test_bco_is_the_closed_form(delta):
    x = points()
    r = 0.1 * ((REF + x) - REF).T.flatten()
    labels, weight = labels_of(len(r)), (torch.arange(len(r), dtype=torch.float64) % 5)
    made = call("bco", x, weights=weight, delta=delta)
    shift, w = r.mean() if delta is None else delta, weight.clamp(0.5, 10)
    assert_close(made.result.losses, torch.where(labels, sp(-(r - shift)), w * sp(r - shift)))
    expected = torch.where(labels, -0.1 * s(shift - r), 0.1 * w * s(r - shift))
    assert_close(made.gradient().T.flatten(), expected)


def test_bco_without_weights_weighs_all_alike():
    lp, ref = leaves(points().flatten())
    labels = labels_of(len(lp))
    one = losses.get("bco")(Responses(lp, ref), labels)
    same = losses.get("bco")(Responses(lp, ref), labels, weights=torch.ones(len(lp)))
    assert torch.equal(one.losses, same.losses)


@pytest.mark.parametrize("weights", [(1.0, 1.0), (1.3, 0.4)])
def test_apo_down_unpaired_is_the_closed_form(weights):
    x = points()
    r = 0.1 * ((REF + x) - REF).T.flatten()
    labels = labels_of(len(r))
    z_w, z_l = r[labels].mean(), r[~labels].mean()
    made = call("apo_down_unpaired", x, desirable_weight=weights[0], undesirable_weight=weights[1])
    expected = torch.where(labels, weights[0] * (s(r) + s(z_l - r)), weights[1] * s(r - z_w))
    assert_close(made.result.losses, expected)
    slopes = torch.where(labels, weights[0] * 0.1 * (d(r) - d(r - z_l)), weights[1] * 0.1 * d(z_w - r))
    assert_close(made.gradient().T.flatten(), slopes)


def test_with_equal_rewards_apo_down_unpaired_has_apo_downs_gradients():
    lp, ref = leaves(torch.tensor([3.0, -5.0] * 4, dtype=torch.float64))
    labels = torch.tensor([True, False] * 4)
    losses.get("apo_down_unpaired")(Responses(lp, ref), labels).losses.sum().backward()
    paired = call("apo_down", torch.tensor([[3.0], [-5.0]], dtype=torch.float64)).gradient()
    assert_close(lp.grad.view(4, 2), paired.T.expand(4, 2))


@pytest.mark.parametrize("value", [True, False])
@pytest.mark.parametrize("name", ["bco", "apo_down_unpaired"])
def test_a_step_of_one_class_alone_is_finite(name, value):
    lp, ref = leaves(points()[0])
    result = losses.get(name)(Responses(lp, ref), torch.full(lp.shape, value))
    assert torch.isfinite(result.losses).all()


def test_beta_dpo_is_the_closed_form_for_the_pairs_that_are_kept():
    x = points()[:, :64]
    A = ((REF + x) - REF)[0] - ((REF + x) - REF)[1]
    keep = torch.arange(64) % 4 != 0
    before = {"mean": 1.0, "deviation": 2.0, "step": 5.0}
    made = call("beta_dpo", x, keep=keep, state=before)
    mean = 0.9 * 1.0 + 0.1 * A.mean()
    beta = 0.1 * (1 + 0.6 * (A[keep].mean() - mean))
    assert_close(made.result.metrics["beta"], beta)
    assert_close(made.result.losses, torch.where(keep, sp(-beta * A) * 64 / 48, 0.0))
    slope = torch.where(keep, -beta * s(-beta * A) * 64 / 48, 0.0)
    assert_close(made.gradient(), torch.stack([slope, -slope]))  # none through beta
    after = {"mean": mean.item(), "deviation": 0.9 * 2.0 + 0.1 * A.std().item(), "step": 6.0}
    assert made.result.state == pytest.approx(after)


def test_beta_dpo_draws_the_same_pairs_for_a_seed_and_a_step_and_others_for_the_next():
    x = points()[:, :64]
    kept = [
        (call("beta_dpo", x, state={"mean": 0.0, "deviation": 50.0, "step": step}, seed=seed).result.losses != 0)
        for seed, step in ((0, 3.0), (0, 3.0), (0, 4.0), (1, 3.0))
    ]
    assert torch.equal(kept[0], kept[1]) and not torch.equal(kept[0], kept[2]) and not torch.equal(kept[0], kept[3])
    assert all(k.sum() == 51 for k in kept)  # floor(0.8 * 64)


def test_beta_dpo_keeps_those_near_the_running_mean():
    x = torch.stack([torch.linspace(0, 100, 50, dtype=torch.float64), torch.zeros(50, dtype=torch.float64)])
    state = {"mean": 20.0, "deviation": 3.0, "step": 0.0}
    kept = call("beta_dpo", x, momentum=1.0, keep_share=0.1, state=state).result.losses != 0
    assert kept.sum() == 5 and (x[0][kept] - 20).abs().max() < 15


def test_beta_dpos_beta_does_not_fall_to_nothing():
    x = torch.tensor([[-500.0] * 4, [500.0] * 4], dtype=torch.float64)
    assert call("beta_dpo", x).result.metrics["beta"].item() == pytest.approx(1e-3)


def test_at_the_first_step_beta_dpo_is_dpo_on_its_draw():
    made = call("beta_dpo", torch.zeros(2, 10, dtype=torch.float64))
    kept = made.result.losses != 0
    assert kept.sum() == 8
    assert_close(made.result.losses[kept], torch.full((8,), 1.25 * 0.6931471805599453, dtype=torch.float64))


@pytest.mark.parametrize("share", [0.0, 1.5])
def test_a_share_that_is_none_is_refused(share):
    with pytest.raises(LossError, match="keep_share is"):
        call("beta_dpo", points(), keep_share=share)


# Single responses.


@pytest.mark.parametrize("beta", [0.1, 1.0])
def test_npo_is_the_closed_form(beta):
    x = points()
    r = beta * ((REF + x) - REF).T.flatten()
    made = call("npo", x, beta=beta)
    assert_close(made.result.losses, 2 / beta * sp(r))
    assert_close(made.gradient().T.flatten(), 2 * s(r))
    assert len(made.result.chosen_rewards) == 0 and torch.equal(made.result.rejected_rewards, r)


@pytest.mark.parametrize("tau", [1.0, 0.3])
def test_dro_is_the_closed_form(tau):
    x = points()
    flat = ((REF + x) - REF).T.flatten()
    s_w, s_l, _ = scores_of(x.shape[1])
    scores, values = torch.stack([s_w, s_l], 1).flatten(), torch.arange(len(flat), dtype=torch.float64) / 7
    made = call("dro", x, tau=tau, values=values)
    rest = scores - values - tau * flat
    assert_close(made.result.losses, rest**2 / 2)
    assert_close(made.gradient().T.flatten(), -tau * rest)


@pytest.mark.parametrize("beta", [0.1, 1.0, 0.003])
def test_qrpo_is_the_closed_form(beta):
    x = points()
    flat = ((REF + x) - REF).T.flatten()
    quantile = torch.arange(len(flat), dtype=torch.float64) % 11 / 10
    z = math.log(beta) + (math.log(math.expm1(1 / beta)) if beta > 0.01 else 1 / beta)  # exp(333) has no - 1
    rest = quantile - beta * z - beta * flat
    made = call("qrpo", x, beta=beta, quantile=quantile)
    assert_close(made.result.losses, rest**2)
    assert_close(made.gradient().T.flatten(), -2 * beta * rest)


def test_qrpos_partition_function_is_that_of_uniform_rewards():
    """At the optimum exp(r / beta) is exp(quantile / beta) / Z, whose mean over the reference is 1."""
    beta, q = 0.5, (torch.arange(20000, dtype=torch.float64) + 0.5) / 20000
    zero = torch.zeros_like(q)
    at_zero = losses.get("qrpo")(Responses(zero, zero), beta=beta, quantile=q).losses
    x = torch.where(q > beta * math.log(beta * math.expm1(1 / beta)), 1, -1) * at_zero.sqrt() / beta
    assert torch.exp(x).mean().item() == pytest.approx(1, abs=1e-8)


@pytest.mark.parametrize("quantile", [-0.1, 1.1, math.nan])
def test_a_quantile_that_is_none_is_refused(quantile):
    lp = torch.zeros(2, dtype=torch.float64)
    with pytest.raises(LossError, match="qrpo: the quantile of a row has to be between 0 and 1"):
        losses.get("qrpo")(Responses(lp, lp), quantile=torch.tensor([0.5, quantile]))


# Ranked responses: three to a prompt, the one in the middle half the difference of the others.


def ranked(x):
    """Log-ratios and scores [n, 3]."""
    x_w, x_l = x
    s_w, s_l, _ = scores_of(x.shape[1])
    middle = (REF + (x_w - x_l) / 2) - REF
    return torch.stack([(REF + x_w) - REF, middle, (REF + x_l) - REF], 1), torch.stack([s_w, (s_w + s_l) / 2, s_l], 1)


def softmax(z):
    z = (z - z.max(dim=1, keepdim=True).values).exp()
    return z / z.sum(dim=1, keepdim=True)


@pytest.mark.parametrize(("beta", "alpha"), [(0.01, 1e-4), (0.5, 2.0)])
def test_infonca_is_the_closed_form(beta, alpha):
    x, scores = ranked(points())
    t, p = softmax(scores / alpha), softmax(beta * x)
    made = call("infonca", points(), beta=beta, alpha=alpha)
    shifted = beta * x - (beta * x).max(dim=1, keepdim=True).values
    assert_close(made.result.losses, -(t * (shifted - shifted.exp().sum(dim=1, keepdim=True).log())).sum(dim=1))
    assert_close(made.gradient(), beta * (p - t))


@pytest.mark.parametrize(("beta", "alpha"), [(0.01, 1e-4), (0.5, 2.0)])
def test_nca_ranked_is_the_closed_form(beta, alpha):
    x, scores = ranked(points())
    t, r = softmax(scores / alpha), beta * x
    made = call("nca_ranked", points(), beta=beta, alpha=alpha)
    assert_close(made.result.losses, (t * sp(-r)).sum(dim=1) + sp(r).sum(dim=1) / 3)
    assert_close(made.gradient(), beta * (s(r) / 3 - t * s(-r)))


@pytest.mark.parametrize(("beta", "beta_r"), [(0.1, 0.5), (0.5, 2.0)])
def test_exo_ranked_is_the_closed_form(beta, beta_r):
    x, scores = ranked(points())
    p, log_t = softmax(beta * x), torch.log(softmax(scores / beta_r))
    shifted = beta * x - (beta * x).max(dim=1, keepdim=True).values
    log_p = shifted - shifted.exp().sum(dim=1, keepdim=True).log()
    value = (p * (log_p - log_t)).sum(dim=1)
    made = call("exo_ranked", points(), beta=beta, beta_r=beta_r)
    assert_close(made.result.losses, value)
    assert_close(made.gradient(), beta * p * (log_p - log_t - value[:, None]))


@pytest.mark.parametrize("tau", [1.0, 0.3])
def test_dro_ranked_takes_each_value_from_the_others(tau):
    x, scores = ranked(points())
    rest = scores - tau * x
    value = torch.stack(
        [(rest[:, 1] + rest[:, 2]) / 2, (rest[:, 0] + rest[:, 2]) / 2, (rest[:, 0] + rest[:, 1]) / 2], 1
    )
    made = call("dro_ranked", points(), tau=tau)
    assert_close(made.result.losses, ((rest - value) ** 2).mean(dim=1) / 2)
    assert_close(made.gradient(), -tau * (rest - value) / 3)


def two_ranked(name, x, **arguments):
    """A ranked objective on pairs whose labels are (1, 0)."""
    lp, ref = leaves(x.T.contiguous())
    scores = torch.tensor([1.0, 0.0]).expand_as(lp)
    return losses.get(name)(Responses(lp, ref, None, scores), beta=0.1, alpha=1e-4, **arguments).losses


def test_two_ranked_responses_are_a_pair():
    x = points()
    assert_close(two_ranked("infonca", x), call("dpo", x).result.losses)
    assert_close(two_ranked("nca_ranked", x), call("nca", x).result.losses)
