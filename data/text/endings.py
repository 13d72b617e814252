"""What ends an answer: the tokens that a template writes behind one, read off probes, and where sampling stops."""

from collections.abc import Callable, Mapping, Sequence
from itertools import accumulate
from pathlib import Path
from typing import Any, Literal, NamedTuple

from data.text.json_files import read_json
from data.text.marking import Part, Rendering
from data.text.messages import Message, TemplateContext
from data.text.tokenizer import Tokenizer
from system import InputError, cli

Render = Callable[[Sequence[Message], TemplateContext, bool], Rendering]
"""Messages, what is given beside them, whether the generation prompt follows: the conversation as it is written."""
QUESTION, ANSWER = Message("user", "question"), Message("assistant", "answer")
NEXT = Message("user", "next")
SAMPLE_TOOL: Mapping[str, Any] = {
    "type": "function",
    "function": {
        "name": "probe",
        "description": "A tool.",
        "parameters": {"type": "object", "properties": {"name": {"type": "string", "description": "A name."}}},
    },
}
SAMPLE_CALL: Mapping[str, Any] = {"type": "function", "function": {"name": "probe", "arguments": {"name": "value"}}}


class Control(NamedTuple):
    """A control token that a template has written."""

    end: int
    """Where it ends in the conversation."""
    token: int


def control_behind(whole: Rendering, begin: int, tokenizer: Tokenizer) -> list[Control]:
    """The control tokens that the template writes behind a place."""
    found: list[Control] = []
    at = begin
    for text, speaker in whole.between(begin):
        for match in () if speaker else tokenizer.control.finditer(text):
            found.append(Control(at + match.end(), tokenizer.added[match[match.lastindex or 0]]))
        at += len(text)
    return found


def behind_contents(parts: Sequence[Part]) -> list[Part]:
    """What stands behind the last content."""
    last = max((i for i, (_, speaker) in enumerate(parts) if speaker), default=-1)
    return list(parts[last + 1 :])


def probed_context(render: Render, kwargs: Mapping[str, Any]) -> TemplateContext:
    """What probes are given beside their messages: a tool, where the template cannot do without."""
    plain = TemplateContext(kwargs=kwargs)
    try:
        render([QUESTION], plain, True)
    except InputError as fault:
        tools = plain._replace(tools=[SAMPLE_TOOL])
        try:
            render([QUESTION], tools, True)
        except InputError:
            raise fault from None
        return tools
    return plain


def named_stops(folder: Path) -> set[int]:
    """The ids at which sampling stops, by generation_config.json and config.json. Raises InputError for others."""
    found: set[int] = set()
    for name in ("generation_config.json", "config.json"):
        value = read_json(folder / name).get("eos_token_id") if (folder / name).is_file() else None
        ids = value if isinstance(value, list) else [] if value is None else [value]
        if not all(type(i) is int and i >= 0 for i in ids):
            raise InputError(f"{folder / name}: eos_token_id = {value!r}; it has to be an id, or a list of ids")
        found.update(ids)
    return found


class Endings:
    """How a template ends what an assistant says."""

    def __init__(self, tokenizer: Tokenizer, location: Path, render: Render, probe: TemplateContext) -> None:
        """location: the template's, for messages. probe: what probes are given beside their messages.

        Raises InputError where no token can end an answer.
        """
        self._tokenizer, self._location, self._render, self._probe = tokenizer, location, render, probe
        self._stops = named_stops(tokenizer.model) | ({tokenizer.eos_id} - {None})
        self.of_turn, self._written = self._find()
        """The token that ends an answer."""
        of_calls = self._find_of_calls() if self._written == "token" else None
        self._stops |= {of_calls} - {None}
        self.all = frozenset({self.of_turn, of_calls} - {None})
        """Every token that ends a message of an assistant."""

    def after(self, whole: Rendering, begin: int, *, is_last: bool) -> tuple[int, int | None]:
        """Where a message that begins there ends, behind the token that ends it; that token where none is written."""
        for end, token in control_behind(whole, begin, self._tokenizer):
            if token in self._stops or token == self.of_turn:
                return end, None
        if self._written == "token" or not is_last:
            raise InputError(
                f"the chat template {self._location} ends a message of an assistant with no control token, so its "
                "end cannot be found; repair the template"
            )
        if self._written == "text":
            return len(whole.text), self.of_turn
        ends = accumulate(len(text) for text, _ in whole.parts)
        spoken = [end for end, (_, speaker) in zip(ends, whole.parts, strict=True) if speaker]
        return max(begin, *spoken[-1:]), self.of_turn

    def _find(self) -> tuple[int, Literal["token", "text", "nothing"]]:
        """The token that ends an answer, and what the template writes at its end.

        It is the first one at which sampling stops, else the last control token, else an EOS: behind all that the
        template writes where that is a word which is no token, but not behind mere blanks.
        """
        whole = self._render([QUESTION, ANSWER], self._probe, False)
        text = "".join(text for text, _ in behind_contents(whole.parts))
        control = [token for _, token in control_behind(whole, len(whole.text) - len(text), self._tokenizer)]
        control = control[: self._n_before_a_next_turn(control)] or control
        end = next((token for token in control if token in self._stops), control[-1] if control else None)
        if end is not None:
            return end, "token"
        named = (self._tokenizer.eos_id, *sorted(named_stops(self._tokenizer.model)))
        eos = next((i for i in named if i is not None and self._tokenizer.is_control(i)), None)
        if eos is None:
            raise InputError(
                f"the chat template {self._location} ends an answer with no control token; name an eos_token"
            )
        if not text.strip():
            return eos, "nothing"
        cli.notify_once(
            f"{self._location}: ends an answer with {text.strip()!r}, which is no token of this tokenizer; it is "
            f"written as text, followed by {self._tokenizer.spelling(eos)}, where sampling stops"
        )
        return eos, "text"

    def _n_before_a_next_turn(self, control: Sequence[int]) -> int:
        """How many of the control tokens behind the probe's answer are there before a next turn, too: a template may
        end a whole conversation with one more.
        """
        try:
            whole = self._render([QUESTION, ANSWER, NEXT], self._probe, True)
        except InputError:  # it takes no such conversation
            return len(control)
        lengths = accumulate(len(text) for text, _ in whole.parts)
        begin = next(
            (end for end, (_, speaker) in zip(lengths, whole.parts, strict=True) if speaker == "assistant"), None
        )
        if begin is None:
            return len(control)
        there = [token for _, token in control_behind(whole, begin, self._tokenizer)]
        return next(
            (i for i, (a, b) in enumerate(zip(control, there, strict=False)) if a != b), min(len(control), len(there))
        )

    def _find_of_calls(self) -> int | None:
        """The token that ends a message of an assistant that calls a tool, where the template has one of its own."""
        context = self._probe._replace(tools=[SAMPLE_TOOL])
        try:
            whole = self._render([QUESTION, Message("assistant", "", tool_calls=[SAMPLE_CALL])], context, False)
            begin = len(self._render([QUESTION], context, True).text)
        except InputError:
            return None
        behind = control_behind(whole, begin, self._tokenizer)
        found = [token for _, token in behind if not self._tokenizer.is_spoken(token)]
        return found[-1] if found and not {*found} & {*self._stops, self.of_turn} else None
