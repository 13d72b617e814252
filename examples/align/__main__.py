"""python -m examples.align recipe.yaml: see the package's own page, docs/align.md."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import tyro

from examples import align
from system import InputError, cli
from system.flags import PathText

EXAMPLE = "./launch.sh align examples/recipes/align-miniature.yaml"


@dataclass(frozen=True, kw_only=True)
class AlignConfig:
    """Go from prompts to an aligned model and its report by one command, following a recipe.

    Every stage is done once; the same command continues where it was stopped.
    """

    recipe: tyro.conf.Positional[PathText]
    """YAML file with a section of flags for each command: revise, train, score, eval. docs/align.md explains it."""
    out: PathText | None = None
    """Folder for all results. Unset: the recipe's own `out`."""
    dry_run: bool = False
    """Check the recipe and print what each stage will take (requests, money, hours, disk). Nothing is run but the
    recipe's `prepare` command, whose output the checks need."""

    def __post_init__(self) -> None:
        if not Path(self.recipe).is_file():
            raise InputError(f"{self.recipe}: there is no such file; give a recipe, such as {EXAMPLE.split()[-1]}")


def main(argv: Sequence[str]) -> None:
    """The command."""
    config = cli.parse(AlignConfig, argv, command="./launch.sh align", example=EXAMPLE)
    report = align.run(Path(config.recipe), Path(config.out) if config.out else None, only_tells=config.dry_run)
    if report is not None:
        print(report)


if __name__ == "__main__":
    cli.run(main)
