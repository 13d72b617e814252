"""The learning rate of each objective for the miniature's grid, found on prompts that the grid never sees.

    python -m examples.miniature.tune runs/tune

Every objective trains for six epochs on four data sets of those prompts at several rates; the rate with the best mean
over data sets and checkpoints is its own. The same for all four data sets, as in the paper.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean

from data import cli
from examples import grid
from examples.grid import Cell
from examples.miniature import model, paper, sets

RATES = (3e-5, 1e-4, 3e-4, 1e-3)
EPOCHS, SEED = 6, 1000


def main(argv: Sequence[str]) -> None:
    """The command."""
    parser = argparse.ArgumentParser(prog="python -m examples.miniature.tune", description=__doc__)
    parser.add_argument("folder", type=Path, nargs="?", default=Path("runs/tune"))
    parser.add_argument("--rates", type=float, nargs="+", default=RATES)
    asked = parser.parse_args(argv)
    root = asked.folder
    base = model.base_model(root)
    prompts = model.split_questions()[1][-paper.N_FOR_TUNING :]
    files = sets.make(base, root / "sets", prompts, paper.N_PAIRS, SEED)
    more = paper.TRAINING | {"epochs": str(EPOCHS)}
    means: dict[str, dict[float, dict[str, float]]] = {}
    for rate in asked.rates:
        cells = [Cell(name, files[name], loss, SEED, rate) for loss in paper.OBJECTIVES for name in sets.NAMES]
        out = root / f"{rate:g}"
        grid.run_all(cells, out, model=str(base), settings=None, score=paper.SCORE, at_once=2, more=more)
        for (data, loss), seeds in grid.means(grid.read(cells, out)).items():
            means.setdefault(loss, {}).setdefault(rate, {})[data] = seeds[0][1]
    print(f"{'objective':<10} {'rate':>7}  mean   " + "  ".join(sets.NAMES))
    for loss, by_rate in means.items():
        best = max(by_rate, key=lambda rate: fmean(by_rate[rate].values()))
        for rate, found in by_rate.items():
            mark = "*" if rate == best else " "
            values = "  ".join(f"{found[name]:+{len(name)}.1f}" for name in sets.NAMES)
            print(f"{loss:<10} {rate:>7g}{mark} {fmean(found.values()):+6.1f}  {values}")
    print("points over the base model, mean over checkpoints", file=sys.stderr)


if __name__ == "__main__":
    cli.run(main)
