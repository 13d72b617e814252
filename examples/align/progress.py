"""What of the whole is done, and how much time is left: said when a stage begins and ends, and every minute between.

A stage that counts what it does (answers, epochs) is foreseen by its own pace; one that is still to come by what its
like took, in an earlier round or start. Where nothing like it was timed yet a guess stands for it, and the sum is said
to be "perhaps" that.
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
    guess: float = 10.0
    """Seconds that it may take, while nothing of its kind was timed."""
    key: str = ""
    """Its name in the journal."""


class Clock:
    """Tells the time of a whole."""

    def __init__(self, ahead: list[Ahead], seconds: Mapping[str, float]) -> None:
        """ahead: all stages, in order. seconds: what a kind took before, where it was timed."""
        self._ahead, self._seconds = list(ahead), dict(seconds)
        self._n, self._begun = len(ahead), time.monotonic()

    def taken(self, name: str) -> None:
        """A stage is taken as it was."""
        self._leave(name)
        self._say(f"{name}: taken as it was", 0.0)

    @contextlib.contextmanager
    def stage(self, name: str, count: Count = lambda: None) -> Iterator[None]:
        """A stage, until the block ends. count: how far it is."""
        now = next((a for a in self._ahead if a.name == name), Ahead(name, name))
        like = self._seconds.get(now.kind)
        self._leave(name)
        begun, over, before = time.monotonic(), threading.Event(), count()
        self._say(name, now.guess if like is None else like, is_guess=like is None)

        def tell() -> None:
            while not over.wait(EVERY):
                counted, passed = count(), time.monotonic() - begun
                if before is not None and counted is not None and counted[0] > before[0]:
                    left = passed * (counted[1] - counted[0]) / (counted[0] - before[0])
                    self._say(name, left, counted)
                else:
                    left = max(0.0, (now.guess if like is None else like) - passed)
                    self._say(name, left, counted, is_guess=like is None)

        teller = threading.Thread(target=tell, daemon=True)
        teller.start()
        try:
            yield
        finally:
            over.set()
            teller.join()
        took = time.monotonic() - begun
        self._seconds[now.kind] = took
        self._say(f"{name}: done in {_time(took)}", 0.0)

    def _leave(self, name: str) -> None:
        self._ahead = [a for a in self._ahead if a.name != name]

    def _say(
        self, what: str, left: float, counted: tuple[float, float, str] | None = None, *, is_guess: bool = False
    ) -> None:
        """left: seconds of the stage that works; is_guess: whether nothing stands behind that."""
        ahead = left + sum(self._seconds.get(a.kind, a.guess) for a in self._ahead)
        is_guess = is_guess or any(a.kind not in self._seconds for a in self._ahead)
        n_done = self._n - len(self._ahead)
        far = f" ({counted[0]:,.0f} of {counted[1]:,.0f} {counted[2]})" if counted else ""
        passed, word = _time(time.monotonic() - self._begun), "perhaps" if is_guess else "about"
        said = f"[{passed}, {word} {_time(ahead)} left] {n_done} of {self._n}: {what}{far}"
        print(said, file=sys.stderr, flush=True)


def _time(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.1f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
