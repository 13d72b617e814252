"""The paper's experiment in the miniature world: four data sets, five objectives, 18 epochs, every checkpoint scored.

    ./launch.sh paper                one seed: half an hour on two cores
    ./launch.sh paper --seeds 3      three, with deviations
    ./launch.sh paper --quick        two data sets, three objectives, six epochs: six minutes
    ./launch.sh paper --config grid.yaml      any other grid of data sets, objectives and seeds: examples/grid.py

Data sets are made by the recipes of revise/ over HTTP, runs are engine.train's, scores and pictures those of eval/'s
report: runs/paper/whole/report/report.html, whose first table holds what the paper claims against what was measured
here. Two rows go beyond the paper: APO's variant chosen pair by pair (its section 8), and rounds, each with new
answers, new revisions and the policy of the round before as reference. What is done is kept, and the same command goes
on.
"""

import json
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np

from eval import report, scores
from eval.runs import Run
from eval.tables import Table, number
from examples import findings, grid
from examples.grid import Cell
from examples.miniature import model, rounds, sets, world
from examples.slots import Slots
from system import InputError, cli
from system.flags import PathText, check_above_zero

OBJECTIVES = ("dpo", "kto_pair", "sft", "apo_zero", "apo_down")
RATES = {"dpo": 3e-5, "kto_pair": 1e-4, "sft": 3e-4, "apo_zero": 1e-4, "apo_down": 1e-5}
"""Each objective's best, found by `python -m examples.miniature.tune` on prompts of its own."""
RATES |= {"apo_select": RATES["apo_zero"], "kto": RATES["kto_pair"], "apo_zero_unpaired": RATES["apo_zero"]}
TRAINING = {
    "optimizer": "rmsprop", "batch-size": "16", "eval-pairs": "32", "state-every": "0",
    "warmup-steps": "10",
}  # fmt: skip
"""A warm-up, as RMSProp's first step without one is ten times the rate; here are 288 steps, in the paper 32,600."""
BETA = ("beta", "0.5")
EPOCHS = 18
N_PAIRS = 288  # of which 32 are held out
N_PROMPTS = 450  # of which some make no pair
N_FOR_TUNING = 350  # prompts that the grid never sees
QUICK: dict[str, Any] = {"data": ("clair", "judge-on-policy"), "loss": ("dpo", "apo_zero", "apo_down"), "epochs": 6}
SCORE = "{python} -m examples.miniature.score {run}"
EXAMPLE = "./launch.sh paper --seeds 3"


@dataclass(frozen=True, kw_only=True)
class PaperConfig:
    """Run the paper's experiment with a tiny Llama on questions about animals (the miniature world), and compare the
    paper's claims with the results."""

    out: PathText = "runs/paper"
    """Folder for all results. Existing results in it are reused."""
    seeds: int = 1
    """Number of seeds. Each has its own prompts, answers, pairs and order of the rows."""
    quick: bool = False
    """Run only two data sets, three objectives and six epochs."""
    also: tuple[PathText, ...] = ()
    """Further objectives, as in engine.train --loss. Settings for one objective follow its name inside quotes:
    "apo_zero beta=0.1 lr=3e-5". Default beta: 0.5. Default learning rate: the one that examples.miniature.tune found
    for the objective, else 3e-5 (DPO's)."""
    at_once: int | None = None
    """Number of runs side by side. Unset: one for each GPU, or without a GPU one for each core."""

    def __post_init__(self) -> None:
        check_above_zero(self, "seeds", "at_once")
        for loss in self.also:
            grid.check_loss(loss)


def main(argv: Sequence[str]) -> None:
    """The command."""
    config = cli.parse(PaperConfig, argv or ["--out", PaperConfig.out], command="./launch.sh paper", example=EXAMPLE)
    root, start = Path(config.out) / ("quick" if config.quick else "whole"), time.perf_counter()
    root.mkdir(parents=True, exist_ok=True)
    base = model.base_model(Path(config.out))
    names = QUICK["data"] if config.quick else sets.NAMES
    files = {
        seed: sets.make(base, root / f"seed-{seed}/sets", prompts(seed), N_PAIRS, seed, names)
        for seed in range(config.seeds)
    }
    cells = cells_of(files, quick=config.quick, also=config.also)
    more = TRAINING | {"epochs": str(QUICK["epochs"] if config.quick else EPOCHS)}
    options: dict[str, Any] = {"model": str(base), "settings": None, "score": SCORE}
    grid.run_all(cells, root, more=more, slots=Slots.for_small(config.at_once), **options)
    beside = [] if config.quick else beside_each_other(files[0]["clair"])
    grid.run_all(beside, root / "side-by-side", more=more, slots=Slots(at_once=2), **options)
    n_rounds = 2 if config.quick else rounds.N_ROUNDS
    curve = rounds.run(base, root / "rounds", n_rounds=n_rounds, lr=RATES["apo_zero"])
    found, pairs = grid.read(cells, root), grid.read(beside, root / "side-by-side")
    first = [claims(found), grid.gains(found), grades(files), rounds.table(curve), *([times(pairs)] if pairs else [])]
    folders = [grid.folder(root, cell) for cell in cells if cell.seed == 0]
    title, charts = "The paper's experiment in the miniature world", [rounds.chart(curve)]
    page = report.write(folders, root / "report", title=title, first=first, charts=charts)
    print(page)
    print(f"done in {(time.perf_counter() - start) / 60:.1f} min", file=sys.stderr)


def prompts(seed: int) -> list[world.Question]:
    """A seed's prompts, of those that no model was trained on, is tested on or was tuned by."""
    every = model.split_questions()[1][:-N_FOR_TUNING]
    drawn = np.random.default_rng(seed).choice(len(every), N_PROMPTS, replace=False)
    return [every[i] for i in drawn.tolist()]


def cells_of(files: Mapping[int, Mapping[str, Path]], *, quick: bool, also: Sequence[str] = ()) -> list[Cell]:
    """Every run: the paper's five objectives, APO's variant chosen pair by pair, and the user's own."""
    rates = {loss: RATES[loss] for loss in (QUICK["loss"] if quick else (*OBJECTIVES, "apo_select"))}
    flags: dict[str, tuple[tuple[str, str], ...]] = dict.fromkeys(rates, (BETA,))
    for loss in also:
        if loss in rates:
            raise InputError(f"--also {loss}: is trained already; give it flags of its own, such as {loss} beta=0.3")
        has_beta = any("beta" in term.arguments for term in grid.check_loss(loss).terms)
        rates[loss], flags[loss] = RATES.get(grid.parse_loss(loss)[0], RATES["dpo"]), (BETA,) if has_beta else ()
    return [
        Cell(name, by_name[name], loss, seed, rates[loss], flags[loss])
        for seed, by_name in files.items()
        for name in by_name
        for loss in rates
    ]


def beside_each_other(file: Path) -> list[Cell]:
    """Table 5's two objectives on one data set, at the same time."""
    return [Cell("clair", file, loss, 0, RATES[loss], (BETA,)) for loss in ("kto", "apo_zero_unpaired")]


# --- what came out -------------------------------------------------------------------------------------------------


def claims(found: Mapping[Cell, Run]) -> Table:
    """What the paper claims, and whether it is so here: computed from the runs."""
    counts: dict[str, list[tuple[str, bool]]] = {}
    for seed in sorted({cell.seed for cell in found}):
        of_seed = {(cell.data, cell.loss): run for cell, run in found.items() if cell.seed == seed}
        gained = {c: v[0][1] for c, v in grid.means({k: r for k, r in found.items() if k.seed == seed}).items()}
        made = [("", findings.of_contrast(*contrast(of_seed))), ("", findings.of_gains(only(gained)))]
        for data in dict.fromkeys(data for data, _ in of_seed):
            three = [findings.trajectory(of_seed[data, loss]) for loss in ("apo_zero", "apo_down", "dpo")]
            made.append((data, findings.of_trajectories(*three)))
        for data, said in made:
            for claim, is_so in said.items():
                counts.setdefault(claim, []).append((data, is_so))
    return findings.table(counts, over="seeds, and over data sets where a claim is of each")


def grades(files: Mapping[int, Mapping[str, Path]]) -> Table:
    """What the judge gives winners, losers and the model's own answers, by data set, over seeds."""
    found: dict[str, list[dict[str, Any]]] = {}
    for by_name in files.values():
        for name, path in by_name.items():
            found.setdefault(name, []).extend(map(json.loads, path.read_text().splitlines()))
    rows = []
    for name, lines in found.items():
        lines = [x for x in lines if x.keys() >= sets.SCORES]
        means = (fmean(x[f"{who}_score"] for x in lines) for who in ("chosen", "rejected", "own"))
        better = fmean(x["chosen_score"] > x["own_score"] for x in lines)
        rows.append((name, str(len(lines)), *map(number, means), number(100 * better, 0)))
    header = ("data", "pairs", "winner", "loser", "the model's own", "winner better than own, %")
    return Table("grades", "Are winners better than the model? The judge's grades, 1 to 10", header, rows, 1)


def only(gained: Mapping[tuple[str, str], float]) -> dict[tuple[str, str], float]:
    """The cells of the paper's own objectives."""
    return {cell: value for cell, value in gained.items() if cell[1] in OBJECTIVES}


def contrast(runs: Mapping[tuple[str, str], Run]) -> tuple[dict[str, float], dict[str, float]]:
    """Jaccard similarity of tokens and Levenshtein distance of each data set."""
    made: tuple[dict[str, float], dict[str, float]] = ({}, {})
    for (data, _), run in runs.items():
        for line in scores.pick(run.lines, benchmark="contrast"):
            for kept, name in zip(made, ("Jaccard of tokens, %", "Levenshtein"), strict=True):
                if line["metric"].startswith(name):
                    kept[data] = float(line["value"])
    return made


def times(found: Mapping[Cell, Run]) -> Table:
    """Table 5: what the steps of two objectives took, side by side on one machine."""
    rows = []
    for cell, run in found.items():
        seconds = sum(float(line["perf/step_seconds"]) for line in run.metrics)
        (best, mean) = grid.means({cell: run})[cell.data, cell.loss][0]
        rows.append((cell.loss, number(seconds, 0), number(best, sign=True), number(mean, sign=True)))
    header = ("objective", "seconds of steps", "max Δ", "mean Δ")
    notes = ["Both on the CLAIR pairs, each pair as two labelled responses, at the same time on the same machine."]
    if all(line.get("kl", 0.0) == 0 for run in found.values() for line in run.metrics):
        notes += ["KTO's estimate of the divergence stayed at 0: the work differs, and the objective does not."]
    return Table("table-5-side-by-side", "KTO and APO-zero unpaired (Table 5)", header, rows, 1, notes)


if __name__ == "__main__":
    cli.run(main)
