"""What an objective is computed from, for some of a step's examples: log-probs, lengths, labels, ratings."""

# n examples, K responses of each

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from data.rows import Example
from losses import Responses


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
    scores: Tensor | None = None
    """[n, K] float64; None where a row has none. The same of what follows."""
    own_scores: Tensor | None = None
    """[n] of the model's own answers."""
    probs: Tensor | None = None
    """[n, 2] win rates."""
    values: Tensor | None = None
    """[n] what the policy scores on each prompt."""
    weights: Tensor | None = None
    """[n] how much each example counts; 1 where its row does not say."""

    @staticmethod
    def of(
        examples: Sequence[Example],
        logps: Tensor,
        ref_logps: Tensor | None,
        *,
        mean_lengths: tuple[float, ...] | None = None,
    ) -> "LossInputs":
        """The columns of examples that have equally many responses. mean_lengths: the step's; theirs where None."""
        lengths = torch.tensor([[len(r) for r in e.responses] for e in examples], dtype=torch.int64)
        lengths = lengths.reshape(len(examples), logps.shape[1])
        labels = [e.label for e in examples if e.label is not None]
        ratings = [e.ratings for e in examples]
        weights = [1.0 if r.weight is None else r.weight for r in ratings]
        probs = [r.probs or (1.0, 0.0) for r in ratings]  # SPPO's hard form: the winner always wins
        return LossInputs(
            logps,
            ref_logps,
            lengths,
            torch.tensor(labels, dtype=torch.bool) if len(labels) == len(examples) > 0 else None,
            tuple(lengths.double().mean(dim=0).tolist()) if mean_lengths is None else mean_lengths,
            _tensor([r.scores for r in ratings]),
            _tensor([r.own for r in ratings]),
            _tensor(probs if any(r.probs for r in ratings) else []),
            _tensor([r.value for r in ratings]),
            _tensor(weights if any(r.weight is not None for r in ratings) else []),
        )

    def column(self, k: int) -> Responses:
        """The k-th response of every example."""
        ref_logps = None if self.ref_logps is None else self.ref_logps[:, k]
        scores = None  # of a mismatched response too
        if self.scores is not None and k < self.scores.shape[1]:
            scores = self.scores[:, k]
        return Responses(self.logps[:, k], ref_logps, self.lengths[:, k], scores)

    def ranked(self) -> Responses:
        """All responses, [n, K]."""
        return Responses(self.logps, self.ref_logps, self.lengths, self.scores)

    def on(self, device: torch.device) -> "LossInputs":
        """The same columns on a device."""
        return replace(self, **{name: x.to(device) for name, x in vars(self).items() if isinstance(x, Tensor)})

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
        of_row = {name: getattr(self, name) for name in ("own_scores", "values", "weights")}
        of_response = {name: getattr(self, name) for name in ("logps", "ref_logps", "lengths", "scores")}
        changed = {name: x.repeat_interleave(2) for name, x in of_row.items() if x is not None}
        changed |= {name: x.reshape(-1, 1) for name, x in of_response.items() if x is not None}
        labels = torch.tensor([True, False], device=self.logps.device).repeat(len(self.logps))
        return replace(self, labels=labels, probs=None, mean_lengths=(sum(self.mean_lengths) / 2,), **changed)

    def _take(self, columns: list[int]) -> "LossInputs":
        names = ("logps", "ref_logps", "lengths", "scores")
        found = {name: getattr(self, name)[:, columns] for name in names if getattr(self, name) is not None}
        return replace(self, mean_lengths=tuple(self.mean_lengths[k] for k in columns), **found)


def _tensor(values: Sequence[float | tuple[float, ...] | None]) -> Tensor | None:
    """float64; None where a row has none, or there is no row."""
    return torch.tensor(values, dtype=torch.float64) if values and None not in values else None
