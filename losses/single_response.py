"""Responses one by one, of which one side alone is known.

Notation: lp log-prob of a response, x = lp - ref_lp its log-ratio, r = beta * x its reward; sp(z) = log(1 + exp(z)).
"""

import math

from torch import Tensor

from losses.errors import LossError
from losses.registry import Responses, Result, loss
from losses.terms import scores_of, softplus


@loss("npo", data="single", reference=True, side="rejected")
def npo(responses: Responses, *, beta: float = 0.1) -> Result:
    """Negative preference optimisation: lower the given responses, less and less as they become unlikely.

    loss = (2 / beta) sp(r), of the losers where rows are pairs. Its gradient at the centre is 1, not beta: a scale
    apart from the others.
    Use it for unlearning, in a mixture with sft that preserves everything else.
    Source: arXiv 2404.05868.
    """
    r = beta * responses.logratios
    return Result(2 / beta * softplus(r), r.detach()[:0], r.detach())


@loss("dro", data="single", reference=True, needs=("scores", "values"))
def dro(responses: Responses, *, tau: float = 1.0, values: Tensor | None = None) -> Result:
    """Direct reward optimisation: bring tau times the log-ratio to the response's score minus the prompt's value.

    loss = (score - V - tau x)^2 / 2, V the row's "value": what the policy scores on that prompt. The paper learns V by
    a second network, which is not built here; dro_ranked estimates it from other samples.
    Use it for single responses with scores and a known baseline.
    Source: arXiv 2405.19107. values: [n].
    """
    if values is None:
        raise LossError("dro needs the value of each prompt; dro_ranked estimates it from several responses")
    r = tau * responses.logratios
    rest = scores_of(responses) - values.to(r.dtype) - r
    return Result(rest.square() / 2, r.detach(), r.detach()[:0])


@loss("qrpo", data="single", reference=True, fields=("quantile",))
def qrpo(responses: Responses, *, beta: float = 0.1, quantile: Tensor) -> Result:
    """Quantile rewards: bring each log-ratio to that of the optimal policy, whose partition function is known.

    loss = (quantile - beta log Z - r)^2, Z = beta (exp(1 / beta) - 1): rewards that are quantiles under the reference
    are uniform between 0 and 1 there. quantile: of each row, the share of rewards of the reference's own answers to
    the prompt that are no higher than this response's.
    Use it for single responses with rewards, where several samples of the reference to each prompt have rewards too.
    Source: arXiv 2507.08068 with its identity transform; its authors' code leaves the - 1 out (4.5e-5 in log Z at beta
    0.1), and takes both responses of a pair; its recipe for chat has beta 0.003. quantile: [n], within [0, 1].
    """
    q, r = quantile.to(responses.logps.dtype), beta * responses.logratios
    if not ((q >= 0) & (q <= 1)).all():
        raise LossError("qrpo: the quantile of a row has to be between 0 and 1")
    log_z = math.log(beta) + 1 / beta + math.log1p(-math.exp(-1 / beta))
    return Result((q - beta * log_z - r).square(), r.detach(), r.detach()[:0])
