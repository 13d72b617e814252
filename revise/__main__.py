"""The commands of this package: python -m revise NAME ...

clair                the model's own answers, and minimal revisions of them
judge-on-policy      two answers of the model, the better one by a judge
judge-off-policy     answers of other models that are judged already
stronger-preferred   a stronger model's answers over the model's own
score                scores of winners, losers and own answers, put into the rows
show                 pairs and what changed in them, in the terminal or as a page
"""

from collections.abc import Callable, Sequence

from revise import recipes, score, show
from system import cli

COMMANDS: dict[str, Callable[[Sequence[str]], None]] = {
    "clair": recipes.clair_main,
    "judge-on-policy": recipes.judge_main,
    "judge-off-policy": recipes.off_policy_main,
    "stronger-preferred": recipes.stronger_main,
    "score": score.main,
    "show": show.main,
}


def main(argv: Sequence[str]) -> None:
    """Runs the command that the first argument names."""
    cli.dispatch(argv, COMMANDS, package="python -m revise", doc=str(__doc__), example=recipes.CLAIR_EXAMPLE)


if __name__ == "__main__":
    cli.run(main)
