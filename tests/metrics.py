"""What a run has written of its steps."""

import json
from pathlib import Path


def lines(out):
    """The whole lines of metrics.jsonl: a run that still writes may stand in the middle of one."""
    return [json.loads(line) for line in (Path(out) / "metrics.jsonl").read_bytes().split(b"\n")[:-1]]


def values_of(line):
    """A line's numbers but for those that the clock makes."""
    return {name: value for name, value in line.items() if not name.startswith("perf/")}
