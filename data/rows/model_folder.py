"""A model's folder and the tokenizer in it: of a whole model, or of an adapter beside its base.

A whole model's folder has config.json. An adapter's (PEFT's format) has adapter_config.json in its place, which names
the base: that has the weights, says the shape and which ids end an answer, and has the tokenizer or the chat template
where the adapter's folder has none.
"""

import filecmp
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from data.rows.hub import find_model
from data.text import NO_SETTINGS, Chat, TemplateSettings, Tokenizer, has_tokenizer, read_json
from system import InputError

CONFIG, ADAPTER = "config.json", "adapter_config.json"


def is_adapter(folder: Path) -> bool:
    """Whether a folder is an adapter's, and no model's."""
    return (folder / ADAPTER).is_file() and not (folder / CONFIG).is_file()


def is_model_folder(folder: Path) -> bool:
    """Whether a folder holds a model: a whole one, or an adapter, which is one together with its base."""
    return (folder / CONFIG).is_file() or (folder / ADAPTER).is_file()


def name_of_base(folder: Path) -> str | None:
    """What an adapter calls its base: a path or a hub id, with @revision where it names one; None where it does not.

    Raises InputError where adapter_config.json cannot be read.
    """
    found = read_json(folder / ADAPTER)
    name, revision = found.get("base_model_name_or_path"), found.get("revision")
    if not isinstance(name, str) or not name:
        return None
    return f"{name}@{revision}" if isinstance(revision, str) and revision and not Path(name).exists() else name


def base_of(folder: Path) -> Path:
    """The folder of an adapter's base: what it names, relative to the working directory, or the hub's snapshot of it.

    Raises InputError, which names both and the remedy, where that is no whole model's.
    """
    name, mend = name_of_base(folder), f"name it: --model BASE --adapter {folder}"
    if name is None:
        raise InputError(f"{folder}: an adapter that does not name its base model (base_model_name_or_path); {mend}")
    try:
        base = find_model(name)
    except InputError as fault:
        why = str(fault).removeprefix(f"{name}: ").partition("; ")[0]
        raise InputError(f"{folder}: its base, {name}, is not there ({why}); put it there, or {mend}") from None
    if is_adapter(base):
        raise InputError(
            f"{folder}: its base, {name}, is an adapter itself; write that one into its own base first: engine.merge"
        )
    if not (base / CONFIG).exists():
        raise InputError(f"{folder}: its base, {name}, has no {CONFIG}, so it is not a model; {mend}")
    return base


def known_base(adapter: Path) -> Path | None:
    """The folder of an adapter's base; None where it cannot be found."""
    try:
        return base_of(adapter)
    except InputError:
        return None


def is_copy(one: Path, other: Path) -> bool:
    """Whether two folders hold the same model: they are one, or their weights and config.json are, byte for byte."""
    if one.resolve() == other.resolve():
        return True
    if not all((folder / CONFIG).is_file() for folder in (one, other)):
        return False
    first, second = (sorted([*folder.glob("*.safetensors"), folder / CONFIG]) for folder in (one, other))
    if [path.name for path in first] != [path.name for path in second]:
        return False
    return all(filecmp.cmp(a, b, shallow=False) for a, b in zip(first, second, strict=True))


def config_folder(folder: Path) -> Path:
    """Where a model's config.json and generation_config.json are: in its folder, or in that of an adapter's base.

    Raises InputError where that is not there.
    """
    return base_of(folder) if is_adapter(folder) else folder


def open_model(
    name: str, settings: TemplateSettings = NO_SETTINGS, *, base: Path | None = None
) -> tuple[Path, Chat | None]:
    """The folder of a model and its chat; None where there is no tokenizer. settings: of the chat's template. base: of
    an adapter, the folder of its base, where that is another than it names.

    Raises InputError where one of them cannot be used.
    """
    folder, tokenizer = open_folder(name, base=base)
    if tokenizer is not None:
        with _readable(name):
            return folder, Chat(tokenizer, settings)
    if settings.given:
        raise InputError(f"{settings.given[0]}: {folder} has no tokenizer, so no template is used; leave it out")
    return folder, None


def open_folder(name: str, *, base: Path | None = None) -> tuple[Path, Tokenizer | None]:
    """The folder of a model and its tokenizer; None where it has none. base: as open_model's.

    Raises InputError where it cannot be used.
    """
    with _readable(name):
        folder = find_folder(name)
        if is_adapter(folder):
            model = base or base_of(folder)
            own = folder if has_tokenizer(folder) else model
            return folder, Tokenizer(own, model=model) if has_tokenizer(own) else None
        return folder, Tokenizer(folder) if has_tokenizer(folder) else None


def find_folder(name: str) -> Path:
    """The folder of a model, whole or an adapter's. Raises InputError where it holds none, or cannot be read."""
    with _readable(name):
        folder = find_model(name)
        if not is_model_folder(folder):
            raise InputError(f"{folder}: no {CONFIG}; give a checkpoint folder in Hugging Face's layout")
        return folder


@contextmanager
def _readable(name: str) -> Iterator[None]:
    """Inside, a file of a model's that cannot be read is an InputError."""
    try:
        yield
    except OSError as fault:
        raise InputError(f"{fault.filename or name}: cannot be read ({fault.strerror}); change its mode") from None
