"""The programs that a user names: whether they are there, and which of their files are the user's own."""

import importlib.util
import itertools
import re
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


INTERPRETER = re.compile(r"(env|python|bash|sh|perl|node)[\d.]*")


def files_of(command: str | None) -> list[Path]:
    """The program of a command where it is the user's own: ./judge, the script behind an interpreter, the file of the
    module behind -m; none for what is installed. Files behind its own --flags may be what it writes, and do not count.
    """
    words = shlex.split(command) if command else []
    for word, following in itertools.zip_longest(words, words[1:], fillvalue=""):
        if word == "-m":
            return _module(following)
        if word.startswith("--"):
            break
        if not INTERPRETER.fullmatch(Path(word).name) and Path(word).is_file():
            return [Path(word)]
    return []


def _module(name: str) -> list[Path]:
    try:
        found = importlib.util.find_spec(name)
    except (ImportError, ValueError):
        return []
    origin = found.origin if found else None
    if origin is None or "site-packages" in origin or origin.startswith(sys.base_prefix):
        return []
    return [Path(origin)] if Path(origin).is_file() else []
