"""What a launcher of several processes (torchrun, srun) tells each of them, by variables of the environment."""

import os
from collections.abc import Mapping

from system.errors import InputError

NUMBERS = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")
NEEDED = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
VARIABLES = (*NUMBERS, "MASTER_ADDR", "MASTER_PORT")
"""Those by which a process finds its place among others."""
OF_TORCHRUN = ("TORCHELASTIC_RESTART_COUNT", "TORCHELASTIC_RUN_ID")
"""What torchrun says beside them: how often it has started this process anew, and that it keeps an eye on it."""


def check() -> None:
    """Raises InputError where the variables are not those of one process, or of one of several."""
    given = {name: os.environ[name] for name in VARIABLES if name in os.environ}
    numbers = {name: _number(given[name]) for name in NUMBERS if name in given}
    if None not in numbers.values():
        rank, size = (numbers.get(name, default) for name, default in (("RANK", 0), ("WORLD_SIZE", 1)))
        local = numbers.get("LOCAL_RANK", 0) or 0
        if (rank, size, local) == (0, 1, 0):
            return
        is_whole = all(given.get(name) for name in NEEDED) and _number(given["MASTER_PORT"]) is not None
        if is_whole and (rank or 0) < (size or 0):
            return
    missing = [name for name in NEEDED if name not in given]
    lacking = f" and {', '.join(missing)} {'is' if len(missing) == 1 else 'are'} not set" if missing else ""
    raise InputError(
        f"{shown(given)}{lacking}: these variables do not describe one of several processes; start the command with "
        f"torchrun, or, if they are left over from an earlier one, unset {' '.join(given)}"
    )


def shown(given: Mapping[str, str] | None = None) -> str:
    """The variables with their values, for messages. given: those of the environment where it is None."""
    given = {name: os.environ[name] for name in VARIABLES if name in os.environ} if given is None else given
    return ", ".join(f"{name}={value}" if value else f"{name} is empty" for name, value in given.items())


def forget() -> None:
    """Takes them out of the environment, for a command that is one process whatever they say, and its children."""
    for name in (*VARIABLES, *OF_TORCHRUN):
        os.environ.pop(name, None)


def n_restarts() -> int:
    """How often torchrun has started this process anew; 0 where it has not started it, whatever is left over."""
    return _number(os.environ.get("TORCHELASTIC_RESTART_COUNT", "")) or 0 if "RANK" in os.environ else 0


def _number(text: str) -> int | None:
    return int(text) if text.isascii() and text.isdecimal() and len(text) < 10 else None


class Meeting:
    """Whether the processes of a run have met: from then on rank 0 is known to be there, and speaks for all."""

    is_over = False


meeting = Meeting()
"""That of this process."""
