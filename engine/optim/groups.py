"""Parameters in groups that the optimizer treats alike: another learning rate for the head, no decay of the norms."""

import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from torch import Tensor

from engine.config import OptimizerConfig
from system import InputError

OPTIONS = ("lr", "weight_decay")
"""What a group may have of its own."""
Options = Callable[[str], Mapping[str, float]]
"""A parameter's name -> its options, or {} for those of the run."""


def group(parameters: Iterable[tuple[str, Tensor]], options: Options | None, *, optimizer: str) -> list[dict[str, Any]]:
    """torch's groups: {"params": [...], and the options that they share}, in the order of their first parameters.

    optimizer: "rmsprop", "adamw" or "muon"; the first knows no weight_decay. Raises InputError for an option that is
    not known, or not a number that can be.
    """
    found: dict[tuple[tuple[str, float], ...], list[Tensor]] = {}
    for name, parameter in parameters:
        own = {} if options is None else {key: _check(name, key, x, optimizer) for key, x in options(name).items()}
        found.setdefault(tuple(sorted(own.items())), []).append(parameter)
    return [{"params": params, **dict(own)} for own, params in found.items()]


def divide(
    parameters: Iterable[tuple[str, Tensor]], options: Options | None, config: OptimizerConfig
) -> list[dict[str, Any]]:
    """`group`'s, each with its number from 1 and parted where the run treats its parameters unlike.

    With --weight-decay norms and biases, which have one dimension, are a part without, unless their options name one;
    with Muon its matrices are a part ("is_matrix").
    """
    named = list(parameters)
    names: dict[Tensor, str] = {p: name for name, p in named}
    made = []
    for number, one in enumerate(group(named, options, optimizer=config.name), start=1):
        parts: dict[tuple[bool, bool], list[Tensor]] = {}
        for p in one["params"]:
            decays = p.ndim > 1 or "weight_decay" in one or not config.weight_decay
            matrix = config.name == "muon" and is_matrix(names[p], p)
            parts.setdefault((matrix, decays), []).append(p)
        for (matrix, decays), params in parts.items():
            own = {"params": params, "number": number, "is_matrix": matrix}
            made.append(one | own | ({} if decays else {"weight_decay": 0.0}))
    return made


def is_matrix(name: str, parameter: Tensor) -> bool:
    """Whether Muon steps it: a matrix that is neither embedding nor head, whose rows are words."""
    return parameter.ndim == 2 and not name.startswith(("embed", "head"))


def _check(name: str, key: str, value: float, optimizer: str) -> float:
    if key not in OPTIONS:
        raise InputError(f"parameter_options({name!r}): there is no option {key!r}; the options are lr, weight_decay")
    if not (isinstance(value, (int, float)) and math.isfinite(value) and value >= 0):
        raise InputError(f"parameter_options({name!r}): {key} = {value!r} has to be a number, 0 or above")
    if key == "weight_decay" and value and optimizer == "rmsprop":
        raise InputError(
            f"parameter_options({name!r}): weight_decay = {value:g}, and {optimizer} has none; give it 0, or take "
            "--optimizer adamw"
        )
    return float(value)


def describe(parameters: Iterable[tuple[str, Tensor]], options: Options | None, *, optimizer: str) -> list[str]:
    """Each group in words, for a run's config.yaml and identity: its options, and how many parameters it has."""
    made = []
    for one in group(parameters, options, optimizer=optimizer):
        own = ", ".join(f"{key} {one[key]:g}" for key in OPTIONS if key in one) or "the run's options"
        made.append(f"{own}: {len(one['params'])} parameters, {sum(p.numel() for p in one['params'])} numbers")
    return made


def largest_share(parameters: Iterable[tuple[str, Tensor]], options: Options | None, *, optimizer: str) -> float:
    """Share of all numbers that the largest group has: torch's optimizers step a group at once, Muon its matrices
    one by one.
    """
    named = list(parameters)
    at_once = [(name, p) for name, p in named if optimizer != "muon" or not is_matrix(name, p)]
    sizes = [sum(p.numel() for p in one["params"]) for one in group(at_once, options, optimizer=optimizer)]
    return max(sizes) / sum(p.numel() for _, p in named)
