"""Flags of every command that reads rows: what files call things, and what of them is let go."""

from dataclasses import dataclass

from data.rows.sources import Reading, parse_columns
from data.rows.turns import parse_roles
from system import InputError


@dataclass(frozen=True, kw_only=True)
class ReadingSettings:
    """How rows are read."""

    columns: str | None = None
    """Column names, as EXPECTED=IN_FILE: chosen=winner,rejected=loser,system=persona. Note that --roles has the
    opposite order. Unset: the usual names are recognised."""
    ignore_columns: str | None = None
    """Columns to ignore, separated by commas and named as in the files, such as context,images. Without this flag, a
    column that would change the meaning of a row and cannot be used is an error."""
    roles: str | None = None
    """Message roles, as IN_FILE=EXPECTED (the opposite order of --columns): critic=user,bot=assistant. The usual other
    names (human, gpt, model, developer, function, observation) are recognised without it, in upper or lower case."""
    keep_json_text: bool = False
    """Treat a field as plain text even if it looks like a list of messages in JSON or Python syntax. By default such a
    field is parsed."""
    max_row_mb: int = 4
    """Longest row to accept, in megabytes; a longer row is an error. Encoding a row needs about 250 times its size in
    memory (1 GB for 4 MB)."""

    def __post_init__(self) -> None:
        if not 1 <= self.max_row_mb <= 2**12:
            raise InputError(f"--max-row-mb: {self.max_row_mb} has to be from 1 to {2**12:,}")
        parse_columns(self.columns)
        parse_roles(self.roles)

    @property
    def reading(self) -> Reading:
        """How files are read."""
        return Reading(
            columns=parse_columns(self.columns),
            max_row_mb=self.max_row_mb,
            ignored=tuple(filter(None, map(str.strip, (self.ignore_columns or "").split(",")))),
            roles=parse_roles(self.roles),
            keeps_json_text=self.keep_json_text,
        )
