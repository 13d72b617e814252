"""Reads checkpoint folders in Hugging Face's layout straight into a model: each process the rows that it holds.

build   config.json -> a model on the meta device: shapes, no memory
fill    each parameter's rows -> the part of it that is held here (all of it, or a rank's shard)
load    both, for a model held whole
"""

import functools
import math
import os
import re
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor

from data.text import read_json
from engine.model import Llama, LlamaConfig, is_narrower, name_of
from engine.weights import safetensors_header
from engine.weights.names import DTYPES, INDEX, checkpoint_name
from engine.weights.rounding import check_range
from system import InputError, cli

Local = Callable[[Tensor], tuple[Tensor, int]]
"""The part of a parameter that is held here, and its first row: (parameter, 0) where it is held whole."""

# Buffers that older releases carry, and the copy of the embedding that some tied checkpoints do.
_IGNORED = re.compile(r".*rotary_emb\.inv_freq")


def build(folder: Path, dtype: torch.dtype = torch.float32) -> Llama:
    """The model that the folder's config.json describes, on the meta device. Raises InputError."""
    config = LlamaConfig.parse(read_json(folder / "config.json"), folder / "config.json")
    with torch.device("meta"):
        model = Llama(config).to(dtype)
    model.source = folder
    return model


def load(folder: str | Path, dtype: torch.dtype = torch.float32, device: str | torch.device = "cpu") -> Llama:
    """The whole model in a folder, in `dtype` on `device`. Raises InputError where the folder cannot be used."""
    model = build(Path(folder), dtype).to_empty(device=device)
    fill(model, Path(folder))
    return model


def check(folder: Path, model: Llama) -> None:
    """Raises InputError unless the folder's tensors are exactly the model's: names, shapes and a float dtype."""
    with Checkpoint(folder) as checkpoint:
        checkpoint.compare(model)


def fill(
    model: Llama,
    folder: Path,
    local: Local = lambda parameter: (parameter, 0),
    copy: Callable[[Tensor, Tensor], object] = Tensor.copy_,
    within: torch.dtype | None = None,
) -> None:
    """Reads into every parameter of the model the rows that are held here; nothing else is read.

    copy: takes what is held of a parameter and its rows, in the file's dtype; they are converted as a rule. within: a
    dtype whose range the weights have to keep, because they will be written in it. Raises InputError where the folder
    does not fit the model, or the dtype.
    """
    with Checkpoint(folder) as checkpoint, torch.no_grad():
        checkpoint.compare(model)
        for name, parameter in model.named_parameters():
            held, start = local(parameter)
            rows = checkpoint.rows(checkpoint_name(name), start, start + held.shape[0])
            check_finite(folder, checkpoint_name(name), rows)
            if within is not None:
                with placed(folder):
                    check_range(checkpoint_name(name), rows, within)
            copy(held, rows)


def check_finite(folder: Path, name: str, rows: Tensor) -> None:
    """Raises InputError where a number of a folder's tensor is none."""
    if rows.numel() and not torch.stack(rows.aminmax()).isfinite().all():  # no copy of the rows for the look
        raise InputError(f"{folder}: {name} holds NaN or infinity; copy the weights anew")


class Checkpoint:
    """The safetensors files of a folder, opened once."""

    def __init__(self, folder: Path) -> None:
        """Raises InputError where there are none, one is missing or damaged, or the index reaches out of the folder."""
        self.folder = folder
        index = folder / INDEX
        self._weight_map = _read_index(index) if index.is_file() else None
        if self._weight_map is None:
            _check_has_weights(folder)
        self._stack = ExitStack()
        self._open: dict[str, BinaryIO] = {}
        self._tensors: dict[str, safetensors_header.Entry] = {}
        self._where: dict[str, str] = {}
        try:
            for name in sorted(set(self._weight_map.values())) if self._weight_map else ["model.safetensors"]:
                self._open_file(name)
            if self._weight_map is not None:
                self._check_index(index)
        except InputError:
            self._stack.close()
            raise

    def _open_file(self, name: str) -> None:
        path = self.folder / name
        for tensor, entry in safetensors_header.read(path).items():
            if tensor in self._where:
                raise InputError(f"{path}: {tensor} stands in {self._where[tensor]} too; copy the folder anew")
            self._where[tensor], self._tensors[tensor] = name, entry
        try:
            file = open(path, "rb", buffering=0)  # noqa: SIM115 (closed with the stack)
        except OSError as fault:
            raise InputError(f"{path}: cannot be read ({fault.strerror}); copy it anew") from None
        self._open[name] = self._stack.enter_context(file)

    def _check_index(self, index: Path) -> None:
        """Raises InputError unless the index names just what the files hold, and all shards that lie beside it."""
        named = self._weight_map or {}
        for tensor, file in named.items():
            if self._where.get(tensor) != file:
                raise InputError(f"{index}: {tensor} is not in {file}; copy the folder anew")
        for tensor, file in self._where.items():
            if tensor not in named and not _IGNORED.fullmatch(tensor):
                raise InputError(f"{index}: does not name {tensor}, which is in {file}; copy the folder anew")
        stray = sorted(p.name for p in self.folder.glob("model-*-of-*.safetensors") if p.name not in named.values())
        if stray:
            raise InputError(f"{index}: does not name {stray[0]}, which lies beside it; copy the folder anew")

    def __enter__(self) -> "Checkpoint":
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def rows(self, name: str, start: int, stop: int) -> Tensor:
        """Rows start to stop of a tensor, read from the file and nothing more.

        Not through a map of the file, of which a process dies where the file is cut meanwhile: raises InputError.
        """
        entry, file = self._tensors[name], self._open[self._where[name]]
        dtype = DTYPES[entry.dtype]
        width = math.prod(entry.shape[1:]) * dtype.itemsize
        found = torch.empty((stop - start) * width, dtype=torch.uint8)
        left, offset = found.numpy().data, entry.start + start * width
        while left:
            n = os.preadv(file.fileno(), [left[: 2**30]], offset)
            if n == 0:
                raise InputError(f"{self.folder / self._where[name]}: was cut while it was read; copy it anew")
            left, offset = left[n:], offset + n
        return found.view(dtype).view(stop - start, *entry.shape[1:])

    def compare(self, model: Llama) -> None:
        """Raises InputError unless names, shapes and dtypes are the model's."""
        expected = {checkpoint_name(n): tuple(p.shape) for n, p in model.named_parameters()}
        extra = [n for n in self._where if n not in expected and not _IGNORED.fullmatch(n)]
        if model.config.tied:
            extra = [n for n in extra if n != "lm_head.weight"]
        for what, found in (("lacks", [n for n in expected if n not in self._where]), ("has the unknown", extra)):
            if found:
                more = f" and {len(found) - 1} more" if len(found) > 1 else ""
                raise InputError(
                    f"{self.folder}: {what} {found[0]}{more}; weights and config.json have to belong together"
                )
        announced = _announced_dtype(model.config.raw)
        for name, shape in expected.items():
            path, entry = self.folder / self._where[name], self._tensors[name]
            if entry.shape != shape:
                raise InputError(
                    f"{path}: {name} is {list(entry.shape)}, config.json says {list(shape)}; "
                    "weights and config.json have to belong together"
                )
            kind = entry.dtype
            if kind not in DTYPES:
                raise InputError(f"{path}: {name} is {kind}; it has to be {', '.join(DTYPES)}")
            if announced is not None and kind not in (announced, "F32"):  # float32 holds whatever was announced
                raise InputError(
                    f"{path}: {name} is {kind}, config.json announces {announced}; correct the one or the other"
                )

    def dtype(self) -> torch.dtype:
        """The dtype of the embedding, which stands for the folder's."""
        return DTYPES[self._tensors[checkpoint_name("embed.weight")].dtype]


def _read_index(index: Path) -> dict[str, str]:
    """Which file holds each tensor. Raises InputError where a name could lead out of the folder."""
    weight_map = read_json(index).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map or not all(isinstance(f, str) for f in weight_map.values()):
        raise InputError(f"{index}: no weight_map of tensor names to files; copy it anew")
    for file in sorted(set(weight_map.values())):
        if not re.fullmatch(r"[\w-][\w.-]*\.safetensors", file):
            raise InputError(
                f"{index}: {file!r} is not a .safetensors file in this folder; files beside the index only"
            )
    return weight_map


def _check_has_weights(folder: Path) -> None:
    if not os.path.lexists(folder / "model.safetensors"):
        pickles = [p.name for p in folder.glob("*.bin")] + [p.name for p in folder.glob("*.p*t*")]
        what = f"only pickles ({pickles[0]}), which can run code" if pickles else "no model.safetensors"
        raise InputError(f"{folder}: {what}; give a folder with safetensors weights")


@contextmanager
def placed(folder: Path) -> Iterator[None]:
    """Puts the folder before what an InputError says of one of its tensors."""
    try:
        yield
    except InputError as fault:
        raise InputError(f"{folder}: {fault}") from None


def stored_dtype(folder: Path) -> torch.dtype:
    """The dtype that a folder's weights are stored in. Raises InputError."""
    with Checkpoint(folder) as checkpoint:
        return checkpoint.dtype()


@functools.cache
def say_if_rounded(folder: Path, dtype: torch.dtype) -> None:
    """Says once of a folder where who computes in that dtype rounds its weights."""
    stored = stored_dtype(folder)
    if is_narrower(dtype, stored):
        cli.notify(
            f"{folder}: holds {name_of(stored)} weights, which are rounded to {name_of(dtype)} to compute with; "
            f"--dtype float32 computes with all of their digits, and engine.convert writes a {name_of(dtype)} folder"
        )


def _announced_dtype(raw: dict[str, Any]) -> str | None:
    """The dtype that a config.json promises, as safetensors calls it; None where it promises none that is known."""
    named = raw.get("dtype", raw.get("torch_dtype"))
    known = {str(dtype).removeprefix("torch."): name for name, dtype in DTYPES.items()}
    return known.get(named) if isinstance(named, str) else None
