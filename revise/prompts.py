"""The prompts of a run: checked, drawn alike for every recipe, and read row by row as often as they are needed."""

import collections
import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from data.rows import NotUsed, PromptRow, ReadingSettings, prompts_of
from data.text import NO_CONTEXT, Message, TemplateContext
from revise.client import canonical
from system import InputError, RunError, cli, list_faults
from system.flags import PathText

READ_HERE = ("id", "prompt_id", "source", "response", "responses", "completions")
"""Columns that recipes read beside a prompt: for provenance, and answers that are there already."""


@dataclass(frozen=True, kw_only=True)
class PromptsConfig(ReadingSettings):
    """From which rows to which file."""

    prompts: PathText
    """Rows with "prompt" (text or messages) or UltraFeedback's "instruction", and what belongs to it (system, tools):
    .jsonl, .json, .csv, .parquet, a folder or hub id."""
    out: PathText
    """File for the pairs; what is rejected goes beside it, to its name with .rejected.jsonl."""
    sample: int | None = None
    """How many prompts to draw: the same ones for every recipe."""
    seed: int = 0
    """Of the draw, of answers that are sampled here, and of what else is left to chance."""
    skip_bad_rows: bool = False
    """Go on without rows that cannot be used."""

    def __post_init__(self) -> None:
        ReadingSettings.__post_init__(self)
        if self.seed < 0:
            raise InputError(f"--seed: {self.seed} is below 0")


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

    @property
    def names(self) -> dict[str, str | int]:
        """What its row calls itself, for provenance."""
        return {n: self.row[n] for n in READ_HERE[:3] if isinstance(self.row.get(n), str | int)}

    @property
    def messages(self) -> list[dict[str, Any]]:
        """The prompt as it is sent."""
        return [m.fields() for m in self.prompt]


class Prompts:
    """The drawn rows of a source, in its order. Only their numbers are kept in memory."""

    def __init__(self, config: PromptsConfig, *, dedupe: bool = True) -> None:
        """dedupe: whether equal questions are asked once.

        Raises InputError listing the first ten rows that cannot be used, unless they are to be skipped.
        """
        self.source, self._dedupe = config.prompts, dedupe
        self.reading = config.reading
        """How the source is read."""
        faults: list[str] = []
        n_good = n_faults = 0
        digest, not_used = hashlib.sha256(), NotUsed()
        for found in self._rows():
            if isinstance(found, InputError):
                n_faults += 1
                faults += [str(found)] if n_faults <= 10 else []
            else:
                n_good += 1
                digest.update(_spelled(found))
                not_used.add(found._replace(unused=tuple(name for name in found.unused if name not in READ_HERE)))
        if n_faults and not config.skip_bad_rows:
            mend = "mend them, or go on without them: --skip-bad-rows"
            raise list_faults(faults, n_good + n_faults, mend=mend, n_faults=n_faults)
        if n_faults:
            cli.notify(f"{self.source}: {n_faults} of {n_good + n_faults} rows cannot be used and are left out")
        if not n_good:
            raise InputError(f'{self.source}: no prompts; write lines such as {{"prompt": "..."}}')
        for sentence in not_used.sentences():
            cli.notify(f"{self.source}: {sentence}")
        sample, seed = config.sample, config.seed
        if sample is not None and not 0 < sample <= n_good:
            raise InputError(f"--sample: {sample} of {n_good} prompts cannot be drawn")
        self._digest = digest.digest()
        drawn = range(n_good) if sample is None else np.random.default_rng(seed).choice(n_good, sample, replace=False)
        self._drawn = np.zeros(n_good, dtype=bool)
        self._drawn[list(drawn)] = True

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
            text = _spelled(found)
            digest.update(text)
            if index < len(self._drawn) and self._drawn[index]:
                prompt = tuple(m for m in found.prompt if isinstance(m, Message))
                which = hashlib.sha256(text).digest()[:8]
                occurrence = 0 if self._dedupe else n_equal[which]
                yield Item(index, found.location, prompt, found.row, occurrence, found.context)
                n_equal[which] += not self._dedupe
            index += 1
        if digest.digest() != self._digest:
            raise RunError(f"{self.source}: changed while it was read; let it rest, and run again")

    def _rows(self) -> Iterator[PromptRow | InputError]:
        for found in prompts_of(self.source, self.reading):
            if isinstance(found, PromptRow) and not isinstance(found.prompt[0], Message):
                yield InputError(f"{found.location}: token ids, of which no text can be asked; give its text")
            else:
                yield found


def _spelled(row: PromptRow) -> bytes:
    """What is asked with a row, to tell it from others."""
    context = row.context.fields()
    return (canonical(row.prompt) + (canonical(context) if context else "")).encode()
