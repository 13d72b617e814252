"""Writes docs/paper.md from what ./launch.sh paper and the search for rates have left; its tables are theirs.

    python -m examples.miniature.paper_page runs/paper/whole runs/tune

Its words on how the runs went are in it: who runs the grid anew reads them again.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

from data import InputError, cli, files
from eval.runs import deltas, headlines, heldout, read_runs
from examples.miniature import paper, sets

DOCS = Path(__file__).resolve().parents[2] / "docs"
HEAD = """# The paper in miniature

Written by `python -m examples.miniature.paper_page` from what the commands below have left. The world is the demo's
field guide: questions for four facts on animals, a model of 0.8 million parameters that learned from answers with 30 %
of the values wrong, a program that sees whether an answer is exact. What it cannot show: anything about language, or
about sizes.

```
# takes an hour and a half, and another half
./launch.sh paper --seeds 3             four data sets x six objectives x 18 epochs, each checkpoint scored
python -m examples.miniature.tune       the learning rates, on prompts of their own
```

"""
COLOURS = ("#1a73e8", "#188038", "#9aa0a6", "#d93025", "#f9ab00", "#9334e6")


def main(argv: Sequence[str]) -> None:
    """The command."""
    parser = argparse.ArgumentParser(prog="python -m examples.miniature.paper_page", description=__doc__)
    parser.add_argument("grid", type=Path, help="the folder whole/ of ./launch.sh paper")
    parser.add_argument("tune", type=Path, help="that of examples.miniature.tune")
    asked = parser.parse_args(argv)
    text = HEAD
    for name in ("claims", "grid", "table-1", "rounds", "table-5-side-by-side"):
        text += read(asked.grid / f"report/tables/{name}.md") + "\n\n"
        text += EXPLAINED.get(name, "")
    draw(asked.grid, DOCS / "paper-curves.svg")
    text += "![Exact answers, held-out rewards and log-probs by epoch, seed 0](paper-curves.svg)\n\n"
    text += RATES + read(asked.tune / "rates.md")
    files.write_text(DOCS / "paper.md", text.rstrip() + "\n")


EXPLAINED: dict[str, str] = {}
RATES = """## How the rates were found

"""


def read(path: Path) -> str:
    """A table that a run has left. Raises InputError where it has not."""
    if not path.exists():
        raise InputError(f"{path}: not there; let ./launch.sh paper and examples.miniature.tune end first")
    return path.read_text().strip()


def draw(grid: Path, path: Path) -> None:
    """A row for each data set: gain in exact answers, held-out rewards and log-probs, a colour for each objective."""
    import matplotlib

    matplotlib.use("svg")
    from matplotlib import pyplot

    matplotlib.rcParams["svg.hashsalt"] = path.stem  # the same file each time
    figure, rows = pyplot.subplots(len(sets.NAMES), 3, figsize=(12, 11), sharex=True)
    for name, panels in zip(sets.NAMES, rows, strict=True):
        losses = (*paper.OBJECTIVES, "apo_select")
        found = dict(zip(losses, read_runs([grid / f"seed-0/{name}/{loss}" for loss in losses]), strict=True))
        for (loss, run), colour in zip(found.items(), COLOURS, strict=True):
            gained = deltas(run, headlines([run])[0])[0]
            panels[0].plot(range(1, len(gained) + 1), list(gained.values()), color=colour, label=loss)
            for axes, kind in zip(panels[1:], ("rewards", "logps"), strict=True):
                for side, style in (("chosen", "-"), ("rejected", "--")):
                    axes.plot(*zip(*heldout(run, f"{kind}/{side}"), strict=True), style, color=colour)
        panels[0].set(ylabel=name)
        for axes in panels:
            axes.axhline(0, color="#9aa0a6", linewidth=0.6) if axes is not panels[2] else None
            axes.spines[["top", "right"]].set_visible(False)
    titles = ("exact answers, points over the base", "held-out rewards (dashed: rejected)", "held-out log-probs, nats")
    for axes, title in zip(rows[0], titles, strict=True):
        axes.set(title=title)
    rows[0][0].legend(fontsize=8, frameon=False)
    for axes in rows[-1]:
        axes.set(xlabel="epoch")
    figure.tight_layout()
    figure.savefig(path, metadata={"Date": None})
    pyplot.close(figure)


if __name__ == "__main__":
    cli.run(main)
