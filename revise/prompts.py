"""The prompts of a run: checked, drawn alike for every recipe, and read row by row as often as they are needed.

A file of pairs is taken, too: its prompts are those of the pairs, with what was said before where answers are whole
conversations, and one side of them can be the model's own answers.
"""

import collections
import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import numpy as np

from data.rows import NotUsed, PromptRow, Reading, ReadingSettings, Record, parse_prompt, parse_record, rows_of
from data.text import NO_CONTEXT, Message, TemplateContext
from revise.client import canonical
from system import InputError, RunError, cli, list_faults
from system.flags import PathText

READ_HERE = ("id", "prompt_id", "source", "response", "responses", "completions")
"""Columns that recipes read beside a prompt: for provenance, and answers that are there already."""
Side = Literal["chosen", "rejected"]
ANSWERS: dict[Side, tuple[str, ...]] = {
    "chosen": ("chosen", "preferred_output", "response1"),
    "rejected": ("rejected", "non_preferred_output", "rejected_messages", "rejected_response", "response2"),
}
"""Columns by which a row is known to be a pair, and whose side they hold; of HelpSteer3's either may be either's."""


@dataclass(frozen=True, kw_only=True)
class PromptsConfig(ReadingSettings):
    """From which rows to which file."""

    prompts: PathText
    """Prompts: a .jsonl, .json, .csv or .parquet file, a folder of such files, or a hub id. Rows have "prompt" (text or
    messages) or UltraFeedback's "instruction", and may have "system" and "tools". The rows may also be pairs, whose
    prompts are used."""
    out: PathText
    """File for the pairs, such as pairs.jsonl. Rows that make no usable pair are written to pairs.rejected.jsonl beside
    it, each with the reason."""
    sample: int | None = None
    """Number of prompts to draw at random. The four commands that make pairs draw the same prompts for the same --seed,
    so that their pairs can be compared. Unset: all."""
    only_prompts: PathText | None = None
    """Use only the prompts that also occur in this file, folder or hub data set (of prompts or pairs). Prompts are
    compared by their text; a repeated one is used at most as often as it occurs there. For example, --prompts
    openbmb/UltraFeedback --only-prompts ContextualAI/ultrafeedback_clair_32k:train takes UltraFeedback's rated answers
    to the prompts of the released CLAIR pairs."""
    seed: int = 0
    """Random seed for the prompts that --sample draws, and for answers sampled on this machine. It is not sent to
    servers."""
    skip_bad_rows: bool = False
    """Skip rows that cannot be used, and report how many there are. By default such rows are an error."""

    def __post_init__(self) -> None:
        ReadingSettings.__post_init__(self)
        if self.seed < 0:
            raise InputError(f"--seed: {self.seed} has to be at least 0")


class Item(NamedTuple):
    """One prompt of a run."""

    number: int
    """Its index among the rows that can be used, from 0."""
    location: str
    """"FILE:LINE", for messages."""
    prompt: tuple[Message, ...]
    row: dict[str, Any]
    """All of its row."""
    occurrence: int
    """0, or where equal prompts are to be asked each for itself, how many of them came before."""
    context: TemplateContext = NO_CONTEXT
    """What its template is given beside the messages."""
    reasoning: str = ""
    """The thoughts of the own answer that its row brings, where a pair has them."""

    @property
    def names(self) -> dict[str, str | int]:
        """What its row calls itself, for provenance."""
        return {n: self.row[n] for n in READ_HERE[:3] if isinstance(self.row.get(n), str | int)}

    @property
    def messages(self) -> list[dict[str, Any]]:
        """The prompt as it is sent."""
        return [m.fields() for m in self.prompt]


class _Found(NamedTuple):
    """A row that can be used."""

    row: PromptRow
    reasoning: str = ""


class Prompts:
    """The drawn rows of a source, in its order. Only their numbers are kept in memory."""

    def __init__(self, config: PromptsConfig, *, dedupe: bool = True, response_from: Side | None = None) -> None:
        """dedupe: whether equal questions are asked once. response_from: which side of the pairs that the rows have to
        be is the own answer.

        Raises InputError listing the first ten rows that cannot be used, unless they are to be skipped.
        """
        self.source, self._dedupe = config.prompts, dedupe
        self._side: Side | None = response_from
        self.reading = config.reading
        """How the source is read."""
        wanted = _texts_of(config.only_prompts, config) if config.only_prompts else None
        faults: list[str] = []
        fitting: list[int] = []
        n_good = n_faults = 0
        digest, not_used = hashlib.sha256(), NotUsed()
        for found in self._rows():
            if isinstance(found, InputError):
                n_faults += 1
                faults += [str(found)] if n_faults <= 10 else []
            else:
                row = found.row
                fitting += [n_good] if wanted is None or _taken(wanted, _text(row)) else []
                n_good += 1
                digest.update(_spelled(row))
                not_used.add(row._replace(unused=tuple(name for name in row.unused if name not in READ_HERE)))
        if n_faults and not config.skip_bad_rows:
            mend = "fix them, or leave them out: --skip-bad-rows"
            raise list_faults(faults, n_good + n_faults, mend=mend, n_faults=n_faults)
        if n_faults:
            cli.notify(f"{self.source}: {n_faults} of {n_good + n_faults} rows cannot be used and are left out")
        if not n_good:
            raise InputError(f'{self.source}: no prompts; write lines such as {{"prompt": "..."}}')
        for sentence in not_used.sentences():
            cli.notify(f"{self.source}: {sentence}")
        if wanted is not None:
            _tell_restricted(config, n_good, len(fitting), wanted.total())
        sample, seed = config.sample, config.seed
        if sample is not None and not 0 < sample <= len(fitting):
            raise InputError(f"--sample: {sample} of {len(fitting)} prompts cannot be drawn; give 1 to {len(fitting)}")
        self._digest = digest.digest()
        among = np.array(fitting)
        drawn = (
            among if sample is None else among[np.random.default_rng(seed).choice(len(among), sample, replace=False)]
        )
        self._drawn = np.zeros(n_good, dtype=bool)
        self._drawn[drawn] = True

    def __len__(self) -> int:
        """How many were drawn."""
        return int(self._drawn.sum())

    def __iter__(self) -> Iterator[Item]:
        """Raises RunError where the source has changed since it was checked."""
        digest, index = hashlib.sha256(), 0
        n_equal: collections.Counter[bytes] = collections.Counter()
        for found in self._rows():
            if isinstance(found, InputError):
                continue
            row = found.row
            text = _spelled(row)
            digest.update(text)
            if index < len(self._drawn) and self._drawn[index]:
                prompt = tuple(m for m in row.prompt if isinstance(m, Message))
                which = hashlib.sha256(text).digest()[:8]
                occurrence = 0 if self._dedupe else n_equal[which]
                yield Item(index, row.location, prompt, row.row, occurrence, row.context, found.reasoning)
                n_equal[which] += not self._dedupe
            index += 1
        if digest.digest() != self._digest:
            raise RunError(f"{self.source}: changed while it was read; run again once it no longer changes")

    def _rows(self) -> Iterator[_Found | InputError]:
        return _rows_of(self.source, self.reading, self._side)


def _rows_of(source: str, reading: Reading, side: Side | None) -> Iterator[_Found | InputError]:
    for location, row in rows_of(source, reading):
        try:
            if isinstance(row, InputError):
                raise row
            found = _read(row, location, reading, side)
            if not isinstance(found.row.prompt[0], Message):
                raise InputError(f"{location}: the prompt is token ids, but a model is asked in text; give its text")
            yield found
        except InputError as fault:
            yield fault


def _read(row: dict[str, Any], location: str, reading: Reading, side: Side | None) -> _Found:
    """A row's prompt, and where a side of it is the own answer this as its "response". Raises InputError."""
    pair = _pair(row, location, reading, is_needed=side is not None)
    if pair is None:
        return _Found(parse_prompt(row, location, reading=reading))
    used = ANSWERS[side] if side else ()
    unused = [name for names in ANSWERS.values() for name in names if name in row and name not in used]
    found = PromptRow(location, pair.messages, row, pair.context, (*pair.unused, *unused), pair.n_parsed)
    if side is None:
        return _Found(found)
    if row.get("response") is not None:
        raise InputError(
            f'{location}: "response" is there, but --response-from takes another answer; ignore the column: '
            "--ignore-columns response, or leave the flag out"
        )
    which = 0 if side == "chosen" else 1
    answer, *others = pair.conversations[which]
    if others or answer.tool_calls:
        raise InputError(f'{location}: "{side}" has tool calls, but own answers have to be text; take the row out')
    own = row | {"response": pair.texts[which]}
    return _Found(found._replace(row=own), answer.reasoning_content or "")


def _pair(row: dict[str, Any], location: str, reading: Reading, *, is_needed: bool) -> Record | None:
    """The pair of texts that a row is; None where it is none. Raises InputError where one is needed."""
    if not is_needed and not any(row.get(name) is not None for names in ANSWERS.values() for name in names):
        return None
    try:
        record = parse_record(row, location, reading=reading)
    except InputError:
        if is_needed:
            raise
        return None  # its prompt may be good all the same
    if record.form == "pairs" and not record.is_tokenised:
        return record
    if is_needed:
        raise InputError(
            f"{location}: not a pair of texts, which --response-from needs; leave the flag out, or give a file of pairs"
        )
    return None


# --- another file's prompts ----------------------------------------------------------------------------------------


def _texts_of(source: str, config: PromptsConfig) -> collections.Counter[bytes]:
    """How often a file has each prompt. Raises InputError where rows of it cannot be used, unless they are skipped."""
    faults: list[str] = []
    texts: collections.Counter[bytes] = collections.Counter()
    n = 0
    for found in _rows_of(source, Reading(max_row_mb=config.max_row_mb), None):
        n += 1
        if isinstance(found, InputError):
            faults.append(str(found))
        else:
            texts[_text(found.row)] += 1
    if faults and not config.skip_bad_rows:
        raise list_faults(faults, n, mend="fix them, or leave them out: --skip-bad-rows")
    if not texts:
        raise InputError(f"--only-prompts: {source} has no prompts; give a file of prompts or of pairs")
    return texts


def _taken(texts: collections.Counter[bytes], text: bytes) -> bool:
    """Whether a prompt is still among those that are wanted; it is taken off them."""
    if texts[text] <= 0:
        return False
    texts[text] -= 1
    return True


def _tell_restricted(config: PromptsConfig, n_rows: int, n_fitting: int, n_lacking: int) -> None:
    """Says how far one file's prompts are another's. Raises InputError where none is."""
    n_wanted = n_fitting + n_lacking
    if not n_fitting:
        raise InputError(
            f"--only-prompts: none of the {n_wanted:,} prompts of {config.only_prompts} is in {config.prompts}; give "
            "files of the same prompts, such as openbmb/UltraFeedback with the released CLAIR pairs"
        )
    said = f"{config.prompts}: {n_fitting:,} of {n_rows:,} rows have the prompts of {config.only_prompts}"
    cli.notify(f"{said}; {n_lacking:,} of its {n_wanted:,} prompts are missing" if n_lacking else said)


def _text(row: PromptRow) -> bytes:
    """What a prompt says and who says it, to tell it from others whatever stands beside it."""
    said = [(m.role, m.content) for m in row.prompt if isinstance(m, Message)]
    return hashlib.sha256(canonical(said).encode()).digest()[:16]


def _spelled(row: PromptRow) -> bytes:
    """What is asked with a row, to tell it from others."""
    context = row.context.fields()
    return (canonical(row.prompt) + (canonical(context) if context else "")).encode()
