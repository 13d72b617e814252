"""The objectives of the APO paper (arXiv 2408.06266): DPO, KTO (pairs, and unpaired), SFT, and APO in its variants.

Notation of the formulas: w winner (chosen), l loser (rejected); lp log-prob of a response summed over its tokens;
x = lp - ref_lp the log-ratio; r = beta * x the reward; s the logistic function. Everything is computed in the dtype
of the log-probs given. Rewards are detached: they are for the log, never part of the graph.
"""

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from losses.errors import LossError
from losses.registry import Responses, Result, loss
from losses.terms import Per, nll


@loss("dpo", data="pairs", reference=True, aliases=("sigmoid",))
def dpo(chosen: Responses, rejected: Responses, *, beta: float = 0.1) -> Result:
    """Widen the margin between winner and loser, each relative to the reference.

    loss = -log s(r_w - r_l): eq. 7 of arXiv 2305.18290. log 2 where policy and reference agree. Only the margin
    enters, so both likelihoods may fall together.
    Use it as the baseline, and where preferences are noisy and only their order can be trusted.
    chosen, rejected: logps, ref_logps [n], float32 or float64, nats. beta > 0, per nat.
    Returns losses [n] and detached rewards [n] in the dtype given.
    """
    r_w, r_l = beta * chosen.logratios, beta * rejected.logratios
    return Result(-logsigmoid(r_w - r_l), r_w.detach(), r_l.detach())


@loss("apo_zero", data="pairs", reference=True)
def apo_zero(chosen: Responses, rejected: Responses, *, beta: float = 0.1) -> Result:
    """Raise the winner's likelihood and lower the loser's, each measured against the reference on its own.

    loss = s(-r_w) + s(r_l): eq. 7 of arXiv 2408.06266 plus 1, so that it starts at exactly 1. 0 < loss < 2 and
    |d loss / d logps| <= beta / 4.
    Use it where winners are better than the model's own answers (CLAIR, on-policy judge).
    chosen, rejected: logps, ref_logps [n], float32 or float64, nats. beta > 0, per nat.
    Returns losses [n] and detached rewards [n] in the dtype given.
    """
    r_w, r_l = beta * chosen.logratios, beta * rejected.logratios
    losses = torch.sigmoid(-r_w) + torch.sigmoid(r_l)  # s(-r), not 1 - s(r): no float32 digits are left above r = 17
    return Result(losses, r_w.detach(), r_l.detach())


@loss("apo_down", data="pairs", reference=True)
def apo_down(chosen: Responses, rejected: Responses, *, beta: float = 0.1) -> Result:
    """Lower the likelihood of winner and loser, the loser's more than the winner's.

    loss = s(r_w) + s(r_l - r_w): eq. 8 of arXiv 2408.06266 plus 1, so that it starts at exactly 1. At that point
    the winner's gradient is 0: the first step moves the loser only.
    Use it where winners are worse than the model's own answers (off-policy judge).
    chosen, rejected: logps, ref_logps [n], float32 or float64, nats. beta > 0, per nat.
    Returns losses [n] and detached rewards [n] in the dtype given.
    """
    r_w, r_l = beta * chosen.logratios, beta * rejected.logratios
    return Result(torch.sigmoid(r_w) + torch.sigmoid(r_l - r_w), r_w.detach(), r_l.detach())


@loss("apo_zero_unpaired", data="unpaired", reference=True)
def apo_zero_unpaired(
    responses: Responses,
    labels: Tensor,
    *,
    beta: float = 0.1,
    desirable_weight: float = 1.0,
    undesirable_weight: float = 1.0,
) -> Result:
    """APO-zero on single labelled responses: raise the desirable ones, lower the undesirable ones.

    loss = weight_D s(-r) where desirable, weight_U s(r) where not: appendix C of arXiv 2408.06266 (KTO with its KL
    fixed to 0). Starts at 1/2; on pairs split into single responses its mean is half of apo_zero's.
    Use it for thumbs up and down, or for pairs split into single responses. It beat kto on two of the paper's four
    sets, and trains faster.
    responses: logps, ref_logps [n], float32 or float64, nats. labels: bool [n], True = desirable. beta > 0, per nat.
    Returns losses [n] and the detached rewards of either class.
    """
    r = beta * responses.logratios
    losses = torch.where(labels, desirable_weight * torch.sigmoid(-r), undesirable_weight * torch.sigmoid(r))
    return Result(losses, r[labels].detach(), r[~labels].detach())


@loss("kto", data="unpaired", reference=True, needs=("mismatched",))
def kto(
    responses: Responses,
    labels: Tensor,
    *,
    beta: float = 0.1,
    desirable_weight: float = 1.0,
    undesirable_weight: float = 1.0,
    mismatched: Responses | None = None,
    kl: float | None = None,
) -> Result:
    """Raise desirable and lower undesirable responses relative to the step's estimate of the KL to the reference.

    z = max(0, mean log-ratio of the step's mismatched sequences), detached (prompts with another prompt's response);
    loss = weight_D s(-beta (x - z)) where desirable, weight_U s(-beta (z - x)) where not: eq. 7 of arXiv 2402.01306.
    Starts at 1/2.
    Use it for thumbs up and down, also where one of the two is rare (set the weights so that n_D weight_D : n_U
    weight_U is between 1:1 and 4:3). It beat apo_zero_unpaired on two of the paper's four sets, and took up to 60 %
    longer to train.
    responses: logps, ref_logps [n], float32 or float64, nats. labels: bool [n], True = desirable. beta > 0, per nat.
    mismatched: logps, ref_logps [m] of the whole step over all ranks. kl: a fixed z in nats in its place.
    Returns losses [n], the detached rewards of either class, and the metric kl (z). Raises LossError where neither
    mismatched nor kl is given.
    """
    x = responses.logratios
    if kl is not None:
        z = torch.as_tensor(kl, dtype=x.dtype, device=x.device)
    elif mismatched is not None:
        z = _anchor(mismatched.logratios).detach()
    else:
        raise LossError("kto needs mismatched sequences or a fixed kl")
    losses = torch.where(
        labels, desirable_weight * torch.sigmoid(beta * (z - x)), undesirable_weight * torch.sigmoid(beta * (x - z))
    )
    r = (beta * x).detach()
    return Result(losses, r[labels], r[~labels], {"kl": z})


@loss("kto_pair", data="pairs", reference=True, whole_step=True)
def kto_pair(
    chosen: Responses,
    rejected: Responses,
    *,
    beta: float = 0.1,
    detach: bool = True,
    anchor_size: int | None = None,
    kl_chosen: float | None = None,
    kl_rejected: float | None = None,
) -> Result:
    """KTO on pairs: winners are compared with the losers' KL estimate, and losers with the winners'.

    z_w = max(0, mean x_w), z_l = max(0, mean x_l) over the step; loss = (s(-beta (x_w - z_l)) + s(-beta (z_w - x_l)))
    / 2: TRL's kto_pair (0.7.5 to 0.9.4), eq. 9 of arXiv 2408.06266. detach=False lets gradient flow through the
    anchors, as those releases did; arXiv 2402.01306 says that they get none. Starts at 1/2.
    anchor_size: each mean is taken over this many consecutive pairs of the step (the last group may be smaller), like
    one device's batch in TRL 0.7.5 to 0.9.4. Use detach=False with it for those releases; small groups move winners
    more.
    Use it for KTO on pairs without mismatched sequences, which is what the paper's tables report.
    chosen, rejected: logps, ref_logps [n] of the whole step over all ranks, float32 or float64, nats. beta > 0, per
    nat. kl_chosen, kl_rejected: fixed z_w, z_l in nats.
    Returns losses [n], detached rewards [n], and the metric kl (the mean of both anchors). Raises LossError for an
    anchor_size below 1.
    """
    if anchor_size is not None and anchor_size < 1:
        raise LossError(f"kto_pair: anchor_size is {anchor_size}; it has to be 1 pair at least")
    x_w, x_l = chosen.logratios, rejected.logratios
    z_w, z_l = _anchors(x_w, anchor_size, kl_chosen), _anchors(x_l, anchor_size, kl_rejected)
    if detach:
        z_w, z_l = z_w.detach(), z_l.detach()
    losses = (torch.sigmoid(beta * (z_l - x_w)) + torch.sigmoid(beta * (x_l - z_w))) / 2
    return Result(losses, beta * x_w.detach(), beta * x_l.detach(), {"kl": ((z_w + z_l) / 2).mean().detach()})


@loss("sft", data="single")
def sft(
    responses: Responses,
    *,
    per: Per = "token",
    beta: float = 0.1,
    mean_length: float | None = None,
) -> Result:
    """Maximise the likelihood of the given responses (in pairs: of the winners). beta scales only the logged rewards.

    per="token": loss = -lp / mean_length, mean_length = response tokens of the step / responses of the step, so that
    the step's mean is the mean over its tokens; "sequence": -lp / n, every response weighs the same; "sum": -lp.
    Use it to train on winners alone: the baseline that contrastive objectives have to beat.
    Source: maximum likelihood.
    responses: logps [n], float32 or float64, nats; lengths [n] unless per="sum". mean_length: tokens; computed from
    the lengths given where it is left out.
    Returns losses [n]; detached chosen_rewards beta * x where there is a reference, else beta * lp. Raises LossError
    where lengths are needed and absent.
    """
    lp = responses.logps
    reward = beta * (lp if responses.ref_logps is None else responses.logratios).detach()
    return Result(nll(responses, per, mean_length), reward, reward[:0])


def _anchor(logratios: Tensor) -> Tensor:
    """max(0, mean): the non-negative estimate of the KL that KTO anchors on; clamped once, after the mean."""
    return logratios.mean().clamp(min=0)


def _anchors(logratios: Tensor, size: int | None, given: float | None) -> Tensor:
    """A given anchor or that of all, [], or, for each, that of the group of so many that it stands in, [n]."""
    if given is not None:
        return torch.as_tensor(given, dtype=logratios.dtype, device=logratios.device)
    if size is None:
        return _anchor(logratios)
    return torch.cat([_anchor(group).expand(len(group)) for group in logratios.split(size)])
