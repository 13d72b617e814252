"""A safetensors file, laid out before its tensors are there, and written rows at a time."""

import json
import math
import os
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from engine.weights.names import DTYPES, WHOLE
from engine.weights.safetensors_header import BYTES
from system import naming

KINDS = {dtype: kind for kind, dtype in DTYPES.items()}


class Stored(NamedTuple):
    """A tensor as a folder holds it."""

    name: str
    shape: tuple[int, ...]
    kind: str
    """Its dtype, as safetensors calls it."""

    @property
    def n_bytes(self) -> int:
        """Its size."""
        return math.prod(self.shape) * BYTES[self.kind]


def divided(tensors: list[Stored], limit: int) -> dict[str, list[Stored]]:
    """Files of at most `limit` bytes (one tensor at least) and the tensors in each, in order."""
    groups: list[list[Stored]] = []
    filled = 0
    for tensor in tensors:
        if not groups or filled + tensor.n_bytes > limit:
            groups.append([])
            filled = 0
        groups[-1].append(tensor)
        filled += tensor.n_bytes
    if len(groups) == 1:
        return {WHOLE: groups[0]}
    return {f"model-{i:05d}-of-{len(groups):05d}.safetensors": group for i, group in enumerate(groups, start=1)}


def layout(tensors: list[Stored]) -> tuple[bytes, dict[str, int], int]:
    """A safetensors file: its head, where in it each tensor begins, and its size in bytes.

    8 bytes of header length, a JSON header, the tensors' bytes one after the other. Made here because the library's
    save_file takes all tensors at once and ignores the umask (mode 0600).
    """
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    starts: dict[str, int] = {}
    offset = 0
    for tensor in tensors:
        end = offset + tensor.n_bytes
        header[tensor.name] = {"dtype": tensor.kind, "shape": list(tensor.shape), "data_offsets": [offset, end]}
        starts[tensor.name], offset = offset, end
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    head = len(text).to_bytes(8, "little") + text
    return head, {name: start + len(head) for name, start in starts.items()}, len(head) + offset


def reserve(path: Path, head: bytes, size: int) -> None:
    """A file of its full size, with its head: a disk that is too full shows here."""
    with naming(path), open(path, "xb") as file:
        if hasattr(os, "posix_fallocate"):  # not on macOS, where a disk that is too full shows later
            os.posix_fallocate(file.fileno(), 0, size)
        else:
            file.truncate(size)
        file.write(head)


def write_rows(path: Path, rows: Tensor, start: int, first: int) -> None:
    """Rows of a tensor, from the first-th on, into a file in which the tensor begins at byte `start`."""
    rows = _on_host(rows.contiguous())
    if not rows.numel():
        return
    offset = start + first * (rows.numel() // len(rows)) * rows.dtype.itemsize
    write_bytes(path, rows.view(torch.uint8).reshape(-1), offset)


def _on_host(rows: Tensor) -> Tensor:
    """From a GPU by way of pinned memory: several times as fast."""
    if not rows.is_cuda:
        return rows.to("cpu")
    return torch.empty(rows.shape, dtype=rows.dtype, pin_memory=True).copy_(rows)


def write_bytes(path: Path, data: Tensor, start: int) -> None:
    """Bytes [n] uint8 into a file, from byte `start` on."""
    with naming(path), open(path, "r+b", buffering=0) as file:
        left, offset = data.numpy().data, start
        while left:
            n = os.pwrite(file.fileno(), left[: 2**30], offset)
            left, offset = left[n:], offset + n
