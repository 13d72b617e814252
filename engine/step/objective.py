"""What --loss names: one objective or a weighted mixture, its hyperparameters, and how a step's gradient comes about.

An additive objective is called per micro-batch. One that takes a statistic of the step (`whole_step`) is called once
with the loss inputs of the whole step over all ranks; each micro-batch then goes back with its slice of the gradient.
Either way the loss of a step is the mean over its examples over all ranks: how it was split changes its speed only.
"""

# n examples, K responses of each

import difflib
import functools
import math
import types
import typing
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

import losses
from engine.model import DIVERGENCES, STATISTICS
from engine.step.loss_inputs import REFERENCE_VALUES, LossInputs
from losses import Loss, LossError, Responses, Result, TokenResponses
from system import InputError


@dataclass(frozen=True)
class Term:
    """One objective of a mixture."""

    loss: Loss
    weight: float
    arguments: dict[str, Any]
    """Its hyperparameters."""


class Objective:
    """A mixture of losses, of one as a rule, with their hyperparameters.

    The loss of a step is the sum over terms of weight times the term's own mean: a term that takes two rows of a pair
    (unpaired) means over both. A row's weight multiplies its loss in each term that does not take it itself.
    """

    def __init__(self, text: str, beta: float | None = None, hyperparameters: dict[str, str] | None = None) -> None:
        """text: "NAME" or "NAME:WEIGHT,NAME:WEIGHT". beta: of every term that has one. hyperparameters:
        "NAME.argument" -> text, converted by the argument's annotation. Raises InputError.
        """
        self.terms = [Term(loss, weight, dict(loss.defaults)) for loss, weight in _parse(text)]
        if beta is not None:
            if not any("beta" in term.arguments for term in self.terms):
                raise InputError(f"--beta: {self.name} has no beta; leave it out")
            for term in self.terms:
                term.arguments.update({"beta": beta} if "beta" in term.arguments else {})
        for key, value in (hyperparameters or {}).items():
            self._set(key, value)
        forms = {(t.loss.data, t.loss.side if t.loss.data == "single" else "") for t in self.terms}
        kinds = {form for form, _ in forms}
        self.form = kinds.pop() if len(forms) == 1 else "ranked" if "ranked" in kinds else "pairs"
        """The form of the rows that are trained on: pairs where the terms' own forms differ."""
        found = (t for t in self.terms if "mismatched" in t.loss.needs)
        estimating = [t.loss.name for t in found if t.arguments.get("kl") is None]
        self.needs_mismatched = bool(estimating)
        if estimating and self.form != "unpaired":
            name = estimating[0]
            raise InputError(
                f"--loss: {name} cannot be mixed with an objective on other rows than labelled responses, because it "
                f"needs mismatched sequences; use kto_pair, or fix its KL: --{name}.kl 0"
            )
        self.state: dict[str, float] | None = None
        """What the objectives carry from step to step, under "NAME.what"; None before the first step."""

    @property
    def name(self) -> str:
        """The names of its terms."""
        return ",".join(term.loss.name for term in self.terms)

    @property
    def digests(self) -> dict[str, str]:
        """What decides the run beside its terms' names: what is in the files outside the packages that they are from,
        and a formula that replaced another one under its name.
        """
        files = {f"the file of {t.loss.name}": t.loss.digest[:16] for t in self.terms if t.loss.digest}
        return files | {f"the formula of {t.loss.name}": t.loss.formula for t in self.terms if t.loss.formula}

    @property
    def has_reference(self) -> bool:
        """Whether any term needs one."""
        return any(term.loss.reference for term in self.terms)

    @property
    def token_values(self) -> tuple[str, ...]:
        """What a pass has to give of single tokens, by the names of TokenResponses, sorted; none where sums do."""
        terms = [t.loss for t in self.terms if t.loss.level == "token"]
        computed = {name for loss in terms for name in loss.needs & (frozenset(STATISTICS) | {"ref_entropy"})}
        computed |= {"logps"} if terms else set()
        return tuple(sorted(computed | {"ref_logps" for loss in terms if loss.reference}))

    @property
    def needs_reference_model(self) -> bool:
        """Whether the reference has to compute in every step: what it gives is of the step, or more than a table can
        hold.
        """
        return self.needs_mismatched or self.needs_divergence

    @property
    def needs_divergence(self) -> bool:
        """Whether it takes a divergence of the policy's and the reference's whole distributions."""
        return not self.needs.isdisjoint(DIVERGENCES)

    @property
    def n_distributions(self) -> int:
        """Models of whose whole next-token distributions a step takes something: the policy, or both."""
        return 2 if self.needs_divergence else int(not self.needs.isdisjoint(STATISTICS))

    @property
    def whole_step(self) -> bool:
        """Whether it must see the whole step over all ranks at once."""
        return any(term.loss.whole_step for term in self.terms)

    @property
    def side(self) -> typing.Literal["chosen", "rejected"]:
        """Which response of a pair it takes, where its form is "single"."""
        return self.terms[0].loss.side

    @property
    def arguments(self) -> dict[str, Any]:
        """Every hyperparameter, under "NAME.argument"."""
        return {f"{t.loss.name}.{name}": value for t in self.terms for name, value in t.arguments.items()}

    @property
    def settings(self) -> dict[str, Any]:
        """The hyperparameters as flags: "beta" alone where all terms that have one share it."""
        betas = [t.arguments["beta"] for t in self.terms if "beta" in t.arguments]
        if not betas or len(set(betas)) > 1:
            return self.arguments
        return {"beta": betas[0]} | {name: v for name, v in self.arguments.items() if not name.endswith(".beta")}

    @property
    def needs(self) -> frozenset[str]:
        """What any term asks of a row or a step."""
        return frozenset(need for term in self.terms for need in term.loss.needs)

    @property
    def multiplies_by_weights(self) -> bool:
        """Whether rows' weights multiply the loss of any term."""
        return not all(term.loss.weighs_rows for term in self.terms)

    @property
    def fields(self) -> tuple[str, ...]:
        """The numbers of rows that any term asks for by name, sorted."""
        return tuple(sorted({name for term in self.terms for name in term.loss.fields}))

    @property
    def beta(self) -> float:
        """The first term's scale of rewards; 0.1 where it has none."""
        return self.terms[0].arguments.get("beta", 0.1)

    def _set(self, key: str, text: str) -> None:
        owner, _, argument = key.partition(".")
        argument = argument.replace("-", "_")
        owner = losses.get(owner).name if owner in losses.aliases() else owner
        for term in self.terms:
            if owner == term.loss.name and argument in term.arguments:
                value = _convert(text, term.loss.types[argument], f"--{key}")
                if argument == "beta" and not value > 0:
                    raise InputError(f"--{key}: {text} has to be above 0")
                term.arguments[argument] = value
                return
        near = [f"perhaps --{n}" for n in difflib.get_close_matches(key, list(self.arguments), n=1, cutoff=0)]
        raise InputError(f"--{key}: this run's objective has no such hyperparameter; {(near or ['it has none'])[0]}")

    def __call__(self, inputs: LossInputs) -> Result:
        """The result on these inputs: losses [n]; rewards are the first term's."""
        if not len(inputs.logps):  # a rank without work in this pass: its backward pass is of zeros
            none = inputs.logps.sum(dim=1)
            return Result(none, none.detach(), none.detach())
        found = [self.result(term, inputs) for term in self.terms]
        n = len(inputs.logps)
        for term, result in zip(self.terms, found, strict=True):
            check_shape(term.loss, result, n)
        # Two losses of a pair, where a term takes it as unpaired, are its mean.
        parts = [result.losses.view(n, -1).mean(dim=1) for result in found]
        if (weights := inputs.numbers.get("weights")) is not None:
            weighed = zip(self.terms, parts, strict=True)
            parts = [part if term.loss.weighs_rows else weights.to(part.dtype) * part for term, part in weighed]
        total = sum((t.weight * part for t, part in zip(self.terms, parts, strict=True)), torch.zeros_like(parts[0]))
        metrics = dict(found[0].metrics)
        if len(self.terms) > 1:
            names = [t.loss.name for t in self.terms]
            own = zip(names, found, strict=True)
            metrics = {f"{name}/{what}": value for name, result in own for what, value in result.metrics.items()}
            metrics |= {f"loss/{name}": part.detach().mean() for name, part in zip(names, parts, strict=True)}
        state = {
            f"{t.loss.name}.{name}": value
            for t, result in zip(self.terms, found, strict=True)
            for name, value in (result.state or {}).items()
        }
        return Result(total, found[0].chosen_rewards, found[0].rejected_rewards, metrics, state or None)

    def keep(self, result: Result) -> None:
        """A step is done: what it gave back is where the next one goes on from."""
        self.state = result.state

    def result(self, term: Term, inputs: LossInputs) -> Result:
        """What the function of one term gives, as it gives it."""
        loss = term.loss
        own = inputs.as_form(loss.data, loss.side)
        assert own is not None  # the rows were brought into the objective's form
        column = _columns_of(own, loss)
        if loss.data == "pairs":
            positional: list[Any] = [column(0), column(1)]
        elif loss.data == "ranked":
            positional = [own.ranked()]
        else:
            positional = [column(0), *([own.labels] if loss.data == "unpaired" else [])]
        probs = own.numbers.get("probs")
        probs_w, probs_l = (None, None) if probs is None else probs.unbind(dim=1)
        given = {name: own.numbers.get(name) for name in (*loss.injected, *loss.fields)}
        given |= {"probs_w": probs_w, "probs_l": probs_l, "mean_length": own.mean_lengths[0]}
        given |= {"progress": own.progress}
        given |= {"state": self._state_of(loss.name)}
        arguments = term.arguments | {name: given[name] for name in (*(loss.injected - {"mismatched"}), *loss.fields)}
        if "mismatched" in loss.needs and arguments["kl"] is None:
            # One prompt in the whole step: nothing to mismatch, and so no estimate.
            others = own.mismatched
            arguments |= {"kl": 0.0} if others is None else {"mismatched": _columns_of(others, loss)(0)}
        return loss(*positional, **arguments)

    def _state_of(self, name: str) -> dict[str, float] | None:
        state = {key.partition(".")[2]: v for key, v in (self.state or {}).items() if key.partition(".")[0] == name}
        return state or None


def _columns_of(inputs: LossInputs, loss: Loss) -> Callable[[int], Responses | TokenResponses]:
    """What gives the k-th response of every example as an objective takes it."""
    return inputs.column if loss.level == "sequence" else functools.partial(inputs.token_column, names=loss.needs)


def check_shape(loss: Loss, result: Result, n: int) -> None:
    """Raises LossError where the losses are not one for each of n examples (two for a pair that is taken apart)."""
    shape = tuple(result.losses.shape)
    if len(shape) != 1 or shape[0] not in (n, 2 * n if loss.data == "unpaired" else n):
        raise LossError(
            f"{loss.name} gave losses of shape {list(shape)} for {n} examples; give one for each, [n], not their mean"
        )


@dataclass(frozen=True)
class Slopes:
    """d (mean loss) / d of what an objective took of the policy."""

    logps: Tensor
    """[n, K], by the sums."""
    tokens: Mapping[str, Tensor]
    """[N] each, by values of single tokens."""


def gradient(objective: Objective, inputs: LossInputs) -> tuple[Result, Slopes]:
    """The result on a whole step's inputs, and its slopes."""
    logps = inputs.logps.detach().requires_grad_()
    of_policy = [name for name in objective.token_values if name not in REFERENCE_VALUES]
    tokens = {name: inputs.tokens[name].detach().requires_grad_() for name in of_policy}
    result = objective(replace(inputs, logps=logps, tokens={**inputs.tokens, **tokens}))
    (result.losses.sum() / len(logps)).backward()
    slopes = Slopes(_slope(logps), {name: _slope(leaf) for name, leaf in tokens.items()})
    return result._replace(losses=result.losses.detach()), slopes


def _slope(leaf: Tensor) -> Tensor:
    return torch.zeros_like(leaf) if leaf.grad is None else leaf.grad


def _parse(text: str) -> list[tuple[Loss, float]]:
    """The objectives and weights in "NAME" or "NAME:WEIGHT,NAME:WEIGHT". Raises InputError."""
    found: list[tuple[Loss, float]] = []
    for part in text.split(","):
        name, colon, tail = part.strip().rpartition(":")
        weight = _weight(tail) if colon else None
        if weight is None:  # the colon stands in path/to/file.py:name
            name, weight = part.strip(), 1.0
        if not 0 < weight < math.inf:
            raise InputError(f"--loss: the weight {tail} of {name} has to be above 0 and finite")
        try:
            loss = losses.get(name)
        except LossError as fault:
            raise InputError(f"--loss: {fault}") from None
        if any(loss is other for other, _ in found):
            raise InputError(f"--loss: {loss.name} is named twice; name it once, with the sum of the weights")
        found.append((loss, weight))
    return found


def _weight(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None


def describe_all() -> str:
    """The objectives and their hyperparameters, for --help."""
    lines = ["objectives for --loss, with their hyperparameters (--NAME.argument) and defaults; a mixture is written"]
    lines += [
        "NAME:WEIGHT,NAME:WEIGHT. docs/objectives.md explains each and its hyperparameters. Winner and loser are the"
    ]
    lines += ["chosen and the rejected response."]
    for name in losses.names():
        loss = losses.get(name)
        arguments = ", ".join(f"{k}={v}" for k, v in loss.defaults.items())
        costs = (
            "  [needs a statistic of the whole batch: with several micro-batches, each forward pass runs twice]"
            if loss.whole_step
            else ""
        )
        lines += [f"  {name}({arguments}){costs}", f"      {loss.summary}"]
    return "\n".join(lines)


def _convert(text: str, annotation: Any, location: str) -> Any:
    """Text as the annotated type of a hyperparameter: bool, int, float, str, a Literal, or one of these or None."""
    options = typing.get_args(annotation)
    if typing.get_origin(annotation) is typing.Literal:
        if text not in options:
            raise InputError(f"{location}: {text!r} is not one of {', '.join(options)}")
        return text
    if typing.get_origin(annotation) in (types.UnionType, typing.Union):
        if text.lower() == "none":
            return None
        annotation = next(o for o in options if o is not type(None))
    readers: dict[Any, Callable[[str], Any]] = {bool: _read_bool, int: int, float: _read_float, str: str}
    try:
        return readers[annotation](text)
    except ValueError:
        raise InputError(f"{location}: {text!r} is not a {annotation.__name__}") from None


def _read_bool(text: str) -> bool:
    return {"true": True, "false": False}[text.lower()] if text.lower() in ("true", "false") else bool(int(text))


def _read_float(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(text)
    return value
