"""Objectives of pairs against closed forms written out here: value and both gradients, in float64.

x log-ratio, r = beta * x reward, m = r_w - r_l margin, lp log-prob, n tokens, a = lp / n; G = d loss / d m.
"""

import math
from types import SimpleNamespace

import pytest
import torch

import losses
from losses import LossError
from tests.losses.samples import REF, assert_close, call, d, lengths, points, s, scores_of, sp

LOG2 = math.log(2)


def by_margin(value, G, c, beta):
    """(loss, g_w, g_l) of an objective of the margin alone."""
    return value, beta * G, -beta * G


def ipo(c, beta=0.1, length_normalised=True):
    n_w, n_l = (c.n_w, c.n_l) if length_normalised else (1, 1)
    rest = c.x_w / n_w - c.x_l / n_l - 1 / (2 * beta)
    return rest**2, 2 * rest / n_w, -2 * rest / n_l


def cdpo(c, beta=0.1, label_smoothing=0.1):
    m, e = beta * (c.x_w - c.x_l), label_smoothing
    return by_margin((1 - e) * sp(-m) + e * sp(m), s(m) - (1 - e), c, beta)


def robust_dpo(c, beta=0.1, label_smoothing=0.1):
    m, e = beta * (c.x_w - c.x_l), label_smoothing
    value = ((1 - e) * sp(-m) - e * sp(m)) / (1 - 2 * e)
    return by_margin(value, -((1 - e) * s(-m) + e * s(m)) / (1 - 2 * e), c, beta)


def hinge(c, beta=0.1):
    m = beta * (c.x_w - c.x_l)
    return by_margin((1 - m).clamp(min=0), -(m < 1).double(), c, beta)


def odpo(c, beta=0.1, alpha=1.0, offset="log"):
    lead = c.s_w - c.s_l
    z = beta * (c.x_w - c.x_l) - alpha * (torch.log(lead) if offset == "log" else lead)
    return by_margin(sp(-z), -s(-z), c, beta)


def dpop(c, beta=0.3, lam=50.0):
    z = beta * (c.x_w - c.x_l) - beta * lam * (-c.x_w).clamp(min=0)
    return sp(-z), -beta * s(-z) * (1 + lam * (c.x_w < 0)), beta * s(-z)


def dpo_nll(c, beta=0.1, alpha=1.0, nll_per="sequence"):
    m = beta * (c.x_w - c.x_l)
    n = {"sequence": c.n_w, "token": c.n_w.mean(), "sum": torch.ones_like(c.n_w)}[nll_per]
    return sp(-m) - alpha * c.lp_w / n, -beta * s(-m) - alpha / n, beta * s(-m)


def r_dpo(c, beta=0.1, alpha=0.01):
    z = beta * (c.x_w - c.x_l) + alpha * (c.n_w - c.n_l)
    return by_margin(sp(-z), -s(-z), c, beta)


def exo(c, beta=0.1, label_smoothing=1e-3):
    m, e = beta * (c.x_w - c.x_l), label_smoothing
    value = s(m) * (-sp(-m) - math.log(1 - e)) + s(-m) * (-sp(m) - math.log(e))
    return by_margin(value, d(m) * (m - math.log((1 - e) / e)), c, beta)


def discopop(c, beta=0.05, tau=0.05):
    m = beta * (c.x_w - c.x_l)
    mixed = torch.exp(-sp(-m / tau) - m)  # u exp(-m)
    value = s(-m / tau) * sp(-m) + mixed
    slope = s(-m / tau) / tau * (mixed - s(m / tau) * sp(-m))  # d(m / tau) / tau (exp(-m) - sp(-m))
    return by_margin(value, slope - s(-m / tau) * s(-m) - mixed, c, beta)


def ln_dpo(c, beta=0.1):
    z = beta * (c.x_w / c.n_w - c.x_l / c.n_l)
    return sp(-z), -beta * s(-z) / c.n_w, beta * s(-z) / c.n_l


def wpo_sequence(c, beta=0.1):
    m, weight = beta * (c.x_w - c.x_l), torch.exp(c.lp_w / c.n_w + c.lp_l / c.n_l)
    return by_margin(weight * sp(-m), -weight * s(-m), c, beta)


def f_dpo(c, beta=0.1, divergence="reverse_kl", alpha=0.5):
    def of(x):
        """(f'(exp x), its derivative by x)."""
        if divergence == "reverse_kl":
            return x, torch.ones_like(x)
        if divergence == "js_divergence":
            return LOG2 - sp(-x), s(-x)
        power = 1.0 if divergence == "forward_kl" else alpha
        beyond = -power * x > 80
        shrunk = torch.where(beyond, torch.exp(torch.tensor(80.0, dtype=x.dtype)), torch.exp(-power * x))
        return (1 - shrunk) / power, torch.where(beyond, 0.0, shrunk)

    (f_w, d_w), (f_l, d_l) = of(c.x_w), of(c.x_l)
    z = beta * (f_w - f_l)
    return sp(-z), -beta * s(-z) * d_w, beta * s(-z) * d_l


def dpo_shift(c, beta=0.1, lam=0.95, lam_end=None, progress=0.0):
    shift = lam if lam_end is None else (1 - progress) * lam + progress * lam_end
    z = beta * (c.x_w - shift * c.x_l)
    return sp(-z), -beta * s(-z), shift * beta * s(-z)


def lpo(c, beta=0.2, gamma=5.0, r_1=1.0, r_2=0.8, length_normalised=True):
    n_w, n_l = (c.n_w, c.n_l) if length_normalised else (1, 1)
    h_w = c.x_w / n_w
    rest = h_w - c.x_l / n_l - 1 / (2 * beta)
    scale = 2 * beta * 2 / (r_1 + r_2)
    value = scale * (r_1 + r_2) * rest.abs() + gamma * (-h_w).clamp(min=0)
    fallen = (h_w < 0).double() + (h_w == 0) / 2
    return value, (scale * r_1 * rest.sign() - gamma * fallen) / n_w, -scale * r_2 * rest.sign() / n_l


def simper(c):
    p_w, p_l = torch.exp(c.lp_w / c.n_w), torch.exp(c.lp_l / c.n_l)
    return p_l - p_w, -p_w / c.n_w, p_l / c.n_l


def nca(c, beta=0.1):
    r_w, r_l = beta * c.x_w, beta * c.x_l
    return sp(-r_w) + (sp(r_w) + sp(r_l)) / 2, beta * (s(r_w) / 2 - s(-r_w)), beta * s(r_l) / 2


def sppo(c, beta=1e-3, reduction_half=False):
    half = 0.5 if reduction_half else 1.0
    w, l = c.x_w - (c.p_w - 0.5) / beta, c.x_l - (c.p_l - 0.5) / beta  # noqa: E741
    return half * (w**2 + l**2), half * 2 * w, half * 2 * l


def apo_up(c, beta=0.1):
    r_l, m = beta * c.x_l, beta * (c.x_w - c.x_l)
    return s(-r_l) + s(-m), -beta * d(m), beta * (d(m) - d(r_l))


def apo_select(c, beta=0.1, temperature=0.0, up=False):
    r_w, r_l = beta * c.x_w, beta * c.x_l
    m = r_w - r_l
    p = s((c.s_w - c.own) / temperature) if temperature else (c.s_w > c.own).double()
    value = p * (s(-r_w) + s(r_l)) + (1 - p) * (s(r_w) + s(-m))
    g_w, g_l = beta * ((1 - 2 * p) * d(r_w) - (1 - p) * d(m)), beta * (p * d(r_l) + (1 - p) * d(m))
    if up:
        value, g_w, g_l = (
            torch.where(c.s_l > c.own, a, b) for a, b in zip(apo_up(c, beta), (value, g_w, g_l), strict=True)
        )
    return value, g_w, g_l


def simpo(c, beta=2.0, gamma=1.0):
    z = beta * (c.lp_w / c.n_w - c.lp_l / c.n_l) - gamma
    return sp(-z), -beta * s(-z) / c.n_w, beta * s(-z) / c.n_l


def orpo(c, beta=0.1, alpha=1.0, nll_per="token"):
    a_w, a_l = c.lp_w / c.n_w, c.lp_l / c.n_l
    L = (a_w - torch.log(-torch.expm1(a_w))) - (a_l - torch.log(-torch.expm1(a_l)))
    n = {"token": c.n_w.mean(), "sequence": c.n_w}[nll_per]
    g_w = -beta * s(-L) / (-torch.expm1(a_w) * c.n_w) - alpha / n
    return -alpha * c.lp_w / n + beta * sp(-L), g_w, beta * s(-L) / (-torch.expm1(a_l) * c.n_l)


def cpo(c, beta=0.1, alpha=1.0, nll_per="token"):
    m, n = beta * (c.lp_w - c.lp_l), {"token": c.n_w.mean(), "sequence": c.n_w}[nll_per]
    return sp(-m) - alpha * c.lp_w / n, -beta * s(-m) - alpha / n, beta * s(-m)


def slic(c, delta=1.0, lam=0.1):
    lead = c.lp_w - c.lp_l
    active = (lead < delta).double()
    return (delta - lead).clamp(min=0) - lam * c.lp_w, -active - lam, active


def bco_pair(c, beta=0.1, delta=0.7):
    r_w, r_l = beta * c.x_w, beta * c.x_l
    return sp(-(r_w - delta)) + sp(r_l - delta), -beta * s(delta - r_w), beta * s(r_l - delta)


CLOSED = [  # (closed form, hyperparameters)
    (ipo, {}), (ipo, {"beta": 0.5, "length_normalised": False}),
    (cdpo, {}), (cdpo, {"beta": 1.0, "label_smoothing": 0.3}),
    (robust_dpo, {}), (robust_dpo, {"beta": 1.0, "label_smoothing": 0.4}),
    (hinge, {}), (hinge, {"beta": 0.7}),
    (odpo, {}), (odpo, {"beta": 0.5, "alpha": 2.0, "offset": "linear"}),
    (dpop, {}), (dpop, {"beta": 0.1, "lam": 2.0}),
    (dpo_nll, {}), (dpo_nll, {"alpha": 0.3, "nll_per": "token"}), (dpo_nll, {"nll_per": "sum"}),
    (r_dpo, {}), (r_dpo, {"beta": 1.0, "alpha": 0.3}),
    (exo, {}), (exo, {"beta": 0.5, "label_smoothing": 0.2}),
    (discopop, {}), (discopop, {"beta": 0.1, "tau": 0.5}),
    (ln_dpo, {}), (ln_dpo, {"beta": 5.0}),
    (wpo_sequence, {}), (wpo_sequence, {"beta": 1.0}),
    (f_dpo, {}), (f_dpo, {"beta": 1.0, "divergence": "forward_kl"}), (f_dpo, {"divergence": "js_divergence"}),
    (f_dpo, {"divergence": "alpha_divergence"}), (f_dpo, {"divergence": "alpha_divergence", "alpha": 0.2}),
    (dpo_shift, {}), (dpo_shift, {"lam": 0.5, "beta": 1.0}),
    (dpo_shift, {"lam": 0.9, "lam_end": 1.0, "progress": 0.25}),
    (lpo, {}), (lpo, {"beta": 0.01, "gamma": 0.7, "r_1": 2.0, "r_2": 0.2, "length_normalised": False}),
    (simper, {}),
    (nca, {}), (nca, {"beta": 0.01}),
    (sppo, {}), (sppo, {"beta": 0.1, "reduction_half": True}),
    (apo_up, {}), (apo_up, {"beta": 1.0}),
    (apo_select, {}), (apo_select, {"temperature": 1.5}), (apo_select, {"up": True}),
    (simpo, {}), (simpo, {"beta": 10.0, "gamma": 3.0}),
    (orpo, {}), (orpo, {"beta": 1.0, "alpha": 0.2, "nll_per": "sequence"}),
    (cpo, {}), (cpo, {"beta": 1.0, "nll_per": "sequence"}),
    (slic, {}), (slic, {"delta": 20.0, "lam": 0.5}),
    (bco_pair, {"delta": 0.7}), (bco_pair, {"beta": 1.0, "delta": -2.0}),
]  # fmt: skip


def known(x):
    """What the closed forms are written in, from log-ratios [2, n]."""
    n, lp = x.shape[1], REF + x
    i = torch.arange(2 * n, dtype=torch.float64).view(2, n)
    s_w, s_l, own = scores_of(n)
    return SimpleNamespace(
        x_w=lp[0] - REF, x_l=lp[1] - REF, lp_w=lp[0], lp_l=lp[1], n_w=lengths(n).double(), n_l=lengths(n, 3).double(),
        s_w=s_w, s_l=s_l, own=own, p_w=0.5 + i[0] % 5 / 10, p_l=0.5 - i[1] % 5 / 10,
    )  # fmt: skip


@pytest.mark.parametrize(("form", "arguments"), CLOSED, ids=[f"{f.__name__}-{a}" for f, a in CLOSED])
def test_an_objective_of_pairs_is_its_closed_form(form, arguments):
    x = points()
    value, g_w, g_l = form(known(x), **arguments)
    made = call(form.__name__, x, **arguments)
    assert_close(made.result.losses, value)
    assert_close(made.gradient(), torch.stack([g_w, g_l]))


CENTRE = {
    "ipo": 25.0, "cdpo": LOG2, "robust_dpo": LOG2, "hinge": 1.0, "dpop": LOG2, "nca": 2 * LOG2, "bco_pair": 2 * LOG2,
    "apo_up": 1.0, "apo_select": 1.0, "discopop": (LOG2 + 1) / 2, "ln_dpo": LOG2, "aot": LOG2, "aot_unpaired": LOG2,
    "f_dpo": LOG2, "dpo_shift": LOG2, "lpo": 2.0,
}  # fmt: skip


@pytest.mark.parametrize(("name", "value"), CENTRE.items())
def test_the_value_where_policy_and_reference_agree(name, value):
    losses_there = call(name, torch.zeros(2, 3, dtype=torch.float64)).result.losses
    assert_close(losses_there, torch.full((3,), value, dtype=torch.float64))


def test_ln_dpo_logs_the_rewards_of_sums_and_not_those_per_token():
    x = points()
    made = call("ln_dpo", x, beta=0.7).result
    assert_close(made.chosen_rewards, 0.7 * known(x).x_w)
    assert_close(made.rejected_rewards, 0.7 * known(x).x_l)


def test_every_objective_of_pairs_has_a_closed_form_here_or_beside():
    here = {form.__name__ for form, _ in CLOSED}
    beside = {"dpo", "apo_zero", "apo_down", "kto_pair", "aot", "aot_unpaired", "beta_dpo"}  # test_paper, test_step
    built_in = {name for name in losses.names() if losses.get(name).function.__module__.startswith("losses.")}
    pairs = [loss for loss in map(losses.get, built_in) if loss.data == "pairs" and loss.level == "sequence"]
    assert {loss.name for loss in pairs} == here | beside  # those of tokens: test_token_level, test_revisions


def test_dpops_penalty_has_no_gradient_at_the_reference_itself():
    g_w, g_l = call("dpop", torch.zeros(2, 1, dtype=torch.float64)).gradient()
    assert_close(g_w, -g_l)


def test_discopops_first_step_lowers_the_margin():
    g_w, g_l = call("discopop", torch.zeros(2, 1, dtype=torch.float64)).gradient()
    assert g_w > 0 > g_l


@pytest.mark.parametrize("divergence", ["reverse_kl", "forward_kl", "js_divergence", "alpha_divergence"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_every_divergence_is_finite_far_out_and_log_2_at_the_reference(divergence, dtype):
    x = torch.tensor([[0, 1e4, -1e4, 1e4, -1e4, -90], [0, -1e4, 1e4, 1e4, -1e4, 90]], dtype=dtype)
    made = call("f_dpo", x, ref=-2e4, divergence=divergence)
    assert torch.isfinite(made.result.losses).all() and torch.isfinite(made.gradient()).all()
    assert made.result.losses[0].item() == pytest.approx(LOG2, rel=1e-6)
    assert made.result.chosen_rewards[0] == 0 and made.result.losses[1] <= LOG2 <= made.result.losses[2]


def test_the_alpha_divergence_lies_between_the_reverse_and_the_forward_kl():
    x = points()[:, :64]
    alpha = {a: call("f_dpo", x, divergence="alpha_divergence", alpha=a).result.losses for a in (1e-7, 1e-5, 1.0)}
    assert torch.equal(alpha[1e-7], call("dpo", x).result.losses)
    torch.testing.assert_close(alpha[1e-5], alpha[1e-7], rtol=2e-3, atol=1e-6)
    assert torch.equal(alpha[1.0], call("f_dpo", x, divergence="forward_kl").result.losses)


def test_a_shift_goes_where_its_schedule_says():
    x = points()
    for progress, lam in ((0.0, 0.9), (0.5, 0.95), (1.0, 1.0)):
        made = call("dpo_shift", x, lam=0.9, lam_end=1.0, progress=progress).result
        assert made.metrics["lam"].item() == pytest.approx(lam, abs=1e-15)
        assert_close(made.losses, call("dpo_shift", x, lam=lam).result.losses)
    assert "progress" in losses.get("dpo_shift").injected and "progress" not in losses.get("dpo_shift").defaults


def test_a_target_takes_the_winners_place_in_slic():
    zero = torch.zeros(1, dtype=torch.float64)
    one = losses.Responses(zero - 5), losses.Responses(zero - 9)
    made = losses.get("slic")(*one, target=losses.Responses(zero - 20), lam=0.5)
    assert_close(made.losses, torch.tensor([10.0], dtype=torch.float64))


def test_orpo_stays_finite_where_a_response_is_certain():
    made = losses.get("orpo")(
        *(losses.Responses(torch.zeros(1).requires_grad_(), None, torch.tensor([3])) for _ in "wl")
    )
    assert torch.isfinite(made.losses).all()


@pytest.mark.parametrize(
    ("name", "arguments", "said"),
    [
        ("robust_dpo", {"label_smoothing": 0.5}, "label_smoothing is 0.5; it has to be 0 or above, and below 0.5"),
        ("cdpo", {"label_smoothing": -0.1}, "label_smoothing is -0.1"),
        ("exo", {"label_smoothing": 0.0}, "exo: label_smoothing has to be above 0"),
        ("apo_select", {"own_scores": None}, "needs the score of the model's own answer"),
        ("dpo_nll", {"nll_per": "word"}, "a likelihood per 'word' needs lengths; per is token, sequence or sum"),
    ],
)
def test_what_cannot_be_computed_is_refused(name, arguments, said):
    with pytest.raises(LossError, match=said):
        call(name, points(), **arguments)


@pytest.mark.parametrize("name", [n for n in losses.names() if "lengths" in losses.get(n).needs])
def test_lengths_that_are_needed_are_asked_for(name):
    lp = torch.zeros(2, dtype=torch.float64)
    arguments = {"nll_per": "token"} if name == "slic" else {}
    with pytest.raises(LossError, match="needs lengths"):
        losses.get(name)(losses.Responses(lp, lp), losses.Responses(lp, lp), **arguments)


def test_scores_that_do_not_lead_are_refused_by_odpo():
    lp, score = torch.zeros(1), torch.ones(1)
    column = losses.Responses(lp, lp, None, score)
    with pytest.raises(LossError, match="the winner's score has to be above the loser's"):
        losses.get("odpo")(column, column)
