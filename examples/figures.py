"""Figures of docs/, drawn by matplotlib as SVG: from the same numbers the same bytes."""

from pathlib import Path
from typing import Any

COLOURS = {"apo_zero": "#188038", "dpo": "#1a73e8", "apo_down": "#d93025", "kto_pair": "#f9ab00", "sft": "#9aa0a6"}


def pyplot(path: Path) -> Any:
    """matplotlib's pyplot, set to write the figure of this path."""
    import matplotlib  # only where a figure is drawn

    matplotlib.use("svg")
    from matplotlib import pyplot

    matplotlib.rcParams["svg.hashsalt"] = path.stem  # the same file each time
    return pyplot


def save(figure: Any, path: Path) -> None:
    """Writes and forgets a figure."""
    from matplotlib import pyplot

    figure.tight_layout()
    figure.savefig(path, metadata={"Date": None})
    pyplot.close(figure)
