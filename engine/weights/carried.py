"""Tensors of a checkpoint that do not train: they go into every folder that is written byte for byte.

What sees in a Gemma 3, and the constants of an activation (Apertus), which the model computes with. They are read when
a run begins and kept beside its states, so that a folder that changes or goes away changes nothing.
"""

from collections.abc import Callable, Container, Mapping
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from engine.model import Transformer
from engine.weights.names import DTYPES
from engine.weights.shard_file import KINDS, Stored, layout, reserve, write_bytes
from system import InputError, sync

CARRIED = "carried.safetensors"
"""Of a folder that is kept of a model: what it carries."""


class Carried(NamedTuple):
    """A tensor's bytes."""

    kind: str
    """Its dtype, as safetensors calls it."""
    shape: tuple[int, ...]
    data: Tensor | None
    """[n] uint8; None on processes that do not write it."""

    def stored(self, name: str) -> Stored:
        """How a file holds it."""
        return Stored(name, self.shape, self.kind)

    def numbers(self, name: str) -> Tensor:
        """What it holds. Raises InputError where its dtype is none of weights, or a number is not finite."""
        if self.kind not in DTYPES:
            raise InputError(f"{name} is {self.kind}; it has to be {', '.join(DTYPES)}")
        assert self.data is not None  # who computes with it has read it
        found = self.data.clone().view(DTYPES[self.kind]).view(self.shape)
        if not found.isfinite().all():
            raise InputError(f"{name} holds NaN or infinity; copy the weights again")
        return found


def of_buffers(model: Transformer, known: Container[str]) -> dict[str, Carried]:
    """A model's constants as they are in memory, by their names in a checkpoint, but for those that are known."""
    named = ((model.config.place(name).tensor, buffer) for name, buffer in model.constants())
    return {
        tensor: Carried(KINDS[b.dtype], tuple(b.shape), b.detach().cpu().reshape(-1).view(torch.uint8))
        for tensor, b in named
        if tensor not in known
    }


def set_buffers(model: Transformer, found: Callable[[str], Carried]) -> None:
    """Writes a model's constants into it. found: a tensor of its checkpoint, by name."""
    for name, buffer in model.constants():
        tensor = model.config.place(name).tensor
        buffer.copy_(found(tensor).numbers(tensor))


def write_kept(folder: Path, carried: Mapping[str, Carried]) -> None:
    """Writes what a model carries into a folder of a run; nothing where it carries nothing."""
    if not carried:
        return
    path = folder / CARRIED
    header, starts, size = layout([tensor.stored(name) for name, tensor in carried.items()])
    reserve(path, header, size)
    write_carried({name: (path, start) for name, start in starts.items()}, carried)
    sync(path)


def write_carried(where: Mapping[str, tuple[Path, int]], carried: Mapping[str, Carried]) -> None:
    """Writes what a model carries to its places: files, and where in them each tensor begins."""
    for name, tensor in carried.items():
        assert tensor.data is not None  # who writes has read it
        write_bytes(where[name][0], tensor.data, where[name][1])
