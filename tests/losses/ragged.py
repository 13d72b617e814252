"""Columns of ragged token rows for objectives that see tokens: as lists of rows, and as these objectives get them."""

from typing import NamedTuple

import torch
from torch import Tensor

from losses import TokenResponses

FAR = [(0.0, 0.0), (200.0, -200.0), (-200.0, 200.0), (1e4, -1e4), (-1e4, 1e4), (1e4, 1e4), (-1e4, -1e4), (0.0, 1e4)]
"""Log-ratios of winner and loser, to be spread over tokens: the centre, and far out."""


class Row(NamedTuple):
    """A response, token by token; every field a list of floats but for revised, of bools."""

    lp: list[float]
    ref: list[float]
    kl: list[float]
    lss: list[float]
    revised: list[bool]


class Column(NamedTuple):
    """Rows, and the same as an objective gets them, whose leaves ask for gradients."""

    rows: list[Row]
    given: TokenResponses

    def leaves(self) -> list[Tensor]:
        """What has a gradient, and then what has none: logps, kl_ref_policy; log_sum_squares, ref_logps."""
        g = self.given
        return [g.logps, g.kl_ref_policy, g.log_sum_squares, g.ref_logps]  # pyright: ignore[reportReturnType]


def columns(seed: int = 0) -> tuple[Column, Column]:
    """Winners and losers: 64 random pairs of 1 to 12 tokens, then those of FAR. Every fifth has no revised token."""
    g = torch.Generator().manual_seed(seed)
    made: list[list[Row]] = [[], []]
    for i in range(64 + len(FAR)):
        for side in (0, 1):
            n = int(torch.randint(1, 13, (), generator=g))
            base = (-3 * torch.rand(n, dtype=torch.float64, generator=g)).tolist()
            x = (6 * torch.rand(n, dtype=torch.float64, generator=g) - 3).tolist()
            if i >= 64:
                x = [FAR[i - 64][side] / n] * n
            others = torch.rand(2, n, dtype=torch.float64, generator=g).tolist()
            revised = [i % 5 != 0 and (i + t) % 2 == 0 for t in range(n)]
            lp = [a + min(b, 0) for a, b in zip(base, x, strict=True)]  # log-probs are never above 0
            ref = [a - max(b, 0) for a, b in zip(base, x, strict=True)]
            made[side].append(Row(lp, ref, others[0], [-3 * y for y in others[1]], revised))
    winners, losers = (Column(rows, as_given(rows)) for rows in made)
    return winners, losers


def as_given(rows: list[Row]) -> TokenResponses:
    """The rows as an objective gets them."""

    def leaf(name: str) -> Tensor:
        return torch.tensor([v for row in rows for v in getattr(row, name)], dtype=torch.float64, requires_grad=True)

    return TokenResponses(
        leaf("lp"), leaf("ref"),
        torch.tensor([i for i, row in enumerate(rows) for _ in row.lp]),
        torch.tensor([t for row in rows for t in range(len(row.lp))]),
        torch.tensor([len(row.lp) for row in rows]),
        revised=torch.tensor([v for row in rows for v in row.revised]),
        kl_ref_policy=leaf("kl"), log_sum_squares=leaf("lss"),
    )  # fmt: skip


def gradients(result: Tensor, column: Column) -> list[Tensor]:
    """d (sum of losses) / d each of its leaves; zeros where there is none."""
    leaves = column.leaves()
    found = torch.autograd.grad(result.sum(), leaves, retain_graph=True, allow_unused=True)
    return [torch.zeros_like(leaf) if g is None else g for g, leaf in zip(found, leaves, strict=True)]
