"""The subject of a run that says what trains: all weights, or an adapter (LoRA) beside a frozen base."""

from dataclasses import dataclass
from typing import Annotated, Literal

import tyro

from system import InputError
from system.flags import PathText

BaseDtype = Literal["float32", "bfloat16", "int8", "nf4"]
Whole = Literal["lm_head", "embed_tokens"]
MOST_RANK = 512
"""What vLLM serves at most."""


@dataclass(frozen=True, kw_only=True)
class AdapterConfig:
    """LoRA (arXiv 2106.09685): each frozen matrix W gets a trainable product B A of low rank, y = W x + s B A x, where
    the scale s is alpha / rank (see --lora-alpha, --lora-rslora)."""

    rank: Annotated[int | None, tyro.conf.arg(name="lora-rank")] = None
    """Rank of a LoRA adapter to train instead of all weights; 16 is a good start, and --lr is then 2e-6 unless it is
    given. The frozen base model without the adapter is the reference. Unset: all weights are trained."""
    alpha: Annotated[float | None, tyro.conf.arg(name="lora-alpha")] = None
    """LoRA alpha: the adapter's output is scaled by alpha / rank. Unset: twice the rank."""
    rslora: Annotated[bool, tyro.conf.arg(name="lora-rslora")] = False
    """Scale the adapter's output by alpha / sqrt(rank) instead of alpha / rank (arXiv 2312.03732)."""
    targets: Annotated[tuple[str, ...], tyro.conf.arg(name="lora-targets")] = ()
    """Linear layers that get an adapter: names as in the checkpoint (q_proj down_proj), or regular expressions that
    match full names (model.layers.0.self_attn.q_proj). Unset: every linear layer of every transformer block."""
    train_also: tuple[Whole, ...] = ()
    """Also train all weights of the output head or the token embedding. vLLM cannot serve such an adapter; merge it
    into its base first (engine.merge)."""
    start: Annotated[PathText | None, tyro.conf.arg(name="adapter")] = None
    """Folder or hub id of an adapter (PEFT format) to continue training; its rank, alpha and targets are used. The
    reference is this adapter as it is now; --reference-model base takes the base model without it instead."""
    base_dtype: BaseDtype | None = None
    """How the frozen matrices of the blocks are stored in memory. int8 (one scale per row) takes half the memory of
    bfloat16 and nf4 (4 bits, arXiv 2305.14314) a quarter; both are approximations, and the reference uses the same
    ones. Unset: the compute dtype (--dtype)."""

    def __post_init__(self) -> None:
        for name in ("targets", "train_also"):
            if isinstance(value := getattr(self, name), str):  # from Python, a name alone
                object.__setattr__(self, name, (value,))
        own = {
            "--lora-alpha": self.alpha is not None,
            "--lora-targets": bool(self.targets),
            "--lora-rslora": self.rslora,
            "--train-also": bool(self.train_also),
        }
        if self.start is not None:
            if given := [flag for flag, is_given in {"--lora-rank": self.rank is not None, **own}.items() if is_given]:
                raise InputError(
                    f"{given[0]}: cannot be combined with --adapter, whose own is used; leave out one of the two"
                )
            return
        if self.rank is None:
            if given := [flag for flag, is_given in own.items() if is_given]:
                raise InputError(
                    f"{given[0]}: needs --lora-rank; add it, such as --lora-rank 16, or leave this flag out"
                )
            if self.base_dtype is not None:
                raise InputError(
                    f"--base-dtype {self.base_dtype}: applies to frozen weights, and all weights are trained; add "
                    "--lora-rank 16, or leave it out"
                )
            return
        if self.rank < 1:
            raise InputError(f"--lora-rank: {self.rank} has to be above 0; 16 is usual")
        if self.alpha is not None and not 0 < self.alpha < float("inf"):
            raise InputError(f"--lora-alpha: {self.alpha} has to be above 0; twice the rank is usual")
        if len(set(self.train_also)) < len(self.train_also):
            raise InputError(f"--train-also: {' '.join(self.train_also)}: names one twice; name each once")

    @property
    def is_used(self) -> bool:
        """Whether an adapter trains, and not all weights."""
        return self.rank is not None or self.start is not None


@dataclass(frozen=True, kw_only=True)
class AdapterSettings:
    """Flags of commands that compute with a model: an adapter on it."""

    adapter: PathText | None = None
    """Folder or hub id of an adapter (PEFT format) to apply to --model. Unset: no adapter, unless --model is itself the
    folder of an adapter, whose configuration names its base."""
    base_dtype: BaseDtype | None = None
    """Dtype in which the base's matrices below an adapter are stored in memory; int8 and nf4 save memory but only
    approximate the weights. Unset: the dtype that the adapter was trained on (engine.json in its folder); where that is
    not known, the compute dtype."""
