"""Writes a model as a checkpoint folder that transformers and vLLM load.

Safetensors shards, the index, config.json, generation_config.json, and the tokenizer that the model came with: all of
it, or nothing.
"""

import json
import os
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from engine.model import Llama, name_of
from engine.weights.kept import GENERATION, read_beside
from engine.weights.names import DTYPES, INDEX, WHOLE, checkpoint_name
from engine.weights.reading import placed
from engine.weights.rounding import Cast
from system import naming, sync, temporary_of, whole_folder

SHARD_BYTES = 5 * 10**9


class Stored(NamedTuple):
    """A tensor as a folder holds it."""

    name: str
    shape: tuple[int, ...]
    dtype: torch.dtype

    @property
    def n_bytes(self) -> int:
        """Its size."""
        return torch.Size(self.shape).numel() * self.dtype.itemsize


class ShardAccess(Protocol):
    """Who holds which rows of a model (engine/distributed/ranks.py), as far as saving it is concerned."""

    @property
    def is_rank0(self) -> bool:
        """Whether this process writes what is beside the tensors."""
        ...

    @property
    def holds_first_copy(self) -> bool:
        """Whether its rows are to be written: they are no copy of another's."""
        ...

    def local(self, parameter: Tensor) -> tuple[Tensor, int]:
        """The rows of a parameter that are held here, and the first one's number."""
        ...

    def full_tensor(self, parameter: Tensor) -> Tensor:
        """A parameter gathered. Collective."""
        ...

    def all_see(self, folder: Path) -> bool:
        """Whether a folder is the same one for every process. Collective."""
        ...

    def wait(self) -> None:
        """Returns when every process has come here. Collective."""
        ...


class SingleProcess:
    """One process that holds everything."""

    is_rank0 = holds_first_copy = True

    def local(self, parameter: Tensor) -> tuple[Tensor, int]:
        """All of it."""
        return parameter, 0

    def full_tensor(self, parameter: Tensor) -> Tensor:
        """As it is."""
        return parameter

    def all_see(self, folder: Path) -> bool:
        """It does."""
        return True

    def wait(self) -> None:
        """For nobody."""


def save(
    model: Llama,
    folder: str | Path,
    *,
    dtype: torch.dtype | None = None,
    cast: Cast | None = None,
    stop_ids: Sequence[int] = (),
    beside: Mapping[str, str] | None = None,
    parts: ShardAccess | None = None,
    replaces: bool = False,
    shard_bytes: int = SHARD_BYTES,
) -> None:
    """Writes a folder that transformers and vLLM load: all of it, or nothing.

    dtype: of the stored weights, rounded to the nearest; the model's own where it is None. cast: another rounding,
    which names its dtype itself. stop_ids: every id that ends an answer, for generation_config.json. beside: text files
    that the source lacks, by name: the chat template that the model was trained with, say. parts: where the model is
    sharded; collective then. Where all see the same files each process writes its own rows into them; else tensors are
    gathered, and the first one writes. One tensor at a time is held besides the model. Raises InputError where the
    folder exists, unless it is replaced, and where a number is beyond the dtype's range.
    """
    parts = parts or SingleProcess()
    cast = cast or Cast(dtype=dtype or next(model.parameters()).dtype)
    tensors = {checkpoint_name(n): p for n, p in model.named_parameters()}
    shards = _shards([Stored(name, tuple(p.shape), cast.dtype_of(name)) for name, p in tensors.items()], shard_bytes)
    temporary = temporary_of(Path(folder))
    with whole_folder(Path(folder), replaces=replaces) if parts.is_rank0 else nullcontext():
        files = {temporary / name: _layout(stored) for name, stored in shards.items()}
        if parts.is_rank0:
            for path, (header, _, size) in files.items():
                _reserve(path, header, size)
        shared = parts.all_see(temporary)
        for path, (_, starts, _) in files.items():
            for name, start in starts.items():
                held, first = parts.local(tensors[name]) if shared else (parts.full_tensor(tensors[name]), 0)
                if parts.holds_first_copy if shared else parts.is_rank0:
                    with placed(Path(folder)):
                        rows = cast(name, held, first)
                    _write_rows(path, rows, start, first)
            if shared or parts.is_rank0:
                sync(path)  # each process what it wrote
        parts.wait()  # all rows are there before the folder gets its name
        if parts.is_rank0:
            _write_beside(model, temporary, shards, cast, stop_ids, beside or {})


def _write_beside(
    model: Llama, folder: Path, shards: Mapping[str, list[Stored]], cast: Cast, stop_ids: Sequence[int],
    beside: Mapping[str, str],
) -> None:  # fmt: skip
    """Everything in a checkpoint folder but the tensors."""
    if len(shards) > 1:
        total = sum(tensor.n_bytes for stored in shards.values() for tensor in stored)
        where = {tensor.name: file for file, stored in shards.items() for tensor in stored}
        index = {"metadata": {"total_size": total}, "weight_map": where}
        _write_json(folder / INDEX, index)
    _write_json(folder / "config.json", _config_for(model.config.raw, cast))
    files = {} if model.source is None else read_beside(model.source) if model.beside is None else model.beside
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    _write_json(folder / GENERATION, _generation_config(files.get(GENERATION), model.config.raw, stop_ids))
    for name, text in beside.items():  # a template that a run was given takes the place of the model's own
        (folder / name).write_text(text, encoding="utf-8")


def _shards(tensors: list[Stored], limit: int) -> dict[str, list[Stored]]:
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


def _layout(tensors: list[Stored]) -> tuple[bytes, dict[str, int], int]:
    """A safetensors file: its head, where in it each tensor begins, and its size in bytes.

    8 bytes of header length, a JSON header, the tensors' bytes one after the other. Made here because the library's
    save_file takes all tensors at once and ignores the umask (mode 0600).
    """
    kinds = {dtype: kind for kind, dtype in DTYPES.items()}
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    starts: dict[str, int] = {}
    offset = 0
    for name, shape, dtype in tensors:
        end = offset + torch.Size(shape).numel() * dtype.itemsize
        header[name] = {"dtype": kinds[dtype], "shape": list(shape), "data_offsets": [offset, end]}
        starts[name], offset = offset, end
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    head = len(text).to_bytes(8, "little") + text
    return head, {name: start + len(head) for name, start in starts.items()}, len(head) + offset


def _reserve(path: Path, head: bytes, size: int) -> None:
    """A file of its full size, with its head: a disk that is too full shows here."""
    with naming(path), open(path, "xb") as file:
        if hasattr(os, "posix_fallocate"):  # not on macOS, where a disk that is too full shows later
            os.posix_fallocate(file.fileno(), 0, size)
        else:
            file.truncate(size)
        file.write(head)


def _write_rows(path: Path, rows: Tensor, start: int, first: int) -> None:
    """Rows of a tensor, from the first-th on, into a file in which the tensor begins at byte `start`."""
    rows = _on_host(rows.contiguous())
    if not rows.numel():
        return
    left = rows.view(torch.uint8).numpy().reshape(-1).data
    offset = start + first * (rows.numel() // len(rows)) * rows.dtype.itemsize
    with naming(path), open(path, "r+b", buffering=0) as file:
        while left:
            n = os.pwrite(file.fileno(), left[: 2**30], offset)
            left, offset = left[n:], offset + n


def _on_host(rows: Tensor) -> Tensor:
    """From a GPU by way of pinned memory: several times as fast."""
    if not rows.is_cuda:
        return rows.to("cpu")
    return torch.empty(rows.shape, dtype=rows.dtype, pin_memory=True).copy_(rows)


def _config_for(raw: dict[str, Any], cast: Cast) -> dict[str, Any]:
    kind = {"architectures": ["LlamaForCausalLM"], "model_type": "llama"}  # by which others tell what a folder is
    raw = raw | {key: raw.get(key) or value for key, value in kind.items()}
    keys = [key for key in ("dtype", "torch_dtype") if key in raw] or ["dtype"]  # transformers 5 writes the former
    if cast.others and any(raw.get(key) for key in keys):
        return raw  # several dtypes: which of them is announced was the source's choice
    return raw | dict.fromkeys(keys, name_of(cast.dtype))


def _generation_config(given: bytes | None, raw: dict[str, Any], stop_ids: Sequence[int]) -> dict[str, Any]:
    made = json.loads(given) if given is not None else {k: raw[k] for k in ("bos_token_id",) if k in raw}
    if stop_ids:
        made["eos_token_id"] = list(stop_ids) if len(stop_ids) > 1 else stop_ids[0]
    return made


def _write_json(path: Path, value: dict[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
