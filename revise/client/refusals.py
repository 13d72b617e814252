"""What a server means by an error, as pure functions: its status, its codes, its words, and what mends it.

    an empty account            a status, a code or words that speak of money            the run ends, whatever the rows
    one row's own fault         moderation, a content filter                             the row is refused
    a parameter                 a name of the request that its words blame               renamed where the meaning stays
    anything else               of 4xx: settings, if it comes first; the row, if it comes among answers

Servers say the same in many ways: with a status that is another one's, with status 200, as a text, as a list.
"""

import json
import re
from collections.abc import Mapping
from typing import Any, NamedTuple

from revise.client.roles import Role

NO_MONEY_CODES = (
    "insufficient_quota", "credit_balance_exhausted", "billing_hard_limit_reached", "budget_exceeded", "arrearage",
    "insufficient_balance", "insufficient_credits", "insufficient_funds", "insufficient_user_quota",
    "billing_not_active", "account_deactivated_for_billing", "payment_required", "credits_exhausted",
    "exceeded_current_quota_error", "quota_exhausted",
)  # fmt: skip
NO_MONEY_ENDINGS = ("_spend_limit_exceeded", "_usage_limit_exceeded")
NO_MONEY = re.compile(
    r"credit balance|(?:insufficient|not enough|no|out of|run out of) (?:credits?|balance|funds|quota)\b"
    r"|insufficient_quota|budget has been exceeded|budget_exceeded|arrear|overdue|in good standing|\bbilling\b"
    r"|payment required|exceeded your current quota|balance is (?:too low|not enough|insufficient)|余额不足|欠费",
    re.IGNORECASE,
)
"""Words of an account that is empty, once addresses are taken out: those of a rate limit lead to a page on billing."""
REPEATING = (413, 422)
"""Statuses of errors that say what is wrong with a request, and repeat it."""
PASSES = re.compile(r"(?:retry|try again) (?:in|after) [\d.]+ ?m?s|per (?:minute|second|day)|retrydelay", re.IGNORECASE)
"""Words of a limit that ends by itself: Gemini's speak of plan and billing, too."""
OWN_CODES = (
    "content_filter", "content_policy_violation", "responsibleaipolicyviolation", "invalid_prompt", "moderation",
    "moderation_blocked", "data_inspection_failed", "datainspectionfailed", "sensitive_words_detected", "safety",
    "prohibited_content", "prompt_blocked", "content_blocked", "input_flagged",
)  # fmt: skip
OWN = re.compile(
    r"content management policy|content[ _](?:filter|policy)|was flagged|input[ _]flagged|flagged as|usage polic"
    r"|inappropriate content|sensitive (?:words|content)|responsible ai|safety (?:system|filter|polic)"
    r"|violat\w+ (?:our|the)",
    re.IGNORECASE,
)
CONTEXT = re.compile(
    r"(?:maximum|max) context|context[ _](?:length|window|size)|prompt is too long|input is too long|too many tokens"
    r"|exceeds? (?:the )?(?:model'?s )?(?:maximum|max)[ \w]{0,20}(?:length|tokens)|max_model_len|is too large: \d+",
    re.IGNORECASE,
)
BLAMED = re.compile(
    r"unsupported|not support|only supports?|n[o']t permitted|not allowed|unrecognized|unknown|unexpected|extra inputs"
    r"|invalid (?:value|param|arg|type|req)|deprecated|cannot both|must be|should be|out of range|use .{1,40} instead",
    re.IGNORECASE,
)
"""Words of errors that blame a parameter."""
INSTEAD = re.compile(r"use ['\"`]?(\w+)['\"`]? instead", re.IGNORECASE)
SAME_MEANING = ("max_tokens", "max_completion_tokens", "max_output_tokens")
"""Names of one and the same thing: the most tokens of an answer."""
EMPTY_TEXT = re.compile(
    r"(?:text content blocks?|content|message|system|text)\b.{0,40}(?:non-?empty|not be empty|is empty|cannot be empty"
    r"|at least 1 char)|empty (?:system|content|message)",
    re.IGNORECASE,
)
NO_SYSTEM = re.compile(
    r"system (?:role|message|prompt|instruction)s?\b.{0,40}(?:not|n't|un)[ -]?(?:support|allow|enabled)"
    r"|(?:not|n't) support.{0,30}\bsystem\b|unexpected role ['\"`]?system|developer instruction is not enabled",
    re.IGNORECASE,
)
STREAM_ONLY = re.compile(
    r"only supports? (?:the )?stream|stream(?:ing)? (?:mode )?(?:is )?(?:required|only|must)|must (?:be|use|set) stream"
    r"|enable the stream|stream=true|non-?stream(?:ing)? .{0,40}not support"
    r"|streaming is (?:strongly )?re(?:quired|commended)",
    re.IGNORECASE,
)
RESPONSES_ONLY = re.compile(r"v1/responses|responses api|use .{0,20}/responses", re.IGNORECASE)
NOT_A_CHAT_MODEL = re.compile(r"not (?:a chat model|supported in the v1/chat/completions)", re.IGNORECASE)
NO_PLACE = re.compile(r"unexpected endpoint|no route|route not found|unknown (?:path|endpoint|url)", re.IGNORECASE)
HEADER_KEY = re.compile(r"subscription key|api-key header|x-api-key", re.IGNORECASE)
URL = re.compile(r"https?://\S+")
VARYING = re.compile(r"\S*\d\S*")


class Error(NamedTuple):
    """What an error says."""

    status: int
    """Of the answer, or of the error in it where that is another one."""
    said: str
    """In one short line."""
    names: frozenset[str]
    """Its codes and types, in small letters."""
    param: str | None = None
    """The parameter that it names in a field of its own."""
    has_reasons: bool = False
    """Whether it says what was found in the prompt, as moderation does."""

    @property
    def words(self) -> str:
        """What two errors of one kind have in common: without numbers and names that vary."""
        return " ".join(VARYING.sub("", self.said).lower().split())


def read_error(raw: bytes, status: int) -> Error:
    """An error in the bytes of an answer: {"error": {...}} or {"error": "..."}, a list of such, an object, a text."""
    try:
        answer = json.loads(raw)
    except (ValueError, RecursionError):
        answer = None
    if isinstance(answer, list):
        answer = next((item for item in answer if isinstance(item, dict)), None)
    error: Any = answer.get("error") if isinstance(answer, dict) else None
    if isinstance(error, str) and error.strip():
        error = {"message": error}
    error = error if isinstance(error, dict) else answer if isinstance(answer, dict) else {}
    said = error.get("message") or error.get("detail") or error.get("msg") or raw.decode("utf-8", "replace")
    said = said if isinstance(said, str) else json.dumps(said, ensure_ascii=False)
    inner = error.get("innererror") if isinstance(error.get("innererror"), dict) else {}
    named = [error.get("code"), error.get("type"), error.get("status"), inner.get("code")]  # pyright: ignore[reportOptionalMemberAccess]
    names = frozenset(str(name).lower() for name in named if name)
    code = next((int(n) for n in names if n.isdecimal() and 400 <= int(n) < 600), status)
    metadata = error.get("metadata")
    said = (" ".join(said.split()) or "no reason given").encode("utf-8", "replace").decode()
    param = error.get("param")
    return Error(
        code if status == 200 else status,
        said,
        names,
        param if isinstance(param, str) else None,
        isinstance(metadata, dict) and bool(metadata.get("reasons")),
    )


def in_answer(raw: bytes) -> Error | None:
    """The error that an answer with status 200 holds; None where it holds none."""
    if b'"error"' not in raw:
        return None
    try:
        answer = json.loads(raw)
    except (ValueError, RecursionError):
        return None
    if not isinstance(answer, dict) or not answer.get("error") or answer.get("choices") or answer.get("output"):
        return None
    return read_error(raw, 200)


def is_without_money(error: Error) -> bool:
    """Whether it speaks of an empty account, which waiting does not mend."""
    if error.status == 402 or any(n in NO_MONEY_CODES or n.endswith(NO_MONEY_ENDINGS) for n in error.names):
        return True
    if error.status >= 500 or error.status in REPEATING or _is_marked(error):  # what stands in a row may speak of money
        return False
    said = URL.sub("", error.said)
    if not (NO_MONEY.search(said) or any("billing" in n for n in error.names)):
        return False
    return not (error.status == 429 and PASSES.search(said))


def is_own(error: Error) -> bool:
    """Whether it is one row's own: what stands in that row was not let through."""
    if error.status == 401 or error.status >= 500:
        return False
    return _is_marked(error) or OWN.search(error.said) is not None


def _is_marked(error: Error) -> bool:
    """Whether a code, or reasons, say that it is one row's own, with whatever words."""
    return error.has_reasons or bool(error.names & {*OWN_CODES})


def is_no_place(error: Error) -> bool:
    """Whether nothing is asked at that address."""
    return error.status in (404, 405) or (error.status == 200 and NO_PLACE.search(error.said) is not None)


def is_too_long(error: Error) -> bool:
    """Whether prompt and answer do not fit into the model's context: settings, or a row that is longer than others."""
    return CONTEXT.search(error.said) is not None


def renamed(error: Error, body: Mapping[str, Any]) -> tuple[str, str] | None:
    """(name, the name that the server wants in its place) where the meaning stays; None where it is nothing of that."""
    wanted = INSTEAD.search(error.said)
    old = next((name for name in SAME_MEANING if name in body), None)
    if wanted is None or old is None or wanted[1] not in SAME_MEANING or wanted[1] == old:
        return None
    return old, wanted[1]


def blamed(error: Error, body: Mapping[str, Any]) -> str | None:
    """The parameter of a request that an error blames; None where it blames none of them."""
    own = [name for name in body if name not in ("model", "messages", "input")]
    if error.param in own:
        return error.param
    if not BLAMED.search(error.said):
        return None
    at = {name: found.start() for name in own if (found := re.search(rf"(?<![\w-]){name}(?![\w-])", error.said))}
    if {"temperature", "top_p"} <= at.keys() and re.search("both|only one", error.said):
        return "top_p"
    return min(at, key=lambda name: at[name]) if at else None


def mend(error: Error, body: Mapping[str, Any], role: Role, base: str) -> str:
    """What to do about an error that is not one row's own, with the flag; empty where nothing is known of it."""
    systems = [m.get("content") for m in body.get("messages", ()) if m.get("role") == "system"]
    if RESPONSES_ONLY.search(error.said) or NOT_A_CHAT_MODEL.search(error.said):
        return f"the model is not available at the chat endpoint: give {role.api} responses" if role.api else ""
    if is_no_place(error) and not re.search(r"/v\d", base.partition("?")[0]):
        return f"the address seems to lack /v1: give {role.endpoint} {base.partition('?')[0]}/v1"
    if error.status == 403 and (name := blamed(error, body)) is not None:
        return _of_parameter(name, role, error.said)
    if error.status in (401, 403):
        more = f", or in a header of another name: {role.header} 'api-key: $VARIABLE'" if role.header else ""
        return f"fix the key: {role.key}{more}" if HEADER_KEY.search(error.said) else f"fix the key: {role.key}"
    if is_no_place(error):
        return f"fix the address ({role.endpoint}) or the model's name ({role.model})"
    if is_too_long(error):
        return (
            f"prompt and answer do not fit into the model's context: lower {role.max_tokens}, or serve a longer context"
        )
    if STREAM_ONLY.search(error.said):
        return "the server only streams: add --stream"
    if "" in systems and role.no_system and (EMPTY_TEXT.search(error.said) or NO_SYSTEM.search(error.said)):
        return f"leave the empty system message out: {role.no_system}"
    if systems and NO_SYSTEM.search(error.said):
        return "the model takes no system messages, but the prompts have them: take them out of the rows"
    if (name := blamed(error, body)) is not None:
        return _of_parameter(name, role, error.said)
    return ""


def _of_parameter(name: str, role: Role, said: str) -> str:
    """The flag by which a parameter gets another value, or is left out."""
    out = f"{role.extra} '{{\"{name}\": null}}'"
    if name == "temperature" and role.temperature and not re.search(r"deprecated|unsupported param", said, re.I):
        return f"give another temperature ({role.temperature} 1), or leave it out: {out}"
    if name in ("logprobs", "top_logprobs"):
        return f"this model gives no log-probs, which are needed here: take another {role.model}"
    wanted = INSTEAD.search(said)
    if name in SAME_MEANING and wanted and wanted[1] in SAME_MEANING:
        unset = f"{role.extra} '{{\"max_tokens\": null}}'"  # as we call it, whatever it was sent as
        return f"it refuses {name} too: leave the limit on the tokens of an answer out: {unset}"
    if name in SAME_MEANING:
        return f"give another number of tokens: {role.max_tokens}"
    return f"leave {name} out: {out}"
