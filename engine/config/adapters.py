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
    """LoRA (arXiv 2106.09685): beside each frozen matrix W a product B A of low rank trains, y = W x + s B A x."""

    rank: Annotated[int | None, tyro.conf.arg(name="lora-rank")] = None
    """Train an adapter of that rank in the place of all weights: 16 is usual, with --lr 2e-6 to 1e-5. The base stays
    as it is, and is the reference too, with the adapter off."""
    alpha: Annotated[float | None, tyro.conf.arg(name="lora-alpha")] = None
    """The adapter is scaled by alpha / rank. Unset: twice the rank."""
    rslora: Annotated[bool, tyro.conf.arg(name="lora-rslora")] = False
    """Scale by alpha / sqrt(rank) instead (arXiv 2312.03732)."""
    targets: Annotated[tuple[str, ...], tyro.conf.arg(name="lora-targets")] = ()
    """Linear layers that get an adapter, as the checkpoint calls them (q_proj down_proj), or regular expressions over
    their whole names (model.layers.0.self_attn.q_proj). Unset: every one of a block."""
    train_also: tuple[Whole, ...] = ()
    """Train these whole beside the adapter. vLLM serves no such adapter: merge it first (engine.merge)."""
    start: Annotated[PathText | None, tyro.conf.arg(name="adapter")] = None
    """Folder of an adapter (PEFT's format) to start from, whose rank, alpha and targets are taken. It is the reference
    too; --reference-model base says the base alone."""
    base_dtype: BaseDtype | None = None
    """How the frozen matrices of the blocks are held: int8 (by row) and nf4 (4 bits, arXiv 2305.14314) are
    approximations that the reference shares, with a half and a quarter of bfloat16's bytes. Unset: the dtype that
    computes."""

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
                raise InputError(f"{given[0]}: not with --adapter, whose own is taken; leave one of the two out")
            return
        if self.rank is None:
            if given := [flag for flag, is_given in own.items() if is_given]:
                raise InputError(f"{given[0]}: goes with --lora-rank; name a rank, such as 16, or leave it out")
            if self.base_dtype is not None:
                raise InputError(
                    f"--base-dtype {self.base_dtype}: is of frozen weights, and all of them train; add --lora-rank 16, "
                    "or leave it out"
                )
            return
        if self.rank < 1:
            raise InputError(f"--lora-rank: {self.rank} is not above 0; 16 is usual")
        if self.alpha is not None and not 0 < self.alpha < float("inf"):
            raise InputError(f"--lora-alpha: {self.alpha} is not above 0; twice the rank is usual")
        if len(set(self.train_also)) < len(self.train_also):
            raise InputError(f"--train-also: {' '.join(self.train_also)}: names one twice")

    @property
    def is_used(self) -> bool:
        """Whether an adapter trains, and not all weights."""
        return self.rank is not None or self.start is not None


@dataclass(frozen=True, kw_only=True)
class AdapterSettings:
    """Flags of commands that compute with a model: an adapter on it."""

    adapter: PathText | None = None
    """Folder or hub id of an adapter (PEFT's format) to put on --model. Unset: --model may be an adapter's folder,
    which names its base."""
    base_dtype: BaseDtype | None = None
    """How the matrices below an adapter are held. Unset: as its run held them (engine.json in its folder), else in the
    dtype that computes."""
