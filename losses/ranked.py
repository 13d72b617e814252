"""Several responses to a prompt, best first; pairs with scores are K = 2.

Notation: x = lp - ref_lp log-ratios, r = beta * x rewards [n, K]; sp(z) = log(1 + exp(z)). For the log, chosen is the
first response and rejected the last.
"""

import torch

from losses.errors import LossError
from losses.registry import Responses, Result, loss
from losses.terms import scores_of, softplus


@loss("dro_ranked", data="ranked", reference=True, needs=("scores",))
def dro_ranked(responses: Responses, *, tau: float = 1.0) -> Result:
    """Direct reward optimisation over several responses to a prompt, whose value the other responses estimate.

    loss = mean over k of (score_k - V_k - tau x_k)^2 / 2, V_k = mean over j != k of (score_j - tau x_j), detached.
    Use it where each prompt has several scored responses.
    Source: arXiv 2405.19107; the estimate of V is ours.
    responses: [n, K], best first, K > 1.
    """
    r = tau * responses.logratios  # [n, K]
    if r.shape[1] < 2:
        raise LossError("dro_ranked needs at least two responses to a prompt")
    rest = scores_of(responses) - r
    value = ((rest.sum(dim=1, keepdim=True) - rest) / (r.shape[1] - 1)).detach()
    losses = (rest - value).square().mean(dim=1) / 2
    return Result(losses, r.detach()[:, 0], r.detach()[:, -1])


@loss("infonca", data="ranked", reference=True, needs=("scores",))
def infonca(responses: Responses, *, beta: float = 0.01, alpha: float = 1e-4) -> Result:
    """Classify the best of K responses by their rewards, with soft labels from their scores.

    loss = -sum_k t_k log softmax(r)_k, t = softmax(scores / alpha). K = 2 with t = (1, 0) is DPO.
    Use it where each prompt has several scored responses.
    Source: arXiv 2402.05369; alpha in the units of the scores, as in its authors' code.
    responses: [n, K], best first.
    """
    r = beta * responses.logratios  # [n, K]
    t = torch.softmax(scores_of(responses) / alpha, dim=1)
    losses = -(t * torch.log_softmax(r, dim=1)).sum(dim=1)
    return Result(losses, r.detach()[:, 0], r.detach()[:, -1])


@loss("nca_ranked", data="ranked", reference=True, needs=("scores",))
def nca_ranked(responses: Responses, *, beta: float = 0.01, alpha: float = 1e-4) -> Result:
    """Noise contrastive alignment over K responses: each one is judged on its own, not against the others.

    loss = sum_k t_k sp(-r_k) + (1 / K) sum_k sp(r_k), t = softmax(scores / alpha). K = 2 with t = (1, 0) is nca.
    Use it in place of infonca where the best response must not become less likely.
    Source: arXiv 2402.05369.
    responses: [n, K], best first.
    """
    r = beta * responses.logratios  # [n, K]
    t = torch.softmax(scores_of(responses) / alpha, dim=1)
    losses = (t * softplus(-r)).sum(dim=1) + softplus(r).mean(dim=1)
    return Result(losses, r.detach()[:, 0], r.detach()[:, -1])


@loss("exo_ranked", data="ranked", reference=True, needs=("scores",))
def exo_ranked(responses: Responses, *, beta: float = 0.1, beta_r: float = 0.1) -> Result:
    """Minimise the reverse KL between the policy's distribution over K responses and that of their scores.

    loss = sum_k p_k (log p_k - log t_k), p = softmax(r), t = softmax(scores / beta_r).
    Use it where each prompt has several responses with a reward model's scores.
    Source: arXiv 2402.00856; beta_r 0.1 for IMDB, 0.5 for HH.
    responses: [n, K], best first.
    """
    r = beta * responses.logratios  # [n, K]
    log_p, log_t = torch.log_softmax(r, dim=1), torch.log_softmax(scores_of(responses) / beta_r, dim=1)
    losses = (log_p.exp() * (log_p - log_t)).sum(dim=1)
    return Result(losses, r.detach()[:, 0], r.detach()[:, -1])
