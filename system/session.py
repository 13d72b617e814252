"""Runs a command in a session of its own, which ends with whoever started it: for launch.sh, where setsid may lack, and
for grids of runs.

python -m system.session COMMAND...
"""

import contextlib
import ctypes
import os
import signal
import sys

PR_SET_PDEATHSIG = 1  # of Linux's sys/prctl.h


def end_with_parent(number: int) -> None:
    """Asks Linux to send this process a signal when the one that started it ends; elsewhere nothing is asked."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, number)


if __name__ == "__main__":
    parent = os.getppid()
    with contextlib.suppress(PermissionError):  # it has one already
        os.setsid()
    end_with_parent(signal.SIGTERM)
    if os.getppid() != parent:  # it has ended meanwhile
        sys.exit(128 + signal.SIGTERM)
    os.execvp(sys.argv[1], sys.argv[1:])
