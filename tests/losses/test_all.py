"""What holds for every objective of the registry, and what for whole families of them."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import losses
from losses import LossError, Responses
from tests.losses.samples import assert_close, call, points, s, sp, tokens

NAMES = [n for n in losses.names() if losses.get(n).function.__module__.startswith("losses.")]
PAIRS = [n for n in NAMES if losses.get(n).data == "pairs"]
WITH_REFERENCE = [n for n in NAMES if losses.get(n).reference]
FIXED = {  # statistics that are estimated from the examples, given instead
    "kto_pair": {"kl_chosen": 1.0, "kl_rejected": 1.0}, "bco_pair": {"delta": 0.3}, "bco": {"delta": 0.3},
}  # fmt: skip
small = st.floats(-30, 30)


def test_all_of_the_catalogue_are_there():
    assert set(NAMES) == {
        *("dpo", "apo_zero", "apo_down", "apo_zero_unpaired", "kto", "kto_pair", "sft"),
        *("ipo", "cdpo", "robust_dpo", "hinge", "odpo", "dpop", "dpo_nll", "r_dpo", "exo", "nca", "bco_pair", "sppo"),
        *("discopop", "aot", "aot_unpaired", "beta_dpo", "ln_dpo", "wpo", "simpo", "orpo", "cpo", "slic", "npo", "dro"),
        *("infonca", "nca_ranked", "exo_ranked", "dro_ranked", "bco", "apo_down_unpaired", "apo_up", "apo_select"),
        *("ld_dpo", "tdpo1", "tdpo2", "wpo_sequence", "f_dpo", "simper", "dpo_shift", "pmpo", "qrpo", "lpo"),
        *("apo_zero_revised", "apo_down_revised", "dpo_revised"),
    }


@pytest.mark.parametrize(
    ("alias", "name"),
    [("sigmoid", "dpo"), ("rpo", "dpo_nll"), ("sppo_hard", "sppo"), ("exo_pair", "exo"), ("nca_pair", "nca"),
     ("robust", "robust_dpo"), ("sigmoid_norm", "ln_dpo")],
)  # fmt: skip
def test_peers_names_give_the_same_objective(alias, name):
    assert losses.get(alias) is losses.get(name)


def test_a_crossed_name_is_explained():
    with pytest.raises(LossError, match="it was TRL's name of aot_unpaired"):
        losses.get("aot_pair")


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_far_out_everything_is_finite(name, dtype):
    made = call(name, points().to(dtype))
    assert made.result.losses.dtype == dtype
    assert torch.isfinite(made.result.losses).all() and torch.isfinite(made.gradient()).all()


@pytest.mark.parametrize("name", NAMES)
def test_ten_thousand_nats_either_way_are_finite(name):
    x = torch.tensor([[1e4, -1e4, 1e4, 0.0], [-1e4, 1e4, 1e4, 1e4]], dtype=torch.float64)
    made = call(name, x, ref=-2e4)
    assert torch.isfinite(made.result.losses).all() and torch.isfinite(made.gradient()).all()


@pytest.mark.parametrize("name", NAMES)
def test_float32_gives_the_digits_of_float64(name):
    x = (points()[:, :66].float() - 256) + 256  # log-ratios that float32 holds exactly beside the reference's
    single, double = call(name, x, ref=-256.0), call(name, x.double(), ref=-256.0)
    torch.testing.assert_close(single.result.losses.double(), double.result.losses, rtol=1e-5, atol=1e-6)
    # DRO's slopes are differences of log-ratios of 30, of which float32 holds 2e-6.
    torch.testing.assert_close(single.gradient().double(), double.gradient(), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", NAMES)
def test_rewards_and_metrics_are_detached(name):
    result = call(name, points()).result
    for values in (result.chosen_rewards, result.rejected_rewards, *result.metrics.values()):
        assert not values.requires_grad


@pytest.mark.parametrize("name", WITH_REFERENCE)
def test_no_gradient_goes_into_the_reference(name):
    made = call(name, points())
    assert torch.autograd.grad(made.result.losses.sum(), made.ref_logps, allow_unused=True)[0] is None


@pytest.mark.parametrize("name", WITH_REFERENCE)
def test_a_reference_that_is_missing_is_said(name):
    loss, lp = losses.get(name), torch.zeros(2, dtype=torch.float64)
    column = Responses(lp, None, torch.ones(2, dtype=torch.int64), lp + 1)
    if loss.level == "token":
        column = tokens(lp, lp, column.lengths, column.lengths, lp)._replace(ref_logps=None)
    columns = {
        "pairs": [column, column._replace(scores=lp)], "single": [column], "unpaired": [column, lp == 0],
        "ranked": [Responses(lp[None], None, None, lp[None])],
    }[loss.data]  # fmt: skip
    arguments = {name: lp for name in ("own_scores", "values", "quantile") if name in (*loss.injected, *loss.fields)}
    with pytest.raises(LossError, match="needs reference log-probs"):
        loss(*columns, **(arguments | ({"kl": 0.0} if name == "kto" else {})))


@pytest.mark.parametrize("name", NAMES)
def test_the_order_of_the_examples_does_not_matter(name):
    x = points()[:, :63]
    order = torch.randperm(63, generator=torch.Generator().manual_seed(2))
    arguments = {"keep": torch.arange(63) % 4 != 0} if name == "beta_dpo" else {}
    there = {"keep": arguments["keep"][order]} if arguments else {}
    here, moved = call(name, x, **arguments), call(name, x, order=order, **there)
    per_example = here.result.losses.view(63, -1)  # winner and loser in turn where they are apart
    assert_close(moved.result.losses.view(63, -1), per_example[order])


@pytest.mark.parametrize("name", [n for n in NAMES if n != "beta_dpo"])
def test_a_step_twice_over_has_the_same_mean(name):
    x = points()[:, :63]
    assert_close(call(name, x, repeat=2).result.losses.mean(), call(name, x).result.losses.mean())


NOT_SHIFTED = {"dpo_nll", "wpo", "wpo_sequence", "pmpo"}  # the likelihood itself enters


@pytest.mark.slow
@given(st.lists(st.tuples(small, small), min_size=2, max_size=6), st.floats(-200, 100))
def test_what_is_added_to_policy_and_reference_alike_changes_nothing(rows, c):
    x = torch.tensor(rows, dtype=torch.float64).T
    for name in WITH_REFERENCE:
        if name not in NOT_SHIFTED:
            keep = {"keep": torch.ones(len(rows), dtype=torch.bool)} if name == "beta_dpo" else {}
            moved, here = (call(name, x, ref=ref, **keep).result.losses for ref in (-256.0 + c, -256.0))
            torch.testing.assert_close(moved, here, rtol=1e-10, atol=1e-10)


ONLY_THE_MARGIN = ["dpo", "cdpo", "robust_dpo", "hinge", "odpo", "r_dpo", "exo", "discopop", "aot", "beta_dpo",
                   "f_dpo"]  # fmt: skip
ANCHORED = [
    *("apo_zero", "apo_down", "apo_up", "apo_select", "kto_pair", "nca", "bco_pair", "sppo", "dpop", "dpo_nll"),
    *("dpo_shift", "lpo"),
]


@pytest.mark.slow
@given(st.lists(st.tuples(small, small), min_size=2, max_size=6), st.floats(-30, 30))
def test_only_the_margin_enters_what_is_not_anchored(rows, c):
    x = torch.tensor(rows, dtype=torch.float64).T
    for name in ONLY_THE_MARGIN:
        keep = {"keep": torch.ones(len(rows), dtype=torch.bool)} if name == "beta_dpo" else {}
        moved, here = (call(name, y, **keep).result.losses for y in (x + c, x))
        torch.testing.assert_close(moved, here, rtol=1e-10, atol=1e-10)
        g_w, g_l = call(name, x, **keep).gradient()
        torch.testing.assert_close(g_w, -g_l, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", ANCHORED)
def test_a_shift_of_both_changes_what_is_anchored(name):
    x = torch.tensor([[-1.0], [-2.0]], dtype=torch.float64)
    here, there = (call(name, y, **FIXED.get(name, {})).result.losses.item() for y in (x, x - 6))
    assert abs(here - there) > 1e-3


SCALED = [n for n in WITH_REFERENCE if n not in
          {"ipo", "dpo_nll", "sppo", "npo", "dro", "dro_ranked", "beta_dpo", "wpo_sequence", "kto",
           "wpo", "tdpo1", "tdpo2", "pmpo", "qrpo", "lpo"}]  # fmt: skip


@pytest.mark.slow
@given(st.lists(st.tuples(small, small), min_size=2, max_size=6), st.sampled_from([0.5, 2.0, 4.0]))
def test_scaling_beta_down_and_log_ratios_up_changes_nothing(rows, c):
    x = torch.tensor(rows, dtype=torch.float64).T.round(decimals=6)  # order may not hang on the last digit of a sum
    for name in SCALED:
        scaled, here = call(name, c * x, beta=0.1 / c), call(name, x, beta=0.1)
        torch.testing.assert_close(scaled.result.losses, here.result.losses, rtol=1e-10, atol=1e-10)


@given(small, small, st.floats(0.01, 0.4))
def test_swapping_winner_and_loser_is_swapping_the_labels(x_w, x_l, e):
    here, swapped = (torch.tensor(x, dtype=torch.float64) for x in ([[x_w], [x_l]], [[x_l], [x_w]]))
    for name in ("cdpo", "exo", "aot"):
        a = call(name, here, label_smoothing=e).result.losses
        assert_close(a, call(name, swapped, label_smoothing=1 - e).result.losses)
    r_w, r_l = 0.1 * here
    assert_close(call("apo_up", here).result.losses, call("apo_down", -swapped).result.losses)
    total = call("apo_up", here).result.losses + call("apo_up", swapped).result.losses
    assert_close(total, 1 + s(-r_w) + s(-r_l))


MONOTONE = [
    *("dpo", "robust_dpo", "hinge", "odpo", "dpop", "dpo_nll", "r_dpo", "simpo", "cpo", "orpo", "slic", "apo_zero"),
    *("kto_pair", "bco_pair", "f_dpo", "dpo_shift", "simper", "ld_dpo", "tdpo1", "tdpo2", "dpo_revised"),
    "apo_zero_revised",
]


@given(small, small, st.floats(0.1, 20))
def test_a_likelier_winner_or_a_less_likely_loser_lowers_the_loss(x_w, x_l, step):
    for name in MONOTONE:
        here, up, down = (
            call(name, torch.tensor(x, dtype=torch.float64), **FIXED.get(name, {})).result.losses.item()
            for x in ([[x_w], [x_l]], [[x_w + step], [x_l]], [[x_w], [x_l - step]])
        )
        assert up <= here + 1e-12 and down <= here + 1e-12, name


@given(st.lists(st.tuples(small, small), min_size=1, max_size=6))
def test_without_what_they_add_they_are_dpo(rows):
    x = torch.tensor(rows, dtype=torch.float64).T
    dpo = call("dpo", x).result.losses
    keep = torch.ones(len(rows), dtype=torch.bool)
    for name, arguments in (
        ("cdpo", {"label_smoothing": 0.0}), ("robust_dpo", {"label_smoothing": 0.0}), ("odpo", {"alpha": 0.0}),
        ("dpop", {"lam": 0.0, "beta": 0.1}), ("dpo_nll", {"alpha": 0.0}), ("r_dpo", {"alpha": 0.0}),
        ("beta_dpo", {"a": 0.0, "keep": keep}), ("dpo_shift", {"lam": 1.0}), ("f_dpo", {"divergence": "reverse_kl"}),
        ("f_dpo", {"divergence": "alpha_divergence", "alpha": 0.0}), ("ld_dpo", {"alpha": 1.0}),
        ("tdpo2", {"alpha": 0.0}), ("dpo_revised", {"unrevised": 1.0}),
    ):  # fmt: skip
        torch.testing.assert_close(call(name, x, **arguments).result.losses, dpo, rtol=1e-12, atol=1e-12)


@given(st.lists(st.tuples(small, small), min_size=1, max_size=6))
def test_special_cases_of_the_anchored_ones(rows):
    x = torch.tensor(rows, dtype=torch.float64).T
    r_w, r_l = 0.1 * ((-256.0 + x) + 256.0)
    assert_close(call("bco_pair", x, shift=False).result.losses, call("nca", x).result.losses + (sp(r_l) - sp(r_w)) / 2)
    high, low = torch.full((len(rows),), 100.0), torch.full((len(rows),), -100.0)
    assert_close(call("apo_select", x, own_scores=low).result.losses, call("apo_zero", x).result.losses)
    assert_close(call("apo_select", x, own_scores=high).result.losses, call("apo_down", x).result.losses)
    assert_close(call("apo_select", x, own_scores=low, up=True).result.losses, call("apo_up", x).result.losses)
    assert call("apo_select", x, own_scores=low).result.metrics["p_zero"] == 1


@given(small, small)
def test_apos_losses_and_slopes_are_bounded(x_w, x_l):
    x = torch.tensor([[x_w], [x_l]], dtype=torch.float64)
    for name in ("apo_up", "apo_select"):
        made = call(name, x, beta=0.5)
        assert 0 < made.result.losses.item() < 2
        assert (made.gradient().abs() <= 0.125 + 1e-15).all()


# Figure 3 of arXiv 2408.06266: which way a step moves the rewards, and how far.

FIGURE_3 = {  # d loss / d (winner, loser), beta 1, at (r_w, r_l) = (0, 0), (-2, -2) and (2, -2)
    "dpo": [(-0.5, 0.5), (-0.5, 0.5), (-0.0179862, 0.0179862)],  # s(0), s(0), s(-4)
    "apo_zero": [(-0.25, 0.25), (-0.1049936, 0.1049936), (-0.1049936, 0.1049936)],  # d(0), d(2)
    "apo_down": [(0.0, 0.25), (-0.1450064, 0.25), (0.0873309, 0.0176627)],  # d(r_w) - d(m), d(m)
}


@pytest.mark.parametrize("name", FIGURE_3)
def test_a_step_moves_each_reward_as_figure_3_says(name):
    x = torch.tensor([[0.0, -2.0, 2.0], [0.0, -2.0, -2.0]], dtype=torch.float64)
    expected = torch.tensor(FIGURE_3[name], dtype=torch.float64).T
    torch.testing.assert_close(call(name, x, beta=1.0).gradient(), expected, rtol=0, atol=1e-7)


def test_the_directions_of_figure_3():
    x = points()[:, :64]
    r_w, r_l = x
    m = r_w - r_l
    for name in ("dpo", "apo_zero"):
        g_w, g_l = call(name, x, beta=1.0).gradient()
        assert (g_w <= 0).all() and (g_l >= 0).all()  # winner up, loser down, always
    g_w, g_l = call("apo_zero", x, beta=0.1).gradient()
    assert torch.equal(g_w.abs() > g_l.abs(), r_w.abs() < r_l.abs())  # each saturates on its own
    g_w, g_l = call("apo_down", x, beta=0.1).gradient()
    assert (g_l > 0).all() and torch.equal(g_w > 0, r_w.abs() < m.abs())  # the winner falls where the margin is wider
