"""Faults on demand, so that a test can put one at every place where a run can die.

Everything that writes calls `point` before each operation, and the training loop at each of its parts. Where the
environment does not ask for one, a point does nothing.

FAULT=rename:1                dies (kill -9) before the first rename
FAULT=any:17                  before the 17th operation on a file
FAULT=write:3:ENOSPC          the third write fails, with that errno
FAULT=backward:5:STOP:1       before the fifth backward pass rank 1 stands still (SIGSTOP); also SLEEP, RAISE, TERM
FAULT_LOG=FILE                every operation on a file is noted, a JSON line each: to replay a loss of power
"""

import errno
import json
import os
import signal
import sys
import time
from collections import Counter
from pathlib import Path

PLACES = ("forward", "backward", "gradient", "optimizer")
"""Of the training loop: what else a point names is an operation on a file, and counts as `any` too."""

_asked = os.environ.get("FAULT", "")
_log = os.environ.get("FAULT_LOG", "")
_seen: Counter[str] = Counter()
if _asked:
    print(f"FAULT={_asked}: this run is made to fail", file=sys.stderr)


def point(operation: str, path: str | Path = "") -> None:
    """A place where a fault can be put: `operation` on `path` comes next.

    Raises the OSError, or does to the process whatever the environment asks for.
    """
    if not _asked and not _log:
        return
    if _log and operation not in PLACES:
        _note(operation, path)
    _seen.update([operation] if operation in PLACES else [operation, "any"])
    if not _asked:
        return
    kind, number, *more = _asked.split(":")
    action, rank = (*more, *("KILL", "")[len(more) :])
    if kind not in (operation, "any") or (kind == "any" and operation in PLACES) or _seen[kind] != int(number):
        return
    if not rank or os.environ.get("RANK", "0") == rank:
        _act(action, path)


def _act(action: str, path: str | Path) -> None:
    if action == "KILL":
        os.kill(os.getpid(), signal.SIGKILL)
    elif action == "STOP":
        os.kill(os.getpid(), signal.SIGSTOP)
    elif action == "TERM":
        os.kill(os.getpid(), signal.SIGTERM)
    elif action == "SLEEP":
        time.sleep(3600)
    elif action == "RAISE":
        raise RuntimeError("a fault that was asked for")
    else:
        number = getattr(errno, action)
        raise OSError(number, os.strerror(number), str(path))


def _note(operation: str, path: str | Path) -> None:
    with open(_log, "a", encoding="utf-8") as file:
        file.write(json.dumps({"op": operation, "path": str(path), "rank": os.environ.get("RANK", "0")}) + "\n")
