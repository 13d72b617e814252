"""Pairs with a reference, each response pushed towards a place of its own, and the choice between APO's variants.

Notation: w winner, l loser; x = lp - ref_lp the log-ratio; r = beta * x the reward, m = r_w - r_l the margin; s the
logistic function, sp(z) = log(1 + exp(z)).
"""

import torch
from torch import Tensor

from losses.errors import LossError
from losses.registry import Responses, Result, loss
from losses.terms import scores_of, softplus


@loss("nca", data="pairs", reference=True, aliases=("nca_pair",))
def nca(chosen: Responses, rejected: Responses, *, beta: float = 0.1) -> Result:
    """Noise contrastive alignment: lower the loser, and raise the winner to a fixed reward and no further.

    loss = sp(-r_w) + (sp(r_w) + sp(r_l)) / 2. The winner rests at r_w = log 2; 2 log 2 at the centre.
    Use it where the winner's likelihood should neither fall nor grow without end.
    Source: arXiv 2402.05369; beta 0.01 in its runs.
    """
    r_w, r_l = beta * chosen.logratios, beta * rejected.logratios
    return Result(softplus(-r_w) + (softplus(r_w) + softplus(r_l)) / 2, r_w.detach(), r_l.detach())


@loss("sppo", data="pairs", reference=True, needs=("probs",), aliases=("sppo_hard",))
def sppo(
    chosen: Responses,
    rejected: Responses,
    *,
    beta: float = 1e-3,
    reduction_half: bool = False,
    probs_w: Tensor | None = None,
    probs_l: Tensor | None = None,
) -> Result:
    """Self-play: bring each log-ratio to a target set by the response's win rate against the policy's own samples.

    loss = (x_w - (P_w - 1/2) / beta)^2 + (x_l - (P_l - 1/2) / beta)^2; beta is 1 / eta. P: the row's chosen_prob and
    rejected_prob, 1 and 0 where it has none. reduction_half halves it.
    Use it in iterative rounds, on pairs sampled from the policy itself.
    Source: arXiv 2405.00675 eq. 4.7; TRL `sppo_hard`.
    probs_w, probs_l: [n] win rates between 0 and 1.
    """
    x_w, x_l = chosen.logratios, rejected.logratios
    p_w = torch.ones_like(x_w) if probs_w is None else probs_w.to(x_w.dtype)
    p_l = torch.zeros_like(x_l) if probs_l is None else probs_l.to(x_l.dtype)
    losses = (x_w - (p_w - 0.5) / beta).square() + (x_l - (p_l - 0.5) / beta).square()
    return Result(losses / 2 if reduction_half else losses, beta * x_w.detach(), beta * x_l.detach())


@loss("apo_up", data="pairs", reference=True)
def apo_up(chosen: Responses, rejected: Responses, *, beta: float = 0.1) -> Result:
    """Raise the likelihood of winner and loser, the winner's more than the loser's: the mirror of APO-down.

    loss = s(-r_l) + s(-m). Starts at exactly 1, where the loser's gradient is 0: the first step moves the winner only.
    Use it where even the losers are better than the model's own answers.
    Source: ours; apo_down (eq. 8 of arXiv 2408.06266) at (-r_l, -r_w).
    """
    r_w, r_l = beta * chosen.logratios, beta * rejected.logratios
    return Result(torch.sigmoid(-r_l) + torch.sigmoid(r_l - r_w), r_w.detach(), r_l.detach())


@loss("apo_select", data="pairs", reference=True, needs=("scores", "own_scores"))
def apo_select(
    chosen: Responses,
    rejected: Responses,
    *,
    beta: float = 0.1,
    temperature: float = 0.0,
    up: bool = False,
    own_scores: Tensor | None = None,
) -> Result:
    """Choose the variant pair by pair: APO-zero where the winner beats the model's own answer, else APO-down.

    loss = p (s(-r_w) + s(r_l)) + (1 - p) (s(r_w) + s(-m)), p = [score_w > own score]: a tie is APO-down, so that
    nothing is raised that is no better. temperature > 0, about the scorer's noise: p = s((score_w - own score) /
    temperature). up: APO-up where even score_l is above the own score.
    Use it where winners vary in quality, and one scorer has rated winner, loser and the model's own answer.
    Source: section 8 of arXiv 2408.06266, made an objective here. own_scores: [n]. Metric: p_zero, the mean p.
    """
    if temperature < 0:
        raise LossError(f"apo_select: temperature is {temperature}; it has to be 0 or above")
    if own_scores is None:
        raise LossError("apo_select needs the score of the model's own answer")
    r_w, r_l = beta * chosen.logratios, beta * rejected.logratios
    own = own_scores.to(r_w.dtype)
    lead = scores_of(chosen) - own
    p = torch.sigmoid(lead / temperature) if temperature > 0 else (lead > 0).to(r_w.dtype)
    preferred = torch.sigmoid(r_l - r_w)  # s(-m)
    zero, down = torch.sigmoid(-r_w) + torch.sigmoid(r_l), torch.sigmoid(r_w) + preferred
    losses = p * zero + (1 - p) * down
    if up:
        is_up = scores_of(rejected) > own
        losses, p = torch.where(is_up, torch.sigmoid(-r_l) + preferred, losses), torch.where(is_up, 0, p)
    return Result(losses, r_w.detach(), r_l.detach(), {"p_zero": p.mean()})
