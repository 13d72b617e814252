"""Messages of one row: roles by their usual other names, content in parts, thoughts and calls, written dialogues.

    {"role", "content"}   or sharegpt's {"from", "value"}; content is text or [{"type": "text", "text": ...}, ...],
                          whose texts follow each other without anything between, as in transformers' templates
    an assistant's        "reasoning_content" (text), "tool_calls" [{"function": {"name", "arguments"}}, ...]
    a tool's              "tool_call_id", "name"

Content is trimmed at both ends. Other keys of a message that hold something are named as not used.
"""

import re
from collections.abc import Collection, Mapping, Sequence
from functools import cache
from itertools import pairwise
from typing import Any

from data.rows.fields import is_empty, messages_in_text, object_or_text, parsed_text
from data.text import ROLES, Message
from system import InputError

TOOL = "tool"
OTHER_NAMES = {
    **{name: "user" for name in ("human",)},
    **{name: "assistant" for name in ("gpt", "model", "chatgpt", "bing", "bard")},
    "developer": "system",
    **{name: TOOL for name in ("function", "observation")},
    **{name: name for name in (*ROLES, TOOL)},
}
"""Roles by the names that data sets give them, in any case."""
MEDIA = ("image", "images", "audio", "audios", "video", "videos")
"""Fields whose content no text model sees."""
_KEYS = {"role", "content", "from", "value", "reasoning_content", "tool_calls", "tool_call_id", "name"}
_TURN = re.compile(r"(?:\A\s*|\n\n)(Human|Assistant):")


class Turns:
    """Reads the messages of one row. Every method raises InputError, located."""

    def __init__(
        self,
        location: str,
        *,
        known: Collection[str] = ROLES,
        names: Sequence[tuple[str, str]] = (),
        ignored: Collection[str] = (),
        keeps_json_text: bool = False,
    ) -> None:
        """known: further roles that are taken as they are. names: (name, role) of --roles. ignored: fields that are let
        go. keeps_json_text: whether messages that are written as text stay text.
        """
        self.location = location
        self.n_parsed = 0
        """How many fields were messages written as text."""
        self.unused: dict[str, None] = {}
        """Keys of messages that nothing reads, as they are named: "messages' weight"."""
        self._known, self._names, self._ignored = known, names, ignored
        self._keeps_json_text = keeps_json_text

    def unpacked(self, value: Any, name: str) -> Any:
        """A field's value; where it is text that is messages as a whole, these."""
        if not isinstance(value, str) or self._keeps_json_text:
            return value
        if value[:1] not in "[{" and value.lstrip()[:1] not in ("[", "{"):
            return value
        found = messages_in_text(value, f'{self.location}: "{name}"')
        if found is None:
            return value
        self.n_parsed += 1
        return list(found) if isinstance(found, tuple) else found

    def object(self, value: Any, key: str) -> Any:
        """A field's value; where it is text that is an object with such a key, this."""
        if not isinstance(value, str) or self._keeps_json_text or not value.lstrip().startswith("{"):
            return value
        found = parsed_text(value)
        if not isinstance(found, dict) or key not in found:
            return value
        self.n_parsed += 1
        return found

    def text(self, value: Any, name: str, *, may_be_empty: bool = False) -> str:
        """Text, trimmed at both ends."""
        if not isinstance(value, str):
            raise InputError(f'{self.location}: "{name}" is a {type(value).__name__}; it has to be text')
        text = value.strip()
        if not text and not may_be_empty:
            raise InputError(f'{self.location}: "{name}" is empty; write it or delete the row')
        return text

    def content(self, value: Any, name: str, *, may_be_empty: bool = False) -> str:
        """What a message says: text, or the texts of its parts in one."""
        if isinstance(value, list):
            value = "".join(self._part(item, f"{name}[{i}]") for i, item in enumerate(value))
        return self.text(value, name, may_be_empty=may_be_empty)

    def _part(self, item: Any, name: str) -> str:
        if not isinstance(item, dict):
            raise InputError(f'{self.location}: "{name}" is a {type(item).__name__}; parts are {{"type", "text"}}')
        kind = item.get("type", "text")
        if kind != "text":
            raise InputError(
                f'{self.location}: "{name}" is a part of the type {kind!r}, and only text can be trained on; '
                "take the part or the row out"
            )
        self._name_unused(item, {"type", "text"}, "content's")
        if not isinstance(item.get("text"), str):
            raise InputError(
                f'{self.location}: "{name}.text" is a {type(item.get("text")).__name__}; it has to be text'
            )
        return item["text"]

    def messages(self, value: Any, name: str) -> tuple[Message, ...]:
        """A list of messages, or one alone."""
        value = self.unpacked(value, name)
        if isinstance(value, dict):
            value = [value]
        if not isinstance(value, list):
            kind = type(value).__name__
            raise InputError(f'{self.location}: "{name}" is a {kind}; it has to be text or a list of messages')
        if not value:
            raise InputError(f'{self.location}: "{name}" is empty; write it or delete the row')
        return tuple(self._message(item, f"{name}[{i}]", f'"{name}"[{i}]') for i, item in enumerate(value))

    def _message(self, item: Any, name: str, shown: str) -> Message:
        given = {key: value for key, value in item.items() if value is not None} if isinstance(item, dict) else {}
        calls = given.get("tool_calls") or None
        if "role" in given and ("content" in item or calls):
            role, content = given["role"], given.get("content")
        elif "role" not in given and "from" in given:
            role, content = given["from"], item.get("value")
        else:
            raise InputError(f'{self.location}: {shown} is not a message {{"role": ..., "content": ...}}')
        role = self._role(role, shown)
        if len(given) > 2:
            self._check_keys(given, shown)
        calls = self._calls(calls, role, name, shown) if calls else None
        may_be_empty = role in ("system", TOOL) or calls is not None
        return Message(
            role,
            self.content("" if content is None and calls else content, f"{name}.content", may_be_empty=may_be_empty),
            self._thoughts(given.get("reasoning_content"), role, name, shown),
            calls,
            self._word(given.get("tool_call_id"), f"{name}.tool_call_id"),
            self._word(given.get("name"), f"{name}.name"),
        )

    def _role(self, role: Any, shown: str) -> str:
        if isinstance(role, str):
            if role in ROLES and not self._names:
                return role
            found = _roles(tuple(self._names)).get(role) or _roles(tuple(self._names)).get(role.strip().lower())
            if found is not None:
                return found
            if role in self._known:
                return role
        known = ", ".join(dict.fromkeys((*ROLES, TOOL, *self._known)))
        raise InputError(
            f"{self.location}: {shown} has the role {role!r}; roles are {known}; "
            "say which of them it is: --roles NAME=user"
        )

    def _check_keys(self, given: Mapping[str, Any], shown: str) -> None:
        for key in MEDIA:
            if not is_empty(given.get(key)) and key not in self._ignored:
                raise InputError(
                    f'{self.location}: {shown} has "{key}", and only text can be trained on; take the row out, or let '
                    f"them go: --ignore-columns {key}"
                )
        if not is_empty(given.get("function_call")):
            raise InputError(
                f'{self.location}: {shown} has a "function_call"; write it as "tool_calls": '
                '[{"type": "function", "function": {"name": ..., "arguments": ...}}]'
            )
        self._name_unused(given, _KEYS | {*self._ignored}, "messages'")

    def _name_unused(self, given: Mapping[str, Any], known: Collection[str], whose: str) -> None:
        for key, value in given.items():
            if key not in known and not is_empty(value):
                self.unused[f"{whose} {key}"] = None

    def _calls(self, value: Any, role: str, name: str, shown: str) -> list[Mapping[str, Any]]:
        if role != "assistant":
            raise InputError(
                f'{self.location}: {shown} has "tool_calls" and is the {role}\'s; only assistants call tools'
            )
        calls = object_or_text(
            value,
            'a list of {"type": "function", "function": {"name": ..., "arguments": ...}}',
            lambda found: isinstance(found, list) and all(map(_is_call, found)),
            f'{self.location}: "{name}.tool_calls"',
        )
        return calls

    def _thoughts(self, value: Any, role: str, name: str, shown: str) -> str | None:
        if is_empty(value):
            return None
        if role != "assistant":
            raise InputError(
                f"{self.location}: {shown} has \"reasoning_content\" and is the {role}'s, not an assistant's"
            )
        self.text(value, f"{name}.reasoning_content")
        return value

    def _word(self, value: Any, name: str) -> str | None:
        return None if is_empty(value) else self.text(value, name)

    def prompt(self, value: Any, name: str) -> tuple[Message, ...]:
        """A prompt: text, which is one user message or HH's dialogue up to "Assistant:", or messages."""
        value = self.unpacked(value, name)
        if isinstance(value, str):
            turns = transcript(value)
            if turns and len(turns) > 1 and turns[-1]["role"] == "assistant" and not turns[-1]["content"].strip():
                return self.checked_prompt(self.messages(turns[:-1], name))
            return (Message("user", self.text(value, name)),)
        return self.checked_prompt(self.messages(value, name))

    def checked_prompt(self, messages: tuple[Message, ...]) -> tuple[Message, ...]:
        """Messages that an answer can follow."""
        if not messages or messages[-1].role in ("assistant", "system"):
            raise InputError(f"{self.location}: the prompt has to end with a user message, which the responses answer")
        return messages

    def response(self, value: Any, name: str, prompt: tuple[Message, ...]) -> tuple[Message, ...]:
        """A response: text, or messages (a tuple: read already) with or without the prompt before them: the assistant's
        answer, or several messages of the assistant with what tools said between them.
        """
        value = self.unpacked(value, name)
        if not isinstance(value, (list, dict, tuple)):
            return (Message("assistant", self.text(value, name)),)
        messages = value if isinstance(value, tuple) else self.messages(value, name)
        if messages[: len(prompt)] == prompt:
            messages = messages[len(prompt) :]
        speakers = [m.role for m in messages]
        if not speakers or speakers[0] != "assistant" or speakers[-1] != "assistant" or not _alternate(speakers):
            raise InputError(
                f'{self.location}: "{name}" has to be one assistant message, alone or after the prompt, or several '
                "with what tools said between them"
            )
        return messages


def transcript(value: Any) -> list[dict[str, str]] | None:
    """HH's "\\n\\nHuman: ...\\n\\nAssistant: ..." as messages; None where a value is none."""
    turns = list(_TURN.finditer(value)) if isinstance(value, str) else []
    if not turns or turns[0].start() != 0:
        return None
    ends = [turn.start() for turn in turns[1:]] + [len(value)]
    roles = {"Human": "user", "Assistant": "assistant"}
    return [{"role": roles[turn[1]], "content": value[turn.end() : end]} for turn, end in zip(turns, ends, strict=True)]


def parse_roles(text: str | None) -> tuple[tuple[str, str], ...]:
    """ "critic=user,bot=assistant" as pairs. Raises InputError."""
    pairs = [part.partition("=") for part in text.split(",")] if text else []
    names = tuple((name.strip(), role.strip()) for name, _, role in pairs)
    if not all(name and role for name, role in names) or len(dict(names)) < len(names):
        raise InputError(f"--roles: {text!r} is not of the form critic=user,bot=assistant")
    for name, role in names:
        if role not in (*ROLES, TOOL):
            raise InputError(f"--roles: {name}={role} names no role; roles are {', '.join((*ROLES, TOOL))}")
    return names


@cache
def _roles(names: tuple[tuple[str, str], ...]) -> dict[str, str]:
    """Roles by name: those that were asked for before those that are known."""
    return OTHER_NAMES | {name.lower(): role for name, role in names} | dict(names)


def _alternate(speakers: Sequence[str]) -> bool:
    """Whether a response's messages are the assistant's and tools', and no two of the assistant follow each other."""
    twice = any(a == b == "assistant" for a, b in pairwise(speakers))
    return not twice and {*speakers} <= {"assistant", TOOL, "ipython"}


def _is_call(call: Any) -> bool:
    """Whether it is {"function": {"name", "arguments"}}, or its inside alone, which templates take too."""
    inside = call.get("function", call) if isinstance(call, dict) else None
    return (
        isinstance(inside, dict)
        and isinstance(inside.get("name"), str)
        and bool(inside["name"])
        and (inside.get("arguments") is None or isinstance(inside["arguments"], (dict, str)))
    )
