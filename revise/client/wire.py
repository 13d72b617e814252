"""What goes over the wire, as pure functions: a request's identity, what errors and headers say, what is counted.

The chat completions of any OpenAI-compatible server: `POST BASE/chat/completions`. What its answers mean is in
reading.py.
"""

import datetime
import email.utils
import hashlib
import json
import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

MAX_PLAUSIBLE_TOKENS = 10_000_000
CHARACTERS_PER_TOKEN = 4  # of English text, for estimates before anything is counted
PASSING_STATUS = (408, 409, 429)  # and everything from 500 on
REWARD_PATH = "pooling"
"""Behind the address of a server of reward models."""


class Request(NamedTuple):
    """One question to a model. Two requests with equal content are one (see `key`)."""

    body: dict[str, Any]
    """What is sent, as JSON."""
    sample: int = 0
    """Counts answers to the same body that have to be drawn anew; it is not sent."""
    occurrence: int = 0
    """Tells rows with the same prompt apart, where each is to have answers of its own; it is not sent."""
    path: str = "chat/completions"
    """Behind the endpoint's base."""
    as_is: bool = False
    """Its answer counts as it comes, cut or not and thoughts and all: it is itself what one measures. Not sent."""
    check: Callable[[Any], str | None] | None = None
    """Why an answer that has a text is not in the form asked for, which says something of the model or its server; None
    for any other text. Not sent."""

    @property
    def key(self) -> str:
        """SHA-256 of all of it, in hexadecimal: neither URL nor API key have a part in it."""
        named: dict[str, Any] = {"body": self.body, "sample": self.sample}
        for name in ("path", "occurrence"):
            if (value := getattr(self, name)) != self._field_defaults[name]:
                named[name] = value
        return hashlib.sha256(canonical(named).encode()).hexdigest()

    @property
    def tokens(self) -> tuple[int, int]:
        """About how many tokens it holds, and how many its answer may have."""
        texts = [m["content"] for m in self.body.get("messages", ())]
        n_sent = sum(map(len, texts)) // CHARACTERS_PER_TOKEN + 4 * len(texts)
        return n_sent, int(self.body.get("max_tokens") or self.body.get("max_completion_tokens") or 0)


def canonical(value: Any) -> str:
    """JSON in one spelling: equal values, equal text."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)


def counted_tokens(usage: Any) -> tuple[int, int] | None:
    """(prompt, completion) tokens of a usage object; None where it is absent or cannot be true. Some servers count
    thoughts in total_tokens alone: what is no prompt was made by the model, and is paid so.
    """
    if not isinstance(usage, dict):
        return None
    n_in, n_out, n_all = (_plausible(usage.get(f"{name}_tokens")) for name in ("prompt", "completion", "total"))
    if n_in is None or n_out is None:
        return None
    return n_in, max(n_out, (n_all or 0) - n_in)


def _plausible(n: Any) -> int | None:
    return n if type(n) is int and 0 <= n <= MAX_PLAUSIBLE_TOKENS else None


def cost_of(usage: Any) -> float | None:
    """Dollars that a usage object says an answer has cost, as OpenRouter's do; None where it does not say it."""
    found = usage.get("cost") if isinstance(usage, dict) else None
    if isinstance(found, bool) or not isinstance(found, (int, float)):
        return None
    return float(found) if 0 <= found < math.inf else None


def retry_after(headers: Mapping[str, str], now: float) -> float | None:
    """Seconds that a server asks to wait (`retry-after-ms`, or `Retry-After` in seconds or as a date); None where it
    does not, or says what no wait can be. now: seconds since 1970.
    """
    for name, per_second in (("retry-after-ms", 1000), ("retry-after", 1)):
        text = headers.get(name, "").strip()
        try:
            seconds = float(text) / per_second
        except ValueError:
            seconds = _seconds_until(text, now)
        if seconds is not None and math.isfinite(seconds) and seconds >= 0:
            return seconds
    return None


def _seconds_until(date: str, now: float) -> float | None:
    try:
        when = email.utils.parsedate_to_datetime(date)
        when = when if when.tzinfo else when.replace(tzinfo=datetime.UTC)
        return max(0.0, when.timestamp() - now)
    except (ValueError, TypeError, OverflowError, IndexError):
        return None
