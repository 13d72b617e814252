"""Rows of tables: CSV, whose values are all text, and parquet and arrow, which need pyarrow."""

import csv
import importlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from data.rows.json_rows import Row, open_rows, too_long, without_mark
from system import InputError, open_regular

MAX_GROUP_BYTES = 4 * 2**30  # of a parquet row group, unpacked
HELD_BYTES = 256 * 2**20  # of parquet values that may be unpacked together
MOST_ROWS = 32
NUMBERS = (
    *("chosen_score", "rejected_score", "own_score", "score_chosen", "score_rejected", "score_own"),
    *("chosen_prob", "rejected_prob", "score", "value", "weight"),
)
"""Fields of rows that are numbers. "score" and "value" may mean other things, which are left alone."""


UNNAMED = "Unnamed: 0"
"""What pandas calls the first column of a table where its header is empty: the index that it has written."""


def read_csv(path: Path, max_row_bytes: int) -> Iterator[Row]:
    """A header and a row a line, or several where a value holds line ends. An empty value is none at all."""
    return _read_text(path, max_row_bytes, ",")


def read_tsv(path: Path, max_row_bytes: int) -> Iterator[Row]:
    """The same with tabs between the values."""
    return _read_text(path, max_row_bytes, "\t")


def _read_text(path: Path, max_row_bytes: int, delimiter: str) -> Iterator[Row]:
    csv.field_size_limit(max_row_bytes)
    with open_rows(path) as binary:
        lines = _Lines(binary, path, max_row_bytes)
        reader = csv.reader(lines, strict=True, delimiter=delimiter)
        location, header = f"{path}:1", _next_line(reader, path, lines) or []
        _check_delimiter(header, delimiter, location)
        if len(header) > 1 and header[0] == "" and UNNAMED not in header:
            header[0] = UNNAMED
        if len(set(header)) < len(header) or "" in header:
            raise InputError(f"{location}: a column has no name, or the name of another; give each its own")
        while True:
            location, values = f"{path}:{reader.line_num + 1}", _next_line(reader, path, lines)
            if values is None:
                return
            if len(values) == len(header):
                yield location, {name: text for name, text in zip(header, values, strict=True) if text != ""}
            elif values:
                said = f"{len(values)} values, the header has {len(header)}; fix or delete the line"
                yield location, InputError(f"{location}: {said}")


class _Lines:
    """The lines of a file as text, of which the last one is kept for messages."""

    def __init__(self, binary: Any, path: Path, max_row_bytes: int) -> None:
        self._pieces = iter(lambda: binary.readline(max_row_bytes), b"")
        self._path = path
        self.last: bytes | None = None

    def __iter__(self) -> "_Lines":
        return self

    def __next__(self) -> str:
        piece = next(self._pieces)
        self.last, is_first = piece, self.last is None
        return (without_mark(piece, self._path) if is_first else piece).decode("utf-8")


def _check_delimiter(header: list[str], delimiter: str, location: str) -> None:
    """Raises InputError for a header that is one column by commas or tabs, and several by something else."""
    only = header[0] if len(header) == 1 else ""
    other = next((sign for sign in (";", "\t", "|", ",") if sign != delimiter and sign in only), None)
    if other:
        names = {";": "semicolons", "\t": "tabs", "|": "bars", ",": "commas"}
        raise InputError(
            f"{location}: values are separated by {names[other]}, not by {names[delimiter]}; save the file with "
            f"{names[delimiter]}{', or call it .tsv' if other == chr(9) else ''}"
        )


def _next_line(reader: Any, path: Path, lines: _Lines) -> list[str] | None:
    """The values of the next row, None at the end. Raises InputError where the rest cannot be read."""
    number = reader.line_num + 1
    try:
        return next(reader, None)
    except UnicodeDecodeError as fault:
        mend = "perhaps it is cp1252; save it as UTF-8 (CSV UTF-8 in a spreadsheet)"
        raise InputError(
            f"{path}:{number}: not CSV in UTF-8 ({fault.reason} 0x{fault.object[fault.start]:02x}); {mend}"
        ) from None
    except csv.Error as fault:
        mend = "fix the file"
        if b'\\"' in (lines.last or b""):
            mend = 'it has quotes after a backslash; in CSV, double a quote inside a value ("")'
        raise InputError(f"{path}:{number}: not CSV in UTF-8 ({fault}); {mend}") from None


def typed(row: dict[str, Any], location: str, fields: Sequence[str] = ()) -> dict[str, Any]:
    """A row of text with its numbers and those of fields that are asked for as what they mean. Raises InputError."""
    made = dict(row)
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
    parquet = _pyarrow(path, "parquet")

    def batches(binary: Any) -> Iterator[tuple[Any, bool]]:
        with parquet.ParquetFile(binary) as file:
            n_rows = _rows_at_once(file, path)
            for batch in file.iter_batches(batch_size=n_rows):
                yield batch, batch.nbytes > max_row_bytes or n_rows < MOST_ROWS

    return _rows_of_batches(path, max_row_bytes, batches, "parquet")


def read_arrow(path: Path, max_row_bytes: int) -> Iterator[Row]:
    """What datasets keeps on disk: arrow's stream or file, a few rows at a time."""
    ipc = _pyarrow(path, "ipc")

    def batches(binary: Any) -> Iterator[tuple[Any, bool]]:
        is_file = binary.read(6) == b"ARROW1"
        binary.seek(0)
        opened = ipc.open_file(binary) if is_file else ipc.open_stream(binary)
        whole = map(opened.get_batch, range(opened.num_record_batches)) if is_file else opened
        for batch in whole:
            for start in range(0, batch.num_rows, MOST_ROWS):
                part = batch.slice(start, MOST_ROWS)
                yield part, part.nbytes > max_row_bytes

    return _rows_of_batches(path, max_row_bytes, batches, "arrow")


def _pyarrow(path: Path, part: str) -> Any:
    try:
        return importlib.import_module(f"pyarrow.{part}")  # an extra: 150 MB that only these files need
    except ImportError:
        raise InputError(f"{path}: reading {path.suffix[1:]} needs pyarrow; pip install 'pyarrow>=15'") from None


def _rows_of_batches(
    path: Path, max_row_bytes: int, batches: Callable[[Any], Iterator[tuple[Any, bool]]], kind: str
) -> Iterator[Row]:
    """The rows of batches, each of which comes with whether one of its rows may be too large."""
    from pyarrow import ArrowException

    number = 0
    try:
        with open_regular(path) as binary:
            for batch, is_large in batches(binary):
                for row in batch.to_pylist():
                    number += 1
                    location = f"{path}:{number}"
                    exceeds = is_large and _size(row) > max_row_bytes
                    yield location, too_long(location, max_row_bytes) if exceeds else _without_nulls(row)
    except InputError:
        raise
    except (ArrowException, OSError, ValueError) as fault:  # text that is not UTF-8 is a ValueError
        where = f"{path}:{number + 1}" if number else f"{path}"
        raise InputError(f"{where}: not {kind}, or damaged ({' '.join(str(fault).split())}); copy it again") from None


def _without_nulls(row: dict[str, Any]) -> dict[str, Any]:
    """A row whose nested objects have only the keys that were written: a table gives each of them the keys of all."""
    return {name: _bare(value) if isinstance(value, (list, dict)) else value for name, value in row.items()}


def _bare(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _bare(item) for key, item in value.items() if item is not None}
    if isinstance(value, list) and value and isinstance(value[0], (list, dict)):
        return [_bare(item) for item in value]
    return value


def _rows_at_once(file: Any, path: Path) -> int:
    """How many rows to unpack together: no value is larger than its column in a row group."""
    largest = 1
    for i in range(file.num_row_groups):
        group = file.metadata.row_group(i)
        if group.total_byte_size > MAX_GROUP_BYTES:
            raise InputError(
                f"{path}: one row group has {group.total_byte_size >> 20} MB, above the limit of "
                f"{MAX_GROUP_BYTES >> 20} MB; write the file with smaller row groups (row_group_size)"
            )
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
