"""Whether a template has a place for what a row holds: it has none for what it renders the same with and without."""

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

from data.text.messages import Message, TemplateContext
from data.text.template import Template
from data.text.template_settings import OURS
from system import InputError

Write = Callable[[Sequence[Message], TemplateContext, bool], str]
"""Messages, what is given beside them, whether the generation prompt follows: what the template writes."""
REMEDY = "remove it from the row, or use a template that has one: --chat-template FILE"
Wanted = Literal["object", "text", "either"]


def check_names(template: Template, kwargs: Mapping[str, Any], of: str) -> None:
    """Raises InputError for a name that the template never reads. of: where it is given."""
    for name in kwargs:
        if name in OURS:
            raise InputError(f"{of}: {name} comes from the row or the checkpoint; leave it out")
        if name not in template.reads:
            raise InputError(
                f"{of}: the chat template {template.location} never reads {name!r}; correct the name, or leave it out"
            )


def check_prompt(template: Template, prompt: Sequence[Message], context: TemplateContext, write: Write) -> None:
    """Raises InputError where the template has no place for tools, documents or names that a row gives it, or for what
    messages of the prompt hold.
    """
    check_names(template, context.kwargs, '"chat_template_kwargs"')
    for name in ("tools", "documents"):
        if getattr(context, name) is not None and _same(
            lambda given: write(prompt, given, True), context, context._replace(**{name: None})
        ):
            raise _no_place(template, f'"{name}"')
    _check_messages(template, prompt, range(len(prompt)), context, write, always=())


def check_response(
    template: Template,
    prompt: Sequence[Message],
    response: Sequence[Message],
    context: TemplateContext,
    write: Write,
) -> None:
    """The same for the messages of a response, which have to show their thoughts."""
    whole = [*prompt, *response]
    which = range(len(prompt), len(whole))
    _check_messages(template, whole, which, context, write, always=("reasoning_content",))


def shown_behind(
    prompt: Sequence[Message], response: Sequence[Message], context: TemplateContext, write: Write
) -> list[Message]:
    """The messages of a prompt whose contents are still there where the response stands behind it.

    Mistral's template of v3 puts a system message before the last question where that is last of all, and nowhere else.
    """

    def is_there(i: int) -> bool:
        emptied = [*prompt[:i], prompt[i]._replace(content=""), *prompt[i + 1 :]]
        return not _same(lambda given: write([*given, *response], context, False), prompt, emptied)

    return [message for i, message in enumerate(prompt) if not message.content or is_there(i)]


def _check_messages(
    template: Template,
    messages: Sequence[Message],
    which: Sequence[int],
    context: TemplateContext,
    write: Write,
    *,
    always: Sequence[str],
) -> None:
    """always: fields that have to be shown in the whole conversation too, and not only where their message is last."""
    for i in which:
        for field in ("tool_calls", "reasoning_content"):
            if not getattr(messages[i], field):
                continue
            conversation = list(messages if field in always else messages[: i + 1])
            without = [*conversation[:i], messages[i]._replace(**{field: None}), *conversation[i + 1 :]]
            if _same(lambda given: write(given, context, False), conversation, without):
                raise _no_place(template, f'"{field}"')


def _same(write: Callable[[Any], str], given: Any, without: Any) -> bool:
    """Whether a template writes the same; one that refuses what is left reads what was taken away."""
    whole = write(given)
    try:
        return whole == write(without)
    except InputError:
        return False


def _no_place(template: Template, field: str) -> InputError:
    return InputError(
        f"the chat template {template.location} has no place for {field}: it writes the same without it; {REMEDY}"
    )


# --- arguments of calls ----------------------------------------------------------------------------------------------

_NAME, _VALUE = "argument_of_a_probe", "value of a probe"


def wanted_arguments(messages: Sequence[Message], context: TemplateContext, write: Write) -> Wanted:
    """In which form the template wants arguments of calls, found out with the first call of a conversation.

    A template that writes JSON of an object would write JSON of JSON for a text, and one that puts a text between two
    others cannot take an object.
    """
    i = next(i for i, m in enumerate(messages) if m.tool_calls)
    shown = {}
    for kind, value in (("object", {_NAME: _VALUE}), ("text", json.dumps({_NAME: _VALUE}))):
        call = _with_arguments(messages[i], lambda arguments, value=value: value)
        try:
            shown[kind] = write([*messages[:i], call], context, False)
        except InputError:
            shown[kind] = ""
    takes_text = json.dumps({_NAME: _VALUE}) in shown["text"]
    takes_object = _VALUE in shown["object"] and repr({_NAME: _VALUE}) not in shown["object"]
    return "text" if takes_text and not takes_object else "object" if takes_object and not takes_text else "either"


def as_wanted(messages: Sequence[Message], wanted: Wanted) -> list[Message]:
    """The messages with the arguments of their calls in that form. Raises InputError for text that is no object."""

    def convert(arguments: Any) -> Any:
        if wanted == "text" and not isinstance(arguments, str):
            return json.dumps(arguments, ensure_ascii=False)
        if wanted == "object" and isinstance(arguments, str):
            try:
                read = json.loads(arguments)
            except ValueError:
                read = None
            if not isinstance(read, dict):
                raise InputError(
                    f'"tool_calls": the arguments {arguments[:80]!r} are not an object in JSON; correct them'
                )
            return read
        return arguments

    return [_with_arguments(m, convert) if m.tool_calls else m for m in messages]


def _with_arguments(message: Message, convert: Callable[[Any], Any]) -> Message:
    """A message whose calls have other arguments: {"function": {"arguments"}}, or without that level."""

    def of(call: Mapping[str, Any]) -> dict[str, Any]:
        if isinstance(call.get("function"), Mapping):
            return {**call, "function": of(call["function"])}
        return {**call, "arguments": convert(call["arguments"])} if call.get("arguments") is not None else dict(call)

    return message._replace(tool_calls=[of(call) for call in message.tool_calls or ()])
