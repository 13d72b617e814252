"""Objectives of pairs in which one response is a revision of the other, and revised tokens count for more.

Which tokens were revised is found by an alignment of the two responses (docs/data.md: Revised tokens). In the
log-ratios x those that were not weigh `unrevised`: at 1 these are the plain objectives to the last bit, at 0 only
revisions are trained on. A response without revised tokens then has x = 0 and no gradient.
"""

from losses.paper import apo_down, apo_zero, dpo
from losses.registry import Responses, Result, loss
from losses.terms import between_0_and_1, needed, weighed
from losses.token_responses import TokenResponses


@loss("apo_zero_revised", data="pairs", level="token", reference=True, needs=("revised",))
def apo_zero_revised(
    chosen: TokenResponses, rejected: TokenResponses, *, beta: float = 0.1, unrevised: float = 0.0
) -> Result:
    """APO-zero on the tokens that differ between chosen and rejected; all other tokens have weight `unrevised`.

    loss = s(-r_w) + s(r_l), r = beta (x over revised tokens + unrevised times x over the others).
    Use it in place of apo_zero where the winner is a revision of the loser (CLAIR) and shares most of its tokens.
    Source: ours; apo_zero is eq. 7 of arXiv 2408.06266. Raises LossError where unrevised is outside [0, 1].
    """
    return apo_zero(_revised(chosen, unrevised), _revised(rejected, unrevised), beta=beta)


@loss("apo_down_revised", data="pairs", level="token", reference=True, needs=("revised",))
def apo_down_revised(
    chosen: TokenResponses, rejected: TokenResponses, *, beta: float = 0.1, unrevised: float = 0.0
) -> Result:
    """APO-down on the tokens that differ between chosen and rejected; all other tokens have weight `unrevised`.

    loss = s(r_w) + s(r_l - r_w), r = beta (x over revised tokens + unrevised times x over the others).
    Use it in place of apo_down where one response is a revision of the other.
    Source: ours; apo_down is eq. 8 of arXiv 2408.06266. Raises LossError where unrevised is outside [0, 1].
    """
    return apo_down(_revised(chosen, unrevised), _revised(rejected, unrevised), beta=beta)


@loss("dpo_revised", data="pairs", level="token", reference=True, needs=("revised",))
def dpo_revised(
    chosen: TokenResponses, rejected: TokenResponses, *, beta: float = 0.1, unrevised: float = 0.0
) -> Result:
    """DPO on the tokens that differ between chosen and rejected; all other tokens have weight `unrevised`.

    loss = -log s(r_w - r_l), r = beta (x over revised tokens + unrevised times x over the others).
    Use it in place of dpo where one response is a revision of the other.
    Source: ours; dpo is eq. 7 of arXiv 2305.18290. Raises LossError where unrevised is outside [0, 1].
    """
    return dpo(_revised(chosen, unrevised), _revised(rejected, unrevised), beta=beta)


def _revised(responses: TokenResponses, unrevised: float) -> Responses:
    return weighed(responses, needed(responses, "revised"), between_0_and_1("unrevised", unrevised))
