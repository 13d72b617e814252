"""Rows as records: what a row may look like, and what is wrong with it, by file and line.

    pairs      {"prompt": str | [messages], "chosen": str | [messages], "rejected": str | [messages]}
               {"chosen": "\\n\\nHuman: ...\\n\\nAssistant: ...", "rejected": ...}            HH's transcripts
               {"instruction", "completions": [{"response", "overall_score"}, ...]}       UltraFeedback's rows
    unpaired   {"prompt": ..., "completion": ..., "label": true | false}
    single     {"prompt": ..., "completion": ...}   or   {"messages": [...]}
    any of these with token ids in the place of text: "prompt_ids", "chosen_ids", "rejected_ids", "completion_ids"

A string prompt is one user message; a message is {"role", "content"} or sharegpt's {"from", "value"}, and
"conversations" another name for "messages", or for the prompt of a pair. Content is trimmed at both ends. Where chosen
and rejected repeat the prompt, the repeated part is recognised. "chosen_score", "rejected_score" and "own_score" are
carried along; other extra fields are ignored.
"""

import math
import re
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

from data.errors import InputError, list_faults
from data.sources import Reading, rows_of

ROLES = ("system", "user", "assistant")
_SHAREGPT = {"human": "user", "gpt": "assistant", "chatgpt": "assistant", "bing": "assistant", "bard": "assistant"}
_TURN = re.compile(r"(?:\A\s*|\n\n)(Human|Assistant):")


class Message(NamedTuple):
    """One turn of a conversation."""

    role: str
    content: str


@dataclass(frozen=True, slots=True)
class Record:
    """A prompt and its responses: two (chosen, rejected) where the form is "pairs", else one."""

    place: str
    """"FILE:LINE", for messages."""
    form: Literal["pairs", "unpaired", "single"]
    prompt: tuple[Message, ...] | tuple[int, ...]
    """Messages, or token ids that are taken as they are."""
    responses: tuple[str, ...] | tuple[tuple[int, ...], ...]
    label: bool | None = None
    """Unpaired: True where the response is desirable."""
    scores: tuple[float, ...] | None = None
    """The row's rating of each response, where it has one of each."""
    own_score: float | None = None
    """The row's rating of the model's own answer."""

    @property
    def is_tokenised(self) -> bool:
        """Whether prompt and responses are token ids."""
        return not isinstance(self.responses[0], str)


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
    for place, row in rows_of(source, reading):
        if isinstance(row, InputError):
            yield row
            continue
        try:
            yield parse_record(row, place, roles=roles)
        except InputError as fault:
            yield fault


def parse_record(row: dict[str, Any], place: str, *, roles: Collection[str] = ROLES) -> Record:
    """The record in one row.

    Raises InputError, located, where a field is missing, empty or of the wrong type; Tie, which is one, where all
    completions of an UltraFeedback row are rated alike.
    """
    read = _Reader(place, roles)
    row = {name: value for name, value in row.items() if value is not None}  # tables of several forms have nulls
    if "chosen_ids" in row or "completion_ids" in row or "prompt_ids" in row:
        return read.tokenised(row)
    if "chosen" in row or "rejected" in row:
        return read.pair(row)
    if "completions" in row:
        return read.rated(row)
    if "completion" in row:
        prompt = read.prompt(row)
        text = read.response(row["completion"], "completion", prompt)
        return Record(place, _completion_form(row), prompt, (text,), read.label(row), own_score=read.score(row, "own"))
    for name in ("messages", "conversations"):
        if name in row:
            messages = read.messages(row[name], name)
            if len(messages) < 2 or messages[-1].role != "assistant":
                raise InputError(f'{place}: "{name}" has to end with a user message and its assistant answer')
            prompt = read.checked_prompt(messages[:-1])
            return Record(place, "single", prompt, (messages[-1].content,), own_score=read.score(row, "own"))
    raise InputError(
        f'{place}: neither "chosen" and "rejected" nor "completion" nor "messages" but {_names(row)}; name its columns '
        "with --columns chosen=...,rejected=..., or see data/records.py for the forms"
    )


def read_prompts(
    source: str | Path, *, roles: Collection[str] = ROLES
) -> list[tuple[str, tuple[Message, ...] | tuple[int, ...]]]:
    """(place, prompt) of each row of a source: messages, or token ids where the row has "prompt_ids".

    Other fields are ignored. Raises InputError listing the first ten bad rows, or where there is no row.
    """
    prompts, faults = [], []
    for place, row in rows_of(source):
        read = _Reader(place, roles)
        try:
            if isinstance(row, InputError):
                raise row
            prompts.append((place, read.ids(row, "prompt_ids") if "prompt_ids" in row else read.prompt(row)))
        except InputError as fault:
            faults.append(str(fault))
    if faults:
        raise list_faults(faults, len(prompts) + len(faults), mend="mend or delete them")
    if not prompts:
        raise InputError(f'{source}: no prompts; write lines such as {{"prompt": "..."}}')
    return prompts


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

    place: str
    roles: Collection[str]

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
        texts = self.response(chosen, "chosen", prompt), self.response(rejected, "rejected", prompt)
        if texts[0] == texts[1]:
            raise InputError(f'{self.place}: "chosen" and "rejected" are equal; a pair has to differ')
        return Record(self.place, "pairs", prompt, texts, None, self.scores(row), self.score(row, "own"))

    def rated(self, row: dict[str, Any]) -> Record:
        """UltraFeedback's own rows: the best of the completions over the worst; of several, the first."""
        prompt = self.prompt({"prompt": row.get("instruction", row.get("prompt"))})
        completions = row["completions"]
        if not isinstance(completions, list) or not completions or not all(isinstance(c, dict) for c in completions):
            raise InputError(f'{self.place}: "completions" has to be a list of {{"response", "overall_score"}}')
        rated = []
        for i, item in enumerate(completions):
            name = f"completions[{i}]"
            score = _number(item.get("overall_score"))
            if score is None:
                raise InputError(f'{self.place}: "{name}.overall_score" is {item.get("overall_score")!r}, not a number')
            rated.append((score, self.text(item.get("response"), f"{name}.response")))
        if len({score for score, _ in rated}) < 2:
            raise Tie(f"{self.place}: its {len(rated)} completions are rated alike, so that none is better")
        best, worst = max(rated, key=lambda x: x[0]), min(rated, key=lambda x: x[0])
        if best[1] == worst[1]:
            raise InputError(f"{self.place}: the best and the worst completion are equal; a pair has to differ")
        own = self.score(row, "own")
        return Record(self.place, "pairs", prompt, (best[1], worst[1]), None, (best[0], worst[0]), own)

    def tokenised(self, row: dict[str, Any]) -> Record:
        prompt = self.ids(row, "prompt_ids")
        own = self.score(row, "own")
        if "completion_ids" in row:
            ids = (self.ids(row, "completion_ids"),)
            return Record(self.place, _completion_form(row), prompt, ids, self.label(row), own_score=own)
        ids = self.ids(row, "chosen_ids"), self.ids(row, "rejected_ids")
        if ids[0] == ids[1]:
            raise InputError(f'{self.place}: "chosen_ids" and "rejected_ids" are equal; a pair has to differ')
        return Record(self.place, "pairs", prompt, ids, None, self.scores(row), own)

    def field(self, row: dict[str, Any], name: str) -> Any:
        if row.get(name) is None:
            raise InputError(f'{self.place}: "{name}" is missing; every row needs it')
        return row[name]

    def label(self, row: dict[str, Any]) -> bool | None:
        if "label" in row and not isinstance(row["label"], bool):
            raise InputError(f'{self.place}: "label" is {row["label"]!r}; it has to be true or false')
        return row.get("label")

    def scores(self, row: dict[str, Any]) -> tuple[float, float] | None:
        chosen, rejected = self.score(row, "chosen"), self.score(row, "rejected")
        return None if chosen is None or rejected is None else (chosen, rejected)

    def score(self, row: dict[str, Any], which: str) -> float | None:
        """The row's chosen_score, say, or score_chosen, as UltraFeedback's binarized form has it."""
        for name in (f"{which}_score", f"score_{which}"):
            if row.get(name) is not None:
                if (value := _number(row[name])) is None:
                    raise InputError(f'{self.place}: "{name}" is {row[name]!r}; it has to be a number')
                return value
        return None

    def text(self, value: Any, name: str, *, may_be_empty: bool = False) -> str:
        if not isinstance(value, str):
            raise InputError(f'{self.place}: "{name}" is a {type(value).__name__}; it has to be text')
        text = value.strip()
        if not text and not may_be_empty:
            raise InputError(f'{self.place}: "{name}" is empty; write it or delete the row')
        return text

    def messages(self, value: Any, name: str) -> tuple[Message, ...]:
        if isinstance(value, dict) and "from" in value:  # one message, as sharegpt's pairs have it
            value = [value]
        if not isinstance(value, list):
            kind = type(value).__name__
            raise InputError(f'{self.place}: "{name}" is a {kind}; it has to be text or a list of messages')
        if not value:
            raise InputError(f'{self.place}: "{name}" is empty; write it or delete the row')
        return tuple(self.message(item, f"{name}[{i}]", f'"{name}"[{i}]') for i, item in enumerate(value))

    def message(self, item: Any, name: str, shown: str) -> Message:
        given = {name: value for name, value in item.items() if value is not None} if isinstance(item, dict) else {}
        if "role" in given and "content" in item:
            role, content = given["role"], item["content"]
        elif "role" not in given and "from" in given:
            role, content = given["from"], item.get("value")
            role = _SHAREGPT.get(role, role) if isinstance(role, str) else role
        else:
            raise InputError(f'{self.place}: {shown} is not a message {{"role": ..., "content": ...}}')
        if given.get("tool_calls"):
            raise InputError(f"{self.place}: {shown} calls tools, of which nothing would be trained; delete the row")
        if not isinstance(role, str) or role not in self.roles:
            known = ", ".join(self.roles)
            raise InputError(f"{self.place}: {shown} has the role {role!r}; roles are {known}")
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
            raise InputError(f"{self.place}: the prompt has to end with a user message, which the responses answer")
        return messages

    def response(self, value: Any, name: str, prompt: tuple[Message, ...]) -> str:
        """The text of a response: a string, or messages with or without the prompt before its one answer."""
        if not isinstance(value, (list, dict)):
            return self.text(value, name)
        messages = self.messages(value, name)
        if messages[: len(prompt)] == prompt:
            messages = messages[len(prompt) :]
        if len(messages) != 1 or messages[0].role != "assistant":
            raise InputError(f'{self.place}: "{name}" has to be one assistant message, alone or after the prompt')
        return messages[0].content

    def ids(self, row: dict[str, Any], name: str) -> tuple[int, ...]:
        value = self.field(row, name)
        if not isinstance(value, list) or not all(type(i) is int and 0 <= i < 2**31 for i in value):
            raise InputError(f'{self.place}: "{name}" has to be a list of token ids')
        if not value:
            raise InputError(f'{self.place}: "{name}" is empty; write it or delete the row')
        return tuple(value)


def _number(value: Any) -> float | None:
    """A finite number, or None: a bool is none."""
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
    return float(value) if is_number else None
