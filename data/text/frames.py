"""What a template writes around plain contents: read off the first conversation of a kind, and checked at each other.

Marks find contents in whatever a template writes (data/text/marking.py), at the price of rendering twice. Of most rows
that is not needed: conversations of the same roles, whose contents hold nothing that the template looks for, are
written alike but for the contents. So the template renders them once, and where that is the frame with their contents
in it, letter by letter, these are the parts; where it is not, marks find them.
"""

import re
from collections.abc import Callable, Sequence

from data.text.marking import NONCHARACTERS, Part, Rendering, Speaker
from data.text.messages import Message, TemplateContext
from data.text.template import Template

Marked = Callable[[Sequence[Message], TemplateContext, bool], Rendering]
"""Messages, what is given beside them, whether the generation prompt follows: what marks find."""
Frame = Sequence[tuple[str, Speaker]]
"""The template's own texts, and who says each content between them."""

MOST_KINDS = 4096  # that are remembered
PLAIN = (None,) * (len(Message._fields) - 2)
"""What a message has beside its role and its content, where it has nothing."""
MARKS = re.compile(f"[{NONCHARACTERS[0]}-{NONCHARACTERS[-1]}]")


class Frames:
    """The frames of a template."""

    def __init__(self, template: Template, marked: Marked) -> None:
        self._template, self._marked = template, marked
        self._frames: dict[object, Frame | None] = {}

    def render(self, messages: Sequence[Message], context: TemplateContext, asks: bool) -> Rendering:
        """The conversation as the template writes it. Raises InputError as marking.render does."""
        kind = self._kind(messages, context, asks)
        frame = self._frames.get(kind) if kind is not None else None
        if frame is not None:
            fields = [{"role": m.role, "content": m.content} for m in messages]
            text = self._template.render(fields, add_generation_prompt=asks, context=context)
            contents = iter([m.content for m in messages if m.content])
            parts: list[Part] = [(next(contents) if speaker else own, speaker) for own, speaker in frame]
            if "".join([part for part, _ in parts]) == text:
                return Rendering(text, parts)
        made = self._marked(messages, context, asks)
        if kind is not None and kind not in self._frames:
            if len(self._frames) >= MOST_KINDS:
                self._frames.clear()
            self._frames[kind] = _frame_of(made, messages)
        return made

    def _kind(self, messages: Sequence[Message], context: TemplateContext, asks: bool) -> object:
        """What conversations have in common that are written alike; None where marks have to find the contents."""
        if context.tools is not None or context.documents is not None:
            return None
        sought = self._template.looked_for
        for message in messages:
            text = message.content
            if (
                message[2:] != PLAIN
                or (sought and sought.search(text))
                or not (text.isascii() or not MARKS.search(text))
            ):
                return None
        kwargs = repr(sorted(context.kwargs.items())) if context.kwargs else ""
        return asks, kwargs, tuple([(m.role, not m.content) for m in messages])


def _frame_of(made: Rendering, messages: Sequence[Message]) -> Frame | None:
    """None where the contents are not shown one after the other as they are."""
    if [text for text, speaker in made.parts if speaker] != [m.content for m in messages if m.content]:
        return None
    return [("" if speaker else text, speaker) for text, speaker in made.parts]
