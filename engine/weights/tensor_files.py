"""Safetensors files of one folder, opened: what they hold, and rows of it."""

import math
import os
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import BinaryIO

import torch
from torch import Tensor

from engine.weights import safetensors_header
from engine.weights.names import DTYPES
from system import InputError

PIECE_BYTES = 2**26  # of two tensors that are compared


class TensorFiles:
    """Some safetensors files of a folder, opened once."""

    def __init__(self, folder: Path, names: Sequence[str]) -> None:
        """Raises InputError where one is missing or damaged, or a tensor stands in two of them."""
        self.folder = folder
        self.tensors: dict[str, safetensors_header.Entry] = {}
        self.where: dict[str, str] = {}
        """The file of each tensor."""
        self._stack = ExitStack()
        self._open: dict[str, BinaryIO] = {}
        try:
            for name in names:
                self._open_file(name)
        except InputError:
            self._stack.close()
            raise

    def _open_file(self, name: str) -> None:
        path = self.folder / name
        for tensor, entry in safetensors_header.read(path).items():
            if tensor in self.where:
                raise InputError(f"{path}: {tensor} is also in {self.where[tensor]}; copy the folder again")
            self.where[tensor], self.tensors[tensor] = name, entry
        try:
            file = open(path, "rb", buffering=0)  # noqa: SIM115 (closed with the stack)
        except OSError as fault:
            raise InputError(f"{path}: cannot be read ({fault.strerror}); copy it again") from None
        self._open[name] = self._stack.enter_context(file)

    def close(self) -> None:
        """Closes the files."""
        self._stack.close()

    def __enter__(self) -> "TensorFiles":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def numbers(self, name: str) -> int:
        """How many a tensor has."""
        return math.prod(self.tensors[name].shape)

    def rows(self, name: str, start: int, stop: int) -> Tensor:
        """Rows start to stop of a tensor, read from the file and nothing more.

        Not through a map of the file, of which a process dies where the file is cut meanwhile: raises InputError.
        """
        shape, dtype = self.tensors[name].shape, DTYPES[self.tensors[name].dtype]
        width = math.prod(shape[1:]) * dtype.itemsize
        return self._bytes(name, start * width, stop * width).view(dtype).view(stop - start, *shape[1:])

    def whole(self, name: str) -> Tensor:
        """All bytes of a tensor [n] uint8, whatever its dtype."""
        return self._bytes(name, 0, self._size(name))

    def same(self, name: str, other: "TensorFiles", its: str) -> bool:
        """Whether a tensor holds the numbers that a tensor of these or other files does, whatever their dtypes."""
        a, b = self.tensors[name], other.tensors[its]
        if a.shape != b.shape:
            return False
        if a.dtype == b.dtype:
            size = self._size(name)
            pieces = ((at, min(at + PIECE_BYTES, size)) for at in range(0, size, PIECE_BYTES))
            return all(torch.equal(self._bytes(name, *p), other._bytes(its, *p)) for p in pieces)
        n = max(1, PIECE_BYTES // max(1, 8 * math.prod(a.shape[1:])))
        spans = ((at, min(at + n, a.shape[0])) for at in range(0, a.shape[0], n))
        return all(torch.equal(self.rows(name, *s).double(), other.rows(its, *s).double()) for s in spans)

    def _size(self, name: str) -> int:
        return self.numbers(name) * safetensors_header.BYTES[self.tensors[name].dtype]

    def _bytes(self, name: str, begin: int, end: int) -> Tensor:
        file, first = self._open[self.where[name]], self.tensors[name].start
        found = torch.empty(end - begin, dtype=torch.uint8)
        left, offset = found.numpy().data, first + begin
        while left:
            n = os.preadv(file.fileno(), [left[: 2**30]], offset)
            if n == 0:
                raise InputError(f"{self.folder / self.where[name]}: was truncated while it was read; copy it again")
            left, offset = left[n:], offset + n
        return found
