"""Measure in the miniature world whether training on revised tokens alone helps, on CLAIR and Stronger Preferred pairs.

    python -m examples.miniature.revisions runs/revisions

First each objective's best learning rate is searched for, at the length of the runs and on other prompts, one rate for
both data sets. Then each objective trains on three draws of prompts, answers and pairs. Finished runs are kept, and the
same command continues: from the runs' folders, or, if these are gone, from docs/records/revisions.json, where each
result is written as it comes. examples.objectives_page makes the table of docs/objectives.md from that file.
"""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from examples import grid
from examples.grid import Cell
from examples.miniature import model, paper, sets, tune
from examples.slots import Slots
from system import InputError, cli, files

PLAIN = {"apo_zero_revised": "apo_zero", "apo_down_revised": "apo_down", "dpo_revised": "dpo"}
"""Objectives of revisions, and what each is at unrevised 1."""
OBJECTIVES = tuple(x for pair in PLAIN.items() for x in reversed(pair))
DATA = ("clair", "stronger-preferred")
SEEDS = 3
RECORD = Path("docs/records/revisions.json")


def main(argv: Sequence[str]) -> None:
    """The command."""
    parser = argparse.ArgumentParser(
        prog="python -m examples.miniature.revisions",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "folder", type=Path, nargs="?", default=Path("runs/revisions"),
        help="folder for all results (default: runs/revisions); an hour on two cores, finished runs are kept",
    )  # fmt: skip
    parser.add_argument("--epochs", type=int, default=paper.EPOCHS, help="epochs of every run (default: %(default)s)")
    parser.add_argument("--seeds", type=int, default=SEEDS, help="number of draws of pairs (default: %(default)s)")
    parser.add_argument("--record", type=Path, default=RECORD, help="JSON file for the results (default: %(default)s)")
    asked = parser.parse_args(argv)
    base = model.base_model(asked.folder)
    record = _record_so_far(asked.record, asked.epochs, asked.seeds)
    tuning = model.split_questions()[1][-paper.N_FOR_TUNING :]
    pairs = sets.make(base, asked.folder / "tune/sets", tuning, paper.N_PAIRS, tune.SEED, DATA)
    for loss in (x for x in OBJECTIVES if x not in record["rates"]):
        found = tune.search(loss, pairs, base, asked.folder / "tune", asked.epochs)
        record["searched"][loss] = {f"{rate:g}": gained for rate, gained in sorted(found.items())}
        record["rates"][loss] = tune.best(found)
        write(asked.record, record)
    for seed in (x for x in range(asked.seeds) if x not in {row["seed"] for row in record["gains"]}):
        questions = paper.prompts(seed)
        of_seed = sets.make(base, asked.folder / f"seed-{seed}/sets", questions, paper.N_PAIRS, seed, DATA)
        cells = [
            Cell(name, path, loss, seed, record["rates"][loss], (paper.BETA,))
            for name, path in of_seed.items()
            for loss in OBJECTIVES
        ]
        more = paper.TRAINING | {"epochs": str(asked.epochs)}
        options: dict[str, Any] = {"model": str(base), "settings": None, "score": paper.SCORE, "more": more}
        grid.run_all(cells, asked.folder, slots=Slots.for_small(), **options)
        record["gains"] += rows(cells, asked.folder, seed)
        write(asked.record, record)
    print(json.dumps(record, indent=1))


def _record_so_far(path: Path, epochs: int, seeds: int) -> dict[str, Any]:
    """What an earlier start of the same command found, on whatever machine; an empty record where there was none."""
    begun: dict[str, Any] = {"epochs": epochs, "seeds": seeds, "searched": {}, "rates": {}, "gains": []}
    if not path.exists():
        return begun
    found = json.loads(path.read_text(encoding="utf-8"))
    if (found["epochs"], found["seeds"]) != (epochs, seeds):
        raise InputError(f"{path}: contains results of other --epochs or --seeds; name another file by --record")
    return found


def rows(cells: Sequence[Cell], out: Path, seed: int) -> list[dict[str, Any]]:
    """What each run of a seed gained over the base model, in points: its best checkpoint and the mean of all."""
    found = grid.means(grid.read(cells, out))
    return [
        {"data": data, "loss": loss, "seed": seed, "best": one[0][0], "mean": one[0][1]}
        for (data, loss), one in found.items()
    ]


def write(path: Path, record: dict[str, Any]) -> None:
    """Keeps what is known so far."""
    path.parent.mkdir(parents=True, exist_ok=True)
    files.write_json(path, record)


if __name__ == "__main__":
    cli.run(main)
