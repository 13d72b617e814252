"""Which stages are done: a small file for each, with a fingerprint of what went in and digests of what came out.

A stage whose fingerprint is the same, and whose files are there as they were written, is taken as it was. One that was
told something else, or whose files have changed, is done again; commands that were killed go on by themselves.
"""

import contextlib
import functools
import hashlib
import json
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from system import cli, files

WHOLE = 1 << 26
"""Bytes up to which a file is known by all of its content; a larger one by its name, size and time, and its ends."""
END = 1 << 20


class Done(NamedTuple):
    """What is known of a stage that is done."""

    fingerprint: str
    made: dict[str, str]
    """A digest of each file that it made (digest_of), by its path from the folder of all."""
    seconds: float
    rows: str = ""
    """Of pairs: a digest of what their rows were made of (Stage.rows)."""


class Journal:
    """The files of one folder."""

    def __init__(self, out: Path) -> None:
        self.out, self._folder = out, out / "stages"

    def found(self, name: str, fingerprint: str) -> Done | None:
        """The stage of that name, where it was done with the same and what it made is there; else None."""
        done = self.read(name)
        if done is None or done.fingerprint != fingerprint:
            return None
        return done if all(digest_of(self.out / path) == digest for path, digest in done.made.items()) else None

    def read(self, name: str) -> Done | None:
        """The stage of that name as it was done last, whatever went in."""
        path = self._path(name)
        try:
            return Done(**json.loads(path.read_text()))
        except FileNotFoundError:
            return None
        except (ValueError, TypeError):
            cli.notify(f"{path}: cannot be read; the stage is done again")
            return None

    def write(self, name: str, fingerprint: str, makes: Sequence[Path], begun: float, rows: str = "") -> None:
        """Says that a stage is done. makes: the files that it made. begun: by time.monotonic(). rows: as in Done."""
        made = {os.path.relpath(path, self.out): digest_of(path) for path in makes}
        done = Done(fingerprint, made, round(time.monotonic() - begun, 1), rows)
        self._path(name).parent.mkdir(parents=True, exist_ok=True)
        files.write_json(self._path(name), done._asdict())

    def _path(self, name: str) -> Path:
        return self._folder / f"{name}.json"


def fingerprint(settings: Mapping[str, Any], read: Sequence[Path | str]) -> str:
    """A digest of what a stage is told and of the files and folders that it reads; a hub id counts as its name."""
    made: dict[str, Any] = {"settings": settings}
    made["inputs"] = {str(path): digest_of(Path(path)) for path in read}
    return hashlib.sha256(json.dumps(made, sort_keys=True, default=str).encode()).hexdigest()[:24]


def digest_of(path: Path) -> str:
    """Of a file's content, or of a folder's files; "" where there is neither."""
    if path.is_dir():
        every = sorted(p for p in path.iterdir() if p.is_file() and not p.name.startswith("."))
        return hashlib.sha256("".join(f"{p.name} {digest_of(p)}\n" for p in every).encode()).hexdigest()
    if not path.is_file():
        return ""
    state = path.stat()
    return _of_file(path, state.st_size, state.st_mtime_ns, state.st_ctime_ns)


@contextlib.contextmanager
def keeping_times(paths: Sequence[Path]) -> Iterator[None]:
    """Files that are made anew in the block with the same bytes keep their times: nobody takes them for changed."""
    before = {path: (files.digests([path]), path.stat()) for path in paths if path.is_file()}
    try:
        yield
    finally:
        for path, (content, state) in before.items():
            is_new = path.is_file() and path.stat().st_mtime_ns != state.st_mtime_ns
            if is_new and files.digests([path]) == content:
                os.utime(path, ns=(state.st_atime_ns, state.st_mtime_ns))


@functools.lru_cache(4096)
def _of_file(path: Path, size: int, changed: int, touched: int) -> str:
    if size <= WHOLE:
        return hashlib.sha256(path.read_bytes()).hexdigest()
    with open(path, "rb") as file:
        first = file.read(END)
        file.seek(-END, os.SEEK_END)
        ends = hashlib.sha256(first + file.read()).hexdigest()
    return f"{ends} {size} {changed}"
