"""Arguments for any objective from log-ratios: what all tests of the registry share.

x [2, n]: log-ratios of winners and losers; objectives of token level get them spread over ragged tokens. Other forms
are made of them: labelled or single responses of both, one after the other; three ranked responses with one between.
"""

from typing import NamedTuple

import torch
from torch import Tensor

import losses
from losses import Responses, Result, TokenResponses

REF = -256.0
FAR = [[0, 200, -200, 200, -200, 0, 200, -1e4, -1e4], [0, -200, 200, 200, -200, 200, 0, -1e4, 200]]  # x_w, x_l


class Call(NamedTuple):
    """One call of an objective and what it was made of."""

    result: Result
    logps: Tensor
    """The leaf: [2, n], [2n], or [n, 3]."""
    ref_logps: Tensor

    def gradient(self) -> Tensor:
        """d (sum of losses) / d logps."""
        (found,) = torch.autograd.grad(self.result.losses.sum(), self.logps, allow_unused=True)
        return torch.zeros_like(self.logps) if found is None else found


def points(seed=0):
    """Log-ratios [2, 73]: 64 random ones within +-30, the centre, +-200 and -1e4."""
    x = 60 * torch.rand(2, 64, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)) - 30
    return torch.cat([x, torch.tensor(FAR, dtype=torch.float64)], dim=1)


def lengths(n, offset=0):
    """Lengths that differ between the columns, [n]: 40 to 48 tokens."""
    return 40 + (torch.arange(n) * 5 + offset) % 9


def labels_of(n):
    """Two classes of different size."""
    return torch.arange(n) % 3 != 0


def scores_of(n):
    """(of winners, of losers, of the model's own answers), [n]: winners lead; the own answer below, between, above."""
    i = torch.arange(n, dtype=torch.float64)
    return 3 + i % 4, 1 + i % 2, torch.tensor([0.5, 2.5, 9.0], dtype=torch.float64)[torch.arange(n) % 3]


def tokens(logps, ref_logps, lengths, rows, scores=None):
    """A column [n] of sums as one of tokens: a half of each log-ratio in the first token, a quarter in the sixth and in
    the last; what else such objectives take is made of the places and of the rows' numbers.
    """
    sequence = torch.repeat_interleave(torch.arange(len(lengths)), lengths)
    position = torch.cat([torch.arange(n) for n in lengths.tolist()])
    first, last = position == 0, position == lengths[sequence] - 1
    rest = (-1.0 - position % 3) * ~first
    sums = torch.zeros_like(ref_logps.detach()).index_add(0, sequence, rest.to(logps.dtype))
    ref = torch.where(first, (ref_logps - sums)[sequence], rest.to(logps.dtype))
    share = (first / 2 + (position == 5) / 4 + last / 4).to(logps.dtype)
    like = {"dtype": logps.dtype}
    return TokenResponses(
        ref.detach() + share * (logps - ref_logps.detach())[sequence], ref, sequence, position, lengths,
        revised=(position + rows[sequence]) % 3 != 0, token_weights=(position % 4 / 4).to(**like),
        entropy=(1 + position % 2).to(**like), ref_entropy=(2 - position % 2).to(**like),
        kl_ref_policy=((position + rows[sequence]) % 4 / 16).to(**like).requires_grad_(),
        kl_policy_ref=(position % 3 / 16).to(**like).requires_grad_(),
        log_sum_squares=(-0.5 - position % 2).to(**like).requires_grad_(), scores=scores,
    )  # fmt: skip


def call(name, x, *, ref=REF, order=None, repeat=1, **arguments) -> Call:
    """The objective on log-ratios x. Whatever else it takes is made up; arguments win over that.

    order: the examples in that order; repeat: the whole step so many times over.
    """
    loss, (_, n) = losses.get(name), x.shape
    which = (torch.arange(n) if order is None else order).repeat(repeat)
    s_w, s_l, own = (s[which].to(x.dtype) for s in scores_of(n))
    i = torch.arange(2 * n, dtype=x.dtype).view(2, n)[:, which]
    x, (n_w, n_l) = x[:, which], (lengths(n, offset)[which] for offset in (0, 3))
    given = {"own_scores": own, "values": (i / 7).flatten(), "weights": (i % 5).flatten()}
    given |= {"probs_w": 0.5 + i[0] % 5 / 10, "probs_l": 0.5 - i[1] % 5 / 10, "quantile": (i % 11 / 10).flatten()}
    if name == "kto" and "mismatched" not in arguments:
        arguments = {"kl": 1.5} | arguments
    if loss.data == "ranked":
        x = torch.stack([x[0], (x[0] - x[1]) / 2, x[1]], dim=1)  # [n, 3]
        scores = torch.stack([s_w, (s_w + s_l) / 2, s_l], dim=1)
    logps, ref_logps = (torch.full_like(x, ref) + x).requires_grad_(), torch.full_like(x, ref).requires_grad_()
    if loss.data == "pairs" and loss.level == "token":
        columns = [tokens(logps[i], ref_logps[i], n, which, s) for i, n, s in ((0, n_w, s_w), (1, n_l, s_l))]
    elif loss.data == "pairs":
        columns = [Responses(logps[0], ref_logps[0], n_w, s_w), Responses(logps[1], ref_logps[1], n_l, s_l)]
    elif loss.data == "ranked":
        columns = [Responses(logps, ref_logps, None, scores)]
    else:
        both = [t.T.flatten() for t in (logps, ref_logps)]  # winner and loser in turn
        both += [torch.stack([n_w, n_l], 1).flatten()]
        scores = torch.stack([s_w, s_l], 1).flatten()
        is_token, rows = loss.level == "token", torch.stack([which, which], 1).flatten()
        columns = [tokens(*both, rows, scores) if is_token else Responses(*both, scores)]
        given = {name: value.view(2, -1).T.flatten() if value.numel() == 2 * x.shape[1] else value
                 for name, value in given.items()}  # fmt: skip
        columns += (
            [labels_of(2 * n)[torch.stack([2 * which, 2 * which + 1], 1).flatten()]] if loss.data == "unpaired" else []
        )
    taken = {name: value for name, value in given.items() if name in (*loss.injected, *loss.fields)}
    return Call(loss(*columns, **(taken | arguments)), logps, ref_logps)


def s(z):
    """The logistic function."""
    return 1 / (1 + torch.exp(-z))


def d(z):
    """Its derivative."""
    return s(z) * s(-z)


def sp(z):
    """log(1 + exp(z))."""
    return z.clamp(min=0) + torch.log1p(torch.exp(-z.abs()))


def assert_close(got, expected):
    """Equal to twelve digits, of the numbers or of 1."""
    torch.testing.assert_close(got, expected, rtol=1e-12, atol=1e-12)
