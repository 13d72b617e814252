"""What a row gives a template beside the messages, handed on to a server in its place.

    "tools"                   the request's field of that name, as in OpenAI's interface
    "chat_template_kwargs"    vLLM's field of that name
    "documents"               no server has a place for them: a fault of the row

The requests that a reviser or a judge gets are one text, which has no place for tools, nor for calls of them.
"""

from collections.abc import Sequence
from typing import Any

from data.text import Message, TemplateContext
from system import InputError


def handed_on(location: str, context: TemplateContext) -> dict[str, Any]:
    """The fields of a request that say what a row gives its template. Raises InputError, located, where none does."""
    if context.documents:
        raise InputError(
            f'{location}: "documents" cannot be sent to a server; write them into the prompt, or ignore them: '
            "--ignore-columns documents"
        )
    return context.fields()


def check_worded(location: str, prompt: Sequence[Message], context: TemplateContext) -> None:
    """Raises InputError, located, for what would be lost where a prompt is put into words."""
    for name in context.fields():
        if name != "chat_template_kwargs":  # those are for the model that answers
            raise InputError(
                f'{location}: "{name}" have no place in the text of a request; ignore them: --ignore-columns {name}'
            )
    if any(m.tool_calls or m.reasoning_content for m in prompt):
        raise InputError(
            f"{location}: the prompt has tool calls or thoughts, which have no place in the text of a request; take "
            "the row out"
        )
