"""Rows as records: what a row may look like, and what is wrong with it, by file and line.

    pairs      {"prompt": str | [messages], "chosen": str | [messages], "rejected": str | [messages]}
               {"chosen": "\\n\\nHuman: ...\\n\\nAssistant: ...", "rejected": ...}            HH's transcripts
               {"instruction", "completions": [{"response", "overall_score"}, ...]}       UltraFeedback's rows
    ranked     {"prompt", "completions": [text, ...], "scores": [number, ...]}, UltraFeedback's rows, pairs
    unpaired   {"prompt": ..., "completion": ..., "label": true | false}
    single     {"prompt": ..., "completion": ...}   or   {"messages": [...]}
    any of these with token ids in the place of text: "prompt_ids", "chosen_ids", "rejected_ids", "completion_ids",
    "completions_ids"; beside the last four a number for each token: "chosen_token_weights", "rejected_token_weights",
    "completion_token_weights", "completions_token_weights"

A string prompt is one user message; a message is {"role", "content"} or sharegpt's {"from", "value"}, and
"conversations" another name for "messages", or for the prompt of a pair. Content is trimmed at both ends. Where chosen
and rejected repeat the prompt, the repeated part is recognised. What a row says in numbers (Ratings) is carried along,
under names of ours and under those that an objective asks for; other extra fields are ignored.
"""

import math
import re
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, NamedTuple

from data.rows.sources import Reading, rows_of
from data.text import NO_CONTEXT, ROLES, Message, TemplateContext, answer_text
from system import InputError, list_faults

_SHAREGPT = {"human": "user", "gpt": "assistant", "chatgpt": "assistant", "bing": "assistant", "bard": "assistant"}
_TURN = re.compile(r"(?:\A\s*|\n\n)(Human|Assistant):")


class Ratings(NamedTuple):
    """What a row says in numbers; None where it does not."""

    scores: tuple[float, ...] | None = None
    """Of each response: "chosen_score" and "rejected_score", "score", or "scores"; by one scorer, any scale."""
    own: float | None = None
    """"own_score": of the model's own answer, by the same scorer."""
    probs: tuple[float, ...] | None = None
    """"chosen_prob" and "rejected_prob": win rates against the policy's own samples, 0 to 1."""
    value: float | None = None
    """"value": the score that the policy gets on the prompt."""
    weight: float | None = None
    """"weight": how much the row counts."""
    fields: tuple[tuple[str, float], ...] = ()
    """(name, number) of each further field that was asked for (`Reading.fields`) and holds a finite number here."""

    def numbers(self) -> dict[str, float | tuple[float, ...]]:
        """All that the row says, of the row or of each response, under the names by which objectives ask for it."""
        known = {"scores": self.scores, "own_scores": self.own, "probs": self.probs}
        known |= {"values": self.value, "weights": self.weight, **dict(self.fields)}
        return {name: number for name, number in known.items() if number is not None}

    def of(self, which: slice) -> "Ratings":
        """The ratings of some of the responses alone, without what is of pairs."""
        return self._replace(scores=self.scores and self.scores[which], probs=None)


NO_RATINGS = Ratings()


@dataclass(frozen=True, slots=True)
class Record:
    """A prompt and its responses: two (chosen, rejected) where the form is "pairs", several, best first, where it is
    "ranked" or in the row's order where it is "listed", else one.
    """

    location: str
    """"FILE:LINE", for messages."""
    form: Literal["pairs", "unpaired", "single", "ranked", "listed"]
    prompt: tuple[Message, ...] | tuple[int, ...]
    """Messages, or token ids that are taken as they are."""
    responses: tuple[tuple[Message, ...], ...] | tuple[tuple[int, ...], ...]
    """Each of one or more messages, or token ids."""
    label: bool | None = None
    """Unpaired: True where the response is desirable."""
    ratings: Ratings = NO_RATINGS
    token_weights: tuple[tuple[float, ...], ...] | None = None
    """Of each response a number for each of its token ids; None where the row has none."""
    context: TemplateContext = NO_CONTEXT
    """What the template is given beside the messages."""

    @property
    def is_tokenised(self) -> bool:
        """Whether prompt and responses are token ids."""
        return isinstance(self.responses[0][0], int)

    @property
    def messages(self) -> tuple[Message, ...]:
        """The prompt of a row of text. Raises TypeError for one of token ids."""
        return tuple(_message(m) for m in self.prompt)

    @property
    def conversations(self) -> tuple[tuple[Message, ...], ...]:
        """The responses of a row of text. Raises TypeError for one of token ids."""
        return tuple(tuple(_message(m) for m in response) for response in self.responses)

    @property
    def texts(self) -> tuple[str, ...]:
        """What the assistant says in each response of a row of text. Raises TypeError for one of token ids."""
        return tuple(answer_text(response) for response in self.conversations)


def _message(item: Message | int) -> Message:
    if isinstance(item, int):
        raise TypeError("a row of token ids has no messages")
    return item


class Tie(InputError):
    """A row that is well-formed and of which no pair can be made: its answers are rated alike."""


def load_preferences(source: str | Path, *, skip_bad_rows: bool = False) -> list[Record]:
    """The records of a file (.jsonl, .json, .csv, .parquet), a folder of such files or a hub id, in order.

    Rows of answers that are rated alike are left out. Raises InputError listing the first ten bad rows, or, with
    skip_bad_rows, where no good row is left.
    """
    found = list(read_records(source))
    records = [item for item in found if isinstance(item, Record)]
    faults = [str(item) for item in found if isinstance(item, InputError) and not isinstance(item, Tie)]
    if faults and not skip_bad_rows:
        raise list_faults(faults, len(found), mend="mend them, or go on without them: --skip-bad-rows")
    if not records:
        raise InputError(f'{source}: no row that can be used; the form is {{"prompt", "chosen", "rejected"}}')
    return records


def read_records(
    source: str | Path, reading: Reading | None = None, *, roles: Collection[str] = ROLES
) -> Iterator[Record | InputError]:
    """Each row of a source as a record, or what is wrong with it. roles: those that a message may have.

    Raises InputError where a file itself cannot be read.
    """
    reading = reading or Reading()
    for location, row in rows_of(source, reading):
        if isinstance(row, InputError):
            yield row
            continue
        try:
            ranked, listed, fields = reading.ranked, reading.listed, reading.fields
            yield parse_record(row, location, roles=roles, ranked=ranked, listed=listed, fields=fields)
        except InputError as fault:
            yield fault


def parse_record(
    row: dict[str, Any],
    location: str,
    *,
    roles: Collection[str] = ROLES,
    ranked: bool = False,
    listed: bool = False,
    fields: Sequence[str] = (),
) -> Record:
    """The record in one row. ranked: keep all of several completions, best first, instead of the best and the worst.
    listed: keep all in the row's order, whatever they are rated. fields: further numbers that are kept of it; where it
    has no finite number under such a name, none is.

    Raises InputError, located, where a field is missing, empty or of the wrong type; Tie, which is one, where all
    completions of a row are rated alike.
    """
    read = _Reader(location, roles, fields)
    row = {name: value for name, value in row.items() if value is not None}  # tables of several forms have nulls
    read.check_weights(row)
    has_pair = "chosen" in row or "rejected" in row or "chosen_ids" in row
    if ("completions" in row or "completions_ids" in row) and (ranked or not has_pair):
        return read.listed(row) if listed else read.rated(row, keeps_all=ranked)
    if "chosen_ids" in row or "completion_ids" in row or "prompt_ids" in row:
        return read.tokenised(row)
    if "chosen" in row or "rejected" in row:
        return read.pair(row)
    if "completion" in row:
        prompt = read.prompt(row)
        response = read.response(row["completion"], "completion", prompt)
        return Record(location, _completion_form(row), prompt, (response,), read.label(row), read.ratings(row))
    for name in ("messages", "conversations"):
        if name in row:
            messages = read.messages(row[name], name)
            if len(messages) < 2 or messages[-1].role != "assistant":
                raise InputError(f'{location}: "{name}" has to end with a user message and its assistant answer')
            prompt = read.checked_prompt(messages[:-1])
            return Record(location, "single", prompt, (messages[-1:],), None, read.ratings(row))
    raise InputError(
        f'{location}: neither "chosen" and "rejected" nor "completion" nor "messages" but {_names(row)}; name its '
        "columns with --columns chosen=...,rejected=..., or see data/rows/records.py for the forms"
    )


class PromptRow(NamedTuple):
    """A row that is read for its prompt."""

    location: str
    """"FILE:LINE", for messages."""
    prompt: tuple[Message, ...] | tuple[int, ...]
    """Messages, or token ids where the row has "prompt_ids"."""
    row: dict[str, Any]
    """Its fields as they are."""


def prompts_of(
    source: str | Path, *, roles: Collection[str] = ROLES, max_row_mb: int = Reading.max_row_mb
) -> Iterator[PromptRow | InputError]:
    """Each row of a source with its prompt ("prompt", UltraFeedback's "instruction", or "prompt_ids"), or what is wrong
    with it. Raises InputError where a file itself cannot be read.
    """
    for location, row in rows_of(source, Reading(max_row_mb=max_row_mb)):
        read = _Reader(location, roles)
        try:
            if isinstance(row, InputError):
                raise row
            if "prompt_ids" in row:
                prompt = read.ids(row, "prompt_ids")
            else:
                prompt = read.prompt(row if row.get("prompt") is not None else {"prompt": row.get("instruction")})
            yield PromptRow(location, prompt, row)
        except InputError as fault:
            yield fault


def read_prompts(source: str | Path, *, roles: Collection[str] = ROLES) -> list[PromptRow]:
    """The rows of a source that has prompts; other fields are not looked at.

    Raises InputError listing the first ten bad rows, or where there is no row.
    """
    found = list(prompts_of(source, roles=roles))
    if faults := [str(item) for item in found if isinstance(item, InputError)]:
        raise list_faults(faults, len(found), mend="mend or delete them")
    if not found:
        raise InputError(f'{source}: no prompts; write lines such as {{"prompt": "..."}}')
    return [item for item in found if isinstance(item, PromptRow)]


def _names(row: dict[str, Any]) -> str:
    return ", ".join(f'"{name[:40]}"' for name in list(row)[:8]) or "nothing"


def _completion_form(row: dict[str, Any]) -> Literal["unpaired", "single"]:
    return "unpaired" if "label" in row else "single"


def _transcript(text: Any) -> list[dict[str, str]] | None:
    """HH's "\\n\\nHuman: ...\\n\\nAssistant: ..." as messages; None where a text is none."""
    turns = list(_TURN.finditer(text)) if isinstance(text, str) else []
    if not turns or turns[0].start() != 0:
        return None
    ends = [turn.start() for turn in turns[1:]] + [len(text)]
    roles = {"Human": "user", "Assistant": "assistant"}
    return [{"role": roles[turn[1]], "content": text[turn.end() : end]} for turn, end in zip(turns, ends, strict=True)]


class _Reader(NamedTuple):
    """Reads the fields of one row. Every method raises InputError, located."""

    location: str
    roles: Collection[str]
    fields: Sequence[str] = ()

    def pair(self, row: dict[str, Any]) -> Record:
        chosen, rejected = self.field(row, "chosen"), self.field(row, "rejected")
        named = {"prompt": row.get("prompt", row.get("conversations"))}
        turns, others = _transcript(chosen), _transcript(rejected)
        if turns and others and len(turns) > 1 and len(others) > 1:  # they hold the prompt, whatever else does
            chosen, rejected, named = turns, others, {"prompt": None}
        if named["prompt"] is None and isinstance(chosen, list) and isinstance(rejected, list):
            w, l = self.messages(chosen, "chosen"), self.messages(rejected, "rejected")  # noqa: E741
            shared = 0
            while shared < min(len(w), len(l)) - 1 and w[shared] == l[shared]:
                shared += 1
            prompt = self.checked_prompt(w[:shared])
        else:
            prompt = self.prompt(named)
        responses = self.response(chosen, "chosen", prompt), self.response(rejected, "rejected", prompt)
        if responses[0] == responses[1]:
            raise InputError(f'{self.location}: "chosen" and "rejected" are equal; a pair has to differ')
        return Record(self.location, "pairs", prompt, responses, None, self.ratings(row, ("chosen", "rejected")))

    def rated(self, row: dict[str, Any], *, keeps_all: bool) -> Record:
        """Several completions to one prompt: all, best first, or the best over the worst; of equals the first."""
        record = self.listed(row, fewest=2)
        responses, weights, ratings = record.responses, record.token_weights, record.ratings
        scores, n = ratings.scores, len(responses)
        order = list(range(n) if keeps_all else (0, n - 1))
        if scores is not None:
            if len(set(scores)) < 2:
                raise Tie(f"{self.location}: its {len(scores)} completions are rated alike, so that none is better")
            order = sorted(range(len(scores)), key=lambda i: -scores[i])  # stable: of equals the first
            if not keeps_all:  # of the worst, too, the first
                order = [order[0], scores.index(min(scores))]
            ratings = ratings._replace(scores=tuple(scores[i] for i in order))
        responses, weights = tuple(responses[i] for i in order), weights and tuple(weights[i] for i in order)
        if responses[0] == responses[-1]:
            raise InputError(f"{self.location}: the best and the worst completion are equal; a pair has to differ")
        form = "ranked" if keeps_all else "pairs"
        return replace(record, form=form, responses=responses, ratings=ratings, token_weights=weights)

    def listed(self, row: dict[str, Any], *, fewest: int = 1) -> Record:
        """Several completions to one prompt, in the row's order."""
        if "completions_ids" in row:
            name, prompt = "completions_ids", self.ids(row, "prompt_ids")
        else:
            name, prompt = "completions", self.prompt({"prompt": row.get("instruction", row.get("prompt"))})
        items = row[name]
        if not isinstance(items, list) or len(items) < fewest:
            raise InputError(f'{self.location}: "{name}" has to be a list of {("one", "two")[fewest - 1]} or more')
        responses: list[Any] = [self.completion(item, f"{name}[{i}]") for i, item in enumerate(items)]
        weights, scores = self.listed_weights(row, responses), self.listed_scores(row, items)
        ratings = self.ratings(row, ())._replace(scores=None if scores is None else tuple(scores))
        return Record(self.location, "listed", prompt, tuple(responses), None, ratings, weights)

    def completion(self, item: Any, name: str) -> tuple[Message, ...] | tuple[int, ...]:
        if name.startswith("completions_ids"):
            return self.ids({name: item}, name)
        text = self.text(item.get("response") if isinstance(item, dict) else item, f"{name}.response")
        return (Message("assistant", text),)

    def listed_scores(self, row: dict[str, Any], items: list[Any]) -> list[float] | None:
        """The scores of completions: their own, or the list beside them; None where there are none."""
        values, names = row.get("scores"), [f"scores[{i}]" for i in range(len(items))]
        if values is None and any(isinstance(item, dict) for item in items):
            values = [item.get("overall_score") if isinstance(item, dict) else None for item in items]
            names = [f"completions[{i}].overall_score" for i in range(len(items))]
        if values is None:
            return None
        if not isinstance(values, list) or len(values) != len(items):
            raise InputError(f'{self.location}: "scores" has to be a list of {len(items)} numbers, one per completion')
        return [self.number(value, name) for value, name in zip(values, names, strict=True)]

    def tokenised(self, row: dict[str, Any]) -> Record:
        prompt = self.ids(row, "prompt_ids")
        if "completion_ids" in row:
            ids = (self.ids(row, "completion_ids"),)
            weights = self.token_weights(row, ("completion",), ids)
            form = _completion_form(row)
            return Record(self.location, form, prompt, ids, self.label(row), self.ratings(row), weights)
        ids = self.ids(row, "chosen_ids"), self.ids(row, "rejected_ids")
        if ids[0] == ids[1]:
            raise InputError(f'{self.location}: "chosen_ids" and "rejected_ids" are equal; a pair has to differ')
        names = ("chosen", "rejected")
        ratings, weights = self.ratings(row, names), self.token_weights(row, names, ids)
        return Record(self.location, "pairs", prompt, ids, None, ratings, weights)

    def check_weights(self, row: dict[str, Any]) -> None:
        """Refuses token weights of what is no list of ids: whose tokens they are meant for cannot be known."""
        for name in ("chosen", "rejected", "completion", "completions"):
            if f"{name}_token_weights" in row and f"{name}_ids" not in row:
                raise InputError(
                    f'{self.location}: "{name}_token_weights" stands without "{name}_ids"; token weights are of '
                    "rows of token ids: give these, or take the weights out"
                )

    def token_weights(
        self, row: dict[str, Any], names: tuple[str, ...], ids: tuple[tuple[int, ...], ...]
    ) -> tuple[tuple[float, ...], ...] | None:
        """The weights of responses of these names, all or none of which have to have them."""
        names = tuple(f"{name}_token_weights" for name in names)
        if not any(name in row for name in names):
            return None
        for name in names:
            if name not in row:
                there = next(n for n in names if n in row)
                raise InputError(f'{self.location}: "{there}" without "{name}"; give both or none')
        return tuple(self.weights(row[name], name, len(i)) for name, i in zip(names, ids, strict=True))

    def listed_weights(
        self, row: dict[str, Any], ids: "Sequence[tuple[int, ...]]"
    ) -> tuple[tuple[float, ...], ...] | None:
        """The token weights of completions, a list beside the list of each one's ids; None where there are none."""
        name = "completions_token_weights"
        if name not in row:
            return None
        if not isinstance(row[name], list) or len(row[name]) != len(ids):
            raise InputError(f'{self.location}: "{name}" has to be a list of {len(ids)} lists, one per completion')
        return tuple(
            self.weights(w, f"{name}[{k}]", len(i)) for k, (w, i) in enumerate(zip(row[name], ids, strict=True))
        )

    def weights(self, value: Any, name: str, n: int) -> tuple[float, ...]:
        wanted = f"{n} finite number{'s' * (n != 1)}, one per token id"
        if not isinstance(value, list):
            raise InputError(f'{self.location}: "{name}" is a {type(value).__name__}; it has to be a list of {wanted}')
        if len(value) != n:
            raise InputError(f'{self.location}: "{name}" has {len(value)} numbers; it has to be a list of {wanted}')
        return tuple(self.number(w, f"{name}[{i}]") for i, w in enumerate(value))

    def field(self, row: dict[str, Any], name: str) -> Any:
        if row.get(name) is None:
            raise InputError(f'{self.location}: "{name}" is missing; every row needs it')
        return row[name]

    def label(self, row: dict[str, Any]) -> bool | None:
        if "label" in row and not isinstance(row["label"], bool):
            raise InputError(f'{self.location}: "label" is {row["label"]!r}; it has to be true or false')
        return row.get("label")

    def ratings(self, row: dict[str, Any], names: tuple[str, ...] = ("",)) -> Ratings:
        """What the row says of the responses of these names; "" is a single one, whose score is "score"."""
        scores = [self.optional(row, f"{n}_score", f"score_{n}") if n else _number(row.get("score")) for n in names]
        probs = [self.optional(row, f"{n}_prob") if n else None for n in names]
        for name, prob in zip(names, probs, strict=True):
            if prob is not None and not 0 <= prob <= 1:
                raise InputError(f'{self.location}: "{name}_prob" is {prob!r}; it has to be between 0 and 1')
        return Ratings(
            _all_or_none(scores),
            self.optional(row, "own_score", "score_own"),
            _all_or_none(probs),
            _number(row.get("value")),  # names of so many meanings that text under them is none of ours
            _number(row.get("weight")),
            tuple((name, number) for name in self.fields if (number := _number(row.get(name))) is not None),
        )

    def optional(self, row: dict[str, Any], *names: str) -> float | None:
        """The number under the first of these names that the row has."""
        return next((self.number(row[name], name) for name in names if row.get(name) is not None), None)

    def number(self, value: Any, name: str) -> float:
        if (found := _number(value)) is None:
            raise InputError(f'{self.location}: "{name}" is {value!r}; it has to be a number')
        return found

    def text(self, value: Any, name: str, *, may_be_empty: bool = False) -> str:
        if not isinstance(value, str):
            raise InputError(f'{self.location}: "{name}" is a {type(value).__name__}; it has to be text')
        text = value.strip()
        if not text and not may_be_empty:
            raise InputError(f'{self.location}: "{name}" is empty; write it or delete the row')
        return text

    def messages(self, value: Any, name: str) -> tuple[Message, ...]:
        if isinstance(value, dict) and "from" in value:  # one message, as sharegpt's pairs have it
            value = [value]
        if not isinstance(value, list):
            kind = type(value).__name__
            raise InputError(f'{self.location}: "{name}" is a {kind}; it has to be text or a list of messages')
        if not value:
            raise InputError(f'{self.location}: "{name}" is empty; write it or delete the row')
        return tuple(self.message(item, f"{name}[{i}]", f'"{name}"[{i}]') for i, item in enumerate(value))

    def message(self, item: Any, name: str, shown: str) -> Message:
        given = {name: value for name, value in item.items() if value is not None} if isinstance(item, dict) else {}
        if "role" in given and "content" in item:
            role, content = given["role"], item["content"]
        elif "role" not in given and "from" in given:
            role, content = given["from"], item.get("value")
            role = _SHAREGPT.get(role, role) if isinstance(role, str) else role
        else:
            raise InputError(f'{self.location}: {shown} is not a message {{"role": ..., "content": ...}}')
        if given.get("tool_calls"):
            raise InputError(f"{self.location}: {shown} calls tools, of which nothing would be trained; delete the row")
        if not isinstance(role, str) or role not in self.roles:
            known = ", ".join(self.roles)
            raise InputError(f"{self.location}: {shown} has the role {role!r}; roles are {known}")
        return Message(role, self.text(content, f"{name}.content", may_be_empty=role == "system"))

    def prompt(self, row: dict[str, Any]) -> tuple[Message, ...]:
        prompt = self.field(row, "prompt")
        if isinstance(prompt, str):
            turns = _transcript(prompt)
            if turns and len(turns) > 1 and turns[-1] == {"role": "assistant", "content": ""}:  # "... Assistant:"
                return self.checked_prompt(self.messages(turns[:-1], "prompt"))
            return (Message("user", self.text(prompt, "prompt")),)
        return self.checked_prompt(self.messages(prompt, "prompt"))

    def checked_prompt(self, messages: tuple[Message, ...]) -> tuple[Message, ...]:
        if not messages or messages[-1].role in ("assistant", "system"):
            raise InputError(f"{self.location}: the prompt has to end with a user message, which the responses answer")
        return messages

    def response(self, value: Any, name: str, prompt: tuple[Message, ...]) -> tuple[Message, ...]:
        """A response: a string, or messages with or without the prompt before its one answer."""
        if not isinstance(value, (list, dict)):
            return (Message("assistant", self.text(value, name)),)
        messages = self.messages(value, name)
        if messages[: len(prompt)] == prompt:
            messages = messages[len(prompt) :]
        if len(messages) != 1 or messages[0].role != "assistant":
            raise InputError(f'{self.location}: "{name}" has to be one assistant message, alone or after the prompt')
        return messages

    def ids(self, row: dict[str, Any], name: str) -> tuple[int, ...]:
        value = self.field(row, name)
        if not isinstance(value, list) or not all(type(i) is int and 0 <= i < 2**31 for i in value):
            raise InputError(f'{self.location}: "{name}" has to be a list of token ids')
        if not value:
            raise InputError(f'{self.location}: "{name}" is empty; write it or delete the row')
        return tuple(value)


def _all_or_none(values: list[float | None]) -> tuple[float, ...] | None:
    known = tuple(value for value in values if value is not None)
    return known if known and len(known) == len(values) else None


def _number(value: Any) -> float | None:
    """A finite number, or None: a bool is none."""
    if not isinstance(value, (int, float)) or isinstance(value, bool):
        return None
    try:
        number = float(value)
    except OverflowError:  # a whole number of hundreds of digits
        return None
    return number if math.isfinite(number) else None
