"""A conversation's turns, as rows hold them and templates render them."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

ROLES = ("system", "user", "assistant")
"""Those that every template takes."""


class Message(NamedTuple):
    """One turn of a conversation."""

    role: str
    content: str
    """Trimmed at both ends; "" where the turn only calls tools."""
    reasoning_content: str | None = None
    """An assistant's thoughts, where the row holds them apart from the answer."""
    tool_calls: Sequence[Mapping[str, Any]] | None = None
    """An assistant's calls, as the row has them: {"type": "function", "function": {"name", "arguments"}}."""
    tool_call_id: str | None = None
    """Which call a tool answers."""
    name: str | None = None
    """Of the tool, or of who speaks."""

    def fields(self) -> dict[str, Any]:
        """What a template sees: role and content, and of the others those that the row has."""
        return {name: value for name, value in self._asdict().items() if value is not None}


class TemplateContext(NamedTuple):
    """What a row gives its template beside the messages."""

    tools: Sequence[Mapping[str, Any]] | None = None
    """Descriptions of the tools that may be called (JSON schemas), as the row has them."""
    documents: Sequence[Mapping[str, Any]] | None = None
    """Documents to answer from."""
    kwargs: Mapping[str, Any] = {}
    """"chat_template_kwargs": further names that the template sees, such as enable_thinking."""

    def fields(self) -> dict[str, Any]:
        """The columns of a row that say this."""
        known = {"tools": self.tools, "documents": self.documents, "chat_template_kwargs": self.kwargs}
        return {name: value for name, value in known.items() if value}


NO_CONTEXT = TemplateContext()


def answer_text(response: Sequence[Message]) -> str:
    """What the assistant says in a response: its contents, divided by a blank line; thoughts and calls are left out."""
    return "\n\n".join(m.content for m in response if m.role == "assistant" and m.content)
