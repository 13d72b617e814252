"""Everything that describes a training run, by subject. The fields are the flags; their docstrings are the help.

On the command line, in a YAML file and in config.yaml settings are flat: --lr is `optimizer.lr` here, whatever subject
it belongs to. From Python they are given either way:

    TrainConfig(model="llama", data="pairs.jsonl", out="runs/first", lr=1e-6)
    TrainConfig(model="llama", data=DataConfig(sources=("pairs.jsonl",)), out="runs/first",
                optimizer=OptimizerConfig(lr=1e-6))
"""

import dataclasses
import difflib
import os
from dataclasses import dataclass
from typing import Any, Literal

from engine.config.adapters import AdapterConfig
from engine.config.learning import (
    LORA_RATE,
    RATE,
    DataConfig,
    ObjectiveConfig,
    OptimizerConfig,
    ReferenceConfig,
    ScheduleConfig,
)
from engine.config.running import CheckpointConfig, DistributedConfig, MeasuringConfig, MemoryConfig, WatchingConfig
from system import InputError, cli
from system.flags import PathText, flags_of

ALIASES = cli.Aliases(
    names={"save_total_limit": "keep_checkpoints"},
    former={"without": "disable", "keep": "keep_checkpoints", "master": "master_weights"},
    values={("master", "whole"): "float32"},
)
"""Other names of flags: the field's, and those of release 0.1, which are understood for one release more."""


@dataclass(frozen=True, kw_only=True, init=False)
class TrainConfig:
    """Align a model on preference data. The defaults are those of the APO paper (arXiv 2408.06266)."""

    model: PathText
    """The model to align: a checkpoint folder (Hugging Face layout, safetensors) or a hub id. By default it is also the
    reference; see --reference-model."""
    out: PathText
    """Folder for the run: its configuration, metrics, states, and a checkpoint per epoch. A folder that already holds a
    run is refused without --resume."""
    config: PathText | None = None
    """YAML file of settings, with the names of these flags or those of TRL's trainers. Flags on the command line win
    over the file."""
    trl_trainer: Literal["dpo", "kto", "orpo", "cpo"] | None = None
    """The TRL trainer that a --config file with TRL's names was written for; its defaults apply to what the file leaves
    out. Unset: recognised by names that only one trainer has, otherwise dpo."""
    data: DataConfig
    objective: ObjectiveConfig
    adapters: AdapterConfig
    optimizer: OptimizerConfig
    schedule: ScheduleConfig
    reference: ReferenceConfig
    memory: MemoryConfig
    checkpoints: CheckpointConfig
    distributed: DistributedConfig
    measuring: MeasuringConfig
    watching: WatchingConfig

    def __init__(self, **given: Any) -> None:
        """given: subjects by their names (optimizer=OptimizerConfig(lr=1e-6)), flags by theirs (lr=1e-6), or both:
        flags win. A name of both kinds (data, optimizer, schedule, reference) is a subject where its value is one.

        Raises InputError for a name that is not there, and for values that cannot be, alone or together.
        """
        subjects, flags = {}, {}
        for name, value in given.items():
            is_subject = name in SUBJECTS and isinstance(value, SUBJECTS[name])
            (subjects if is_subject else flags)[name] = value
        flags = ALIASES.translate(flags)
        for name, kind in SUBJECTS.items():
            own = {f: flags.pop(flag) for flag, (subject, f, *_) in FLAGS.items() if subject == name and flag in flags}
            if name in subjects:
                made = dataclasses.replace(subjects[name], **own) if own else subjects[name]
            elif kind is DataConfig and "sources" not in own:
                raise InputError("--data: has to be given; name the rows to train on")
            else:
                made = kind(**own)
            object.__setattr__(self, name, made)
        for name in ("config", "trl_trainer"):
            object.__setattr__(self, name, flags.pop(name, None))
        for name in ("model", "out"):
            if name not in flags:
                raise InputError(f"--{name}: has to be given")
            object.__setattr__(self, name, flags.pop(name))
        for name in flags:
            near = difflib.get_close_matches(name, FLAGS, n=1)
            raise InputError(f"TrainConfig: there is no setting {name!r}" + (f"; perhaps {near[0]!r}" if near else ""))
        if self.trl_trainer is not None and self.config is None:
            raise InputError(
                "--trl-trainer: needs --config with a file that was written for TRL; add it, or leave it out"
            )
        if self.optimizer.lr is None:
            rate = LORA_RATE if self.adapters.is_used else RATE
            object.__setattr__(self, "optimizer", dataclasses.replace(self.optimizer, lr=rate))
        self._check_adapters()
        self._check_split()
        self._check_measured()
        self._check_continued()
        if self.reference.model is not None and self.schedule.stages > 1:
            raise InputError(
                "--reference-model: cannot be combined with --stages, where the reference of each stage is the last "
                "checkpoint of the stage before; leave out one of the two"
            )

    def with_flags(self, **flags: Any) -> "TrainConfig":
        """The same settings but for these, by the flags' names. Raises InputError."""
        return TrainConfig(**(self.flat() | flags))

    def flat(self) -> dict[str, Any]:
        """Every setting by its flag's name ("-" as "_"): what config.yaml holds, and what the constructor takes."""
        held = {f.name: getattr(self, f.name) for f in dataclasses.fields(self) if f.name not in SUBJECTS}
        return held | {
            flag: getattr(getattr(self, subject), name) for flag, (subject, name, *_) in FLAGS.items() if subject
        }

    def resolved(self) -> dict[str, Any]:
        """Every setting as `flat` has it, with the limits of tokens that hold where none is named."""
        return self.flat() | {f"max_{name}": limit for name, limit in self.data.cuts.items()}

    @property
    def can_split(self) -> bool:
        """Whether everything else that was asked for goes with split masters."""
        return self.memory.dtype != "float32" and not self._against_split()

    def _against_split(self) -> list[str]:
        """Flags, as given, that do not go with split masters."""
        given = {
            f"--optimizer {self.optimizer.name}": self.optimizer.name == "muon",
            f"--reference-update {self.reference.update}": self.reference.update != "none",
            f"--shard-size {self.distributed.shard_size}": self.distributed.shard_size is not None,
        }
        return [flag for flag, is_against in given.items() if is_against]

    def _check_adapters(self) -> None:
        if not self.adapters.is_used:
            if self.reference.is_base:
                raise InputError(
                    "--reference-model base: means the base of an adapter, and all weights are trained; leave it out, "
                    "since the reference is --model"
                )
            return
        given = {
            "--optimizer muon": self.optimizer.name == "muon",
            "--master-weights split": self.memory.master_weights == "split",
            "--reference-update soft": self.reference.update == "soft",
            f"--save-dtype {self.checkpoints.save_dtype}": self.checkpoints.save_dtype not in ("auto", "float32"),
            f"--save-rounding {self.checkpoints.save_rounding}": self.checkpoints.save_rounding != "nearest",
            f"--continue-from {self.checkpoints.continue_from}": self.checkpoints.continue_from is not None,
        }
        why = {
            "--optimizer": "it makes the update of a whole matrix orthogonal, and A and B are only factors of one; use "
            "adamw",
            "--master-weights": "an adapter's float32 master weights are small and are not split; leave it out",
            "--reference-update": "averaging A and B of two adapters does not average their products; use hard",
            "--save-dtype": "an adapter is saved in float32; leave it out, and choose the dtype in engine.merge",
            "--save-rounding": "an adapter is saved in float32; leave it out, and choose the rounding in engine.merge",
            "--continue-from": "start from the run's last adapter folder instead: --adapter DIR --reference-model base",
        }
        for flag, is_given in given.items():
            if is_given:
                raise InputError(f"{flag}: cannot be combined with an adapter: {why[flag.split()[0]]}")

    def _check_measured(self) -> None:
        asked = {
            "--eval-every": self.measuring.eval_every,
            "--early-stop": self.measuring.early_stop,
            "--keep-best": self.checkpoints.keep_best,
        }
        for flag, value in asked.items():
            if value is not None and not self.measuring.is_heldout:
                raise InputError(f"{flag} {value}: nothing is held out; name --eval-data or --eval-pairs with it")

    def _check_continued(self) -> None:
        run = self.checkpoints.continue_from
        if run is None:
            return
        if os.path.realpath(run) == os.path.realpath(self.out):
            raise InputError(
                f"--continue-from {run}: is the same folder as --out; give the new run a folder of its own"
            )
        if self.schedule.stages > 1:
            raise InputError(f"--continue-from {run}: cannot be combined with --stages; leave out one of the two")

    def _check_split(self) -> None:
        if self.memory.master_weights != "split":
            return
        if against := self._against_split():
            raise InputError(f"{against[0]}: cannot be combined with --master-weights split; leave out one of the two")
        if world_size() > 1:
            raise InputError(
                "--master-weights split: works with one process only; leave it out, since several processes shard the "
                "master weights"
            )


SUBJECTS: dict[str, type] = {
    f.name: f.type for f in dataclasses.fields(TrainConfig) if dataclasses.is_dataclass(f.type)
}  # pyright: ignore[reportAssignmentType]
"""The subjects of a configuration by name."""
FLAGS = flags_of(TrainConfig)
"""Every flag ("-" as "_"): the subject that it belongs to ("" for the configuration itself) and its name there."""


def world_size() -> int:
    """Processes of the run, as torchrun says."""
    return int(os.environ.get("WORLD_SIZE", "1"))
