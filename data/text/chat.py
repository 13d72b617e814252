"""Conversations as token ids, by the checkpoint's own chat template.

    messages --template--> text with every content marked --split at control tokens--> runs --tokenizer--> ids

The template's text may place control tokens. Content never does: whatever it spells is encoded as text, but for added
tokens that are not special (<think>, <tool_call>) in what an assistant says. Runs are encoded whole, so that the ids
are those of encoding the rendered conversation in one piece.

A prompt is what the template writes with its generation prompt. A response is what it writes behind that for the whole
conversation, up to the token that ends it; of several messages (an assistant that calls a tool, the tool, the
assistant) what an assistant says is predicted, the rest is context. Where the generation prompt opens a thought that
the template would cut out of the conversation (R1's), the response stands behind it as it is given.
"""

import re
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from data.text import marking, places
from data.text.endings import (
    ANSWER,
    QUESTION,
    Endings,
    behind_contents,
    control_behind,
    named_stops,
    probed_context,
)
from data.text.frames import Frames
from data.text.marking import Part, Rendering, Speaker
from data.text.messages import NO_CONTEXT, ROLES, Message, TemplateContext
from data.text.runs import Before, Run, Said, cut_at_control, encode_runs, ids_of
from data.text.template import ANOTHER, Template
from data.text.template_settings import (
    BUILT_IN,
    LLAMA3_TEMPLATE,
    LLAMA3_TOKENS,
    NO_SETTINGS,
    TemplateSettings,
    named_templates,
    template_source,
)
from data.text.tokenizer import Tokenizer
from system import InputError

__all__ = ["LLAMA3_TEMPLATE", "LLAMA3_TOKENS", "Chat", "Response", "Run", "Said", "Written", "stop_ids"]

TOOL_USE = "tool_use"
"""The name of a template that rows with tools are written by."""
MOST_SHAPES = 4096  # kinds of conversations that are remembered
OPENED = re.compile(r"([<\[]\w*(?:think|thought|reason)\w*[>\]])\s*\Z", re.IGNORECASE)
"""The end of a generation prompt that has begun a thought."""
EMPTY = re.compile(r"([<\[])(\w*(?:think|thought|reason)\w*[>\]])\s*\1/\2\s*\Z", re.IGNORECASE)
"""The end of one that has ended it, too: nothing is thought."""


class Response(NamedTuple):
    """A response in pieces, ending with the last token that is predicted."""

    pieces: list[int | Run]
    seen: list[int]
    """Of each piece how much at its beginning is not predicted: characters of a run, 1 for a token."""
    lacks_thought: bool = False
    """Whether the prompt opens a thought that the response neither goes on with nor ends."""

    @property
    def is_predicted_whole(self) -> bool:
        """Whether all of it is predicted."""
        return not any(self.seen)


class Written(NamedTuple):
    """A row as its template writes it."""

    prompt: list[int | Run]
    responses: list[Response]


class _Shape(NamedTuple):
    """What stands around a plain answer, behind a prompt of one kind."""

    before: str
    closing: str
    end: int
    lacks_thought: bool


class _Passage(NamedTuple):
    """Parts of a response that are predicted, or are not; the token that ends them where no part spells it."""

    parts: list[Part]
    is_predicted: bool
    end: int | None = None


class _Found(NamedTuple):
    """A message of an assistant in a conversation."""

    passage: _Passage
    begin: int | None
    """Where it begins in the whole conversation; None where it is not what stands there."""
    end: int
    lacks_thought: bool = False


class Chat:
    """A tokenizer and its chat template."""

    def __init__(self, tokenizer: Tokenizer, settings: TemplateSettings = NO_SETTINGS) -> None:
        """Raises InputError where there is no template, it cannot be trusted, or it has no place for an answer."""
        source, location = template_source(tokenizer, settings.chat_template)
        tokenizer = tokenizer.written_by([source, *(text for text, _ in named_templates(tokenizer).values())])
        self.tokenizer = tokenizer
        self.template = Template(source, location, tokenizer.names(), settings.day)
        if settings.template_date is not None and self.template.day is None:
            raise InputError(f"--template-date: the chat template {location} asks for no date; leave it out")
        self._kwargs = settings.kwargs
        places.check_names(self.template, self._kwargs, "--chat-template-kwargs")
        self.for_tools = self._for_tools(settings)
        """The chat of rows with tools, where the checkpoint has a template of its own for them, as in transformers."""
        self._own_roles = (*ROLES, *sorted(self.template.roles() - {*ROLES}))
        self.roles = tuple(dict.fromkeys((*self._own_roles, *(self.for_tools.roles if self.for_tools else ()))))
        """The roles that a message may have."""
        is_brought = settings.chat_template is not None or location == BUILT_IN
        self.files = tokenizer.files | ({"chat_template.jinja": source} if is_brought else {})
        """Files that a checkpoint needs beside its tokenizer's own or in their place, by name."""
        self._shapes: dict[object, _Shape] = {}
        self._spellings = marking.Spellings(tokenizer.control, tokenizer.control_special)
        self._frames = Frames(self.template, self._marked)
        self._arguments: places.Wanted | None = None
        self._probe = probed_context(self._render, self._kwargs)
        self._endings = Endings(tokenizer, location, self._render, self._probe)
        self.end_of_turn = self._endings.of_turn
        """The token that ends an answer."""
        self.ends = self._endings.all | (self.for_tools.ends if self.for_tools else set())
        """Every token that the checkpoint's templates end a message of an assistant with."""
        self._shape([QUESTION], self._probe)
        self._check_normalized()

    # --- rows ------------------------------------------------------------------------------------------------------

    def write(
        self,
        prompt: Sequence[Message],
        responses: Sequence[Sequence[Message]] = (),
        context: TemplateContext = NO_CONTEXT,
    ) -> Written:
        """A prompt up to the place where the answer begins, and each response behind it.

        Raises InputError where the template refuses the conversation, or has no place for a part of it.
        """
        if context.tools is not None and self.for_tools is not None:
            return self.for_tools.write(prompt, responses, context)
        context = context._replace(kwargs=self._kwargs | dict(context.kwargs)) if self._kwargs else context
        prompt, responses = self._with_arguments(prompt, responses, context)
        for message in (m for part in (prompt, *responses) for m in part):
            if message.role not in self._own_roles:
                known = ", ".join(self._own_roles)
                raise InputError(
                    f'the chat template {self.template.location} has no place for the role "{message.role}"; it knows '
                    f"{known}; rename it with --roles {message.role}=user, or use another template"
                )
        if context != NO_CONTEXT or any(m.tool_calls or m.reasoning_content for m in prompt):
            places.check_prompt(self.template, prompt, context, self._plain)
        written = self._render(prompt, context, True)
        pieces = self._with_bos(self.pieces(written.parts))
        return Written(pieces, [self._response(prompt, r, context, written, pieces) for r in responses])

    def prompt_pieces(self, messages: Sequence[Message], context: TemplateContext = NO_CONTEXT) -> list[int | Run]:
        """A prompt up to the place where the answer begins: BOS once, then what the template writes."""
        return self.write(messages, (), context).prompt

    def prompt_ids(self, messages: Sequence[Message], context: TemplateContext = NO_CONTEXT) -> list[int]:
        """The ids of a prompt, whole. Raises InputError where the template refuses the conversation."""
        return ids_of(self.prompt_pieces(messages, context), self.tokenizer)

    def render(
        self, messages: Sequence[Message], *, add_generation_prompt: bool, context: TemplateContext = NO_CONTEXT
    ) -> list[Part]:
        """The conversation as the template writes it: (text, who says it) in order, "" for the template itself.

        Raises InputError where the template refuses the conversation or does not show a content as it is.
        """
        chat = self.for_tools if context.tools is not None and self.for_tools is not None else self
        return chat._render(messages, context, add_generation_prompt).parts

    def _for_tools(self, settings: TemplateSettings) -> "Chat | None":
        named = {} if settings.chat_template is not None else named_templates(self.tokenizer)
        if TOOL_USE not in named or named[TOOL_USE][0] == self.template.source:
            return None
        day = None if self.template.day is None else settings.template_date
        return Chat(self.tokenizer, replace(settings, chat_template=TOOL_USE, template_date=day))

    def _render(self, messages: Sequence[Message], context: TemplateContext, asks: bool) -> Rendering:
        return self._frames.render(messages, context, asks)

    def _marked(self, messages: Sequence[Message], context: TemplateContext, asks: bool) -> Rendering:
        return marking.render(self.template, messages, context, self._spellings, add_generation_prompt=asks)

    def _plain(self, messages: Sequence[Message], context: TemplateContext, asks: bool) -> str:
        fields = [marking.fields_of(m) for m in messages]
        return self.template.render(fields, add_generation_prompt=asks, context=context)

    def _with_bos(self, pieces: list[int | Run]) -> list[int | Run]:
        bos = self.tokenizer.bos_id
        return [bos, *pieces] if self.tokenizer.adds_bos and bos is not None and pieces[:1] != [bos] else pieces

    def _with_arguments(
        self, prompt: Sequence[Message], responses: Sequence[Sequence[Message]], context: TemplateContext
    ) -> tuple[Sequence[Message], Sequence[Sequence[Message]]]:
        """The messages with arguments of calls in the form that the template wants."""
        calling = next((r for r in ((), *responses) if any(m.tool_calls for m in (*prompt, *r))), None)
        if calling is None:
            return prompt, responses
        if self._arguments is None:
            self._arguments = places.wanted_arguments([*prompt, *calling], context, self._plain)
        wanted = self._arguments
        return places.as_wanted(prompt, wanted), [places.as_wanted(r, wanted) for r in responses]

    # --- responses -------------------------------------------------------------------------------------------------

    def _response(
        self,
        prompt: Sequence[Message],
        response: Sequence[Message],
        context: TemplateContext,
        written: Rendering,
        pieces: list[int | Run],
    ) -> Response:
        """A response behind its prompt, which is `written`, in `pieces`."""
        after: Before = "nothing" if not pieces else "text" if isinstance(pieces[-1], Run) else "control"
        if self._is_plain(response):
            shape = self._shape(prompt, context, response[0], written)
            parts: list[Part] = [(shape.before, ""), (response[0].content, "assistant"), (shape.closing, "")]
            made = [_Passage([part for part in parts if part[0]], True, shape.end)]
            return self._joined(made, shape.lacks_thought, after=after)
        if any(m.tool_calls or m.reasoning_content for m in response):
            places.check_response(self.template, prompt, response, context, self._plain)
        return self._joined(*self._passages(prompt, response, context, written), after=after)

    def _is_plain(self, response: Sequence[Message]) -> bool:
        """Whether it is one answer of which the template looks for nothing, so that it is written as all such are."""
        if len(response) != 1 or response[0].role != "assistant" or not response[0].content:
            return False
        message, sought = response[0], self.template.looked_for
        return message[2:] == (None,) * 4 and not (sought and sought.search(message.content))

    def _shape(
        self,
        prompt: Sequence[Message],
        context: TemplateContext,
        answer: Message | None = None,
        written: Rendering | None = None,
    ) -> _Shape:
        """What stands around a plain answer: read off the first one behind a prompt of the same kind."""
        sought = self.template.looked_for
        kind = (
            tuple((m.role, bool(m.tool_calls), bool(m.reasoning_content), not m.content) for m in prompt),
            frozenset(sought.findall("\n".join(m.content for m in prompt))) if sought else (),
            (context.tools is None, context.documents is None, repr(sorted(context.kwargs.items()))),
        )
        if (found := self._shapes.get(kind)) is not None:
            return found
        written = written or self._render(prompt, context, True)
        ((passage,), lacks_thought) = self._passages(prompt, [answer or ANSWER], context, written)
        if not written.text or not any(speaker for _, speaker in passage.parts):
            raise self._differs()
        first = next(i for i, (_, speaker) in enumerate(passage.parts) if speaker)
        before = "".join(text for text, _ in passage.parts[:first])
        closing, end = "".join(text for text, _ in behind_contents(passage.parts)), passage.end
        if end is None:
            *inner, last = self.tokenizer.split_control(closing)
            assert isinstance(last, int)  # a passage without an end of its own ends in a control token
            closing, end = self._spelled(inner), last
        if len(self._shapes) >= MOST_SHAPES:
            self._shapes.clear()
        made = self._shapes[kind] = _Shape(before, closing, end, lacks_thought)
        return made

    def _spelled(self, pieces: Iterable[int | str]) -> str:
        return "".join(self.tokenizer.spelling(p) if isinstance(p, int) else p for p in pieces)

    def _passages(
        self,
        prompt: Sequence[Message],
        response: Sequence[Message],
        context: TemplateContext,
        written: Rendering,
    ) -> tuple[list[_Passage], bool]:
        """A response in passages that are predicted or not, up to the last that is; whether it lacks a thought.

        Each message of an assistant begins where the template would have the model begin it.
        """
        if response[0].role != "assistant":
            raise InputError(f'a response begins with the role "{response[0].role}"; it has to begin with "assistant"')
        prompt, written, whole = self._whole(prompt, response, context, written)
        made: list[_Passage] = []
        lacks_thought, done = False, 0
        for i, message in enumerate(response):
            if message.role != "assistant":
                continue
            asked = self._render([*prompt, *response[:i]], context, True) if i else written
            found = self._passage(message, asked, whole, is_last=i + 1 == len(response))
            if i:
                made.append(_Passage(self._between(whole, done, asked, found.begin), False))
            made.append(found.passage)
            done = found.end
            lacks_thought |= found.lacks_thought
        return made, lacks_thought

    def _whole(
        self, prompt: Sequence[Message], response: Sequence[Message], context: TemplateContext, written: Rendering
    ) -> tuple[Sequence[Message], Rendering, Rendering]:
        """A prompt, as it is written, and with its response; without messages that an answer makes go away."""
        try:
            return prompt, written, self._render([*prompt, *response], context, False)
        except InputError:
            shown = places.shown_behind(prompt, response, context, self._plain)
            if len(shown) == len(prompt):
                raise
        return shown, self._render(shown, context, True), self._render([*shown, *response], context, False)

    def _passage(self, message: Message, asked: Rendering, whole: Rendering, *, is_last: bool) -> _Found:
        """What an assistant's message is behind the prompt that asks for it."""
        opened, closed = OPENED.search(asked.text), EMPTY.search(asked.text)
        thought = opened or closed
        begin = self._place(asked, whole, len(asked.text))
        head = None if thought is None else self._place(asked, whole, thought.start())
        shared = _n_shared(asked.text, whole.text)
        start = next(place for place in (head, begin, shared) if place is not None)
        end, token = self._endings.after(whole, max(start, begin or 0), is_last=is_last)
        has_all = _holds(whole.text[start:end], message)
        is_prefix = begin == len(asked.text)  # else thoughts could stand where the prompt has none
        if begin is not None and has_all and (is_prefix or _holds(whole.text[begin:end], message)):
            return _Found(_Passage(whole.between(begin, end), True, token), begin, end)
        sought = self.template.looked_for
        text, opening = message.content, opened[1] if opened else ""
        if not message.tool_calls and not message.reasoning_content:
            if head is None and not (sought and sought.search(text)):
                raise self._differs()
            text = text[len(opening) :].lstrip() if opening and text.startswith(opening) else text
            token = self._ended_by(whole, end) if token is None else token
            passage = _Passage([(text, "assistant")] if text else [], True, token)
            return _Found(passage, None, end, bool(opening) and _closing(opening) not in text)
        if head is None or not has_all or (closed and message.reasoning_content):
            raise self._differs()
        text = whole.text[start:end]
        if opening and text.startswith(opening):
            start = end - len(text[len(opening) :].lstrip())
        passage = _Passage(whole.between(start, end), True, token)
        return _Found(passage, None, end, bool(opening) and _closing(opening) not in text)

    def _between(self, whole: Rendering, done: int, asked: Rendering, begin: int | None) -> list[Part]:
        """What stands between two messages of an assistant: in the whole conversation, or in what asks for the second
        one where that begins otherwise.
        """
        if begin is not None:
            return whole.between(done, begin)
        if (place := self._place(whole, asked, done)) is None:
            raise self._differs()
        return asked.between(place)

    def _place(self, a: Rendering, b: Rendering, at: int) -> int | None:
        """The place in b that a place in a is: behind as many control tokens, the same ones, and the same text behind
        the last of them; None where there is none such.

        Mostly b begins with a[:at]. Hermes 3 ends a tool's words with a newline only where more follows.
        """
        if b.text.startswith(a.text[:at]):
            return at
        before = [(end, token) for end, token in control_behind(a, 0, self.tokenizer) if end <= at]
        there = control_behind(b, 0, self.tokenizer)[: len(before)]
        if not before or [token for _, token in before] != [token for _, token in there]:
            return None
        behind = a.text[before[-1][0] : at]
        place = there[-1][0]
        return place + len(behind) if b.text.startswith(behind, place) else None

    def _differs(self) -> InputError:
        return InputError(
            f"the chat template {self.template.location}: a rendered conversation does not begin with its own "
            f"generation prompt; repair the template, or use another: {ANOTHER}"
        )

    def _ended_by(self, whole: Rendering, end: int) -> int:
        return next(token for at, token in control_behind(whole, 0, self.tokenizer) if at == end)

    def _joined(self, passages: Sequence[_Passage], lacks_thought: bool, *, after: Before) -> Response:
        """Passages as one response."""
        pieces: list[int | Run] = []
        seen: list[int] = []
        parts: list[tuple[str, Speaker, bool]] = []
        for passage in passages:
            parts.extend((text, speaker, passage.is_predicted) for text, speaker in passage.parts)
            if passage.end is not None:
                more, unpredicted = cut_at_control(parts, self.tokenizer, "control" if pieces else after)
                pieces += [*more, passage.end]
                seen += [*unpredicted, 0]
                parts = []
        more, unpredicted = cut_at_control(parts, self.tokenizer, "control" if pieces else after)
        return Response([*pieces, *more], [*seen, *unpredicted], lacks_thought)

    # --- text as ids -----------------------------------------------------------------------------------------------

    def pieces(self, parts: Iterable[Part]) -> list[int | Run]:
        """Rendered parts as control ids and the runs of text between them."""
        return cut_at_control(((text, speaker, True) for text, speaker in parts), self.tokenizer)[0]

    def encode(self, runs: Sequence[Run]) -> list[list[int]]:
        """The ids of each run."""
        return encode_runs(runs, self.tokenizer)

    def _check_normalized(self) -> None:
        """Raises InputError where a token of the template is `normalized`, so that what stands around it gets other ids
        in transformers and vLLM.
        """
        whole = self._render([QUESTION, ANSWER], self._probe, False)
        if (token := self.tokenizer.normalized_in(whole.text)) is None:
            return
        ours = ids_of(self.pieces(whole.parts), self.tokenizer)
        if self.tokenizer.encode_whole(whole.text) not in (ours, None):
            raise InputError(
                f"{self.tokenizer.folder / 'tokenizer.json'}: the added token {self.tokenizer.spelling(token)} is "
                "normalized, so transformers and vLLM read it, and the text around it, differently from how it is "
                'written; set "normalized": false for it'
            )


def _holds(shown: str, message: Message) -> bool:
    """Whether a message's content and thoughts are shown whole, but for white space."""
    there = "".join(shown.split())
    return all("".join((text or "").split()) in there for text in (message.content, message.reasoning_content))


def _n_shared(a: str, b: str) -> int:
    """How many letters two texts begin with alike."""
    return next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))


def _closing(opening: str) -> str:
    """<think> -> </think>"""
    return f"{opening[0]}/{opening[1:]}"


def stop_ids(folder: Path, chat: Chat | None) -> tuple[int, ...]:
    """Every id that ends an answer: of generation_config.json, config.json and the template's end of turn, sorted."""
    of_chat = set() if chat is None else named_stops(chat.tokenizer.model) | chat.ends
    return tuple(sorted(named_stops(folder) | of_chat))
