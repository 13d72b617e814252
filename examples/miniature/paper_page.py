"""Writes docs/paper.md from what ./launch.sh paper and the search for rates have left; its tables are theirs.

python -m examples.miniature.paper_page runs/paper/whole runs/tune
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

from eval.runs import deltas, headlines, heldout, heldout_rewards, read_runs
from examples.miniature import paper, sets
from system import InputError, cli, files

DOCS = Path(__file__).resolve().parents[2] / "docs"
HEAD = f"""# The paper in miniature

Which of the paper's claims hold in a small made-up world. `python -m examples.miniature.paper_page` writes this page
from the results of these commands; the verdict on each claim is computed.

```
# takes half an hour, and an hour and ten minutes
python -m examples.miniature.tune       the learning rates, on prompts and questions of their own
./launch.sh paper --seeds 3             four data sets x six objectives x 18 epochs, each checkpoint scored
```

**The world** is the demo's field guide: questions about four facts on sixteen animals. The model has 0.85 million
parameters. It learnt from answers in which 30 % of the values are wrong, so it knows the facts, but answers like its
corpus when it is sampled. A program decides whether an answer is exact; the score is the share of exact answers to 200
questions that no model was trained on. The style of an answer costs nothing, and nothing else can go wrong. The
experiment can therefore show nothing about language, length or size.

**The pairs**: 288 per set, of which 32 are held out, from the same 450 prompts (a seed draws them from 674), made with
`python -m revise` over HTTP.

- CLAIR: a reviser replaces wrong values and inserts missing ones.
- On-policy judge: of two samples, the one with more right facts wins.
- Off-policy judge: the best against the worst of four other models that get 60 to 90 % of their values wrong. They are
  worse than the model, as most of UltraFeedback's answers are for an instruction model.
- Stronger Preferred: the answer of a model that is always right, in a style of its own, against the sample.

**Training**: {paper.EPOCHS} epochs, batches of {paper.TRAINING["batch-size"]}, RMSProp with linear decay after
{paper.TRAINING["warmup-steps"]} steps of warm-up, each objective at its own learning rate (below), beta {paper.BETA[1]}
(the paper's is 0.1).

**Beyond the paper**: `apo_select` takes APO-zero or APO-down pair by pair, by the grades of the winner and of the
model's own answer (section 8 of the paper). On CLAIR, where every winner is better than the model, it is APO-zero; on
the other three sets it is below APO-zero. Rounds make new answers and revisions with the aligned model, which is the
next reference (on all 1,020 prompts, including those of the search for rates). They end below a single round with all
prompts at once.

"""
COLOURS = ("#1a73e8", "#188038", "#9aa0a6", "#d93025", "#f9ab00", "#9334e6")


def main(argv: Sequence[str]) -> None:
    """The command."""
    parser = argparse.ArgumentParser(prog="python -m examples.miniature.paper_page", description=__doc__)
    parser.add_argument("grid", type=Path, help="folder whole/ that ./launch.sh paper has written")
    parser.add_argument("tune", type=Path, help="folder that examples.miniature.tune has written")
    asked = parser.parse_args(argv)
    text = HEAD
    for name in ("claims", "grid", "grades", "table-1", "rounds", "table-5-side-by-side"):
        text += read(asked.grid / f"report/tables/{name}.md") + "\n\n"
    draw(asked.grid, DOCS / "paper-curves.svg")
    text += "![Exact answers, held-out rewards and log-probs by epoch, seed 0](paper-curves.svg)\n\n"
    text += RATES + read(asked.tune / "rates.md")
    files.write_text(DOCS / "paper.md", text.rstrip() + "\n")


RATES = """## How the rates were found

Every objective was trained for six epochs at three rates, and at one more if the best was the lowest or the highest.
The four sets come from 350 prompts that the grid does not use, and are scored on 200 questions that it is not scored
on. The mean over the four sets decides, so each objective has one rate. RMSProp warms up for ten steps. In a first
trial without warm-up, its first steps, at ten times the rate, threw APO-zero at 3e-4 on judged pairs from 17.5 % to
nothing.

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
            for side, style in (("chosen", "-"), ("rejected", "--")):
                for axes, points in zip(
                    panels[1:], (heldout_rewards(run, side), heldout(run, f"logps/{side}")), strict=True
                ):
                    axes.plot(*zip(*points, strict=True), style, color=colour)
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
