"""The programs that a user names: whether they are there, and which of their files are the user's own."""

import functools
import importlib.util
import itertools
import re
import shlex
import shutil
import sys
import sysconfig
from collections.abc import Callable, Mapping
from importlib.machinery import ModuleSpec
from pathlib import Path
from typing import Any

from eval import alpacaeval_run, mixeval_run
from system import InputError, cli


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
    if command[:3] == [sys.executable, "-m", "eval"]:
        _check_benchmark(score)
    return command


@functools.cache
def _check_benchmark(score: str) -> None:
    """Looks at the flags and files of a benchmark of this project. Raises InputError for what it could not use."""
    words = shlex.split(score.format(run=".", python="python"))[3:]  # any folder that is there
    name = "".join(words[:1])
    if name not in BENCHMARKS:
        return
    config, read_data = BENCHMARKS[name]
    try:
        read_data(cli.parse(config, words[1:], command=f"python -m eval {name}", example=score))
    except InputError as fault:
        raise InputError(f"--score: {score}: {fault}") from None


BENCHMARKS: Mapping[str, tuple[type, Callable[[Any], object]]] = {
    "mixeval": (mixeval_run.MixEvalConfig, mixeval_run.read_data),
    "alpacaeval": (alpacaeval_run.AlpacaEvalConfig, alpacaeval_run.read_data),
}
"""The configuration of each, and what reads its files."""


def is_module(name: str) -> bool:
    """Whether this interpreter finds a module from where it is."""
    return _found(name) is not None


def _found(name: str) -> ModuleSpec | None:
    try:
        return importlib.util.find_spec(name)
    except (ImportError, ValueError):
        return None


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
        path = Path(word)
        if path.is_file() and not INTERPRETER.fullmatch(path.name) and not _is_installed(path):
            return [path]
    return []


def _module(name: str) -> list[Path]:
    found = _found(name)
    if found is not None and found.submodule_search_locations is not None:
        found = _found(f"{name}.__main__")
    path = Path(found.origin) if found and found.origin else None
    return [path] if path and path.is_file() and not _is_installed(path) else []


def _is_installed(path: Path) -> bool:
    """Whether a file came with Python or a package, or is a program of this environment or on PATH."""
    places = [Path(sysconfig.get_path(name)) for name in ("stdlib", "purelib", "platlib", "scripts")]
    on_path = shutil.which(path.name)
    return any(path.is_relative_to(place) for place in places) or (on_path is not None and Path(on_path) == path)
