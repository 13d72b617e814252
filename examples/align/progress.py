"""What of the whole is done, and how much time is left: said when a stage begins and ends, and every minute between.

A stage that counts what it does (answers, epochs) is foreseen by its own pace; one that is still to come by what its
like took, in an earlier round or start. Where nothing like it was timed yet the sum is said to be "at least" that.
"""

import contextlib
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from typing import NamedTuple

EVERY = 60.0
"""Seconds between two lines while a stage works."""

Count = Callable[[], tuple[float, float, str] | None]
"""How much of a stage is done, of how much, in which unit; None where that is not known."""


class Ahead(NamedTuple):
    """A stage that is still to come."""

    name: str
    kind: str
    """Stages of one kind take about as long as each other."""


class Clock:
    """Tells the time of a whole."""

    def __init__(self, ahead: list[Ahead], seconds: Mapping[str, float]) -> None:
        """ahead: all stages, in order. seconds: what a kind took before, where it was timed."""
        self._ahead, self._seconds = list(ahead), dict(seconds)
        self._n, self._begun = len(ahead), time.monotonic()

    def taken(self, name: str) -> None:
        """A stage is taken as it was."""
        self._leave(name)
        self._say(f"{name}: taken as it was", None)

    @contextlib.contextmanager
    def stage(self, name: str, count: Count = lambda: None) -> Iterator[None]:
        """A stage, until the block ends. count: how far it is."""
        kind = next((a.kind for a in self._ahead if a.name == name), name)
        self._leave(name)
        begun, over = time.monotonic(), threading.Event()
        before = count()
        self._say(name, self._seconds.get(kind))

        def left() -> float | None:
            return _left(before, count(), time.monotonic() - begun, self._seconds.get(kind))

        def tell() -> None:
            while not over.wait(EVERY):
                self._say(name, left(), count())

        teller = threading.Thread(target=tell, daemon=True)
        teller.start()
        try:
            yield
        finally:
            over.set()
            teller.join()
        took = time.monotonic() - begun
        self._seconds[kind] = took
        self._say(f"{name}: done in {_time(took)}", 0.0)

    def _leave(self, name: str) -> None:
        self._ahead = [a for a in self._ahead if a.name != name]

    def _say(self, what: str, left: float | None, counted: tuple[float, float, str] | None = None) -> None:
        """left: seconds of the stage that works; None where that is not known, or none works."""
        known = [self._seconds.get(a.kind) for a in self._ahead]
        ahead = sum(seconds or 0.0 for seconds in known) + (left or 0.0)
        is_least = None in known or (left is None and counted is not None)
        rest = (
            f"{'at least ' if is_least else 'about '}{_time(ahead)} left" if ahead or not is_least else "time unknown"
        )
        n_done = self._n - len(self._ahead)
        far = f" ({counted[0]:,.0f} of {counted[1]:,.0f} {counted[2]})" if counted else ""
        passed = _time(time.monotonic() - self._begun)
        print(f"[{passed}, {rest}] {n_done} of {self._n}: {what}{far}", file=sys.stderr, flush=True)


def _left(
    before: tuple[float, float, str] | None, now: tuple[float, float, str] | None, passed: float, like: float | None
) -> float | None:
    """Seconds left of a stage: by its own pace, where it has one, else by its like."""
    if before is not None and now is not None and now[0] > before[0]:
        return passed * (now[1] - now[0]) / (now[0] - before[0])
    return None if like is None else max(0.0, like - passed)


def _time(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.1f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
