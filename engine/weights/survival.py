"""How much of a change is left of it where weights are rounded, over all weights of a model."""

import math
from typing import NamedTuple

import torch
from torch import Tensor


class Survival(NamedTuple):
    """What a written folder keeps of the change from a base, over all weights."""

    share: float
    """Of the change: its projection on what was there before rounding, 1 where all of it is kept."""
    noise: float
    """Length of what rounding added, as a multiple of the change's length."""
    moved_before: float
    """Share of the weights that differed from the base before rounding."""
    moved: float
    """Share of them that do in the written folder."""

    def __str__(self) -> str:
        return (
            f"{self.share:.1%} of the change from the base survives, and rounding adds noise {self.noise:.2g} times as "
            f"long as the change; {self.moved:.2%} of the weights differ from the base, {self.moved_before:.2%} did "
            "before"
        )


class Tally:
    """The sums of a Survival, some weights at a time."""

    def __init__(self) -> None:
        self._sums = torch.zeros(5, dtype=torch.float64)
        self._n = 0

    def add(self, change: Tensor, kept: Tensor) -> None:
        """Weights [...] float64: how far they are from the base before rounding, and in what is written."""
        found = (change * change, kept * change, (kept - change).square(), change != 0, kept != 0)
        self._sums += torch.stack([part.sum(dtype=torch.float64).cpu() for part in found])
        self._n += change.numel()

    def add_unchanged(self, n: int) -> None:
        """Weights that are the base's, and stay so."""
        self._n += n

    def result(self) -> Survival | None:
        """What survived; None where nothing differs from the base."""
        length, projection, added, n_before, n_after = self._sums.tolist()
        if not length:
            return None
        return Survival(projection / length, math.sqrt(added / length), n_before / self._n, n_after / self._n)
