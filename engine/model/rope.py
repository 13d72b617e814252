"""Rotary positions: what a config.json asks for, and the angles that it comes to.

A layer turns the first `size` numbers of every head by its position times a frequency each. Which frequencies is the
`scaling`'s affair; facts and formulas: transformers' modeling_rope_utils, in its order of operations.
"""

# T packed tokens, E head size, F frequencies: half of the numbers that turn

import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class Linear:
    """All frequencies divided by a factor."""

    factor: float


@dataclass(frozen=True, kw_only=True)
class Dynamic:
    """As trained up to the context that the file names; what lies beyond has other frequencies, and is refused."""

    context: int


@dataclass(frozen=True, kw_only=True)
class Llama3:
    """Llama 3.1's: wavelengths above original / low_freq_factor are stretched by `factor`, those below original /
    high_freq_factor stay, and between the two the frequency is a linear blend in original / wavelength.
    """

    factor: float
    low_freq_factor: float
    high_freq_factor: float
    original_max_position_embeddings: int


@dataclass(frozen=True, kw_only=True)
class Yarn:
    """YaRN (arXiv 2309.00071): a ramp over the frequencies between what turns beta_fast and beta_slow times within the
    original context.
    """

    factor: float
    original_max_position_embeddings: int
    beta_fast: float
    beta_slow: float
    truncate: bool
    magnitude: float
    """What cos and sin are multiplied with."""


@dataclass(frozen=True, kw_only=True)
class LongRope:
    """LongRoPE (arXiv 2402.13753): a factor for each frequency, others in sequences beyond the original context."""

    short_factor: tuple[float, ...]
    long_factor: tuple[float, ...]
    original_max_position_embeddings: int
    magnitude: float
    """What cos and sin are multiplied with, in sequences of every length."""


Scaling = Linear | Dynamic | Llama3 | Yarn | LongRope


@dataclass(frozen=True, kw_only=True)
class Growth:
    """Queries that grow with their position p, by 1 + beta ln(1 + floor(p / original)) (Ministral 3)."""

    beta: float
    original: int


@dataclass(frozen=True, kw_only=True)
class Rope:
    """How one kind of layer turns queries and keys."""

    theta: float
    size: int
    """How many of a head's numbers turn, the first ones; the rest stay."""
    scaling: Scaling | None = None
    growth: Growth | None = None

    @property
    def original(self) -> int | None:
        """The length beyond which a whole sequence turns otherwise (LongRoPE); None where none does."""
        return self.scaling.original_max_position_embeddings if isinstance(self.scaling, LongRope) else None


class Rotation(NamedTuple):
    """A rope at given positions."""

    cos: Tensor
    """[T, 1, size] float32 or better."""
    sin: Tensor
    growth: Tensor | None = None
    """[T, 1, 1], of queries."""


def rotation(rope: Rope, positions: Tensor, spans: Tensor, dtype: torch.dtype = torch.float32) -> Rotation:
    """cos and sin for positions [T]. spans [T]: tokens of the whole sequence that each belongs to."""
    angles = _angles(frequencies(rope, dtype), positions, dtype)
    if rope.original is not None:
        longer = _angles(frequencies(rope, dtype, is_long=True), positions, dtype)
        angles = torch.where((spans > rope.original)[:, None, None], longer, angles)
    cos, sin = angles.cos(), angles.sin()
    if isinstance(rope.scaling, (Yarn, LongRope)) and rope.scaling.magnitude != 1:
        cos, sin = cos * rope.scaling.magnitude, sin * rope.scaling.magnitude
    return Rotation(cos, sin, None if rope.growth is None else _growth(rope.growth, positions, dtype))


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """x [T, H, E] turned by its positions' angles; halves of what turns are the two coordinates, as in Hugging Face's
    layout of the weights. Computed in the angles' dtype, given back in x's.
    """
    size = cos.shape[-1]
    turned = x if size == x.shape[-1] else x[..., :size]
    a, b = turned.chunk(2, dim=-1)
    made = (turned * cos + torch.cat((-b, a), dim=-1) * sin).to(x.dtype)
    return made if size == x.shape[-1] else torch.cat((made, x[..., size:]), dim=-1)


def frequencies(rope: Rope, dtype: torch.dtype = torch.float32, *, is_long: bool = False) -> Tensor:
    """[F] radians per position. is_long: of a sequence beyond LongRoPE's original context."""
    exponents = torch.arange(0, rope.size, 2, dtype=dtype, device="cpu") / rope.size
    powers = rope.theta**exponents
    match rope.scaling:
        case LongRope() as s:
            factors = torch.tensor(s.long_factor if is_long else s.short_factor, dtype=dtype, device="cpu")
            return 1.0 / (factors * powers)
        case Linear() as s:
            return 1.0 / powers / s.factor
        case Yarn() as s:
            share = _ramp(s, rope, dtype)
            return 1.0 / (s.factor * powers) * share + 1.0 / powers * (1 - share)
        case Llama3() as s:
            plain = 1.0 / powers
            turns = s.original_max_position_embeddings * plain / (2 * math.pi)  # over the original context
            share = ((turns - s.low_freq_factor) / (s.high_freq_factor - s.low_freq_factor)).clamp(0, 1)
            return share * plain + (1 - share) * plain / s.factor
        case _:
            return 1.0 / powers


def _ramp(s: Yarn, rope: Rope, dtype: torch.dtype) -> Tensor:
    """[F] from 0 at frequencies that stay to 1 at those that are stretched."""

    def place(turns: float) -> float:
        """Of the frequency that turns so often within the original context."""
        wavelengths = s.original_max_position_embeddings / (turns * 2 * math.pi)
        return rope.size * math.log(wavelengths) / (2 * math.log(rope.theta))

    low, high = place(s.beta_fast), place(s.beta_slow)
    if s.truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, rope.size - 1)
    high += 0.001 if low == high else 0
    return ((torch.arange(rope.size // 2, dtype=dtype, device="cpu") - low) / (high - low)).clamp(0, 1)


def _angles(frequencies: Tensor, positions: Tensor, dtype: torch.dtype) -> Tensor:
    """[T, 1, 2 F]."""
    return torch.outer(positions.to(dtype), frequencies.to(positions.device)).repeat(1, 2)[:, None]


def _growth(growth: Growth, positions: Tensor, dtype: torch.dtype) -> Tensor:
    """[T, 1, 1]."""
    return (1 + growth.beta * (1 + (positions // growth.original).to(dtype)).log())[:, None, None]
