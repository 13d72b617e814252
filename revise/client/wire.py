"""What goes over the wire, as pure functions: a request's identity, and what an answer's bytes mean.

The chat completions of any OpenAI-compatible server: `POST BASE/chat/completions`. What a server can answer, and what
follows:

    a completion with text                                       Completion
    a completion without (no choice, refused, a tool call ...)   Completion with `fault`: paid for, never usable
    ... whose JSON is not plain: a lone surrogate, a NaN         the same
    anything else: HTML, half of a JSON, an error object         Unreadable: asked again
"""

import datetime
import email.utils
import hashlib
import json
import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, TypeVar

from data.rows import parse_row
from system import InputError

T = TypeVar("T")

MAX_PLAUSIBLE_TOKENS = 10_000_000
CHARACTERS_PER_TOKEN = 4  # of English text, for estimates before anything is counted
RUN_ENDING_STATUS = (401, 402, 403, 404)
PASSING_STATUS = (408, 409, 429)  # and everything from 500 on
QUOTA_CODES = ("insufficient_quota", "credit_balance_exhausted", "billing_hard_limit_reached")
QUOTA_ENDINGS = ("_spend_limit_exceeded", "_usage_limit_exceeded")
REWARD_PATH = "pooling"
"""Behind the address of a server of reward models."""
TRUNCATED = ("length", "max_tokens", "model_length")
"""Finish reasons of answers that were cut."""
EMPTY = "empty"
"""The fault of an answer that says nothing."""
BROKEN = ("error", "abort", "insufficient_system_resource")
"""... and of those that the server broke off."""


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
    check: Callable[[Any], str | None] | None = None
    """Why an answer that has a text is not in the form asked for, which says something of the model or its server; None
    for any other text. It is no part of what is asked."""

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


class Completion(NamedTuple):
    """A server's answer."""

    text: str
    finish: str | None
    """Why it ended: "stop", "length" ..., in the server's words."""
    model: str
    """The model's name as the server reports it."""
    tokens_in: int
    tokens_out: int
    is_counted: bool
    """Whether the tokens are the server's count and not an estimate of ours."""
    id: str | None
    """The server's name for this answer."""
    fault: str | None = None
    """Why there is no text to be used; None where there is."""


class Unreadable(ValueError):
    """An answer that is no completion at all; the text says why."""


class NotPlain(Unreadable):
    """JSON at best to a reader that is less strict than ours."""


def canonical(value: Any) -> str:
    """JSON in one spelling: equal values, equal text."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)


def read_answer(raw: bytes, request: Request) -> Completion:
    """What a server's bytes say. Raises Unreadable where they are no answer to this kind of request."""
    try:
        return read_score(raw, request) if request.path == REWARD_PATH else read_completion(raw, request)
    except NotPlain as fault:
        if (usage := _paid(raw)) is None:
            raise
        tokens = counted_tokens(usage)
        estimated = (request.tokens[0], len(raw) // CHARACTERS_PER_TOKEN)
        return Completion("", None, "", *(tokens or estimated), tokens is not None, None, str(fault))


def _paid(raw: bytes) -> dict[str, Any] | None:
    """The usage object ({} where there is none) of an answer that Python's lenient reader takes for one; else None."""
    try:
        answer = json.loads(raw.decode("utf-8", "replace"))
    except (ValueError, RecursionError):
        return None
    if not isinstance(answer, dict) or answer.get("error"):
        return None
    choice = next(iter(_of_type(list, answer.get("choices")) or []), None)
    is_answer = isinstance(choice, dict) and isinstance(choice.get("message"), dict)
    return (_of_type(dict, answer.get("usage")) or {}) if is_answer else None


def read_score(raw: bytes, request: Request) -> Completion:
    """A reward model's answer, vLLM's `/pooling` or `/classify`: its one number, as text. Raises Unreadable."""
    answer = read_object(raw)
    found: Any = answer.get("data")
    while isinstance(found, list) and len(found) == 1:
        item = found[0]
        found = item.get("data", item.get("probs")) if isinstance(item, dict) else item
    if isinstance(found, bool) or not isinstance(found, (int, float)):
        raise Unreadable("no single number in it; a reward model that gives one a text is needed")
    usage = answer.get("usage")
    try:
        score = float(found)
    except OverflowError:
        raise Unreadable("a number that no float can hold") from None
    tokens = counted_tokens({"completion_tokens": 0, **usage} if isinstance(usage, dict) else None)
    return Completion(
        repr(score),
        "stop",
        str(answer.get("model") or ""),
        *(tokens or (request.tokens[0], 0)),
        tokens is not None,
        _of_type(str, answer.get("id")),
    )


def read_completion(raw: bytes, request: Request) -> Completion:
    """What a server's bytes say. Raises Unreadable where they are no chat completion."""
    answer = read_object(raw)
    if not isinstance(answer.get("choices"), list):
        raise Unreadable("JSON without choices")
    tokens = counted_tokens(answer.get("usage"))
    choice = _of_type(dict, next(iter(answer["choices"]), None)) or {}
    message = _of_type(dict, choice.get("message")) or {}
    finish, text = _of_type(str, choice.get("finish_reason")), _of_type(str, message.get("content")) or ""
    tokens_in, tokens_out = tokens or (request.tokens[0], len(text) // CHARACTERS_PER_TOKEN)
    return Completion(
        text,
        finish,
        model=str(answer.get("model") or ""),
        tokens_in=tokens_in,
        tokens_out=tokens_out,
        is_counted=tokens is not None,
        id=_of_type(str, answer.get("id")),
        fault=_fault(answer["choices"], choice, message, finish),
    )


def _of_type(kind: type[T], value: Any) -> T | None:
    return value if isinstance(value, kind) and value else None


def read_object(raw: bytes) -> dict[str, Any]:
    """The JSON object that a server's bytes hold. Raises Unreadable, also for an object that reports an error."""
    if not raw.strip():
        raise Unreadable("an empty body")
    try:
        answer = parse_row(raw, "the answer")
    except InputError as fault:
        said = str(fault).removeprefix("the answer: ").removesuffix("; mend or delete the line")
        raise NotPlain(said if not raw.lstrip().startswith(b"<") else "HTML, not JSON") from None
    if answer.get("error"):
        raise Unreadable(f"an error with status 200: {error_of(raw)[0]}")
    return answer


def _fault(choices: list[Any], choice: dict[str, Any], message: dict[str, Any], finish: str | None) -> str | None:
    if not choices:
        return "no choices"
    if not choice or not message:
        return "a choice without a message"
    if message.get("refusal") or finish == "content_filter":
        return "refused"
    if message.get("tool_calls") or message.get("function_call") or finish in ("tool_calls", "function_call"):
        return "a tool call"
    if finish in BROKEN:
        return "broken off by the server"
    content = message.get("content")
    if content is None:
        return "null content"
    if not isinstance(content, str):
        return f"content that is a {type(content).__name__}"
    return None if content.strip() else EMPTY


def counted_tokens(usage: Any) -> tuple[int, int] | None:
    """(prompt, completion) tokens of a usage object; None where it is absent or cannot be true."""
    if not isinstance(usage, dict):
        return None
    counts = usage.get("prompt_tokens"), usage.get("completion_tokens")
    if any(type(n) is not int or not 0 <= n <= MAX_PLAUSIBLE_TOKENS for n in counts):
        return None
    return counts[0], counts[1]  # pyright: ignore[reportReturnType]


def error_of(raw: bytes) -> tuple[str, set[str]]:
    """What an error answer says, in one short line, and its codes and types."""
    try:
        answer = json.loads(raw)
    except (ValueError, RecursionError):
        answer = None
    error = answer.get("error") if isinstance(answer, dict) else None
    error = error if isinstance(error, dict) else answer if isinstance(answer, dict) else {}
    said = error.get("message") or error.get("detail") or raw.decode("utf-8", "replace")
    names = {str(error[name]) for name in ("code", "type") if error.get(name)}
    said = " ".join(str(said).split()) or "no reason given"
    return said.encode("utf-8", "replace").decode(), names


def is_quota(names: set[str]) -> bool:
    """Whether an error's codes speak of an empty account, which waiting does not mend."""
    return any(name in QUOTA_CODES or name.endswith(QUOTA_ENDINGS) for name in names)


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
