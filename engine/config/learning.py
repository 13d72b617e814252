"""The subjects of a run that say what is learned: from which rows, by which objective, in which steps, against what."""

import math
from dataclasses import dataclass, field
from typing import Annotated, Literal

import tyro

from data.rows import RowSettings
from engine.config.checks import check_above_zero, check_not_negative
from system import InputError
from system.flags import PathText, flag_of

BASE = "base"
"""What --reference-model says for the base of an adapter alone."""
RATE, LORA_RATE = 2e-7, 2e-6
"""Learning rates where none is named: the paper's, and of an adapter, for which ten times as much is usual."""
OptimizerName = Literal["rmsprop", "adamw", "muon"]


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
        check_not_negative(self, "seed")


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
    lr: float | None = None
    """Learning rate of the first step after the warm-up, the largest; --schedule says how it goes on. Unset: 2e-7, the
    paper's; with an adapter 2e-6."""
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
        if self.lr is not None and not 0 < self.lr < 10:
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

    @property
    def rate(self) -> float:
        """The learning rate, the paper's where none is named."""
        return RATE if self.lr is None else self.lr


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
        check_above_zero(self, "batch_size", "max_steps", "stages")
        check_not_negative(self, "warmup_steps")
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
    """Checkpoint folder or hub id of another reference than --model: of any shapes, with the same vocabulary. With an
    adapter also another adapter's folder, or "base": --model with adapters off."""
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

    @property
    def is_base(self) -> bool:
        """Whether the reference is the base of an adapter alone."""
        return self.model == BASE

    def __post_init__(self) -> None:
        check_above_zero(self, "update_steps")
        unused = ["update_alpha"] * (self.update != "soft") + ["update_steps"] * (self.update == "none")
        for name in unused:
            if getattr(self, name) != getattr(ReferenceConfig, name):
                flag = f"--reference-{name.replace('_', '-')}"
                raise InputError(f"{flag}: goes with --reference-update; name one, or leave it out")
        if not 0 < self.update_alpha <= 1:
            raise InputError(f"--reference-update-alpha: {self.update_alpha} is not above 0, and 1 at most")
