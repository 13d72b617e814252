"""The commands of this package: python -m eval NAME ...

advise    which variant of APO fits a model and its pairs
mixeval   score checkpoints on MixEval-Hard
"""

from collections.abc import Callable, Sequence

from data import cli
from eval import advise, mixeval_run

COMMANDS: dict[str, Callable[[Sequence[str]], None]] = {"advise": advise.main, "mixeval": mixeval_run.main}


def main(argv: Sequence[str]) -> None:
    """Runs the command that the first argument names."""
    cli.dispatch(argv, COMMANDS, package="python -m eval", doc=str(__doc__), example=advise.EXAMPLE)


if __name__ == "__main__":
    cli.run(main)
