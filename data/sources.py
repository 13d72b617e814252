"""Rows from wherever they are, read strictly: every fault is located, and nothing is repaired on the way.

    .jsonl     an object a line                   place "FILE:LINE"
    .json      a list of objects, or as .jsonl    place "FILE:LINE", the line on which the object begins
    .csv       a header and a row a line          place "FILE:LINE", the line on which the row begins
    .parquet   streamed by row group              place "FILE:ROW", from 1
    a folder   its files of these kinds; a hub id's snapshot is such a folder. ":SPLIT" behind either names the split

Rows are handed on one at a time, each as an object or as the InputError that says what is wrong with it.
"""

import csv
import json
import math
import os
import re
import stat
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from data import hub
from data.errors import InputError

MAX_DEPTH = 32
MAX_JSON_BYTES = 2**30  # of a .json list, which cannot be read a row at a time
MAX_GROUP_BYTES = 4 * 2**30  # of a parquet row group, unpacked
PARQUET_ROWS = 32  # unpacked together

Row = tuple[str, dict[str, Any] | InputError]
"""("FILE:LINE", the row or what is wrong with it)"""


@dataclass(frozen=True, kw_only=True)
class Reading:
    """How files are read."""

    columns: tuple[tuple[str, str], ...] = ()
    """(our name, the file's name) of columns that are called otherwise there."""
    max_row_mb: int = 64
    """Rows above that are faults."""

    @property
    def max_row_bytes(self) -> int:
        """The same in bytes."""
        return self.max_row_mb * 2**20


def rows_of(source: str | Path, reading: Reading | None = None) -> Iterator[Row]:
    """The rows of a file, a folder or a hub id, in order. Raises InputError where a file itself cannot be read."""
    reading = reading or Reading()
    for path in files_of(source):
        for place, row in READERS[path.suffix](path, reading):
            yield place, row if isinstance(row, InputError) else _rename(row, reading.columns)


def parse_columns(text: str | None) -> tuple[tuple[str, str], ...]:
    """ "chosen=winner,rejected=loser" as pairs. Raises InputError."""
    pairs = [part.partition("=") for part in text.split(",")] if text else []
    names = [(ours.strip(), theirs.strip()) for ours, _, theirs in pairs]
    if not all(ours and theirs for ours, theirs in names) or len(dict(names)) < len(names):
        raise InputError(f"--columns: {text!r} is not of the form chosen=winner,rejected=loser")
    return tuple(names)


def _rename(row: dict[str, Any], columns: tuple[tuple[str, str], ...]) -> dict[str, Any]:
    """The row with our names; a column of ours that another one is to stand for is hidden by it."""
    if not columns:
        return row
    taken = {theirs for _, theirs in columns}
    rest = {name: value for name, value in row.items() if name not in taken}
    return rest | {ours: row[theirs] for ours, theirs in columns if theirs in row}


# --- which files ---------------------------------------------------------------------------------------------------


def files_of(source: str | Path) -> list[Path]:
    """The files that a source stands for. Raises InputError, before anything is opened."""
    name = str(source)
    path = Path(name)
    if _exists(path):
        return _files_in(path, None, name) if path.is_dir() else [_regular(path)]
    base, colon, split = name.rpartition(":")
    if colon and _exists(Path(base)) and Path(base).is_dir():
        return _files_in(Path(base), split, base)
    if path.suffix in READERS or not hub.is_hub_id(base if colon else name):
        raise InputError(f"{name}: no such file or folder; give {hub.EXAMPLES['dataset']}")
    return _files_in(hub.snapshot(base if colon else name, "dataset"), split or None, base if colon else name)


def _exists(path: Path) -> bool:
    """Whether a name is there, be it a link to nothing. Raises InputError for one that cannot be."""
    try:
        path.lstat()
    except (FileNotFoundError, NotADirectoryError):
        return False
    except (OSError, ValueError) as fault:  # too long; a zero byte in it
        raise InputError(f"{path}: cannot be read ({getattr(fault, 'strerror', fault)}); check its name") from None
    return True


def _regular(path: Path) -> Path:
    """The path of a file that can be read here. Anything else is never opened: a pipe would block."""
    try:
        kind = path.stat().st_mode
    except OSError as fault:
        raise InputError(f"{path}: cannot be read ({fault.strerror}); is it a link to nothing?") from None
    if not stat.S_ISREG(kind):
        raise InputError(f"{path}: not a regular file; give one of {', '.join(READERS)}")
    if path.suffix not in READERS:
        raise InputError(f"{path}: rows are read from {', '.join(READERS)}; convert it to one JSON object per line")
    return path


def _files_in(folder: Path, split: str | None, name: str) -> list[Path]:
    """The folder's files of a split; without a name: "train" where there is one, or the only one there is."""
    found = sorted(p for p in folder.rglob("*") if p.suffix in READERS and not _is_about_data(p.relative_to(folder)))
    splits: dict[str, list[Path]] = {}
    for path in found:
        if not path.is_dir():
            splits.setdefault(_split_of(path.relative_to(folder)), []).append(_regular(path))
    if not splits:
        raise InputError(f"{name}: no files of rows in it ({', '.join(READERS)})")
    wanted = split or ("train" if "train" in splits else next(iter(splits)) if len(splits) == 1 else None)
    if wanted not in splits:
        known = ", ".join(sorted(splits))
        raise InputError(f"{name}: has the splits {known}; name one, such as {name}:{sorted(splits)[0]}")
    return splits[wanted]


def _is_about_data(path: Path) -> bool:
    hidden = any(part.startswith((".", "__")) for part in path.parts)
    return hidden or path.name in ("dataset_infos.json", "dataset_info.json", "dataset_dict.json", "state.json")


def _split_of(path: Path) -> str:
    """train-00000-of-00002.parquet and train/part-1.jsonl are of the split train; the folder data/ is none."""
    inner = [part for part in path.parts[:-1] if part not in ("data", "default")]
    return inner[-1] if inner else re.sub(r"-\d+-of-\d+$", "", path.stem)


# --- JSON ----------------------------------------------------------------------------------------------------------


def read_lines(path: Path, reading: Reading | None = None) -> Iterator[tuple[str, bytes | InputError]]:
    """("FILE:LINE", bytes) of each line that is not blank, a line at a time.

    Lines end at \\n only (U+2028 and its kin are text); a byte order mark and \\r before the end are dropped. A line
    that is too long is a fault, of which no more than the limit is held. Raises InputError for a file in UTF-16.
    """
    limit = (reading or Reading()).max_row_bytes
    with _open(path) as file:
        number = 0
        while line := file.readline(limit + 1):
            number += 1
            place = f"{path}:{number}"
            if number == 1:
                if line.startswith((b"\xff\xfe", b"\xfe\xff")):
                    raise InputError(f"{path}: UTF-16; save it as UTF-8")
                line = line.removeprefix(b"\xef\xbb\xbf")
            if len(line) > limit:
                while line and not line.endswith(b"\n"):
                    line = file.readline(limit)
                yield place, InputError(f"{place}: longer than {limit >> 20} MB; mend it, or raise --max-row-mb")
            elif line := line.strip(b" \t\r\n"):
                yield place, line


def _read_jsonl(path: Path, reading: Reading) -> Iterator[Row]:
    for place, line in read_lines(path, reading):
        yield place, line if isinstance(line, InputError) else _or_fault(lambda p=place, b=line: parse_row(b, p))


def _read_json(path: Path, reading: Reading) -> Iterator[Row]:
    """A list of objects, one at a time; where the file begins otherwise it is JSON Lines under another name."""
    with _open(path) as file:
        if file.read(64).removeprefix(b"\xef\xbb\xbf").lstrip(b" \t\r\n")[:1] != b"[":
            yield from _read_jsonl(path, reading)
            return
        if path.stat().st_size > MAX_JSON_BYTES:
            raise InputError(f"{path}: a list above {MAX_JSON_BYTES >> 20} MB; convert it to one JSON object per line")
        file.seek(0)
        content = file.read().removeprefix(b"\xef\xbb\xbf")
    try:
        text = content.decode("utf-8")
    except UnicodeDecodeError as fault:
        number = 1 + content.count(b"\n", 0, fault.start)
        raise InputError(f"{path}:{number}: not UTF-8; mend the file") from None
    yield from _objects_in_list(text, path, reading)


_BETWEEN = re.compile(r"[ \t\r\n]*(,?)[ \t\r\n]*(\]?)")


def _objects_in_list(text: str, path: Path, reading: Reading) -> Iterator[Row]:
    at, number, counted, is_first = text.index("[") + 1, 1, 0, True
    while True:
        match = _BETWEEN.match(text, at)
        assert match is not None  # it matches nothing at all, too
        number, counted = number + text.count("\n", counted, match.end()), match.end()
        place, at = f"{path}:{number}", match.end()
        if match[2] and not match[1]:
            if text[at:].strip():
                yield place, InputError(f"{place}: text behind the list's end; mend the file")
            return
        if bool(match[1]) == is_first or match[2] or at == len(text):
            what = "a comma too many, or one that lacks"
            what = what if match[1] or at < len(text) else "the list does not end"
            yield place, InputError(f"{place}: not JSON ({what}); mend the file")
            return
        is_first = False
        try:
            value, end = _decode(lambda decoder, start=at: decoder.raw_decode(text, start), place)
        except InputError as fault:  # where the next object begins cannot be known
            yield place, fault
            return
        if len(text[at:end].encode("utf-8", "surrogatepass")) > reading.max_row_bytes:
            value = InputError(f"{place}: longer than {reading.max_row_mb} MB; mend it, or raise --max-row-mb")
        at = end
        yield place, value if isinstance(value, InputError) else _or_fault(lambda v=value, p=place: _checked(v, p))


def parse_row(line: bytes, place: str) -> dict[str, Any]:
    """The object in one line. `place` is "FILE:LINE". Raises InputError for anything but one plain JSON object.

    NaN and infinities, duplicate keys, lone surrogates and nesting beyond MAX_DEPTH are refused: each would be read
    as something other than what was written, or fail later without a place.
    """
    try:
        text = line.decode("utf-8")
    except UnicodeDecodeError as fault:
        raise InputError(f"{place}: not UTF-8 (byte {fault.start + 1}); mend or delete the line") from None
    return _checked(_decode(lambda decoder: decoder.decode(text), place), place)


def _decode(decode: Callable[[json.JSONDecoder], Any], place: str) -> Any:
    """What a strict decoder gives. Raises InputError, located."""

    def refuse(what: str) -> NoReturn:
        raise InputError(f"{place}: {what}; mend or delete the line")

    def pairs(items: list[tuple[str, Any]]) -> dict[str, Any]:
        made = dict(items)
        if len(made) < len(items):
            seen: set[str] = set()
            twice = next(key for key, _ in items if key in seen or seen.add(key))
            refuse(f"the key {twice!r} stands twice")
        return made

    try:
        return decode(json.JSONDecoder(object_pairs_hook=pairs, parse_constant=lambda c: refuse(f"{c} is not JSON")))
    except json.JSONDecodeError as fault:
        refuse(f"not JSON ({fault.msg}, column {fault.colno})")
    except RecursionError:
        refuse(f"nested deeper than {MAX_DEPTH} levels")
    except InputError:
        raise
    except ValueError as fault:  # an integer of more than 4,300 digits
        refuse(f"not JSON ({fault})")


def _checked(row: Any, place: str) -> dict[str, Any]:
    def refuse(what: str) -> NoReturn:
        raise InputError(f"{place}: {what}; mend or delete the line")

    if not isinstance(row, dict):
        refuse(f'a {type(row).__name__}, not an object such as {{"prompt": ..., "chosen": ..., "rejected": ...}}')
    _check_value(row, refuse, MAX_DEPTH)
    return row


def _check_value(value: Any, refuse: Callable[[str], NoReturn], depth: int) -> None:
    if depth == 0:
        refuse(f"nested deeper than {MAX_DEPTH} levels")
    if isinstance(value, str):
        try:
            value.encode("utf-8")
        except UnicodeEncodeError:
            refuse("text with half of a surrogate pair, which no encoding can hold")
    elif isinstance(value, float):
        if not math.isfinite(value):
            refuse("a number too large for a float")
    elif isinstance(value, list):
        for item in value:
            _check_value(item, refuse, depth - 1)
    elif isinstance(value, dict):
        for key, item in value.items():
            _check_value(key, refuse, depth - 1)
            _check_value(item, refuse, depth - 1)


# --- CSV -----------------------------------------------------------------------------------------------------------


def _read_csv(path: Path, reading: Reading) -> Iterator[Row]:
    """Every value is text, but labels (true, false, 1, 0) and scores, and an empty one is none at all."""
    csv.field_size_limit(reading.max_row_bytes)
    with _open(path) as binary:
        pieces = iter(lambda: binary.readline(reading.max_row_bytes), b"")
        lines = (piece.decode("utf-8-sig" if i == 0 else "utf-8") for i, piece in enumerate(pieces))
        reader = csv.reader(lines, strict=True)
        place, header = f"{path}:1", _next_line(reader, path) or []
        if len(set(header)) < len(header) or "" in header:
            raise InputError(f"{place}: a column has no name, or that of another; name each once")
        while True:
            place, values = f"{path}:{reader.line_num + 1}", _next_line(reader, path)
            if values is None:
                return
            if len(values) == len(header):
                row = dict(zip(header, values, strict=True))
                yield place, _or_fault(lambda r=row, p=place: _from_text(r, p))
            elif values:
                said = f"{len(values)} values, the header has {len(header)}; mend or delete the line"
                yield place, InputError(f"{place}: {said}")


def _next_line(reader: Any, path: Path) -> list[str] | None:
    """The values of the next row, None at the end. Raises InputError where the rest cannot be read."""
    number = reader.line_num + 1
    try:
        return next(reader, None)
    except (csv.Error, UnicodeDecodeError) as fault:
        raise InputError(f"{path}:{number}: not CSV in UTF-8 ({fault}); mend the file") from None


def _from_text(row: dict[str, str], place: str) -> dict[str, Any]:
    made: dict[str, Any] = {name: text for name, text in row.items() if text != ""}
    for name, text in made.items():
        if name == "label":
            made[name] = {"true": True, "1": True, "false": False, "0": False}.get(text.lower(), text)
        elif name.endswith("score"):
            try:
                made[name] = float(text)
            except ValueError:
                raise InputError(f'{place}: "{name}" is {text!r}; it has to be a number') from None
    return made


# --- parquet -------------------------------------------------------------------------------------------------------


def _read_parquet(path: Path, reading: Reading) -> Iterator[Row]:
    """A few rows at a time, so that a file of a kilobyte that unpacks to gigabytes takes no more than those."""
    try:
        from pyarrow import ArrowException, parquet  # an extra: 150 MB that only parquet needs
    except ImportError:
        raise InputError(f"{path}: reading parquet needs pyarrow; pip install 'pyarrow>=15'") from None
    number = 0
    try:
        with _open(path) as binary, parquet.ParquetFile(binary) as file:
            for group in range(file.num_row_groups):
                unpacked = file.metadata.row_group(group).total_byte_size
                if unpacked > MAX_GROUP_BYTES:
                    raise InputError(f"{path}: a row group of {unpacked >> 20} MB; write it anew with smaller ones")
            for batch in file.iter_batches(batch_size=PARQUET_ROWS):
                sizes = batch.nbytes
                for row in batch.to_pylist():
                    number += 1
                    place = f"{path}:{number}"
                    if sizes > reading.max_row_bytes and _size(row) > reading.max_row_bytes:
                        said = f"{place}: longer than {reading.max_row_mb} MB; mend it, or raise --max-row-mb"
                        yield place, InputError(said)
                    else:
                        yield place, row
    except InputError:
        raise
    except (ArrowException, OSError, ValueError) as fault:  # text that is not UTF-8 is a ValueError
        where = f"{path}:{number + 1}" if number else f"{path}"
        raise InputError(f"{where}: not parquet, or damaged ({' '.join(str(fault).split())}); copy it anew") from None


def _size(value: Any) -> int:
    """Bytes of text in a value, about."""
    if isinstance(value, dict):
        return sum(map(_size, value.values()))
    if isinstance(value, (list, tuple)):
        return sum(map(_size, value))
    return len(value) if isinstance(value, (str, bytes)) else 8


def _or_fault(read: Callable[[], dict[str, Any]]) -> dict[str, Any] | InputError:
    try:
        return read()
    except InputError as fault:
        return fault


def _open(path: Path) -> Any:
    try:
        file = open(path, "rb", opener=lambda p, flags: os.open(p, flags | os.O_NONBLOCK))  # noqa: SIM115
    except FileNotFoundError:
        raise InputError(f"{path}: no such file") from None
    except OSError as fault:
        raise InputError(f"{path}: cannot be read ({fault.strerror})") from None
    if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
        file.close()
        raise InputError(f"{path}: not a regular file; give one of {', '.join(READERS)}")
    return file


READERS: dict[str, Callable[[Path, Reading], Iterator[Row]]] = {
    ".jsonl": _read_jsonl,
    ".json": _read_json,
    ".parquet": _read_parquet,
    ".csv": _read_csv,
}
