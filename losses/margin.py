"""Pairs with a reference, judged by the margin between winner and loser: DPO's relatives.

Notation: w winner, l loser; lp log-prob, x = lp - ref_lp the log-ratio, n tokens; r = beta * x the reward,
m = r_w - r_l the margin; s the logistic function, sp(z) = log(1 + exp(z)); nll = negative log-likelihood.
"""

import math
from typing import Literal

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from losses.errors import LossError
from losses.registry import Responses, Result, loss
from losses.terms import Per, lengths_of, mean_logps, nll, scores_of, share, softplus


@loss("ipo", data="pairs", reference=True, needs=("lengths",))
def ipo(chosen: Responses, rejected: Responses, *, beta: float = 0.1, length_normalised: bool = True) -> Result:
    """Bring the difference of the log-ratios to a fixed target, instead of widening it without end.

    loss = (h - 1 / (2 beta))^2, h = x_w / n_w - x_l / n_l; beta is the paper's tau. At 0.1 the target is 5 nats per
    token. length_normalised=False: h = x_w - x_l, as the paper's text has it.
    Use it where preferences are nearly certain, so that DPO's margin would grow without end.
    Source: arXiv 2310.12036 eq. 17; per token as in TRL from 0.7.11 on.
    """
    x_w, x_l = chosen.logratios, rejected.logratios
    h = x_w / lengths_of(chosen) - x_l / lengths_of(rejected) if length_normalised else x_w - x_l
    return Result((h - 1 / (2 * beta)).square(), *_rewards(beta, chosen, rejected))


@loss("cdpo", data="pairs", reference=True)
def cdpo(chosen: Responses, rejected: Responses, *, beta: float = 0.1, label_smoothing: float = 0.1) -> Result:
    """DPO for noisy labels: a share of them counts as flipped, so that the margin stops at a finite value.

    loss = (1 - e) sp(-m) + e sp(m), e = label_smoothing; lowest at m = log((1 - e) / e).
    Use it where labels are noisy and the margin should stay bounded.
    Source: ericmitchell.ai/cdpo; e = 0.2 in HALOs, TRL up to 0.28 as `sigmoid` with smoothing.
    """
    e, m = share(label_smoothing), _margin(beta, chosen, rejected)
    return Result((1 - e) * softplus(-m) + e * softplus(m), *_rewards(beta, chosen, rejected))


@loss("robust_dpo", data="pairs", reference=True, aliases=("robust",))
def robust_dpo(chosen: Responses, rejected: Responses, *, beta: float = 0.1, label_smoothing: float = 0.1) -> Result:
    """DPO for a known share of flipped labels: its expected loss is that of DPO on clean labels.

    loss = ((1 - e) sp(-m) - e sp(m)) / (1 - 2e), e = label_smoothing in [0, 1/2). Unbounded below, and its gradient
    never vanishes.
    Use it where a known share of the labels is flipped.
    Source: arXiv 2403.00409; TRL `robust`. Not the same as cdpo.
    """
    e, m = share(label_smoothing, most=0.5), _margin(beta, chosen, rejected)
    losses = ((1 - e) * softplus(-m) - e * softplus(m)) / (1 - 2 * e)
    return Result(losses, *_rewards(beta, chosen, rejected))


@loss("hinge", data="pairs", reference=True)
def hinge(chosen: Responses, rejected: Responses, *, beta: float = 0.1) -> Result:
    """Push the margin to 1 and no further.

    loss = max(0, 1 - m).
    Use it where pairs that are already won should have no further effect.
    Source: RSO's normalised SLiC, arXiv 2309.06657; TRL `hinge`.
    """
    return Result((1 - _margin(beta, chosen, rejected)).clamp(min=0), *_rewards(beta, chosen, rejected))


@loss("odpo", data="pairs", reference=True, needs=("scores",))
def odpo(
    chosen: Responses,
    rejected: Responses,
    *,
    beta: float = 0.1,
    alpha: float = 1.0,
    offset: Literal["log", "linear"] = "log",
) -> Result:
    """DPO with an offset: the winner must lead by more where its score exceeds the loser's by more.

    loss = sp(-(m - alpha log(score_w - score_l))); offset="linear": alpha (score_w - score_l).
    Use it where rows have scores whose differences mean something.
    Source: arXiv 2402.10571. Raises LossError where a score of a winner is not above its loser's.
    """
    lead = scores_of(chosen) - scores_of(rejected)
    if offset == "log" and not (lead > 0).all():
        raise LossError("odpo: the winner's score has to be above the loser's; drop the pair, or use offset \"linear\"")
    ahead = alpha * (lead.log() if offset == "log" else lead)
    return Result(softplus(ahead - _margin(beta, chosen, rejected)), *_rewards(beta, chosen, rejected))


@loss("dpop", data="pairs", reference=True)
def dpop(chosen: Responses, rejected: Responses, *, beta: float = 0.3, lam: float = 50.0) -> Result:
    """DPO-Positive: DPO with a penalty where the winner becomes less likely than under the reference.

    loss = sp(-z), z = m - beta lam max(0, -x_w): the penalty stands inside the sigmoid. None where x_w is 0.
    Use it where winner and loser differ little, so that DPO lowers both.
    Source: arXiv 2402.13228 eq. 3 (Smaug).
    """
    x_w, x_l = chosen.logratios, rejected.logratios
    below = (-x_w).clamp(min=0)
    below = torch.where(x_w == 0, x_w.detach(), below)  # no gradient at exactly 0, where every run starts
    return Result(softplus(-beta * (x_w - x_l - lam * below)), *_rewards(beta, chosen, rejected))


@loss("dpo_nll", data="pairs", reference=True, needs=("lengths",), aliases=("rpo",))
def dpo_nll(
    chosen: Responses,
    rejected: Responses,
    *,
    beta: float = 0.1,
    alpha: float = 1.0,
    nll_per: Per = "sequence",
    mean_length: float | None = None,
) -> Result:
    """DPO plus the winner's negative log-likelihood, which keeps the winner likely.

    loss = sp(-m) + alpha nll_w, nll_w = -lp_w / n_w.
    Use it for reasoning traces, and wherever winners must not become less likely.
    Source: arXiv 2404.19733 (iterative RPO); nll_per="token" as TRL's rpo_alpha.
    """
    likelihood = alpha * nll(chosen, nll_per, mean_length)
    return Result(softplus(-_margin(beta, chosen, rejected)) + likelihood, *_rewards(beta, chosen, rejected))


@loss("r_dpo", data="pairs", reference=True, needs=("lengths",))
def r_dpo(chosen: Responses, rejected: Responses, *, beta: float = 0.1, alpha: float = 0.01) -> Result:
    """Length-regularised DPO: the longer the winner is than the loser, the less the pair is pushed.

    loss = sp(-(m + alpha (n_w - n_l))), alpha in rewards per token.
    Use it where winners are longer than losers and answers should not grow longer.
    Source: arXiv 2403.19159 eq. 9.
    """
    longer = alpha * (lengths_of(chosen) - lengths_of(rejected))
    return Result(softplus(-(_margin(beta, chosen, rejected) + longer)), *_rewards(beta, chosen, rejected))


@loss("exo", data="pairs", reference=True, aliases=("exo_pair",))
def exo(chosen: Responses, rejected: Responses, *, beta: float = 0.1, label_smoothing: float = 1e-3) -> Result:
    """Minimise the reverse KL between the policy's preference and the smoothed label.

    loss = q (log q - log(1 - e)) + (1 - q) (log(1 - q) - log e), q = s(m), e = label_smoothing > 0. Lowest at
    m = log((1 - e) / e), 6.9 by default; the gradient also vanishes where m is very low.
    Use it where the policy should settle on the most preferred answers rather than cover all of them.
    Source: arXiv 2402.00856 eq. 16; TRL `exo_pair`.
    """
    e, m = share(label_smoothing), _margin(beta, chosen, rejected)
    if e == 0:
        raise LossError("exo: label_smoothing has to be above 0; its paper's is 0.001")
    losses = torch.sigmoid(m) * (logsigmoid(m) - math.log1p(-e)) + torch.sigmoid(-m) * (logsigmoid(-m) - math.log(e))
    return Result(losses, *_rewards(beta, chosen, rejected))


@loss("discopop", data="pairs", reference=True)
def discopop(chosen: Responses, rejected: Responses, *, beta: float = 0.05, tau: float = 0.05) -> Result:
    """Log-ratio modulated loss, found by a language model: logistic for small margins, exponential for large ones.

    loss = (1 - u) sp(-m) + u exp(-m), u = s(m / tau). Not monotone: at the centre a step lowers the margin.
    Use it for comparison.
    Source: arXiv 2406.08414 eq. 5; beta 0.1 in TRL.
    """
    m = _margin(beta, chosen, rejected)
    exponential = torch.exp(logsigmoid(m / tau) - m)  # u * exp(-m) would be 0 * inf far left
    return Result(torch.sigmoid(-m / tau) * softplus(-m) + exponential, *_rewards(beta, chosen, rejected))


@loss("ln_dpo", data="pairs", reference=True, needs=("lengths",), aliases=("sigmoid_norm",))
def ln_dpo(chosen: Responses, rejected: Responses, *, beta: float = 0.1) -> Result:
    """DPO on log-ratios divided by the number of tokens.

    loss = sp(-beta (x_w / n_w - x_l / n_l)). The logged rewards are of sums, as every objective's of the kind.
    Use it where a long answer should not count more for its length.
    Source: arXiv 2411.15124 (Tulu 3); TRL `sigmoid_norm`.
    """
    per_w = beta * chosen.logratios / lengths_of(chosen)
    per_l = beta * rejected.logratios / lengths_of(rejected)
    return Result(softplus(per_l - per_w), *_rewards(beta, chosen, rejected))


@loss("wpo_sequence", data="pairs", reference=True, needs=("lengths",))
def wpo_sequence(chosen: Responses, rejected: Responses, *, beta: float = 0.1) -> Result:
    """DPO with each pair weighted by how likely the policy is to write it, judged by mean log-probs alone.

    loss = exp(a_w + a_l) sp(-m), a = lp / n; the weight is detached. Called wpo before 0.2.0.
    Use it in place of wpo where that costs too much: this needs no whole distributions, and costs what dpo costs.
    Source: arXiv 2406.11827 before its alignment of weights, which wpo has.
    """
    weight = torch.exp(mean_logps(chosen) + mean_logps(rejected)).detach()
    return Result(weight * softplus(-_margin(beta, chosen, rejected)), *_rewards(beta, chosen, rejected))


@loss("f_dpo", data="pairs", reference=True)
def f_dpo(
    chosen: Responses,
    rejected: Responses,
    *,
    beta: float = 0.1,
    divergence: Literal["reverse_kl", "forward_kl", "js_divergence", "alpha_divergence"] = "reverse_kl",
    alpha: float = 0.5,
) -> Result:
    """DPO with a choice of the divergence that keeps the policy near the reference.

    loss = sp(-beta (f'(u_w) - f'(u_l))), u = exp(x) the ratio of likelihoods. f'(u) = log u (reverse_kl, which is dpo),
    1 - 1 / u (forward_kl), log(2 u / (1 + u)) (js_divergence), (1 - u^-alpha) / alpha (alpha_divergence: alpha 0 is
    the reverse KL, 1 the forward one). u^-1 and u^-alpha are at most exp(80), without a slope beyond. Rewards are
    beta f'(u).
    Use it where answers should be more diverse than DPO's; forward_kl keeps every answer of the reference likely.
    Source: arXiv 2309.16240 table 1; TRL's f_divergence_type, whose f_alpha_divergence_coef is 1 - alpha, and whose
    forward KL overflows where a log-ratio is below -88.
    """
    r_w, r_l = (beta * _slope_of_f(column.logratios, divergence, alpha) for column in (chosen, rejected))
    return Result(-logsigmoid(r_w - r_l), r_w.detach(), r_l.detach())


@loss("dpo_shift", data="pairs", reference=True)
def dpo_shift(
    chosen: Responses,
    rejected: Responses,
    *,
    beta: float = 0.1,
    lam: float = 0.95,
    lam_end: float | None = None,
    progress: float = 0.0,
) -> Result:
    """DPO in which the loser counts a little less, so that the winner does not become less likely along with it.

    loss = sp(-(r_w - l r_l)), l = lam, or, with lam_end, linear from lam in the first step to lam_end at the end of
    the run: l = lam + (lam_end - lam) progress. 1 is dpo.
    Use it where DPO lowers both likelihoods, and some of the margin may be traded for the winner's likelihood.
    Source: arXiv 2502.07599 and its authors' code (f(lambda); fixed, increase_linear 0.95 to 1, decrease_linear 1 to
    0.95), whose default is 1 and whose released models have 0.95. progress: the share of all steps that are done.
    Metric: lam.
    """
    at = lam if lam_end is None else lam + (lam_end - lam) * progress
    r_w, r_l = beta * chosen.logratios, beta * rejected.logratios
    return Result(softplus(at * r_l - r_w), r_w.detach(), r_l.detach(), {"lam": r_w.new_tensor(at)})


@loss("lpo", data="pairs", reference=True, needs=("lengths",))
def lpo(
    chosen: Responses,
    rejected: Responses,
    *,
    beta: float = 0.2,
    gamma: float = 5.0,
    r_1: float = 1.0,
    r_2: float = 0.8,
    length_normalised: bool = True,
) -> Result:
    """Linear preference optimisation: absolute distance to a target margin, with separate weights for winner and loser.

    loss = 4 beta / (r_1 + r_2) (r_1 |h_w - sg(h_l) - 1 / (2 beta)| + r_2 |sg(h_w) - h_l - 1 / (2 beta)|)
    + gamma max(0, -h_w), h = x / n and sg without gradient; length_normalised=False: h = x. The winner is pulled up
    with r_1 and the loser down with r_2 until the margin is 1 / (2 beta), and back beyond it. Where h_w is 0, as at the
    start of every run, half of gamma's slope is taken, as in the authors' code.
    Use it for IPO's target with bounded slopes, and where losers should fall by a known share of what winners rise.
    Source: arXiv 2508.14947 in its authors' code (lpo-ste with the loss of the winner added), defaults as there; its
    released recipe has gamma 10 and r_2 0.2.
    """
    h_w, h_l = chosen.logratios, rejected.logratios
    if length_normalised:
        h_w, h_l = h_w / lengths_of(chosen), h_l / lengths_of(rejected)
    target = 1 / (2 * beta)
    apart = r_1 * (h_w - h_l.detach() - target).abs() + r_2 * (h_w.detach() - h_l - target).abs()
    losses = 4 * beta / (r_1 + r_2) * apart + gamma * torch.maximum(-h_w, torch.zeros_like(h_w))
    return Result(losses, beta * h_w.detach(), beta * h_l.detach())


def _slope_of_f(x: Tensor, divergence: str, alpha: float) -> Tensor:
    """f'(exp(x)), 0 where x is 0."""
    if divergence == "forward_kl":
        divergence, alpha = "alpha_divergence", 1.0
    if divergence == "js_divergence":
        return math.log(2) + logsigmoid(x)
    if divergence == "reverse_kl" or abs(alpha) < 1e-6:
        return x
    return -torch.expm1((-alpha * x).clamp(max=80)) / alpha


def _margin(beta: float, chosen: Responses, rejected: Responses) -> Tensor:
    return beta * (chosen.logratios - rejected.logratios)


def _rewards(beta: float, chosen: Responses, rejected: Responses) -> tuple[Tensor, Tensor]:
    return beta * chosen.logratios.detach(), beta * rejected.logratios.detach()
