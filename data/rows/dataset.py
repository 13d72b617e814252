"""From what a user names to what is trained on: files as examples (a model's folder: model_folder.py).

    sources -> rows -> records -> token ids -> examples

Rows flow through one chunk at a time; only token ids stay, so that memory does not grow with the text.
"""

import hashlib
import math
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import numpy as np

from data.rows.examples import Cut, Example, encode
from data.rows.limits import PROMPT_TOKENS, RESPONSE_TOKENS, Limits, TooLong
from data.rows.records import NotUsed, Record, Tie, read_records
from data.rows.settings import ReadingSettings
from data.rows.sources import Reading
from data.text import REMEDY, ROLES, Chat, TemplateSettings
from system import InputError, list_faults

SHOWN_FAULTS = 10


@dataclass(frozen=True, kw_only=True)
class RowSettings(ReadingSettings, TemplateSettings):
    """Flags of every command that reads rows as the trainer does."""

    max_prompt_tokens: int | None = None
    """Truncate prompts to this many tokens. Together with --max-tokens it works as in TRL 0.9: only rows longer than
    --max-tokens are truncated, first the prompt to this length, then, if still needed, the responses to --max-tokens
    minus this. Unset: 512, or no limit if --max-tokens is given."""
    max_response_tokens: int | None = None
    """Truncate responses to this many tokens; a truncated response loses its end-of-turn token. Unset: 512, or no limit
    of its own if --max-tokens is given."""
    max_tokens: int | None = None
    """Maximum number of tokens of prompt and response together (TRL's max_length). Without --max-prompt-tokens it works
    as in TRL 1.16: responses are truncated, and rows whose prompt leaves no room for a response are dropped and
    counted. 0: only the limits that --max-prompt-tokens and --max-response-tokens name. Unset: only these two limits
    apply, of 512 tokens each by default."""
    keep_prompt: Literal["end", "start"] = "end"
    """Which part of an over-long prompt to keep (TRL's truncation_mode). BOS and the template's headers always stay.
    start cannot be combined with --max-tokens alone, which truncates no prompt."""
    beyond_context: bool = False
    """Accept rows that are longer than the model's context (max_position_embeddings) even after truncation. By default
    they are errors."""

    def __post_init__(self) -> None:
        for part in (ReadingSettings, TemplateSettings):
            part.__post_init__(self)
        for name in ("max_prompt_tokens", "max_response_tokens", "max_tokens"):
            value = getattr(self, name)
            if value is None or (name == "max_tokens" and value == 0):
                continue
            if not 1 <= value <= 2**24:
                raise InputError(f"--{name.replace('_', '-')}: {value} has to be from 1 to {2**24:,}")
        if self.max_tokens and (self.max_prompt_tokens or 1) >= self.max_tokens:
            raise InputError(
                f"--max-tokens: {self.max_tokens} leaves no room for a response beside a prompt of "
                f"{self.max_prompt_tokens or 1}; raise it, or lower --max-prompt-tokens"
            )
        if self.max_tokens is not None and self.max_prompt_tokens is None and self.keep_prompt == "start":
            raise InputError(
                "--keep-prompt start: --max-tokens alone cuts no prompt; give --max-prompt-tokens too, or leave it out"
            )

    @property
    def limits(self) -> Limits:
        """How much of a row is used, whatever the model's context."""
        return Limits(**self.cuts, tokens=self.max_tokens or None, keep_prompt=self.keep_prompt)

    def limits_in(self, context: int | None, longest: int | None = None) -> Limits:
        """How much of a row is used with a model of that context; None: it is not known. longest: tokens of the longest
        sequence that the model computes at all, where there is a limit.
        """
        return replace(self.limits, context=None if self.beyond_context else context, longest=longest)

    @property
    def cuts(self) -> dict[str, int | None]:
        """What holds for prompt_tokens and response_tokens: as named, or the rule's default; None: no limit."""
        is_apart = self.max_tokens is None
        return {
            "prompt_tokens": self.max_prompt_tokens or (PROMPT_TOKENS if is_apart else None),
            "response_tokens": self.max_response_tokens or (RESPONSE_TOKENS if is_apart else None),
        }


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
    n_too_long: int = 0
    """Rows whose prompts leave no room for a response (TooLong)."""
    cut_prompts: int = 0
    cut_responses: int = 0
    without_thought: int = 0
    """Responses to a prompt that opens a thought, which neither go on with it nor end it."""
    n_read: int = 0
    """Rows that were looked at, of whatever kind."""
    sides: dict[str, list[int]] = field(default_factory=dict)
    """Of prompts, of chosen, of rejected ... how many were cut, and how many there are."""
    n_templated: int = 0
    """Rows in which control tokens stand as text."""
    spelled: Counter[str] = field(default_factory=Counter)
    """These tokens, and in how many rows each stands."""
    not_used: NotUsed = field(default_factory=NotUsed)
    """What rows hold and nothing reads."""

    def add(self, item: Cut | InputError) -> None:
        """Counts one row in."""
        self.n_read += 1
        if isinstance(item, Tie):
            self.n_ties += 1
        elif isinstance(item, TooLong):
            self.n_too_long += 1
        elif isinstance(item, InputError):
            self.n_skipped += 1
            self.skipped += [str(item)] if self.n_skipped <= SHOWN_FAULTS else []
        else:
            self._add_cut(item)

    def _add_cut(self, cut: Cut) -> None:
        self.examples.append(cut.example)
        self.cut_prompts += cut.is_prompt_cut
        self.cut_responses += sum(cut.cut_responses)
        n = len(cut.cut_responses)
        names = ("chosen", "rejected") if n == 2 and not cut.example.is_listed else ("completions",) * n
        for name, is_cut in zip(("prompts", *names), (cut.is_prompt_cut, *cut.cut_responses), strict=True):
            counts = self.sides.setdefault(name, [0, 0])
            counts[0] += is_cut
            counts[1] += 1
        self.n_templated += bool(cut.spelled)
        self.spelled.update(cut.spelled)
        self.without_thought += cut.n_without_thought

    @property
    def cut_shares(self) -> dict[str, float]:
        """Which share was cut, 0 to 1, of prompts, chosen and rejected, or completions."""
        return {name: n_cut / n for name, (n_cut, n) in self.sides.items()}

    def facts(self) -> dict[str, Any]:
        """What a run writes down about them."""
        return {
            "rows": len(self.examples),
            "cut_prompts": self.cut_prompts,
            "cut_responses": self.cut_responses,
            "cut_shares": {name: round(share, 4) for name, share in self.cut_shares.items()},
            "too_long_prompts": self.n_too_long,
            "templated_rows": self.n_templated,
            "control_tokens_in_text": dict(self.spelled.most_common()),
            **({"responses_without_thought": self.without_thought} if self.without_thought else {}),
            "skipped_rows": self.n_skipped,
            "skipped": self.skipped,
            "ties": self.n_ties,
            **self.not_used.facts(),
            "token_ids_sha256": digest(self.examples).hexdigest(),
            "report": self.report(),
        }

    def report(self) -> str:
        """What a user has to know about them, in a line."""
        said = (
            f"{self.name}: {len(self.examples)} rows, {self.cut_prompts} prompts and {self.cut_responses} responses cut"
        )
        shares = [f"{100 * share:.1f} % of {name}" for name, share in self.cut_shares.items() if share]
        said += f" ({', '.join(shares)})" if shares else ""
        if self.n_too_long:
            said += f", {self.n_too_long} rows left out because their prompts leave no room for a response"
        if self.without_thought:
            said += f", {self.without_thought} responses without the thought that the template's prompt opens"
        said += f", {self.n_ties} rows left out because their answers are rated alike" if self.n_ties else ""
        if self.n_templated:
            tokens = " ".join(token for token, _ in self.spelled.most_common(SHOWN_FAULTS))
            said += f", {self.n_templated} rows have control tokens as text, and they stay text ({tokens}): {REMEDY}"
        said += "".join(f", {sentence}" for sentence in self.not_used.sentences())
        return said + (f", {self.n_skipped} rows skipped: " + "; ".join(self.skipped) if self.n_skipped else "")


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
        for item in _cuts(source, chat, limits, reading, n_ids, rows.not_used):
            rows.add(item)
        if weights and weights[i] != 1:
            rows.examples[before:] = _weighted(rows.examples[before:], weights[i], (seed, i))
    if rows.n_skipped and not skip_bad_rows:
        mend = "fix them, or leave them out: --skip-bad-rows"
        raise list_faults(rows.skipped, rows.n_read, mend=mend, n_faults=rows.n_skipped)
    if not rows.n_read:
        raise InputError(f"{rows.name}: holds no rows; give another file")
    if not rows.examples:
        why = "".join(f"\n  {fault}" for fault in rows.skipped)
        mend = "correct them, or give another file"
        raise InputError(f"{rows.name}: none of the {rows.n_read} rows can be used; {mend}{':' if why else ''}{why}")
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
    """SHA-256 over the token ids of examples, over their token weights where they have some, and over which tokens are
    predicted where not all are: what a run has really been fed. Which tokens were revised follows from these.
    """
    whole = hashlib.sha256()
    for example in examples:
        for ids in (example.prompt, *example.responses):
            whole.update(len(ids).to_bytes(8, "little") + ids.tobytes())
        for weights in example.token_weights or ():
            whole.update(b"weights" + len(weights).to_bytes(8, "little") + weights.tobytes())
        for flags in example.predicted or ():
            whole.update(b"predicted" + len(flags).to_bytes(8, "little") + flags.tobytes())
    return whole


def _cuts(
    source: str, chat: Chat | None, limits: Limits, reading: Reading, n_ids: int, not_used: NotUsed
) -> Iterator[Cut | InputError]:
    def records() -> Iterator[Record | InputError]:
        for record in read_records(source, reading, roles=chat.roles if chat else ROLES):
            if isinstance(record, Record):
                not_used.add(record)
            yield record

    return encode(records(), chat, limits, n_ids=n_ids)


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


def hold_out(rows: Sequence[Example], n: float, seed: int) -> tuple[list[Example], list[Example]]:
    """The rows without n drawn ones, and these. A row that is taken several times is held out with all of them.

    n: below 1 a share of them, rounded up.

    Raises InputError where none would be left to train on.
    """
    by_location = {e.location: e for e in rows}
    n = math.ceil(n * len(by_location)) if n < 1 else int(n)
    if n >= len(by_location):
        raise InputError(f"--eval-pairs: {n} of {len(by_location)} rows leave none to train on; lower it")
    locations = list(by_location)
    drawn = sorted(np.random.default_rng((seed, 0)).choice(len(locations), n, replace=False).tolist())
    held_out = {locations[i] for i in drawn}
    return [e for e in rows if e.location not in held_out], [by_location[locations[i]] for i in drawn]


def count_repeated(rows: Iterable[Example], heldout: Iterable[Example]) -> tuple[int, int]:
    """How many held-out rows are among the others too: with prompt and responses, and with the prompt alone, as ids."""
    whole, prompts = set[bytes](), set[bytes]()
    for e in rows:
        whole.add(_key(e))
        prompts.add(e.prompt.tobytes())
    n_whole = n_prompts = 0
    for e in heldout:
        n_whole += _key(e) in whole
        n_prompts += e.prompt.tobytes() in prompts
    return n_whole, n_prompts


def _key(example: Example) -> bytes:
    return digest([example._replace(token_weights=None)]).digest()
