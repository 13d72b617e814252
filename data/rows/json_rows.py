"""JSON, read strictly: every fault is located, and nothing is repaired on the way.

.jsonl .ndjson    a row a line; what .json is where the first line is no JSON by itself
.json             a list of rows; {"data": [rows]}, whatever stands beside it; rows one after the other, each of
                  several lines; a row a line
"""

import gzip
import json
import math
import os
import re
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn

from system import InputError, cli, open_regular

MAX_DEPTH = 32
MAX_LIST_BYTES = 2**30  # of a .json list, which cannot be read a row at a time

Row = tuple[str, dict[str, Any] | InputError]
"""("FILE:LINE", the row or what is wrong with it)"""


def read_jsonl(path: Path, max_row_bytes: int) -> Iterator[Row]:
    """A row a line, or objects of several lines where the first line is the beginning of one."""
    if _begins_with(path, max_row_bytes, lambda line: line[:1] in (b"[", b"{") and _loaded(line) is None):
        yield from read_json(path, max_row_bytes)
    else:
        yield from _rows_of_lines(path, max_row_bytes)


def _rows_of_lines(path: Path, max_row_bytes: int) -> Iterator[Row]:
    for location, line in read_lines(path, max_row_bytes):
        yield location, line if isinstance(line, InputError) else _or_fault(parse_row, line, location)


def load_rows(path: Path) -> list[dict[str, Any]]:
    """All rows of a file that this program wrote. Raises InputError, located, for a line that is damaged."""
    rows = []
    for _, row in read_jsonl(path, MAX_LIST_BYTES):
        if isinstance(row, InputError):
            raise row
        rows.append(row)
    return rows


def read_lines(path: Path, max_row_bytes: int) -> Iterator[tuple[str, bytes | InputError]]:
    """("FILE:LINE", bytes) of each line that is not blank, a line at a time.

    Lines end at \\n only (U+2028 and its kin are text); a byte order mark and \\r before the end are dropped. A line
    that is too long is a fault, of which no more than the limit is held. Raises InputError for a file in UTF-16.
    """
    with open_rows(path) as file:
        number = 0
        while line := file.readline(max_row_bytes + 1):
            number += 1
            location = f"{path}:{number}"
            if number == 1:
                line = without_mark(line, path)
            if len(line) > max_row_bytes:
                while line and not line.endswith(b"\n"):
                    line = file.readline(max_row_bytes)
                yield location, too_long(location, max_row_bytes)
            elif line := line.strip(b" \t\r\n"):
                yield location, line


@contextmanager
def open_rows(path: Path) -> Iterator[Any]:
    """A file of text, open for reading bytes, unpacked where its name ends in .gz. Raises InputError."""
    with open_regular(path) as file:
        if path.suffix != ".gz":
            yield file
            return
        try:
            with gzip.open(file) as unpacked:
                yield unpacked
        except (gzip.BadGzipFile, EOFError, zlib.error) as fault:
            raise InputError(f"{path}: not gzip, or damaged ({fault}); copy it again") from None


def read_json(path: Path, max_row_bytes: int) -> Iterator[Row]:
    """The objects of a list, or what else a file of this name may be. Raises InputError where the rest of it is out of
    reach.
    """
    with open_rows(path) as file:
        first = file.read(64).removeprefix(b"\xef\xbb\xbf").lstrip(b" \t\r\n")[:1]
    if first == b"[":
        yield from _objects_in_list(_whole_text(path), path, max_row_bytes)
    elif first == b"{" and not _begins_with(path, max_row_bytes, _is_row):
        yield from _objects_of_lines(path, max_row_bytes)
    else:
        yield from _rows_of_lines(path, max_row_bytes)


def _begins_with(path: Path, max_row_bytes: int, is_right: Callable[[bytes], bool]) -> bool:
    """Whether the first line of a file is right; False for one that is too long, and where there is none."""
    line = next((line for _, line in read_lines(path, max_row_bytes)), b"")
    return not isinstance(line, InputError) and is_right(line)


def _is_row(line: bytes) -> bool:
    """Whether a line is an object by itself, and none that holds a list of rows."""
    return (value := _loaded(line)) is not None and not _holds_rows(value)


def _loaded(line: bytes) -> Any:
    try:
        return json.loads(line)
    except (ValueError, RecursionError):
        return None


def _holds_rows(value: Any) -> bool:
    rows = value.get("data") if isinstance(value, dict) else None
    return isinstance(rows, list) and bool(rows) and all(isinstance(row, dict) for row in rows)


def _objects_of_lines(path: Path, max_row_bytes: int) -> Iterator[Row]:
    """Objects of several lines each, or the rows that the only one holds; a row a line where the first is no JSON."""
    try:
        text = _whole_text(path)
        at = text.index("{")
        whole, end = _LENIENT.raw_decode(text, at)
    except (ValueError, RecursionError):  # an InputError is one: what is wrong is told by the line
        yield from _rows_of_lines(path, max_row_bytes)
        return
    if _holds_rows(whole) and not text[end:].strip():
        if beside := [key for key in whole if key != "data"]:
            cli.notify_once(f'{path}: not used: what stands beside "data" ({", ".join(beside)[:200]})')
        yield from _objects_in_list(text, path, max_row_bytes, at=_start_of_rows(text, at + 1))
        return
    number, counted = 1, 0
    while at < len(text):
        number, counted = number + text.count("\n", counted, at), at
        end = _end_of_value(text, at, path, number)
        yield _row_of_text(text[at:end], f"{path}:{number}", max_row_bytes)
        at = _skip_blank(text, end)


def _start_of_rows(text: str, at: int) -> int:
    """Where the list of rows begins in an object that was read before, and of which this is the inside."""
    while True:
        at = _skip_blank(text, at)
        key, at = _LENIENT.raw_decode(text, at)
        at = _skip_blank(text, _skip_blank(text, at) + 1)  # behind the colon
        if key == "data":
            return at
        at = _skip_blank(text, _LENIENT.raw_decode(text, at)[1]) + 1  # behind the comma


_BLANK = re.compile(r"[ \t\r\n]*")


def _skip_blank(text: str, at: int) -> int:
    match = _BLANK.match(text, at)
    assert match is not None  # it matches nothing at all, too
    return match.end()


def _whole_text(path: Path) -> str:
    """What is in a file that cannot be read a row at a time. Raises InputError for too much of it, or no UTF-8."""
    with open_rows(path) as file:
        is_large = path.suffix != ".gz" and os.fstat(file.fileno()).st_size > MAX_LIST_BYTES
        content = b"" if is_large else file.read(MAX_LIST_BYTES + 1)
    if is_large or len(content) > MAX_LIST_BYTES:
        raise InputError(
            f"{path}: a list larger than {MAX_LIST_BYTES >> 20} MB; convert it to one JSON object per line"
        )
    content = without_mark(content, path)
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError as fault:
        number = 1 + content.count(b"\n", 0, fault.start)
        raise InputError(f"{path}:{number}: not UTF-8; fix the file") from None


_BETWEEN = re.compile(r"[ \t\r\n]*(,?)[ \t\r\n]*(\]?)")
_LENIENT = json.JSONDecoder()


def _objects_in_list(text: str, path: Path, max_row_bytes: int, *, at: int | None = None) -> Iterator[Row]:
    """at: where a list begins that is inside of something; unset, it is the whole text. Raises InputError where the
    list itself is broken, so that the rows behind are out of reach.
    """
    is_whole = at is None
    at, number, counted, is_first = (text.index("[") if at is None else at) + 1, 1, 0, True
    while True:
        match = _BETWEEN.match(text, at)
        assert match is not None  # it matches nothing at all, too
        at = match.end()
        number, counted = number + text.count("\n", counted, at), at
        location = f"{path}:{number}"
        if match[2] and not match[1]:
            if is_whole and text[at:].strip():
                raise InputError(f"{location}: text after the end of the list; fix the file")
            return
        if bool(match[1]) == is_first or match[2] or at == len(text):
            what = "the list does not end" if at == len(text) and not match[1] else "a comma too many, or a missing one"
            raise InputError(f"{location}: not JSON ({what}); fix the file")
        is_first = False
        end = _end_of_value(text, at, path, number)
        yield _row_of_text(text[at:end], location, max_row_bytes)
        at = end


def _row_of_text(text: str, location: str, max_row_bytes: int) -> Row:
    value = text.encode("utf-8", "surrogatepass")
    if len(value) > max_row_bytes:
        return location, too_long(location, max_row_bytes)
    return location, _or_fault(parse_row, value, location)


def _end_of_value(text: str, at: int, path: Path, number: int) -> int:
    try:
        return _LENIENT.raw_decode(text, at)[1]
    except json.JSONDecodeError as fault:
        line = number + text.count("\n", at, fault.pos)
        raise InputError(f"{path}:{line}: not JSON ({fault.msg}, column {fault.colno}); fix the file") from None
    except (RecursionError, ValueError):
        raise InputError(
            f"{path}:{number}: nested deeper than {MAX_DEPTH} levels, or a number too long; fix the file"
        ) from None


def parse_row(line: bytes, location: str) -> dict[str, Any]:
    """The object in one line. `location` is "FILE:LINE". Raises InputError for anything but one plain JSON object.

    NaN and infinities, duplicate keys, lone surrogates and nesting beyond MAX_DEPTH are refused: each would be read
    as something other than what was written, or fail later without a location.
    """

    def refuse(what: str) -> NoReturn:
        raise InputError(f"{location}: {what}; fix or delete the line")

    met: list[str] = []  # NaN and infinities, which only the object around them can name

    def pairs(items: list[tuple[str, Any]]) -> dict[str, Any]:
        made = dict(items)
        if met:
            key = next((key for key, value in items if value is met), None)
            refuse(f"{met[0]} is not JSON{'' if key is None else f' ({key!r})'}")
        if len(made) < len(items):
            seen: set[str] = set()
            twice = next(key for key, _ in items if key in seen or seen.add(key))
            refuse(f"the key {twice!r} occurs twice")
        return made

    try:
        text = line.decode("utf-8")
        row = json.loads(text, object_pairs_hook=pairs, parse_constant=lambda c: met.append(c) or met)
    except json.JSONDecodeError as fault:
        refuse(f"not JSON ({fault.msg}, column {fault.colno})")
    except UnicodeDecodeError as fault:
        refuse(f"not UTF-8 (byte {fault.start + 1})")
    except RecursionError:
        refuse(f"nested deeper than {MAX_DEPTH} levels")
    except InputError:
        raise
    except ValueError:  # its own words speak of an interpreter's setting
        refuse("a number of more than 4,300 digits")
    if not isinstance(row, dict):
        refuse(f"{met[0]} is not JSON") if met else None
        refuse(f'a {type(row).__name__}, not an object such as {{"prompt": ..., "chosen": ..., "rejected": ...}}')
    if _are_columns(row):
        refuse(
            "columns, each with the values of all rows, and not a row; write rows (in pandas: "
            'frame.to_json(path, orient="records", lines=True))'
        )
    check_value(row, refuse, MAX_DEPTH)
    return row


def _are_columns(row: dict[str, Any]) -> bool:
    """Whether it is {column: {"0": value, "1": value}}, as pandas writes a frame, or {column: [values]} with text."""
    first, *others = row.values() or (None,)
    if not others or not isinstance(first, (dict, list)) or not first:
        return False
    if isinstance(first, list):
        are_alike = all(isinstance(column, list) and len(column) == len(first) for column in others)
        return are_alike and all(isinstance(value, str) for value in first)
    are_alike = all(isinstance(column, dict) and column.keys() == first.keys() for column in others)
    return are_alike and all(key.isdigit() for key in first)


def check_value(value: Any, refuse: Callable[[str], NoReturn], depth: int) -> None:
    """Calls `refuse` for what no row may hold: half a surrogate pair, a number beyond floats, nesting beyond depth."""
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
            check_value(item, refuse, depth - 1)
    elif isinstance(value, dict):
        for key, item in value.items():
            check_value(key, refuse, depth - 1)
            check_value(item, refuse, depth - 1)


def _or_fault(read: Callable[[bytes, str], dict[str, Any]], line: bytes, location: str) -> dict[str, Any] | InputError:
    try:
        return read(line, location)
    except InputError as fault:
        return fault


def too_long(location: str, max_row_bytes: int) -> InputError:
    """What is said of a row above the limit."""
    return InputError(f"{location}: longer than {max_row_bytes >> 20} MB; shorten it, or raise --max-row-mb")


def without_mark(start: bytes, path: Path) -> bytes:
    """The beginning of a text file without its byte order mark. Raises InputError for UTF-16."""
    if start.startswith((b"\xff\xfe", b"\xfe\xff")):
        raise InputError(f"{path}: UTF-16; save it as UTF-8")
    return start.removeprefix(b"\xef\xbb\xbf")
