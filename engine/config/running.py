"""The subjects of a run that say how it is run: in what memory, on how many ranks, what it writes and measures."""

from dataclasses import dataclass
from typing import Literal

from data.forest import PackingOptions
from engine.config.checks import as_steps, check_above_zero, check_not_negative, check_steps
from engine.config.trackers import Tracker
from system import InputError, launcher
from system.flags import PathText

Rounding = Literal["nearest", "stochastic"]
Technique = Literal[
    "prompt-sharing", "packing", "response-rows", "reference-cache", "balance", "kept-logits", "used-pages"
]
SaveDtype = Literal["auto", "float32", "bfloat16", "float16", "source"]
MasterWeights = Literal["auto", "float32", "split"]
Reshard = Literal["auto", "yes", "no"]


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
        check_above_zero(self, "micro_tokens")
        check_not_negative(self, "recompute_blocks")
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
        check_above_zero(self, "keep_checkpoints", "stop_after", "keep_state")
        check_steps(self, "save_every")
        check_not_negative(self, "state_every")
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
        return as_steps(self.save_every, n_steps)

    @property
    def resumes(self) -> bool:
        """Whether the run goes on with what --out holds: asked for, or started anew by torchrun."""
        return self.resume or launcher.n_restarts() > 0


@dataclass(frozen=True, kw_only=True)
class DistributedConfig:
    """How several ranks share the weights, and how long they wait for one another."""

    reshard: Reshard = "auto"
    """Give a block's gathered weights back after its forward pass and gather them again for the backward pass. auto: on
    a GPU where the memory is needed. One process that does not gather them anew is not wrapped by FSDP, whose hooks
    would set the time of a small model's step; the numbers are the same, bit for bit."""
    shard_size: int | None = None
    """Ranks that share one copy of the weights; unset: all, or of a frozen base as few as have room for it. The number
    of GPUs of a node: every node holds a copy, and only gradients cross the network (hybrid sharding)."""
    hang_timeout: float = 600.0
    """Seconds that ranks wait for one another before the run ends, naming the one that did not answer."""

    def __post_init__(self) -> None:
        check_above_zero(self, "shard_size")
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
        check_not_negative(self, "eval_pairs")
        if self.eval_pairs > 1 and self.eval_pairs != int(self.eval_pairs):
            raise InputError(f"--eval-pairs: {self.eval_pairs} is neither a whole number nor a share below 1")
        check_steps(self, "eval_every")
        if self.eval_data and self.eval_pairs:
            raise InputError("--eval-data and --eval-pairs: give one of the two")
        if self.early_stop is not None and self.patience is None:
            raise InputError(f"--early-stop: {self.early_stop!r} is not METRIC:PATIENCE, such as eval_loss:3")

    def steps_between(self, n_steps: int) -> int | None:
        """What --eval-every comes to in a run of so many steps."""
        return as_steps(self.eval_every, n_steps)

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

    def packing(self, originals: tuple[int, ...]) -> PackingOptions:
        """What the forests of a run leave out. originals: lengths beyond which one of its models computes a whole
        sequence otherwise (LongRoPE).
        """
        return PackingOptions(
            divides_at=originals,
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
