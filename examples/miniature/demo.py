"""The demo: a tiny Llama is made, sampled, and aligned on minimal revisions of its own answers (CLAIR) with APO-zero;
DPO trains on the same pairs beside it. Everything runs through the modules that a real run uses, and ends in the
report that a real run ends in: runs/demo/report/report.html.

    ./launch.sh demo        four to six minutes on two cores

It trains with AdamW at 1e-3, and not with the paper's RMSProp at 2e-7: there are some eighty steps for what the paper
does in 32,600, and a model this small takes larger ones. The rate was chosen for APO-zero, and DPO has it, too.
"""

import json
import shutil
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import plotext

from eval import checkpoints
from examples import align
from examples.miniature import model, world
from examples.miniature.score import Score, measure
from revise import show as pages
from system import RunError, cli
from system.flags import PathText

RECIPE = Path(__file__).parents[1] / "recipes/demo.yaml"
OBJECTIVES = ("apo_zero", "dpo")
DONE = ".demo-is-done"


@dataclass(frozen=True, kw_only=True)
class DemoConfig:
    """Train a tiny Llama, revise its answers, align it on the pairs, and measure it, on questions about animals whose
    answers a program can check."""

    out: PathText = "runs/demo"
    """Folder for everything that the demo makes. The base model in it is kept and used again."""
    figure: PathText | None = None
    """SVG file for a figure of the result. Unset: none is drawn."""


def main(argv: Sequence[str]) -> None:
    """The command."""
    config = cli.parse(
        DemoConfig, argv or ["--out", DemoConfig.out], command="./launch.sh demo", example="./launch.sh demo"
    )
    start, root = time.perf_counter(), Path(config.out)
    root.mkdir(parents=True, exist_ok=True)
    begin_anew(root)

    def stage(sentence: str) -> None:
        print(f"[{time.perf_counter() - start:5.0f} s] {sentence}", file=sys.stderr, flush=True)

    stage("a tiny Llama learns the field guide from a corpus in which 30 % of the values are wrong, and answers")
    stage("a reviser, asked over HTTP, repairs what is wrong in each answer, and nothing else; apo_zero and dpo train")
    report = align.run(RECIPE, root)
    pairs = root / "round-1/pairs/clair.jsonl"
    pages.main([str(pairs), "--html", str(pairs.with_suffix(".html"))])
    runs = {loss: root / "round-1/runs/seed-0/clair" / loss for loss in OBJECTIVES}
    _, _, test = model.split_questions()
    models = {"base": root / "model"} | {loss: checkpoints.of(run)[-1].folder for loss, run in runs.items()}
    stage(f"every model answers {len(test)} questions that none has seen, sampled and greedily")
    sampled = {name: measure(folder, test, temperature=1.0) for name, folder in models.items()}
    greedy = {name: measure(folder, test, temperature=0.0) for name, folder in models.items()}
    rewards = {loss: read_rewards(run / "metrics.jsonl") for loss, run in runs.items()}
    show(rewards, sampled, greedy, test)
    if config.figure:
        draw(rewards, sampled, Path(config.figure))
    (root / DONE).touch()
    stage(f"done; models, pairs and metrics are in {root}, and the report is {report}")
    if sampled["apo_zero"].interval[0] <= sampled["base"].interval[1]:
        raise RunError("APO-zero did not improve on the base: their intervals at temperature 1 overlap")


def begin_anew(root: Path) -> None:
    """Takes away what a demo that came to its end has made, but for the base model: else there would be nothing to see.
    One that was stopped goes on.
    """
    if (root / DONE).exists():
        for name in ("round-1", "stages", "report", "logs"):
            shutil.rmtree(root / name, ignore_errors=True)
        for left in root.glob("*.sqlite*"):
            left.unlink()
        (root / DONE).unlink()


def read_rewards(path: Path) -> dict[str, list[float]]:
    """rewards/chosen and rewards/rejected of every step."""
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    return {
        name: [line[f"rewards/{name}"] for line in lines if f"rewards/{name}" in line]
        for name in ("chosen", "rejected")
    }


def show(rewards: dict, sampled: dict[str, Score], greedy: dict[str, Score], test: Sequence[world.Question]) -> None:
    """The result on one screen."""
    plotext.plotsize(76, 15)
    for loss, curves in rewards.items():
        for name, values in curves.items():
            plotext.plot(values, label=f"{loss} {name}")
    plotext.title("rewards on the training pairs, by step")
    picture = plotext.build()
    print(picture if sys.stdout.isatty() else plotext.uncolorize(picture))
    print(f"\n{sampled['base'].n} unseen questions       sampled at temperature 1                  greedy")
    print("                     exact answers (95 %)     facts right       exact (95 %)             facts")
    for name in sampled:
        s, g = sampled[name], greedy[name]
        print(f"  {name:<12} {_percent(s)}          {100 * s.facts:5.1f} %   {_percent(g)}   {100 * g.facts:5.1f} %")
    print()
    for i in np.random.default_rng(0).choice(len(test), 3, replace=False):
        print(f"  {test[i].prompt}")
        for name in sampled:
            mark = "right" if world.is_exact(test[i], sampled[name].answers[i]) else "wrong"
            print(f"    {name:<9} {mark}  {sampled[name].answers[i]}")


def _percent(score: Score) -> str:
    low, high = score.interval
    return f"{100 * score.exact:5.1f} % ({100 * low:4.1f} to {100 * high:5.1f})"


def draw(rewards: dict, sampled: dict[str, Score], path: Path) -> None:
    """The same as a figure."""
    import matplotlib

    matplotlib.use("svg")
    from matplotlib import pyplot

    matplotlib.rcParams["svg.hashsalt"] = "demo"  # the same file each time
    figure, (left, right) = pyplot.subplots(1, 2, figsize=(9, 3.2), width_ratios=(1, 1.6))
    names = list(sampled)
    shares = np.array([sampled[n].exact for n in names])
    bounds = np.array([sampled[n].interval for n in names]).T
    left.bar(names, 100 * shares, color=["#9aa0a6", "#1a73e8", "#d93025"], yerr=100 * abs(bounds - shares), capsize=4)
    left.set(ylabel="exact answers, %", ylim=(0, 100), title=f"{sampled['base'].n} unseen questions, temperature 1")
    for loss, colour in zip(rewards, ("#1a73e8", "#d93025"), strict=True):
        right.plot(rewards[loss]["chosen"], color=colour, label=f"{loss} chosen")
        right.plot(rewards[loss]["rejected"], color=colour, linestyle="--", label=f"{loss} rejected")
    right.axhline(0, color="#9aa0a6", linewidth=0.8)
    right.set(xlabel="step", ylabel="reward", title="rewards on the training pairs")
    right.legend(fontsize=8, frameon=False)
    for axes in (left, right):
        axes.spines[["top", "right"]].set_visible(False)
    figure.tight_layout()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, metadata={"Date": None})


if __name__ == "__main__":
    cli.run(main)
