"""Which libraries a run can be watched by, and whether they are installed."""

from collections.abc import Sequence
from importlib.util import find_spec
from typing import Any, Literal

from system import InputError

Tracker = Literal["tensorboard", "wandb", "trackio", "mlflow", "none"]
"""Each is the name of its module and of its package; setup.cfg has them as extras."""
TRACKERS = ("tensorboard", "wandb", "trackio", "mlflow")
"""Those that a run can hand its lines to."""


def is_installed(tracker: str) -> bool:
    """Whether a library can be imported: looked up, not loaded. A folder of its name is none; wandb leaves one."""
    found = find_spec(tracker)
    return found is not None and found.origin is not None


def check_trackers(names: Sequence[str]) -> None:
    """Raises InputError where a library that --track names is not installed."""
    if missing := [name for name in names if name != "none" and not is_installed(name)]:
        raise InputError(
            f"--track {' '.join(missing)}: not installed; pip install {' '.join(missing)}, or choose among "
            f"{', '.join(TRACKERS)}, none"
        )


def tracked(report_to: Any) -> list[str]:
    """--track for what a file for TRL says; empty where our default holds, since nothing that it names can be had."""
    names = _names(report_to)
    return ["none"] if names == ["none"] else [name for name in TRACKERS if name in names and is_installed(name)]


def not_tracked(report_to: Any) -> list[str]:
    """What is to be said of libraries in it that a run here does not report to."""
    names = [name for name in _names(report_to) if name != "none"]
    missing = [name for name in names if name in TRACKERS and not is_installed(name)]
    said = [f"report_to: {name} is not installed, and left out; pip install {name} to have it" for name in missing]
    known = ", ".join(TRACKERS)
    return said + [f"report_to: {name} is not supported here; {known} are" for name in names if name not in TRACKERS]


def _names(report_to: Any) -> list[str]:
    names = [str(name).lower() for name in (report_to if isinstance(report_to, list) else [report_to])]
    return [name for name in TRACKERS if is_installed(name)] if names == ["all"] else names
