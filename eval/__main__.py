"""The commands of this package: python -m eval NAME ...

advise    which variant of APO fits a model and its pairs
mixeval   score checkpoints on MixEval-Hard
"""

from collections.abc import Callable, Sequence

from data import InputError, cli
from eval import advise, mixeval_run

COMMANDS: dict[str, Callable[[Sequence[str]], None]] = {"advise": advise.main, "mixeval": mixeval_run.main}


def main(argv: Sequence[str]) -> None:
    """Hands the arguments to the command that the first one names. Raises InputError where there is none."""
    known = ", ".join(COMMANDS)
    if not argv:
        raise InputError(f"python -m eval needs a command ({known}), such as: {advise.EXAMPLE}")
    name, *rest = argv
    if name in ("-h", "--help"):
        print(__doc__)
        return
    if name not in COMMANDS:
        raise InputError(f"python -m eval: there is no command {name!r}; the commands are {known}")
    COMMANDS[name](rest)


if __name__ == "__main__":
    cli.run(main)
