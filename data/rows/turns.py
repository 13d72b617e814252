"""Messages of one row: roles by their usual other names, content in parts, thoughts and calls, written dialogues.

    {"role", "content"}   or sharegpt's {"from", "value"}; content is text or [{"type": "text", "text": ...}, ...],
                          whose texts follow each other without anything between, as in transformers' templates
    {"role": [...], "content": [...]}   the same as columns, as tables write a list of objects
    an assistant's        "reasoning_content" (also "thinking", "reasoning", or parts of these types before the text);
                          "tool_calls" [{"function": {"name", "arguments"}}, ...], or the older "function_call";
                          messages of the roles tool_call and function_call hold calls as JSON, and belong to the
                          assistant's message before them
    a tool's              "tool_call_id", "name"

Content is trimmed at both ends. Other keys of a message that hold something are named as not used; those that say which
messages are trained ("weight", "loss" ...) have to agree with what is (`Turns.check_flags`).
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
    **{name: TOOL for name in ("function", "observation", "tool_response")},
    **{name: name for name in (*ROLES, TOOL)},
}
"""Roles by the names that data sets give them, in any case."""
CALLS = ("function_call", "tool_call")
"""Roles of messages that are an assistant's calls, as JSON."""
THOUGHTS = ("reasoning_content", "thinking", "reasoning")
"""Names of an assistant's thoughts; of several that say the same the first counts."""
FLAGS = ("weight", "loss", "trainable", "train", "loss_mask")
"""Keys of a message that say whether it is trained."""
MEDIA = ("image", "images", "audio", "audios", "video", "videos")
"""Fields whose content no text model sees."""
_KEYS = {"role", "content", "from", "value", *THOUGHTS, "tool_calls", "function_call", "tool_call_id", "name"}
_INDENTED = re.compile(r"\s*?(?:(?<=\n)|\A)(?:[ ]{2,}|[ ]*\t[ \t]*)\S[^\n]*\n\s*\S")
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
        self.n_indented = 0
        """How many answers begin with blanks as code does, which are trimmed."""
        self.unused: dict[str, None] = {}
        """Keys of messages that nothing reads, as they are named: "messages' weight"."""
        self._flagged: list[tuple[str, tuple[Message, ...], list[tuple[int, str, Any]]]] = []
        """Of lists of messages by name, the flags in them: (which message, key, value)."""
        self._known, self._names, self._ignored = known, names, ignored
        self._keeps_json_text = keeps_json_text

    def unpacked(self, value: Any, name: str) -> Any:
        """A field's value; where it is text that is messages as a whole, these."""
        if not isinstance(value, str) or self._keeps_json_text:
            return value
        if value[:1] not in "[{" and not value.lstrip().startswith(("[", "{", "array(")):
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
                f'{self.location}: "{name}" is a part of the type {kind!r}, but only text can be trained on; '
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
            value = _as_rows(value) or [value]
        if not isinstance(value, list):
            kind = type(value).__name__
            raise InputError(f'{self.location}: "{name}" is a {kind}; it has to be text or a list of messages')
        if not value:
            raise InputError(f'{self.location}: "{name}" is empty; write it or delete the row')
        made: list[Message] = []
        flags: list[tuple[int, str, Any]] = []
        for i, item in enumerate(value):
            shown = f'"{name}"[{i}]'
            if (calls := self._calls_alone(item, f"{name}[{i}]", shown)) is None:
                made.append(self._message(item, f"{name}[{i}]", shown))
            elif made and made[-1].role == "assistant":
                made[-1] = made[-1]._replace(tool_calls=[*(made[-1].tool_calls or ()), *calls])
            else:
                made.append(Message("assistant", "", None, calls))
            if len(item) > 2:
                flags += [
                    (len(made) - 1, k, item[k]) for k in FLAGS if k not in self._ignored and not is_empty(item.get(k))
                ]
        if flags:
            self._flagged.append((name, tuple(made), flags))
        return tuple(made)

    def _calls_alone(self, item: Any, name: str, shown: str) -> list[Mapping[str, Any]] | None:
        """The calls in a message that is nothing else; None where it is another message."""
        role = item.get("role", item.get("from")) if isinstance(item, dict) else None
        if not isinstance(role, str) or role.lower() not in CALLS or role in self._known or role in dict(self._names):
            return None
        value = item.get("content", item.get("value"))
        found = parsed_text(value) if isinstance(value, str) else value
        found = [found] if isinstance(found, dict) else found
        if not found or not isinstance(found, list) or not all(map(_is_call, found)):
            raise InputError(
                f'{self.location}: {shown} has the role {role!r} but is no call {{"name": ..., "arguments": ...}} in '
                f"JSON; correct it, or name its role: --roles {role}=assistant"
            )
        calls = [call if "function" in call else {"type": "function", "function": call} for call in found]
        return self._calls(calls, "assistant", name, shown)

    def check_flags(self, responses: Collection[tuple[Message, ...]]) -> None:
        """Refuses flags that say otherwise than what is trained: what an assistant says in a response, whole."""
        for name, messages, flags in self._flagged:
            first = next((len(messages) - len(r) for r in responses if messages[-len(r) :] == tuple(r)), len(messages))
            for i, key, value in flags:
                is_trained = i >= first and messages[i].role == "assistant"
                if value not in (is_trained, float(is_trained)):
                    said = "trained, as responses are" if is_trained else "not trained, as it comes before the response"
                    raise InputError(
                        f'{self.location}: "{name}"[{i}] has "{key}": {value!r}, but is {said}; take the flag or the '
                        f"row out, or ignore such flags: --ignore-columns {key}"
                    )

    def _message(self, item: Any, name: str, shown: str) -> Message:
        given = {key: value for key, value in item.items() if value is not None} if isinstance(item, dict) else {}
        calls = self._given_calls(given, shown)
        if "role" in given and ("content" in item or calls):
            role, content = given["role"], given.get("content")
        elif "role" not in given and "from" in given:
            role, content = given["from"], item.get("value")
        else:
            mend = ""
            if isinstance(item, str) and name.startswith(("chosen[", "rejected[", "output[", "rejected_response[")):
                mend = '; several answers to a prompt are {"prompt", "completions": [the best, ...]}'
            raise InputError(f'{self.location}: {shown} is not a message {{"role": ..., "content": ...}}{mend}')
        role = self._role(role, shown)
        self.n_indented += role == "assistant" and isinstance(content, str) and _is_indented(content)
        if len(given) > 2:
            self._check_keys(given, shown)
        calls = self._calls(calls, role, name, shown) if calls else None
        may_be_empty = role in ("system", TOOL) or calls is not None
        thoughts, content = self._thoughts_in_parts(content, f"{name}.content")
        return Message(
            role,
            self.content("" if content is None and calls else content, f"{name}.content", may_be_empty=may_be_empty),
            self._thoughts(given, thoughts, role, name, shown) if thoughts or len(given) > 2 else None,
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
            "name the one that it is: --roles NAME=user"
        )

    def _check_keys(self, given: Mapping[str, Any], shown: str) -> None:
        for key in MEDIA:
            if not is_empty(given.get(key)) and key not in self._ignored:
                raise InputError(
                    f'{self.location}: {shown} has "{key}", but only text can be trained on; take the row out, or '
                    f"ignore them: --ignore-columns {key}"
                )
        self._name_unused(given, _KEYS | {*self._ignored}, "messages'")

    def _name_unused(self, given: Mapping[str, Any], known: Collection[str], whose: str) -> None:
        for key, value in given.items():
            if key not in known and not is_empty(value):
                self.unused[f"{whose} {key}"] = None

    def _calls(self, value: Any, role: str, name: str, shown: str) -> list[Mapping[str, Any]]:
        if role != "assistant":
            raise InputError(
                f'{self.location}: {shown} has "tool_calls" but is the {role}\'s; only assistants call tools'
            )
        calls = object_or_text(
            value,
            'a list of {"type": "function", "function": {"name": ..., "arguments": ...}}',
            lambda found: isinstance(found, list) and all(map(_is_call, found)),
            f'{self.location}: "{name}.tool_calls"',
        )
        return calls

    def _given_calls(self, given: Mapping[str, Any], shown: str) -> Any:
        """The calls of a message: "tool_calls", or the one of the older "function_call"."""
        calls, call = given.get("tool_calls") or None, given.get("function_call")
        if is_empty(call) or "function_call" in self._ignored:
            return calls
        if calls:
            raise InputError(f'{self.location}: {shown} has "tool_calls" and "function_call"; keep one of the two')
        return [{"type": "function", "function": call}]

    def _thoughts_in_parts(self, content: Any, name: str) -> tuple[str | None, Any]:
        """The thoughts in parts of their own before the text, and the other parts."""
        if not isinstance(content, list):
            return None, content
        kinds = [item.get("type") if isinstance(item, dict) else None for item in content]
        n = next((i for i, kind in enumerate(kinds) if kind not in THOUGHTS), len(kinds))
        parts = [item.get(kind, item.get("text")) for item, kind in zip(content[:n], kinds[:n], strict=True)]
        thoughts = [self.content(part, f"{name}[{i}].{kinds[i]}") for i, part in enumerate(parts)]
        for item, kind in zip(content[:n], kinds[:n], strict=True):
            self._name_unused(item, {"type", "text", str(kind)}, "content's")
        return "\n\n".join(thoughts) or None, content[n:]

    def _thoughts(self, given: Mapping[str, Any], of_parts: str | None, role: str, name: str, shown: str) -> str | None:
        found = {key: given[key] for key in THOUGHTS if key not in self._ignored and not is_empty(given.get(key))}
        found |= {"content": of_parts} if of_parts else {}
        if not found:
            return None
        key, value = next(iter(found.items()))
        if role != "assistant":
            raise InputError(f"{self.location}: {shown} has \"{key}\" but is the {role}'s, not an assistant's")
        texts = {self.text(value, f"{name}.{key}") for key, value in found.items()}
        if len(texts) > 1:
            raise InputError(f"{self.location}: {shown} has different thoughts in {', '.join(found)}; keep one of them")
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
            what = f"; it ends with the {messages[-1].role}'s" if messages else ""
            what += ", and responses cannot continue one" if what and messages[-1].role == "assistant" else ""
            raise InputError(
                f"{self.location}: the prompt has to end with a user message, which the responses answer{what}"
            )
        return messages

    def response(self, value: Any, name: str, prompt: tuple[Message, ...]) -> tuple[Message, ...]:
        """A response: text, or messages (a tuple: read already) with or without the prompt before them: the assistant's
        answer, or several messages of the assistant with what tools said between them.
        """
        value = self.unpacked(value, name)
        if not isinstance(value, (list, dict, tuple)):
            self.n_indented += isinstance(value, str) and _is_indented(value)
            return (Message("assistant", self.text(value, name)),)
        messages = value if isinstance(value, tuple) else self.messages(value, name)
        if messages[: len(prompt)] == prompt:
            messages = messages[len(prompt) :]
        speakers = [m.role for m in messages]
        if not speakers or speakers[0] != "assistant" or speakers[-1] != "assistant" or not _alternate(speakers):
            raise InputError(
                f'{self.location}: "{name}" has to be one assistant message, alone or after the prompt, or several '
                f"with what tools said between them{self._why(speakers, len(prompt))}"
            )
        return messages

    def _why(self, speakers: Sequence[str], n: int) -> str:
        """What a response of these speakers behind a prompt of n messages is instead."""
        if not speakers:
            return "; it is the prompt alone"
        if "user" in speakers[1:]:
            return f"; after a prompt of {n} messages, where the conversations part, it continues with a user message"
        if (role := next((role for role in (speakers[0], speakers[-1]) if role != "assistant"), None)) is None:
            return ""
        mend = " (if that is the answer: --roles system=assistant)" if role == "system" else ""
        return f"; after the prompt comes a message of the role {role}{mend}"


def _is_indented(text: str) -> bool:
    """Whether the first line that says something begins with two blanks or more, or a tab, and others follow it."""
    return text[:1].isspace() and _INDENTED.match(text) is not None


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
            raise InputError(f"--roles: {name}={role}: {role} is not a role; roles are {', '.join((*ROLES, TOOL))}")
    return names


@cache
def _roles(names: tuple[tuple[str, str], ...]) -> dict[str, str]:
    """Roles by name: those that were asked for before those that are known."""
    return OTHER_NAMES | {name.lower(): role for name, role in names} | dict(names)


def _alternate(speakers: Sequence[str]) -> bool:
    """Whether a response's messages are the assistant's and tools', and no two of the assistant follow each other."""
    twice = any(a == b == "assistant" for a, b in pairwise(speakers))
    return not twice and {*speakers} <= {"assistant", TOOL, "ipython"}


def _as_rows(value: Mapping[str, Any]) -> list[dict[str, Any]] | None:
    """Messages that stand as columns, {"role": [...], "content": [...]}; None for anything else."""
    columns = {key: column for key, column in value.items() if column is not None}
    speakers = columns.get("role", columns.get("from"))
    if not isinstance(speakers, list) or not all(isinstance(column, list) for column in columns.values()):
        return None
    if any(len(column) != len(speakers) for column in columns.values()):
        return None
    return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]


def _is_call(call: Any) -> bool:
    """Whether it is {"function": {"name", "arguments"}}, or its inside alone, which templates take too."""
    inside = call.get("function", call) if isinstance(call, dict) else None
    return (
        isinstance(inside, dict)
        and isinstance(inside.get("name"), str)
        and bool(inside["name"])
        and (inside.get("arguments") is None or isinstance(inside["arguments"], (dict, str)))
    )
