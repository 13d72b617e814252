"""Pairs without a reference.

Notation: w winner, l loser; lp log-prob of a response, n its tokens, a = lp / n; s the logistic function,
sp(z) = log(1 + exp(z)); nll = negative log-likelihood. Rewards: beta * lp, or beta * a where a enters.
"""

import torch

from losses.registry import Responses, Result, loss
from losses.terms import Per, log1mexp, mean_logps, nll, softplus


@loss("simpo", data="pairs", needs=("lengths",))
def simpo(chosen: Responses, rejected: Responses, *, beta: float = 2.0, gamma: float = 1.0) -> Result:
    """Widen the gap between mean log-probs until the winner leads by a target margin.

    loss = sp(-(beta (a_w - a_l) - gamma)); gamma in rewards. The authors' repository gives gamma / beta instead
    (Llama-3-8B-Instruct: beta 2.5, ratio 0.55), and TRL's simpo_gamma is gamma.
    Use it where there is no memory for a reference, and answers are ranked by their mean log-prob.
    Source: arXiv 2405.14734.
    """
    r_w, r_l = beta * mean_logps(chosen), beta * mean_logps(rejected)
    return Result(softplus(gamma - (r_w - r_l)), r_w.detach(), r_l.detach())


@loss("simper", data="pairs", needs=("lengths",))
def simper(chosen: Responses, rejected: Responses) -> Result:
    """Raise the winner's inverse perplexity and lower the loser's; there are no hyperparameters.

    loss = exp(a_l) - exp(a_w). The slope of a response dies with its likelihood, so that losers stop falling. The
    logged rewards are what is compared, exp(a); the authors' code logs a.
    Use it where there is no memory for a reference, and no time to search for hyperparameters.
    Source: arXiv 2502.00883.
    """
    r_w, r_l = torch.exp(mean_logps(chosen)), torch.exp(mean_logps(rejected))
    return Result(r_l - r_w, r_w.detach(), r_l.detach())


@loss("orpo", data="pairs", needs=("lengths",))
def orpo(
    chosen: Responses,
    rejected: Responses,
    *,
    beta: float = 0.1,
    alpha: float = 1.0,
    nll_per: Per = "token",
    mean_length: float | None = None,
) -> Result:
    """Fine-tuning and preference in one: raise the winner's likelihood and its odds against the loser.

    loss = alpha nll_w + beta sp(-L), L = (a_w - log(1 - exp a_w)) - (a_l - log(1 - exp a_l)); beta is the paper's
    lambda. The likelihood is the response's; TRL's runs over prompt and response.
    Use it to align a base model directly, without supervised fine-tuning first.
    Source: arXiv 2403.07691.
    """
    a_w, a_l = mean_logps(chosen), mean_logps(rejected)
    odds = (a_w - log1mexp(a_w)) - (a_l - log1mexp(a_l))
    losses = alpha * nll(chosen, nll_per, mean_length) + beta * softplus(-odds)
    return Result(losses, beta * a_w.detach(), beta * a_l.detach())


@loss("cpo", data="pairs", needs=("lengths",))
def cpo(
    chosen: Responses,
    rejected: Responses,
    *,
    beta: float = 0.1,
    alpha: float = 1.0,
    nll_per: Per = "token",
    mean_length: float | None = None,
) -> Result:
    """DPO without a reference, plus the winner's negative log-likelihood.

    loss = sp(-beta (lp_w - lp_l)) + alpha nll_w; sums of log-probs, not means.
    Use it for translation and other tasks with one right answer, without memory for a reference.
    Source: arXiv 2401.08417 eq. 3; TRL's CPO.
    """
    r_w, r_l = beta * chosen.logps, beta * rejected.logps
    losses = softplus(r_l - r_w) + alpha * nll(chosen, nll_per, mean_length)
    return Result(losses, r_w.detach(), r_l.detach())


@loss("slic", data="pairs", needs=("lengths",))
def slic(
    chosen: Responses,
    rejected: Responses,
    *,
    beta: float = 1.0,
    delta: float = 1.0,
    lam: float = 0.1,
    nll_per: Per = "sum",
    target: Responses | None = None,
    mean_length: float | None = None,
) -> Result:
    """SLiC-HF: make the winner's log-prob lead by delta nats, and keep a target (the winner) likely.

    loss = max(0, delta - (lp_w - lp_l)) + lam nll_t, t the winner, or, called from Python, the column given as
    target= (the answers of supervised fine-tuning). beta only scales the logged rewards.
    Use it to calibrate a fine-tuned model.
    Source: arXiv 2305.10425; lam 0.1 as in HALOs.
    """
    lead = chosen.logps - rejected.logps
    likelihood = nll(chosen, nll_per, mean_length) if target is None else nll(target, nll_per, None)
    losses = (delta - lead).clamp(min=0) + lam * likelihood
    return Result(losses, beta * chosen.logps.detach(), beta * rejected.logps.detach())
