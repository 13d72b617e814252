"""What an objective of token level is given: one column of sequences, token by token, and nothing between them."""

from typing import NamedTuple

import torch
from torch import Tensor

from losses.errors import LossError

TOKEN_NEEDS = frozenset(
    {
        *("revised", "token_weights", "entropy", "ref_entropy"),
        *("kl_ref_policy", "kl_policy_ref", "log_sum_squares"),
    }
)
"""What `needs` can ask for at token level alone: the fields of `TokenResponses` that are None otherwise."""
NEED_REFERENCE = frozenset({"ref_entropy", "kl_ref_policy", "kl_policy_ref"})
"""Those of them that take a reference."""


def log_ratios(logps: Tensor, ref_logps: Tensor | None) -> Tensor:
    """logps - ref_logps, in their shape, without gradient into the latter. Raises LossError where there are none."""
    if ref_logps is None:
        raise LossError("this objective needs reference log-probs; declare it with @loss(..., reference=True)")
    return logps - ref_logps.detach()


class TokenResponses(NamedTuple):
    """One column of n sequences of N tokens together; [N] tensors hold the response tokens of all rows one after the
    other. The end-of-turn token is one of them where the response has it; what a tool says between an assistant's
    messages is not, since no one predicts it.
    """

    logps: Tensor
    """[N] log-prob of each token under the policy; nats, float64, with gradient."""
    ref_logps: Tensor | None
    """[N] the same under the reference, without gradient; None for objectives that need no reference."""
    sequence: Tensor
    """[N] int64, which row of the column a token belongs to: 0, 0, ..., 1, 1, ..."""
    position: Tensor
    """[N] int64, its place among the predicted tokens of its response, from 0."""
    lengths: Tensor
    """[n] int64, tokens of each response, at least 1."""
    revised: Tensor | None = None
    """[N] bool, whether the token differs between chosen and rejected (docs/data.md: Revised tokens)."""
    token_weights: Tensor | None = None
    """[N] float64, what the row says in `chosen_token_weights` and `rejected_token_weights`."""
    entropy: Tensor | None = None
    """[N] of the policy's next-token distribution there; nats, float64, with gradient."""
    ref_entropy: Tensor | None = None
    """[N] of the reference's, without gradient."""
    kl_ref_policy: Tensor | None = None
    """[N] KL(reference || policy) of the two whole next-token distributions; nats, float64, with gradient."""
    kl_policy_ref: Tensor | None = None
    """[N] KL(policy || reference), with gradient."""
    log_sum_squares: Tensor | None = None
    """[N] log of the sum over the vocabulary of the policy's squared probabilities; float64, with gradient."""
    scores: Tensor | None = None
    """[n] the row's rating of each response, float."""

    @property
    def logratios(self) -> Tensor:
        """logps - ref_logps [N], nats. Raises LossError where there is no reference."""
        return log_ratios(self.logps, self.ref_logps)

    def per_sequence(self, values: Tensor) -> Tensor:
        """Sums [n] of values [N] over the tokens of each row, in their order."""
        sums = torch.zeros(len(self.lengths), dtype=values.dtype, device=values.device)
        return sums.index_add(0, self.sequence, values)

    def masked(self, values: Tensor, mask: Tensor) -> Tensor:
        """values [N] where mask [N] is true, 0 elsewhere; no gradient goes there."""
        return torch.where(mask, values, torch.zeros_like(values))


def common(chosen: TokenResponses, rejected: TokenResponses) -> tuple[Tensor, Tensor]:
    """Masks of the tokens that stand in the common length: the first min(n_w, n_l) of each row, [N] bool of chosen and
    of rejected.
    """
    shorter = torch.minimum(chosen.lengths, rejected.lengths)
    return chosen.position < shorter[chosen.sequence], rejected.position < shorter[rejected.sequence]
