"""A wish to stop: SIGTERM, Ctrl-C, a terminal that is closed, or a file that a launcher writes; granted where a step
ends.
"""

import contextlib
import os
import signal
from pathlib import Path
from types import FrameType
from typing import Any

from system import cli, signals

FILE_VARIABLE = "RUN_STOP_FILE"
"""A file in which launch.sh leaves the number of a signal: what torchrun does with one gives little time."""

GRACE_OF_TORCHRUN = 30.0
"""torchrun's --shutdown-timeout where it is not given (torch 2.11 to 2.13)."""


def grace() -> float | None:
    """Seconds between a signal and the end of this process, where a launcher keeps an eye on it; None: as many as it
    takes.
    """
    watched = "TORCHELASTIC_RUN_ID" in os.environ and FILE_VARIABLE not in os.environ
    return GRACE_OF_TORCHRUN if watched else None


class Stop:
    """Listens from `with` on. A second Ctrl-C ends the process at once: what is on disk stays whole."""

    def __init__(self) -> None:
        self._asked = 0
        self._before: dict[int, Any] = {}

    def __enter__(self) -> "Stop":
        self._before = signals.listen(self._hear)
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is not None and "RANK" in os.environ:
            return  # one of several ranks that fails still has something to say when torchrun ends it
        signals.give_back(self._before)

    def _hear(self, number: int, _: FrameType | None) -> None:
        if self._asked and number == signal.SIGINT:
            os._exit(128 + number)
        if not self._asked and "RANK" not in os.environ:  # several ranks: at the end, by one
            cli.notify("stopping when this step is done and its state is saved")
        self._asked = number

    def asked(self) -> int:
        """The number of the signal; 0 where there was none."""
        if path := os.environ.get(FILE_VARIABLE):
            with contextlib.suppress(OSError, ValueError):
                self._asked = self._asked or int(Path(path).read_text())
        return self._asked
