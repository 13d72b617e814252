"""Adapter folders in PEFT's format, read into a model beside its frozen base (adapter_writing.py writes them).

adapter_config.json        rank, alpha, targets, the base (adapter_config.py)
adapter_model.safetensors  A and B of each layer in float32, by the names of transformers' modules; what trains whole
engine.json                how the base was held while it trained: base_dtype
tokenizer, README.md       as in any folder of a run; no config.json, by which it would be taken for a model
"""

import re
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from data.rows import name_of_base
from data.text import Tokenizer, has_tokenizer, read_json
from engine.model import Adapter, Transformer, adapters
from engine.weights.adapter_config import CONFIG, OWN, TENSORS, read_config, targets_of
from engine.weights.checkpoint import Checkpoint
from engine.weights.names import DTYPES
from engine.weights.tensor_files import TensorFiles
from system import InputError, digests

PREFIX = "base_model.model."
HELD = ("float32", "bfloat16", "int8", "nf4")
Local = Callable[[Tensor], tuple[Tensor, int]]


@dataclass(frozen=True)
class AdapterFolder:
    """An adapter on disk, whose config and names of tensors were read and found to be consistent."""

    folder: Path
    raw: Mapping[str, Any]
    """adapter_config.json."""
    modules: tuple[str, ...]
    """The layers whose tensors are there, by their whole names, sorted."""
    whole: tuple[str, ...]
    """Which of lm_head and embed_tokens are there whole."""
    base_dtype: str | None
    """How the base was held in training; None where the folder does not say."""

    @property
    def base(self) -> str | None:
        """What it calls its base: a hub id or a path."""
        return name_of_base(self.folder)

    def digests(self) -> list[bytes]:
        """SHA-256 of the files that say what it computes on a base."""
        return digests([self.folder / name for name in (CONFIG, TENSORS)])

    @property
    def adapter(self) -> Adapter:
        """Its description."""
        return Adapter(
            rank=self.raw["r"],
            alpha=self.raw["lora_alpha"],
            rslora=bool(self.raw.get("use_rslora")),
            modules=self.modules,
            whole=self.whole,
        )

    def check(self, model: Transformer, base: Path) -> None:
        """Raises InputError unless it is an adapter of that model: layers, targets, shapes. base: its folder."""
        layers = adapters.layers_of(model)
        if unknown := [name for name in self.modules if name not in layers]:
            if model.config.names.is_carried(unknown[0]):
                raise InputError(
                    f"{self.folder}: has an adapter for {unknown[0]}, a part that is not trained here (such as a "
                    "vision tower); use one of the language model only (exclude_modules in PEFT)"
                )
            raise InputError(
                f"{self.folder}: has an adapter for {unknown[0]}, which {base} lacks; give the base that it was "
                "trained on"
            )
        self._check_targets(layers)
        try:
            adapters.check_fits(model, self.adapter)
        except InputError as fault:
            raise InputError(f"{self.folder}: {fault}") from None
        self._check_shapes(model, base)

    def _check_targets(self, layers: Collection[str]) -> None:
        """Raises InputError unless target_modules means the layers whose tensors are there."""
        meant = self._meant(layers)
        if meant != self.modules:
            odd = sorted(set(meant) ^ set(self.modules))[0]
            says = "names" if odd in meant else "does not name"
            has = "no tensors of it" if odd in meant else "tensors of it"
            raise InputError(
                f"{self.folder / CONFIG}: target_modules {says} {odd}, and {TENSORS} has {has}; copy the folder again"
            )

    def _check_shapes(self, model: Transformer, base: Path) -> None:
        """Raises InputError unless its tensors are the model's. base: its folder."""
        path, expected = self.folder / TENSORS, tensors_of(model, self.adapter)
        with TensorFiles(self.folder, [TENSORS]) as files:
            if unknown := sorted(files.tensors.keys() - expected.keys()):
                raise InputError(f"{path}: has {unknown[0]}, which {base} lacks; give the base that it was trained on")
            for name, (_, shape) in expected.items():
                if name not in files.tensors:
                    raise InputError(f"{path}: lacks {name}; copy the folder again")
                found = files.tensors[name].shape
                if found != shape:
                    raise InputError(
                        f"{path}: {name} is {list(found)}, and with {base} and {CONFIG} it is {list(shape)}; give the "
                        "base that it was trained on"
                    )

    def _meant(self, layers: Collection[str]) -> tuple[str, ...]:
        """The layers of a model that its config names: what target_modules says but for exclude_modules."""
        key = "target_modules"
        try:
            meant = adapters.select(layers, targets_of(self.raw))
            key = "exclude_modules"
            excluded = set(_excluded(layers, self.raw.get("exclude_modules")))
        except InputError as fault:
            raise InputError(f"{self.folder / CONFIG}: {key}: {fault}") from None
        return tuple(name for name in meant if name not in excluded)


def _excluded(layers: Collection[str], asked: str | list[str] | None) -> list[str]:
    """The layers that exclude_modules means, as in PEFT: an expression over whole names, or the ends of names.

    Raises InputError for an expression that is none.
    """
    if isinstance(asked, str):
        return adapters.matching(layers, asked)
    return [layer for one in asked or () for layer in adapters.ending(layers, one)]


def read_adapter(folder: Path) -> AdapterFolder:
    """An adapter's config, and the names of its tensors. Raises InputError where it cannot be used."""
    raw = read_config(folder)
    if not (folder / TENSORS).is_file():
        if (folder / "adapter_model.bin").is_file():
            raise InputError(
                f"{folder}: adapter_model.bin is a pickle file, which can run code when it is loaded; save it again "
                "with safe_serialization=True"
            )
        raise InputError(f"{folder}: no {TENSORS}; copy the folder again")
    with TensorFiles(folder, [TENSORS]) as files:
        found: dict[str, set[str]] = {}
        whole = []
        for name, entry in files.tensors.items():
            module, side = _parsed(folder / TENSORS, name)
            if entry.dtype not in DTYPES:
                raise InputError(f"{folder / TENSORS}: {name} is {entry.dtype}; it has to be {', '.join(DTYPES)}")
            if side == "whole":
                whole.append(module)
                continue
            found.setdefault(module, set()).add(side)
            rank = entry.shape[0 if side == "A" else -1] if len(entry.shape) == 2 else None
            if rank != raw["r"]:
                raise InputError(
                    f"{folder / TENSORS}: {name} is {list(entry.shape)}, and r of {CONFIG} is {raw['r']}; they have to "
                    "belong together"
                )
    for module, sides in found.items():
        if len(sides) == 1:
            missing = "B" if "A" in sides else "A"
            raise InputError(f"{folder / TENSORS}: lacks {PREFIX}{module}.lora_{missing}.weight; copy the folder again")
    _check_whole(folder, set(whole), set(raw.get("modules_to_save") or ()))
    return AdapterFolder(folder, raw, tuple(sorted(found)), tuple(sorted(whole)), _held(folder))


def _check_whole(folder: Path, found: set[str], named: set[str]) -> None:
    """Raises InputError unless modules_to_save names what is there whole."""
    if lacking := sorted(named - found):
        raise InputError(
            f"{folder / CONFIG}: modules_to_save names {lacking[0]}, and {TENSORS} lacks it; copy the folder again"
        )
    if unnamed := sorted(found - named):
        raise InputError(
            f"{folder / TENSORS}: has {unnamed[0]} whole, which modules_to_save of {CONFIG} does not name (PEFT puts "
            "it there where a vocabulary was resized); name it there if it has trained, or save the adapter without it "
            "(save_embedding_layers=False)"
        )


def _parsed(path: Path, name: str) -> tuple[str, str]:
    """(module, "A" or "B"), or (lm_head or embed_tokens, "whole"), of a tensor's name. Raises InputError."""
    if not name.startswith(PREFIX):
        raise InputError(f"{path}: {name} does not begin with {PREFIX}; PEFT would load nothing of it: save it again")
    if match := re.fullmatch(r"(.+)\.lora_(?:embedding_)?([AB])(?:\.weight)?", name.removeprefix(PREFIX)):
        module = match[1]
        if module.rpartition(".")[2] in adapters.WHOLE or "lora_embedding" in name:
            raise InputError(f"{path}: {name}: adapters of head and embedding are not supported; train them whole")
        return module, match[2]
    if match := re.fullmatch(r"(?:.+\.)?(lm_head|embed_tokens)\.weight", name.removeprefix(PREFIX)):
        return match[1], "whole"
    if "lora_magnitude_vector" in name:
        raise InputError(f"{path}: {name} belongs to DoRA, which is not supported; use an adapter without it")
    raise InputError(f"{path}: has an unknown tensor, {name}; give an adapter whose tensors are lora_A and lora_B")


def _held(folder: Path) -> str | None:
    """base_dtype of engine.json."""
    if not (folder / OWN).is_file():
        return None
    found = read_json(folder / OWN).get("base_dtype")
    if found not in HELD:
        raise InputError(f"{folder / OWN}: base_dtype is {found!r}; it has to be {', '.join(HELD)}")
    return found


def check_vocabulary(found: AdapterFolder, base: Path, n_rows: int) -> None:
    """Raises InputError where an adapter's tokenizer has other words than its base's, or has more than the base has
    rows for. n_rows: these. Its added tokens may be called otherwise: a chat template's take the place of spare ones.
    """
    if not has_tokenizer(found.folder):
        return
    theirs = Tokenizer(found.folder)
    ours = Tokenizer(base) if has_tokenizer(base) else None
    if theirs.n_ids > max(n_rows, 0 if ours is None else ours.n_ids):
        raise InputError(
            f"{found.folder}: its tokenizer has {theirs.n_ids:,} tokens, and {base} has rows for {n_rows:,}; give the "
            "base that it was trained on"
        )
    if ours is None:
        return
    words, known = theirs.words(), ours.words()
    added = {*theirs.added.values(), *ours.added.values()}
    for i in sorted(words.keys() & known.keys() - added):
        if words[i] != known[i]:
            raise InputError(
                f"{found.folder}: token {i} of its tokenizer is {words[i]!r}, and {known[i]!r} in {base}; give the "
                "base that it was trained on"
            )


def tensors_of(model: Transformer, adapter: Adapter) -> dict[str, tuple[list[tuple[str, int]], tuple[int, ...]]]:
    """Of each tensor of an adapter's file: our parameters with their first rows in it, and its shape."""
    inside = replace(model.config, names=model.config.names.inside)
    layers, made = adapters.layers_of(model), {}
    for module in adapter.modules:
        parts = layers[module]
        sizes = [inside.place(f"{part.name}.weight") for part in parts]
        matrices = [model.get_submodule(part.name) for part in parts]
        n_in = _shape(matrices[0])[1]
        n_out = sizes[-1].first + _shape(matrices[-1])[0]
        made[f"{PREFIX}{module}.lora_A.weight"] = ([(f"{parts[0].name}.lora_A", 0)], (adapter.rank, n_in))
        of_b = [(f"{part.name}.lora_B", part.first) for part in parts]
        made[f"{PREFIX}{module}.lora_B.weight"] = (of_b, (n_out, adapter.rank))
    for name in adapter.whole:
        ours = f"{adapters.WHOLE[name]}.weight"
        shape = (model.config.vocab_size, model.config.hidden_size)
        made[f"{PREFIX}{inside.place(ours).tensor}"] = ([(ours, 0)], shape)
    return made


def _shape(module: Any) -> tuple[int, int]:
    return module.out_features, module.in_features


def fill_adapter(model: Transformer, found: AdapterFolder, local: Local = lambda parameter: (parameter, 0)) -> None:
    """Reads an adapter's tensors into a model that has it, each process the rows that it holds. Raises InputError."""
    parameters = adapters.own_parameters(model)
    with TensorFiles(found.folder, [TENSORS]) as files, torch.no_grad():
        for name, (ours, _) in tensors_of(model, found.adapter).items():
            for parameter, offset in ours:
                held, first = local(parameters[parameter])
                rows = files.rows(name, offset + first, offset + first + held.shape[0])
                _check_finite(found.folder, name, rows)
                held.copy_(rows)


def fill_whole(view: Transformer, folder: Path) -> None:
    """Reads head and embedding that such a reference has of its own from the base's folder. Raises InputError."""
    if not view.own_ends:
        return
    with Checkpoint(folder) as checkpoint, torch.no_grad():
        for name in sorted(view.own_ends):
            weight = getattr(view, name).weight
            weight.copy_(checkpoint.part(view.config.place(f"{name}.weight"), 0, weight.shape[0]))


def draw_adapter(model: Transformer, seed: int, local: Local = lambda parameter: (parameter, 0)) -> None:
    """A and B of a fresh adapter: drawn, and zeros, so that the model computes what its base does."""
    with torch.no_grad():
        for name, parameter in adapters.own_parameters(model).items():
            if name.endswith(("lora_A", "lora_B")):
                held, first = local(parameter)
                held.copy_(adapters.initial(name, tuple(parameter.shape), seed)[first : first + held.shape[0]])


def _check_finite(folder: Path, name: str, rows: Tensor) -> None:
    if rows.numel() and not rows.isfinite().all():
        raise InputError(f"{folder / TENSORS}: {name} holds NaN or infinity; copy the folder again")
