"""Faults on demand, put into a program from outside: at every place where it writes, and in each part of a step.

`watch` wraps what Python writes by (files that `open` gives, os.fsync, os.rename, os.pwrite and their like), and
`watch_phases` what a training says of where it is; the program knows nothing of it. A fault is said in one word:

rename:1                dies (kill -9) before the first rename
any:17                  before the 17th operation on a file: a write, a sync, a rename or a removal
write:3:ENOSPC          the third write fails, with that errno
backward:5:STOP:1       before the fifth backward pass rank 1 stands still (SIGSTOP); also SLEEP, RAISE, TERM

    python -m tests.faults FAULT MODULE ARGUMENT...     runs a command with a fault in it
"""

import errno
import io
import os
import runpy
import signal
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

PHASES = ("forward", "backward", "gradient", "optimizer")
"""Of a training's step; the other kinds are write, fsync, rename and remove, of files, and `any` of these."""

BY_DESCRIPTOR = {"fsync": "fsync", "pwrite": "write", "posix_fallocate": "write", "ftruncate": "write",
                 "sendfile": "write"}  # fmt: skip
BY_NAME = {"truncate": "write", "rename": "rename", "replace": "rename", "unlink": "remove", "remove": "remove",
           "rmdir": "remove"}  # fmt: skip
LEFT_OUT = ("/dev/", "/proc/")

Before = Callable[[str, str], None]
"""Called with an operation and the file's path before it is done; what it raises takes the operation's place."""


def watch(before: Before) -> None:
    """Has `before` called before each operation on a file."""
    within = threading.local()

    def call(operation: str, path: str) -> None:
        """Once: what `before` does itself is not watched. TensorBoard's thread writes whenever it likes."""
        if getattr(within, "is_busy", False) or path.startswith(LEFT_OUT) or "events.out." in path:
            return
        within.is_busy = True
        try:
            before(operation, path)
        finally:
            within.is_busy = False

    for name, operation in BY_DESCRIPTOR.items():
        setattr(os, name, _by_descriptor(getattr(os, name), operation, call))
    for name, operation in BY_NAME.items():
        setattr(os, name, _by_name(getattr(os, name), operation, call))
    io.open = sys.modules["builtins"].open = _opener(open, call)


def watch_phases(before: Before) -> None:
    """Has `before` called before each phase of a step, with "" for a path."""
    from engine.distributed.heartbeat import Heartbeat  # with torch, which a fault on a file does without

    reported = Heartbeat.report_phase

    def report_phase(self, step, place):
        reported(self, step, place)
        if place in PHASES:
            before(place, "")

    Heartbeat.report_phase = report_phase


def inject(fault: str) -> None:
    """Puts a fault, as above, into this process."""
    made = Fault(fault)
    (watch_phases if made.kind in PHASES else watch)(made)


class Fault:
    """Counts operations, and strikes where it is to."""

    def __init__(self, said: str) -> None:
        self.kind, number, *more = said.split(":")
        self.number = int(number)
        self.action, self.rank = (*more, *("KILL", "")[len(more) :])
        self._seen: Counter[str] = Counter()
        self._lock = threading.Lock()  # a state is written by a thread beside the training

    def __call__(self, operation: str, path: str) -> None:
        with self._lock:
            self._seen.update([operation, "any"])
            is_due = self.kind in (operation, "any") and self._seen[self.kind] == self.number
        if is_due and self.rank in ("", os.environ.get("RANK", "0")):
            self._strike(operation, path)

    def _strike(self, operation: str, path: str) -> None:
        if self.action in ("KILL", "STOP", "TERM"):
            os.kill(os.getpid(), getattr(signal, f"SIG{self.action}"))
        elif self.action == "SLEEP":
            time.sleep(3600)
        elif self.action == "RAISE":
            raise RuntimeError("a fault that was asked for")
        else:
            number = getattr(errno, self.action)
            # As the system's own: what fails by a descriptor names no file.
            raise OSError(number, os.strerror(number), *([path] if operation in ("rename", "remove") else []))


def _by_descriptor(real: Callable, operation: str, call: Before) -> Callable:
    def wrapped(descriptor, *arguments):
        call(operation, os.readlink(f"/proc/self/fd/{descriptor}"))
        return real(descriptor, *arguments)

    return wrapped


def _by_name(real: Callable, operation: str, call: Before) -> Callable:
    """The path is that of the name which is new, or goes."""

    def wrapped(path, *arguments, **named):
        what = arguments[0] if operation == "rename" else path
        if named.get("dir_fd") is not None:
            what = Path(os.readlink(f"/proc/self/fd/{named['dir_fd']}")) / os.fsdecode(what)
        call(operation, os.path.abspath(os.fsdecode(what)))
        return real(path, *arguments, **named)

    return wrapped


def _opener(real: Callable, call: Before) -> Callable:
    """`open`, whose files for writing tell of each write that reaches the system."""

    class Raw(io.FileIO):
        def write(self, data):
            call("write", os.path.abspath(os.fsdecode(self.name)))
            return super().write(data)

    def opened(file, mode="r", buffering=-1, encoding=None, errors=None, newline=None, closefd=True, opener=None):
        if isinstance(file, int) or not set(mode) & set("wax+"):
            return real(file, mode, buffering, encoding, errors, newline, closefd, opener)
        raw = Raw(file, mode.replace("b", "").replace("t", ""), closefd, opener)
        if buffering == 0:
            return raw
        size = buffering if buffering > 1 else io.DEFAULT_BUFFER_SIZE
        buffer = io.BufferedRandom(raw, size) if "+" in mode else io.BufferedWriter(raw, size)
        return buffer if "b" in mode else io.TextIOWrapper(buffer, encoding, errors, newline, buffering == 1)

    return opened


def sitecustomize(folder: Path, fault: str) -> Path:
    """Writes a file by which Python, with this folder in PYTHONPATH, puts a fault into every rank that torchrun starts.

    Gives the folder.
    """
    text = f"import os\nif 'RANK' in os.environ:\n    from tests import faults\n    faults.inject({fault!r})\n"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "sitecustomize.py").write_text(text)
    return folder


if __name__ == "__main__":
    inject(sys.argv[1])
    sys.argv[1:2] = []
    runpy.run_module(sys.argv.pop(1), run_name="__main__", alter_sys=True)
