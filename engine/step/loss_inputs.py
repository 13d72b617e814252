"""What an objective is computed from, for some of a step's examples: log-probs, lengths, labels, numbers of rows."""

# n examples, K responses of each, N predicted tokens of all of these together

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from data.rows import Example
from losses import Responses, TokenResponses

UNSAID: dict[str, float | tuple[float, ...]] = {
    "weights": 1.0,
    "probs": (1.0, 0.0),  # SPPO's hard form: the winner always wins
}
"""What a row that is silent says, where others of its batch speak."""


REFERENCE_VALUES = ("ref_logps", "ref_entropy")
"""Those values of tokens that are the reference's alone, which a table can keep."""


@dataclass(frozen=True)
class ReferenceValues:
    """What the reference gives for a batch's examples."""

    logps: Tensor
    """[n, K] nats, float64."""
    tokens: Mapping[str, Tensor] = field(default_factory=dict)
    """[N] float64 each, by the names of REFERENCE_VALUES, in LossInputs.tokens' order; empty where sums are enough."""


@dataclass(frozen=True)
class LossInputs:
    """One row per example, one column per response."""

    logps: Tensor
    """[n, K] nats, float64."""
    ref_logps: Tensor | None
    """[n, K] nats, float64, without gradient; None where there is no reference."""
    lengths: Tensor
    """[n, K] tokens that are predicted, int64."""
    labels: Tensor | None
    """[n] bool, of unpaired examples."""
    mean_lengths: tuple[float, ...]
    """Predicted tokens per response over the whole step, of each column."""
    numbers: Mapping[str, Tensor] = field(default_factory=dict)
    """What rows say in numbers, float64, by the names of `Ratings.numbers`: "scores" [n, K], "probs" [n, 2], all others
    [n]; none under a name that a row does not have.
    """
    tokens: Mapping[str, Tensor] = field(default_factory=dict)
    """What is known of single tokens that are predicted, [N] each, by the names of TokenResponses: example by example,
    and there response by response. Empty for objectives that take sums.
    """
    progress: float = 0.0
    """The share of the run's steps that are done."""
    mismatched: "LossInputs | None" = None
    """The mismatched sequences of the whole step over all ranks, [m, 1], without gradient; None where it has none."""

    @staticmethod
    def of(
        examples: Sequence[Example],
        logps: Tensor,
        ref_logps: Tensor | None,
        *,
        mean_lengths: tuple[float, ...] | None = None,
        tokens: Mapping[str, Tensor] | None = None,
        progress: float = 0.0,
    ) -> "LossInputs":
        """Of examples that have equally many responses. mean_lengths: the step's; theirs where None. tokens: what was
        computed of single tokens; what the rows say of them is added.
        """
        lengths = torch.tensor([e.lengths for e in examples], dtype=torch.int64)
        lengths = lengths.reshape(len(examples), logps.shape[1])
        labels = [e.label for e in examples if e.label is not None]
        return LossInputs(
            logps,
            ref_logps,
            lengths,
            torch.tensor(labels, dtype=torch.bool) if len(labels) == len(examples) > 0 else None,
            tuple(lengths.double().mean(dim=0).tolist()) if mean_lengths is None else mean_lengths,
            _numbers(examples),
            dict(tokens) | _marks(examples) if tokens else {},
            progress,
        )

    @property
    def reference(self) -> ReferenceValues | None:
        """The reference's side of it, on the CPU; None where there is none."""
        if self.ref_logps is None:
            return None
        tokens = {name: self.tokens[name].cpu() for name in REFERENCE_VALUES if name in self.tokens}
        return ReferenceValues(self.ref_logps.cpu(), tokens)

    def as_reference(self) -> ReferenceValues:
        """The policy's side of it, taken for the reference's."""
        tokens = {f"ref_{name}": values for name, values in self.tokens.items() if f"ref_{name}" in REFERENCE_VALUES}
        return ReferenceValues(self.logps, tokens)

    def beside(self, reference: ReferenceValues | None) -> "LossInputs":
        """The same with what a reference gives, where there is one."""
        if reference is None:
            return self
        return replace(self, ref_logps=reference.logps, tokens={**self.tokens, **reference.tokens})

    def without_reference(self) -> "LossInputs":
        """The same without what a reference gives."""
        tokens = {name: x for name, x in self.tokens.items() if name not in REFERENCE_VALUES}
        return replace(self, ref_logps=None, tokens=tokens)

    def with_mismatched(self, found: "LossInputs | None") -> "LossInputs":
        """The same with the mismatched sequences of its step, where there are some."""
        return self if found is None else replace(self, mismatched=found.on(self.logps.device))

    def column(self, k: int) -> Responses:
        """The k-th response of every example."""
        ref_logps = None if self.ref_logps is None else self.ref_logps[:, k]
        scores = self.numbers.get("scores")
        return Responses(self.logps[:, k], ref_logps, self.lengths[:, k], None if scores is None else scores[:, k])

    def token_column(self, k: int, names: Collection[str]) -> TokenResponses:
        """The tokens of the k-th response of every example. names: what is asked for of them beside log-probs."""
        sequence, position = _indices(self.lengths)
        mine = sequence % self.lengths.shape[1] == k
        column = {name: x[mine] for name, x in self.tokens.items() if name in (*names, "logps", "ref_logps")}
        sums = self.column(k)
        return TokenResponses(
            ref_logps=column.pop("ref_logps", None),
            sequence=sequence[mine] // self.lengths.shape[1],
            position=position[mine],
            lengths=self.lengths[:, k],
            scores=sums.scores,
            **column,
        )

    def ranked(self) -> Responses:
        """All responses, [n, K]."""
        return Responses(self.logps, self.ref_logps, self.lengths, self.numbers.get("scores"))

    def on(self, device: torch.device) -> "LossInputs":
        """The same on a device."""
        moved = {name: x.to(device) for name, x in vars(self).items() if isinstance(x, Tensor)}
        numbers, tokens = ({name: x.to(device) for name, x in xs.items()} for xs in (self.numbers, self.tokens))
        return replace(self, numbers=numbers, tokens=tokens, **moved)

    def detached(self) -> "LossInputs":
        """The same without gradient."""
        tokens = {name: x.detach() for name, x in self.tokens.items()}
        return replace(self, logps=self.logps.detach(), tokens=tokens)

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
        column_of = _indices(self.lengths)[0] % self.lengths.shape[1] if self.tokens else None
        stays = None if column_of is None else torch.isin(column_of, torch.tensor(columns, device=column_of.device))
        tokens = {name: x[stays] for name, x in self.tokens.items()}
        return replace(self, mean_lengths=mean_lengths, numbers=numbers, tokens=tokens, **responses)

    def _of_responses(self) -> dict[str, Tensor]:
        found = {"logps": self.logps, "ref_logps": self.ref_logps, "lengths": self.lengths}
        return {name: x for name, x in found.items() if x is not None}


def _indices(lengths: Tensor) -> tuple[Tensor, Tensor]:
    """Of every token its response's number, 0 to n K - 1, and its place there: [N] int64, for lengths [n, K]."""
    flat = lengths.flatten()
    numbers = torch.arange(len(flat), device=flat.device).repeat_interleave(flat)
    return numbers, torch.arange(len(numbers), device=flat.device) - (flat.cumsum(0) - flat)[numbers]


def sums_of(values: Tensor, lengths: Tensor) -> Tensor:
    """Sums [n, K] over responses of these lengths [n, K], of values [N] of their tokens."""
    sums = torch.zeros(lengths.numel(), dtype=values.dtype, device=values.device)
    return sums.index_add(0, _indices(lengths)[0], values).view(lengths.shape)


def _marks(examples: Sequence[Example]) -> dict[str, Tensor]:
    """What rows say of their predicted tokens, [N]: none under a name that a row does not have."""
    made = {}
    for name in ("revised", "token_weights"):
        rows = [getattr(e, name) for e in examples]
        if rows and None not in rows:
            values = [e.of_predicted(row) for e, row in zip(examples, rows, strict=True)]
            made[name] = torch.from_numpy(np.concatenate([x for row in values for x in row]))
    return made


def _numbers(examples: Sequence[Example]) -> dict[str, Tensor]:
    """float64; without what a row neither says nor has said for it (UNSAID)."""
    rows = [e.ratings.numbers() for e in examples]
    said = {name for row in rows for name in row}
    columns = {name: [row.get(name, UNSAID.get(name)) for row in rows] for name in said}
    return {name: torch.tensor(column, dtype=torch.float64) for name, column in columns.items() if None not in column}
