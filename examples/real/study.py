"""The real model's study: CLAIR and its control, other sets and objectives, each at its own rate (docs/design.md).

    python -m examples.real.study                     ten hours on two cores; the core, which comes first, five
    python -m examples.real.study --minutes 110       what fits into so many minutes; the same command goes on

What a run has found goes into docs/records/real as soon as it ends, and a run that is there is not done again: pairs
are made anew where a folder is gone, from the same seeds.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from examples import studies
from examples.real import checkpoint, study_plan, study_run, study_sets
from examples.real.study_sets import Sets
from examples.studies import Job, Records
from system import cli
from system.flags import PathText

EXAMPLE = "python -m examples.real.study --minutes 110"
RECORDS = "docs/records/real"
EXPECTED = 660.0
"""Seconds that a run has taken on two cores."""


@dataclass(frozen=True, kw_only=True)
class StudyConfig(studies.StretchSettings):
    """Do the runs of the real model's study that are not recorded yet, the core of the study first."""

    at_once: int | None = None
    """Number of runs at the same time. They are spread over the GPUs, or share the cores if there is no GPU. Unset:
    one."""
    out: PathText = "runs/real"
    """Folder for the model, the pairs, and the run in progress."""
    records: PathText = RECORDS
    """Folder for the results of the runs."""
    ordinary: PathText | None = None
    """File of prompts and completions that no model wrote. Their log-probs show what training costs on ordinary text.
    Unset: the project's own file."""
    model: PathText | None = None
    """Checkpoint folder. Unset: SmolLM2-135M-Instruct, downloaded into --out."""


class Real:
    """The base model and its sets, as they are needed."""

    def __init__(self, config: StudyConfig, records: Records, *, training: Mapping[str, Any] | None = None) -> None:
        """training: flags of engine.train that stand in the place of the study's, for a trial."""
        self.base = Path(config.model or checkpoint.fetch(Path(config.out)))
        self._folder = Path(config.out) / "study"
        self._texts = Path(config.ordinary or study_run.TEXTS)
        self._records, self._training = records, dict(training or {})
        self._sets = Sets(self.base, self._folder / "sets")

    def prepare(self, job: Job) -> Mapping[str, Any]:
        """The model before training is measured, and a set described, when the first run needs it."""
        group, answers = study_plan.group(job.seed), self._folder / "answers"
        if job.seed not in self._records.bases:
            first = next((s for s in self._records.bases if study_plan.group(s) == group), None)
            found = dict(self._records.bases[first]) if first is not None else self._before(group, answers)
            self._records.add("base", {**found, "seed": job.seed})
        if (0, job.set) not in self._records.sets:
            self._records.add("set", {"seed": 0, **study_sets.facts(self._sets, job.set)})
        return {
            "job": job._asdict(), "base": str(self.base), "data": str(self._sets.file(job.set)), "group": group,
            "answers": str(answers), "texts": str(self._texts), "training": self._training,
        }  # fmt: skip

    def _before(self, group: str, answers: Path) -> dict[str, Any]:
        examples = study_run.ordinary(self.base, answers, group, self._texts)
        return {
            "answers": study_run.judged(self.base, group, answers / f"{group}-base"),
            "ordinary": study_run.likelihoods(self.base, examples),
        }

    def wanted(self, gained: studies.Gained) -> Iterator[Job]:
        """As docs/design.md has it."""
        return study_plan.wanted(gained)


def read(folder: Path) -> Records:
    """The study's records."""
    return Records(folder, study_plan.gain)


def main(argv: Sequence[str]) -> None:
    """The command."""
    config = cli.parse(StudyConfig, argv or ["--out", StudyConfig.out], command="python -m examples.real.study",
                       example=EXAMPLE)  # fmt: skip
    records = read(Path(config.records))
    studies.do_all(
        Real(config, records), records, module="examples.real.study_run", folder=Path(config.out) / "study/runs",
        at_once=config.at_once or 1, minutes=config.minutes, expected=EXPECTED,
    )  # fmt: skip
    print(f"{len(records.runs)} runs are on record, and none is left")


if __name__ == "__main__":
    cli.run(main)
