"""The files that settings name, by which it is seen that one of them has changed."""

import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any


def in_settings(settings: Mapping[str, Any]) -> list[Path]:
    """The files and folders that settings name, each once: a path, FOLDER:SPLIT of rows, FILE:NAME of an objective. Not
    those of keys: a new key changes nothing of what is made.
    """
    values = [value for name, value in settings.items() if not name.replace("-", "_").endswith("key_file")]
    every = (v for value in values for v in (value if isinstance(value, list) else [value]))
    found = (one for value in every if isinstance(value, str) for one in _named(value))
    return list(dict.fromkeys(found))


def _named(value: str) -> Iterator[Path]:
    for name in (value, value.rpartition(":")[0]):
        if name and _exists(path := Path(name)):
            yield path
            return


def _exists(path: Path) -> bool:
    try:
        return path.exists()
    except (OSError, ValueError):  # a text that is too long for a name, or no name at all
        return False


def changed_since(settings: Mapping[str, Any], when: float) -> Path | None:
    """A file that settings name, or one in a folder that they name, which is newer than a time (of os.stat)."""
    for path in in_settings(settings):
        for one in files_in(path) if path.is_dir() else [path]:
            if one.stat().st_mtime > when:
                return one
    return None


def files_in(folder: Path) -> list[Path]:
    """The files of a folder and of the folders inside it, sorted. What is hidden is left out; no link to a folder is
    followed.
    """
    found = []
    for where, inside, names in os.walk(folder):
        inside[:] = [name for name in inside if not name.startswith(".") and name != "__pycache__"]
        found += [path for name in names if not name.startswith(".") and (path := Path(where) / name).is_file()]
    return sorted(found)
