"""Writes every generated page of docs/ anew, from the code and from docs/records.

    ./launch.sh pages

A second time, in a fresh clone, gives the same bytes; tests hold each page against what would be written.
"""

import sys
from collections.abc import Sequence

from examples import commands_page, models_page, objectives_page, scaling_page
from examples.miniature import study_page
from examples.real import lora_page, results_page
from system import InputError, cli


def main(argv: Sequence[str]) -> None:
    """The command."""
    if argv:
        raise InputError("./launch.sh pages takes no arguments")
    for write in (
        commands_page.main, objectives_page.write, scaling_page.main, models_page.main,
        lambda: results_page.main([]), lambda: lora_page.main([]), lambda: study_page.main([]),
    ):  # fmt: skip
        print(".", end="", file=sys.stderr, flush=True)
        write()
    print(" docs/: commands, objectives, scaling, models, own-family, results, adapters, lora, paper", file=sys.stderr)


if __name__ == "__main__":
    cli.run(main)
