"""The subjects of a run that say what is learned: from which rows, by which objective, in which steps, against what."""

import math
from dataclasses import dataclass, field
from typing import Annotated, Literal

import tyro

from data.rows import RowSettings
from system import InputError
from system.flags import PathText, check_above_zero, check_not_negative, flag_of

BASE = "base"
"""What --reference-model says for the base of an adapter alone."""
RATE, LORA_RATE = 2e-7, 2e-6
"""Learning rates where none is named: the paper's, and of an adapter, for which ten times as much is usual."""
OptimizerName = Literal["rmsprop", "adamw", "muon"]


@dataclass(frozen=True, kw_only=True)
class DataConfig(RowSettings):
    """The rows to train on, and how they are read and shortened."""

    sources: Annotated[tuple[PathText, ...], tyro.conf.arg(name="data")]
    """Rows to train on: .jsonl, .json, .csv or .parquet files, folders of such files, or hub ids. FOLDER:SPLIT and
    ID:SPLIT name a split of a folder or of a data set on the hub."""
    template_date: str | None = None
    """Date, as YYYY-MM-DD, for chat templates that print the current date. Unset: today; a resumed run keeps its first
    date."""
    weights: Annotated[tuple[float, ...], tyro.conf.arg(name="data-weights")] = ()
    """One factor for each source of --data: with 2 an epoch contains every row twice; with 0.5 it contains a random
    half of the rows, drawn once with --seed and the same in every epoch. Unset: every row once."""
    shuffle: bool = True
    """Shuffle the rows again in each epoch. With --no-shuffle they are taken in the order of the files."""
    seed: int = 0
    """Random seed for the order of the rows, for the rows that --eval-pairs holds out and --data-weights draws, and for
    the initial weights of an adapter."""
    skip_bad_rows: bool = False
    """Skip rows that cannot be used, and report how many there are. By default such rows are an error."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if isinstance(self.sources, str):  # from Python, a name alone
            object.__setattr__(self, "sources", (self.sources,))
        if self.weights and len(self.weights) != len(self.sources):
            raise InputError(
                f"--data-weights: {len(self.weights)} numbers for {len(self.sources)} sources; give one for each of "
                f"--data"
            )
        if wrong := [weight for weight in self.weights if not 0 < weight <= 100]:
            raise InputError(f"--data-weights: {wrong[0]} has to be above 0 and at most 100")
        check_not_negative(self, "seed")


@dataclass(frozen=True, kw_only=True)
class ObjectiveConfig:
    """The loss to minimise. Hyperparameters of an objective are set by --NAME.argument, such as --apo_zero.beta 0.3."""

    loss: PathText = "apo_zero"
    """The objective to train with: a name from the list below, an objective in your own file (path/to/file.py:name), or
    a weighted mixture such as apo_zero:1,sft:0.1."""
    beta: float | None = None
    """Beta: for most objectives the reward is beta times the log-ratio of policy to reference. In DPO a larger beta
    keeps the policy closer to the reference. It is set for every objective of --loss that has a beta. Unset: each
    objective's own default, listed below."""
    own_score: Literal["row", "rejected"] = "row"
    """Where apo_select finds the score of the model's own answer. row: the column "own_score". rejected:
    "rejected_score", for pairs whose rejected response is that answer, such as CLAIR's."""
    hyperparameters: tyro.conf.Suppress[dict[str, str]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.beta is not None and not 0 < self.beta < float("inf"):
            raise InputError(f"--beta: {self.beta} has to be above 0; the paper's is 0.1")


@dataclass(frozen=True, kw_only=True)
class OptimizerConfig:
    """The optimizer and its settings."""

    name: Annotated[OptimizerName, tyro.conf.arg(name="optimizer")] = "rmsprop"
    """Optimizer. rmsprop (alpha 0.99, eps 1e-8): used in the paper. adamw: TRL's default. muon (momentum 0.95, arXiv
    2502.16982): for the matrices of the blocks; embedding, head and norms use AdamW at the same --lr. --weight-decay
    and the --adam flags need adamw or muon."""
    lr: float | None = None
    """Peak learning rate, reached right after the warm-up; --schedule sets how it decays. Unset: 2e-7 as in the paper,
    or 2e-6 for an adapter, which usually takes about ten times the rate of full training. TRL's example of DPO with
    LoRA uses 5e-6."""
    max_grad_norm: float = 1.0
    """Clip the gradient to this global norm before each optimizer step. 0 turns clipping off. With --master-weights
    split, 0 also saves the memory of the gradients."""
    adam_beta1: float = 0.9
    """AdamW's beta1: decay of the running mean of gradients. The AdamW part of Muon uses the adam flags too."""
    adam_beta2: float = 0.999
    """AdamW's beta2: decay of the running mean of squared gradients."""
    adam_epsilon: float = 1e-8
    """AdamW's epsilon: added to the root of the mean square so that no update divides by 0."""
    weight_decay: float = 0.0
    """Decoupled weight decay of AdamW and Muon: each step subtracts this times the learning rate times the weight.
    Norms and biases do not decay unless the Python API sets it for them (Hooks.parameter_options)."""

    def __post_init__(self) -> None:
        if self.lr is not None and not 0 < self.lr < 10:
            raise InputError(f"--lr: {self.lr} has to be above 0 and below 10; the paper trains at 2e-7")
        if not 0 <= self.max_grad_norm < float("inf"):
            raise InputError(f"--max-grad-norm: {self.max_grad_norm} has to be at least 0")
        for name in ("adam_beta1", "adam_beta2", "adam_epsilon", "weight_decay"):
            if self.name == "rmsprop" and getattr(self, name) != getattr(OptimizerConfig, name):
                flag = flag_of(OptimizerConfig, name)
                raise InputError(f"--{flag}: needs --optimizer adamw or muon; add one of them, or leave it out")
        for name in ("adam_beta1", "adam_beta2"):
            if not 0 <= getattr(self, name) < 1:
                flag = flag_of(OptimizerConfig, name)
                raise InputError(f"--{flag}: {getattr(self, name)} has to be at least 0 and below 1")
        if not 0 < self.adam_epsilon < float("inf"):
            raise InputError(f"--adam-epsilon: {self.adam_epsilon} has to be above 0; the usual one is 1e-8")
        if not 0 <= self.weight_decay < float("inf"):
            raise InputError(f"--weight-decay: {self.weight_decay} has to be at least 0")

    @property
    def rate(self) -> float:
        """The learning rate, the paper's where none is named."""
        return RATE if self.lr is None else self.lr


@dataclass(frozen=True, kw_only=True)
class ScheduleConfig:
    """The number and size of the optimizer steps, and the learning rate over them."""

    epochs: int | float = 18
    """Passes over the training rows. A fraction is allowed: 0.5 takes half of the steps of one pass, rounded up."""
    batch_size: int = 16
    """Examples per optimizer step, over all ranks: in TRL's terms per_device_train_batch_size x
    gradient_accumulation_steps x GPUs. It does not set the memory needed; --micro-tokens does."""
    max_steps: int | None = None
    """Number of optimizer steps after which the run ends if --epochs would take longer; the learning rate schedule ends
    there too. Unset: --epochs decides."""
    shape: Annotated[Literal["linear", "cosine", "constant", "wsd"], tyro.conf.arg(name="schedule")] = "linear"
    """Learning rate after the warm-up: linear or cosine decay to --min-lr-ratio times --lr (0 by default), constant, or
    wsd (warm-up, stable, decay), which stays constant and then decays along half a cosine over the last --decay-ratio
    of all steps."""
    min_lr_ratio: float = 0.0
    """Learning rate that the decay ends at, as a share of --lr. With --schedule wsd the warm-up also starts at this
    share instead of 0. Not for --schedule constant."""
    warmup_steps: int = 0
    """Number of steps over which the learning rate rises linearly from 0 (see --min-lr-ratio for wsd) to --lr. If it
    rises from 0, the first step changes no weight."""
    warmup_ratio: float = 0.0
    """Length of the warm-up as a share of all steps, rounded up; an alternative to --warmup-steps."""
    decay_ratio: float = 0.1
    """Share of all steps, rounded up, over which the learning rate of --schedule wsd decays."""
    stages: int = 1
    """Split the rows, in file order, into this many parts and train on one after the other (sDPO, arXiv 2403.19270).
    Each stage starts from the last checkpoint of the stage before, which is also its reference, and writes into
    --out/stage-01 and so on. Checkpoints in bfloat16 lose small updates between stages; --save-dtype float32 keeps
    them. Each stage makes --epochs passes over its part, with a learning rate schedule of its own."""

    def __post_init__(self) -> None:
        if not 0 < self.epochs < float("inf"):
            raise InputError(f"--epochs: {self.epochs} has to be above 0")
        if self.epochs == int(self.epochs):
            object.__setattr__(self, "epochs", int(self.epochs))
        check_above_zero(self, "batch_size", "max_steps", "stages")
        check_not_negative(self, "warmup_steps")
        for name in ("min_lr_ratio", "warmup_ratio"):
            if not 0 <= getattr(self, name) <= 1:
                flag = flag_of(ScheduleConfig, name)
                raise InputError(f"--{flag}: {getattr(self, name)} has to be between 0 and 1; it is a share")
        if not 0 < self.decay_ratio <= 1:
            raise InputError(f"--decay-ratio: {self.decay_ratio} has to be above 0 and at most 1; it is a share")
        if self.warmup_steps and self.warmup_ratio:
            raise InputError("--warmup-steps and --warmup-ratio: give one of the two")
        if self.min_lr_ratio and self.shape == "constant":
            raise InputError(
                "--min-lr-ratio: --schedule constant does not decay; name another schedule, or leave it out"
            )
        if self.decay_ratio != ScheduleConfig.decay_ratio and self.shape != "wsd":
            raise InputError("--decay-ratio: needs --schedule wsd; add it, or leave this flag out")

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
    """The reference model: where its log-probs come from, and whether it is updated during training."""

    mode: Annotated[Literal["auto", "fused", "precompute", "none"], tyro.conf.arg(name="reference")] = "auto"
    """When the reference's log-probs are computed. fused: during epoch 1, by a reference model in memory beside the
    policy; later epochs read them from a cache. precompute: in one pass before step 1, so that only one model is in
    memory at a time (TRL's precompute_ref_log_probs). none: never, for objectives without a reference. auto: none if
    the objective needs no reference, else fused if both models fit into memory, else precompute. --reference-update
    needs auto or fused, and always runs fused."""
    model: Annotated[PathText | None, tyro.conf.arg(name="reference-model")] = None
    """Checkpoint folder or hub id of a reference model other than --model; it may differ in size and architecture but
    must have the same vocabulary. When an adapter is trained, it may be another adapter, or "base" for --model without
    any adapter. Unset: --model, with the adapter of --adapter if one is given; with --stages, the last checkpoint of
    the stage before."""
    cache: Annotated[PathText | None, tyro.conf.arg(name="reference-cache")] = None
    """Reuse reference log-probs between runs: a folder that runs share, or the reference.safetensors of one run. They
    are used only if weights, rows, token limits and dtype are the same; otherwise they are computed again, and the run
    says why. Unset: each run keeps its own in --out."""
    update: Annotated[Literal["none", "soft", "hard"], tyro.conf.arg(name="reference-update")] = "none"
    """Update the reference during training (TR-DPO, arXiv 2404.09656). soft: mix the policy's weights into it
    (--reference-update-alpha), not possible with an adapter; hard: replace it with the policy. Rewards are then
    relative to the current reference."""
    update_steps: Annotated[int, tyro.conf.arg(name="reference-update-steps")] = 512
    """Number of optimizer steps between two updates of the reference (--reference-update)."""
    update_alpha: Annotated[float, tyro.conf.arg(name="reference-update-alpha")] = 0.6
    """alpha of --reference-update soft: the new reference is alpha x policy + (1 - alpha) x reference (TRL's
    ref_model_mixup_alpha)."""

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
                kinds = "soft" if name == "update_alpha" else "soft or hard"
                raise InputError(f"{flag}: needs --reference-update {kinds}; add it, or leave this flag out")
        if not 0 < self.update_alpha <= 1:
            raise InputError(f"--reference-update-alpha: {self.update_alpha} has to be above 0 and at most 1")
