"""Rows from wherever they are: which files a name stands for, and their rows one at a time.

    .jsonl .ndjson .json    data/rows/json_rows.py    location "FILE:LINE"
    .csv .tsv               data/rows/tables.py       location "FILE:LINE"
    .parquet .arrow         data/rows/tables.py       location "FILE:ROW"
    text kinds with .gz     as they are without it
    a folder   its files of these kinds, or what datasets.save_to_disk wrote; a hub id's snapshot is such a folder.
               ":SPLIT" behind either names the split (data/rows/splits.py)

A row is handed on as an object, or as the InputError that says what is wrong with it. Nothing is repaired on the way.
"""

import difflib
import json
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data.rows import hub, json_rows, tables
from data.rows.json_rows import Row
from data.rows.splits import chosen, split_of, splits_of_card
from system import InputError, check_regular

READERS: dict[str, Callable[[Path, int], Iterator[Row]]] = {
    ".jsonl": json_rows.read_jsonl,
    ".json": json_rows.read_json,
    ".ndjson": json_rows.read_jsonl,
    ".csv": tables.read_csv,
    ".tsv": tables.read_tsv,
    ".parquet": tables.read_parquet,
    ".arrow": tables.read_arrow,
}
TEXT_TABLES = (".csv", ".tsv")
NOT_ZIPPED = (".parquet", ".arrow")
OPTIONAL = (
    *("system", "system_prompt", "tools", "functions", "documents", "chat_template_kwargs"),
    *("input", "history"),
)
"""Fields that a row may lack, be they named by --columns."""
FIELDS = (
    *("prompt", "chosen", "rejected", "completion"),
    *("prompt_ids", "chosen_ids", "rejected_ids", "completion_ids", "completions_ids"),
    *("chosen_token_weights", "rejected_token_weights", "completion_token_weights", "completions_token_weights"),
    *("messages", "conversations", "instruction", "output", "completions", "answers"),
    *("rejected_messages", "rejected_response", "preferred_output", "non_preferred_output"),
    *("context", "response1", "response2", "overall_preference"),
    *("label", "kto_tag"),
    *OPTIONAL,
    *tables.NUMBERS,
    "scores",
)
"""Fields of rows that mean something here."""


@dataclass(frozen=True, kw_only=True)
class Reading:
    """How files are read."""

    columns: tuple[tuple[str, str], ...] = ()
    """(our name, the file's name) of columns that are called otherwise there."""
    max_row_mb: int = 4
    """Rows above that are faults."""
    ranked: bool = False
    """Whether all of several completions to a prompt are kept, best first, instead of the best and the worst."""
    listed: bool = False
    """Whether all of several completions to a prompt are kept in the row's order, whatever they are rated: for what
    compares none of them.
    """
    fields: tuple[str, ...] = ()
    """Further numbers of rows that are kept, by name: what an objective asks for."""
    ignored: tuple[str, ...] = ()
    """Columns that are let go, by the file's names."""
    roles: tuple[tuple[str, str], ...] = ()
    """(name, role) of roles that are called otherwise in messages."""
    keeps_json_text: bool = False
    """Whether messages that are written as text stay text."""


def rows_of(source: str | Path, reading: Reading | None = None) -> Iterator[Row]:
    """The rows of a file, a folder or a hub id, in order. Raises InputError where a file itself cannot be read."""
    reading = reading or Reading()
    _check_names(reading)
    lacking = {theirs for ours, theirs in reading.columns if ours in OPTIONAL}
    for path in files_of(source):
        kind = kind_of(path)
        for location, row in READERS[kind](path, reading.max_row_mb * 2**20):
            try:
                if isinstance(row, InputError):
                    raise row
                if lacking:
                    lacking.difference_update(row)
                row = _rename(row, location, reading)
                yield location, tables.typed(row, location, reading.fields) if kind in TEXT_TABLES else row
            except InputError as fault:
                yield location, fault
    if lacking:
        raise InputError(f"{source}: no row has {', '.join(map(repr, sorted(lacking)))}; correct --columns")


def kind_of(path: Path) -> str:
    """Which of the readers' kinds a file is by its name; "" for none of them."""
    name = path.name
    if name.endswith(".gz") and not name.endswith(tuple(f"{kind}.gz" for kind in NOT_ZIPPED)):
        name = name.removesuffix(".gz")
    suffix = Path(name).suffix
    return suffix if suffix in READERS else ""


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
            raise InputError(
                f"{name!r} does not hold numbers; name another column in --fields, or in fields=(...) of the objective"
            )
    known = (*FIELDS, *reading.fields)
    for ours, _ in reading.columns:
        if ours not in known:
            near = difflib.get_close_matches(ours, known, n=1)
            raise InputError(
                f"--columns: {ours!r} is not a known column; "
                + (f"perhaps {near[0]!r}" if near else f"one of {', '.join(known)}")
            )


def _rename(row: dict[str, Any], location: str, reading: Reading) -> dict[str, Any]:
    """The row with our names and without what is let go; a column of ours that another one is to stand for is hidden by
    it.
    """
    if reading.ignored:
        row = {name: value for name, value in row.items() if name not in reading.ignored}
    if not reading.columns:
        return row
    for ours, theirs in reading.columns:
        if theirs not in row and ours not in OPTIONAL:
            raise InputError(
                f'{location}: "{theirs}", which --columns takes as "{ours}", is missing; correct --columns or the row'
            )
    taken = {theirs for _, theirs in reading.columns}
    rest = {name: value for name, value in row.items() if name not in taken}
    return rest | {ours: row[theirs] for ours, theirs in reading.columns if theirs in row}


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
    if kind_of(path) or not hub.is_hub_id(base if colon else name):
        raise InputError(f"{name}: no such file or folder; give {hub.EXAMPLES['dataset']}")
    repo, wanted = (base, split) if colon else (name, None)
    return _files_in(hub.snapshot(repo, "dataset"), wanted, repo)


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
    if not kind_of(path):
        raise InputError(f"{path}: rows are read from {', '.join(READERS)}; convert it to one JSON object per line")
    return path


def _files_in(folder: Path, wanted: str | None, name: str) -> list[Path]:
    """The folder's files of a split; without a name: the one called train, or the only one there is."""
    if (saved := folder / SAVED_SPLITS).exists():
        splits = {split: _saved(folder / split) for split in _named(saved, "splits")}
    else:
        paths = [_checked(path) for path in _walk(folder)]
        splits = splits_of_card(folder, paths)
        for path in () if splits else paths:
            splits.setdefault(split_of(path.relative_to(folder)), []).append(path)
    if not splits:
        raise InputError(f"{name}: contains no files of rows ({', '.join(READERS)})")
    return chosen(splits, wanted, name)


def _walk(folder: Path) -> list[Path]:
    """Everything in a folder with the name of a file of rows, sorted; links to folders are not followed."""

    def refuse(fault: OSError) -> None:
        raise InputError(f"{fault.filename}: cannot be read ({fault.strerror}); change its mode, or name the files")

    found = []
    for where, _, names in os.walk(folder, onerror=refuse):
        paths = [Path(where) / name for name in names]
        if SAVED in names and any(
            p.suffix == ".arrow" for p in paths
        ):  # the other .arrow files beside it are caches of what was done to the rows
            paths = [p for p in paths if p.suffix != ".arrow"] + _saved(Path(where))
        found += paths
    return sorted(p for p in found if kind_of(p) and not _is_about_data(p.relative_to(folder)))


SAVED, SAVED_SPLITS = "state.json", "dataset_dict.json"
"""What datasets.save_to_disk writes: which files hold the rows of a folder, and which folders are splits."""


def _saved(folder: Path) -> list[Path]:
    """The files of a folder of datasets.save_to_disk, in order. Raises InputError where the folder is damaged."""
    names = _named(folder / SAVED, "_data_files", "filename")
    return [_checked(folder / Path(name).name) for name in names]


def _named(path: Path, key: str, inside: str | None = None) -> list[str]:
    """A list of names in a file of datasets.save_to_disk."""
    try:
        found = json.loads(path.read_bytes())[key]
        names = [item[inside] for item in found] if inside else list(found)
        if not all(isinstance(name, str) for name in names):
            raise TypeError
    except (OSError, ValueError, KeyError, TypeError):
        raise InputError(
            f"{path}: not as datasets.save_to_disk writes it, or damaged; save the data set again, or as parquet: "
            'dataset.to_parquet("rows.parquet")'
        ) from None
    return names


def _is_about_data(path: Path) -> bool:
    hidden = any(part.startswith((".", "__")) for part in path.parts)
    return hidden or path.name in ("dataset_infos.json", "dataset_info.json", SAVED_SPLITS, SAVED)
