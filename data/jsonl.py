"""JSON Lines, read strictly: every fault is located, and nothing is repaired on the way."""

import json
import math
import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NoReturn

from data.errors import InputError

MAX_ROW_BYTES = 64 * 2**20
MAX_DEPTH = 32


def read_lines(path: Path) -> Iterator[tuple[str, bytes]]:
    """("FILE:LINE", bytes) of each line that is not blank, a line at a time.

    Lines end at \\n only (U+2028 and its kin are text); a byte order mark and \\r before the end are dropped.
    Raises InputError where the file is missing, not a regular file, unreadable, or a line is above MAX_ROW_BYTES.
    """
    try:
        kind = path.stat().st_mode
        if not stat.S_ISREG(kind):
            raise InputError(f"{path}: not a regular file; give a .jsonl file")
        file = open(path, "rb", opener=lambda p, flags: os.open(p, flags | os.O_NONBLOCK))  # noqa: SIM115
    except FileNotFoundError:
        raise InputError(f"{path}: no such file") from None
    except OSError as fault:
        raise InputError(f"{path}: cannot be read ({fault.strerror})") from None
    with file:
        number = 0
        while line := file.readline(MAX_ROW_BYTES + 1):
            number += 1
            if len(line) > MAX_ROW_BYTES:
                raise InputError(f"{path}:{number}: longer than {MAX_ROW_BYTES >> 20} MB; is it JSON Lines?")
            if number == 1:
                line = line.removeprefix(b"\xef\xbb\xbf")
            if line := line.strip(b" \t\r\n"):
                yield f"{path}:{number}", line


def parse_row(line: bytes, place: str) -> dict[str, Any]:
    """The object in one line. `place` is "FILE:LINE". Raises InputError for anything but one plain JSON object.

    NaN and infinities, duplicate keys, lone surrogates and nesting beyond MAX_DEPTH are refused: each would be read
    as something other than what was written, or fail later without a place.
    """

    def refuse(what: str) -> NoReturn:
        raise InputError(f"{place}: {what}; mend or delete the line")

    def pairs(items: list[tuple[str, Any]]) -> dict[str, Any]:
        made = dict(items)
        if len(made) < len(items):
            twice = next(key for i, (key, _) in enumerate(items) if key in {k for k, _ in items[:i]})
            refuse(f"the key {twice!r} stands twice")
        return made

    try:
        row = json.loads(
            line.decode("utf-8"), object_pairs_hook=pairs, parse_constant=lambda c: refuse(f"{c} is not JSON")
        )
    except json.JSONDecodeError as fault:
        refuse(f"not JSON ({fault.msg}, column {fault.colno})")
    except UnicodeDecodeError as fault:
        refuse(f"not UTF-8 (byte {fault.start + 1})")
    except RecursionError:
        refuse(f"nested deeper than {MAX_DEPTH} levels")
    except InputError:
        raise
    except ValueError as fault:  # an integer of more than 4,300 digits
        refuse(f"not JSON ({fault})")
    if not isinstance(row, dict):
        refuse(f'a {type(row).__name__}, not an object such as {{"prompt": ..., "chosen": ..., "rejected": ...}}')
    _check_value(row, refuse, MAX_DEPTH)
    return row


def _check_value(value: Any, refuse: Any, depth: int) -> None:
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
