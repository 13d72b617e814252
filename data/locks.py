"""One process at a time: a file's lock, which the system lets go of when its holder ends, however it ends."""

import contextlib
import fcntl
import json
import os
import socket
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

from data.errors import InputError


@contextlib.contextmanager
def hold(lock: Path, place: Path, *, does: str, otherwise: str) -> Iterator[None]:
    """Holds `lock`, a file that is made where it is not there, for `place`.

    Raises InputError where it cannot be written ("give another ..." of `otherwise`), or another process holds it, which
    is named with what it `does`.
    """
    try:
        descriptor = os.open(lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    except OSError as fault:
        raise InputError(f"{place}: cannot be written ({fault.strerror}); {otherwise}") from None
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise InputError(f"{place}: {_holder(descriptor)} {does}; wait for it, or stop it") from None
        except OSError as fault:
            raise InputError(f"{place}: its file system has no locks ({fault.strerror}); use a local disk") from None
        os.ftruncate(descriptor, 0)
        now = datetime.now(UTC).isoformat(timespec="seconds")
        holder = {"pid": os.getpid(), "host": socket.gethostname(), "since": now}
        os.pwrite(descriptor, json.dumps(holder).encode(), 0)
        yield
    finally:
        os.close(descriptor)


def _holder(descriptor: int) -> str:
    for _ in range(20):  # it writes its name right after taking the lock
        with contextlib.suppress(ValueError, KeyError, TypeError):
            held = json.loads(os.pread(descriptor, 1000, 0))
            return f"process {held['pid']} on {held['host']} (since {held['since']})"
        time.sleep(0.05)
    return "another process"
