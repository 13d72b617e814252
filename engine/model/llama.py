"""A Llama in plain PyTorch: RMSNorm, rotary positions, grouped-query attention, SwiGLU.

The model takes packed rows of tokens and knows neither batches nor processes nor files. Who attends to whom is a
function that it is handed (engine/model/attention.py), so that training and sampling run the same blocks.
"""

# T packed tokens, D hidden, H heads, K kv heads, E head size, V vocabulary

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import silu
from torch.utils.checkpoint import checkpoint

from engine.model.head import Head
from system import InputError, torch_private

MOST_LAYERS = 4096  # of a config.json that is believed; Llama-3-405B has 126

Attend = Callable[[Tensor, Tensor, Tensor], Tensor]
"""(q [T, H, E], k [T, K, E], v [T, K, E]) -> [T, H, E]"""
Rope = tuple[Tensor, Tensor]
"""cos and sin of every position, [T, 1, E] float32 or better"""


@dataclass(frozen=True, kw_only=True)
class Scaling:
    """Llama-3.1's scaling of the rotary frequencies."""

    factor: float
    low_freq_factor: float
    high_freq_factor: float
    original_max_position_embeddings: int


@dataclass(frozen=True, kw_only=True)
class LlamaConfig:
    """The shape of a model, from a Hugging Face config.json."""

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    n_layers: int
    n_heads: int
    n_kv_heads: int
    head_size: int
    rms_norm_eps: float
    rope_theta: float
    scaling: Scaling | None
    tied: bool
    context: int | None
    """Most positions, where the file says so."""
    raw: dict[str, Any]
    """config.json as it was read, to be written back."""

    @staticmethod
    def parse(raw: dict[str, Any], location: str | Path) -> "LlamaConfig":
        """The configuration in a parsed config.json. Raises InputError where it is not a Llama that runs here."""
        names = raw.get("architectures") or [raw.get("model_type")]
        if names not in (["LlamaForCausalLM"], ["llama"]):
            raise InputError(
                f'{location}: the architecture {names!r} is not supported; it has to be ["LlamaForCausalLM"]'
            )
        for key, plain in (("attention_bias", False), ("mlp_bias", False), ("hidden_act", "silu")):
            if raw.get(key, plain) != plain:
                raise InputError(f"{location}: {key} = {raw[key]!r} is not supported; Llama has {plain!r}")
        for key in ("quantization_config", "auto_map"):
            if raw.get(key):
                raise InputError(f"{location}: {key} is not supported; give a plain bf16, fp16 or fp32 checkpoint")
        n_heads = _count(raw, "num_attention_heads", location)
        hidden = _count(raw, "hidden_size", location)
        # transformers 5 writes rope_parameters, Meta's releases have rope_scaling; theta stands in it or beside it.
        rope = _mapping(raw, "rope_parameters", location) or _mapping(raw, "rope_scaling", location)
        rope = {"rope_theta": raw.get("rope_theta"), **rope}
        config = LlamaConfig(
            vocab_size=_count(raw, "vocab_size", location),
            hidden_size=hidden,
            intermediate_size=_count(raw, "intermediate_size", location),
            n_layers=_count(raw, "num_hidden_layers", location, most=MOST_LAYERS),
            n_heads=n_heads,
            n_kv_heads=_count(raw, "num_key_value_heads", location, n_heads),
            head_size=_count(raw, "head_dim", location, max(1, hidden // n_heads)),
            rms_norm_eps=_positive(raw, "rms_norm_eps", location, 1e-6),
            rope_theta=_positive(rope, "rope_theta", location, 10000.0),
            scaling=_scaling(rope, location),
            tied=_flag(raw, "tie_word_embeddings", location),
            context=_count(raw, "max_position_embeddings", location) if raw.get("max_position_embeddings") else None,
            raw=raw,
        )
        if config.n_heads % config.n_kv_heads or config.head_size % 2:
            raise InputError(
                f"{location}: {config.n_heads} heads of size {config.head_size} with {config.n_kv_heads} kv heads; "
                "heads have to be a multiple of kv heads, and of even size"
            )
        return config

    @property
    def n_parameters(self) -> int:
        """Parameters of the model, tied weights counted once."""
        attention = 2 * self.hidden_size * self.head_size * (self.n_heads + self.n_kv_heads)
        block = attention + 3 * self.hidden_size * self.intermediate_size + 2 * self.hidden_size
        return self.n_layers * block + self.hidden_size + (2 - self.tied) * self.vocab_size * self.hidden_size


def _count(
    raw: dict[str, Any], key: str, location: str | Path, default: int | None = None, *, most: int = 2**24 - 1
) -> int:
    value = raw.get(key) if raw.get(key) is not None else default
    if type(value) is not int or not 0 < value <= most:
        raise InputError(f"{location}: {key} = {value!r}; it has to be a whole number above 0, {most:,} at most")
    return value


def _flag(raw: dict[str, Any], key: str, location: str | Path) -> bool:
    value = raw.get(key, False)
    if not isinstance(value, bool):
        raise InputError(f"{location}: {key} = {value!r}; it has to be true or false")
    return value


def _mapping(raw: dict[str, Any], key: str, location: str | Path) -> dict[str, Any]:
    value = raw.get(key) or {}
    if not isinstance(value, dict):
        raise InputError(f"{location}: {key} = {value!r}; it has to be an object, or absent")
    return value


def _positive(raw: dict[str, Any], key: str, location: str | Path, default: float | None) -> float:
    value = raw.get(key) if raw.get(key) is not None else default
    if not isinstance(value, (int, float)) or isinstance(value, bool) or not 0 < value < 1e30:
        raise InputError(f"{location}: {key} = {value!r}; it has to be a number above 0")
    return float(value)


def _scaling(rope: dict[str, Any], location: str | Path) -> Scaling | None:
    kind = rope.get("rope_type", rope.get("type", "default"))
    if kind == "default":
        return None
    if kind != "llama3":
        raise InputError(f"{location}: rope type {kind!r} is not supported; it has to be default or llama3")
    return Scaling(
        factor=_positive(rope, "factor", location, None),
        low_freq_factor=_positive(rope, "low_freq_factor", location, None),
        high_freq_factor=_positive(rope, "high_freq_factor", location, None),
        original_max_position_embeddings=_count(rope, "original_max_position_embeddings", location),
    )


class Llama(nn.Module):
    """The whole model. A forward pass is: embed, every block, norm, head (engine/model/fused_forward.py)."""

    def __init__(self, config: LlamaConfig) -> None:
        super().__init__()
        self.config = config
        self.source: Path | None = None
        """The folder that the weights came from: its tokenizer goes into every folder written."""
        self.embed = nn.Embedding(config.vocab_size, config.hidden_size)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.n_layers))
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.head = Head(None if config.tied else config.vocab_size, config.hidden_size)

    def compile_blocks(self) -> None:
        """Compiles what stands before and after attention in every block: two graphs, for all blocks and lengths.

        The compiler is let compute the norms and silu(gate) * up again in the backward pass, where it would keep them
        for the products that follow: a third less is kept for 1 % of the time.
        """
        torch_private.let_compiler_recompute()
        for block in self._blocks():
            block.project = torch.compile(block.project, dynamic=True)
            block.finish = torch.compile(block.finish, dynamic=True)

    def recompute(self, n_blocks: int) -> None:
        """Lets so many blocks, the first ones, keep nothing but their input for the backward pass."""
        for i, block in enumerate(self._blocks()):
            block.is_recomputed = i < n_blocks

    def _blocks(self) -> Iterator["Block"]:
        return (block for block in self.blocks if isinstance(block, Block))

    @property
    def tied(self) -> Tensor | None:
        """The embedding where it serves as the head's weight too, else None."""
        return self.embed.weight if self.config.tied else None

    def rope(self, positions: Tensor, dtype: torch.dtype = torch.float32) -> Rope:
        """cos and sin for positions [T], each [T, 1, E]."""
        frequencies = rope_frequencies(self.config).to(positions.device)
        angles = torch.outer(positions.to(torch.float32), frequencies).repeat(1, 2)[:, None]  # [T, 1, E]
        return angles.cos().to(dtype), angles.sin().to(dtype)


class Block(nn.Module):
    """One layer: attention and MLP, each behind a norm and added to the stream."""

    def __init__(self, config: LlamaConfig) -> None:
        super().__init__()
        self.attention_norm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.attention = Attention(config)
        self.mlp_norm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.mlp = MLP(config)
        self.is_recomputed = False
        """Whether the backward pass computes the block's inside again (activation checkpointing)."""

    def forward(self, x: Tensor, rope: Rope, attend: Attend) -> Tensor:
        """x [T, D] -> [T, D], in x's dtype."""
        if self.is_recomputed and torch.is_grad_enabled():
            y: Any = checkpoint(self._inside, x, rope, attend, use_reentrant=False, preserve_rng_state=False)
            return y  # of any type: torch 2.11 says that it may be None
        return self._inside(x, rope, attend)

    def _inside(self, x: Tensor, rope: Rope, attend: Attend) -> Tensor:
        return self.finish(x, attend(*self.project(x, rope)))

    def project(self, x: Tensor, rope: Rope) -> tuple[Tensor, Tensor, Tensor]:
        """What stands before attention: x [T, D] -> q [T, H, E], k and v [T, K, E]."""
        return self.attention.project(self.attention_norm(x), rope)

    def finish(self, x: Tensor, attended: Tensor) -> Tensor:
        """What follows it: x [T, D] and attended [T, H, E] -> [T, D]."""
        x = x + self.attention.o(attended.flatten(1))
        return x + self.mlp(self.mlp_norm(x))


class Attention(nn.Module):
    """The weights of grouped-query attention with rotary positions: who attends to whom is the block's affair."""

    def __init__(self, config: LlamaConfig) -> None:
        super().__init__()
        self.head_size = config.head_size
        q, kv = config.n_heads * config.head_size, config.n_kv_heads * config.head_size
        self.q = nn.Linear(config.hidden_size, q, bias=False)
        self.k = nn.Linear(config.hidden_size, kv, bias=False)
        self.v = nn.Linear(config.hidden_size, kv, bias=False)
        self.o = nn.Linear(q, config.hidden_size, bias=False)

    def project(self, x: Tensor, rope: Rope) -> tuple[Tensor, Tensor, Tensor]:
        """x [T, D] -> q [T, H, E], k and v [T, K, E], the first two turned by their positions."""
        heads = (-1, self.head_size)
        q = rotate(self.q(x).unflatten(1, heads), rope)
        k = rotate(self.k(x).unflatten(1, heads), rope)
        return q, k, self.v(x).unflatten(1, heads)


class MLP(nn.Module):
    """SwiGLU."""

    def __init__(self, config: LlamaConfig) -> None:
        super().__init__()
        self.gate = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.up = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.down = nn.Linear(config.intermediate_size, config.hidden_size, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """x [T, D] -> [T, D]."""
        return self.down(silu(self.gate(x)) * self.up(x))


class RMSNorm(nn.Module):
    """x / rms(x) * weight; the mean square in float32 or better."""

    def __init__(self, size: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        """x [..., D] -> [..., D], in x's dtype."""
        wide = x if x.dtype == torch.float64 else x.float()
        wide = wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + self.eps)
        return self.weight * wide.to(x.dtype)


def rotate(x: Tensor, rope: Rope) -> Tensor:
    """x [T, H, E] turned by its positions' angles; halves of a head are the two coordinates, as in Hugging Face's
    layout of the weights. Computed in the angles' dtype, given back in x's.
    """
    cos, sin = rope
    a, b = x.chunk(2, dim=-1)
    return (x * cos + torch.cat((-b, a), dim=-1) * sin).to(x.dtype)


def rope_frequencies(config: LlamaConfig) -> Tensor:
    """[E / 2] float32, radians per position.

    With `scaling`, as Llama-3.1: wavelengths above original / low_freq_factor are stretched by `factor`, those below
    original / high_freq_factor stay, and between the two the frequency is a linear blend in original / wavelength.
    """
    exponents = torch.arange(0, config.head_size, 2, dtype=torch.float32, device="cpu") / config.head_size
    frequencies = 1.0 / config.rope_theta**exponents
    if (s := config.scaling) is None:
        return frequencies
    turns = s.original_max_position_embeddings * frequencies / (2 * math.pi)  # over the original context
    share = ((turns - s.low_freq_factor) / (s.high_freq_factor - s.low_freq_factor)).clamp(0, 1)
    return share * frequencies + (1 - share) * frequencies / s.factor
