"""The steps of a run at which more is done than training: held-out rows are measured, a checkpoint folder is written.

Each epoch's end is one; --eval-every and --save-every add others. The best of a held-out number has its folder kept
(--keep-best), and a run ends early where none comes any more (--early-stop). What is known of a number's past stands in
metrics.jsonl alone: a run that goes on knows what it has measured by its lines.
"""

import json
from collections.abc import Mapping
from pathlib import Path

import torch

from engine.config import TrainConfig
from engine.run.best import Record, check_name
from engine.run.folder import RunFolder
from engine.run.metrics_log import MetricsLog, say
from engine.run.stopping import Stopping
from engine.step import HeldOut, LossInputs, Step, Steps, Training, loss_of, measure_saved
from engine.weights import Cast
from system import InputError, cli, link_to, remove_folder, run_folder, write_json


class Milestones:
    """What is measured and saved at which steps. Its folders are written in the run's."""

    def __init__(
        self, config: TrainConfig, steps: Steps, heldout: HeldOut, folder: RunFolder, stopping: Stopping
    ) -> None:
        self._config, self._steps, self._heldout = config, steps, heldout
        self._folder, self._states, self._stopping = folder.path, folder.states, stopping
        keeps, patience = config.checkpoints.keep_best, config.measuring.patience
        self._best = None if keeps is None else Record(keeps)
        self._watched = None if patience is None else Record(patience[0])
        self._patience = 0 if patience is None else patience[1]
        self._is_best = False
        self._alone = _Alone(folder.path)

    def begin(self, training: Training, log: MetricsLog) -> None:
        """Takes up what the run has measured before; before its first step, measures. Collective."""
        for record in filter(None, (self._best, self._watched)):
            lines = training.ranks.on_rank0(lambda name=record.name: self._lines(name))
            record.restore(line for line in lines if record is self._watched or line["step"])
        if self._is_over:
            self._stopping.end_early(log.n_done, self._why)
        if not log.n_done and self._config.measuring.eval_every:
            measured = self._heldout.measure()
            self._check_names(measured)
            if self._watched is not None:
                self._watched.add(0, measured[self._watched.name])
            log.write_start(measured)
        if training.ranks.is_rank0:
            self._tidy()

    def _lines(self, name: str) -> list[dict[str, float]]:
        found = run_folder.lines_of(self._folder)
        return [{"step": line["step"], name: line[name]} for line in found if name in line]

    def measure(self, step: Step) -> dict[str, float]:
        """Held-out rows after a step, where they are due. Ends the run where nothing has become better. Collective."""
        every = self._config.measuring.steps_between(len(self._steps))
        self._is_best = False
        if not step.ends_epoch and (not every or step.number % every):
            return {}
        measured = self._heldout.measure(step)
        self._check_names(measured)
        if self._best is not None:
            self._is_best = self._best.add(step.number, measured[self._best.name])
        if self._watched is not None:
            self._watched.add(step.number, measured[self._watched.name])
            if self._is_over:
                self._stopping.end_early(step.number, self._why)
        return measured

    def _check_names(self, measured: Mapping[str, float]) -> None:
        """Raises InputError where a number that is asked for is not measured, though its name was known before."""
        for flag, record in (("--keep-best", self._best), ("--early-stop", self._watched)):
            if record is not None:
                check_name(flag, record.asked, measured)

    @property
    def _is_over(self) -> bool:
        return self._watched is not None and self._watched.n_worse >= self._patience

    @property
    def _why(self) -> str:
        """Why the run ends early, for a sentence."""
        assert self._watched is not None
        best = self._watched.best()
        than = "it is no number" if best is None else f"{best[1]:.6g} after step {best[0]}"
        return f"--early-stop: {self._watched.name} was {self._watched.n_worse} times no better than {than}"

    def save(self, training: Training, step: Step, trained: LossInputs) -> dict[str, float]:
        """Writes the step's checkpoint folder, where it is due, and removes those that are kept no more.

        Gives what the folder loses where it has fewer bits than the run computes with (`measure_saved`). trained: the
        loss inputs of the step. A weight that has grown beyond the dtype's range ends the run, with the folder in
        float32 in its place: nothing that was trained is lost. Collective.
        """
        every = self._config.checkpoints.steps_between_folders(len(self._steps))
        is_due = step.ends_epoch or step.number == self._stopping.last_step or (every and step.number % every == 0)
        if not (is_due or self._is_best):
            return {}
        path = self._folder / run_folder.checkpoint_name(step.number, self._steps.per_epoch, len(self._steps))
        if training.ranks.is_rank0:
            self._alone.note(path.name, is_alone=not is_due)
        lost = self._write(training, step, trained, path)
        if training.ranks.is_rank0:
            self._tidy()
        training.ranks.wait()
        return lost

    def _write(self, training: Training, step: Step, trained: LossInputs, path: Path) -> dict[str, float]:
        config = self._config.checkpoints
        cast = Cast(
            dtype=training.plan.saves,
            others=training.plan.other_dtypes,
            rounding=config.save_rounding,
            seed=step.number,
            is_split=training.masters is not None,
        )
        lost: dict[str, float] = {}
        try:
            if training.policy.adapter is None:  # which is written in float32, as it trains
                lost = measure_saved(training, step, trained, self._heldout, cast)
        except InputError as fault:
            cast = Cast(dtype=torch.float32)
            self._stopping.fault = InputError(
                f"{path}: is saved in float32 instead, since {fault}; resume with --resume --save-dtype float32"
            )
        card, found = training.card, self._heldout.measured_at(step) | lost
        text = None if card is None else training.ranks.on_rank0(lambda: card(path.name, step, found, cast.dtype))
        training.save(path, cast=cast, replaces=config.resumes, card=text)
        training.hooks.save_epoch(training, path)
        if self._stopping.fault is None and (sentence := loss_of(cast, lost, training.ranks.dtype)):
            say(f"{path}: {sentence}")
        return lost

    def conclude(self, training: Training, n_done: int) -> None:
        """At a run's end says which checkpoint is the best; of a finished one no other is kept for its states' sake."""
        best = None if self._best is None else self._best.best()
        if best is not None and self._best is not None:
            value = f"{self._best.name} {best[1]:.6g}, the {self._best.extreme}"
            say(f"{self._folder}: the best is {self._folder_of_best()}, {value}")
        if n_done == self._stopping.last_step and training.ranks.is_rank0:
            self._tidy(is_finished=True)

    def _tidy(self, *, is_finished: bool = False) -> None:
        """Lets `best` link to the best folder, and removes those that are neither asked for nor the best.

        The best of when a state was saved stays as long as that state does, from which the run may go on.
        """
        best = self._folder_of_best()
        if self._best is not None:
            _point(self._folder / run_folder.BEST, best)
        kept = {best, *(self._folder_of_best(step) for step in ([] if is_finished else self._states.steps))}
        found = run_folder.checkpoints_of(self._folder)
        asked = [path for path in found if path.name not in self._alone.names]
        most = self._config.checkpoints.keep_checkpoints or len(asked)
        for path in found:
            if path.name not in kept and path not in asked[-most:]:
                remove_folder(path)

    def _folder_of_best(self, until: int | None = None) -> str | None:
        """The best folder's name. until: of those up to that step."""
        best = None if self._best is None else self._best.best(until)
        if best is None:
            return None
        return run_folder.checkpoint_name(best[0], self._steps.per_epoch, len(self._steps))


class _Alone:
    """Names of folders that nothing but --keep-best has asked for, in state/best.json: they go when they are the best
    no more.
    """

    def __init__(self, run: Path) -> None:
        self._path = run / "state" / "best.json"
        self.names: set[str] = set()
        if self._path.exists():
            self.names = set(json.loads(self._path.read_text(encoding="utf-8")))

    def note(self, name: str, *, is_alone: bool) -> None:
        """Writes down a folder that will be written, where it is another than is known."""
        made = self.names | {name} if is_alone else self.names - {name}
        if made != self.names:
            self.names = made
            write_json(self._path, sorted(made))


def _point(link: Path, name: str | None) -> None:
    """Lets `best` be a link to a folder beside it that is there; without one, it goes."""
    is_there = name is not None and (link.parent / name).is_dir()
    try:
        if name is not None and is_there:
            link_to(link, name)
        elif link.is_symlink():
            link.unlink()
    except OSError as fault:
        cli.notify(f"{link}: cannot be a link ({fault.strerror}); the best checkpoint is {name}")
