"""Rows as records: sources read row by row, each as a record or as what is wrong with it, by file and line.

data/rows/forms.py has what a row may look like, data/rows/record.py what becomes of it.
"""

from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

from data.rows.forms import parse_prompt, parse_record
from data.rows.record import NO_RATINGS, PromptRow, Ratings, Record, Tie
from data.rows.sources import Reading, rows_of
from data.text import ROLES
from system import InputError, list_faults

__all__ = [
    "NO_RATINGS",
    "NotUsed",
    "PromptRow",
    "Ratings",
    "Record",
    "Tie",
    "load_preferences",
    "parse_prompt",
    "parse_record",
    "prompts_of",
    "read_prompts",
    "read_records",
]
SHOWN_COLUMNS = 20


class NotUsed:
    """What rows hold and nothing reads, how many of their fields were messages written as text, and how many answers
    lose blanks that may be code's.
    """

    def __init__(self) -> None:
        self.columns: dict[str, None] = {}
        """Names, in the order in which they were met."""
        self.n_parsed = 0
        """Fields that were messages written as text."""
        self.n_indented = 0
        """Answers that begin with blanks as code does, which are trimmed."""

    def add(self, record: Record | PromptRow) -> None:
        """Counts one record in."""
        self.n_parsed += record.n_parsed
        self.n_indented += record.n_indented if isinstance(record, Record) else 0
        if record.unused:
            self.columns.update(dict.fromkeys(record.unused))

    def facts(self) -> dict[str, Any]:
        """What a run writes down of it; nothing where there is nothing."""
        facts: dict[str, Any] = {"not_used": list(self.columns)} if self.columns else {}
        counts = {"messages_in_text": self.n_parsed, "answers_without_their_indent": self.n_indented}
        return facts | {name: n for name, n in counts.items() if n}

    def sentences(self) -> list[str]:
        """What a user has to know of it."""
        said = []
        if names := list(self.columns):
            more = f" and {len(names) - SHOWN_COLUMNS} more" if len(names) > SHOWN_COLUMNS else ""
            said.append(f"not used: {', '.join(name[:60] for name in names[:SHOWN_COLUMNS])}{more}")
        if self.n_parsed:
            said.append(
                f"{self.n_parsed} texts are messages, and are read as such (--keep-json-text keeps them as text)"
            )
        if self.n_indented:
            said.append(
                f"{self.n_indented} answers begin with blanks, as code does; they are trimmed, as all contents are"
            )
        return said


def load_preferences(
    source: str | Path, *, skip_bad_rows: bool = False, reading: Reading | None = None
) -> list[Record]:
    """The records of a file (.jsonl, .json, .csv, .parquet, ...), a folder of such files or a hub id, in order.

    Rows of answers that are rated alike are left out. Raises InputError listing the first ten bad rows, or, with
    skip_bad_rows, where no good row is left.
    """
    found = list(read_records(source, reading))
    records = [item for item in found if isinstance(item, Record)]
    faults = [str(item) for item in found if isinstance(item, InputError) and not isinstance(item, Tie)]
    if faults and not skip_bad_rows:
        raise list_faults(faults, len(found), mend="fix them, or leave them out: --skip-bad-rows")
    if not records:
        raise InputError(f'{source}: no row can be used; rows have the form {{"prompt", "chosen", "rejected"}}')
    return records


def read_records(
    source: str | Path, reading: Reading | None = None, *, roles: Collection[str] = ROLES
) -> Iterator[Record | InputError]:
    """Each row of a source as a record, or what is wrong with it. roles: those that a message may have beside the usual
    ones.

    Raises InputError where a file itself cannot be read.
    """
    reading = reading or Reading()
    for location, row in rows_of(source, reading):
        if isinstance(row, InputError):
            yield row
            continue
        try:
            yield parse_record(row, location, roles=roles, reading=reading)
        except InputError as fault:
            yield fault


def prompts_of(
    source: str | Path, reading: Reading | None = None, *, roles: Collection[str] = ROLES
) -> Iterator[PromptRow | InputError]:
    """Each row of a source with its prompt, or what is wrong with it. Raises InputError where a file itself cannot be
    read.
    """
    reading = reading or Reading()
    for location, row in rows_of(source, reading):
        if isinstance(row, InputError):
            yield row
            continue
        try:
            yield parse_prompt(row, location, roles=roles, reading=reading)
        except InputError as fault:
            yield fault


def read_prompts(
    source: str | Path, reading: Reading | None = None, *, roles: Collection[str] = ROLES
) -> list[PromptRow]:
    """The rows of a source that has prompts; answers are not looked at.

    Raises InputError listing the first ten bad rows, or where there is no row.
    """
    found = list(prompts_of(source, reading, roles=roles))
    if faults := [str(item) for item in found if isinstance(item, InputError)]:
        raise list_faults(faults, len(found), mend="fix or delete them")
    if not found:
        raise InputError(f'{source}: no prompts; write lines such as {{"prompt": "..."}}')
    return [item for item in found if isinstance(item, PromptRow)]
