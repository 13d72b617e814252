"""Which signals ask a command to stop, and how a part of it listens to them."""

import signal
import threading
from collections.abc import Callable
from types import FrameType
from typing import Any

Hear = Callable[[int, FrameType | None], None]


def heard() -> list[int]:
    """SIGTERM, Ctrl-C, and a terminal that is closed, unless that was to be ignored from the start on, as by nohup."""
    hung_up = [] if signal.getsignal(signal.SIGHUP) == signal.SIG_IGN else [signal.SIGHUP]
    return [signal.SIGTERM, signal.SIGINT, *hung_up]


def listen(hear: Hear) -> dict[int, Any]:
    """Has all of them heard, and gives who heard them before, for `give_back`; nothing outside of the main thread."""
    if threading.current_thread() is not threading.main_thread():
        return {}
    return {number: signal.signal(number, hear) for number in heard()}


def give_back(before: dict[int, Any]) -> None:
    """Has them heard by who heard them before."""
    for number, handler in before.items():
        signal.signal(number, handler)
