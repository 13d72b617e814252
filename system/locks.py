"""One process at a time: a file's lock, which the system lets go of when its holder ends, however it ends.

Where two hosts see the same files and not each other's locks, the file itself says who holds it: its holder counts up
in it every few seconds. Whoever finds the name of another host there watches the count before it goes on.
"""

import contextlib
import fcntl
import json
import os
import socket
import threading
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from system.errors import InputError
from system.files import naming

BEAT = 5.0
"""Seconds between two counts."""
WATCH = 3 * BEAT
"""Seconds in which a holder that lives counts up."""


@contextlib.contextmanager
def hold(lock: Path, location: Path, *, does: str, otherwise: str, takes_over: str | None = None) -> Iterator[None]:
    """Holds `lock`, a file that is made where it is not there, for `location`, which its messages name.

    Raises InputError where it cannot be written ("give another ..." of `otherwise`), or another process holds it, which
    is named with what it `does`. takes_over: the flag by which the user says that a holder on another host, which has
    not let go and counts up no more, is gone; None: it was given.
    """
    try:
        descriptor = os.open(lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    except OSError as fault:
        raise InputError(f"{location}: cannot be written ({fault.strerror}); {otherwise}") from None
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise InputError(f"{location}: {_holder(descriptor)} {does}; wait for it, or stop it") from None
        except OSError as fault:
            raise InputError(f"{location}: its file system has no locks ({fault.strerror}); use a local disk") from None
        _refuse_another_host(descriptor, location, does, takes_over)
        with _beating(descriptor, lock):
            yield
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def _beating(descriptor: int, lock: Path) -> Iterator[None]:
    """Writes this process's name and a count that goes up; an empty file at the end says that it let go."""
    now = datetime.now(UTC).isoformat(timespec="seconds")
    holder: dict[str, Any] = {"pid": os.getpid(), "host": socket.gethostname(), "since": now}
    done = threading.Event()

    def write(beat: int) -> None:
        text = json.dumps(holder | {"beat": beat}).encode()
        os.pwrite(descriptor, text, 0)
        os.ftruncate(descriptor, len(text))

    def beat() -> None:
        count = 0
        while not done.wait(BEAT):
            count += 1
            with contextlib.suppress(OSError):  # a full disk is told by who has something to write
                write(count)

    with naming(lock):
        write(0)
    thread = threading.Thread(target=beat, daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()
        os.ftruncate(descriptor, 0)


def _refuse_another_host(descriptor: int, location: Path, does: str, takes_over: str | None) -> None:
    """Raises InputError where the lock was free here, and a process on another host has not let go."""
    held = _read(descriptor)
    if held is None or held["host"] == socket.gethostname():
        return
    deadline = time.monotonic() + WATCH
    while time.monotonic() < deadline:
        now = _read(descriptor)
        if now is None:
            return
        if now["beat"] != held["beat"]:
            raise InputError(f"{location}: {_name(held)} {does}; wait for it, or stop it")
        time.sleep(BEAT / 5)
    if takes_over is not None:
        raise InputError(
            f"{location}: {_name(held)} still holds it, and has given no sign of life for {WATCH:.0f} s; "
            f"make sure that it has ended, and add {takes_over}"
        )


def _holder(descriptor: int) -> str:
    for _ in range(20):  # it writes its name right after taking the lock
        if (held := _read(descriptor)) is not None:
            return _name(held)
        time.sleep(0.05)
    return "another process"


def _read(descriptor: int) -> dict[str, Any] | None:
    """Who holds it, by the file; None where nobody does."""
    with contextlib.suppress(ValueError, TypeError):
        held = json.loads(os.pread(descriptor, 1000, 0))
        return {name: held.get(name) for name in ("pid", "host", "since", "beat")}
    return None


def _name(held: dict[str, Any]) -> str:
    return f"process {held['pid']} on {held['host']} (since {held['since']})"
