"""Objectives that see the tokens of a response.

Notation: w winner, l loser; lp log-prob of a response, x = lp - ref_lp its log-ratio, r = beta * x; sp(z) = log(1 +
exp(z)); sums and means are over the n tokens of a response.
"""

import torch
from torch import Tensor

from losses.paper import dpo
from losses.registry import Result, loss
from losses.terms import between_0_and_1, needed, softplus, weighed
from losses.token_responses import TokenResponses, common


@loss("ld_dpo", data="pairs", level="token", reference=True)
def ld_dpo(chosen: TokenResponses, rejected: TokenResponses, *, beta: float = 0.1, alpha: float = 0.5) -> Result:
    """DPO in which tokens beyond the length of the shorter response count less.

    loss = sp(-(r_w - r_l)), r = beta times the sum of the log-ratios of the first min(n_w, n_l) tokens plus alpha times
    that of the rest. alpha 1 is dpo; 0 cuts the longer response.
    Use it where the two responses differ in length and answers should not grow longer.
    Source: arXiv 2409.06411; TRL's ld_alpha. The reference is weighed as the policy is, as in TRL.
    Raises LossError where alpha is outside [0, 1].
    """
    alpha = between_0_and_1("alpha", alpha)
    in_w, in_l = common(chosen, rejected)
    return dpo(weighed(chosen, in_w, alpha), weighed(rejected, in_l, alpha), beta=beta)


@loss("tdpo1", data="pairs", level="token", reference=True, needs=("kl_ref_policy",))
def tdpo1(chosen: TokenResponses, rejected: TokenResponses, *, beta: float = 0.1) -> Result:
    """DPO whose margin also counts how far the policy has moved from the reference along each response.

    loss = sp(-beta (x_w - x_l - (D_l - D_w))), D = sum of KL(reference || policy) of the next token. Rewards are
    beta (x + D).
    Use it where the policy drifts from the reference more along losers than along winners.
    Source: arXiv 2404.11999; its authors' code with if_tdpo2 false. Both D have gradients.
    """
    d_w, d_l = _sequence_kl(chosen), _sequence_kl(rejected)
    r_w, r_l = beta * (_logratios(chosen) + d_w), beta * (_logratios(rejected) + d_l)
    return Result(softplus(r_l - r_w), r_w.detach(), r_l.detach())


@loss("tdpo2", data="pairs", level="token", reference=True, needs=("kl_ref_policy",))
def tdpo2(chosen: TokenResponses, rejected: TokenResponses, *, beta: float = 0.1, alpha: float = 0.5) -> Result:
    """TDPO1 with a weight alpha on its KL term, and without the gradient of that term along the winner.

    loss = sp(-beta (x_w - x_l - alpha (D_l - sg(D_w)))), D as in tdpo1 and sg without gradient: only along the loser
    is the policy held back. Rewards are beta (x + alpha D); the authors' code logs them without alpha.
    Use it in place of tdpo1, as their paper advises.
    Source: arXiv 2404.11999; its authors' code, alpha 0.5 as there.
    """
    d_w, d_l = _sequence_kl(chosen).detach(), _sequence_kl(rejected)
    r_w, r_l = beta * (_logratios(chosen) + alpha * d_w), beta * (_logratios(rejected) + alpha * d_l)
    return Result(softplus(r_l - r_w), r_w.detach(), r_l.detach())


@loss("wpo", data="pairs", level="token", reference=True, needs=("log_sum_squares",), formula="weights of tokens")
def wpo(chosen: TokenResponses, rejected: TokenResponses, *, beta: float = 0.1, cap: float | None = None) -> Result:
    """DPO with each pair weighted by how likely the policy is to generate it; its own samples would weigh about 1.

    loss = w_w w_l sp(-m), m = r_w - r_l, w = exp(mean of (log p - log sum p^2)): p is each token's probability, and
    sum p^2, over the vocabulary, that of a token which the policy draws there, on average; its own samples weigh
    about 1. The weights are detached. cap: the largest w_w w_l.
    Use it where off-policy pairs should count as if they were on-policy.
    Source: arXiv 2406.11827 with its sampled alignment; TRL's use_weighting. The authors' code has cap 1.
    Metric: weight, the mean of w_w w_l.
    """
    weight = torch.exp(_mean_alignment(chosen) + _mean_alignment(rejected)).detach()
    weight = weight if cap is None else weight.clamp(max=cap)
    r_w, r_l = beta * _logratios(chosen), beta * _logratios(rejected)
    return Result(weight * softplus(r_l - r_w), r_w.detach(), r_l.detach(), {"weight": weight.mean()})


@loss("pmpo", data="unpaired", level="token", reference=True, needs=("kl_ref_policy",))
def pmpo(responses: TokenResponses, labels: Tensor, *, alpha: float = 0.5, beta: float = 1.0) -> Result:
    """Raise desirable and lower undesirable responses, with a KL that keeps the policy near the reference.

    loss = -2 alpha lp + beta D where desirable, 2 (1 - alpha) lp + beta D where not; D = sum of KL(reference || policy)
    of the next token. Where a step has as many of either kind, its mean is the paper's -J: alpha times the mean
    -lp of the one, (1 - alpha) times the mean lp of the other, beta times the mean D. Unbounded below without D: beta
    has to hold what is pushed down. The logged rewards are beta x.
    Use it for thumbs up and down, or for one of the two alone (alpha 1: desirable only; 0: undesirable only).
    Source: arXiv 2410.04166 eq. 10, whose KL is taken over the reference's answers; ours along the given ones.
    labels: bool [n], True = desirable. Raises LossError where alpha is outside [0, 1].
    """
    alpha = between_0_and_1("alpha", alpha)
    r = (beta * _logratios(responses)).detach()
    lp = responses.per_sequence(responses.logps)
    losses = torch.where(labels, -2 * alpha * lp, 2 * (1 - alpha) * lp) + beta * _sequence_kl(responses)
    return Result(losses, r[labels], r[~labels])


def _logratios(responses: TokenResponses) -> Tensor:
    """x [n]: policy and reference summed apart, as at sequence level."""
    whole = torch.ones_like(responses.sequence, dtype=torch.bool)
    return weighed(responses, whole, 1.0).logratios


def _sequence_kl(responses: TokenResponses) -> Tensor:
    """D [n]: KL(reference || policy) of the next token, summed over each response."""
    return responses.per_sequence(needed(responses, "kl_ref_policy"))


def _mean_alignment(responses: TokenResponses) -> Tensor:
    """Mean of log p - log sum of p^2 over each response [n]."""
    aligned = responses.logps - needed(responses, "log_sum_squares")
    return responses.per_sequence(aligned) / responses.lengths
