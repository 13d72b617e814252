"""The commands of this package: python -m eval NAME ...

advise         which variant of APO fits a model and its pairs
mixeval        score checkpoints on MixEval-Hard
alpacaeval     length-controlled win rates of the best checkpoints on AlpacaEval 2
trajectories   held-out log-likelihoods and rewards, lengths and distances of answers, at every checkpoint
contrast       how much the pairs differ that a run was trained on
report         all of it as one page, and as Markdown, CSV and LaTeX
"""

from collections.abc import Callable, Sequence

from data import cli
from eval import advise, alpacaeval_run, contrast_run, mixeval_run, report, trajectories

COMMANDS: dict[str, Callable[[Sequence[str]], None]] = {
    "advise": advise.main,
    "mixeval": mixeval_run.main,
    "alpacaeval": alpacaeval_run.main,
    "trajectories": trajectories.main,
    "contrast": contrast_run.main,
    "report": report.main,
}


def main(argv: Sequence[str]) -> None:
    """Runs the command that the first argument names."""
    cli.dispatch(argv, COMMANDS, package="python -m eval", doc=str(__doc__), example=advise.EXAMPLE)


if __name__ == "__main__":
    cli.run(main)
