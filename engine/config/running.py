"""The subjects of a run that say how it is run: in what memory, on how many ranks, what it writes and measures."""

from dataclasses import dataclass
from typing import Literal

from data.forest import PackingOptions
from engine.config.checks import as_steps, check_steps
from engine.config.trackers import Tracker
from system import InputError, launcher
from system.flags import PathText, check_above_zero, check_not_negative

Rounding = Literal["nearest", "stochastic"]
Technique = Literal[
    "prompt-sharing", "packing", "response-rows", "reference-cache", "balance", "kept-logits", "used-pages"
]
SaveDtype = Literal["auto", "float32", "bfloat16", "float16", "source"]
MasterWeights = Literal["auto", "float32", "split"]
Reshard = Literal["auto", "yes", "no"]


@dataclass(frozen=True, kw_only=True)
class MemoryConfig:
    """Memory and precision. What is left unset is chosen so that the run fits into the available memory."""

    dtype: Literal["float32", "bfloat16"] | None = None
    """Dtype of forward and backward passes. The optimizer always updates float32 master weights. Unset: bfloat16 on a
    GPU, float32 on the CPU."""
    micro_tokens: int | None = None
    """Maximum number of tokens in one forward and backward pass on each rank; gradients are accumulated over the
    --batch-size examples of a step. A single example that is longer is still processed whole. Lower it if memory runs
    out. Unset: 1,024 on the CPU; on a GPU as many as fit, at most 8,000. Ignored with --master-weights split and
    --max-grad-norm 0, where a step is one pass."""
    recompute_blocks: int | None = None
    """Activation checkpointing: number of transformer blocks whose activations are recomputed in the backward pass,
    which saves memory and costs time. Unset: none on the CPU, as few as needed on a GPU."""
    gpu_memory: float | None = None
    """Memory to use on each GPU, in GB (10^9 bytes). Set it to share a GPU with other programs. Unset: all that is free
    when the run starts."""
    master_weights: MasterWeights = "auto"
    """How float32 master weights are stored. float32: whole, beside a bfloat16 copy to compute with. split: as two
    16-bit halves, of which the upper one is that copy; the same values in less memory, so that an 8B model trains on
    one 80 GB GPU. split works with one process, and not with adapters, --dtype float32, --optimizer muon,
    --reference-update or --shard-size. auto: float32, or split if only that fits on the one GPU."""
    square_avg: Literal["float32", "bfloat16"] = "float32"
    """Dtype of the optimizer state (RMSProp keeps one value per parameter, AdamW two). bfloat16 saves 2 bytes for each
    value, is rounded stochastically (unbiased, with a relative error of 0.7 %), and needs an explicit --master-weights
    split."""
    compile: Literal["auto", "yes", "no"] = "auto"
    """Compile the transformer blocks, except attention, with torch.compile. auto: on a GPU only; on the CPU it gains
    nothing."""

    def __post_init__(self) -> None:
        check_above_zero(self, "micro_tokens")
        check_not_negative(self, "recompute_blocks")
        if self.gpu_memory is not None and not 0 < self.gpu_memory < float("inf"):
            raise InputError(f"--gpu-memory: {self.gpu_memory} has to be above 0; it is in GB of 10^9 bytes")
        if self.master_weights != "split" and self.square_avg != "float32":
            raise InputError(
                f"--square-avg {self.square_avg}: needs --master-weights split, which is for training all weights; add "
                "it, or leave this flag out"
            )
        if self.master_weights == "split" and self.dtype == "float32":
            raise InputError("--master-weights split: computes in bfloat16; leave --dtype float32 out")

    def compiles(self, device: str) -> bool:
        """Whether blocks are compiled on a device: "cuda" or "cpu"."""
        return self.compile == "yes" or (self.compile == "auto" and device == "cuda")


@dataclass(frozen=True, kw_only=True)
class CheckpointConfig:
    """Checkpoints and states in --out, and how a run is resumed or continued."""

    resume: bool = False
    """Resume from the newest intact state in --out, or start from the beginning if there is none. Without it a folder
    that already holds a run is refused."""
    take_over: bool = False
    """Write into --out although a process on another host still seems to hold it. Use it only when you are sure that
    this process is gone, for example after a crash of its host."""
    stop_after: int | None = None
    """Save a state and exit after this step; --resume continues from there. The learning rate schedule stays that of
    the whole run, unlike with --max-steps."""
    state_every: int | None = None
    """Number of steps between saved states. A state holds everything that --resume needs (master weights, optimizer
    moments, position in the data); a checkpoint folder holds only the model. Unset: one at the end of each epoch except
    the last. 0: only when the run is stopped by a signal or --stop-after."""
    keep_state: int = 1
    """Number of states to keep in --out; older ones are deleted. Each is several times the size of a checkpoint."""
    save_every: int | float | None = None
    """Also write a checkpoint folder (step-000120) every so many steps, besides those of the epochs (epoch-01). Below 1
    it is a share of all steps, rounded up. Unset: only at the end of each epoch."""
    keep_checkpoints: int | None = None
    """Number of checkpoint folders to keep; older ones are deleted. --save-total-limit is another name for it. Unset:
    all are kept."""
    keep_best: str | None = None
    """Keep the checkpoint with the best value of this metric on held-out rows, in addition to --keep-checkpoints.
    Any metric of the held-out rows can be named, with or without the prefix eval_, such as loss, rewards/accuracies or
    rewards/margins. Names that contain loss, perplexity or kl are best when smallest, all others when largest. Whenever
    the metric improves, a checkpoint folder is written, and the link `best` in --out points to it. It needs --eval-data
    or --eval-pairs."""
    keep_final_state: bool = False
    """Also save a state after the last step, so that a later run with --continue-from can use the optimizer's
    moments."""
    continue_from: PathText | None = None
    """Folder of a finished run whose final weights this run starts from, with its own --out, steps and learning rate.
    The optimizer's moments are taken over if that run kept its final state (--keep-final-state). --model must still
    name the model that the earlier run started from, which stays the reference. Not for adapters, which continue by
    --adapter, and not with --stages."""
    save_dtype: SaveDtype = "auto"
    """Dtype of the weights in checkpoint folders. auto: the compute dtype (--dtype), so that a checkpoint is exactly
    the model that the run's metrics describe. source: the dtype that each tensor of --model has. With a dtype narrower
    than the compute dtype the run measures what rounding costs, and logs it. An adapter is always saved in float32;
    choose the dtype of the merged model in engine.merge."""
    save_rounding: Rounding = "nearest"
    """How weights are rounded when they are saved in bfloat16. stochastic rounds up or down at random, so that updates
    too small for bfloat16 survive on average, but adds noise to every log-prob."""

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

    def n_states(self, n_steps: int, per_epoch: int) -> int:
        """States that a run of so many steps saves, one after the other: none after the last step, unless it is to be
        kept.
        """
        if self.state_every is None:
            n = -(-n_steps // per_epoch) - 1
        else:
            n = (n_steps - 1) // self.state_every if self.state_every else 0
        return n + self.keep_final_state

    def steps_between_folders(self, n_steps: int) -> int | None:
        """What --save-every comes to in a run of so many steps."""
        return as_steps(self.save_every, n_steps)

    @property
    def resumes(self) -> bool:
        """Whether the run goes on with what --out holds: asked for, or started anew by torchrun."""
        return self.resume or launcher.n_restarts() > 0


@dataclass(frozen=True, kw_only=True)
class DistributedConfig:
    """Training with several processes (ranks): how weights are sharded, and how long ranks wait for each other."""

    reshard: Reshard = "auto"
    """Free the gathered weights of a block after its forward pass and gather them again for the backward pass, as
    FSDP's reshard_after_forward does: less memory, more communication. auto: yes only on GPUs, and only if the
    memory is needed. With no, a single process does not use FSDP, which makes it faster with bit-identical results."""
    shard_size: int | None = None
    """Number of ranks over which one copy of the weights is sharded. Set it to the number of GPUs of a node, so that
    every node holds a whole copy and only gradients cross the network (hybrid sharding). Unset: one copy over all
    ranks; with an adapter, the frozen base is sharded over as few ranks as it fits on."""
    hang_timeout: float = 600.0
    """Seconds that ranks wait for each other before the run ends with an error that names the rank that did not
    answer."""

    def __post_init__(self) -> None:
        check_above_zero(self, "shard_size")
        if not 1 <= self.hang_timeout <= 86400:
            raise InputError(f"--hang-timeout: {self.hang_timeout} has to be between 1 second and a day")


@dataclass(frozen=True, kw_only=True)
class MeasuringConfig:
    """Evaluation on held-out rows, and switches to measure what each optimisation of the engine saves."""

    eval_data: PathText | None = None
    """Held-out rows in one of the formats of --data. Their loss, rewards and log-probs are measured after each epoch
    and logged with the prefix eval_."""
    eval_pairs: int | float = 0
    """Number of rows of --data to hold out for evaluation, drawn by --seed and not trained on; an alternative to
    --eval-data. Below 1 it is a share of the rows, rounded up. 0: none."""
    eval_every: int | float | None = None
    """Also evaluate the held-out rows every so many steps, and once before the first step. Below 1 it is a share of all
    steps, rounded up. It needs --eval-data or --eval-pairs. Unset: only after each epoch."""
    early_stop: str | None = None
    """METRIC:PATIENCE, such as eval_loss:3: end the run when a held-out metric (as for --keep-best) has not improved
    for this many evaluations in a row. A checkpoint of the last step is written, and the run counts as finished. It
    needs --eval-data or --eval-pairs."""
    disable: tuple[Technique, ...] = ()
    """Turn off optimisations, to measure what each one saves; results change by rounding at most. When they are on,
    prompt-sharing computes a prompt once for all its responses, packing avoids padding, response-rows computes logits
    of response tokens only, reference-cache reuses reference log-probs after epoch 1, balance gives all ranks equal
    work, kept-logits keeps logits for the backward pass, and used-pages reuses freed memory (CPU, glibc). Unset: all
    are on."""

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
    """Experiment trackers. metrics.jsonl in --out is always written."""

    track: tuple[Tracker, ...] = ("tensorboard",)
    """Experiment trackers that get the settings and the metrics of every step; several may be named, or none. Each is
    configured by its own environment variables (WANDB_PROJECT, MLFLOW_TRACKING_URI, TRACKIO_SPACE_ID ...). If a tracker
    fails or hangs, the run prints a notice and continues without it."""

    def __post_init__(self) -> None:
        if isinstance(self.track, str):  # from Python, a name alone
            object.__setattr__(self, "track", (self.track,))
        if len(set(self.track)) < len(self.track):
            raise InputError(f"--track: {' '.join(self.track)}: names one twice; name each once")
        if "none" in self.track and len(self.track) > 1:
            raise InputError(f"--track: {' '.join(self.track)}: none cannot be combined with another; name it alone")
