"""How the log-probs of a step reach an objective, and its gradient goes back.

An additive objective is called per micro-batch. One that takes a statistic of the step (`whole_step`) is called once
with the columns of the whole step over all ranks; each micro-batch then goes back with its slice of the gradient.
Either way the loss of a step is the mean over its examples over all ranks: how it was split changes its speed only.
"""

# n examples, K responses of each

import difflib
import math
import types
import typing
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

import losses
from data import InputError
from losses import Responses, Result


@dataclass(frozen=True)
class Columns:
    """What an objective is computed from: one row per example, one column per response."""

    logps: Tensor
    """[n, K] nats, float64."""
    ref_logps: Tensor | None
    """[n, K] nats, float64, without gradient; None where there is no reference."""
    lengths: Tensor
    """[n, K] tokens, int64."""
    labels: Tensor | None
    """[n] bool, of unpaired examples."""
    mean_length: float
    """Tokens per response over the whole step."""

    def column(self, k: int) -> Responses:
        """The k-th response of every example."""
        ref_logps = None if self.ref_logps is None else self.ref_logps[:, k]
        return Responses(self.logps[:, k], ref_logps, self.lengths[:, k])

    def on(self, device: torch.device) -> "Columns":
        """The same columns on a device."""
        moved = {k: v.to(device) for k, v in vars(self).items() if isinstance(v, Tensor)}
        return replace(self, **moved)


class Objective:
    """A loss with its hyperparameters."""

    def __init__(self, name: str, beta: float | None = None, hyperparameters: dict[str, str] | None = None) -> None:
        """hyperparameters: "NAME.argument" -> text, converted by the argument's annotation. Raises InputError."""
        try:
            self.loss = losses.get(name)
        except losses.LossError as fault:
            raise InputError(f"--loss: {fault}") from None
        self.arguments: dict[str, Any] = dict(self.loss.defaults)
        if beta is not None:
            if "beta" not in self.arguments:
                raise InputError(f"--beta: {self.loss.name} has no beta; leave it out")
            self.arguments["beta"] = beta
        for key, text in (hyperparameters or {}).items():
            owner, _, argument = key.partition(".")
            if owner != self.loss.name or argument not in self.arguments:
                known = [f"{self.loss.name}.{a}" for a in self.arguments]
                near = [f"perhaps --{n}" for n in difflib.get_close_matches(key, known, n=1, cutoff=0)]
                raise InputError(
                    f"--{key}: no such hyperparameter of this run's objective; {(near or ['it has none'])[0]}"
                )
            self.arguments[argument] = _convert(text, self.loss.types[argument], f"--{key}")
        self.needs_mismatched = "mismatched" in self.loss.needs and self.arguments.get("kl") is None
        served = {"lengths"} | ({"mismatched"} if "mismatched" in self.loss.needs else set())
        if lacking := self.loss.needs - served:
            raise InputError(
                f"--loss: {self.loss.name} needs {', '.join(sorted(lacking))}, which the trainer cannot supply"
            )
        if lacking := self.loss.given - {"mean_length", "mismatched"}:
            raise InputError(
                f"--loss: {self.loss.name} takes {', '.join(sorted(lacking))}, which the trainer cannot supply"
            )
        if self.loss.state or self.loss.data == "ranked":
            raise InputError(
                f"--loss: {self.loss.name} carries a state or ranks responses, which the trainer cannot serve"
            )

    @property
    def whole_step(self) -> bool:
        """Whether it must see the whole step over all ranks at once."""
        return self.loss.whole_step

    @property
    def n_branches(self) -> int:
        """Responses per example in its forests."""
        return 2 if self.loss.data == "pairs" or self.needs_mismatched else 1

    def __call__(self, columns: Columns) -> Result:
        """The objective's result on these columns; losses [n]."""
        given: dict[str, Any] = {"mean_length": columns.mean_length} if "mean_length" in self.loss.given else {}
        if self.needs_mismatched and columns.logps.shape[1] == 2:
            given["mismatched"] = columns.column(1)
        elif self.needs_mismatched:  # one prompt in the whole step: nothing to mismatch, and so no estimate
            given["kl"] = 0.0
        if self.loss.data == "pairs":
            positional = [columns.column(0), columns.column(1)]
        else:
            positional = [columns.column(0), *([columns.labels] if self.loss.data == "unpaired" else [])]
        return self.loss(*positional, **(self.arguments | given))


def gradient(objective: Objective, columns: Columns) -> tuple[Result, Tensor]:
    """The result on a whole step's columns, and d (mean loss) / d logps [n, K]."""
    leaf = columns.logps.detach().requires_grad_()
    result = objective(replace(columns, logps=leaf))
    (result.losses.sum() / len(leaf)).backward()
    slopes = torch.zeros_like(leaf) if leaf.grad is None else leaf.grad
    return result._replace(losses=result.losses.detach()), slopes


def describe_all() -> str:
    """The objectives and their hyperparameters, for --help."""
    lines = ["objectives (--loss), their hyperparameters (--NAME.argument) and defaults:"]
    for name in losses.names():
        loss = losses.get(name)
        arguments = ", ".join(f"{k}={v}" for k, v in loss.defaults.items())
        costs = "  [whole step: micro-batches are walked twice]" if loss.whole_step else ""
        lines += [f"  {name}({arguments}){costs}", f"      {loss.summary}"]
    return "\n".join(lines)


def _convert(text: str, annotation: Any, place: str) -> Any:
    """Text as the annotated type of a hyperparameter: bool, int, float, str, a Literal, or one of these or None."""
    options = typing.get_args(annotation)
    if typing.get_origin(annotation) is typing.Literal:
        if text not in options:
            raise InputError(f"{place}: {text!r} is not one of {', '.join(options)}")
        return text
    if typing.get_origin(annotation) in (types.UnionType, typing.Union):
        if text.lower() == "none":
            return None
        annotation = next(o for o in options if o is not type(None))
    readers: dict[Any, Callable[[str], Any]] = {bool: _read_bool, int: int, float: _read_float, str: str}
    try:
        return readers[annotation](text)
    except ValueError:
        raise InputError(f"{place}: {text!r} is not a {annotation.__name__}") from None


def _read_bool(text: str) -> bool:
    return {"true": True, "false": False}[text.lower()] if text.lower() in ("true", "false") else bool(int(text))


def _read_float(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(text)
    return value
