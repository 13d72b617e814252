"""API keys: read once, sent to their own origin, shown nowhere."""

import base64
import os
import stat
import urllib.parse
from pathlib import Path

from system import InputError, cli

LEAST_CHARACTERS, LEAST_DIFFERENT = 16, 8
"""Of a key that is looked for in answers."""


class Key:
    """A secret that prints as stars. `header` gives what authorises a request with it."""

    __slots__ = ("_text",)

    def __init__(self, text: str, *, source: str) -> None:
        """source: where it is from, for messages, which never show the key. Raises InputError."""
        self._text = text.strip()
        if not self._text:
            raise InputError(f"{source}: the key is empty; put one there")
        if not all("!" <= c <= "~" for c in self._text):
            raise InputError(f"{source}: the key holds a blank, a quote or another character that keys do not have")

    def __repr__(self) -> str:
        return "Key(***)"

    def header(self) -> dict[str, str]:
        """The request header that carries it."""
        return {"Authorization": f"Bearer {self._text}"}

    def mask(self, text: str) -> str:
        """Text in which the key, also as base64 or in a URL, is stars: of servers that repeat what they were sent.

        For errors and what is logged, never for what a model says: a key can be a word such as "test".
        """
        for spelling in self._spellings:
            text = text.replace(spelling, "***")
        return text

    def is_in(self, raw: bytes) -> bool:
        """Whether bytes hold the key, in one of these spellings: asked of keys alone that nobody says by chance, long
        and random ones.
        """
        return self._is_random and any(s.encode() in raw for s in (*self._spellings, self._text.replace("/", "\\/")))

    @property
    def _spellings(self) -> tuple[str, ...]:
        encoded = base64.b64encode(self._text.encode()).decode().rstrip("=")
        return self._text, encoded, urllib.parse.quote(self._text, safe="")

    @property
    def _is_random(self) -> bool:
        """ "sk-no-key-required" is not, and neither is "1111222233334444"."""
        has_both = any(c.isdigit() for c in self._text) and any(c.isalpha() for c in self._text)
        return len(self._text) >= LEAST_CHARACTERS and has_both and len(set(self._text)) >= LEAST_DIFFERENT


def from_environment(name: str) -> Key | None:
    """The key in an environment variable; None where it is not set."""
    text = os.environ.get(name)
    return None if text is None else Key(text, source=f"the variable {name}")


def from_file(path: Path) -> Key:
    """The key in a file that holds nothing else. Raises InputError; a file that others can read is said."""
    try:
        text = path.read_text(encoding="utf-8")
        mode = path.stat().st_mode
    except (OSError, UnicodeDecodeError) as fault:
        why = fault.strerror if isinstance(fault, OSError) else "not UTF-8"  # the decoder's words show the bytes
        raise InputError(f"{path}: the key cannot be read ({why})") from None
    if stat.S_IMODE(mode) & 0o077:
        cli.notify(f"{path}: others on this machine can read this key; chmod 600 {path}")
    return Key(text, source=str(path))
