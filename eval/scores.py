"""eval/scores.jsonl: what every evaluator writes and the report reads.

A line is one number: checkpoint, benchmark, version, metric, value, stderr, n, judge, and the facts that say what it
may be compared with. The same number measured again replaces the old one. Any program may write such lines.
"""

import fcntl
import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

from data.rows import parse_row
from system import InputError, files

Line = dict[str, Any]

NAME = "scores.jsonl"
WHOSE = ("checkpoint", "benchmark", "version", "metric")
FACTS = (
    "judge", "judge_model", "judge_extra", "judge_temperature", "rounds", "preset", "data_sha256", "wording_sha256",
    "gamed_sha256", "fallback", "judged_once", "reference", "temperature",
)  # fmt: skip
"""What two numbers of the same name have to agree in, where both say it, to be subtracted."""
ASKED = ("judge_extra", "judge_temperature")
"""Of these null is an answer, too: it was not sent. Of the others it says that nobody knows."""
MOST_UNJUDGED = 0.01
"""Of a benchmark's queries; where more have no judgment a number does not look whole anywhere."""
BASE = "base"
"""The checkpoint that deltas are taken against: the model before training."""


def read(path: Path) -> list[Line]:
    """The lines of a file, none where it is absent. Raises InputError, located, for a line that is no score."""
    if not path.is_file():
        return []
    lines = []
    for number, raw in enumerate(path.read_bytes().splitlines(), 1):
        line = parse_row(raw, f"{path}:{number}")
        if not all(isinstance(line.get(name), str) for name in WHOSE) or not _is_number(line.get("value")):
            raise InputError(f"{path}:{number}: not a score; write {', '.join(WHOSE)} as text and value as a number")
        lines.append(line)
    return lines


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) < float("inf")


def write(path: Path, lines: Sequence[Line]) -> None:
    """Adds lines; of what is there already, the same numbers under the same judge and preset are replaced."""

    def key(line: Line) -> tuple[Any, ...]:
        return tuple(line.get(name) for name in (*WHOSE, "judge", "preset"))

    new = {key(line) for line in lines}
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path.with_name(f".{path.name}.lock"), "w") as lock:  # several evaluators may write at a time
        fcntl.flock(lock, fcntl.LOCK_EX)
        files.write_rows(path, [*(line for line in read(path) if key(line) not in new), *lines])


def differences(a: Mapping[str, Any], b: Mapping[str, Any]) -> list[str]:
    """Why two numbers cannot be subtracted: each fact in which they differ, as a sentence. Empty where they can."""
    return [
        f"{name} is {a[name]!r} in one and {b[name]!r} in the other"
        for name in FACTS
        if name in a and name in b and a[name] != b[name] and (name in ASKED or None not in (a[name], b[name]))
    ]


def unjudged(line: Mapping[str, Any]) -> tuple[int, int]:
    """How many of how many queries a number counts without a judgment: refused by the judge's server, missing, or not
    to be read. Lines from before this was counted say it by other names.
    """
    n = int(line.get("n") or 0)
    without = line.get("n_unjudged", int(line.get("n_fallbacks") or 0) + int(line.get("n_blocked") or 0))
    return int(without), int(line.get("n_asked") or n)


def is_whole(line: Mapping[str, Any]) -> bool:
    """Whether a number is of a benchmark that was judged, but for a hundredth."""
    n_without, n = unjudged(line)
    return n_without <= MOST_UNJUDGED * n


def mark(line: Mapping[str, Any]) -> str:
    """What has to stand beside a number that is not whole; empty where it is."""
    n_without, n = unjudged(line)
    return "" if is_whole(line) else f"{n_without:,} of {n:,} not judged"


def unjudged_facts(names: Iterable[str], n: int) -> dict[str, Any]:
    """What a line says of queries without a judgment. n: of all that were asked."""
    without = sorted(names)
    digest = hashlib.sha256("\n".join(without).encode()).hexdigest()[:16] if without else None
    return {"n_unjudged": len(without), "n_asked": n, "unjudged_sha256": digest}


def judged_otherwise(a: Mapping[str, Any], b: Mapping[str, Any]) -> str:
    """Why two numbers cannot be subtracted where one of them is not whole; empty where they can: both are, or lack the
    same queries.
    """
    if is_whole(a) and is_whole(b):
        return ""
    if unjudged(a) == unjudged(b) and a.get("unjudged_sha256") == b.get("unjudged_sha256"):
        return ""
    said = [f"{n:,} of {of:,} queries of {line['checkpoint']}" for line in (a, b) for n, of in [unjudged(line)]]
    return f"{said[0]} and {said[1]} were not judged"


def delta(line: Line, base: Line) -> float:
    """How much more one number is than another. Raises InputError where they do not compare."""
    if found := differences(line, base) or [why for why in [judged_otherwise(line, base)] if why]:
        names = f"{line['benchmark']} {line['version']} of {line['checkpoint']} and {base['checkpoint']}"
        raise InputError(f"{names}: {found[0]}; score both in the same way")
    return float(line["value"]) - float(base["value"])


def pick(lines: Iterable[Line], **wanted: str) -> list[Line]:
    """Lines of that checkpoint, benchmark, version or metric, in order."""
    return [line for line in lines if all(line.get(name) == value for name, value in wanted.items())]


def newest(lines: Sequence[Line]) -> list[Line]:
    """Of numbers of one name those that compare with each other: of each checkpoint one, the newest of the largest set.

    A set with the base model goes before one without.
    """
    groups: list[dict[str, Line]] = []
    for line in lines:
        fits = (
            group
            for group in sorted(reversed(groups), key=lambda group: BASE not in group)  # stable: the newest first
            if all(other["version"] == line["version"] and not differences(line, other) for other in group.values())
        )
        group = next(fits, None)
        if group is None:
            groups.append(group := {})
        group[line["checkpoint"]] = line
    ranked = sorted(groups, key=lambda group: (BASE in group, len(group)))  # stable: of equals the newest last
    return list(ranked[-1].values()) if ranked else []


def copy_base(source: Path, path: Path, *, judge: str) -> int:
    """Puts another file's numbers of the base model into this one, and says how many. Raises InputError."""
    found = [line for line in pick(read(source), checkpoint=BASE) if line.get("judge") == judge]
    if not found:
        raise InputError(
            f"{source}: has no scores of {BASE!r} by the judge {judge!r}; score the base model there, or leave "
            "--base-scores out"
        )
    write(path, found)
    return len(found)


def software() -> str:
    """This program and its version."""
    name = "anchored-preference-optimization"
    return f"{name} {metadata.version(name)}"


def dump(line: Mapping[str, Any]) -> str:
    """A line's facts for a footnote."""
    named = {
        name: value for name, value in line.items() if name not in (*WHOSE, "value", "stderr") and value is not None
    }
    return json.dumps(named, ensure_ascii=False)
