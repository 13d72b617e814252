"""Files that are whole or not there at all: written under a temporary name, synced, then renamed.

Everything that has to survive is written through here.
"""

import contextlib
import hashlib
import json
import os
import shutil
import socket
import stat
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from system.errors import InputError

TEMPORARY = ".tmp"
"""How a name ends that is not whole yet, or on its way out."""
OLD = f".old{TEMPORARY}"
"""How one ends that is on its way out."""


def temporary_of(path: Path) -> Path:
    """Where what will be `path` is made."""
    return path.with_name(f"{path.name}{TEMPORARY}")


@contextlib.contextmanager
def whole_folder(path: Path, *, replaces: bool = False) -> Iterator[Path]:
    """A temporary sibling to fill; it becomes `path` when the block ends, and vanishes where the block raises.

    Raises InputError where `path` exists already, unless it is replaced.
    """
    if path.exists() and not replaces:
        raise InputError(f"{path}: exists already; give another folder, or remove it")
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = temporary_of(path)
    shutil.rmtree(temporary, ignore_errors=True)  # left over from a run that was killed
    temporary.mkdir()
    try:
        with naming(path):
            yield temporary
            seal(temporary)
            if path.exists():
                remove_folder(path)
            os.rename(temporary, path)
            sync(path.parent)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise


def seal(folder: Path) -> None:
    """Makes a folder's files, and their names, survive a loss of power."""
    for file in sorted(folder.iterdir()):
        sync(file)
    sync(folder)


def remove_folder(path: Path) -> None:
    """Removes a folder. It loses its name first: what bears the name is whole at every instant, and after a loss of
    power too.
    """
    away = path.with_name(f"{path.name}{OLD}")
    shutil.rmtree(away, ignore_errors=True)
    os.rename(path, away)
    sync(path.parent)
    shutil.rmtree(away)


def link_to(path: Path, name: str) -> None:
    """Makes a path a link to what is called `name` beside it, in place of another link: never is there none."""
    temporary = temporary_of(path)
    temporary.unlink(missing_ok=True)
    temporary.symlink_to(name)
    os.replace(temporary, path)
    sync(path.parent)


def numbered(folder: Path, prefix: str) -> list[tuple[int, Path]]:
    """What is called `prefix` and a number in a folder, by number; nothing that is half written or on its way out."""
    found = ((p.name.removeprefix(prefix), p) for p in folder.glob(f"{prefix}*"))
    return sorted((int(number), p) for number, p in found if number.isdecimal())


def remove_leftovers(folder: Path, prefix: str, *endings: str) -> None:
    """Removes what a process that was killed left of such folders: half written (TEMPORARY), half removed (OLD)."""
    for ending in endings:
        for path in folder.glob(f"{prefix}*{ending}"):
            if path.name.removeprefix(prefix).removesuffix(ending).isdecimal():
                shutil.rmtree(path, ignore_errors=True)


@contextlib.contextmanager
def naming(path: Path) -> Iterator[None]:
    """An error of the file system that names no file names this one."""
    try:
        yield
    except OSError as fault:
        if fault.filename is None and fault.errno is not None:
            fault.filename = str(path)
        raise


@contextlib.contextmanager
def whole_file(path: Path, *, is_shared: bool = False) -> Iterator[Path]:
    """A temporary sibling to write; it replaces `path` when the block ends, and vanishes where the block raises.

    is_shared: several processes may write it at one time, each under a name of its own; the last one's stays.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    own = f"{socket.gethostname()}-{os.getpid()}-{threading.get_ident()}"
    temporary = path.with_name(f"{path.name}.{own}{TEMPORARY}") if is_shared else temporary_of(path)
    try:
        with naming(path):
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


def nearest(path: Path) -> Path:
    """The path, or the nearest folder above it that exists."""
    return next(p for p in [path, *path.absolute().parents] if p.exists())


def free_on(path: Path) -> int:
    """Bytes free on the disk of a path that may not be there yet."""
    return shutil.disk_usage(nearest(path)).free


def check_new_file(path: Path) -> None:
    """Raises InputError where a file exists already or could not be written: before the work, not after it."""
    if path.exists():
        raise InputError(f"{path}: exists already; give another file, or remove it")
    folder = nearest(path)
    if not folder.is_dir() or not os.access(folder, os.W_OK | os.X_OK):
        raise InputError(f"{path}: {folder} cannot be written to; give another file")


def sync(path: Path) -> None:
    """Makes a file's content, or a folder's names, survive a loss of power."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        with naming(path):
            os.fsync(descriptor)
    finally:
        os.close(descriptor)


def check_regular(path: Path) -> None:
    """Raises InputError unless a path is a regular file that can be seen; nothing is opened: a pipe would block."""
    try:
        kind = path.stat().st_mode
    except OSError as fault:
        link = "; it is a link to nothing" if path.is_symlink() else "; check its name"
        raise InputError(f"{path}: cannot be read ({fault.strerror}){link}") from None
    if not stat.S_ISREG(kind):
        raise InputError(f"{path}: not a regular file; put the file itself there")


def open_regular(path: Path) -> Any:
    """A regular file, open for reading bytes. Raises InputError."""
    check_regular(path)
    try:
        return open(path, "rb", opener=lambda p, flags: os.open(p, flags | os.O_NONBLOCK))
    except OSError as fault:
        raise InputError(f"{path}: cannot be read ({fault.strerror}); change its mode, or copy it") from None
