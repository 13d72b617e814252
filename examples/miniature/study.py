"""The miniature's study: rates, comparisons and the curve of docs/design.md, run by run.

    python -m examples.miniature.study                     seven to ten hours on two cores
    python -m examples.miniature.study --minutes 110       what fits into so many minutes; the same command goes on

What a run has found goes into docs/records/miniature as soon as it ends, and a run that is there is not done again. The
base models and their samples, of which all pairs are made, go there, too: another machine goes on with the same ones.
`python -m examples.miniature.study_page` makes docs/paper.md of the records.
"""

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from examples import studies
from examples.miniature import paper, study_plan, study_sets
from examples.miniature.study_run import verdicts
from examples.miniature.study_sets import Seed
from examples.studies import Job, Records
from system import cli
from system.flags import PathText

EXAMPLE = "python -m examples.miniature.study --minutes 110"
RECORDS = "docs/records/miniature"
EXPECTED = 150.0
"""Seconds that a run has taken on two cores, two side by side."""


@dataclass(frozen=True, kw_only=True)
class StudyConfig(studies.StretchSettings):
    """Train the runs of the miniature's study (docs/design.md) that have no result yet, the most important ones first.
    All of them take seven to ten hours on two cores."""

    at_once: int | None = None
    """Number of runs at the same time. They are spread over the GPUs, or share the cores if there is no GPU. Unset: one
    per core."""
    out: PathText = "runs/study"
    """Folder for base models, pairs, and runs in progress."""
    records: PathText = RECORDS
    """Folder for the results of the runs."""


class Miniature:
    """Base models and pairs as they are needed."""

    def __init__(
        self, out: Path, records: Records, *, epochs: int = paper.EPOCHS, n_pairs: int = study_sets.N_PAIRS
    ) -> None:
        self._out, self._records, self._epochs, self._n_pairs = out, records, epochs, n_pairs
        self._seeds: dict[int, Seed] = {}

    def prepare(self, job: Job) -> Mapping[str, Any]:
        """The model before training is measured, and a set described, when the first run needs it."""
        if job.seed not in self._seeds:
            self._seeds[job.seed] = Seed(job.seed, self._out, self._records.folder, self._n_pairs)
        seed, questions = self._seeds[job.seed], study_plan.questions(job.seed)
        if job.seed not in self._records.bases:
            self._records.add("base", {"seed": job.seed, **verdicts(seed.base, questions)})
        if (job.seed, job.set) not in self._records.sets:
            self._records.add("set", study_sets.facts(seed, job.set))
        pairs = seed.file(job.set)
        self._records.check(job.seed, job.set, pairs)
        return {
            "job": job._asdict(), "base": str(seed.base), "data": str(pairs), "epochs": self._epochs,
            "questions": questions,
        }  # fmt: skip

    def wanted(self, gained: studies.Gained) -> Iterator[Job]:
        """As docs/design.md has it."""
        return study_plan.wanted(gained)


def read(folder: Path) -> Records:
    """The study's records."""
    return Records(folder, study_plan.gain)


def main(argv: Sequence[str]) -> None:
    """The command."""
    config = cli.parse(StudyConfig, argv or ["--out", StudyConfig.out], command="python -m examples.miniature.study",
                       example=EXAMPLE)  # fmt: skip
    records, out = read(Path(config.records)), Path(config.out)
    studies.do_all(
        Miniature(out, records), records, module="examples.miniature.study_run", folder=out / "runs",
        at_once=config.at_once or os.cpu_count() or 1, minutes=config.minutes, expected=EXPECTED,
    )  # fmt: skip
    print(f"{len(records.runs)} runs are on record, and none is left")


if __name__ == "__main__":
    cli.run(main)
