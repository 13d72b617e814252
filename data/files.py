"""Files that are whole or not there at all: written under a temporary name, synced, then renamed."""

import contextlib
import hashlib
import json
import os
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from data.errors import InputError


@contextlib.contextmanager
def whole_folder(path: Path) -> Iterator[Path]:
    """A temporary sibling to fill; it becomes `path` when the block ends, and vanishes where the block raises.

    Raises InputError where `path` exists already.
    """
    if path.exists():
        raise InputError(f"{path}: exists already; give another folder, or remove it")
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f"{path.name}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)  # left over from a run that was killed
    temporary.mkdir()
    try:
        yield temporary
        for file in temporary.iterdir():
            sync(file)
        sync(temporary)
        os.rename(temporary, path)
        sync(path.parent)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise


@contextlib.contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """A temporary sibling to write; it replaces `path` when the block ends, and vanishes where the block raises."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f"{path.name}.tmp")
    try:
        yield temporary
        sync(temporary)
        os.replace(temporary, path)
        sync(path.parent)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def write_text(path: Path, text: str) -> None:
    """Writes a text, whole or not at all."""
    with whole_file(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: Path, value: Any) -> None:
    """Writes a value as JSON to be read by people, whole or not at all."""
    write_text(path, json.dumps(value, indent=1, ensure_ascii=False) + "\n")


def partial(path: Path) -> Path:
    """Where the parts of a file are kept until all of it is there."""
    return path.with_name(f"{path.name}.partial")


def write_rows(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Writes objects as JSON Lines, whole or not at all. Raises ValueError for NaN and infinities."""
    with whole_file(path) as temporary, open(temporary, "w", encoding="utf-8") as file:
        file.writelines(json_line(row) for row in rows)


def json_line(row: Mapping[str, Any]) -> str:
    """An object as a line of a JSON Lines file."""
    return json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n"


def digests(paths: Sequence[Path]) -> list[bytes]:
    """SHA-256 of each file's content; several at a time, since hashing lets other threads work."""

    def digest(path: Path) -> bytes:
        with open(path, "rb") as file:
            return hashlib.file_digest(file, "sha256").digest()

    with ThreadPoolExecutor() as pool:
        return list(pool.map(digest, paths))


def check_new_file(path: Path) -> None:
    """Raises InputError where a file exists already or could not be written: before the work, not after it."""
    if path.exists():
        raise InputError(f"{path}: exists already; give another file, or remove it")
    nearest = next(p for p in path.absolute().parents if p.exists())
    if not nearest.is_dir() or not os.access(nearest, os.W_OK | os.X_OK):
        raise InputError(f"{path}: {nearest} cannot be written to; give another file")


def sync(path: Path) -> None:
    """Makes a file's content, or a folder's names, survive a loss of power."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
