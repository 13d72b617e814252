"""Search the learning rate of each objective for ./launch.sh paper, on prompts and questions that it does not use.

    python -m examples.miniature.tune runs/tune

Every objective trains for six epochs on the four data sets of those prompts, at several rates. The chosen rate has the
highest gain over the base model, averaged over data sets and checkpoints. One rate is used for all four data sets, as
in the paper. If the best rate is the lowest or the highest tried so far, the next one beyond it is tried too.
"""

import argparse
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import TypeVar

from eval.tables import Table, number, to_markdown
from examples import grid
from examples.grid import Cell
from examples.miniature import model, paper, sets
from examples.slots import Slots
from system import cli, files

LADDER = (1e-6, 3e-6, 1e-5, 3e-5, 1e-4, 3e-4, 1e-3)
START = {"dpo": (1e-5, 3e-5, 1e-4), "apo_down": (3e-6, 1e-5, 3e-5)}
"""Where to begin, for an objective that lowers losers without a bound; the others begin at OTHERS."""
OTHERS = (3e-5, 1e-4, 3e-4)
EPOCHS, SEED = 6, 1000
SCORE = f"{paper.SCORE} --skip 300"  # the grid's runs are scored on the first 200, its rounds on the first 300

Found = TypeVar("Found")
ByRate = dict[float, dict[str, float]]
"""Mean gain over the base model in points, by rate and data set."""


def main(argv: Sequence[str]) -> None:
    """The command."""
    parser = argparse.ArgumentParser(
        prog="python -m examples.miniature.tune",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "folder", type=Path, nargs="?", default=Path("runs/tune"),
        help="folder for all results (default: runs/tune); half an hour on two cores, finished runs are kept",
    )  # fmt: skip
    root = parser.parse_args(argv).folder
    base = model.base_model(root)
    pairs = sets.make(base, root / "sets", model.split_questions()[1][-paper.N_FOR_TUNING :], paper.N_PAIRS, SEED)
    found = {loss: search(loss, pairs, base, root) for loss in paper.OBJECTIVES}
    text = to_markdown(table(found))
    files.write_text(root / "rates.md", text)
    print(text)


def table(found: Mapping[str, ByRate]) -> Table:
    """Every rate that was tried."""
    rows = []
    for loss, by_rate in found.items():
        for rate, gained in sorted(by_rate.items()):
            cells = [number(value, 1, sign=True) for value in (fmean(gained.values()), *gained.values())]
            rows.append((loss, f"{rate:g}" + (", taken" if rate == best(by_rate) else ""), *cells))
    notes = [f"Points over the base model, mean over {EPOCHS} checkpoints: of all data sets, and of each."]
    return Table("rates", "Learning rates", ("objective", "rate", "mean", *sets.NAMES), rows, 2, notes)


def search(loss: str, pairs: Mapping[str, Path], base: Path, root: Path, epochs: int = EPOCHS) -> ByRate:
    """An objective at one rate after the other, until the best of them has a worse one on both sides."""
    return climb(START.get(loss, OTHERS), lambda rate: gains(loss, rate, pairs, base, root / f"{rate:g}", epochs), best)


def climb(
    start: Sequence[float], measure: Callable[[float], Found], best: Callable[[dict[float, Found]], float]
) -> dict[float, Found]:
    """What is found at each rate of a start, and at those beside the best of them in LADDER, until it has a worse one
    on both sides or LADDER ends. best: the best rate of those that were measured.
    """
    found: dict[float, Found] = {}
    ahead = list(start)
    while ahead:
        for rate in ahead:
            found[rate] = measure(rate)
        index = LADDER.index(best(found))
        ahead = [rate for rate in LADDER[max(0, index - 1) : index + 2] if rate not in found]
    return found


def gains(
    loss: str, rate: float, pairs: Mapping[str, Path], base: Path, out: Path, epochs: int = EPOCHS
) -> dict[str, float]:
    """Mean gain over checkpoints of an objective at a rate, by data set."""
    cells = [Cell(name, file, loss, SEED, rate, (paper.BETA,)) for name, file in pairs.items()]
    more = paper.TRAINING | {"epochs": str(epochs)}
    grid.run_all(cells, out, model=str(base), settings=None, score=SCORE, slots=Slots(at_once=2), more=more)
    return {data: seeds[0][1] for (data, _), seeds in grid.means(grid.read(cells, out)).items()}


def best(found: ByRate) -> float:
    """The rate with the best mean over data sets."""
    return max(found, key=lambda rate: fmean(found[rate].values()))


if __name__ == "__main__":
    cli.run(main)
