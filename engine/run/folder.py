"""A run's folder: what is in it, who may write into it, and how it is brought back to a step.

config.yaml           every setting, resolved, and the facts found (rows, what was cut)
first_example.txt     the first row of the run as the trainer sees it
metrics.jsonl         a line per optimizer step (metrics_log.py)
epoch-01/ ...         Hugging Face checkpoint folders (milestones.py), each with a model card (card.py)
step-000120/ ...      those inside an epoch
best                  a link to the best of them
state/                what --resume needs (states.py)
state/model/          what is needed of the model's folder beside its weights
state/identity.json   what the run was asked for and what it was fed (identity.py)
state/best.json       which folders are there as the best alone (milestones.py)
state/finished.json   written when nothing is left to do
state/wandb.json ...  a run elsewhere, and what it was told (engine/tracking/)
run.lock              held by the process that writes into the folder
events.out...         the metrics for TensorBoard (tensorboard.py)
"""

import contextlib
import json
import os
import stat
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import yaml

from engine.config import TrainConfig
from engine.distributed import Ranks, grace
from engine.model import name_of
from engine.planning import Plan
from engine.run import disk_space
from engine.run.identity import DAY, compare
from engine.run.metrics_log import say
from engine.step import ReferenceLogps, Steps
from system import (
    OLD,
    TEMPORARY,
    InputError,
    cli,
    files,
    hold,
    naming,
    remove_leftovers,
    run_folder,
    sync,
    write_json,
    write_text,
)

if TYPE_CHECKING:
    from engine.run.states import States


KEPT_MODEL = "state/model"
"""What is kept of the model beside its weights (engine/weights/kept.py)."""


def check_folder(folder: Path, *, resumes: bool = False) -> None:
    """Raises InputError where the folder holds a run already, unless it is gone on with, or cannot be one."""
    try:
        is_file = not stat.S_ISDIR(folder.stat().st_mode)
    except FileNotFoundError:
        is_file = os.path.lexists(folder)  # a link to nowhere
    except OSError as fault:
        raise InputError(f"{folder}: {fault.strerror}; give another --out") from None
    if is_file:
        raise InputError(f"{folder}: not a folder; --out has to be one")
    if holds_run(folder) and not resumes:
        raise InputError(f"{folder}: holds a run already; resume it with --resume, give another --out, or remove it")
    there = files.nearest(folder)
    if not _is_writable(there):
        raise InputError(f"{folder}: {there} cannot be written to; give another --out")


def check_apart(folder: Path, source: Path, kind: str = "model") -> None:
    """Raises InputError where a run's folder is its model's, or its adapter's, or inside of it: what the run writes
    would be taken for the other's.
    """
    out, taken = folder.resolve(), source.resolve()
    if taken == out or taken in out.parents:
        where = "the folder of" if taken == out else "inside the folder of"
        raise InputError(f"{folder}: is {where} the {kind} that is trained ({source}); give another --out")


def _is_writable(folder: Path) -> bool:
    probe = folder / ".engine-probe.tmp"
    try:
        probe.touch()
        probe.unlink(missing_ok=True)  # another rank may have been here
    except OSError:
        return False
    return True


def holds_run(folder: Path) -> bool:
    """Whether a run began in a folder."""
    return any((folder / name).exists() for name in ("config.yaml", "metrics.jsonl"))


def has_split_masters(folder: Path) -> bool | None:
    """Whether the run in a folder has split masters; None where there is no run."""
    try:
        return json.loads(_identity(folder).read_text(encoding="utf-8"))["master"] == "split"
    except (OSError, ValueError, LookupError, TypeError):
        return None  # what is damaged is told when it is compared


def day_of(folder: Path) -> str | None:
    """The day that the template of the run in a folder writes; None where there is no run, or it writes none."""
    try:
        return json.loads(_identity(folder).read_text(encoding="utf-8")).get(DAY)
    except (OSError, ValueError, AttributeError):
        return None


def last_line(folder: Path) -> dict[str, float]:
    """The newest line of a run's metrics.jsonl."""
    return json.loads((folder / "metrics.jsonl").read_bytes().splitlines()[-1])


def cut_metrics(folder: Path, step: int) -> dict[str, float]:
    """Cuts metrics.jsonl behind the line of a step, and gives that line; {} for step 0, behind which nothing is left: a
    run that begins measures anew. Raises InputError.
    """
    path = folder / "metrics.jsonl"
    end, last = 0, {}
    if path.exists():
        with open(path, "rb") as file:
            for line in file:
                with contextlib.suppress(ValueError):
                    found = json.loads(line)
                    if line.endswith(b"\n") and found["step"] <= step > 0:
                        end, last = end + len(line), found
                        continue
                break
    if last.get("step", 0) != step:
        raise InputError(
            f"{path}: the line of step {step}, after which the run would resume, is missing; restore the file"
        )
    if path.exists():
        with naming(path):
            os.truncate(path, end)
        sync(path)
    return last


def _identity(folder: Path) -> Path:
    return folder / "state" / "identity.json"


class RunFolder:
    """A run's folder, and its lock until `with` ends. Rank 0 alone writes and speaks; what is collective says so."""

    def __init__(self, config: TrainConfig, ranks: Ranks) -> None:
        self.path = Path(config.out)
        self._config, self._ranks = config, ranks
        self._stack = ExitStack()
        self._is_held = False
        self._states: States | None = None
        self.end: dict[str, Any] = {}
        """What is known of the end of the run that was found finished: system/run_folder.py."""

    def __enter__(self) -> "RunFolder":
        self._ranks.heartbeat.folder = self.path
        return self

    def __exit__(self, *fault: Any) -> None:
        if self._states is not None:
            self._states.finish_pending()
        self._stack.__exit__(*fault)

    @property
    def ending(self) -> str:
        """How the run that was found finished has ended, for a sentence."""
        n, why = self.end.get("steps"), self.end.get("why")
        return f"ended after step {n} ({why})" if why else f"all {n} steps of it"

    @property
    def states(self) -> "States":
        """Its states, once they were looked for or the run has begun."""
        assert self._states is not None
        return self._states

    def find_state(self, identity: Callable[[], dict[str, Any]]) -> bool:
        """Finds the state to go on from, where the folder holds a run; whether that run is finished. Collective.

        Raises InputError where it is another run than the one of that identity.
        """
        if not self._config.checkpoints.resumes or not self._ranks.on_rank0(lambda: holds_run(self.path)):
            return False  # a run that began here since the flags were read is found by begin
        self._ranks.on_rank0(self._hold)
        self._ranks.on_rank0(lambda: compare(_identity(self.path), self.path, identity()))
        if (end := self._ranks.on_rank0(lambda: run_folder.end_of(self.path))) is not None:
            self.end = end
            return True
        self._states = self._open_states()
        self._states.find_newest()
        return False

    def begin(
        self,
        identity: Callable[[], dict[str, Any]],
        *,
        plan: Plan,
        steps: Steps,
        settings: Mapping[str, Any],
        facts: Mapping[str, Any],
    ) -> None:
        """Makes the folder, or brings it back to the step that the run goes on from. Collective.

        settings: the objective's hyperparameters; facts: what was found. Both are for config.yaml. Raises InputError
        where a checkpoint and a state would not find room on its disk, or states are asked for and hosts do not share
        it.
        """
        checkpoints, ranks, n_done = self._config.checkpoints, self._ranks, self.n_done
        ranks.on_rank0(
            lambda: disk_space.check(
                self.path,
                checkpoints,
                plan,
                steps,
                n_done=n_done,
                n_checkpoints=len(run_folder.checkpoints_of(self.path)),
            )
        )
        ranks.on_rank0(self._hold)
        is_shared = ranks.all_see(self.path / "state")
        keeps = checkpoints.state_every != 0 or checkpoints.stop_after is not None or checkpoints.keep_final_state
        if not is_shared and keeps:
            raise InputError(
                f"{self.path}: not every rank sees this folder, and states of several hosts need one that all see; "
                "name a shared --out, or keep no states (--state-every 0, no --stop-after, no --keep-final-state)"
            )
        ranks.on_rank0(lambda: self._begin(identity, plan.saves, settings, facts))
        self._states = self._states or self._open_states()
        self._states.is_shared = is_shared
        if not is_shared:
            say(f"{self.path}: not every rank sees this folder: a run that is stopped keeps no state")
        elif (seconds := grace()) is not None:
            say(
                f"SIGTERM and Ctrl-C save a state; torchrun gives {seconds:.0f} s for it, or what its "
                "--shutdown-timeout says"
            )

    @property
    def n_done(self) -> int:
        """Steps that the state has done which the run goes on from; 0 where it begins."""
        return 0 if self._states is None else self._states.step

    def _open_states(self) -> "States":
        from engine.run.states import States  # brings a second of imports that --help does without

        return States.open(self.path / "state", self._ranks, self._config.checkpoints)

    def _hold(self) -> None:
        if not self._is_held:
            (self.path / "state").mkdir(parents=True, exist_ok=True)
            self._stack.enter_context(self._lock())
            self._is_held = True

    def _lock(self) -> AbstractContextManager[None]:
        """Raises InputError where another process holds it."""
        return hold(
            self.path / "run.lock",
            self.path,
            does="is writing here",
            otherwise="give another --out",
            takes_over=None if self._config.checkpoints.take_over else "--take-over",
        )

    def _begin(
        self,
        identity: Callable[[], dict[str, Any]],
        saves: torch.dtype,
        settings: Mapping[str, Any],
        facts: Mapping[str, Any],
    ) -> None:
        config = self._config
        check_folder(self.path, resumes=config.checkpoints.resumes)  # another run may have been faster
        if not holds_run(self.path):
            write_json(_identity(self.path), identity())
        for prefix in (run_folder.EPOCH, run_folder.STEP):
            remove_leftovers(self.path, prefix, TEMPORARY, OLD)
        cut_metrics(self.path, self.n_done)
        resolved = config.resolved() | {"dtype": name_of(self._ranks.dtype), cli.FACTS: dict(facts)}
        if config.checkpoints.save_dtype == "auto":
            resolved["save_dtype"] = name_of(saves)
        for name in ("config", "hyperparameters", "beta", "resume"):
            del resolved[name]
        resolved |= settings
        write_text(self.path / "config.yaml", yaml.safe_dump(resolved, sort_keys=False, allow_unicode=True))
        with naming(self.path / "metrics.jsonl"):
            (self.path / "metrics.jsonl").touch()

    def write(self, name: str, text: str) -> None:
        """A text file into the run's folder."""
        if self._ranks.is_rank0:
            write_text(self.path / name, text)

    def read_reference(self, reference: ReferenceLogps) -> str | None:
        """Fills the table as the state to go on from has it; what was done, None where there is none. Collective."""
        return None if self._states is None else self._states.read_reference(reference)

    def finish(self, n_done: int, last_step: int, **facts: Any) -> None:
        """Waits for what is still being written, and notes that nothing is left to do, where that is so. Collective.

        last_step: the run's, which may have ended early. facts: what else is known of its end.
        """
        self.states.wait()
        if n_done == last_step:
            end = {"steps": last_step} | {name: value for name, value in facts.items() if value}
            self._ranks.on_rank0(lambda: write_json(self.path / run_folder.FINISHED, end))
