"""What an answer's bytes mean, as pure functions: the text that counts, the thoughts before it, why there is none.

    a completion with text                                       Completion
    a completion without (no choice, refused, cut, all thoughts) Completion with `fault`: paid for, never usable
    ... whose JSON is not plain: a lone surrogate, a NaN         the same
    anything else: HTML, half of a JSON, an error object         Unreadable: asked again

Whole is what is known to be whole (`WHOLE`): an answer that ended for any other reason is set aside with it, unless the
reason is accepted. Thoughts are cut off, wherever a server puts them (thoughts.py), and so is what stands behind the
end of a turn (control_tokens.py). A Request that is `as_is` gets what was said, as it came.
"""

import json
import re
from collections.abc import Collection
from typing import Any, NamedTuple, TypeVar

from data.rows import parse_row
from revise.client import control_tokens, refusals, thoughts, wire
from revise.client.wire import CHARACTERS_PER_TOKEN, REWARD_PATH, Request
from system import InputError

T = TypeVar("T")

WHOLE = ("stop", "endturn", "eos", "eostoken", "stopsequence")
"""Finish reasons of whole answers, as `spelled` writes them: small letters alone. null with a message is one, too."""
CUT = (
    "length", "maxtokens", "modellength", "maxoutputtokens", "maxlength", "maxnewtokens", "maxcompletiontokens",
    "tokenlimit", "modelcontextwindowexceeded", "contextlength", "contextlengthexceeded", "contextwindowexceeded",
)  # fmt: skip
"""... of answers that were cut: of OpenAI, Anthropic, Mistral, Gemini, Cohere."""
REFUSED = (
    "contentfilter", "contentfiltered", "refusal", "refused", "safety", "recitation", "blocklist", "prohibitedcontent",
    "spii", "guardrailintervened", "sensitive", "errortoxic", "moderation",
)  # fmt: skip
CALLS = ("toolcalls", "toolcall", "tooluse", "functioncall", "malformedfunctioncall")
BROKEN = (
    "error", "abort", "aborted", "cancelled", "canceled", "failed", "timeout", "networkerror",
    "insufficientsystemresource",
)  # fmt: skip
"""... and of those that the server broke off."""
THOUGHTS = ("reasoning_content", "reasoning", "thinking")
"""Fields of a message that hold thoughts: vLLM's and DeepSeek's, OpenRouter's and Ollama's."""
TEXT_PARTS, THOUGHT_PARTS = ("text", "output_text"), ("thinking", "reasoning", "redacted_thinking")
"""Types of a content's parts."""
EMPTY = "empty"
"""The fault of an answer that says nothing."""
TRUNCATED = "truncated"
"""The fault of an answer that was cut; behind a colon more of it."""
NO_ANSWER = "no answer behind the thoughts"
"""The fault of an answer that came to its end in its thoughts: a server that takes all for thoughts."""
NULL = "null content"
NO_TEXT = "NUL or U+FFFD in it"


class Completion(NamedTuple):
    """A server's answer."""

    text: str
    """What counts of it."""
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
    reasoning: str = ""
    """The thoughts before the answer, where they are known."""
    cost: float | None = None
    """Dollars, where the server says so."""
    cut_at: str = ""
    """The template's token at which the text was cut, since the server had not ended it there."""


class Unreadable(ValueError):
    """An answer that is no completion at all; the text says why."""


class NotPlain(Unreadable):
    """JSON at best to a reader that is less strict than ours."""


def spelled(finish: str) -> str:
    """A finish reason in one spelling: small letters and digits, without what some put before all."""
    return re.sub(r"[\W_]", "", finish.lower()).removeprefix("finishreason")


def is_cut(finish: str | None) -> bool:
    """Whether an answer that ended so is known to have been cut."""
    return finish is not None and spelled(finish) in CUT


def read_answer(raw: bytes, request: Request, accepted: Collection[str] = ()) -> Completion:
    """What a server's bytes say. accepted: finish reasons that are taken for those of whole answers, besides.

    Raises Unreadable where they are no answer to this kind of request.
    """
    try:
        return read_score(raw, request) if request.path == REWARD_PATH else read_completion(raw, request, accepted)
    except NotPlain as fault:
        if (usage := _paid(raw)) is None:
            raise
        tokens = wire.counted_tokens(usage)
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
        raise Unreadable("no single number in it; use a reward model that gives one number for each text")
    usage = answer.get("usage")
    try:
        score = float(found)
    except OverflowError:
        raise Unreadable("a number that no float can hold") from None
    tokens = wire.counted_tokens({"completion_tokens": 0, **usage} if isinstance(usage, dict) else None)
    return Completion(
        repr(score),
        "stop",
        str(answer.get("model") or ""),
        *(tokens or (request.tokens[0], 0)),
        tokens is not None,
        _of_type(str, answer.get("id")),
    )


def read_completion(raw: bytes, request: Request, accepted: Collection[str] = ()) -> Completion:
    """What a server's bytes say. Raises Unreadable where they are no chat completion."""
    answer = read_object(raw)
    if not isinstance(answer.get("choices"), list):
        raise Unreadable("JSON without choices")
    tokens = wire.counted_tokens(answer.get("usage"))
    choice = _of_type(dict, next(iter(answer["choices"]), None)) or {}
    message = _of_type(dict, choice.get("message")) or {}
    finish = choice.get("finish_reason")
    finish = None if not finish else finish if isinstance(finish, str) else wire.canonical(finish)
    content = _content(message)
    tokens_in, tokens_out = tokens or (
        request.tokens[0],
        len((content.text or "") + content.thoughts) // CHARACTERS_PER_TOKEN,
    )
    found = Completion(
        content.text or "",
        finish,
        model=str(answer.get("model") or ""),
        tokens_in=tokens_in,
        tokens_out=tokens_out,
        is_counted=tokens is not None,
        id=_of_type(str, answer.get("id")),
        reasoning=content.thoughts,
        cost=wire.cost_of(answer.get("usage")),
    )
    fault = _lacking(answer["choices"], choice, message)
    ending = None if finish is None or spelled(finish) in map(spelled, accepted) else spelled(finish)
    if request.as_is:
        return found._replace(fault=fault or _not_answered(message, ending) or content.fault or _empty(found))
    return _counting(found, fault, message, ending, content, _asked(request))


def _of_type(kind: type[T], value: Any) -> T | None:
    return value if isinstance(value, kind) and value else None


def read_object(raw: bytes) -> dict[str, Any]:
    """The JSON object that a server's bytes hold. Raises Unreadable, also for an object that reports an error."""
    if not raw.strip():
        raise Unreadable("an empty body")
    try:
        answer = parse_row(raw, "the answer")
    except InputError as fault:
        said = str(fault).removeprefix("the answer: ").removesuffix("; fix or delete the line")
        raise NotPlain(said if not raw.lstrip().startswith(b"<") else "HTML, not JSON") from None
    if answer.get("error"):
        raise Unreadable(f"an error with status 200: {refusals.read_error(raw, 200).said}")
    return answer


# --- what was said -------------------------------------------------------------------------------------------------


class _Content(NamedTuple):
    """What a message holds, before anything is cut."""

    text: str | None
    thoughts: str
    fault: str | None = None


def _content(message: dict[str, Any]) -> _Content:
    """Its text and the thoughts that the server has put beside it: in a field, or as parts."""
    beside = next((found for name in THOUGHTS if isinstance(found := message.get(name), str) and found.strip()), "")
    content = message.get("content")
    if content is None:
        return _Content(None, beside.strip(), NULL)
    if isinstance(content, str):
        return _Content(content, beside.strip())
    if not isinstance(content, list):
        return _Content(None, beside.strip(), f"content that is a {type(content).__name__}")
    texts, inner = [], [beside] if beside else []
    for part in content:
        kind = part.get("type") if isinstance(part, dict) else None
        if kind in TEXT_PARTS and isinstance(part.get("text"), str):
            texts.append(part["text"])
        elif kind in THOUGHT_PARTS:
            inner.append(_thoughts_in(part))
        else:
            return _Content(None, beside.strip(), f"content with a part of type {kind}")
    return _Content("".join(texts), "\n\n".join(filter(None, map(str.strip, inner))))


def _thoughts_in(part: dict[str, Any]) -> str:
    """The text of a part that holds thoughts: as it is, or in parts of its own."""
    found = next((part[name] for name in ("thinking", "reasoning", "text", "summary") if part.get(name)), "")
    texts = found if isinstance(found, list) else [found]
    return "".join(t if isinstance(t, str) else str(t.get("text", "")) for t in texts if isinstance(t, (str, dict)))


def _lacking(choices: list[Any], choice: dict[str, Any], message: dict[str, Any]) -> str | None:
    if not choices:
        return "no choices"
    return None if choice and message else "a choice without a message"


def _not_answered(message: dict[str, Any], ending: str | None) -> str | None:
    """Why something else than an answer came: it was refused, or a tool was called, or the server broke it off."""
    if message.get("refusal") or ending == "contentfilter":
        return "refused"
    if message.get("tool_calls") or message.get("function_call") or ending in ("toolcalls", "functioncall"):
        return "a tool call"
    return "broken off by the server" if ending in BROKEN else None


def _empty(found: Completion) -> str | None:
    return None if found.text.strip() else EMPTY


def _asked(request: Request) -> str:
    """What was asked for, without what a model said before."""
    said = (m for m in request.body.get("messages", ()) if m.get("role") != "assistant")
    return "\n".join(m["content"] for m in said if isinstance(m.get("content"), str))


def _counting(
    found: Completion,
    fault: str | None,
    message: dict[str, Any],
    ending: str | None,
    content: _Content,
    asked: str,
) -> Completion:
    """A completion with what counts of it alone, and the reason where nothing does."""
    if fault := fault or _not_answered(message, ending) or _of_ending(ending, found.finish):
        return found._replace(fault=fault)
    is_short = ending in CUT
    if content.fault is not None and not (content.fault == NULL and (content.thoughts or is_short)):
        return found._replace(fault=content.fault)
    try:
        said = thoughts.split(found.text, asked)
        cut = control_tokens.cut(said.answer, asked)
    except ValueError as reason:
        return found._replace(fault=TRUNCATED if is_short else str(reason))
    inner = "\n\n".join(filter(None, (content.thoughts, said.thoughts)))
    found = found._replace(text=cut.text, reasoning=inner, cut_at=cut.at or said.cut_at)
    if is_short:
        all_of_it = f"{TRUNCATED}: the thoughts took all {found.tokens_out:,} tokens"
        return found._replace(fault=TRUNCATED if cut.text.strip() else all_of_it)
    if control_tokens.has_no_text(cut.text):
        return found._replace(fault=NO_TEXT)
    if not cut.text.strip():
        return found._replace(fault=NO_ANSWER if inner or said.is_open else EMPTY)
    return found


def _of_ending(ending: str | None, finish: str | None) -> str | None:
    """Why an answer that ended so is none; that it is cut is said where its text is known."""
    if ending is None or ending in (*WHOLE, *CUT):
        return None
    if ending in REFUSED:
        return "refused"
    if ending in CALLS:
        return "a tool call"
    return f"unknown finish reason: {finish!r}; --accept-finish-reason {finish} accepts it"
