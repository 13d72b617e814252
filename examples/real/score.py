"""How the checkpoints of a run keep the nine rules on topics that no model was trained on.

    python -m examples.real.score runs/align-real/round-1/runs/seed-0/clair/apo_zero

Written into the run's eval/scores.jsonl, as any evaluator does; what is there already is left. Answers are kept beside.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import tyro

from eval import checkpoints, scores
from examples.real import measure, task
from system import InputError, cli
from system.flags import PathText

EXAMPLE = "python -m examples.real.score runs/align-real/round-1/runs/seed-0/clair/apo_zero"
N_TEST = 270


@dataclass(frozen=True, kw_only=True)
class ScoreConfig:
    """Score every checkpoint of a run, and the model that the run began with, on tasks whose rules a program checks."""

    run: tyro.conf.Positional[PathText]
    """Folder of a run."""
    n: int = N_TEST
    """Number of tasks, on topics that are in no training prompt."""
    config: PathText | None = None
    """YAML file with settings under the names of the flags. Flags on the command line win over it."""

    def __post_init__(self) -> None:
        if not Path(self.run).is_dir():
            raise InputError(f"{self.run}: no such folder; give the folder of a run")
        if self.n < 1:
            raise InputError(f"--n: {self.n} has to be above 0")


def main(argv: Sequence[str]) -> None:
    """The command."""
    config = cli.parse(ScoreConfig, argv, command="python -m examples.real.score", example=EXAMPLE)
    run, tasks = Path(config.run), task.tasks(task.HELDOUT_TOPICS, config.n, seed=1)
    prompts, path = [t.prompt for t in tasks], run / "eval" / scores.NAME
    for c in checkpoints.find(run, with_base=True):
        found = {}
        for how, heat in measure.TEMPERATURES.items():
            kept = run / "eval/answers" / f"{c.name}-{how}-{config.n}.jsonl"
            kept.parent.mkdir(parents=True, exist_ok=True)
            found[how] = measure.score(tasks, measure.answer(c.folder, prompts, heat, kept))
        scores.write(path, lines_of(c.name, found))


def lines_of(checkpoint: str, found: dict[str, measure.Score]) -> list[scores.Line]:
    """What was found of a checkpoint, by how it answered, as any evaluator writes it."""
    return [
        {"checkpoint": checkpoint, "benchmark": f"rules kept, {how}", "version": f"{s.kept.n} tasks", "metric": metric}
        | {"value": value.value, "stderr": value.stderr, "n": value.n, "judge": "a program"}
        | {"temperature": measure.TEMPERATURES[how]}
        for how, s in found.items()
        for metric, value in {"overall": s.kept, **{f"overall/{kind}": v for kind, v in s.kinds.items()}}.items()
    ]


if __name__ == "__main__":
    cli.run(main)
