"""A number of steps that may be a share of all of them."""

import math
from typing import Any

from system import InputError
from system.flags import flag_of


def check_steps(subject: Any, name: str) -> None:
    """Raises InputError where a named field is neither a whole number of steps nor a share of them below 1."""
    value = getattr(subject, name)
    if value is not None and not value > 0:
        raise InputError(f"--{flag_of(type(subject), name)}: {value} has to be above 0")
    if value is not None and value > 1 and value != int(value):
        raise InputError(f"--{flag_of(type(subject), name)}: {value} is neither a whole number nor a share below 1")


def as_steps(every: float | None, n_steps: int) -> int | None:
    """So many steps, or a share of them, rounded up as transformers does."""
    return None if every is None else math.ceil(every * n_steps) if every < 1 else int(every)
