"""What stands in a run's folder, by name: who trains writes it, and evaluators, reports and examples find it.

epoch-01/ ...        the checkpoint of an epoch's end
step-000120/ ...     one inside an epoch; a step that ends an epoch writes the epoch's alone
best                 a link to the best of them (--keep-best)
metrics.jsonl        a line per optimizer step; before them one of step 0 where held-out rows are measured there
state/finished.json  written when nothing is left to do
"""

import contextlib
import json
import math
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from system.errors import InputError
from system.files import numbered

EPOCH, STEP = "epoch-", "step-"
"""How the names of checkpoint folders begin."""
BEST = "best"
METRICS = "metrics.jsonl"
FINISHED = "state/finished.json"


def checkpoint_name(step: int, per_epoch: int, n_steps: int) -> str:
    """The folder of a step, in a run of so many: its epoch's where it ends one."""
    if step % per_epoch == 0 or step == n_steps:
        return f"{EPOCH}{-(-step // per_epoch):02d}"
    return f"{STEP}{step:06d}"


def checkpoints_of(run: Path) -> list[Path]:
    """The checkpoint folders of a run, in the order of their steps."""
    epochs, steps = numbered(run, EPOCH), numbered(run, STEP)
    if not steps:
        return [path for _, path in epochs]
    per_epoch = steps_per_epoch(lines_of(run)) or math.inf
    return [path for _, path in sorted([*((number * per_epoch, path) for number, path in epochs), *steps])]


def lines_of(run: Path) -> Iterator[dict[str, Any]]:
    """The lines of metrics.jsonl; what is torn, or is being written, is left out."""
    path = run / METRICS
    if not path.is_file():
        return
    with open(path, "rb") as file:
        for line in file:
            with contextlib.suppress(ValueError):
                found = json.loads(line) if line.endswith(b"\n") else None
                if isinstance(found, dict):
                    yield found


def place_of(name: str, per_epoch: int | None) -> float:
    """Where a checkpoint stands, in epochs: by the number at its name's end, which is a step's in step-000120."""
    found = re.search(r"(\d+)$", name)
    number = float(found[1]) if found else 0.0
    return number / per_epoch if per_epoch and name.startswith(STEP) else number


def steps_per_epoch(lines: Iterable[dict[str, Any]]) -> int | None:
    """Steps of an epoch, as lines of metrics say; None where none is of a step."""
    first = next((line for line in lines if line.get("step") and line.get("epoch")), None)  # not the one of step 0
    return None if first is None else round(first["step"] / first["epoch"])


def end_of(run: Path) -> dict[str, Any] | None:
    """What is known of a run's end: its "steps", and "why" where they are not all; None where it is not finished."""
    path = run / FINISHED
    try:
        return dict(json.loads(path.read_text(encoding="utf-8")))
    except FileNotFoundError:
        return None
    except (OSError, ValueError, TypeError):
        raise InputError(f"{path}: damaged; remove it, and resume with --resume") from None


def best_of(run: Path) -> Path | None:
    """The folder that `best` is a link to; None where there is none."""
    link = run / BEST
    return run / link.readlink().name if link.is_symlink() and link.exists() else None
