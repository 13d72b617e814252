"""The real model's study: CLAIR and its control, other sets and objectives, each at its own rate (docs/design.md).

    python -m examples.real.study                     seventeen hours on two cores; APO-zero on both arms comes first
    python -m examples.real.study --minutes 110       what fits into so many minutes; the same command goes on

What a run has found goes into docs/records/real as soon as it ends, and a run that is there is not done again. The
answers that it gave go there, too, and the samples of the model before training, of which all pairs are made: another
machine goes on with the same ones.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from examples import studies
from examples.real import checkpoint, study_plan, study_run, study_sets
from examples.real.study_sets import Sets
from examples.studies import Job, Records
from system import InputError, cli
from system.flags import PathText

EXAMPLE = "python -m examples.real.study --minutes 110"
RECORDS = "docs/records/real"
EXPECTED = {"cpu": 700.0, "cuda": 40.0}
"""Seconds that a run takes, until one was timed: on two cores, and on a large GPU, where it is a guess."""


@dataclass(frozen=True, kw_only=True)
class StudyConfig(studies.StretchSettings):
    """Train the runs of the real model's study (docs/design.md) that have no result yet, APO-zero on CLAIR and its
    control first. All of them take about seventeen hours on two cores."""

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
        self._texts = Path(config.ordinary or study_run.TEXTS)
        if not self._texts.is_file():
            raise InputError(f"{self._texts}: no such file; give another --ordinary")
        self.base = Path(config.model or checkpoint.fetch(Path(config.out)))
        self._folder = Path(config.out) / "study"
        self._records, self._training = records, dict(training or {})
        self._samples = records.folder / "samples"
        self._sets = Sets(self.base, self._folder / "sets", self._samples)

    def prepare(self, job: Job) -> Mapping[str, Any]:
        """The model before training is measured, and a set described, when the first run needs it."""
        group, answers = study_plan.group(job.seed), self._folder / "answers"
        if job.seed not in self._records.bases:
            first = next((s for s in self._records.bases if study_plan.group(s) == group), None)
            found = dict(self._records.bases[first]) if first is not None else self._before(group, answers)
            self._records.add("base", {**found, "seed": job.seed})
        if self._records.bases[job.seed]["texts"] != studies.digest(self._texts):
            raise InputError(
                f"{self._texts}: holds other texts than those on record; give the same --ordinary, or another --records"
            )
        if (0, job.set) not in self._records.sets:
            self._records.add("set", {"seed": 0, **study_sets.facts(self._sets, job.set)})
        pairs = self._sets.file(job.set)
        self._records.check(0, job.set, pairs)
        return {
            "job": job._asdict(), "base": str(self.base), "data": str(pairs), "group": group,
            "samples": str(self._samples), "texts": str(self._texts), "training": self._training,
            "kept": str(self._kept(job.name)),
        }  # fmt: skip

    def _kept(self, name: str) -> Path:
        return self._records.folder / "answers" / f"{name}.json.gz"

    def _before(self, group: str, answers: Path) -> dict[str, Any]:
        examples = study_run.ordinary(self.base, self._samples, answers, group, self._texts)
        found, texts = study_run.judged(self.base, group, answers / f"{group}-base")
        study_run.keep(texts, self._kept(f"base-{group}"))
        return {
            "answers": found, "ordinary": study_run.likelihoods(self.base, examples),
            "tokens": {what: [e.lengths[0] for e in some] for what, some in examples.items()},
            "texts": studies.digest(self._texts),
        }  # fmt: skip

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
        at_once=config.at_once or 1, minutes=config.minutes,
        expected=EXPECTED["cuda" if torch.cuda.is_available() else "cpu"],
    )  # fmt: skip
    print(f"{len(records.runs)} runs are on record, and none is left")


if __name__ == "__main__":
    cli.run(main)
