"""A conversation's turns, as rows hold them and templates render them."""

from typing import NamedTuple

ROLES = ("system", "user", "assistant")
"""Those that every template takes."""


class Message(NamedTuple):
    """One turn of a conversation."""

    role: str
    content: str
