"""The commands of this package: python -m eval NAME ...

advise         say which variant of APO fits a model and its pairs
mixeval        score checkpoints on MixEval-Hard
alpacaeval     measure length-controlled win rates of the best checkpoints on AlpacaEval 2
trajectories   measure held-out pairs and sampled answers at every checkpoint
contrast       measure how much winners and losers differ in the pairs that a run was trained on
report         write all of it as one page, and as Markdown, CSV and LaTeX
"""

import importlib
import sys
from collections.abc import Callable, Sequence

from system import cli

MODULES = {
    "advise": "eval.advise",
    "mixeval": "eval.mixeval_run",
    "alpacaeval": "eval.alpacaeval_run",
    "trajectories": "eval.trajectories",
    "contrast": "eval.contrast_run",
    "report": "eval.report",
}
EXAMPLE = "python -m eval report runs/first --out runs/report"


def _command(module: str) -> Callable[[Sequence[str]], None]:
    """A module's main, imported when it is called: half of them bring torch, which takes seconds."""
    return lambda argv: importlib.import_module(module).main(argv)


def main(argv: Sequence[str]) -> None:
    """Runs the command that the first argument names."""
    commands = {name: _command(module) for name, module in MODULES.items()}
    cli.dispatch(argv, commands, package="python -m eval", doc=str(__doc__), example=EXAMPLE)


if __name__ == "__main__":
    cli.run(main, is_distributed=sys.argv[1:2] == ["advise"])
