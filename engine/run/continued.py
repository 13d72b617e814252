"""A finished run that another one goes on with (--continue-from): its weights, and its optimizer's moments.

The run that goes on is a run of its own: its steps, its schedule and its folder are new. Its reference is not: --model
is still the model that the first run began with, so that rewards go on from where they were. The policy is read from
--model first, like every policy, gives the reference's log-probs of whatever needs them, and is then brought to where
the finished run ended.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from engine import weights
from engine.config import TrainConfig
from engine.model import name_of
from engine.run.folder import RunFolder
from engine.run.metrics_log import say
from engine.step import Training
from system import InputError, digests, run_folder

FLAG = "--continue-from"
PAST = "past_epochs"
"""What a run's end says of the epochs of those that it went on with."""


@dataclass(frozen=True)
class Continued:
    """What a finished run has left."""

    run: Path
    step: int
    """Its last one."""
    n_epochs: int
    """Epochs that it began, and those of the runs that it went on with: the orders of the rows that are used up."""
    state: Path | None
    """The state of its last step, where it was kept."""
    checkpoint: Path
    """The folder of its last step; where there is a state, it may be gone."""
    began: Mapping[str, Any]
    """Its identity (identity.py)."""

    @classmethod
    def find(cls, run: Path) -> "Continued":
        """Raises InputError where a folder holds no finished run, or not what it ended with."""
        try:
            began = dict(json.loads((run / "state" / "identity.json").read_text(encoding="utf-8")))
        except (OSError, ValueError, TypeError):
            raise InputError(
                f"{FLAG} {run}: holds no run; give a run's folder, of a run with --stages that of its last stage"
            ) from None
        end = run_folder.end_of(run)
        if end is None:
            raise InputError(f"{FLAG} {run}: is not finished; finish it first, with --resume and its own flags")
        step, per_epoch = int(end["steps"]), run_folder.steps_per_epoch(run_folder.lines_of(run))
        if per_epoch is None:
            raise InputError(f"{FLAG} {run}: its metrics.jsonl has no line of a step; restore it")
        n_epochs = -(-step // per_epoch)
        state = run / "state" / f"{run_folder.STEP}{step:06d}"
        names = (f"{run_folder.EPOCH}{n_epochs:02d}", f"{run_folder.STEP}{step:06d}")
        folders = [path for name in names if (path := run / name).is_dir()]
        has_state = state.is_dir()
        if not folders and not has_state:
            raise InputError(f"{FLAG} {run}: its last checkpoint, {' or '.join(names)}, is missing; restore it")
        checkpoint = folders[0] if folders else run / names[0]
        past = int(end.get(PAST, 0))
        return cls(run, step, past + n_epochs, state if has_state else None, checkpoint, began)

    def digest(self) -> str:
        """Of what is read of it: part of the identity of the run that goes on."""
        files = [self.state / "manifest.json"] if self.state else sorted(self.checkpoint.glob("*.safetensors"))
        return f"step {self.step}, {hashlib.sha256(b''.join(digests(files))).hexdigest()[:16]}"

    def check(self, now: Mapping[str, Any]) -> None:
        """Raises InputError where what has to be the same is not. now: the identity of the run that goes on."""
        if self.began.get("weights") != now["weights"]:
            raise InputError(
                f"{FLAG} {self.run}: began with another model than --model; name that one, which stays the reference"
            )
        if self.began.get("reference weights") != now.get("reference weights"):
            raise InputError(f"{FLAG} {self.run}: had another reference; give the --reference-model that it had")
        if self.state is not None and self.began.get("master") != now["master"]:
            named = {"split": "split", "whole": "float32"}.get(str(self.began.get("master")))
            raise InputError(
                f"{FLAG} {self.run}: its final state holds other master weights; add --master-weights {named}"
            )
        if self.began.get("reference_update") != now["reference_update"]:
            raise InputError(
                f"{FLAG} {self.run}: was trained with --reference-update {self.began.get('reference_update')}; "
                "give the same"
            )
        if now["reference_update"] != "none" and self.state is None:
            raise InputError(
                f"{FLAG} {self.run}: its reference was updated, and only a final state would hold it, which was not "
                "kept (--keep-final-state); start from its last checkpoint folder as --model"
            )

    def load(self, training: Training, folder: RunFolder, config: TrainConfig) -> None:
        """Brings the policy, the optimizer, the objective and hooks' tensors to where the run has ended. Collective."""
        if self.state is None:
            self._load_checkpoint(training)
            return
        training.ranks.on_rank0(lambda: _check_whole(self.state))
        own = training.tensors()
        known = folder.states.names_in(self.state)
        tensors = {name: tensor for name, tensor in own.items() if name in known}
        missing = [name for name in own if name not in known and not name.startswith("hooks.")]
        optimizer = config.optimizer.name
        has_moments = self.began.get("optimizer") == optimizer and not missing
        if not has_moments:
            tensors = {name: x for name, x in tensors.items() if not _is_moment(name)}
        if lacks := [name for name in missing if not _is_moment(name)]:
            raise InputError(f"{FLAG} {self.state}: has no {lacks[0]}; it belongs to another model or run")
        folder.states.read(self.state, tensors)
        same_loss = self.began.get("loss") == config.objective.loss
        training.objective.state = folder.states.facts_in(self.state)["objective"] if same_loss else None
        moments = f"and {optimizer}'s moments"
        if not has_moments:
            moments = f"but not with its optimizer's moments, since {self.began.get('optimizer')} is not {optimizer}"
        say(f"{folder.path}: continues with the weights of {self.run} after its step {self.step}, {moments}")

    def _load_checkpoint(self, training: Training) -> None:
        training.ranks.reshard(training.model)
        masters = training.masters
        with training.ranks.together():
            copy = masters.copy_into if masters else Tensor.copy_
            weights.fill(training.policy, self.checkpoint, training.ranks.local, copy)
        written = name_of(weights.stored_dtypes(self.checkpoint).main)
        say(
            f"continues with the weights of {self.checkpoint}, in {written}; {self.run} has kept no final state "
            "(--keep-final-state), so that the optimizer's moments begin at 0"
        )


def _is_moment(name: str) -> bool:
    """Whether a tensor of a state is the optimizer's alone; the low halves of split masters are weights."""
    return name.startswith("optimizer.") and not name.endswith(".low")


def _check_whole(state: Path | None) -> None:
    """Raises InputError where a state is damaged."""
    from engine.run.states import damage  # brings a second of imports that --help does without

    if state is not None and (fault := damage(state)) is not None:
        raise InputError(
            f"{FLAG}: {fault}; restore it, or remove {state} to continue from the last checkpoint folder with new "
            "moments"
        )
