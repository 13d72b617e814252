"""API keys and headers: read once, sent to their own origin, shown nowhere."""

import base64
import os
import re
import stat
import urllib.parse
from collections.abc import Sequence
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
            raise InputError(
                f"{source}: the key contains a blank, a quote or another character that keys do not have; check it"
            )

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
        text = path.read_text(encoding="utf-8-sig")
        mode = path.stat().st_mode
    except (OSError, UnicodeDecodeError) as fault:
        why = fault.strerror if isinstance(fault, OSError) else "not UTF-8"  # the decoder's words show the bytes
        raise InputError(f"{path}: the key cannot be read ({why})") from None
    if stat.S_IMODE(mode) & 0o077:
        cli.notify(f"{path}: others on this machine can read this key; chmod 600 {path}")
    return Key(text, source=str(path))


# --- headers -------------------------------------------------------------------------------------------------------

OURS = ("accept-encoding", "connection", "content-encoding", "content-length", "content-type", "host")
OURS += ("transfer-encoding",)
VARIABLE = re.compile(r"\$(?:\{(\w+)\}|(\w+))")
OF_A_SECRET = re.compile("key|token|auth|secret|cookie|password", re.IGNORECASE)


class Headers:
    """Headers that a user adds to requests. What is from a variable, or has a secret's name, prints as stars."""

    __slots__ = ("_secrets", "fields")

    def __init__(self, fields: dict[str, str], secrets: Sequence[str]) -> None:
        self.fields = fields
        by_length = sorted(secrets, key=len, reverse=True)  # one may be the beginning of another
        self._secrets = [Key(text, source="a header") for text in by_length]

    def __repr__(self) -> str:
        return f"Headers({', '.join(self.fields)})"

    @property
    def has_secrets(self) -> bool:
        """Whether they are for one server alone."""
        return bool(self._secrets)

    def mask(self, text: str) -> str:
        """Text in which their secrets are stars."""
        for secret in self._secrets:
            text = secret.mask(text)
        return text

    def is_in(self, raw: bytes) -> bool:
        """Whether bytes hold one of their secrets (see Key.is_in)."""
        return any(secret.is_in(raw) for secret in self._secrets)


NO_HEADERS = Headers({}, ())


def is_scheme(word: str) -> bool:
    """Whether a word of a header says how what follows is to be read, and is no secret."""
    return word.lower() in ("bearer", "basic")


def parse_headers(texts: Sequence[str], flag: str = "--header") -> Headers:
    """What `NAME: VALUE` says, with $VARIABLE from the environment. Raises InputError, which shows no value."""
    fields: dict[str, str] = {}
    secrets: list[str] = []
    for text in texts:
        name, colon, value = (part.strip() for part in text.partition(":"))
        if not colon or not re.fullmatch(r"[A-Za-z0-9!#%&'*+.^_`|~-]+", name):
            raise InputError(
                f"{flag}: not of the form 'NAME: VALUE'; give one such as 'api-key: $AZURE_OPENAI_API_KEY'"
            )
        if name.lower() in OURS:
            raise InputError(f"{flag}: {name} is set by this program; leave it out")
        if name.lower() in map(str.lower, fields):
            raise InputError(f"{flag}: {name} is given twice; give it once")
        for found in VARIABLE.finditer(value):
            known = os.environ.get(found[1] or found[2])
            if known is None:
                raise InputError(
                    f"{flag}: the environment variable {found[1] or found[2]} of {name} is not set; export it"
                )
            source = f"the variable {found[1] or found[2]}"
            secrets += [Key(part, source=source)._text for part in known.split() or [""] if not is_scheme(part)]
        fields[name] = VARIABLE.sub(lambda found: os.environ[found[1] or found[2]].strip(), value)
        if not fields[name] or not all(" " <= c <= "~" for c in fields[name]):
            raise InputError(f"{flag}: the value of {name} is empty, or contains a character that headers do not have")
        if OF_A_SECRET.search(name):
            secrets += [part for part in fields[name].split() if not is_scheme(part)]
    return Headers(fields, tuple(dict.fromkeys(secrets)))
