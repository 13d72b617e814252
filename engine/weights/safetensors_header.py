"""The head of a safetensors file, checked before the file is handed to the library.

A file is 8 bytes of length, that many bytes of JSON, and the tensors' bytes. The library maps the file, reads heads of
up to 100 MB and takes names that stand twice; a foreign file is looked at here first, in constant memory.
"""

import json
import math
import os
import stat
from pathlib import Path
from typing import Any, NamedTuple

from system import InputError

_NAMES = ("U8 I8 BOOL F8_E4M3 F8_E5M2 F8_E8M0", "F16 BF16 U16 I16", "F32 U32 I32", "F64 U64 I64 C64")
BYTES = {name: 2**i for i, names in enumerate(_NAMES) for name in names.split()}
"""Of a number, by dtype."""
MAX_BYTES = 8 * 2**20  # Llama-3-8B: 291 tensors, 30 KB; 405B: 1,138 tensors, 130 KB


class Entry(NamedTuple):
    """A tensor of a file."""

    dtype: str
    """As safetensors calls it: BF16, F32, ..."""
    shape: tuple[int, ...]
    start: int
    """Where its bytes begin in the file."""


def read(path: Path) -> dict[str, Entry]:
    """The tensors of a file by name.

    Raises InputError where it is not a regular file of this folder, not safetensors, cut or overlong, or where its
    tensors overlap, leave holes or stand twice.
    """

    def refuse(what: str) -> InputError:
        return InputError(f"{path}: cannot be read ({what}); copy it again")

    _check_place(path)
    try:
        with open(path, "rb") as file:
            size = os.fstat(file.fileno()).st_size
            first = file.read(8)
            length = int.from_bytes(first, "little")
            if first[:8] == b"version ":
                raise InputError(f"{path}: a Git LFS pointer, not the file; run git lfs pull in its folder")
            if len(first) < 8 or length > size - 8:
                raise refuse("not safetensors, or cut in its header")
            if length > MAX_BYTES:
                raise refuse(f"a header of {length:,} bytes, above {MAX_BYTES:,}")
            header = json.loads(file.read(length), object_pairs_hook=_pairs)
    except OSError as fault:
        raise refuse(fault.strerror or type(fault).__name__) from None
    except (ValueError, RecursionError) as fault:
        if isinstance(fault, InputError):
            raise
        raise refuse(f"its header is not JSON: {fault}") from None
    if not isinstance(header, dict):
        raise refuse("its header is not an object")
    header.pop("__metadata__", None)
    _check_layout(header, size - 8 - length, refuse)
    return {
        name: Entry(str(tensor.get("dtype")), tuple(tensor["shape"]), 8 + length + tensor["data_offsets"][0])
        for name, tensor in header.items()
    }


def _pairs(items: list[tuple[str, Any]]) -> dict[str, Any]:
    made = dict(items)
    if len(made) < len(items):
        names = [name for name, _ in items]
        raise ValueError(f"{max(names, key=names.count)} stands twice")
    return made


def _check_place(path: Path) -> None:
    """Raises InputError unless the file is a regular one in its folder; a hub's snapshot links to its blobs."""
    try:
        kind = path.stat().st_mode
    except OSError as fault:
        raise InputError(f"{path}: cannot be read ({fault.strerror}); copy it again") from None
    if not stat.S_ISREG(kind):
        raise InputError(f"{path}: cannot be read (not a regular file); copy it again")
    folder, real = path.parent.resolve(), path.resolve()
    blobs = folder.parent.parent / "blobs" if folder.parent.name == "snapshots" else folder
    if real.parent not in (folder, blobs):
        raise InputError(f"{path}: is a link to {real}, outside of its folder; put the file itself there")


def _check_layout(header: dict[str, Any], n_bytes: int, refuse: Any) -> None:
    """Raises InputError unless the tensors fill the file's data from end to end, each once."""
    spans = []
    for name, tensor in header.items():
        offsets = tensor.get("data_offsets") if isinstance(tensor, dict) else None
        shape = tensor.get("shape") if isinstance(tensor, dict) else None
        if not isinstance(offsets, list) or not isinstance(shape, list) or len(offsets) != 2:
            raise refuse(f"{name} has no shape or place")
        if not all(type(n) is int and 0 <= n < 2**63 for n in (*offsets, *shape)):
            raise refuse(f"{name} has a shape or place that cannot be")
        spans.append((*offsets, name))
    at = 0
    for start, end, name in sorted(spans):
        if start != at or end < start:
            raise refuse(f"{name} overlaps with another tensor, or leaves a hole before it")
        at = end
    for name, tensor in header.items():
        start, end = tensor["data_offsets"]
        size = BYTES.get(str(tensor.get("dtype")))
        if size is None:
            raise refuse(f"{name} is of an unknown dtype")
        if math.prod(tensor["shape"]) * size != end - start:
            raise refuse(f"{name} has more or fewer bytes than its shape and dtype take")
    if at != n_bytes:
        raise refuse(f"its tensors take {at:,} bytes and it holds {n_bytes:,}: cut, or longer than it should be")
