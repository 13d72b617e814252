"""Figure 4 of arXiv 2408.06266 for a real model on real preference pairs: what each objective does to held-out pairs.

    python -m examples.real.figure4 pairs.jsonl --out runs/real/figure4

Log-likelihoods and rewards of the winners and losers of pairs that are held out, after every epoch and, with
--eval-every, inside them. On a CPU a small
number of pairs, cut short; --n, --heldout, --epochs and --max-response-tokens say how many and how long. What the
paper says of its figure is held against the numbers, one by one: figure4.md.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import tyro

from data import load_preferences
from eval import report
from eval.runs import read_runs
from eval.tables import Table, to_markdown
from examples import grid
from examples.findings import Trajectory, of_trajectories, trajectory
from examples.real import checkpoint
from examples.slots import Slots
from system import InputError, cli, files
from system.flags import PathText, check_above_zero

OBJECTIVES = ("dpo", "apo_zero", "apo_down", "kto_pair", "sft")
EXAMPLE = "python -m examples.real.figure4 pairs.jsonl --out runs/real/figure4"


@dataclass(frozen=True, kw_only=True)
class Figure4Config:
    """Train five objectives from the same model on the same pairs, and follow held-out pairs through the training (the
    paper's Figure 4)."""

    data: tyro.conf.Positional[PathText]
    """Pairs, as engine.train takes them."""
    out: PathText
    """Folder for the runs, their report and figure4.md. Existing runs in it are continued."""
    model: PathText | None = None
    """Checkpoint folder or hub id. Unset: SmolLM2-135M-Instruct, downloaded into runs/real."""
    n: int = 16
    """Number of pairs to train on."""
    heldout: int = 12
    """Number of held-out pairs to follow. The paper's figure has 100."""
    epochs: int = 4
    """Passes over the pairs. The paper uses 18."""
    lr: float = 5e-6
    """Learning rate. The paper has 2e-7, for Llama-3-8B."""
    eval_every: int | None = None
    """Number of steps after which the held-out pairs are measured again; they are then measured before the first step
    too. Unset: after each epoch."""
    batch_size: int = 8
    """Pairs per optimizer step. The paper has 16."""
    max_response_tokens: int = 64
    """Truncate responses to this many tokens. The paper has 512."""
    at_once: int | None = None
    """Number of objectives that train side by side. Unset: one for each GPU, or one without a GPU. A GPU has room for
    several runs of a small model."""
    as_it_stands: bool = False
    """Train nothing, and report the runs as far as they have come."""
    seed: int = 0
    """Seed for drawing the pairs."""
    config: PathText | None = None
    """YAML file with settings under the names of the flags. Flags on the command line win over it."""

    def __post_init__(self) -> None:
        check_above_zero(self, "n", "heldout", "epochs", "at_once")


def main(argv: Sequence[str]) -> None:
    """The command."""
    config = cli.parse(Figure4Config, argv, command="python -m examples.real.figure4", example=EXAMPLE)
    root, n_needed = Path(config.out), config.n + config.heldout
    if (n_rows := len(load_preferences(config.data))) < n_needed:
        raise InputError(f"{config.data}: holds {n_rows} rows, and --n and --heldout ask for {n_needed}; ask for fewer")
    more: dict[str, float] = {
        "eval-pairs": config.heldout, "epochs": config.epochs, "batch-size": config.batch_size, "keep_checkpoints": 1,
        "max-response-tokens": config.max_response_tokens,
    }  # fmt: skip
    if config.eval_every is not None:
        more["eval-every"] = config.eval_every
    if n_rows > n_needed:
        more["data-weights"] = n_needed / n_rows
    cells = [grid.Cell("pairs", Path(config.data), loss, config.seed, config.lr) for loss in OBJECTIVES]
    flags = {name: str(value) for name, value in more.items()}
    if not config.as_it_stands:
        model = config.model or str(checkpoint.fetch(Path("runs/real")))
        grid.run_all(
            cells, root, model=model, settings=None, score=None, slots=Slots(at_once=config.at_once), more=flags
        )
    runs = [grid.folder(root, cell) for cell in cells]
    print(report.write(runs, root / "report", title=f"Held-out pairs of {Path(config.data).name}"))
    found = {run.loss: trajectory(run) for run in read_runs(runs)}
    draw(found, root / "figure4.svg")
    said = " ".join([settings(config), *unfinished(found, config.epochs)])
    files.write_text(root / "figure4.md", f"{said}\n\n{numbers(found)}\n{held(found)}")
    print((root / "figure4.md").read_text())


def settings(config: Figure4Config) -> str:
    """How it was trained, in a sentence."""
    return (
        f"{config.n} pairs to train on and {config.heldout} held out, drawn by a seed; responses cut at "
        f"{config.max_response_tokens} tokens; {config.epochs} epochs in batches of {config.batch_size}; RMSProp at "
        f"{config.lr:g}, linear decay, beta 0.1."
    )


def unfinished(found: Mapping[str, Trajectory], n_epochs: int) -> list[str]:
    """A sentence for each objective that was stopped before its end."""
    ended = {loss: max(t.epochs, default=0.0) for loss, t in found.items()}
    return [f"{loss} was stopped after epoch {n:g}." for loss, n in ended.items() if n < n_epochs]


def draw(found: Mapping[str, Trajectory], path: Path) -> None:
    """Log-probs and rewards of winners and losers, over epochs."""
    import matplotlib

    matplotlib.use("svg")
    from matplotlib import pyplot

    matplotlib.rcParams["svg.hashsalt"] = path.stem  # the same file each time
    figure, panels = pyplot.subplots(1, 2, figsize=(10, 3.6))
    for colour, (loss, t) in zip(("#d93025", "#1a73e8", "#188038", "#f9ab00", "#9aa0a6"), found.items(), strict=True):
        for axes, sides in zip(panels, (t.logps, t.rewards), strict=True):
            for side, values in sides.items():
                style, label = ("-", loss) if side == "chosen" else ("--", None)
                axes.plot(t.epochs, values, style, color=colour, label=label)
    panels[0].set(xlabel="epoch", ylabel="nats", title="held-out log-probs (dashed: rejected)")
    panels[1].set(xlabel="epoch", ylabel="reward", title="held-out rewards (dashed: rejected)")
    panels[1].axhline(0, color="#9aa0a6", linewidth=0.8)
    panels[1].legend(*panels[0].get_legend_handles_labels(), loc="upper left", bbox_to_anchor=(1.01, 1), frameon=False)
    for axes in panels:
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.spines[["top", "right"]].set_visible(False)
    figure.tight_layout()
    figure.savefig(path, metadata={"Date": None})
    pyplot.close(figure)


def numbers(found: Mapping[str, Trajectory]) -> str:
    """First and last epoch of each objective."""
    rows = []
    for loss, t in found.items():
        first = next((i for i, epoch in enumerate(t.epochs) if epoch >= 1), -1)
        cells = [f"{v[first]:.1f} → {v[-1]:.1f}" for v in t.logps.values()]
        cells += [f"{v[first]:+.3f} → {v[-1]:+.3f}" for v in (*t.rewards.values(), t.margins)]
        rows.append((loss, *cells))
    header = ("objective", "logps chosen", "logps rejected", "reward chosen", "reward rejected", "margin")
    return to_markdown(Table("held-out", "Held-out pairs, first epoch → last", header, rows))


def held(found: Mapping[str, Trajectory]) -> str:
    """The claims as a table."""
    zero, down, dpo = (found[name] for name in ("apo_zero", "apo_down", "dpo"))
    claims = of_trajectories(zero, down, dpo)
    rows = [(claim, "holds" if is_so else "does not hold") for claim, is_so in claims.items()]
    return to_markdown(Table("claims", "What the paper says of its Figure 4", ("claim", "here"), rows))


if __name__ == "__main__":
    cli.run(main)
