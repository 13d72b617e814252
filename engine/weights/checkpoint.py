"""The weights of a checkpoint folder, opened and compared with the model that its config.json describes.

which files   model.safetensors, or the shards that the index names; refused where both lie there and are two models
compare       names, shapes and dtypes are the model's, and a tied head is its embedding
rows          of a tensor, read from the file and nothing more
"""

import functools
import os
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from data.text import read_json
from engine.model import (
    REMEDY,
    ModelConfig,
    Place,
    StoredDtypes,
    Transformer,
    adapters,
    is_narrower,
    name_of,
    quantised_tensor,
)
from engine.weights.carried import Carried
from engine.weights.names import DTYPES, INDEX, WHOLE
from engine.weights.tensor_files import TensorFiles
from system import InputError, cli

EMBEDDING, HEAD = "embed_tokens.weight", "lm_head.weight"  # what their names end in, in every family
# Buffers that older releases carry.
_IGNORED = re.compile(r".*rotary_emb\.inv_freq")
# Weights in files that are not read, beside those that are; what a trainer leaves besides is no model.
_OTHERS = ("*.safetensors", "pytorch_model*.bin", "consolidated.*.pth", "*.gguf")


class Checkpoint:
    """The safetensors files of a folder, opened once."""

    def __init__(self, folder: Path) -> None:
        """Raises InputError where there are none, one is missing or damaged, two models lie in the folder, or the index
        reaches out of it.
        """
        self.folder = folder
        index = folder / INDEX
        weight_map = _read_index(index) if index.is_file() else None
        named = set(weight_map.values()) if weight_map else set[str]()
        if weight_map is not None and _is_whole_beside(folder, weight_map):
            weight_map = None  # the same numbers, or shards that are not there
        if weight_map is None:
            _check_has_weights(folder)
        names = sorted(named) if weight_map else [WHOLE]
        self._files = TensorFiles(folder, names)
        self._tensors = self._files.tensors
        try:
            if weight_map is not None:
                self._check_index(index, weight_map)
        except InputError:
            self._files.close()
            raise
        _say_what_is_left(folder, {*names, *named})

    def _check_index(self, index: Path, named: dict[str, str]) -> None:
        """Raises InputError unless the index names just what the files hold, and all shards that lie beside it."""
        where = self._files.where
        for tensor, file in named.items():
            if where.get(tensor) != file:
                raise InputError(f"{index}: {tensor} is not in {file}; copy the folder again")
        for tensor, file in where.items():
            if tensor not in named and not _IGNORED.fullmatch(tensor):
                raise InputError(f"{index}: does not name {tensor}, which is in {file}; copy the folder again")
        stray = sorted(p.name for p in self.folder.glob("model-*-of-*.safetensors") if p.name not in named.values())
        if stray:
            raise InputError(f"{index}: does not name {stray[0]}, which lies beside it; copy the folder again")

    def __enter__(self) -> "Checkpoint":
        return self

    def __exit__(self, *_: object) -> None:
        self._files.close()

    def rows(self, name: str, start: int, stop: int) -> Tensor:
        """Rows start to stop of a tensor, read from the file and nothing more. Raises InputError where it was cut."""
        return self._files.rows(name, start, stop)

    def part(self, place: Place, start: int, stop: int) -> Tensor:
        """Rows start to stop of a parameter that stands there. A tied model's embedding may be there as the head."""
        name = place.tensor
        if name not in self._tensors and name.endswith(EMBEDDING):
            name = self._heads()[0]
        return self.rows(name, place.first + start, place.first + stop)

    def whole(self, name: str) -> Carried:
        """A tensor's bytes."""
        return carried_of(self._files, name)

    def carried(self, config: ModelConfig, *, with_bytes: bool = True) -> dict[str, Carried]:
        """The tensors that a model of that family carries through, byte for byte, or but their kinds."""
        names = [name for name in self._tensors if config.names.is_carried(name)]
        return {name: carried_of(self._files, name, with_bytes=with_bytes) for name in names}

    def found(self, config: ModelConfig) -> ModelConfig:
        """What config.json says, as these tensors have it where a family's folders differ: how they are called, and
        whether the head is the embedding, which wrappers say badly: what is there counts, as in transformers.
        """
        if not config.names.layouts:
            return config
        config = replace(config, names=config.names.found_in(self._tensors))
        embedding, head = (config.place(f"{end}.weight").tensor for end in ("embed", "head"))
        if config.raw.get("tie_word_embeddings") is False:
            return config
        if not {embedding, head} <= self._tensors.keys():
            return replace(config, tied=True)
        where = tuple(self._files.where[name] for name in (embedding, head))
        states = _states([self.folder / name for name in where])
        return replace(config, tied=_is_same(self.folder, where, (embedding, head), states))

    def _heads(self) -> list[str]:
        return [name for name in self._tensors if name.endswith(HEAD)]

    def compare(self, model: Transformer) -> None:
        """Raises InputError unless names, shapes and dtypes are the model's, and a tied head is the embedding.

        Says once of a folder where its numbers are of another dtype than config.json announces.
        """
        config = model.config
        embedding, head = (config.place(f"{end}.weight").tensor for end in ("embed", "head"))
        own = _expected(model)
        if config.tied and embedding not in self._tensors and head in self._tensors:
            own = {head if name == embedding else name: shape for name, shape in own.items()}
        extra = [n for n in self._tensors if n not in own and not _IGNORED.fullmatch(n)]
        extra = [n for n in extra if not config.names.is_carried(n) and not (config.tied and n == head)]
        self._check_not_quantised(extra, own)
        missing = [n for n in own if n not in self._tensors]
        if missing == [head] and not extra:
            raise InputError(
                f"{self.folder}: tie_word_embeddings of config.json is false, and no {head} is there; set it to true "
                "where the embedding is the head, or copy the folder again"
            )
        for what, found in (("lacks", missing), ("has the unknown", extra)):
            if found:
                more = f" and {len(found) - 1} more" if len(found) > 1 else ""
                raise InputError(
                    f"{self.folder}: {what} {found[0]}{more}; weights and config.json have to belong together"
                )
        has_both = config.tied and {embedding, head} <= self._tensors.keys()
        for name, shape in (own | ({head: own[embedding]} if has_both else {})).items():
            path, entry = self.folder / self._files.where[name], self._tensors[name]
            if entry.shape != shape:
                raise InputError(
                    f"{path}: {name} is {list(entry.shape)}, config.json says {list(shape)}; "
                    "weights and config.json have to belong together"
                )
            if entry.dtype not in DTYPES:
                raise InputError(f"{path}: {name} is {entry.dtype}; it has to be {', '.join(DTYPES)}")
        if has_both and not self._files.same(embedding, self._files, head):
            raise InputError(
                f"{self.folder}: tie_word_embeddings of config.json is true, and {head} differs from {embedding}; "
                f"set it to false where the model has a head of its own, or remove {head}"
            )
        self._say_if_announced_otherwise(config, own)
        if absent := config.names.not_there(self._tensors):
            cli.notify_once(
                f"{self.folder}: lacks {' and '.join(absent)}, which config.json says that the model has; what is "
                "written will lack them too, and transformers fills them with random numbers"
            )

    def _check_not_quantised(self, extra: list[str], own: dict[str, Any]) -> None:
        dtypes = {name: self._tensors[name].dtype for name in [*extra, *own] if name in self._tensors}
        if found := quantised_tensor(dtypes):
            raise InputError(
                f"{self.folder}: {found[0]} belongs to a quantised checkpoint ({found[1]}), which config.json does not "
                f"say; {REMEDY}"
            )

    def _say_if_announced_otherwise(self, config: ModelConfig, own: dict[str, Any]) -> None:
        announced = _announced_dtype(self.folder, config.raw)
        others = [n for n in own if announced and DTYPES[self._tensors[n].dtype] != announced]
        if announced is None or not others:
            return
        stored = DTYPES[self._tensors[others[0]].dtype]
        what = f"{others[0]} and {len(others) - 1} more are" if len(others) > 1 else f"{others[0]} is"
        what = "its weights are" if len(others) == len(own) else what
        loses = is_narrower(announced, stored) or torch.finfo(announced).max < torch.finfo(stored).max
        cli.notify_once(
            f"{self.folder}: config.json announces {name_of(announced)}, and {what} {name_of(stored)}: the numbers are "
            f'taken as they are; transformers\' dtype="auto" {"rounds" if loses else "converts"} them to '
            f"{name_of(announced)}"
        )

    def stored(self, config: ModelConfig) -> StoredDtypes:
        """The dtypes of the folder's weights, the embedding's first."""
        carried = self.carried(config, with_bytes=False)
        dtypes = {n: DTYPES[e.dtype] for n, e in self._tensors.items() if e.dtype in DTYPES and n not in carried}
        embeddings = [name for name in dtypes if name.endswith(EMBEDDING)] or self._heads()
        main = dtypes.get(embeddings[0]) if embeddings else None
        if main is None:
            raise InputError(f"{self.folder}: lacks model.{EMBEDDING}; weights and config.json have to belong together")
        others = {n: dtype for n, dtype in dtypes.items() if dtype != main and not _IGNORED.fullmatch(n)}
        extra = sum(self._files.numbers(n) * (dtype.itemsize - main.itemsize) for n, dtype in others.items())
        return StoredDtypes(main, others, extra, sum(one.stored(name).n_bytes for name, one in carried.items()))


def carried_of(files: TensorFiles, name: str, *, with_bytes: bool = True) -> Carried:
    """A tensor of files as it is carried through."""
    entry = files.tensors[name]
    return Carried(entry.dtype, entry.shape, files.whole(name) if with_bytes else None)


@functools.cache
def _is_same(folder: Path, files: tuple[str, str], tensors: tuple[str, str], states: Any) -> bool:
    """Whether two tensors of a folder hold the same numbers. states: keys for the cache."""
    with TensorFiles(folder, sorted(set(files))) as opened:
        return opened.same(tensors[0], opened, tensors[1])


def _expected(model: Transformer) -> dict[str, tuple[int, ...]]:
    """The tensors of a model's folder and their shapes: several parameters are one where a family fuses them."""
    found: dict[str, tuple[int, ...]] = {}
    shapes = {name: tuple(parameter.shape) for name, parameter in adapters.base_parameters(model)}
    quantised = adapters.quantised_layers(model)
    shapes |= {f"{name}.weight": (layer.out_features, layer.in_features) for name, layer in quantised}
    for name, shape in shapes.items():
        tensor, first = model.config.place(name)
        rows = max(found.get(tensor, (0,))[0], first + shape[0])
        found[tensor] = (rows, *shape[1:])
    return found | {model.config.place(name).tensor: tuple(buffer.shape) for name, buffer in model.constants()}


def _is_whole_beside(folder: Path, weight_map: dict[str, str]) -> bool:
    """Whether model.safetensors is to be read where an index lies beside it.

    It is what transformers reads. Raises InputError where shards are there as well and hold another model, or part of
    one.
    """
    shards = sorted(set(weight_map.values()))
    if not os.path.lexists(folder / WHOLE) or WHOLE in shards:
        return False
    missing = [name for name in shards if not os.path.lexists(folder / name)]
    if missing == shards:
        cli.notify_once(f"{folder}: {WHOLE} is read; {INDEX} names shards that are not there ({shards[0]})")
        return True
    if missing:
        raise InputError(
            f"{folder}: {WHOLE} lies beside {INDEX} and some of its shards, of which {missing[0]} is missing; remove "
            "the one or the others"
        )
    found = _difference(folder, tuple(shards), _states([folder / name for name in (WHOLE, *shards)]))
    if found is not None:
        raise InputError(
            f"{folder}: {WHOLE} and the shards of {INDEX} are two models ({found}); remove the one that is not meant"
        )
    return True


@functools.cache
def _difference(folder: Path, shards: tuple[str, ...], states: Any) -> str | None:
    """Where a whole file and shards differ, in words; None where they hold the same. states: keys for the cache."""
    with TensorFiles(folder, [WHOLE]) as whole, TensorFiles(folder, shards) as parts:
        for one, other, where in ((whole, parts, "only in the one file"), (parts, whole, "only in the shards")):
            if alone := [n for n in one.tensors if n not in other.tensors and not _IGNORED.fullmatch(n)]:
                return f"{alone[0]} is {where}"
        names = [n for n in whole.tensors if not _IGNORED.fullmatch(n)]
        for name in names:
            a, b = whole.tensors[name], parts.tensors[name]
            if (a.dtype, a.shape) != (b.dtype, b.shape):
                return f"{name} is {a.dtype} {list(a.shape)} in the one and {b.dtype} {list(b.shape)} in the others"
        different = next((name for name in names if not whole.same(name, parts, name)), None)
        return None if different is None else f"{different} differs"


def _states(paths: list[Path]) -> tuple[tuple[int, int, int], ...]:
    found = [path.stat() for path in paths]
    return tuple((s.st_ino, s.st_size, s.st_mtime_ns) for s in found)


def _say_what_is_left(folder: Path, read: set[str]) -> None:
    """Names once the files of weights in a folder that nothing reads."""
    left = sorted({p.name for pattern in _OTHERS for p in folder.glob(pattern)} - read)
    if left:
        more = f" and {len(left) - 1} more" if len(left) > 1 else ""
        what = WHOLE if WHOLE in read else f"what {INDEX} names"
        cli.notify_once(f"{folder}: these weights are not read: {left[0]}{more}; {what} is the model")


def _read_index(index: Path) -> dict[str, str]:
    """Which file holds each tensor. Raises InputError where a name could lead out of the folder."""
    weight_map = read_json(index).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map or not all(isinstance(f, str) for f in weight_map.values()):
        raise InputError(f"{index}: no weight_map of tensor names to files; copy it again")
    for file in sorted(set(weight_map.values())):
        if not re.fullmatch(r"[\w-][\w.-]*\.safetensors", file):
            raise InputError(
                f"{index}: {file!r} is not a .safetensors file in this folder; files beside the index only"
            )
    return weight_map


def _check_has_weights(folder: Path) -> None:
    if os.path.lexists(folder / WHOLE):
        return
    pickles = [p.name for p in folder.glob("*.bin")] + [p.name for p in folder.glob("*.p*t*")]
    what = f"only pickles ({pickles[0]}), which can run code" if pickles else f"no {WHOLE}"
    if gguf := sorted(p.name for p in folder.glob("*.gguf")):
        what = f"only GGUF ({gguf[0]}), whose weights are quantised as a rule"
    raise InputError(f"{folder}: {what}; give a folder with safetensors weights")


def _announced_dtype(folder: Path, raw: dict[str, Any]) -> torch.dtype | None:
    """The dtype that a config.json promises; None where it promises none that is known."""
    known = {name_of(dtype): dtype for dtype in DTYPES.values()}
    given = [raw.get(key) for key in ("dtype", "torch_dtype") if raw.get(key) is not None]
    if len(given) == 2 and given[0] != given[1]:
        cli.notify_once(
            f"{folder / 'config.json'}: dtype {given[0]} beside torch_dtype {given[1]}: the former counts, as in "
            "transformers"
        )
    return known.get(given[0]) if given and isinstance(given[0], str) else None
