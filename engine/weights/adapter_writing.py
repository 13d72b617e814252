"""Writes an adapter's folder, as peft and vLLM load it (adapters.py has what is in it)."""

from collections.abc import Mapping
from contextlib import nullcontext
from pathlib import Path

import torch
from torch import Tensor

from engine.model import Transformer, adapters
from engine.weights.adapter_config import CONFIG, OWN, TENSORS, written
from engine.weights.adapters import tensors_of
from engine.weights.kept import BESIDE
from engine.weights.shard_file import KINDS, Stored, layout, reserve, write_rows
from engine.weights.writing import ShardAccess, SingleProcess
from system import sync, temporary_of, whole_folder, write_json


def save_adapter(
    model: Transformer,
    folder: str | Path,
    *,
    base: str,
    base_dtype: str,
    beside: Mapping[str, str] | None = None,
    parts: ShardAccess | None = None,
    held: Mapping[str, Tensor] | None = None,
    replaces: bool = False,
) -> None:
    """Writes an adapter's folder: all of it, or nothing. Collective where the model is sharded.

    base: the hub id or the absolute path of its base. base_dtype: how that was held. beside: text files that go into
    it, README.md say. held: other numbers than its own, by our names. Raises InputError where the folder exists, unless
    it is replaced.
    """
    parts = parts or SingleProcess()
    assert model.adapter is not None
    parameters, tensors = held or adapters.own_parameters(model), tensors_of(model, model.adapter)
    stored = [Stored(name, shape, KINDS[torch.float32]) for name, (_, shape) in tensors.items()]
    head, starts, size = layout(stored)
    temporary = temporary_of(Path(folder))
    with whole_folder(Path(folder), replaces=replaces) if parts.is_rank0 else nullcontext():
        path = temporary / TENSORS
        if parts.is_rank0:
            reserve(path, head, size)
        for name, (ours, _) in tensors.items():
            for parameter, offset in ours:
                whole = parts.full_tensor(parameters[parameter])
                if parts.is_rank0:
                    write_rows(path, whole.detach().float(), starts[name], offset)
        if parts.is_rank0:
            sync(path)
            write_json(temporary / CONFIG, written(model.adapter, adapters.targets_of(model), base))
            write_json(temporary / OWN, {"base_dtype": base_dtype})
            _write_beside(model, temporary, beside or {})


def _write_beside(model: Transformer, folder: Path, beside: Mapping[str, str]) -> None:
    """The tokenizer, and the texts."""
    for name, content in (model.beside or {}).items():
        if name not in BESIDE:  # which belong to a whole model
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_bytes(content)
    for name, text in beside.items():
        (folder / name).write_text(text, encoding="utf-8")
