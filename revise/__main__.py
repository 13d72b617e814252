"""The commands of this package: python -m revise NAME ...

clair                make pairs by revising the model's own answers as little as possible
judge-on-policy      make pairs of two answers of the model, the better one by a judge
judge-off-policy     make pairs of answers that are judged already, the best over the worst
stronger-preferred   make pairs by preferring a stronger model's answers to the model's own
score                add scores of winners, losers and own answers to the rows
show                 show pairs and what differs in them, in the terminal or as a page
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
