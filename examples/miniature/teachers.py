"""Who revises, judges and answers better in the field guide: one server of reviser, judge, stronger and habit.

python -m examples.miniature.teachers --port 8000        for trying `python -m revise` without an account
"""

from collections.abc import Sequence
from dataclasses import dataclass

from examples.miniature import sets
from examples.serving import serve_until_ended
from system import cli

EXAMPLE = "python -m examples.miniature.teachers --port 8000"


@dataclass(frozen=True, kw_only=True)
class TeachersConfig:
    """Serve the field guide's reviser, judge and stronger models on this machine, until Ctrl-C."""

    port: int
    """Port of the loopback address to listen on; 0 takes a free one."""


def main(argv: Sequence[str]) -> None:
    """The command."""
    config = cli.parse(TeachersConfig, argv, command="python -m examples.miniature.teachers", example=EXAMPLE)
    serve_until_ended(sets.serve_teachers, config.port, "reviser, judge, stronger and habit answer")


if __name__ == "__main__":
    cli.run(main)
