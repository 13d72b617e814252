"""Which measurement of a held-out number was the best so far (--keep-best), for how long none was (--early-stop)."""

import difflib
from collections.abc import Collection, Iterable
from typing import Any

from system import InputError

SMALLEST = ("loss", "perplexity", "kl")
"""What is best where it is smallest, as a part of a number's name; all else is best where it is greatest."""
PREFIX = "eval_"


def name_of(metric: str) -> str:
    """A held-out number's whole name; "loss" is short for "eval_loss"."""
    return metric if metric.startswith(PREFIX) else PREFIX + metric


def check_name(flag: str, metric: str, names: Collection[str]) -> None:
    """Raises InputError where no held-out number has that name. names: those that are measured."""
    if name_of(metric) in names:
        return
    near = difflib.get_close_matches(name_of(metric), names, n=1)
    raise InputError(
        f"{flag}: no metric of the held-out rows is called {metric!r}{f'; perhaps {near[0]}' if near else ''}; there "
        f"are: {', '.join(sorted(names))}"
    )


def is_smallest(name: str) -> bool:
    """Whether a number is best where it is smallest, by its name."""
    return any(part in name.removeprefix(PREFIX).replace("/", "_").split("_") for part in SMALLEST)


class Record:
    """The measurements of one number so far, in order."""

    def __init__(self, metric: str) -> None:
        self.asked, self.name = metric, name_of(metric)
        self.is_smallest = is_smallest(self.name)
        self._values: list[tuple[int, float]] = []

    def add(self, step: int, value: float) -> bool:
        """Takes a measurement; whether it is better than every one before. One that is no number never is."""
        before = self.best()
        self._values.append((step, value))
        return self.best() != before

    def restore(self, lines: Iterable[dict[str, Any]]) -> None:
        """Takes what lines of metrics.jsonl say."""
        for line in lines:
            if self.name in line:
                self.add(int(line["step"]), float(line[self.name]))

    def best(self, until: int | None = None) -> tuple[int, float] | None:
        """The step of the best measurement, the first of equals, and the value; None where there is none. until: the
        last step that counts.
        """
        sign = 1.0 if self.is_smallest else -1.0
        known = [(sign * v, step, v) for step, v in self._values if v == v and (until is None or step <= until)]
        return min(known)[1:] if known else None

    @property
    def extreme(self) -> str:
        """What is best, in a word."""
        return "smallest" if self.is_smallest else "greatest"

    @property
    def n_worse(self) -> int:
        """How many measurements came after the best one."""
        best = self.best()
        return sum(1 for step, _ in self._values if best is None or step > best[0])
