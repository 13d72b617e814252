"""From what a user names to what is trained on: a model folder with its tokenizer, a file as examples."""

from dataclasses import dataclass
from pathlib import Path

from data import InputError
from data.chat import Chat
from data.errors import list_faults
from data.examples import Example, Limits, encode
from data.records import read_records
from data.tokenizer import Tokenizer
from engine.hub import find_model


@dataclass(frozen=True)
class Rows:
    """A file as examples, and what was cut or left out."""

    examples: list[Example]
    n_skipped: int
    skipped: list[str]
    """Why, for the first ten."""
    cut_prompts: int
    cut_responses: int

    def report(self, name: str) -> str:
        """What a user has to know about it, in a line."""
        said = f"{name}: {len(self.examples)} rows, {self.cut_prompts} prompts and {self.cut_responses} responses cut"
        return said + (f", {self.n_skipped} rows skipped: " + "; ".join(self.skipped) if self.n_skipped else "")


def open_model(name: str) -> tuple[Path, Chat | None]:
    """The folder of a model and its chat; None where the folder has no tokenizer. Raises InputError."""
    folder = find_model(name)
    if not (folder / "config.json").is_file():
        raise InputError(f"{folder}: no config.json; give a checkpoint folder in Hugging Face's layout")
    return folder, Chat(Tokenizer(folder)) if (folder / "tokenizer.json").is_file() else None


def read_rows(name: str, chat: Chat | None, limits: Limits, *, n_ids: int, skip_bad_rows: bool) -> Rows:
    """A file as examples. Raises InputError listing the first ten bad rows, or where no good one is there."""
    loaded = read_records(name)
    encoded = encode(loaded.records, chat, limits, n_ids=n_ids)
    faults = loaded.faults + encoded.faults
    n_rows = len(loaded.records) + len(loaded.faults)
    if faults and not skip_bad_rows:
        raise list_faults(faults, n_rows, mend="mend them, or go on without them: --skip-bad-rows")
    if not encoded.examples:
        raise InputError(
            f"{name}: none of {n_rows} rows can be used; give at least one" + "".join(f"\n  {f}" for f in faults[:10])
        )
    return Rows(encoded.examples, len(faults), faults[:10], encoded.cut_prompts, encoded.cut_responses)
