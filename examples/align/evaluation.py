"""Every checkpoint of a round's runs answered and scored: on all GPUs, or through a served model.

A checkpoint and a benchmark are one job, kept when it is done. The model that the runs began with is scored once, and
its numbers stand beside each run's own. AlpacaEval is for the checkpoints that MixEval-Hard finds best, as in the
paper.
"""

import os
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from eval import alpacaeval_run, checkpoints, scores
from eval.checkpoints import Checkpoint
from examples.align.journal import Journal
from examples.align.recipe import EVALS, Recipe, Settings, with_teacher
from examples.align.served import Server, served
from examples.align.stages import has_scores, mark_of_evaluation
from examples.children import Children
from examples.slots import Slots, side_by_side


class Job(NamedTuple):
    """A benchmark of one checkpoint, or of a whole run."""

    benchmark: str
    run: Path
    checkpoint: Checkpoint | None
    """None: of all of them."""


class Evaluation:
    """What is measured of a round's runs."""

    def __init__(
        self, recipe: Recipe, runs: Sequence[Path], journal: Journal, children: Children, slots: Slots
    ) -> None:
        """recipe: that of the round."""
        self._recipe, self._runs, self._journal = recipe, runs, journal
        self._children, self._slots = children, slots

    def jobs(self, benchmark: str) -> list[Job]:
        """What there is to do: the base of the first run, and the checkpoints of each."""
        if benchmark == "trajectories":
            return [Job(benchmark, run, None) for run in self._runs]
        made: list[Job] = []
        for i, run in enumerate(self._runs):
            base, every = checkpoints.base_of(run), checkpoints.of(run)
            if benchmark == "alpacaeval":
                best = alpacaeval_run.best(run / "eval" / scores.NAME)
                every = [c for c in every if c.name in best]
            made += [Job(benchmark, run, c) for c in ([base] if base and i == 0 else []) + every]
        return made

    def do(self, benchmark: str, teacher: str, done: list[Job]) -> None:
        """Has all jobs of a benchmark done that are not. teacher: the address of who judges; done: gets each when it is
        done. Raises RunError where one fails.
        """

        def work(job: Job) -> None:
            self._do(job, teacher)
            done.append(job)

        is_served = self._recipe.serve is not None and benchmark != "trajectories"
        side_by_side(self.jobs(benchmark), work, 1 if is_served else self._slots.n)
        if benchmark != "trajectories":
            self._share_base()

    def _share_base(self) -> None:
        """Puts the base model's numbers, which the first run has, beside those of the others."""
        first, *others = self._runs
        found = [x for x in scores.read(first / "eval" / scores.NAME) if x["checkpoint"] == scores.BASE]
        judged = [x for x in found if x["benchmark"] in ("mixeval-hard", "alpacaeval-2")]
        for run in others:
            scores.write(run / "eval" / scores.NAME, judged)

    def _do(self, job: Job, teacher: str) -> None:
        name = job.checkpoint.name if job.checkpoint else "all"
        place = os.path.relpath(job.run, self._recipe.out)
        key = f"{place}/{job.benchmark}-{name}"
        inputs = [c.folder for c in ([job.checkpoint] if job.checkpoint else checkpoints.of(job.run))]
        mark = mark_of_evaluation(self._recipe, job.benchmark, inputs)
        is_there = job.checkpoint is None or has_scores(job.benchmark, [job.run], job.checkpoint.name)
        if is_there and self._journal.found(key, mark) is not None:
            return
        begun, log = time.monotonic(), self._recipe.out / "logs" / f"{key.replace('/', '-')}.log"
        with self._slots.take() as env:
            command = self._recipe.server_of(str(job.checkpoint.folder)) if job.checkpoint else None
            if command and job.checkpoint:
                base = job.checkpoint.base or checkpoints.settings(job.run)["model"]
                values = {"checkpoint": str(job.checkpoint.folder), "base": str(base)}
                with served(command, values, self._children, log, os.environ) as server:
                    self._run(job, teacher, server, log, env)
            else:
                self._run(job, teacher, None, log, env)
        self._journal.write(key, mark, [], begun)

    def _run(self, job: Job, teacher: str, server: Server | None, log: Path, env: Mapping[str, str]) -> None:
        command, settings = EVALS[job.benchmark], with_teacher(self._recipe.eval[job.benchmark], teacher)
        typed = command.typed(settings, self._given(job, server), f"{self._recipe.path}: eval: {job.benchmark}")
        self._children.run([sys.executable, "-m", *command.words, *typed], log, env)

    def _given(self, job: Job, server: Server | None) -> Settings:
        """What align tells the command itself."""
        if job.checkpoint is None:
            return {"run": str(job.run)}
        folder = job.run / "eval" / job.checkpoint.name
        folder.mkdir(parents=True, exist_ok=True)
        given: Settings = {"store": str(folder / "answers.sqlite"), "base": "false"}
        if server is None:
            return given | {"what": str(job.run), "checkpoint": [job.checkpoint.name]}
        served_as = {"endpoint": [server.address], "model": server.name, "out": str(job.run / "eval")}
        return given | served_as | {"what": job.checkpoint.name}
