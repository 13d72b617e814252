"""What several subjects check of their fields; each sentence names the flag."""

import math
from typing import Any

from system import InputError
from system.flags import flag_of


def check_above_zero(subject: Any, *names: str) -> None:
    """Raises InputError where a named field is below 1."""
    for name in names:
        value = getattr(subject, name)
        if value is not None and value < 1:
            raise InputError(f"--{flag_of(type(subject), name)}: {value} is not above 0")


def check_not_negative(subject: Any, *names: str) -> None:
    """Raises InputError where a named field is below 0."""
    for name in names:
        value = getattr(subject, name)
        if value is not None and value < 0:
            raise InputError(f"--{flag_of(type(subject), name)}: {value} cannot be negative")


def check_steps(subject: Any, name: str) -> None:
    """Raises InputError where a named field is neither a whole number of steps nor a share of them below 1."""
    value = getattr(subject, name)
    if value is not None and not value > 0:
        raise InputError(f"--{flag_of(type(subject), name)}: {value} is not above 0")
    if value is not None and value > 1 and value != int(value):
        raise InputError(f"--{flag_of(type(subject), name)}: {value} is neither a whole number nor a share below 1")


def as_steps(every: float | None, n_steps: int) -> int | None:
    """So many steps, or a share of them, rounded up as transformers does."""
    return None if every is None else math.ceil(every * n_steps) if every < 1 else int(every)
