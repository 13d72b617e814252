"""Everything that describes a training run, by subject. The fields are the flags; their docstrings are the help.

On the command line, in a YAML file and in config.yaml settings are flat: --lr is `optimizer.lr` here, whatever subject
it belongs to. From Python they are given either way:

    TrainConfig(model="llama", data="pairs.jsonl", out="runs/first", lr=1e-6)
    TrainConfig(model="llama", data=DataConfig(sources=("pairs.jsonl",)), out="runs/first",
                optimizer=OptimizerConfig(lr=1e-6))
"""

import dataclasses
import difflib
import math
import os
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

import tyro

from data.forest import PackingOptions
from data.rows import RowSettings
from engine.config.trackers import Tracker
from system import InputError, cli, launcher
from system.flags import PathText, flag_of, flags_of

Rounding = Literal["nearest", "stochastic"]
Technique = Literal[
    "prompt-sharing", "packing", "response-rows", "reference-cache", "balance", "kept-logits", "used-pages"
]
SaveDtype = Literal["auto", "float32", "bfloat16", "float16", "source"]
MasterWeights = Literal["auto", "float32", "split"]
OptimizerName = Literal["rmsprop", "adamw", "muon"]

ALIASES = cli.Aliases(
    names={"save_total_limit": "keep_checkpoints"},
    former={"without": "disable", "keep": "keep_checkpoints", "master": "master_weights"},
    values={("master", "whole"): "float32"},
)
"""Other names of flags: the field's, and those of release 0.1, which are understood for one release more."""


@dataclass(frozen=True, kw_only=True)
class DataConfig(RowSettings):
    """What is trained on."""

    sources: Annotated[tuple[PathText, ...], tyro.conf.arg(name="data")]
    """Rows to train on: .jsonl, .json, .csv or .parquet files, folders of such files, hub ids; NAME:SPLIT is a split of
    the latter two."""
    weights: Annotated[tuple[float, ...], tyro.conf.arg(name="data-weights")] = ()
    """How often the rows of each --data are taken: 2 is twice, 0.5 a half of them, drawn by --seed. Unset: once."""
    shuffle: bool = True
    """Take the rows in a new order each epoch."""
    seed: int = 0
    """Of the order of the rows and of the held-out split."""
    skip_bad_rows: bool = False
    """Go on without rows that cannot be used, and count them."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if isinstance(self.sources, str):  # from Python, a name alone
            object.__setattr__(self, "sources", (self.sources,))
        if self.weights and len(self.weights) != len(self.sources):
            raise InputError(f"--data-weights: {len(self.weights)} of them for {len(self.sources)} of --data")
        if not all(0 < weight <= 100 for weight in self.weights):
            raise InputError("--data-weights: each has to be above 0, and 100 at most")
        _check_not_negative(self, "seed")


@dataclass(frozen=True, kw_only=True)
class ObjectiveConfig:
    """What is minimised. Any hyperparameter of an objective is --NAME.argument, for example --apo_zero.beta 0.3."""

    loss: PathText = "apo_zero"
    """Objective: a name listed below, path/to/file.py:name, or a mixture such as apo_zero:1,sft:0.1."""
    beta: float | None = None
    """Scale of the rewards, per nat; unset, the objective's own default."""
    own_score: Literal["row", "rejected"] = "row"
    """Where the score of the model's own answer stands: in "own_score", or, where the loser is that answer, in
    "rejected_score"."""
    hyperparameters: tyro.conf.Suppress[dict[str, str]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.beta is not None and not 0 < self.beta < float("inf"):
            raise InputError(f"--beta: {self.beta} is not above 0; the paper's is 0.1")


@dataclass(frozen=True, kw_only=True)
class OptimizerConfig:
    """How gradients become steps."""

    name: Annotated[OptimizerName, tyro.conf.arg(name="optimizer")] = "rmsprop"
    """RMSProp (alpha 0.99, eps 1e-8), AdamW, or Muon (momentum 0.95, arXiv 2502.16982) for the blocks' matrices with
    AdamW for embedding, head and norms, at the same --lr."""
    lr: float = 2e-7
    """Learning rate of the first step after the warm-up, the largest; --schedule says how it goes on."""
    max_grad_norm: float = 1.0
    """Largest global norm of the gradient; 0 leaves it as it is."""
    adam_beta1: float = 0.9
    """AdamW's memory of gradients; Muon's AdamW has it too, and the two below."""
    adam_beta2: float = 0.999
    """AdamW's memory of their squares."""
    adam_epsilon: float = 1e-8
    """What AdamW adds to the root of the mean square."""
    weight_decay: float = 0.0
    """Share of a weight, times its learning rate, that a step of AdamW or Muon takes away; never of norms and biases,
    but where parameter options name them."""

    def __post_init__(self) -> None:
        if not 0 < self.lr < 10:
            raise InputError(f"--lr: {self.lr} is not between 0 and 10; the paper trains at 2e-7")
        if not 0 <= self.max_grad_norm < float("inf"):
            raise InputError(f"--max-grad-norm: {self.max_grad_norm} is not 0 or above")
        for name in ("adam_beta1", "adam_beta2", "adam_epsilon", "weight_decay"):
            if self.name == "rmsprop" and getattr(self, name) != getattr(OptimizerConfig, name):
                flag = flag_of(OptimizerConfig, name)
                raise InputError(f"--{flag}: goes with --optimizer adamw or muon; name one, or leave it out")
        for name in ("adam_beta1", "adam_beta2"):
            if not 0 <= getattr(self, name) < 1:
                flag = flag_of(OptimizerConfig, name)
                raise InputError(f"--{flag}: {getattr(self, name)} is not 0 or above, and below 1")
        if not 0 < self.adam_epsilon < float("inf"):
            raise InputError(f"--adam-epsilon: {self.adam_epsilon} is not above 0; the usual one is 1e-8")
        if not 0 <= self.weight_decay < float("inf"):
            raise InputError(f"--weight-decay: {self.weight_decay} is not 0 or above")


@dataclass(frozen=True, kw_only=True)
class ScheduleConfig:
    """How many steps there are, of what size, and how the learning rate goes over them."""

    epochs: int | float = 18
    """Passes over the rows; 0.5 is half of the steps of one, rounded up."""
    batch_size: int = 16
    """Examples per optimizer step, over all ranks."""
    max_steps: int | None = None
    """Ends the run, and its schedule, after so many optimizer steps."""
    shape: Annotated[Literal["linear", "cosine", "constant", "wsd"], tyro.conf.arg(name="schedule")] = "linear"
    """How the learning rate goes on after the warm-up: falls to 0 linearly or as half a cosine, stays, or (wsd) stays
    and falls as half a cosine over the last steps, --decay-ratio of all."""
    min_lr_ratio: float = 0.0
    """Share of --lr that it falls to; in wsd the warm-up begins there too."""
    warmup_steps: int = 0
    """Steps over which the learning rate rises from 0 to --lr, evenly: the first step moves nothing."""
    warmup_ratio: float = 0.0
    """The warm-up as a share of all steps instead, rounded up."""
    decay_ratio: float = 0.1
    """Share of all steps, rounded up, over which --schedule wsd falls."""
    stages: int = 1
    """Train on the rows in so many parts, one after the other in the order given (sDPO, arXiv 2403.19270): each part
    starts from the last checkpoint of the one before, which is its reference too; folders stage-01 ... in --out. Where
    they are bfloat16, so is the start of the next part: --save-dtype float32 keeps small updates."""

    def __post_init__(self) -> None:
        if not 0 < self.epochs < float("inf"):
            raise InputError(f"--epochs: {self.epochs} is not above 0")
        if self.epochs == int(self.epochs):
            object.__setattr__(self, "epochs", int(self.epochs))
        _check_above_zero(self, "batch_size", "max_steps", "stages")
        _check_not_negative(self, "warmup_steps")
        for name in ("min_lr_ratio", "warmup_ratio"):
            if not 0 <= getattr(self, name) <= 1:
                flag = flag_of(ScheduleConfig, name)
                raise InputError(f"--{flag}: {getattr(self, name)} is not between 0 and 1; it is a share")
        if not 0 < self.decay_ratio <= 1:
            raise InputError(f"--decay-ratio: {self.decay_ratio} is not above 0, and 1 at most; it is a share")
        if self.warmup_steps and self.warmup_ratio:
            raise InputError("--warmup-steps and --warmup-ratio: give one of the two")
        if self.min_lr_ratio and self.shape == "constant":
            raise InputError("--min-lr-ratio: --schedule constant does not fall; name another, or leave it out")
        if self.decay_ratio != ScheduleConfig.decay_ratio and self.shape != "wsd":
            raise InputError("--decay-ratio: goes with --schedule wsd; name it, or leave it out")

    def n_steps(self, per_epoch: int) -> int:
        """Optimizer steps of the run, of so many in an epoch."""
        whole = math.ceil(self.epochs * per_epoch)  # as transformers has it
        return min(whole, self.max_steps or whole)

    def n_epochs(self, per_epoch: int) -> float:
        """Passes over the rows until the run ends, of so many steps each."""
        return min(self.epochs, self.n_steps(per_epoch) / per_epoch)

    def n_warmup(self, n_steps: int) -> int:
        """Steps of the warm-up, of n_steps."""
        return self.warmup_steps or math.ceil(
            n_steps * self.warmup_ratio
        )  # as transformers: 0.07 of 100 is 8 in floats

    def n_decay(self, n_steps: int) -> int:
        """Steps of n_steps over which wsd falls."""
        return math.ceil(n_steps * self.decay_ratio)


@dataclass(frozen=True, kw_only=True)
class ReferenceConfig:
    """Where the reference's log-probs come from, and whether it follows the policy."""

    mode: Annotated[Literal["auto", "fused", "precompute", "none"], tyro.conf.arg(name="reference")] = "auto"
    """fused: a second model is computed beside the policy in epoch 1; precompute: one pass of the reference's weights,
    which are the policy's own unless --reference-model names others, before step 1."""
    model: Annotated[PathText | None, tyro.conf.arg(name="reference-model")] = None
    """Checkpoint folder or hub id of another reference than --model: of any shapes, with the same vocabulary."""
    cache: Annotated[PathText | None, tyro.conf.arg(name="reference-cache")] = None
    """Reference log-probs of other runs: a folder that runs share, or one's reference.safetensors. Taken where weights,
    rows and dtype are the same; said so, and computed anew, where not."""
    update: Annotated[Literal["none", "soft", "hard"], tyro.conf.arg(name="reference-update")] = "none"
    """Let the reference follow the policy (TR-DPO, arXiv 2404.09656): soft moves it a share of the way, hard puts it
    there. Rewards are measured against the reference of the moment."""
    update_steps: Annotated[int, tyro.conf.arg(name="reference-update-steps")] = 512
    """Optimizer steps between two such updates."""
    update_alpha: Annotated[float, tyro.conf.arg(name="reference-update-alpha")] = 0.6
    """The share of a soft update."""

    def __post_init__(self) -> None:
        _check_above_zero(self, "update_steps")
        unused = ["update_alpha"] * (self.update != "soft") + ["update_steps"] * (self.update == "none")
        for name in unused:
            if getattr(self, name) != getattr(ReferenceConfig, name):
                flag = f"--reference-{name.replace('_', '-')}"
                raise InputError(f"{flag}: goes with --reference-update; name one, or leave it out")
        if not 0 < self.update_alpha <= 1:
            raise InputError(f"--reference-update-alpha: {self.update_alpha} is not above 0, and 1 at most")


@dataclass(frozen=True, kw_only=True)
class MemoryConfig:
    """What the run holds in memory, and in which dtype it computes. Unset, the plan finds what fits."""

    dtype: Literal["float32", "bfloat16"] | None = None
    """Compute dtype; master weights are float32 always. Unset: bfloat16 on CUDA, float32 on the CPU."""
    micro_tokens: int | None = None
    """Most tokens in one forward and backward pass of a rank (one example at least): bounds the memory. Unset: 1,024 on
    the CPU, on a GPU as many as fit. With --master-weights split --max-grad-norm 0 a step is always one pass."""
    recompute_blocks: int | None = None
    """Activation checkpointing: blocks whose inside the backward pass computes again. Unset: none on the CPU, on a GPU
    as few as it takes to fit."""
    gpu_memory: float | None = None
    """GB (10^9 bytes) of the GPU that the run may take. Unset: what is free."""
    master_weights: MasterWeights = "auto"
    """float32 master weights as they are, with a bf16 copy to compute with, or split in two halves whose upper one
    computes (one process; the numbers are the same): with it a model of 8 billion parameters trains on one GPU of
    80 GB. auto: float32 where it fits."""
    square_avg: Literal["float32", "bfloat16"] = "float32"
    """RMSProp's running mean of squares with --master-weights split, and both means of AdamW; bfloat16 is an
    approximation, rounded stochastically: 0.7 % of error, no bias, 2 bytes a parameter less for each mean."""
    compile: Literal["auto", "yes", "no"] = "auto"
    """Compile the blocks around attention. auto: on a GPU; on the CPU it was measured to gain nothing."""

    def __post_init__(self) -> None:
        _check_above_zero(self, "micro_tokens")
        _check_not_negative(self, "recompute_blocks")
        if self.gpu_memory is not None and not 0 < self.gpu_memory < float("inf"):
            raise InputError(f"--gpu-memory: {self.gpu_memory} is not above 0; it is in GB of 10^9 bytes")
        if self.master_weights != "split" and self.square_avg != "float32":
            raise InputError(
                f"--square-avg {self.square_avg}: goes with --master-weights split; name it, or leave it out"
            )
        if self.master_weights == "split" and self.dtype == "float32":
            raise InputError("--master-weights split: its upper halves compute in bfloat16; leave --dtype out")

    def compiles(self, device: str) -> bool:
        """Whether blocks are compiled on a device: "cuda" or "cpu"."""
        return self.compile == "yes" or (self.compile == "auto" and device == "cuda")


@dataclass(frozen=True, kw_only=True)
class CheckpointConfig:
    """What the run writes into its folder, and goes on from."""

    resume: bool = False
    """Go on from the newest whole state in --out; begin where there is none."""
    take_over: bool = False
    """A run on another host, which has not said that it ended, is gone: write into its folder."""
    stop_after: int | None = None
    """Save a state and leave after that step; the schedule is that of the whole run."""
    state_every: int | None = None
    """Save what --resume needs every so many steps. Unset: at each epoch's end; 0: only when the run is stopped."""
    keep_state: int = 1
    """How many of the newest states stay."""
    save_every: int | float | None = None
    """Write a checkpoint folder every so many steps too, step-000120 beside epoch-01; below 1 a share of all steps,
    rounded up. Unset: at each epoch's end."""
    keep_checkpoints: int | None = None
    """Keep only the newest checkpoint folders, so many. --save-total-limit is the same."""
    keep_best: str | None = None
    """Keep the checkpoint at which a held-out number was best, however old it is: eval_loss, or loss for short, the
    smallest; rewards/accuracies, rewards/margins, logps/chosen the greatest. Whenever it is measured and better than
    before, a folder is written; `best` is a link to it."""
    keep_final_state: bool = False
    """Save a state after the last step too: --continue-from goes on with its optimizer's moments."""
    continue_from: PathText | None = None
    """A finished run's folder: begin with the weights that it ended with, and its optimizer's moments where it has kept
    its final state, in a new folder, with this run's own steps and learning rate. --model is still the model that it
    began with, and stays the reference."""
    save_dtype: SaveDtype = "auto"
    """Dtype of the weights in the checkpoint folders. auto: the dtype that computes (float32 on the CPU, bfloat16 on a
    GPU unless --dtype says otherwise), so that a folder is the model that the run's numbers are of. source: the dtypes
    of --model, tensor by tensor. Where it has fewer bits than the compute dtype, the run measures what the folders
    lose."""
    save_rounding: Rounding = "nearest"
    """How weights are rounded to --save-dtype bfloat16. stochastic rounds up or down at random, so that updates too
    small for bfloat16 survive on average; it adds noise to every log-prob."""

    def __post_init__(self) -> None:
        _check_above_zero(self, "keep_checkpoints", "stop_after", "keep_state")
        _check_steps(self, "save_every")
        _check_not_negative(self, "state_every")
        if self.save_rounding == "stochastic" and self.save_dtype in ("float32", "float16"):
            raise InputError(
                f"--save-rounding stochastic: rounds to bfloat16, not to {self.save_dtype}; name --save-dtype bfloat16 "
                "with it, or leave it out"
            )

    def n_folders(self, n_steps: int, per_epoch: int) -> int:
        """Checkpoint folders that a run of so many steps leaves, at most."""
        n = -(-n_steps // per_epoch)
        if every := self.steps_between_folders(n_steps):
            inside = (step for step in range(every, n_steps, every) if step % per_epoch)
            n += sum(1 for _ in inside)
        return min(n, self.keep_checkpoints or n) + (self.keep_best is not None)

    def steps_between_folders(self, n_steps: int) -> int | None:
        """What --save-every comes to in a run of so many steps."""
        return _as_steps(self.save_every, n_steps)

    @property
    def resumes(self) -> bool:
        """Whether the run goes on with what --out holds: asked for, or started anew by torchrun."""
        return self.resume or launcher.n_restarts() > 0


@dataclass(frozen=True, kw_only=True)
class DistributedConfig:
    """How several ranks share the weights, and how long they wait for one another."""

    reshard: Literal["auto", "yes", "no"] = "auto"
    """Give a block's gathered weights back after its forward pass and gather them again for the backward pass. auto: on
    a GPU where the memory is needed."""
    shard_size: int | None = None
    """Ranks that share one copy of the weights; unset: all. The number of GPUs of a node: every node holds a copy, and
    only gradients cross the network (hybrid sharding)."""
    hang_timeout: float = 600.0
    """Seconds that ranks wait for one another before the run ends, naming the one that did not answer."""

    def __post_init__(self) -> None:
        _check_above_zero(self, "shard_size")
        if not 1 <= self.hang_timeout <= 86400:
            raise InputError(f"--hang-timeout: {self.hang_timeout} is not between 1 second and a day")


@dataclass(frozen=True, kw_only=True)
class MeasuringConfig:
    """What is measured beside the training rows, and what the savings buy."""

    eval_data: PathText | None = None
    """Held-out rows, named as --data is: their rewards and log-probs are measured after each epoch."""
    eval_pairs: int | float = 0
    """Hold out so many of the rows of --data instead; below 1 a share of them, rounded up."""
    eval_every: int | float | None = None
    """Measure held-out rows every so many steps too, and once before the first; below 1 a share of all steps, rounded
    up. Unset: after each epoch."""
    early_stop: str | None = None
    """METRIC:PATIENCE ends the run when a held-out number, named as for --keep-best, was not better than its best so
    many times in a row: eval_loss:3. The run is finished then; its last step has a checkpoint folder."""
    disable: tuple[Technique, ...] = ()
    """Put back what is left out otherwise, to measure what leaving it out buys; the results are the same."""

    def __post_init__(self) -> None:
        _check_not_negative(self, "eval_pairs")
        if self.eval_pairs > 1 and self.eval_pairs != int(self.eval_pairs):
            raise InputError(f"--eval-pairs: {self.eval_pairs} is neither a whole number nor a share below 1")
        _check_steps(self, "eval_every")
        if self.eval_data and self.eval_pairs:
            raise InputError("--eval-data and --eval-pairs: give one of the two")
        if self.early_stop is not None and self.patience is None:
            raise InputError(f"--early-stop: {self.early_stop!r} is not METRIC:PATIENCE, such as eval_loss:3")

    def steps_between(self, n_steps: int) -> int | None:
        """What --eval-every comes to in a run of so many steps."""
        return _as_steps(self.eval_every, n_steps)

    @property
    def patience(self) -> tuple[str, int] | None:
        """The number that --early-stop follows, and how many times it may be no better; None where it asks for none."""
        metric, _, times = (self.early_stop or "").rpartition(":")
        return (metric, int(times)) if metric and times.isdecimal() and int(times) > 0 else None

    @property
    def is_heldout(self) -> bool:
        """Whether rows are held out."""
        return bool(self.eval_data or self.eval_pairs)

    @property
    def keeps_reference(self) -> bool:
        """Whether the reference's log-probs are kept once they are computed; not keeping them shows what that buys."""
        return "reference-cache" not in self.disable

    @property
    def packing(self) -> PackingOptions:
        """What the forests of a run leave out."""
        return PackingOptions(
            shares_prompts="prompt-sharing" not in self.disable,
            pads="packing" in self.disable,
            predicts_all="response-rows" in self.disable,
        )


@dataclass(frozen=True, kw_only=True)
class WatchingConfig:
    """Where the run is watched, beside its metrics.jsonl."""

    track: tuple[Tracker, ...] = ("tensorboard",)
    """Hand each step's line, and the settings, to these too, each by its own library and environment variables
    (WANDB_PROJECT, MLFLOW_TRACKING_URI, TRACKIO_SPACE_ID ...); several at once, or none. A library that fails or hangs
    is told of, and the run goes on."""

    def __post_init__(self) -> None:
        if isinstance(self.track, str):  # from Python, a name alone
            object.__setattr__(self, "track", (self.track,))
        if len(set(self.track)) < len(self.track):
            raise InputError(f"--track: {' '.join(self.track)}: names one twice")
        if "none" in self.track and len(self.track) > 1:
            raise InputError(f"--track: {' '.join(self.track)}: none goes with no other")


@dataclass(frozen=True, kw_only=True, init=False)
class TrainConfig:
    """Align a Llama on preferences. The defaults are those of arXiv 2408.06266."""

    model: PathText
    """Checkpoint folder (Hugging Face layout, safetensors) or hub id; the policy starts from it, and so does the
    reference where no --reference-model is named."""
    out: PathText
    """Folder for the run: config, metrics, a checkpoint per epoch. Must not hold a run, but with --resume."""
    config: PathText | None = None
    """YAML file of settings, named as the flags are, or as TRL's trainers have them; flags win over it."""
    trl_trainer: Literal["dpo", "kto", "orpo", "cpo"] | None = None
    """Which of TRL's trainers a file of --config is for, whose defaults hold in it. Unset: as names tell that only one
    of them has, else dpo."""
    data: DataConfig
    objective: ObjectiveConfig
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
                raise InputError("--data: rows to train on have to be named")
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
            raise InputError("--trl-trainer: goes with --config, and a file that was written for TRL; leave it out")
        self._check_split()
        self._check_measured()
        self._check_continued()
        if self.reference.model is not None and self.schedule.stages > 1:
            raise InputError(
                "--reference-model: not with --stages, where each part is measured against what the one before left; "
                "leave one of the two out"
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
            raise InputError(f"--continue-from {run}: is --out too; a run that goes on has a folder of its own")
        if self.schedule.stages > 1:
            raise InputError(f"--continue-from {run}: not with --stages; name it for a run of one stage")

    def _check_split(self) -> None:
        if self.memory.master_weights != "split":
            return
        if against := self._against_split():
            raise InputError(f"{against[0]}: not with --master-weights split")
        if world_size() > 1:
            raise InputError(
                "--master-weights split: is for one process; with several, leave it out: masters are sharded"
            )


SUBJECTS: dict[str, type] = {
    f.name: f.type for f in dataclasses.fields(TrainConfig) if dataclasses.is_dataclass(f.type)
}  # pyright: ignore[reportAssignmentType]
"""The subjects of a configuration by name."""
FLAGS = flags_of(TrainConfig)
"""Every flag ("-" as "_"): the subject that it belongs to ("" for the configuration itself) and its name there."""


def _check_above_zero(subject: Any, *names: str) -> None:
    for name in names:
        value = getattr(subject, name)
        if value is not None and value < 1:
            raise InputError(f"--{flag_of(type(subject), name)}: {value} is not above 0")


def _check_steps(subject: Any, name: str) -> None:
    value = getattr(subject, name)
    if value is not None and not value > 0:
        raise InputError(f"--{flag_of(type(subject), name)}: {value} is not above 0")
    if value is not None and value > 1 and value != int(value):
        raise InputError(f"--{flag_of(type(subject), name)}: {value} is neither a whole number nor a share below 1")


def _as_steps(every: float | None, n_steps: int) -> int | None:
    """So many steps, or a share of them, rounded up as transformers does."""
    return None if every is None else math.ceil(every * n_steps) if every < 1 else int(every)


def _check_not_negative(subject: Any, *names: str) -> None:
    for name in names:
        value = getattr(subject, name)
        if value is not None and value < 0:
            raise InputError(f"--{flag_of(type(subject), name)}: {value} cannot be negative")


def world_size() -> int:
    """Processes of the run, as torchrun says."""
    return int(os.environ.get("WORLD_SIZE", "1"))
