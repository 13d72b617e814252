"""From what a user names to what is trained on: a model folder with its tokenizer, files as examples.

    sources -> rows -> records -> token ids -> examples

Rows flow through one chunk at a time; only token ids stay, so that memory does not grow with the text.
"""

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np

from data.rows.examples import Cut, Example, Limits, encode
from data.rows.hub import find_model
from data.rows.records import Record, Tie, read_records
from data.rows.sources import Reading, parse_columns
from data.text import ROLES, Chat, Tokenizer, has_tokenizer
from system import InputError, list_faults

SHOWN_FAULTS = 10


@dataclass(frozen=True, kw_only=True)
class RowSettings:
    """Flags of every command that reads rows as the trainer does."""

    max_prompt_tokens: int = 512
    """Longer prompts are cut."""
    max_response_tokens: int = 512
    """Longer responses lose their end, and with it the end-of-turn token."""
    keep_prompt: Literal["end", "start"] = "end"
    """Which part of a prompt that is too long stays; BOS and the template's headers always do."""
    columns: str | None = None
    """Columns that are called otherwise in the files: chosen=winner,rejected=loser."""
    max_row_mb: int = 64
    """Rows above that many megabytes are faults."""

    def __post_init__(self) -> None:
        for name, most in (("max_prompt_tokens", 2**24), ("max_response_tokens", 2**24), ("max_row_mb", 2**12)):
            if not 1 <= getattr(self, name) <= most:
                flag = f"--{name.replace('_', '-')}"
                raise InputError(f"{flag}: {getattr(self, name)} is not above 0, or above {most:,}")
        parse_columns(self.columns)

    @property
    def limits(self) -> Limits:
        """How much of a row is used."""
        return Limits(
            prompt_tokens=self.max_prompt_tokens,
            response_tokens=self.max_response_tokens,
            keep_prompt=self.keep_prompt,
        )

    @property
    def reading(self) -> Reading:
        """How files are read."""
        return Reading(columns=parse_columns(self.columns), max_row_mb=self.max_row_mb)


@dataclass
class Rows:
    """Sources as examples, and what was cut or left out."""

    name: str
    """What the user called them."""
    examples: list[Example] = field(default_factory=list)
    n_skipped: int = 0
    skipped: list[str] = field(default_factory=list)
    """Why, for the first ten."""
    n_ties: int = 0
    """Rows whose answers are rated alike, so that no pair can be made of them."""
    cut_prompts: int = 0
    cut_responses: int = 0
    n_read: int = 0
    """Rows that were looked at, of whatever kind."""

    def add(self, item: Cut | InputError) -> None:
        """Counts one row in."""
        self.n_read += 1
        if isinstance(item, Tie):
            self.n_ties += 1
        elif isinstance(item, InputError):
            self.n_skipped += 1
            self.skipped += [str(item)] if self.n_skipped <= SHOWN_FAULTS else []
        else:
            self.examples.append(item.example)
            self.cut_prompts += item.is_prompt_cut
            self.cut_responses += item.n_cut_responses

    def facts(self) -> dict[str, Any]:
        """What a run writes down about them."""
        return {
            "rows": len(self.examples),
            "cut_prompts": self.cut_prompts,
            "cut_responses": self.cut_responses,
            "skipped_rows": self.n_skipped,
            "skipped": self.skipped,
            "ties": self.n_ties,
            "token_ids_sha256": digest(self.examples).hexdigest(),
            "report": self.report(),
        }

    def report(self) -> str:
        """What a user has to know about them, in a line."""
        said = (
            f"{self.name}: {len(self.examples)} rows, {self.cut_prompts} prompts and {self.cut_responses} responses cut"
        )
        said += f", {self.n_ties} rows left out whose answers are rated alike" if self.n_ties else ""
        return said + (f", {self.n_skipped} rows skipped: " + "; ".join(self.skipped) if self.n_skipped else "")


def open_model(name: str) -> tuple[Path, Chat | None]:
    """The folder of a model and its chat; None where the folder has no tokenizer. Raises InputError."""
    try:
        folder = find_model(name)
        if not (folder / "config.json").exists() and (folder / "adapter_config.json").exists():
            raise InputError(f"{folder}: an adapter, and no config.json; merge it into its model, and give that folder")
        if not (folder / "config.json").exists():
            raise InputError(f"{folder}: no config.json; give a checkpoint folder in Hugging Face's layout")
        return folder, Chat(Tokenizer(folder)) if has_tokenizer(folder) else None
    except OSError as fault:
        raise InputError(f"{fault.filename or name}: cannot be read ({fault.strerror}); change its mode") from None


def read_examples(
    sources: Sequence[str],
    chat: Chat | None,
    limits: Limits,
    reading: Reading,
    *,
    n_ids: int,
    skip_bad_rows: bool = False,
    weights: Sequence[float] = (),
    seed: int = 0,
) -> Rows:
    """Sources as examples, one after the other.

    n_ids: size of the model's vocabulary. weights: how often the rows of each source are taken: 2 is twice, 0.5 a half
    of them, drawn by the seed. Raises InputError listing the first ten bad rows, or where no good one is there.
    """
    if chat is not None:
        _check_fits(chat, n_ids)
    rows = Rows(", ".join(sources))
    for i, source in enumerate(sources):
        before = len(rows.examples)
        for item in _cuts(source, chat, limits, reading, n_ids):
            rows.add(item)
        if weights and weights[i] != 1:
            rows.examples[before:] = _weighted(rows.examples[before:], weights[i], (seed, i))
    if rows.n_skipped and not skip_bad_rows:
        mend = "mend them, or go on without them: --skip-bad-rows"
        raise list_faults(rows.skipped, rows.n_read, mend=mend, n_faults=rows.n_skipped)
    if not rows.examples:
        why = "".join(f"\n  {fault}" for fault in rows.skipped)
        raise InputError(f"{rows.name}: none of {rows.n_read} rows can be used; give at least one{why}")
    return rows


def find_cut(
    location: str, sources: Sequence[str], chat: Chat | None, limits: Limits, reading: Reading, *, n_ids: int
) -> Cut:
    """The example of the row at a location ("FILE:LINE"), with what was cut of it. Raises InputError where it is not
    there any more, or cannot be used.
    """
    for source in sources:
        for record in read_records(source, reading, roles=chat.roles if chat else ROLES):
            if isinstance(record, Record) and record.location == location:
                (cut,) = encode([record], chat, limits, n_ids=n_ids)
                if isinstance(cut, InputError):
                    raise cut
                return cut
    raise InputError(f"{location}: the row is gone; the file was changed while it was read")


def digest(examples: Iterable[Example]) -> "hashlib._Hash":
    """SHA-256 over the token ids of examples, and over their token weights where they have some: what a run has really
    been fed. Which tokens were revised follows from the ids.
    """
    whole = hashlib.sha256()
    for example in examples:
        for ids in (example.prompt, *example.responses):
            whole.update(len(ids).to_bytes(8, "little") + ids.tobytes())
        for weights in example.token_weights or ():
            whole.update(b"weights" + len(weights).to_bytes(8, "little") + weights.tobytes())
    return whole


def _cuts(source: str, chat: Chat | None, limits: Limits, reading: Reading, n_ids: int) -> Iterator[Cut | InputError]:
    records = read_records(source, reading, roles=chat.roles if chat else ROLES)
    return encode(records, chat, limits, n_ids=n_ids)


def _weighted(examples: list[Example], weight: float, seed: tuple[int, int]) -> list[Example]:
    whole, part = divmod(weight, 1)
    n = round(part * len(examples))
    drawn = np.random.default_rng(seed).choice(len(examples), n, replace=False)
    return examples * int(whole) + [examples[i] for i in sorted(drawn.tolist())]


def _check_fits(chat: Chat, n_ids: int) -> None:
    """Raises InputError where every row would hold an id that the model has no row for."""
    for token in (chat.tokenizer.bos_id if chat.tokenizer.adds_bos else None, chat.end_of_turn):
        if token is not None and token >= n_ids:
            raise InputError(
                f"{chat.tokenizer.folder}: the tokenizer's {chat.tokenizer.spelling(token)} is id {token}, config.json "
                f"says vocab_size {n_ids}; tokenizer and weights have to belong together"
            )


def hold_out(rows: Sequence[Example], n: int, seed: int) -> tuple[list[Example], list[Example]]:
    """The rows without n drawn ones, and these. A row that is taken several times is held out with all of them.

    Raises InputError where none would be left to train on.
    """
    by_location = {e.location: e for e in rows}
    if n >= len(by_location):
        raise InputError(f"--eval-pairs: {n} of {len(by_location)} rows leave none to train on; lower it")
    locations = list(by_location)
    drawn = sorted(np.random.default_rng((seed, 0)).choice(len(locations), n, replace=False).tolist())
    held_out = {locations[i] for i in drawn}
    return [e for e in rows if e.location not in held_out], [by_location[locations[i]] for i in drawn]
