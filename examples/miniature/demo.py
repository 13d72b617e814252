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

from engine import train
from engine.config import TrainConfig
from eval import contrast_run, report, trajectories
from examples.miniature import model, reviser, world
from examples.miniature.score import MAX_ANSWER_TOKENS, Score, measure, write_scores
from revise import recipe_runner
from revise import show as pages
from revise.recipes import ClairConfig, clair_recipe
from system import RunError, cli
from system.flags import PathText

TRAINING = {"batch_size": 16, "epochs": 2, "optimizer": "adamw", "lr": 1e-3, "warmup_steps": 10, "beta": 0.5}
OBJECTIVES = ("apo_zero", "dpo")
N_HELDOUT = 64  # of the pairs


@dataclass(frozen=True, kw_only=True)
class DemoConfig:
    """Build, sample, revise, align, measure: the whole method in a world where every answer can be checked."""

    out: PathText = "runs/demo"
    """Folder for everything that the demo makes; the base model in it is kept and used again."""
    figure: PathText | None = None
    """Draw the result as an SVG file too."""


def make_pairs(folder: Path, questions: Sequence[world.Question], root: Path) -> Path:
    """Has the model answer and a reviser mend its answers, over HTTP, by the recipe that a real run uses."""
    prompts, pairs = root / "prompts.jsonl", root / "pairs.jsonl"
    prompts.write_text("".join(json.dumps({"prompt": q.prompt}) + "\n" for q in questions))
    for left in root.glob("answers.sqlite*"):  # else nothing would be asked a second time
        left.unlink()
    with reviser.serve_reviser() as address:
        config = ClairConfig(
            prompts=str(prompts),
            out=str(pairs),
            store=str(root / "answers.sqlite"),
            endpoint=(address,),
            model="field-guide-reviser",
            target_model=str(folder),
            target_max_tokens=MAX_ANSWER_TOKENS,
            price_in=10.0,
            price_out=30.0,
        )
        recipe_runner.make(clair_recipe(config))
    page = root / "pairs.html"
    page.unlink(missing_ok=True)
    pages.main([str(pairs), "--html", str(page)])
    return pairs


def main(argv: Sequence[str]) -> None:
    """The command."""
    config = cli.parse(
        DemoConfig, argv or ["--out", DemoConfig.out], command="./launch.sh demo", example="./launch.sh demo"
    )
    start, root = time.perf_counter(), Path(config.out)
    root.mkdir(parents=True, exist_ok=True)

    def stage(sentence: str) -> None:
        print(f"[{time.perf_counter() - start:5.0f} s] {sentence}", file=sys.stderr, flush=True)

    stage("a tiny Llama learns the field guide from a corpus in which 30 % of the values are wrong")
    base = model.base_model(root)
    _, prompts, test = model.split_questions()
    stage("it answers new prompts; a reviser, asked over HTTP, repairs what is wrong in each answer, and nothing else")
    pairs = make_pairs(base, prompts, root)
    models, runs = {"base": base}, [root / loss for loss in OBJECTIVES]
    epochs: dict[Path, dict[str, Path]] = {}
    for loss in OBJECTIVES:
        stage(f"{loss} trains on the pairs")
        shutil.rmtree(root / loss, ignore_errors=True)
        run = train.run(
            TrainConfig(
                model=str(base),
                data=(str(pairs),),
                loss=loss,
                out=str(root / loss),
                eval_pairs=N_HELDOUT,
                **TRAINING,  # pyright: ignore[reportArgumentType]
            )
        )
        models[loss] = run.checkpoints[-1]
        epochs[root / loss] = {folder.name: folder for folder in run.checkpoints}
    stage(f"every model answers {len(test)} questions that none has seen")
    sampled = {name: measure(folder, test, temperature=1.0) for name, folder in models.items()}
    greedy = {name: measure(folder, test, temperature=0.0) for name, folder in models.items()}

    rewards = {loss: read_rewards(root / loss / "metrics.jsonl") for loss in OBJECTIVES}
    show(rewards, sampled, greedy, test)
    if config.figure:
        draw(rewards, sampled, Path(config.figure))
    stage("every checkpoint is measured for the report")
    for folder in runs:
        found = {"base": sampled["base"]} | {
            name: sampled[folder.name] if path in models.values() else measure(path, test, temperature=1.0)
            for name, path in epochs[folder].items()
        }
        write_scores(folder, found)
        contrast_run.measure(folder)
        trajectories.main([str(folder), "--answers", "48", "--max-new-tokens", str(MAX_ANSWER_TOKENS)])
    page = report.write(runs, root / "report", title="A tiny Llama, aligned on revisions of its own answers")
    stage(f"done; models, pairs and metrics are in {root}, and the report is {page}")
    if sampled["apo_zero"].interval[0] <= sampled["base"].interval[1]:
        raise RunError("APO-zero did not improve on the base: their intervals at temperature 1 overlap")


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
