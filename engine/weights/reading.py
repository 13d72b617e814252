"""Reads checkpoint folders in Hugging Face's layout straight into a model: each process the rows that it holds.

build   config.json -> a model on the meta device: shapes, no memory
fill    each parameter's rows -> the part of it that is held here (all of it, or a rank's shard)
load    both, for a model held whole
"""

import functools
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor

from data.rows import base_of as base_folder_of
from data.rows import config_folder, find_model, is_adapter
from data.text import read_json
from engine.model import (
    REMEDY,
    FrozenLinear,
    ModelConfig,
    Place,
    StoredDtypes,
    Transformer,
    adapters,
    is_narrower,
    name_of,
    quantised_by_modelopt,
    read_config,
)
from engine.weights.adapters import AdapterFolder, check_vocabulary, fill_adapter, read_adapter
from engine.weights.carried import set_buffers
from engine.weights.checkpoint import Checkpoint
from engine.weights.kept import is_kept, kept_as_found, kept_carried, kept_dtypes
from engine.weights.rounding import Cast, check_range
from system import InputError, cli

QUANTISED_AT_ONCE = 2**24
"""Numbers of a matrix that are read before they are quantised."""
Local = Callable[[Tensor], tuple[Tensor, int]]
"""The part of a parameter that is held here, and its first row: (parameter, 0) where it is held whole."""


def build(
    folder: Path, dtype: torch.dtype = torch.float32, *, base: Path | None = None, base_dtype: str | None = None
) -> Transformer:
    """The model that the folder's config.json describes, on the meta device; an adapter's has its base, frozen.

    base: of an adapter, the folder of its base, where that is another than it names. base_dtype: how the matrices of
    its blocks are held (engine.config's BaseDtype), where not as in the adapter's training; a whole model is frozen for
    it. Raises InputError.
    """
    if is_adapter(folder):
        return build_adapted(read_adapter(folder), dtype, base, base_dtype)
    _check_whole_model(folder)
    config = _config_of(folder)
    with torch.device("meta"):
        model = Transformer(config).to(dtype)
    model.source = folder
    if base_dtype is not None:
        adapters.freeze(model, dtype, adapters.held_as(base_dtype, dtype))
    return model


def find_adapted(model: str, adapter: str | None, base_dtype: str | None) -> tuple[Path, Path | None]:
    """What --model, --adapter and --base-dtype mean together: the folder of a model or of an adapter, and of an adapter
    that was named beside its base the base's. Raises InputError where they do not go together.
    """
    folder = find_model(model)
    if adapter is None:
        if base_dtype is not None and not is_adapter(folder):
            raise InputError(
                f"--base-dtype {base_dtype}: applies to the base of an adapter, and {model} is a whole model; add "
                "--adapter DIR, or leave it out"
            )
        return folder, None
    if is_adapter(folder):
        raise InputError(
            f"--model {model}: is an adapter itself, and --adapter names another one; name a base by --model"
        )
    found = read_adapter(find_model(adapter))
    say_if_of_another(found, model, folder)
    return found.folder, folder


def say_if_of_another(found: AdapterFolder, model: str, folder: Path) -> None:
    """Says once where an adapter names another base than the one that it is put on. model: what the user called that;
    folder: where it is.
    """
    base = found.base
    if base is None or base == model:
        return
    if Path(base).is_dir() and Path(base).resolve() == folder.resolve():
        return
    cli.notify_once(f"{found.folder}: names {base} as its base, and is used with {model}")


def build_adapted(
    found: AdapterFolder, dtype: torch.dtype, base: Path | None = None, base_dtype: str | None = None
) -> Transformer:
    """A base with an adapter, frozen but for that, on the meta device. dtype: of compute. base: the base's folder,
    where it is another than the adapter names; base_dtype: how it is held, where not as in training. Raises InputError.
    """
    folder = base or base_of(found)
    if is_adapter(folder):
        raise InputError(f"{folder}: is an adapter, not a base; merge it into its own base first, and give that folder")
    model = build(folder)
    check(folder, model)
    adapters.freeze(model, dtype, adapters.held_as(base_dtype or found.base_dtype, dtype))
    found.check(model, folder)
    check_vocabulary(found, folder, model.config.vocab_size)
    with placed(found.folder):
        adapters.attach(model, found.adapter)
    model.requires_grad_(False)
    model.adapter_folder, model.base_source = found, folder
    return model


def base_of(found: AdapterFolder) -> Path:
    """The folder of an adapter's base: what it names, a folder or a hub id. Raises InputError."""
    return base_folder_of(found.folder)


def _config_of(folder: Path) -> ModelConfig:
    config = read_config(read_json(folder / "config.json"), folder / "config.json")
    if not config.names.layouts:
        return config
    if is_kept(folder):
        return kept_as_found(config, folder)
    with Checkpoint(folder) as checkpoint:
        return checkpoint.found(config)


def load(
    folder: str | Path,
    dtype: torch.dtype = torch.float32,
    device: str | torch.device = "cpu",
    *,
    base: Path | None = None,
    base_dtype: str | None = None,
) -> Transformer:
    """The whole model in a folder, in `dtype` on `device`, an adapter's with its base. base, base_dtype: as `build`'s.

    Raises InputError where the folder cannot be used.
    """
    model = build(Path(folder), dtype, base=base, base_dtype=base_dtype).to_empty(device=device)
    fill(model, Path(folder))
    return model


def check(folder: Path, model: Transformer) -> None:
    """Raises InputError unless the folder's tensors are exactly the model's: names, shapes and a float dtype. Of a kept
    folder it is known.
    """
    if is_kept(folder) or model.adapter_folder is not None:
        return
    with Checkpoint(folder) as checkpoint:
        checkpoint.compare(model)


def fill(
    model: Transformer,
    folder: Path,
    local: Local = lambda parameter: (parameter, 0),
    copy: Callable[[Tensor, Tensor], object] = Tensor.copy_,
    within: Cast | None = None,
) -> None:
    """Reads into every parameter of the model the rows that are held here; nothing else is read.

    copy: takes what is held of a parameter and its rows, in the file's dtype; they are converted as a rule. within: how
    the weights will be written, whose range they have to keep. Raises InputError where the folder does not fit the
    model, or a number the range.
    """
    if model.adapter_folder is not None and model.base_source is not None and folder != model.base_source:
        fill(model, model.base_source, local, copy)
        fill_adapter(model, model.adapter_folder, local)
        return
    with Checkpoint(folder) as checkpoint, torch.no_grad():
        checkpoint.compare(model)
        with placed(folder):
            set_buffers(model, checkpoint.whole)
        for name, layer in adapters.quantised_layers(model):
            _fill_quantised(layer, model.config.place(f"{name}.weight"), checkpoint)
        for name, parameter in adapters.base_parameters(model):
            held, start = local(parameter)
            place = model.config.place(name)
            rows = checkpoint.part(place, start, start + held.shape[0])
            check_finite(folder, place.tensor, rows)
            if within is not None:
                with placed(folder):
                    check_range(place.tensor, rows, within.dtype_of(place.tensor))
            copy(held, rows)


def _fill_quantised(layer: FrozenLinear, place: Place, checkpoint: Checkpoint) -> None:
    """Rows read, quantised and dropped, some at a time: the matrix is never there whole."""
    n = max(1, QUANTISED_AT_ONCE // layer.in_features)
    for start in range(0, layer.out_features, n):
        rows = checkpoint.part(place, start, min(start + n, layer.out_features))
        check_finite(checkpoint.folder, place.tensor, rows)
        layer.quantise(rows, start)


def blank(
    model: Transformer, folder: Path, local: Local, copy: Callable[[Tensor, Tensor], object] = Tensor.copy_
) -> None:
    """Zeros in the place of weights that a state will bring; its constants from what is kept of it in a folder."""
    with torch.no_grad():
        if next(model.constants(), None) is not None:
            set_buffers(model, kept_carried(folder).__getitem__)
        for parameter in model.parameters():
            held, _ = local(parameter)
            copy(held, torch.zeros_like(held))


def check_finite(folder: Path, name: str, rows: Tensor) -> None:
    """Raises InputError where a number of a folder's tensor is none."""
    if rows.numel() and not torch.stack(rows.aminmax()).isfinite().all():  # no copy of the rows for the look
        raise InputError(f"{folder}: {name} holds NaN or infinity; copy the weights again")


@contextmanager
def placed(folder: Path) -> Iterator[None]:
    """Puts the folder before what an InputError says of one of its tensors."""
    try:
        yield
    except InputError as fault:
        raise InputError(f"{folder}: {fault}") from None


def stored_dtypes(folder: Path) -> StoredDtypes:
    """The dtypes that a folder's weights are stored in; of an adapter's its base's. Raises InputError."""
    if (kept := kept_dtypes(folder)) is not None:
        return kept
    folder = config_folder(folder)
    config = _config_of(folder)
    with Checkpoint(folder) as checkpoint:
        return checkpoint.stored(config)


@functools.cache
def say_if_rounded(folder: Path, dtype: torch.dtype) -> None:
    """Says once of a folder where who computes in that dtype rounds its weights."""
    stored = stored_dtypes(folder)
    rounded = [found for found in (stored.main, *stored.others.values()) if is_narrower(dtype, found)]
    if rounded:
        some = "" if is_narrower(dtype, stored.main) else "some "
        cli.notify(
            f"{folder}: holds {some}{name_of(rounded[0])} weights, which are rounded to {name_of(dtype)} to compute "
            "with; --dtype float32 computes with all of their digits, and engine.convert writes a "
            f"{name_of(dtype)} folder"
        )


def _check_whole_model(folder: Path) -> None:
    """Raises InputError where the folder says that its weights are part of a model, or quantised."""
    adapter, modelopt = folder / "adapter_config.json", folder / "hf_quant_config.json"
    if os.path.lexists(adapter):
        base = read_json(adapter).get("base_model_name_or_path")
        raise InputError(
            f"{adapter}: an adapter{f' of {base}' if base else ''} beside a whole model, to which transformers would "
            "add it; merge the two, or remove the adapter's files"
        )
    if os.path.lexists(modelopt):
        method = quantised_by_modelopt(read_json(modelopt))
        raise InputError(f"{modelopt}: says that the weights are quantised ({method}); {REMEDY}")
