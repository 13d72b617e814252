"""Who revises, judges and answers better in the field guide: one server of reviser, judge, stronger and habit.

python -m examples.miniature.teachers --port 8000        for trying `python -m revise` without an account
"""

from collections.abc import Sequence
from dataclasses import dataclass

from examples.miniature import sets
from examples.serving import ServingConfig, serve_until_ended
from system import cli

ANSWER = "reviser, judge, stronger and habit answer"


@dataclass(frozen=True, kw_only=True)
class TeachersConfig(ServingConfig):
    """Serve, until Ctrl-C, programs that correct, judge and write answers about the animals of the miniature examples
    (the field guide), as language models would: for trying revise without an account."""


def main(argv: Sequence[str]) -> None:
    """The command."""
    serve_until_ended(TeachersConfig, argv, module="examples.miniature.teachers", serve=sets.serve_teachers, who=ANSWER)


if __name__ == "__main__":
    cli.run(main)
