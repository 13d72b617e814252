"""The processes that a program of many runs has started: ended when it is, with what they have done kept.

    with only_in(root, does="...") as children:
        children.run(command, log, env)           in threads, as many as one likes
        with children.serving(command, log, env): ...   a server, ended when the block ends

SIGTERM, Ctrl-C and a terminal that is closed are handed on as SIGTERM, at which a run saves its state; nothing new is
started, and the program ends when they have. A second signal ends them at once. Where the program is killed, they get
SIGTERM by the system (on Linux); who is left all the same, or still saves, is found by the next start, which ends them.
"""

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import FrameType
from typing import Any

from system import RunError, cli, hold, signals
from system.errors import Stopped

MARK = "STARTED_BY_RUN_IN"
"""Environment variable of every process that is started, its value the folder of the program that did."""
BAD_INPUT = 2
"""Exit code of a command that could not use what it was given."""
GRACE = 120.0
"""Seconds that a process has to save what it did, before it is killed."""


class Failed(RunError):
    """A command that was run has failed. code: its exit code."""

    def __init__(self, sentence: str, code: int) -> None:
        super().__init__(sentence)
        self.code = code


class Children:
    """Listens to signals from `with` on, where that is the main thread's; ends what still runs when it is left."""

    def __init__(self, root: Path | None = None) -> None:
        """root: the folder by which a later start finds what this one has left; None: nothing is looked for."""
        self._running: set[subprocess.Popen[bytes]] = set()
        self._servers: set[subprocess.Popen[bytes]] = set()
        self._lock = threading.Lock()
        self._signal = 0
        self._before: dict[int, Any] = {}
        self._marked = {MARK: str(root.resolve())} if root else {}

    def __enter__(self) -> "Children":
        self._before = signals.listen(self._hear)
        return self

    def __exit__(self, *_: object) -> None:
        signals.give_back(self._before)

    def run(self, command: Sequence[str], log: Path, env: Mapping[str, str]) -> None:
        """Runs a command to its end, its words in a log. Raises RunError with the last of them where it fails, Stopped
        where a signal has ended the program.
        """
        child = self._start(command, log, env)
        child.wait()
        with self._lock:
            self._running.remove(child)
            self._raise_if_stopped()
        if child.returncode:
            raise Failed(f"{log}: {last_words(log)} (exit code {child.returncode})", child.returncode)

    @contextlib.contextmanager
    def serving(self, command: Sequence[str], log: Path, env: Mapping[str, str]) -> Iterator["subprocess.Popen[bytes]"]:
        """A process that runs until the block ends; it is for the block to see whether it still lives."""
        child = self._start(command, log, env)
        with self._lock:
            self._servers.add(child)
        try:
            yield child
        finally:
            end(child, signal.SIGTERM)
            try:
                child.wait(GRACE)
            except subprocess.TimeoutExpired:
                end(child, signal.SIGKILL)
                child.wait()
            with self._lock:
                self._servers.remove(child)
                self._running.remove(child)

    def raise_if_stopped(self) -> None:
        """Raises Stopped after a signal."""
        with self._lock:
            self._raise_if_stopped()

    def _start(self, command: Sequence[str], log: Path, env: Mapping[str, str]) -> "subprocess.Popen[bytes]":
        log.parent.mkdir(parents=True, exist_ok=True)
        with open(log, "a") as file, self._lock:
            self._raise_if_stopped()
            # A session of its own: Ctrl-C reaches it through the program alone, once.
            child = subprocess.Popen(
                [sys.executable, "-m", "system.session", *command],
                stdout=file, stderr=subprocess.STDOUT, env={**env, **self._marked}, start_new_session=True,
            )  # fmt: skip
            self._running.add(child)
            if self._signal:  # which came between these two
                end(child, signal.SIGTERM)
        return child

    def _raise_if_stopped(self) -> None:
        if self._signal:
            raise Stopped("stopped; the same command continues from here", 128 + self._signal)

    def _hear(self, number: int, _: FrameType | None) -> None:
        if not self._signal:
            cli.notify("stopping when the runs in progress have saved their state; a second signal ends them at once")
        sent = signal.SIGKILL if self._signal else signal.SIGTERM
        if self._signal and not self._running:  # the program itself is at work, and did not stop at the first one
            raise KeyboardInterrupt
        is_first, self._signal = not self._signal, number
        spared = self._servers if is_first else set()  # who is served gets its answers until it has ended
        for child in list(self._running - spared):
            end(child, sent)


@contextlib.contextmanager
def only_in(root: Path, *, does: str) -> Iterator[Children]:
    """The children of a program that is the only one in a folder. What an earlier start has left there is ended first.

    does: what it does there, in words. Raises InputError where another one runs in it.
    """
    root.mkdir(parents=True, exist_ok=True)
    with hold(root / ".program.lock", root, does=does, otherwise="give another --out"):
        end_left(root)
        with Children(root) as children:
            yield children


def last_words(log: Path) -> str:
    """The last line of what a command has said."""
    said = log.read_text(errors="replace").strip().splitlines()
    return said[-1] if said else "nothing was said"


def end(child: "subprocess.Popen[bytes]", number: int) -> None:
    """Sends a signal to a process and to those that it has started."""
    if child.poll() is None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(child.pid, number)


# --- what an earlier start has left --------------------------------------------------------------------------------


def end_left(root: Path, *, grace: float = GRACE) -> int:
    """Ends the processes that an earlier start in this folder has left behind, and says how many there were.

    They get SIGTERM, and so many seconds to save what they did. Linux alone says who they are; elsewhere none is found.
    """
    left = _left(root)
    if not left:
        return 0
    cli.notify(f"{root}: {len(left)} processes of an earlier start are still running; they are told to save and end")
    deadline = time.monotonic() + grace
    for process in left:
        with contextlib.suppress(OSError):
            os.kill(process, signal.SIGTERM)
    while (still := _left(root)) and time.monotonic() < deadline:
        time.sleep(0.2)
    for process in still:
        with contextlib.suppress(OSError):
            os.kill(process, signal.SIGKILL)
    return len(left)


def _left(root: Path) -> list[int]:
    """Processes with this folder's mark that live."""
    mark, found = f"{MARK}={root.resolve()}".encode(), []
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):  # another user's, or one that has just ended
            is_ours = mark in (folder / "environ").read_bytes().split(b"\0")
            if is_ours and (folder / "stat").read_text().rpartition(")")[2].split()[0] != "Z":
                found.append(int(folder.name))
    own = {os.getpid(), os.getppid()}
    return [process for process in found if process not in own]
