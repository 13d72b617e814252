"""What of a rendered conversation is content and what is the template's: contents are marked while they are rendered.

    messages --marks--> template --> text with marks --> parts: (text, who says it)

Marks are noncharacters of Unicode that the conversation does not hold. Rendered with them and without, it has to be the
same but for the marks; otherwise the template did not take the contents as they are. First a mark stands before each
content and one behind it. A template that looks into contents (R1's cuts an answer at </think>, Qwen3's looks for it)
parts the two, or does something else because of them. Then marks stand behind the first and the last letter of every
word instead, but for what the template looks for, and a content is what stands from its first marked letter to its last
one.

Other strings of a row (tools, calls, documents) are no contents, but no control token may come of them either: a mark
inside of whatever spells one keeps it text.
"""

import itertools
import re
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import Any, Literal, NamedTuple

from data.text.messages import Message, TemplateContext
from data.text.template import Template
from system import InputError

Speaker = Literal["", "other", "assistant"]
"""Who says a part of a text: the template, an assistant, or somebody else."""
Part = tuple[str, Speaker]
NONCHARACTERS = [chr(c) for c in range(0xFDD0, 0xFDF0)]
SPEAKERS: tuple[Speaker, ...] = ("other", "other", "assistant", "assistant", "assistant")
"""Whose contents each mark stands for: two take turns, so that neighbours stay two; the last one is of thoughts."""


class Spellings(NamedTuple):
    """Patterns of what spells control tokens."""

    added: re.Pattern[str]
    """Any of them."""
    special: re.Pattern[str]
    """Those that nothing but a template may write."""


class Rendering(NamedTuple):
    """A conversation as a template writes it."""

    text: str
    parts: list[Part]
    """The same text, in order. A part of the template's may be cut in two where a control token must not be read."""

    def between(self, start: int, end: int | None = None) -> list[Part]:
        """The parts of text[start:end]."""
        end = len(self.text) if end is None else end
        cut: list[Part] = []
        at = 0
        for text, speaker in self.parts:
            if piece := text[max(start - at, 0) : max(end - at, 0)]:
                cut.append((piece, speaker))
            at += len(text)
        return cut


class _Marks(NamedTuple):
    of: Sequence[str]
    """A mark for each of SPEAKERS."""
    end: str
    guard: str

    @property
    def all(self) -> str:
        return "".join((*self.of, self.end, self.guard))


class _Unequal(Exception):
    """The template parted two marks."""


def render(
    template: Template,
    messages: Sequence[Message],
    context: TemplateContext,
    spellings: Spellings,
    *,
    add_generation_prompt: bool,
) -> Rendering:
    """The conversation as the template writes it, in parts.

    Raises InputError where the template refuses it, leaves a content out, or does not take it as it is.
    """

    def write(fields: Sequence[Mapping[str, Any]], given: TemplateContext = context) -> str:
        return template.render(fields, add_generation_prompt=add_generation_prompt, context=given)

    plain = [fields_of(m) for m in messages]
    meant = write(plain)
    marks = _free_marks([*plain, *context])
    guarded = _guarded_context(context, marks.guard, spellings)
    fields = [_guarded_message(f, marks.guard, spellings) for f in plain]
    sought, n_given = template.looked_for, _n_contents(messages)

    def between_two() -> list[Part] | None:
        parts, n_shown = _between_two(write(_put_around(fields, marks), guarded), marks)
        return parts if _is_whole(parts, meant) and n_shown == n_given else None

    def at_words(spared: Collection[str]) -> list[Part] | None:
        put = _put_inside(fields, marks, sought, spellings.special, spared)
        text = write(put, guarded)
        parts, n_shown = _regions(text, marks)
        is_once = all(text.count(mark) <= sum(map(_n_marks(mark), put)) for mark in marks.of)
        least = n_given - _n_lost(messages, sought)
        if not is_once or not _is_whole(parts, meant) or not least <= n_shown <= n_given:
            return None
        return _grown(parts, messages) if "other" in spared else parts

    ways = [between_two, lambda: at_words(("assistant",)), lambda: at_words(("assistant", "other"))]
    if sought and any(sought.search(m.content) for m in messages):  # then the first one seldom does
        ways.append(ways.pop(0))
    for way in ways:
        try:
            parts = way()
        except (_Unequal, InputError):  # the marks can make it refuse what it takes without them
            continue
        if parts is not None:
            return Rendering(meant, parts)
    raise InputError(_what_is_wrong(template, messages, meant, write))


def _n_marks(mark: str) -> Callable[[Mapping[str, Any]], int]:
    return lambda fields: sum(str(fields.get(name, "")).count(mark) for name in ("content", "reasoning_content"))


def _is_whole(parts: Sequence[Part], meant: str) -> bool:
    return "".join(text for text, _ in parts) == meant


def _n_contents(messages: Sequence[Message]) -> Counter[str]:
    """How many contents there are of each speaker."""
    return Counter(_speaker(m.role) for m in messages if m.content)


def _n_lost(messages: Sequence[Message], looked_for: re.Pattern[str] | None) -> Counter[str]:
    """How many contents of each speaker may be gone: a thought that an assistant has had before, and commands to the
    template that are all of a content.
    """
    found = Counter[str]()
    for m in messages:
        rest = looked_for.sub("", m.content) if looked_for else m.content
        found[_speaker(m.role)] += bool(m.content) and (
            rest != m.content if m.role == "assistant" else not rest.strip()
        )
    return found


def _speaker(role: str) -> Speaker:
    return "assistant" if role == "assistant" else "other"


def _grown(parts: list[Part], messages: Sequence[Message]) -> list[Part]:
    """The parts with what belongs to others' contents and stands unmarked at their ends, since the template looks for
    it.
    """
    contents = [m.content for m in messages if m.role != "assistant"]
    texts = [text for text, _ in parts]
    speakers: list[Speaker] = [speaker for _, speaker in parts]
    for i, speaker in enumerate(speakers):
        whole = next((c for c in contents if speaker == "other" and texts[i] in c), texts[i])
        before, _, behind = whole.partition(texts[i])
        if i and not speakers[i - 1] and before and texts[i - 1].endswith(before):
            texts[i - 1], texts[i] = texts[i - 1].removesuffix(before), before + texts[i]
        if i + 1 < len(parts) and not speakers[i + 1] and behind and texts[i + 1].startswith(behind):
            texts[i], texts[i + 1] = texts[i] + behind, texts[i + 1].removeprefix(behind)
    return [(text, speaker) for text, speaker in zip(texts, speakers, strict=True) if text]


def _what_is_wrong(
    template: Template,
    messages: Sequence[Message],
    meant: str,
    write: Callable[[Sequence[Mapping[str, Any]]], str],
) -> str:
    """What is said where contents cannot be found in what the template writes."""
    named = f"the chat template {template.location}"
    for i, message in enumerate(messages):
        others = [fields_of(m) | ({"content": ""} if j == i else {}) for j, m in enumerate(messages)]
        try:
            is_left_out = bool(message.content) and write(others) == meant
        except InputError:
            continue
        if is_left_out:
            beside = " beside its tool_calls" if message.tool_calls else ""
            return (
                f'{named} has no place for the content of message {i + 1}, of the role "{message.role}"{beside}; '
                "remove it from the row, or use a template that has one: --chat-template FILE"
            )
    return f"{named} treats a content by what it says, shows one twice or cuts it; content must stay whole"


def fields_of(message: Message) -> dict[str, Any]:
    """What a template sees of a message; thoughts under both names that are in use, as in transformers."""
    fields = message.fields()
    return {"thinking": fields["reasoning_content"], **fields} if "reasoning_content" in fields else fields


def _free_marks(given: Sequence[Any]) -> _Marks:
    everything = "".join(text for text in _strings(given) if not text.isascii())
    free = [c for c in NONCHARACTERS if c not in everything] if everything else NONCHARACTERS
    if len(free) < len(SPEAKERS) + 2:
        raise InputError("the text holds nearly all of Unicode's noncharacters U+FDD0 to U+FDEF; remove them")
    return _Marks(free[: len(SPEAKERS)], *free[len(SPEAKERS) : len(SPEAKERS) + 2])


def _strings(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for pair in value.items():
            yield from _strings(pair)
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from _strings(item)


# --- marks into what the template is given ---------------------------------------------------------------------------


def _guarded(value: Any, guard: Callable[[str], str]) -> Any:
    """A value of JSON with every string of it guarded."""
    if isinstance(value, str):
        return guard(value)
    if isinstance(value, Mapping):
        return {_guarded(name, guard): _guarded(item, guard) for name, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_guarded(item, guard) for item in value]
    return value


def _inside(pattern: re.Pattern[str], mark: str) -> Callable[[str], str]:
    """Puts a mark behind the first letter of everything that matches."""
    return lambda text: pattern.sub(lambda found: found[0][:1] + mark + found[0][1:], text)


def _guarded_context(context: TemplateContext, mark: str, spellings: Spellings) -> TemplateContext:
    if not any(context):
        return context
    return TemplateContext(*(_guarded(value, _inside(spellings.added, mark)) for value in context))


def _guarded_message(fields: dict[str, Any], mark: str, spellings: Spellings) -> dict[str, Any]:
    """A message whose calls and names spell no control token; its contents are marked otherwise."""
    if len(fields) == 2:
        return fields
    said = {"role", "content", "reasoning_content", "thinking"}
    kinds = {"tool_calls": spellings.special}
    return {
        name: value if name in said else _guarded(value, _inside(kinds.get(name, spellings.added), mark))
        for name, value in fields.items()
    }


def _put_around(messages: Sequence[dict[str, Any]], marks: _Marks) -> list[dict[str, Any]]:
    made = []
    for fields in messages:
        own = marks.of[SPEAKERS.index(_speaker(fields["role"]))]
        new = {"content": f"{own}{fields['content']}{marks.end}"} if fields["content"] else {}
        made.append(fields | new | _of_thoughts(fields, lambda text: f"{marks.of[-1]}{text}{marks.end}"))
    return made


def _put_inside(
    messages: Sequence[dict[str, Any]],
    marks: _Marks,
    looked_for: re.Pattern[str] | None,
    special: re.Pattern[str],
    spared: Collection[str],
) -> list[dict[str, Any]]:
    """Every word marked but for what the template looks for in what those say who are spared."""
    turns = {"assistant": itertools.cycle(marks.of[2:4]), "other": itertools.cycle(marks.of[:2])}
    made = []
    for fields in messages:
        speaker = _speaker(fields["role"])
        pattern = looked_for if speaker in spared else None
        own = next(turns[speaker])
        new = {"content": _each_marked(fields["content"], own, pattern, special)}
        made.append(fields | new | _of_thoughts(fields, lambda t: _each_marked(t, marks.of[-1], looked_for, special)))
    return made


def _of_thoughts(fields: Mapping[str, Any], change: Callable[[str], str]) -> dict[str, str]:
    return {n: change(fields[n]) for n in ("reasoning_content", "thinking") if isinstance(fields.get(n), str)}


def _each_marked(text: str, mark: str, looked_for: re.Pattern[str] | None, special: re.Pattern[str]) -> str:
    """A text with a mark behind the first and the last letter of each word, or behind all where it spells a control
    token; not in what the template looks for, unless that spells one.
    """
    pattern = re.compile(r"(?<=\S)" if special.search(text) else r"(?<=\s\S)|(?<=\A\S)|(?<=\S)(?!\S)")
    made, at = [], 0
    for found in looked_for.finditer(text) if looked_for else ():
        if not special.search(found[0]):
            made += [pattern.sub(mark, text[at : found.start()]), found[0]]
            at = found.end()
    return "".join(made) + pattern.sub(mark, text[at:])


# --- and out of what it writes ---------------------------------------------------------------------------------------


def _between_two(text: str, marks: _Marks) -> tuple[list[Part], Counter[str]]:
    """Parts of a text in which contents stand between two marks, and how many contents there are of each speaker."""
    speakers = dict(zip(marks.of, SPEAKERS, strict=True))
    parts: list[Part] = []
    n_shown = Counter[str]()
    speaker: Speaker = ""
    for piece in re.split(f"([{marks.all}])", text):
        if piece in speakers:
            if speaker:
                raise _Unequal
            speaker = speakers[piece]
            n_shown[speaker] += piece != marks.of[-1]
        elif piece == marks.end:
            if not speaker:
                raise _Unequal
            speaker = ""
        elif piece and piece != marks.guard:
            parts.append((piece, speaker))
    if speaker:
        raise _Unequal
    return parts, n_shown


def _regions(text: str, marks: _Marks) -> tuple[list[Part], Counter[str]]:
    """The same of a text in which marks stand behind letters of contents."""
    speakers = dict(zip(marks.of, SPEAKERS, strict=True))
    plain = f"[^{marks.all}]"
    pattern = "|".join(f"{plain}{m}(?:{plain}+{m})*" for m in marks.of)
    parts: list[Part] = []
    n_shown = Counter[str]()
    at = 0
    for found in re.finditer(pattern, text):
        parts += _of_template(text[at : found.start()], marks)
        mark = found[0][1]
        parts.append((found[0].replace(mark, ""), speakers[mark]))
        n_shown[speakers[mark]] += mark != marks.of[-1]
        at = found.end()
    return parts + _of_template(text[at:], marks), n_shown


def _of_template(text: str, marks: _Marks) -> list[Part]:
    return [(piece, "") for piece in text.split(marks.guard) if piece]
