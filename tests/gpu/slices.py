"""Checks by name, in slices of time, with what earlier calls found.

A call takes the items that are chosen and not yet passed, in their order, and runs each whose expected seconds fit into
what is left of its slice. After every item the file of results is written whole, so that a call that is cut keeps what
it has found, and the next one goes on from there.
"""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import tyro

from system import InputError, files
from system.flags import PathText

PASSED, FAILED, LEFT = 0, 1, 3
"""Exit codes, beside 2 for bad input: all that was chosen has passed; something does not hold; something is left."""


class Row(NamedTuple):
    """A line of the table."""

    check: str
    figure: str
    asked: str = ""
    holds: bool | None = None
    """None: a figure that is only reported."""


class Clock:
    """How much of a slice is left."""

    def __init__(self, seconds: float | None) -> None:
        self._end = None if seconds is None else time.monotonic() + seconds

    def left(self, most: float = float("inf")) -> float:
        """Seconds to the slice's end, `most` at most."""
        return most if self._end is None else max(0.0, min(most, self._end - time.monotonic()))


@dataclass(frozen=True)
class Item:
    """Something to be checked."""

    name: str
    seconds: float
    """That it is expected to take."""
    what: str
    """In a few words."""
    check: Callable[[Clock], list[Row]]
    """Gives its rows; it has to come to an end when the clock does."""
    begin: Callable[[], None] | None = None
    """Starts what runs beside other items, when the slice begins."""


@dataclass(frozen=True, kw_only=True)
class Result:
    """What one item came to, on which machine: a line of the file."""

    item: str
    passed: bool
    seconds: float
    device: str
    torch: str
    commit: str | None
    rows: tuple[Row, ...]


class Machine(NamedTuple):
    """Where the items run, and what they check."""

    device: str
    torch: str
    commit: str | None


@dataclass(frozen=True, kw_only=True)
class SliceConfig:
    """Run checks and print what they found."""

    names: tyro.conf.Positional[tuple[str, ...]] = ()
    """Items to run. Unset: all."""
    list: bool = False
    """Whether the items' names are printed, each with the seconds that it is expected to take; nothing runs."""
    seconds: float | None = None
    """Length of this call's slice: items that do not fit into it are left. Unset: no end."""
    done: PathText | None = None
    """File of results, JSON Lines: those of earlier calls are read from it, and what they passed does not run again;
    it is written anew after each item."""
    commit: str | None = None
    """What is checked, for the file of results. Unset: git's name of it, where this is a checkout."""

    def __post_init__(self) -> None:
        if self.seconds is not None and not self.seconds > 0:
            raise InputError(f"--seconds {self.seconds}: it has to be above 0")


def work(config: SliceConfig, items: Sequence[Item], machine: Machine) -> int:
    """Runs a slice, prints the table of all that was chosen, and gives the exit code. Raises InputError."""
    chosen = choose(items, config.names)
    done = read_done(config.done)
    clock = Clock(config.seconds)
    todo = sorted((item for item in chosen if not _has_passed(done, item)), key=lambda item: item.name in done)
    _warn(done, machine, chosen)
    _begin(todo, config.seconds)
    for item in todo:  # what failed in an earlier call comes last, so that the rest gets its turn
        if item.seconds > clock.left():
            continue
        done[item.name] = _run(item, clock, machine)
        if config.done is not None:
            write_done(Path(config.done), done)
    print(table(chosen, done))
    left = [item for item in todo if item.name not in done]
    for item in left:
        too_long = config.seconds is not None and item.seconds > config.seconds
        said = f"takes {item.seconds:.0f} s, more than --seconds has; give it more" if too_long else "the next call's"
        print(f"left: {item.name} ({said})", file=sys.stderr)
    if any(item.name in done and not done[item.name].passed for item in chosen):
        return FAILED
    return LEFT if left else PASSED


def choose(items: Sequence[Item], names: Sequence[str]) -> list[Item]:
    """The items of these names, in the items' order; all where there is none. Raises InputError."""
    known = {item.name for item in items}
    for name in names:
        if name not in known:
            raise InputError(f"{name}: no such check; one of {', '.join(item.name for item in items)}")
    return [item for item in items if not names or item.name in names]


def listing(items: Sequence[Item]) -> str:
    """The items by name, with their seconds."""
    width = max(len(item.name) for item in items)
    return "\n".join(f"{item.name:{width}} {item.seconds:4.0f} s  {item.what}" for item in items)


def _has_passed(done: Mapping[str, Result], item: Item) -> bool:
    return item.name in done and done[item.name].passed


def _warn(done: Mapping[str, Result], machine: Machine, chosen: Sequence[Item]) -> None:
    """Says where results that count are of another state of the code than the one that is here."""
    old = [item.name for item in chosen if _has_passed(done, item) and done[item.name].commit != machine.commit]
    if old:
        print(f"of another commit than {machine.commit}, and not run again: {', '.join(old)}", file=sys.stderr)


def _begin(todo: Sequence[Item], seconds: float | None) -> None:
    """Starts what runs beside, of the items that are expected to have their turn."""
    left = float("inf") if seconds is None else seconds
    for item in todo:
        if item.seconds <= left:
            left -= item.seconds
            if item.begin is not None:
                item.begin()


def _run(item: Item, clock: Clock, machine: Machine) -> Result:
    start = time.perf_counter()
    print(f"{item.name}: about {item.seconds:.0f} s", file=sys.stderr, flush=True)
    try:
        rows = item.check(clock)
    except (subprocess.SubprocessError, OSError, ValueError, KeyError) as fault:
        rows = [Row(item.name, f"failed: {str(fault)[-300:]}", "", False)]
    seconds = round(time.perf_counter() - start, 1)
    print(f"{item.name}: {seconds} s", file=sys.stderr, flush=True)
    passed = all(row.holds is not False for row in rows)
    return Result(item=item.name, passed=passed, seconds=seconds, rows=tuple(rows), **machine._asdict())


# --- the file of results -------------------------------------------------------------------------------------------


def read_done(path: str | None) -> dict[str, Result]:
    """Results by item; none where there is no file. Of two lines on one item the later counts. Raises InputError."""
    if path is None or not os.path.lexists(path):
        return {}
    with files.open_regular(Path(path)) as file:
        lines = file.read().decode("utf-8", errors="replace").splitlines()
    found = (_parsed(line, f"{path}:{n}") for n, line in enumerate(lines, start=1) if line.strip())
    return {result.item: result for result in found}


def write_done(path: Path, done: Mapping[str, Result]) -> None:
    """Writes all results, a line for each, whole or not at all."""
    rows = ({**asdict(result), "rows": [row._asdict() for row in result.rows]} for result in done.values())
    files.write_rows(path, rows)


KINDS: Mapping[str, tuple[type, ...]] = {
    "item": (str,), "passed": (bool,), "seconds": (int, float), "device": (str,), "torch": (str,),
    "commit": (str, type(None)), "rows": (list,),
}  # fmt: skip


def _parsed(line: str, place: str) -> Result:
    """The result in a line of the file; place is "FILE:LINE"."""
    try:
        made: Any = json.loads(line)
    except json.JSONDecodeError as fault:
        raise InputError(f"{place}: not JSON ({fault.msg}); delete the line, or name another file by --done") from None
    if not isinstance(made, dict) or any(not isinstance(made.get(key, KINDS), kind) for key, kind in KINDS.items()):
        raise InputError(f"{place}: no result of a check, which has {', '.join(KINDS)}; name another file by --done")
    known = {key: made[key] for key in KINDS if key != "rows"}
    return Result(**known, rows=tuple(_row(row, place) for row in made["rows"]))


def _row(made: Any, place: str) -> Row:
    if isinstance(made, dict) and made.keys() == set(Row._fields):
        row = Row(**made)
        if all(isinstance(text, str) for text in row[:3]) and isinstance(row.holds, (bool, type(None))):
            return row
    raise InputError(
        f"{place}: one of its rows is none of a check, which has {', '.join(Row._fields)}; delete the line"
    )


# --- the table -----------------------------------------------------------------------------------------------------


def table(chosen: Sequence[Item], done: Mapping[str, Result]) -> str:
    """What is known of the chosen items, as Markdown: the items, and all of their rows."""
    of_items = ["| item | | seconds | device | torch | commit |", "|---|---|---|---|---|---|"]
    of_rows = ["| check | figure | asked | |", "|---|---|---|---|"]
    verdicts = {True: "holds", False: "DOES NOT HOLD", None: "reported"}
    for item in chosen:
        found = done.get(item.name)
        if found is None:
            of_items.append(f"| {item.name} | left | ({item.seconds:.0f} expected) | | | |")
            continue
        said = "passed" if found.passed else "FAILED"
        on = f"{found.device} | {found.torch} | {found.commit or 'unknown'}"
        of_items.append(f"| {item.name} | {said} | {found.seconds:.0f} | {on} |")
        of_rows += [f"| {r.check} | {_cell(r.figure)} | {r.asked} | {verdicts[r.holds]} |" for r in found.rows]
    return "\n".join([*of_items, "", *of_rows])


def _cell(text: str) -> str:
    return " ".join(text.replace("|", "/").split())


def commit_of(folder: Path) -> str | None:
    """git's name of the commit that a folder is at, with a + where files differ from it; None where git knows none."""
    asked = (["rev-parse", "--short=12", "HEAD"], ["status", "--porcelain", "--untracked-files=no"])
    try:
        commit, changes = (
            subprocess.run(["git", "-C", folder, *a], capture_output=True, text=True, check=True).stdout.strip()
            for a in asked
        )
    except (OSError, subprocess.CalledProcessError):
        return None
    return f"{commit}+" if changes else commit
