"""What an objective is computed from, for some of a step's examples: log-probs, lengths, labels, numbers of rows."""

# n examples, K responses of each

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

import torch
from torch import Tensor

from data.rows import Example
from losses import Responses

UNSAID: dict[str, float | tuple[float, ...]] = {
    "weights": 1.0,
    "probs": (1.0, 0.0),  # SPPO's hard form: the winner always wins
}
"""What a row that is silent says, where others of its batch speak."""


@dataclass(frozen=True)
class LossInputs:
    """One row per example, one column per response."""

    logps: Tensor
    """[n, K] nats, float64."""
    ref_logps: Tensor | None
    """[n, K] nats, float64, without gradient; None where there is no reference."""
    lengths: Tensor
    """[n, K] tokens, int64."""
    labels: Tensor | None
    """[n] bool, of unpaired examples."""
    mean_lengths: tuple[float, ...]
    """Tokens per response over the whole step, of each column."""
    numbers: Mapping[str, Tensor] = field(default_factory=dict)
    """What rows say in numbers, float64, by the names of `Ratings.numbers`: "scores" [n, K], "probs" [n, 2], all others
    [n]; none under a name that a row does not have.
    """

    @staticmethod
    def of(
        examples: Sequence[Example],
        logps: Tensor,
        ref_logps: Tensor | None,
        *,
        mean_lengths: tuple[float, ...] | None = None,
    ) -> "LossInputs":
        """Of examples that have equally many responses. mean_lengths: the step's; theirs where None."""
        lengths = torch.tensor([[len(r) for r in e.responses] for e in examples], dtype=torch.int64)
        lengths = lengths.reshape(len(examples), logps.shape[1])
        labels = [e.label for e in examples if e.label is not None]
        return LossInputs(
            logps,
            ref_logps,
            lengths,
            torch.tensor(labels, dtype=torch.bool) if len(labels) == len(examples) > 0 else None,
            tuple(lengths.double().mean(dim=0).tolist()) if mean_lengths is None else mean_lengths,
            _numbers(examples),
        )

    def column(self, k: int) -> Responses:
        """The k-th response of every example."""
        ref_logps = None if self.ref_logps is None else self.ref_logps[:, k]
        scores = self.numbers.get("scores")
        if scores is not None:
            scores = scores[:, k] if k < scores.shape[1] else None  # a mismatched response has none
        return Responses(self.logps[:, k], ref_logps, self.lengths[:, k], scores)

    def ranked(self) -> Responses:
        """All responses, [n, K]."""
        return Responses(self.logps, self.ref_logps, self.lengths, self.numbers.get("scores"))

    def on(self, device: torch.device) -> "LossInputs":
        """The same on a device."""
        moved = {name: x.to(device) for name, x in vars(self).items() if isinstance(x, Tensor)}
        return replace(self, numbers={name: x.to(device) for name, x in self.numbers.items()}, **moved)

    def as_form(self, form: str, side: Literal["chosen", "rejected"] = "chosen") -> "LossInputs | None":
        """The same sequences as an objective of another form takes them; None where they cannot be.

        Of several responses the first is the chosen one and the last the rejected one.
        """
        k = self.logps.shape[1]
        if self.labels is not None or k == 1:
            return self if form == ("single" if self.labels is None else "unpaired") else None
        if form == "single":
            return self._take([0 if side == "chosen" else k - 1])
        ends = self if form == "ranked" or k == 2 else self._take([0, k - 1])
        return ends._apart() if form == "unpaired" else ends

    def _apart(self) -> "LossInputs":
        """Two labelled rows of each pair, chosen and rejected in turn."""
        responses = {name: x.reshape(-1, 1) for name, x in self._of_responses().items()}
        numbers = {
            name: x.reshape(-1, 1) if name == "scores" else x.repeat_interleave(2)
            for name, x in self.numbers.items()
            if name != "probs"  # which are of a pair
        }
        labels = torch.tensor([True, False], device=self.logps.device).repeat(len(self.logps))
        mean_lengths = (sum(self.mean_lengths) / 2,)
        return replace(self, labels=labels, mean_lengths=mean_lengths, numbers=numbers, **responses)

    def _take(self, columns: list[int]) -> "LossInputs":
        responses = {name: x[:, columns] for name, x in self._of_responses().items()}
        numbers = {name: x[:, columns] if name == "scores" else x for name, x in self.numbers.items()}
        mean_lengths = tuple(self.mean_lengths[k] for k in columns)
        return replace(self, mean_lengths=mean_lengths, numbers=numbers, **responses)

    def _of_responses(self) -> dict[str, Tensor]:
        found = {"logps": self.logps, "ref_logps": self.ref_logps, "lengths": self.lengths}
        return {name: x for name, x in found.items() if x is not None}


def _numbers(examples: Sequence[Example]) -> dict[str, Tensor]:
    """float64; without what a row neither says nor has said for it (UNSAID)."""
    rows = [e.ratings.numbers() for e in examples]
    said = {name for row in rows for name in row}
    columns = {name: [row.get(name, UNSAID.get(name)) for row in rows] for name in said}
    return {name: torch.tensor(column, dtype=torch.float64) for name, column in columns.items() if None not in column}
