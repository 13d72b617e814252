"""Writes a model as a checkpoint folder that transformers and vLLM load.

Safetensors shards, the index, config.json, generation_config.json, and the tokenizer that the model came with: all of
it, or nothing.
"""

import json
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from engine.model import ModelConfig, Transformer, architecture_of, name_of
from engine.weights.carried import of_buffers, write_carried
from engine.weights.kept import GENERATION, read_beside, read_carried
from engine.weights.names import INDEX
from engine.weights.reading import placed
from engine.weights.rounding import Cast
from engine.weights.shard_file import KINDS, Stored, divided, layout, reserve, write_rows
from system import sync, temporary_of, whole_folder

SHARD_BYTES = 5 * 10**9


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
    model: Transformer,
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
    parameters = list(model.named_parameters())
    places = {name: model.config.place(name) for name, _ in parameters}
    carried = read_carried(model)
    carried = of_buffers(model, carried) | carried
    tensors = [*_tensors(model, cast), *(tensor.stored(name) for name, tensor in carried.items())]
    shards = divided(tensors, shard_bytes)
    temporary = temporary_of(Path(folder))
    with whole_folder(Path(folder), replaces=replaces) if parts.is_rank0 else nullcontext():
        files = {temporary / name: layout(stored) for name, stored in shards.items()}
        if parts.is_rank0:
            for path, (header, _, size) in files.items():
                reserve(path, header, size)
        shared = parts.all_see(temporary)
        where = {tensor: (path, start) for path, (_, starts, _) in files.items() for tensor, start in starts.items()}
        for name, parameter in parameters:
            tensor, offset = places[name]
            held, first = parts.local(parameter) if shared else (parts.full_tensor(parameter), 0)
            if parts.holds_first_copy if shared else parts.is_rank0:
                with placed(Path(folder)):
                    rows = cast(tensor, held, offset + first)
                path, start = where[tensor]
                write_rows(path, rows, start, offset + first)
        if parts.is_rank0:
            write_carried(where, carried)
        for path in files if shared or parts.is_rank0 else ():
            sync(path)  # each process what it wrote
        parts.wait()  # all rows are there before the folder gets its name
        if parts.is_rank0:
            _write_beside(model, temporary, shards, cast, stop_ids, beside or {})


def _tensors(model: Transformer, cast: Cast) -> list[Stored]:
    """What is written of a model's parameters: several of them make one tensor where a family fuses them."""
    made: dict[str, Stored] = {}
    for name, parameter in model.named_parameters():
        tensor, first = model.config.place(name)
        shape = (first + parameter.shape[0], *parameter.shape[1:])
        if tensor not in made or made[tensor].shape[0] < shape[0]:
            made[tensor] = Stored(tensor, shape, KINDS[cast.dtype_of(tensor)])
    return list(made.values())


def _write_beside(
    model: Transformer, folder: Path, shards: Mapping[str, list[Stored]], cast: Cast, stop_ids: Sequence[int],
    beside: Mapping[str, str],
) -> None:  # fmt: skip
    """Everything in a checkpoint folder but the tensors."""
    if len(shards) > 1:
        total = sum(tensor.n_bytes for stored in shards.values() for tensor in stored)
        where = {tensor.name: file for file, stored in shards.items() for tensor in stored}
        index = {"metadata": {"total_size": total}, "weight_map": where}
        _write_json(folder / INDEX, index)
    _write_json(folder / "config.json", _config_for(model.config, cast))
    files = {} if model.source is None else read_beside(model.source) if model.beside is None else model.beside
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    _write_json(folder / GENERATION, _generation_config(files.get(GENERATION), model.config.raw, stop_ids))
    for name, text in beside.items():  # a template that a run was given takes the place of the model's own
        (folder / name).write_text(text, encoding="utf-8")


def _config_for(config: ModelConfig, cast: Cast) -> dict[str, Any]:
    """As it was read, but for the dtype: of a wrapper's text part too, where that says one."""
    kind = {"architectures": [architecture_of(config)], "model_type": config.model_type}  # by which others tell it
    raw = config.raw | {key: config.raw.get(key) or value for key, value in kind.items()}
    keys = [key for key in ("dtype", "torch_dtype") if key in raw] or ["dtype"]  # transformers 5 writes the former
    if cast.others and any(raw.get(key) for key in keys):
        return raw  # several dtypes: which of them is announced was the source's choice
    raw = raw | dict.fromkeys(keys, name_of(cast.dtype))
    if isinstance(text := raw.get("text_config"), dict):
        said = [key for key in ("dtype", "torch_dtype") if text.get(key)]
        raw["text_config"] = text | dict.fromkeys(said, name_of(cast.dtype))
    return raw


def _generation_config(given: bytes | None, raw: dict[str, Any], stop_ids: Sequence[int]) -> dict[str, Any]:
    made = json.loads(given) if given is not None else {k: raw[k] for k in ("bos_token_id",) if k in raw}
    if stop_ids:
        made["eos_token_id"] = list(stop_ids) if len(stop_ids) > 1 else stop_ids[0]
    return made


def _write_json(path: Path, value: dict[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
