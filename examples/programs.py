"""The programs that a user names: whether they are there, and which of their files are the user's own."""

import importlib.util
import shlex
import shutil
import sys
from pathlib import Path

from system import InputError


def scorer(score: str, where: Path) -> list[str]:
    """The command that scores a run. Raises InputError where there is no such program, or the run is not in it."""
    try:
        command = shlex.split(score.format(run=shlex.quote(str(where)), python=shlex.quote(sys.executable)))
    except (ValueError, LookupError) as fault:
        raise InputError(
            f"--score: cannot be read ({fault}); only {{run}} and {{python}} can stand in braces"
        ) from None
    if "{run}" not in score or not command or shutil.which(command[0]) is None:
        raise InputError(f"--score: {score}: needs an installed program, and {{run}} where it takes the run's folder")
    if script := next((word for word in command[1:2] if word.endswith(".py") and not Path(word).is_file()), None):
        raise InputError(f"--score: {score}: there is no file {script}")
    if command[:2] == [sys.executable, "-m"] and not is_module("".join(command[2:3])):
        raise InputError(f"--score: {score}: there is no module {''.join(command[2:3])!r}")
    return command


def is_module(name: str) -> bool:
    """Whether this interpreter finds a module from where it is."""
    try:
        return importlib.util.find_spec(name) is not None
    except (ImportError, ValueError):
        return False


def files_of(command: str | None) -> list[Path]:
    """The program of a command, where it is a file of the user's: ./judge, or the script behind an interpreter. Files
    further on may be what it writes.
    """
    words = shlex.split(command) if command else []
    return [path for word in words[:2] if word != sys.executable and (path := Path(word)).is_file()]
