"""python -m examples.align recipe.yaml: see the package's own page, docs/align.md."""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import tyro

from examples.align import check, flags, probe, recipe
from examples.align.road import Road
from examples.children import Children, end_left
from examples.slots import Slots
from system import InputError, cli, hold
from system.flags import PathText

EXAMPLE = "./launch.sh align examples/recipes/align-miniature.yaml"


@dataclass(frozen=True, kw_only=True)
class AlignConfig:
    """Go from prompts to an aligned model and its report by one command, as a recipe says.

    Every stage is done once: the same command goes on where it was stopped.
    """

    recipe: tyro.conf.Positional[PathText]
    """YAML file with a section for each command: revise, train, score, eval. docs/align.md explains it."""
    out: PathText | None = None
    """Folder for everything that is made. Unset: the recipe's own `out`."""
    dry_run: bool = False
    """Check the recipe, print what it will take (requests, money, hours, disk, by stage), and do nothing."""

    def __post_init__(self) -> None:
        if not Path(self.recipe).is_file():
            raise InputError(f"{self.recipe}: there is no such file; give a recipe, such as {EXAMPLE.split()[-1]}")


def main(argv: Sequence[str]) -> None:
    """The command."""
    config = cli.parse(AlignConfig, argv, command="./launch.sh align", example=EXAMPLE)
    asked = recipe.read(Path(config.recipe), config.out)
    asked.out.mkdir(parents=True, exist_ok=True)
    lock = asked.out / ".align.lock"
    with hold(lock, asked.out, does="aligns in it", otherwise="give another --out"):
        end_left(asked.out)
        with Children(asked.out) as children:
            slots = Slots(at_once=asked.at_once, gpus=asked.gpus)
            flags.check(asked)
            road = Road(asked, children, slots)
            road.prepare()
            found = check.look(asked, slots, road.known_pairs)
            print(check.tell(asked, found), file=sys.stdout if config.dry_run else sys.stderr, flush=True)
            if not config.dry_run:
                probe.ask_all(asked, children)
                print(road.go(found))


if __name__ == "__main__":
    cli.run(main)
