"""Objectives that take a statistic of the whole optimizer step: an anchor, a sorted order, a running mean.

They are given the columns of the step over all ranks, so that neither micro-batches nor ranks change anything.

Notation: w winner, l loser; lp log-prob, x = lp - ref_lp log-ratio, r = beta * x reward; s the logistic function,
sp(z) = log(1 + exp(z)); N the examples of the step.
"""

import math
import random

import torch
from torch import Tensor

from losses.errors import LossError
from losses.registry import Responses, Result, loss
from losses.terms import share, softplus

State = dict[str, float]


@loss("bco_pair", data="pairs", reference=True, whole_step=True, state=True)
def bco_pair(
    chosen: Responses,
    rejected: Responses,
    *,
    beta: float = 0.1,
    shift: bool = True,
    delta: float | None = None,
    state: State | None = None,
) -> Result:
    """Binary classifier optimisation on pairs: each reward is compared with the mean reward so far.

    loss = sp(-(r_w - D)) + sp(r_l - D), D the mean reward of everything seen, this step included; detached.
    shift=False: D = 0. delta: a fixed D.
    Use it on pairs where the anchor should follow the rewards.
    Source: arXiv 2404.04656; TRL up to 0.28 with a running mean,
    from 0.29 on without. Metric: delta.
    """
    r_w, r_l = beta * chosen.logratios, beta * rejected.logratios
    if not shift and delta is not None:
        raise LossError("bco_pair: delta needs shift=True; leave delta out, or set shift")
    d, after = _shift(torch.cat([r_w, r_l]).detach(), delta if shift else 0.0, state)
    losses = softplus(d - r_w) + softplus(r_l - d)
    return Result(losses, r_w.detach(), r_l.detach(), {"delta": r_w.new_tensor(d)}, after)


@loss("bco", data="unpaired", reference=True, needs=("weights",), whole_step=True, state=True)
def bco(
    responses: Responses,
    labels: Tensor,
    *,
    beta: float = 0.1,
    delta: float | None = None,
    weights: Tensor | None = None,
    state: State | None = None,
) -> Result:
    """Binary classifier optimisation on labelled responses: each reward is compared with the mean reward so far.

    loss = sp(-(r - D)) where desirable, w sp(r - D) where not; D the mean reward of everything seen, this step
    included, detached; w the row's "weight" (a density ratio), within [0.5, 10], 1 where it has none. delta: a fixed D.
    Use it for thumbs up and down, with weights where the two kinds answer different prompts.
    Source: arXiv 2404.04656; TRL's BCOTrainer. weights: [n]. Metric: delta.
    """
    r = beta * responses.logratios
    d, after = _shift(r.detach(), delta, state)
    w = torch.ones_like(r) if weights is None else weights.to(r.dtype).clamp(0.5, 10)
    losses = torch.where(labels, softplus(d - r), w * softplus(r - d))
    kept = r.detach()
    return Result(losses, kept[labels], kept[~labels], {"delta": r.new_tensor(d)}, after)


@loss("beta_dpo", data="pairs", reference=True, whole_step=True, state=True)
def beta_dpo(
    chosen: Responses,
    rejected: Responses,
    *,
    beta: float = 0.1,
    a: float = 0.6,
    keep_share: float = 0.8,
    momentum: float = 0.9,
    seed: int = 0,
    keep: Tensor | None = None,
    state: State | None = None,
) -> Result:
    """DPO with a beta that follows the step's mean margin; pairs are sampled, preferring margins near the running mean.

    A = x_w - x_l. Running mean M and deviation S of A; floor(keep_share N) pairs are drawn without replacement with
    weights exp(-((A - M) / S)^2 / 2); beta' = max(beta (1 + a (mean of the kept A - M)), 0.001), detached;
    loss = sp(-beta' A) N / kept for those, 0 for the others.
    Use it where pairs vary in quality and include outliers.
    Source: arXiv 2407.08639. keep: bool [N] in place of the draw.
    Metrics: beta, kept.
    """
    if not 0 < keep_share <= 1:
        raise LossError(f"beta_dpo: keep_share is {keep_share}; it has to be above 0, 1 at most")
    if not 0 <= momentum <= 1:
        raise LossError(f"beta_dpo: momentum is {momentum}; it has to be between 0 and 1")
    A = chosen.logratios - rejected.logratios
    seen, n = A.detach(), len(A)
    before = state or {"mean": 0.0, "deviation": 0.0, "step": 0.0}
    spread = seen.std().item() if n > 1 else 0.0
    mean = momentum * before["mean"] + (1 - momentum) * seen.mean().item()
    deviation = momentum * before["deviation"] + (1 - momentum) * spread
    if keep is None:
        log_weights = -((seen - mean) / max(deviation, 1e-6)).square() / 2
        keep = _draw(log_weights, max(1, math.floor(keep_share * n + 1e-9)), seed, int(before["step"]))
    n_kept = max(1, int(keep.sum()))
    kept_mean = seen[keep].mean().item() if keep.any() else mean
    now = max(beta * (1 + a * (kept_mean - mean)), 1e-3)
    losses = torch.where(keep, softplus(-now * A) * (n / n_kept), 0)
    rewards = beta * chosen.logratios.detach(), beta * rejected.logratios.detach()
    metrics = {"beta": A.new_tensor(now), "kept": keep.double().mean()}
    return Result(losses, *rewards, metrics, {"mean": mean, "deviation": deviation, "step": before["step"] + 1})


@loss("aot", data="pairs", reference=True, whole_step=True)
def aot(chosen: Responses, rejected: Responses, *, beta: float = 0.1, label_smoothing: float = 0.0) -> Result:
    """Optimal transport on pairs: raise the policy's sorted margins above the reference's, rank by rank.

    lp_w - lp_l and ref_w - ref_l, each sorted over the step; D_k = the difference of the k-th ones;
    loss = (1 - e) sp(-beta D_k) + e sp(beta D_k), given to the pair whose margin has rank k.
    Use it where the distribution of margins matters more than each single one.
    Source: arXiv 2406.05882; TRL `aot`. N = 1 is dpo.
    """
    _ = chosen.logratios  # raises where there is no reference
    assert chosen.ref_logps is not None and rejected.ref_logps is not None
    ahead = chosen.logps - rejected.logps
    losses = _ranked(beta, ahead, (chosen.ref_logps - rejected.ref_logps).detach(), label_smoothing)
    return Result(losses, beta * chosen.logratios.detach(), beta * rejected.logratios.detach())


@loss("aot_unpaired", data="pairs", reference=True, whole_step=True)
def aot_unpaired(chosen: Responses, rejected: Responses, *, beta: float = 0.1, label_smoothing: float = 0.0) -> Result:
    """Optimal transport without pairing: raise the winners' sorted log-ratios above the losers', rank by rank.

    x_w and x_l, each sorted over the step; D_k = the difference of the k-th ones; loss = (1 - e) sp(-beta D_k)
    + e sp(beta D_k), given to the pair whose winner has rank k; the loser of rank k is another pair's.
    Use it where winners and losers do not belong to the same prompts.
    Source: arXiv 2406.05882; TRL called this `aot_pair` until
    February 2026.
    """
    losses = _ranked(beta, chosen.logratios, rejected.logratios, label_smoothing)
    return Result(losses, beta * chosen.logratios.detach(), beta * rejected.logratios.detach())


@loss("apo_down_unpaired", data="unpaired", reference=True, whole_step=True)
def apo_down_unpaired(
    responses: Responses,
    labels: Tensor,
    *,
    beta: float = 0.1,
    desirable_weight: float = 1.0,
    undesirable_weight: float = 1.0,
) -> Result:
    """APO-down on single labelled responses: lower the desirable ones, and the undesirable ones further.

    desirable: weight_D (s(r) + s(z_l - r)), undesirable: weight_U s(r - z_w); z_w, z_l the detached mean rewards of
    the step's desirable and undesirable responses, 0 where it has none. With equal rewards its gradients are half of
    apo_down's (over twice as many examples).
    Use it for labelled responses where the desirable ones are worse than the model's own answers.
    Source: ours.
    """
    r = beta * responses.logratios
    z_w, z_l = (r.detach()[which].sum() / max(1, int(which.sum())) for which in (labels, ~labels))
    desirable = desirable_weight * (torch.sigmoid(r) + torch.sigmoid(z_l - r))
    losses = torch.where(labels, desirable, undesirable_weight * torch.sigmoid(r - z_w))
    return Result(losses, r.detach()[labels], r.detach()[~labels])


def _shift(rewards: Tensor, fixed: float | None, state: State | None) -> tuple[float, State]:
    """The mean reward of everything seen, these rewards included, or a fixed one; and what to go on from."""
    before = state or {"mean": 0.0, "count": 0.0}
    count = before["count"] + len(rewards)
    mean = before["mean"] + (rewards.mean().item() - before["mean"]) * len(rewards) / count
    return mean if fixed is None else fixed, {"mean": mean, "count": count}


def _draw(log_weights: Tensor, n: int, seed: int, step: int) -> Tensor:
    """A draw of n without replacement with probabilities by weight (Gumbel's top n): bool [N], by seed and step."""
    generator = torch.Generator().manual_seed(random.Random(f"{seed} {step}").getrandbits(32))
    uniform = torch.rand(len(log_weights), generator=generator, dtype=torch.float64).clamp(min=1e-300)
    keys = log_weights.double().cpu() - torch.log(-torch.log(uniform))
    drawn = torch.zeros(len(keys), dtype=torch.bool)
    drawn[keys.topk(n).indices] = True
    return drawn.to(log_weights.device)


def _ranked(beta: float, ahead: Tensor, behind: Tensor, label_smoothing: float) -> Tensor:
    """Losses of the differences rank by rank, each at the place that holds its rank in `ahead`."""
    e = share(label_smoothing)
    order = ahead.detach().argsort(stable=True)
    difference = beta * (ahead[order] - behind.sort(stable=True).values)
    by_rank = (1 - e) * softplus(-difference) + e * softplus(difference)
    return by_rank[order.argsort()]
