"""How float32 weights become the numbers that a checkpoint folder stores.

    nearest       what a cast does: repeatable, and blind to updates smaller than half a step of the narrower dtype
    stochastic    up or down with the probability that keeps the mean: small updates survive on average, with noise

A weight of bf16 has 8 bits: near 0.1 its neighbours are 0.0005 apart, and an update of 1e-5 is lost by rounding to the
nearest. Random numbers are hashes of a number's place, its tensor's name and a seed, so that a rounding repeats.
"""

# n numbers of a tensor

import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TypeVar

import torch
from torch import Tensor

from engine.config import Rounding
from engine.model import name_of
from system import InputError

Number = TypeVar("Number", int, Tensor)

HALF = 0x8000
CHUNK = 2**24  # numbers that are rounded at once: hashes of these, 8 bytes each, and of no more, are held


@dataclass(frozen=True, kw_only=True)
class Cast:
    """How the rows of a tensor become what is stored of them."""

    dtype: torch.dtype
    """Of the stored numbers."""
    others: Mapping[str, torch.dtype] = field(default_factory=dict)
    """Of tensors that are stored in another dtype, by their names in the folder."""
    rounding: Rounding = "nearest"
    """"stochastic" is for bfloat16."""
    seed: int = 0
    """Of the random numbers; a run takes the number of its step."""
    is_split: bool = False
    """Whether the masters are split in halves (engine/optim/): the nearest bfloat16 is then their upper half, whose
    ties are rounded away from zero."""

    def __post_init__(self) -> None:
        """Raises InputError where that rounding cannot be."""
        if self.rounding == "stochastic" and self.dtype != torch.bfloat16:
            name = name_of(self.dtype)
            raise InputError(
                f"stochastic rounding is for bfloat16, not for {name}; choose bfloat16, or round to the nearest"
            )

    def __call__(self, name: str, rows: Tensor, first: int = 0) -> Tensor:
        """Rows [n, ...] of the tensor of that name, from its first-th on, in the dtype that it is stored in.

        Raises InputError where a number is beyond the dtype's range.
        """
        rows, dtype = rows.detach(), self.dtype_of(name)
        if self.rounding == "stochastic" and dtype == torch.bfloat16:
            width = rows[:1].numel()
            made = _in_chunks(rows.float().contiguous(), first * width, key_of(name, self.seed))
        elif self.is_split and dtype == torch.bfloat16:
            made = round_half_away(rows.float())
        else:
            made = rows.to(dtype)
        check_range(name, rows, dtype)
        return made

    def dtype_of(self, name: str) -> torch.dtype:
        """Of the stored numbers of a tensor, by its name in the folder."""
        return self.others.get(name, self.dtype)

    def keeps(self, computed: torch.dtype) -> bool:
        """Whether who loads what is stored, and computes in that dtype, computes with the weights that were cast.

        But for the ties of split masters stored in float32 (0.0007 %), which a cast to bfloat16 rounds to the even one.
        """
        kept = (computed, torch.float32, torch.float64)
        return self.rounding == "nearest" and {self.dtype, *self.others.values()} <= {*kept}


def check_asked(dtype: str, rounding: Rounding | None, seed: int) -> None:
    """Raises InputError where --dtype, --rounding and --seed of a command that writes a folder do not go together."""
    if not 0 <= seed < 2**32:
        raise InputError(f"--seed: {seed} has to be between 0 and {2**32 - 1:,}")
    if rounding == "stochastic" and dtype != "bfloat16":
        raise InputError(
            f"--rounding stochastic: rounds to bfloat16, not to {dtype}; name --dtype bfloat16 with it, or leave it out"
        )


def check_range(name: str, rows: Tensor, dtype: torch.dtype) -> None:
    """Raises InputError where a number of a tensor is beyond the range of a dtype."""
    most = torch.finfo(dtype).max
    if not rows.numel() or most >= torch.finfo(rows.dtype).max:
        return
    low, high = (x.item() for x in rows.aminmax())
    if max(-low, high) > most:
        furthest = high if high > -low else low
        raise InputError(
            f"{name} holds {furthest:,.0f}, beyond {most:,.0f}, the largest {name_of(dtype)}; store float32 or bfloat16"
        )


def round_half_away(values: Tensor) -> Tensor:
    """float32 -> the nearest bf16; what lies in the middle of two (0.0007 % of weights) goes away from zero.

    A cast rounds it to the even one.
    """
    return ((values.contiguous().view(torch.int32) + HALF) >> 16).to(torch.int16).view(torch.bfloat16)


def round_stochastically(values: Tensor, places: Tensor, key: int) -> Tensor:
    """float32 [n] -> bf16: away from zero with the probability of what rounding towards it would lose, so without bias.

    The random number of a value is a hash of its place and the key.
    """
    return (
        ((values.view(torch.int32) + (hash_of(places, key) & 0xFFFF).to(torch.int32)) >> 16)
        .to(torch.int16)
        .view(torch.bfloat16)
    )


def _in_chunks(rows: Tensor, start: int, key: int) -> Tensor:
    """Rows of a tensor whose first number is its start-th, rounded stochastically."""
    flat = rows.view(-1)
    made = torch.empty_like(flat, dtype=torch.bfloat16)
    for at in range(0, len(flat), CHUNK):
        part = flat[at : at + CHUNK]
        places = torch.arange(start + at, start + at + len(part), device=flat.device)
        made[at : at + CHUNK] = round_stochastically(part, places, key)
    return made.view(rows.shape)


def key_of(name: str, seed: int) -> int:
    """The key of a tensor's random numbers."""
    return hash_of(zlib.crc32(name.encode()), seed)


def hash_of(places: Number, key: int) -> Number:
    """32 bits of each place; the finaliser of MurmurHash3 (Appleby, public domain)."""
    x = (places * 0x9E3779B1 + key) & 0xFFFFFFFF
    x = ((x ^ (x >> 16)) * 0x85EBCA6B) & 0xFFFFFFFF
    x = ((x ^ (x >> 13)) * 0xC2B2AE35) & 0xFFFFFFFF
    return x ^ (x >> 16)
