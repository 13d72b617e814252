"""Rows of tables: CSV, whose values are all text, and parquet, which needs pyarrow."""

import csv
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from data.rows.json_rows import Row, too_long, without_mark
from system import InputError, open_regular

MAX_GROUP_BYTES = 4 * 2**30  # of a parquet row group, unpacked
HELD_BYTES = 256 * 2**20  # of parquet values that may be unpacked together
MOST_ROWS = 32
NUMBERS = (
    *("chosen_score", "rejected_score", "own_score", "score_chosen", "score_rejected", "score_own"),
    *("chosen_prob", "rejected_prob", "score", "value", "weight"),
)
"""Fields of rows that are numbers. The last three may mean other things, which are left alone."""


def read_csv(path: Path, max_row_bytes: int) -> Iterator[Row]:
    """A header and a row a line, or several where a value holds line ends. An empty value is none at all."""
    csv.field_size_limit(max_row_bytes)
    with open_regular(path) as binary:
        pieces = iter(lambda: binary.readline(max_row_bytes), b"")
        lines = ((piece if i else without_mark(piece, path)).decode("utf-8") for i, piece in enumerate(pieces))
        reader = csv.reader(lines, strict=True)
        location, header = f"{path}:1", _next_line(reader, path) or []
        if len(set(header)) < len(header) or "" in header:
            raise InputError(f"{location}: a column has no name, or that of another; name each once")
        while True:
            location, values = f"{path}:{reader.line_num + 1}", _next_line(reader, path)
            if values is None:
                return
            if len(values) == len(header):
                yield location, {name: text for name, text in zip(header, values, strict=True) if text != ""}
            elif values:
                said = f"{len(values)} values, the header has {len(header)}; mend or delete the line"
                yield location, InputError(f"{location}: {said}")


def _next_line(reader: Any, path: Path) -> list[str] | None:
    """The values of the next row, None at the end. Raises InputError where the rest cannot be read."""
    number = reader.line_num + 1
    try:
        return next(reader, None)
    except (csv.Error, UnicodeDecodeError) as fault:
        raise InputError(f"{path}:{number}: not CSV in UTF-8 ({fault}); mend the file") from None


def typed(row: dict[str, Any], location: str, fields: Sequence[str] = ()) -> dict[str, Any]:
    """A row of text with its label (true, false, 1, 0), its numbers and those of fields that are asked for as what they
    mean. Raises InputError.
    """
    made = dict(row)
    if isinstance(made.get("label"), str):
        made["label"] = {"true": True, "1": True, "false": False, "0": False}.get(made["label"].lower(), made["label"])
    for name in (*NUMBERS, *fields):
        if name in made:
            try:
                made[name] = float(made[name])
            except ValueError:
                if name not in NUMBERS[:-3]:
                    continue
                raise InputError(f'{location}: "{name}" is {made[name]!r}; it has to be a number') from None
    return made


def read_parquet(path: Path, max_row_bytes: int) -> Iterator[Row]:
    """A few rows at a time: a file of a kilobyte that stands for gigabytes takes no more than HELD_BYTES and a row."""
    try:
        from pyarrow import ArrowException, parquet  # an extra: 150 MB that only parquet needs
    except ImportError:
        raise InputError(f"{path}: reading parquet needs pyarrow; pip install 'pyarrow>=15'") from None
    number = 0
    try:
        with open_regular(path) as binary, parquet.ParquetFile(binary) as file:
            n_rows = _rows_at_once(file, path)
            for batch in file.iter_batches(batch_size=n_rows):
                is_large = batch.nbytes > max_row_bytes or n_rows < MOST_ROWS
                for row in batch.to_pylist():
                    number += 1
                    location = f"{path}:{number}"
                    exceeds = is_large and _size(row) > max_row_bytes
                    yield location, too_long(location, max_row_bytes) if exceeds else row
    except InputError:
        raise
    except (ArrowException, OSError, ValueError) as fault:  # text that is not UTF-8 is a ValueError
        where = f"{path}:{number + 1}" if number else f"{path}"
        raise InputError(f"{where}: not parquet, or damaged ({' '.join(str(fault).split())}); copy it anew") from None


def _rows_at_once(file: Any, path: Path) -> int:
    """How many rows to unpack together: no value is larger than its column in a row group."""
    largest = 1
    for i in range(file.num_row_groups):
        group = file.metadata.row_group(i)
        if group.total_byte_size > MAX_GROUP_BYTES:
            raise InputError(f"{path}: a row group of {group.total_byte_size >> 20} MB; write it with smaller ones")
        columns = [group.column(j).total_uncompressed_size for j in range(group.num_columns)]
        largest = max(largest, *columns)
    return max(1, min(MOST_ROWS, HELD_BYTES // largest))


def _size(value: Any) -> int:
    """Bytes of text in a value, about."""
    if isinstance(value, dict):
        return sum(map(_size, value.values()))
    if isinstance(value, (list, tuple)):
        return sum(map(_size, value))
    return len(value) if isinstance(value, (str, bytes)) else 8
