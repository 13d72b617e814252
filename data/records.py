"""Rows of a file as records: what a row may look like, and what is wrong with it, by file and line.

    pairs      {"prompt": str | [messages], "chosen": str | [messages], "rejected": str | [messages]}
    unpaired   {"prompt": ..., "completion": ..., "label": true | false}
    single     {"prompt": ..., "completion": ...}   or   {"messages": [...]}
    any of these with token ids in the place of text: "prompt_ids", "chosen_ids", "rejected_ids", "completion_ids"

A string prompt is one user message. Content is trimmed at both ends. Where chosen and rejected are message lists that
repeat the prompt, the repeated part is recognised. Extra fields are allowed and ignored.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

from data.errors import InputError, list_faults
from data.jsonl import parse_row, read_lines

ROLES = ("system", "user", "assistant")


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

    @property
    def is_tokenised(self) -> bool:
        """Whether prompt and responses are token ids."""
        return not isinstance(self.responses[0], str)


class Loaded(NamedTuple):
    """What was read, and what was not: one located sentence per row that cannot be used."""

    records: list[Record]
    faults: list[str]


def load_preferences(source: str | Path, *, skip_bad_rows: bool = False) -> list[Record]:
    """The records of a .jsonl file, in its order.

    Raises InputError listing the first ten bad rows, or, with skip_bad_rows, where no good row is left.
    """
    records, faults = read_records(source)
    if faults and not skip_bad_rows:
        raise list_faults(faults, len(records) + len(faults), mend="mend them, or go on without them: --skip-bad-rows")
    if not records:
        raise InputError(f'{source}: no row that can be used; the form is {{"prompt", "chosen", "rejected"}}')
    return records


def read_records(source: str | Path) -> Loaded:
    """All records of a .jsonl file and all faults in it. Raises InputError where the file itself cannot be read."""
    path = Path(source)
    if path.suffix != ".jsonl":
        raise InputError(f"{path}: rows are read from .jsonl files; convert it to one JSON object per line")
    records, faults = [], []
    for place, line in read_lines(path):
        try:
            records.append(parse_record(parse_row(line, place), place))
        except InputError as fault:
            faults.append(str(fault))
    return Loaded(records, faults)


def parse_record(row: dict[str, Any], place: str) -> Record:
    """The record in one row. Raises InputError, located, where a field is missing, empty or of the wrong type."""
    if "chosen_ids" in row or "completion_ids" in row or "prompt_ids" in row:
        return _parse_tokenised(row, place)
    if "chosen" in row or "rejected" in row:
        return _parse_pair(row, place)
    if "completion" in row:
        prompt = _prompt(row, place)
        text = _response(row["completion"], "completion", prompt, place)
        return Record(place, _completion_form(row), prompt, (text,), _label(row, place))
    if "messages" in row:
        messages = _messages(row["messages"], "messages", place)
        if len(messages) < 2 or messages[-1].role != "assistant":
            raise InputError(f'{place}: "messages" has to end with a user message and its assistant answer')
        prompt = _checked_prompt(messages[:-1], place)
        return Record(place, "single", prompt, (messages[-1].content,))
    raise InputError(f'{place}: neither "chosen" and "rejected" nor "completion" nor "messages"; see data/records.py')


def read_prompts(source: str | Path) -> list[tuple[str, tuple[Message, ...] | tuple[int, ...]]]:
    """(place, prompt) of each row of a .jsonl file: messages, or token ids where the row has "prompt_ids".

    Other fields are ignored. Raises InputError listing the first ten bad rows, or where there is no row.
    """
    prompts, faults = [], []
    for place, line in read_lines(Path(source)):
        try:
            row = parse_row(line, place)
            prompts.append((place, _ids(row, "prompt_ids", place) if "prompt_ids" in row else _prompt(row, place)))
        except InputError as fault:
            faults.append(str(fault))
    if faults:
        raise list_faults(faults, len(prompts) + len(faults), mend="mend or delete them")
    if not prompts:
        raise InputError(f'{source}: no prompts; write lines such as {{"prompt": "..."}}')
    return prompts


def _parse_pair(row: dict[str, Any], place: str) -> Record:
    chosen, rejected = _field(row, "chosen", place), _field(row, "rejected", place)
    if row.get("prompt") is None and isinstance(chosen, list) and isinstance(rejected, list):
        w, l = _messages(chosen, "chosen", place), _messages(rejected, "rejected", place)  # noqa: E741
        shared = 0
        while shared < min(len(w), len(l)) - 1 and w[shared] == l[shared]:
            shared += 1
        prompt = _checked_prompt(w[:shared], place)
    else:
        prompt = _prompt(row, place)
    texts = _response(chosen, "chosen", prompt, place), _response(rejected, "rejected", prompt, place)
    if texts[0] == texts[1]:
        raise InputError(f'{place}: "chosen" and "rejected" are equal; a pair has to differ')
    return Record(place, "pairs", prompt, texts)


def _parse_tokenised(row: dict[str, Any], place: str) -> Record:
    prompt = _ids(row, "prompt_ids", place)
    if "completion_ids" in row:
        ids = (_ids(row, "completion_ids", place),)
        return Record(place, _completion_form(row), prompt, ids, _label(row, place))
    ids = _ids(row, "chosen_ids", place), _ids(row, "rejected_ids", place)
    if ids[0] == ids[1]:
        raise InputError(f'{place}: "chosen_ids" and "rejected_ids" are equal; a pair has to differ')
    return Record(place, "pairs", prompt, ids)


def _field(row: dict[str, Any], name: str, place: str) -> Any:
    if row.get(name) is None:
        raise InputError(f'{place}: "{name}" is missing; every row needs it')
    return row[name]


def _completion_form(row: dict[str, Any]) -> Literal["unpaired", "single"]:
    return "unpaired" if "label" in row else "single"


def _label(row: dict[str, Any], place: str) -> bool | None:
    if "label" in row and not isinstance(row["label"], bool):
        raise InputError(f'{place}: "label" is {row["label"]!r}; it has to be true or false')
    return row.get("label")


def _text(value: Any, name: str, place: str, *, may_be_empty: bool = False) -> str:
    if not isinstance(value, str):
        raise InputError(f'{place}: "{name}" is a {type(value).__name__}; it has to be text')
    text = value.strip()
    if not text and not may_be_empty:
        raise InputError(f'{place}: "{name}" is empty')
    return text


def _messages(value: Any, name: str, place: str) -> tuple[Message, ...]:
    if not isinstance(value, list):
        raise InputError(f'{place}: "{name}" is a {type(value).__name__}; it has to be text or a list of messages')
    if not value:
        raise InputError(f'{place}: "{name}" is empty')
    messages = []
    for i, item in enumerate(value):
        if not isinstance(item, dict) or "role" not in item or "content" not in item:
            raise InputError(f'{place}: "{name}"[{i}] is not a message {{"role": ..., "content": ...}}')
        if item["role"] not in ROLES:
            raise InputError(f'{place}: "{name}"[{i}] has the role {item["role"]!r}; roles are {", ".join(ROLES)}')
        is_system = item["role"] == "system"
        messages.append(
            Message(item["role"], _text(item["content"], f"{name}[{i}].content", place, may_be_empty=is_system))
        )
    return tuple(messages)


def _prompt(row: dict[str, Any], place: str) -> tuple[Message, ...]:
    prompt = _field(row, "prompt", place)
    if isinstance(prompt, str):
        return (Message("user", _text(prompt, "prompt", place)),)
    return _checked_prompt(_messages(prompt, "prompt", place), place)


def _checked_prompt(messages: tuple[Message, ...], place: str) -> tuple[Message, ...]:
    if not messages or messages[-1].role != "user":
        raise InputError(f"{place}: the prompt has to end with a user message, which the responses answer")
    return messages


def _response(value: Any, name: str, prompt: tuple[Message, ...], place: str) -> str:
    """The text of a response: a string, or a message list with or without the prompt before its one answer."""
    if not isinstance(value, list):
        return _text(value, name, place)
    messages = _messages(value, name, place)
    if messages[: len(prompt)] == prompt:
        messages = messages[len(prompt) :]
    if len(messages) != 1 or messages[0].role != "assistant":
        raise InputError(f'{place}: "{name}" has to be one assistant message, alone or after the prompt')
    return messages[0].content


def _ids(row: dict[str, Any], name: str, place: str) -> tuple[int, ...]:
    value = _field(row, name, place)
    if not isinstance(value, list) or not all(type(i) is int and 0 <= i < 2**31 for i in value):
        raise InputError(f'{place}: "{name}" has to be a list of token ids')
    if not value:
        raise InputError(f'{place}: "{name}" is empty')
    return tuple(value)
