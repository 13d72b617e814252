"""Flags of every command that reads rows: what files call things, and what of them is let go."""

from dataclasses import dataclass

from data.rows.sources import Reading, parse_columns
from data.rows.turns import parse_roles
from system import InputError


@dataclass(frozen=True, kw_only=True)
class ReadingSettings:
    """How rows are read."""

    columns: str | None = None
    """Columns that are called otherwise in the files: chosen=winner,rejected=loser,system=persona."""
    ignore_columns: str | None = None
    """Columns that are let go, as the files call them, though they carry meaning: context,images."""
    roles: str | None = None
    """Roles of messages that are called otherwise in the files: critic=user,bot=assistant. Usual other names (human,
    gpt, model, developer, function, observation) are known, in any case."""
    keep_json_text: bool = False
    """Leave fields that are messages written as text (JSON, or as Python prints them) as text."""
    max_row_mb: int = 4
    """Rows above that many megabytes are faults: encoding one takes some 250 bytes of memory for each of its own."""

    def __post_init__(self) -> None:
        if not 1 <= self.max_row_mb <= 2**12:
            raise InputError(f"--max-row-mb: {self.max_row_mb} is not above 0, or above {2**12:,}")
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
