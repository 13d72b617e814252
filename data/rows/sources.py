"""Rows from wherever they are: which files a name stands for, and their rows one at a time.

    .jsonl .json        data/rows/json_rows.py    location "FILE:LINE"
    .csv .parquet       data/rows/tables.py       location "FILE:LINE", "FILE:ROW"
    a folder   its files of these kinds; a hub id's snapshot is such a folder. ":SPLIT" behind either names the split

A row is handed on as an object, or as the InputError that says what is wrong with it. Nothing is repaired on the way.
"""

import difflib
import os
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data.rows import hub, json_rows, tables
from data.rows.json_rows import Row
from system import InputError, check_regular

READERS: dict[str, Callable[[Path, int], Iterator[Row]]] = {
    ".jsonl": json_rows.read_jsonl,
    ".json": json_rows.read_json,
    ".csv": tables.read_csv,
    ".parquet": tables.read_parquet,
}
FIELDS = (
    *("prompt", "chosen", "rejected", "completion"),
    *("prompt_ids", "chosen_ids", "rejected_ids", "completion_ids", "completions_ids"),
    *("chosen_token_weights", "rejected_token_weights", "completion_token_weights", "completions_token_weights"),
    *("label", "messages", "conversations", "instruction", "completions"),
    *tables.NUMBERS,
    "scores",
)
"""Fields of rows that mean something here."""
SPLITS = ("train", "test", "validation", "valid", "val", "dev", "eval", "heldout")


@dataclass(frozen=True, kw_only=True)
class Reading:
    """How files are read."""

    columns: tuple[tuple[str, str], ...] = ()
    """(our name, the file's name) of columns that are called otherwise there."""
    max_row_mb: int = 64
    """Rows above that are faults."""
    ranked: bool = False
    """Whether all of several completions to a prompt are kept, best first, instead of the best and the worst."""
    listed: bool = False
    """Whether all of several completions to a prompt are kept in the row's order, whatever they are rated: for what
    compares none of them.
    """
    fields: tuple[str, ...] = ()
    """Further numbers of rows that are kept, by name: what an objective asks for."""


def rows_of(source: str | Path, reading: Reading | None = None) -> Iterator[Row]:
    """The rows of a file, a folder or a hub id, in order. Raises InputError where a file itself cannot be read."""
    reading = reading or Reading()
    _check_names(reading)
    for path in files_of(source):
        for location, row in READERS[path.suffix](path, reading.max_row_mb * 2**20):
            try:
                if isinstance(row, InputError):
                    raise row
                row = _rename(row, location, reading.columns)
                yield location, tables.typed(row, location, reading.fields) if path.suffix == ".csv" else row
            except InputError as fault:
                yield location, fault


def parse_columns(text: str | None) -> tuple[tuple[str, str], ...]:
    """ "chosen=winner,rejected=loser" as pairs. Raises InputError. Names of ours are checked when rows are read: an
    objective may bring further ones.
    """
    pairs = [part.partition("=") for part in text.split(",")] if text else []
    names = [(ours.strip(), theirs.strip()) for ours, _, theirs in pairs]
    if not all(ours and theirs for ours, theirs in names) or len(dict(names)) < len(names):
        raise InputError(f"--columns: {text!r} is not of the form chosen=winner,rejected=loser")
    return tuple(names)


def _check_names(reading: Reading) -> None:
    """Raises InputError for a column that nothing asks for, and for a number that would have to be read out of text."""
    for name in reading.fields:
        if name in FIELDS and name not in tables.NUMBERS:
            raise InputError(f"{name!r} is asked for as a number of each row, and is none; ask for another field")
    known = (*FIELDS, *reading.fields)
    for ours, _ in reading.columns:
        if ours not in known:
            near = difflib.get_close_matches(ours, known, n=1)
            raise InputError(
                f"--columns: rows have no {ours!r}; "
                + (f"perhaps {near[0]!r}" if near else f"one of {', '.join(known)}")
            )


def _rename(row: dict[str, Any], location: str, columns: tuple[tuple[str, str], ...]) -> dict[str, Any]:
    """The row with our names; a column of ours that another one is to stand for is hidden by it."""
    for ours, theirs in columns:
        if theirs not in row:
            raise InputError(
                f'{location}: "{theirs}", which is to be "{ours}", is missing; correct --columns or the row'
            )
    taken = {theirs for _, theirs in columns}
    rest = {name: value for name, value in row.items() if name not in taken}
    return rest | {ours: row[theirs] for ours, theirs in columns}


# --- which files ---------------------------------------------------------------------------------------------------


def files_of(source: str | Path) -> list[Path]:
    """The files that a source stands for. Raises InputError, before anything is opened."""
    name = str(source)
    path = Path(name)
    if _exists(path):
        return _files_in(path, None, name) if path.is_dir() else [_checked(path)]
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
    except (OSError, ValueError) as fault:  # too long, locked; a zero byte in it
        raise InputError(f"{path}: cannot be read ({getattr(fault, 'strerror', fault)}); check its name") from None
    return True


def _checked(path: Path) -> Path:
    check_regular(path)
    if path.suffix not in READERS:
        raise InputError(f"{path}: rows are read from {', '.join(READERS)}; convert it to one JSON object per line")
    return path


def _files_in(folder: Path, wanted: str | None, name: str) -> list[Path]:
    """The folder's files of a split; without a name: the one called train, or the only one there is."""
    splits: dict[str, list[Path]] = {}
    for path in _walk(folder):
        splits.setdefault(_split_of(path.relative_to(folder)), []).append(_checked(path))
    if not splits:
        raise InputError(f"{name}: no files of rows in it ({', '.join(READERS)})")
    fitting = [split for split in splits if wanted in (split, split.rpartition("/")[2])] if wanted else list(splits)
    if len(fitting) > 1:
        fitting = [split for split in fitting if split == (wanted or "train")] or [
            split for split in fitting if split.rpartition("/")[2] == (wanted or "train")
        ]
    if len(fitting) != 1:
        known = ", ".join(sorted(split or "(other files)" for split in splits))
        example = max(sorted(splits), key=bool)
        raise InputError(f"{name}: has the splits {known}; name one, such as {name}:{example}")
    return splits[fitting[0]]


def _walk(folder: Path) -> list[Path]:
    """Everything in a folder with the name of a file of rows, sorted; links to folders are not followed."""

    def refuse(fault: OSError) -> None:
        raise InputError(f"{fault.filename}: cannot be read ({fault.strerror}); change its mode, or name the files")

    found = []
    for where, _, names in os.walk(folder, onerror=refuse):
        found += [Path(where) / name for name in names]
    return sorted(p for p in found if p.suffix in READERS and not _is_about_data(p.relative_to(folder)))


def _is_about_data(path: Path) -> bool:
    hidden = any(part.startswith((".", "__")) for part in path.parts)
    return hidden or path.name in ("dataset_infos.json", "dataset_info.json", "dataset_dict.json", "state.json")


def _split_of(path: Path) -> str:
    """Which split a file belongs to, with its configuration before it: "train", "en/train"; "" where none is named.

    The file's name tells (train-00000-of-00002.parquet, test.jsonl, train_prefs-...), else the folder it lies in
    (train/part-1.jsonl); the folders above are the configuration, data/ and default/ are none.
    """
    stem = re.sub(r"-\d+-of-\d+(-[0-9a-f]+)?$|[-_.]?\d+$", "", path.stem)
    above = [part for part in path.parts[:-1] if part not in ("data", "default")]
    if _is_split(stem):
        return "/".join([*above, stem])
    if above and _is_split(above[-1]):
        return "/".join(above)
    return ""


def _is_split(word: str) -> bool:
    return re.split(r"[^a-z]", word.lower())[0] in SPLITS
