"""Hugging Face checkpoint folders: read straight into a model, and written back as transformers and vLLM read them.

build   config.json -> a model on the meta device: shapes, no memory
fill    each parameter's rows -> the part of it that is held here (all of it, or a rank's shard)
load    both, for a model held whole
save    a model -> safetensors shards, index, config, generation config, the tokenizer that came with it
"""

import functools
import json
import math
import os
import re
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from pathlib import Path
from typing import Any, BinaryIO, Protocol

import torch
from torch import Tensor

from data import InputError, cli
from data.faults import point
from data.files import naming, sync, temporary_of, whole_folder
from data.tokenizer import FILES as TOKENIZER_FILES
from data.tokenizer import read_json
from engine import safetensors_header
from engine.llama import Llama, LlamaConfig
from engine.rounding import Cast, check_range, is_narrower, name_of

Local = Callable[[Tensor], tuple[Tensor, int]]
"""The part of a parameter that is held here, and its first row: (parameter, 0) where it is held whole."""

DTYPES = {"BF16": torch.bfloat16, "F16": torch.float16, "F32": torch.float32, "F64": torch.float64}
SHARD_BYTES = 5 * 10**9
INDEX = "model.safetensors.index.json"
_NAMES = {  # ours -> Hugging Face's
    "embed": "model.embed_tokens",
    "norm": "model.norm",
    "head": "lm_head",
    "attention_norm": "input_layernorm",
    "mlp_norm": "post_attention_layernorm",
    **{f"attention.{x}": f"self_attn.{x}_proj" for x in "qkvo"},
    **{f"mlp.{x}": f"mlp.{x}_proj" for x in ("gate", "up", "down")},
}
# Buffers that older releases carry, and the copy of the embedding that some tied checkpoints do.
_IGNORED = re.compile(r".*rotary_emb\.inv_freq")


def checkpoint_name(name: str) -> str:
    """Hugging Face's name of one of our parameters: blocks.3.mlp.up.weight is model.layers.3.mlp.up_proj.weight."""
    match = re.fullmatch(r"(?:blocks\.(\d+)\.)?(.+)\.weight", name)
    assert match is not None  # every parameter of a Llama is a weight
    layer = "" if match[1] is None else f"model.layers.{match[1]}."
    return f"{layer}{_NAMES[match[2]]}.weight"


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
    put: Callable[[Tensor, Tensor], object] = Tensor.copy_,
    within: torch.dtype | None = None,
) -> None:
    """Reads into every parameter of the model the rows that are held here; nothing else is read.

    put: takes what is held of a parameter and its rows, in the file's dtype; they are converted as a rule. within: a
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
            put(held, rows)


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


class Parts(Protocol):
    """Who holds which rows of a model (engine/parallel.py), as far as saving it is concerned."""

    @property
    def is_first(self) -> bool:
        """Whether this process writes what is beside the tensors."""
        ...

    @property
    def holds_first_copy(self) -> bool:
        """Whether its rows are to be written: they are no copy of another's."""
        ...

    def local(self, parameter: Tensor) -> tuple[Tensor, int]:
        """The rows of a parameter that are held here, and the first one's number."""
        ...

    def whole(self, parameter: Tensor) -> Tensor:
        """A parameter gathered. Collective."""
        ...

    def all_see(self, folder: Path) -> bool:
        """Whether a folder is the same one for every process. Collective."""
        ...

    def wait(self) -> None:
        """Returns when every process has come here. Collective."""
        ...


class Alone:
    """One process that holds everything."""

    is_first = holds_first_copy = True

    def local(self, parameter: Tensor) -> tuple[Tensor, int]:
        """All of it."""
        return parameter, 0

    def whole(self, parameter: Tensor) -> Tensor:
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
    parts: Parts | None = None,
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
    parts = parts or Alone()
    cast = cast or Cast(dtype=dtype or next(model.parameters()).dtype)
    dtype = cast.dtype
    tensors = {checkpoint_name(n): p for n, p in model.named_parameters()}
    shards = _shards([(name, tuple(p.shape)) for name, p in tensors.items()], dtype, shard_bytes)
    temporary = temporary_of(Path(folder))
    with whole_folder(Path(folder), replaces=replaces) if parts.is_first else nullcontext():
        files = {temporary / name: _layout(shapes, dtype) for name, shapes in shards.items()}
        if parts.is_first:
            for path, (header, _, size) in files.items():
                _reserve(path, header, size)
        shared = parts.all_see(temporary)
        for path, (_, starts, _) in files.items():
            for name, start in starts.items():
                held, first = parts.local(tensors[name]) if shared else (parts.whole(tensors[name]), 0)
                if parts.holds_first_copy if shared else parts.is_first:
                    with placed(Path(folder)):
                        rows = cast(name, held, first)
                    _write_rows(path, rows, start, first)
            if shared or parts.is_first:
                sync(path)  # each process what it wrote
        parts.wait()  # all rows are there before the folder gets its name
        if parts.is_first:
            _write_beside(model, temporary, shards, dtype, stop_ids, beside or {})


def _write_beside(
    model: Llama, folder: Path, shards: Mapping[str, list], dtype: torch.dtype, stop_ids: Sequence[int],
    beside: Mapping[str, str],
) -> None:  # fmt: skip
    """Everything in a checkpoint folder but the tensors."""
    if len(shards) > 1:
        total = sum(p.numel() * dtype.itemsize for p in model.parameters())
        index = {"metadata": {"total_size": total}, "weight_map": {n: f for f, ts in shards.items() for n, _ in ts}}
        _write_json(folder / INDEX, index)
    _write_json(folder / "config.json", _config_for(model.config.raw, dtype))
    _write_json(folder / "generation_config.json", _generation_config(model.source, model.config.raw, stop_ids))
    for name in TOKENIZER_FILES:
        if model.source and (model.source / name).is_file():
            shutil.copyfile(model.source / name, folder / name)
    for name, text in beside.items():
        if not (folder / name).exists():
            (folder / name).write_text(text, encoding="utf-8")


def _shards(tensors: list[tuple[str, tuple[int, ...]]], dtype: torch.dtype, limit: int) -> dict[str, list]:
    """Files of at most `limit` bytes (one tensor at least) and the tensors in each, in order."""
    groups: list[list[tuple[str, tuple[int, ...]]]] = []
    filled = 0
    for name, shape in tensors:
        size = torch.Size(shape).numel() * dtype.itemsize
        if not groups or filled + size > limit:
            groups.append([])
            filled = 0
        groups[-1].append((name, shape))
        filled += size
    if len(groups) == 1:
        return {"model.safetensors": groups[0]}
    return {f"model-{i:05d}-of-{len(groups):05d}.safetensors": group for i, group in enumerate(groups, start=1)}


def _layout(shapes: list, dtype: torch.dtype) -> tuple[bytes, dict[str, int], int]:
    """A safetensors file: its head, where in it each tensor begins, and its size in bytes.

    8 bytes of header length, a JSON header, the tensors' bytes one after the other. Made here because the library's
    save_file takes all tensors at once and ignores the umask (mode 0600).
    """
    kind = next(name for name, known in DTYPES.items() if known == dtype)
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    starts: dict[str, int] = {}
    offset = 0
    for name, shape in shapes:
        end = offset + torch.Size(shape).numel() * dtype.itemsize
        header[name] = {"dtype": kind, "shape": list(shape), "data_offsets": [offset, end]}
        starts[name], offset = offset, end
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    head = len(text).to_bytes(8, "little") + text
    return head, {name: start + len(head) for name, start in starts.items()}, len(head) + offset


def _reserve(path: Path, head: bytes, size: int) -> None:
    """A file of its full size, with its head: a disk that is too full shows here."""
    point("write", path)
    with naming(path), open(path, "xb") as file:
        os.posix_fallocate(file.fileno(), 0, size)
        file.write(head)


def _write_rows(path: Path, rows: Tensor, start: int, first: int) -> None:
    """Rows of a tensor, from the first-th on, into a file in which the tensor begins at byte `start`."""
    rows = _on_host(rows.contiguous())
    if not rows.numel():
        return
    point("write", path)
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


def _announced_dtype(raw: dict[str, Any]) -> str | None:
    """The dtype that a config.json promises, as safetensors calls it; None where it promises none that is known."""
    named = raw.get("dtype", raw.get("torch_dtype"))
    known = {str(dtype).removeprefix("torch."): name for name, dtype in DTYPES.items()}
    return known.get(named) if isinstance(named, str) else None


def _config_for(raw: dict[str, Any], dtype: torch.dtype) -> dict[str, Any]:
    keys = [key for key in ("dtype", "torch_dtype") if key in raw] or ["dtype"]  # transformers 5 writes the former
    return raw | dict.fromkeys(keys, name_of(dtype))


def _generation_config(source: Path | None, raw: dict[str, Any], stop_ids: Sequence[int]) -> dict[str, Any]:
    path = source / "generation_config.json" if source else None
    made = read_json(path) if path and path.is_file() else {k: raw[k] for k in ("bos_token_id",) if k in raw}
    if stop_ids:
        made["eos_token_id"] = list(stop_ids) if len(stop_ids) > 1 else stop_ids[0]
    return made


def _write_json(path: Path, value: dict[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
