"""What is needed of a model's folder beside its weights, so that who has read it needs the folder no more.

read_beside    its tokenizer and generation_config.json: what goes into every folder that is written
keep           these, its config.json, and which weights they belong to, in a folder of a run (state/model)

A run that goes on where the model's folder is gone opens the kept one in its place: all but `fill` can be answered.
"""

import codecs
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from data.rows import base_of, is_adapter
from data.text import read_json, tokenizer_files
from engine.model import ModelConfig, StoredDtypes, Transformer, name_of
from engine.weights.adapter_config import CONFIG, OWN, TENSORS
from engine.weights.carried import CARRIED, Carried, write_kept
from engine.weights.checkpoint import Checkpoint, carried_of
from engine.weights.tensor_files import TensorFiles
from system import InputError, digests, whole_folder, write_json

GENERATION = "generation_config.json"
BESIDE = (GENERATION, "preprocessor_config.json", "processor_config.json", "video_preprocessor_config.json")
"""What belongs to a model beside its tokenizer: how it samples, and how a model that sees is shown images."""
WEIGHTS = "weights.json"
"""Of a kept folder: which weights they were. No model's folder has a file of that name."""
TEXT_KINDS = (".json", ".jinja", ".txt")


def read_beside(folder: Path) -> dict[str, bytes]:
    """The files beside the weights that belong to the model, by relative path: byte for byte, but for a byte order
    mark, behind which transformers reads no JSON.
    """
    names = [*tokenizer_files(folder), *(name for name in BESIDE if (folder / name).is_file())]
    return {name: _unmarked(folder / name) for name in names}


def _unmarked(file: Path) -> bytes:
    content = file.read_bytes()
    return content.removeprefix(codecs.BOM_UTF8) if file.suffix in TEXT_KINDS else content


def file_digests(folder: Path) -> list[bytes]:
    """SHA-256 of each file that says what the model computes: of weights, and config.json, in the order of their names;
    of an adapter's folder its own, with how the base is held (engine.json), and the base's. Costs a read of them.
    """
    if (facts := _facts(folder)) is not None:
        return [bytes.fromhex(one) for one in facts["sha256"]]
    if is_adapter(folder):
        own = [path for name in (CONFIG, TENSORS, OWN) if (path := folder / name).is_file()]
        return [*digests(own), *file_digests(base_of(folder))]
    return digests(sorted([*folder.glob("*.safetensors"), folder / "config.json"]))


def keep(model: Transformer, folder: Path, source: str, sha256: Sequence[bytes], stored: StoredDtypes) -> None:
    """Writes what is kept of a model, whole or not at all, in the place of what was kept before.

    source: what the user called it. sha256: `file_digests`. stored: the dtypes of its weights.
    """
    others = {name: name_of(dtype) for name, dtype in stored.others.items()}
    facts = {"model": source, "sha256": [one.hex() for one in sha256], "dtype": name_of(stored.main)}
    with whole_folder(folder, replaces=True) as temporary:
        for name, content in (model.beside or {}).items():
            (temporary / name).parent.mkdir(parents=True, exist_ok=True)
            (temporary / name).write_bytes(content)
        write_kept(temporary, read_carried(model))
        write_json(temporary / "config.json", model.config.raw)
        sizes = {"extra_bytes": stored.extra_bytes, "carried_bytes": stored.carried_bytes}
        names = model.config.names
        found = {"tied": model.config.tied, "body": names.body, "before_head": names.before_head}
        write_json(temporary / WEIGHTS, facts | {"others": others} | sizes | found)


def is_kept(folder: Path) -> bool:
    """Whether a folder is one that was kept: it has no weights."""
    return (folder / WEIGHTS).is_file()


def kept_dtypes(folder: Path) -> StoredDtypes | None:
    """The dtypes of the weights that a kept folder is of; None where it is a model's own."""
    if (facts := _facts(folder)) is None:
        return None
    others = {name: getattr(torch, dtype) for name, dtype in facts["others"].items()}
    return StoredDtypes(getattr(torch, facts["dtype"]), others, facts["extra_bytes"], facts.get("carried_bytes", 0))


def kept_as_found(config: ModelConfig, folder: Path) -> ModelConfig:
    """`Checkpoint.found`'s, of the weights that a kept folder is of."""
    facts = _facts(folder)
    assert facts is not None  # who calls has looked
    names = replace(config.names, body=facts["body"], before_head=facts["before_head"])
    return replace(config, names=names, tied=facts["tied"])


def read_carried(model: Transformer, *, with_bytes: bool = True) -> dict[str, Carried]:
    """What a model's folder has that does not train and goes into every folder written: byte for byte, by name.

    with_bytes: or else what kind of tensors they are, which is all that a process needs that does not write them.
    """
    if model.carried is not None:
        return model.carried
    if model.source is None or not model.config.names.carried:
        return {}
    if is_kept(model.source):
        return kept_carried(model.source, with_bytes=with_bytes)
    with Checkpoint(model.source) as checkpoint:
        return checkpoint.carried(model.config, with_bytes=with_bytes)


def kept_carried(folder: Path, *, with_bytes: bool = True) -> dict[str, Carried]:
    """What a kept folder's model carries through."""
    if not (folder / CARRIED).is_file():
        return {}
    with TensorFiles(folder, [CARRIED]) as files:
        return {name: carried_of(files, name, with_bytes=with_bytes) for name in files.tensors}


def check_has_weights(folder: Path, why: str) -> None:
    """Raises InputError where a folder is a kept one. why: what its weights would be needed for."""
    if (facts := _facts(folder)) is not None:
        raise InputError(f"{facts['model']}: no such folder, and {why}; put it back there")


def _facts(folder: Path) -> dict[str, Any] | None:
    return read_json(folder / WEIGHTS) if is_kept(folder) else None
