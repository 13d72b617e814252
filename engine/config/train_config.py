"""Everything that describes a training run. The fields are the flags; their docstrings are the help."""

import os
from dataclasses import dataclass, field
from typing import Literal

import tyro

from data.forest import PackingOptions
from data.rows import RowSettings
from system import InputError

Rounding = Literal["nearest", "stochastic"]
Technique = Literal[
    "prompt-sharing", "packing", "response-rows", "reference-cache", "balance", "kept-logits", "used-pages"
]


_OF_SPLIT = {"optimizer": "rmsprop", "reference_update": "none", "shard_size": None}
"""Settings as split masters need them."""


@dataclass(frozen=True, kw_only=True)
class TrainConfig(RowSettings):
    """Align a Llama on preferences. The defaults are those of arXiv 2408.06266.

    Any hyperparameter of an objective is --NAME.argument, for example --apo_zero.beta 0.3.
    """

    model: str
    """Checkpoint folder (Hugging Face layout, safetensors) or hub id; policy and reference start from it."""
    data: tuple[str, ...]
    """Rows to train on: .jsonl, .json, .csv or .parquet files, folders of such files, hub ids; NAME:SPLIT is a split of
    the latter two."""
    data_weights: tuple[float, ...] = ()
    """How often the rows of each --data are taken: 2 is twice, 0.5 a half of them, drawn by --seed. Unset: once."""
    loss: str = "apo_zero"
    """Objective: a name listed below, path/to/file.py:name, or a mixture such as apo_zero:1,sft:0.1."""
    out: str
    """Folder for the run: config, metrics, a checkpoint per epoch. Must not hold a run, but with --resume."""
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
    config: str | None = None
    """YAML file of settings, named as the flags are; flags win over it."""

    beta: float | None = None
    """Scale of the rewards, per nat; unset, the objective's own default."""
    epochs: int = 18
    """Passes over the rows."""
    batch_size: int = 16
    """Examples per optimizer step, over all ranks."""
    max_steps: int | None = None
    """Ends the run, and its schedule, after so many optimizer steps."""
    shuffle: bool = True
    """Take the rows in a new order each epoch."""
    seed: int = 0
    """Of the order of the rows and of the held-out split."""

    optimizer: Literal["rmsprop", "adamw"] = "rmsprop"
    """RMSProp (alpha 0.99, eps 1e-8) or AdamW (betas 0.9, 0.999, eps 1e-8, no weight decay)."""
    lr: float = 2e-7
    """Learning rate of the first step after the warm-up; falls linearly to lr / steps at the last."""
    warmup_steps: int = 0
    """Steps over which the learning rate rises to --lr."""
    max_grad_norm: float = 1.0
    """Largest global norm of the gradient; 0 leaves it as it is."""

    skip_bad_rows: bool = False
    """Go on without rows that cannot be used, and count them."""

    eval_data: str | None = None
    """Held-out rows, named as --data is: their rewards and log-probs are measured after each epoch."""
    eval_pairs: int = 0
    """Hold out so many of the rows of --data instead."""

    dtype: Literal["float32", "bfloat16"] | None = None
    """Compute dtype; master weights are float32 always. Unset: bfloat16 on CUDA, float32 on the CPU."""
    reference: Literal["auto", "fused", "precompute", "none"] = "auto"
    """fused: a second model walks along in epoch 1; precompute: one pass of the policy's own weights before step 1."""
    reference_cache: str | None = None
    """Reference log-probs of other runs: a folder that runs share, or one's reference.safetensors. Taken where weights,
    rows and dtype are the same; said so, and computed anew, where not."""
    reference_update: Literal["none", "soft", "hard"] = "none"
    """Let the reference follow the policy (TR-DPO, arXiv 2404.09656): soft moves it a share of the way, hard puts it
    there. Rewards are measured against the reference of the moment."""
    reference_update_steps: int = 512
    """Optimizer steps between two such updates."""
    reference_update_alpha: float = 0.6
    """The share of a soft update."""
    stages: int = 1
    """Train on the rows in so many parts, one after the other in the order given (sDPO, arXiv 2403.19270): each part
    starts from the last checkpoint of the one before, which is its reference too; folders stage-01 ... in --out. Where
    they are bfloat16, so is the start of the next part: --save-dtype float32 keeps small updates."""
    own_score: Literal["row", "rejected"] = "row"
    """Where the score of the model's own answer stands: in "own_score", or, where the loser is that answer, in
    "rejected_score"."""
    micro_tokens: int | None = None
    """Most tokens in one forward and backward pass of a rank (one example at least): bounds the memory. Unset: 1,024 on
    the CPU, on a GPU as many as fit. With --master split --max-grad-norm 0 a step is always one pass."""
    recompute_blocks: int | None = None
    """Activation checkpointing: blocks whose inside the backward pass computes again. Unset: none on the CPU, on a GPU
    as few as it takes to fit."""
    gpu_memory: float | None = None
    """GB (10^9 bytes) of the GPU that the run may take. Unset: what is free."""
    master: Literal["auto", "whole", "split"] = "auto"
    """float32 master weights, whole with a bf16 copy to compute with, or split in two halves whose upper one computes
    (one process; the numbers are the same): with it a model of 8 billion parameters trains on one GPU of 80 GB. auto:
    whole where it fits."""
    square_avg: Literal["float32", "bfloat16"] = "float32"
    """RMSProp's running mean of squares with --master split; bfloat16 is an approximation, rounded stochastically:
    0.7 % of error, no bias, 2 bytes a parameter less."""
    reshard: Literal["auto", "yes", "no"] = "auto"
    """Give a block's gathered weights back after its forward pass and gather them again for the backward pass. auto: on
    a GPU where the memory is needed."""
    shard_size: int | None = None
    """Ranks that share one copy of the weights; unset: all. The number of GPUs of a node: every node holds a copy, and
    only gradients cross the network (hybrid sharding)."""
    hang_timeout: float = 600.0
    """Seconds that ranks wait for one another before the run ends, naming the one that did not answer."""
    compile: Literal["auto", "yes", "no"] = "auto"
    """Compile the blocks around attention. auto: on a GPU; on the CPU it was measured to gain nothing."""
    without: tuple[Technique, ...] = ()
    """Put back what is left out otherwise, to measure what leaving it out buys; the results are the same."""
    keep: int | None = None
    """Keep only the newest epoch folders, so many."""
    save_dtype: Literal["auto", "float32", "bfloat16", "float16", "source"] = "auto"
    """Dtype of the weights in the epoch folders. auto: the dtype that computes (float32 on the CPU, bfloat16 on a GPU
    unless --dtype says otherwise), so that a folder is the model that the run's numbers are of. source: the dtype of
    --model. Where it has fewer bits than the compute dtype, the run measures what the folders lose."""
    save_rounding: Rounding = "nearest"
    """How weights are rounded to --save-dtype bfloat16. stochastic rounds up or down at random, so that updates too
    small for bfloat16 survive on average; it adds noise to every log-prob."""

    hyperparameters: tyro.conf.Suppress[dict[str, str]] = field(default_factory=dict)

    def _check_split(self) -> None:
        if self.master != "split" and self.square_avg != "float32":
            raise InputError(f"--square-avg {self.square_avg}: goes with --master split; name it, or leave it out")
        if self.master != "split":
            return
        for name, plain in _OF_SPLIT.items():
            if getattr(self, name) != plain:
                raise InputError(f"--{name.replace('_', '-')} {getattr(self, name)}: not with --master split")
        if self.dtype == "float32":
            raise InputError("--master split: its upper halves compute in bfloat16; leave --dtype out")
        if world_size() > 1:
            raise InputError("--master split: is for one process; with several, leave it out: masters are sharded")

    @property
    def can_split(self) -> bool:
        """Whether everything else that was asked for goes with split masters."""
        return self.dtype != "float32" and all(getattr(self, name) == plain for name, plain in _OF_SPLIT.items())

    @property
    def resumes(self) -> bool:
        """Whether the run goes on with what --out holds: asked for, or started anew by torchrun."""
        return self.resume or int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")) > 0

    def __post_init__(self) -> None:
        super().__post_init__()
        if isinstance(self.data, str):  # from Python, a name alone
            object.__setattr__(self, "data", (self.data,))
        if self.data_weights and len(self.data_weights) != len(self.data):
            raise InputError(f"--data-weights: {len(self.data_weights)} of them for {len(self.data)} of --data")
        if not all(0 < weight <= 100 for weight in self.data_weights):
            raise InputError("--data-weights: each has to be above 0, and 100 at most")
        above_zero = "epochs batch_size max_steps micro_tokens keep reference_update_steps stages stop_after keep_state"
        above_zero += " shard_size"
        for name in above_zero.split():
            value = getattr(self, name)
            if value is not None and value < 1:
                raise InputError(f"--{name.replace('_', '-')}: {value} is not above 0")
        if not 0 < self.lr < 10:
            raise InputError(f"--lr: {self.lr} is not between 0 and 10; the paper trains at 2e-7")
        if min(self.warmup_steps, self.eval_pairs, self.seed, self.state_every or 0, self.recompute_blocks or 0) < 0:
            raise InputError(
                "--warmup-steps, --eval-pairs, --seed, --state-every and --recompute-blocks cannot be negative"
            )
        if self.gpu_memory is not None and not 0 < self.gpu_memory < float("inf"):
            raise InputError(f"--gpu-memory: {self.gpu_memory} is not above 0; it is in GB of 10^9 bytes")
        self._check_split()
        if self.save_rounding == "stochastic" and self.save_dtype in ("float32", "float16"):
            raise InputError(
                f"--save-rounding stochastic: rounds to bfloat16, not to {self.save_dtype}; name --save-dtype bfloat16 "
                "with it, or leave it out"
            )
        if not 1 <= self.hang_timeout <= 86400:
            raise InputError(f"--hang-timeout: {self.hang_timeout} is not between 1 second and a day")
        if not 0 <= self.max_grad_norm < float("inf"):
            raise InputError(f"--max-grad-norm: {self.max_grad_norm} is not 0 or above")
        unused = ["reference_update_alpha"] * (self.reference_update != "soft")
        unused += ["reference_update_steps"] * (self.reference_update == "none")
        for name in unused:
            if getattr(self, name) != getattr(TrainConfig, name):
                raise InputError(f"--{name.replace('_', '-')}: goes with --reference-update; name one, or leave it out")
        if not 0 < self.reference_update_alpha <= 1:
            raise InputError(f"--reference-update-alpha: {self.reference_update_alpha} is not above 0, and 1 at most")
        if self.beta is not None and not 0 < self.beta < float("inf"):
            raise InputError(f"--beta: {self.beta} is not above 0; the paper's is 0.1")
        if self.eval_data and self.eval_pairs:
            raise InputError("--eval-data and --eval-pairs: give one of the two")


def world_size() -> int:
    """Processes of the run, as torchrun says."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def packing_of(config: TrainConfig) -> PackingOptions:
    """What the forests of a run leave out."""
    return PackingOptions(
        shares_prompts="prompt-sharing" not in config.without,
        pads="packing" in config.without,
        predicts_all="response-rows" in config.without,
    )
