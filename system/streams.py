"""The standard streams of a command: closed ones, full ones, and a terminal that has gone."""

import contextlib
import os
import sys
from pathlib import Path
from typing import Any, TextIO

from system.files import naming

STDOUT = "the standard output"
"""What messages call it, as they call a file by its path."""


def prepare() -> None:
    """Lets errors of the standard output name it, and what is said on stderr be lost where it cannot be heard."""
    _open_closed()
    sys.stdout = _Named(sys.stdout, STDOUT)  # pyright: ignore[reportAttributeAccessIssue]
    sys.stderr = _Unheard(sys.stderr)  # pyright: ignore[reportAttributeAccessIssue]


def _open_closed() -> None:
    """Gives a process whose standard streams were closed (2>&-) ones that nobody reads: what it opens would get their
    numbers, and what it says would go there.
    """
    for number, name, mode in ((0, "stdin", "r"), (1, "stdout", "w"), (2, "stderr", "w")):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest number that is free: this one
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, mode))  # noqa: SIM115 (as long as the process)


class _Named:
    """A stream whose errors name it."""

    def __init__(self, stream: TextIO, name: str) -> None:
        self._stream, self._name = stream, Path(name)

    def write(self, text: str) -> int:
        with naming(self._name):
            return self._stream.write(text)

    def flush(self) -> None:
        with naming(self._name):
            self._stream.flush()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


class _Unheard:
    """A stream whose words may be lost: a terminal that was closed, while a run saves its state, or a log on a full
    disk.
    """

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        with contextlib.suppress(OSError):
            self._stream.write(text)
        return len(text)

    def flush(self) -> None:
        with contextlib.suppress(OSError):
            self._stream.flush()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)
