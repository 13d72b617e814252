"""The processes that a grid of runs has started: ended when it is, with what they have done kept.

    with Children() as children:
        children.run(command, log, env)      in threads, as many as one likes

SIGTERM, Ctrl-C and a terminal that is closed are handed on as SIGTERM, at which a run saves its state; nothing new is
started, and the grid ends when they have. A second signal ends them at once. Where the grid is killed, they get SIGTERM
by the system (on Linux).
"""

import contextlib
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import FrameType
from typing import Any

from system import RunError, cli, signals
from system.errors import Stopped


class Children:
    """Listens to signals from `with` on, where that is the main thread's; ends what still runs when it is left."""

    def __init__(self) -> None:
        self._running: set[subprocess.Popen[bytes]] = set()
        self._lock = threading.Lock()
        self._signal = 0
        self._before: dict[int, Any] = {}

    def __enter__(self) -> "Children":
        self._before = signals.listen(self._hear)
        return self

    def __exit__(self, *_: object) -> None:
        signals.give_back(self._before)

    def run(self, command: Sequence[str], log: Path, env: Mapping[str, str]) -> None:
        """Runs a command to its end, its words in a log. Raises RunError with the last of them where it fails, Stopped
        where a signal has ended the grid.
        """
        with open(log, "a") as file:
            with self._lock:
                self._raise_if_stopped()
                # A session of its own: Ctrl-C reaches it through the grid alone, once.
                child = subprocess.Popen(
                    [sys.executable, "-m", "system.session", *command],
                    stdout=file, stderr=subprocess.STDOUT, env=dict(env), start_new_session=True,
                )  # fmt: skip
                self._running.add(child)
                if self._signal:  # which came between these two
                    _end(child, signal.SIGTERM)
            child.wait()
        with self._lock:
            self._running.remove(child)
            self._raise_if_stopped()
        if child.returncode:
            said = log.read_text().strip().splitlines()
            raise RunError(f"{log}: {said[-1] if said else 'nothing was said'} (exit code {child.returncode})")

    def _raise_if_stopped(self) -> None:
        if self._signal:
            raise Stopped("stopped; the same command goes on from here", 128 + self._signal)

    def _hear(self, number: int, _: FrameType | None) -> None:
        if not self._signal:
            cli.notify("stopping when the runs that were started have saved their state; once more to end them at once")
        sent = signal.SIGKILL if self._signal else signal.SIGTERM
        self._signal = number
        for child in list(self._running):
            _end(child, sent)


def _end(child: "subprocess.Popen[bytes]", number: int) -> None:
    """Sends a signal to a process and to those that it has started."""
    if child.poll() is None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(child.pid, number)
