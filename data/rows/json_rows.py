"""JSON, read strictly: every fault is located, and nothing is repaired on the way."""

import json
import math
import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NoReturn

from system import InputError, open_regular

MAX_DEPTH = 32
MAX_LIST_BYTES = 2**30  # of a .json list, which cannot be read a row at a time

Row = tuple[str, dict[str, Any] | InputError]
"""("FILE:LINE", the row or what is wrong with it)"""


def read_jsonl(path: Path, max_row_bytes: int) -> Iterator[Row]:
    """A row a line."""
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
    with open_regular(path) as file:
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


def read_json(path: Path, max_row_bytes: int) -> Iterator[Row]:
    """A list of objects, one at a time; where the file begins otherwise it is JSON Lines under another name."""
    with open_regular(path) as file:
        if file.read(64).removeprefix(b"\xef\xbb\xbf").lstrip(b" \t\r\n")[:1] != b"[":
            yield from read_jsonl(path, max_row_bytes)
            return
        if os.fstat(file.fileno()).st_size > MAX_LIST_BYTES:
            raise InputError(f"{path}: a list above {MAX_LIST_BYTES >> 20} MB; convert it to one JSON object per line")
        file.seek(0)
        content = without_mark(file.read(), path)
    try:
        text = content.decode("utf-8")
    except UnicodeDecodeError as fault:
        number = 1 + content.count(b"\n", 0, fault.start)
        raise InputError(f"{path}:{number}: not UTF-8; mend the file") from None
    yield from _objects_in_list(text, path, max_row_bytes)


_BETWEEN = re.compile(r"[ \t\r\n]*(,?)[ \t\r\n]*(\]?)")
_LENIENT = json.JSONDecoder()


def _objects_in_list(text: str, path: Path, max_row_bytes: int) -> Iterator[Row]:
    """Raises InputError where the list itself is broken, so that the rows behind are out of reach."""
    at, number, counted, is_first = text.index("[") + 1, 1, 0, True
    while True:
        match = _BETWEEN.match(text, at)
        assert match is not None  # it matches nothing at all, too
        at = match.end()
        number, counted = number + text.count("\n", counted, at), at
        location = f"{path}:{number}"
        if match[2] and not match[1]:
            if text[at:].strip():
                raise InputError(f"{location}: text behind the list's end; mend the file")
            return
        if bool(match[1]) == is_first or match[2] or at == len(text):
            what = (
                "the list does not end" if at == len(text) and not match[1] else "a comma too many, or one that lacks"
            )
            raise InputError(f"{location}: not JSON ({what}); mend the file")
        is_first = False
        end = _end_of_value(text, at, path, number)
        value = text[at:end].encode("utf-8", "surrogatepass")
        at = end
        yield (
            location,
            too_long(location, max_row_bytes) if len(value) > max_row_bytes else _or_fault(parse_row, value, location),
        )


def _end_of_value(text: str, at: int, path: Path, number: int) -> int:
    try:
        return _LENIENT.raw_decode(text, at)[1]
    except json.JSONDecodeError as fault:
        line = number + text.count("\n", at, fault.pos)
        raise InputError(f"{path}:{line}: not JSON ({fault.msg}, column {fault.colno}); mend the file") from None
    except (RecursionError, ValueError):
        raise InputError(f"{path}:{number}: nested deeper than {MAX_DEPTH} levels, or a number too long") from None


def parse_row(line: bytes, location: str) -> dict[str, Any]:
    """The object in one line. `location` is "FILE:LINE". Raises InputError for anything but one plain JSON object.

    NaN and infinities, duplicate keys, lone surrogates and nesting beyond MAX_DEPTH are refused: each would be read
    as something other than what was written, or fail later without a location.
    """

    def refuse(what: str) -> NoReturn:
        raise InputError(f"{location}: {what}; mend or delete the line")

    def pairs(items: list[tuple[str, Any]]) -> dict[str, Any]:
        made = dict(items)
        if len(made) < len(items):
            seen: set[str] = set()
            twice = next(key for key, _ in items if key in seen or seen.add(key))
            refuse(f"the key {twice!r} stands twice")
        return made

    try:
        text = line.decode("utf-8")
        row = json.loads(text, object_pairs_hook=pairs, parse_constant=lambda c: refuse(f"{c} is not JSON"))
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


def _or_fault(read: Callable[[bytes, str], dict[str, Any]], line: bytes, location: str) -> dict[str, Any] | InputError:
    try:
        return read(line, location)
    except InputError as fault:
        return fault


def too_long(location: str, max_row_bytes: int) -> InputError:
    """What is said of a row above the limit."""
    return InputError(f"{location}: longer than {max_row_bytes >> 20} MB; mend it, or raise --max-row-mb")


def without_mark(start: bytes, path: Path) -> bytes:
    """The beginning of a text file without its byte order mark. Raises InputError for UTF-16."""
    if start.startswith((b"\xff\xfe", b"\xfe\xff")):
        raise InputError(f"{path}: UTF-16; save it as UTF-8")
    return start.removeprefix(b"\xef\xbb\xbf")
