"""Answers that come in another form, as chat completions: events that a server streams, and the Responses API.

    data: {"choices": [{"delta": {"content": "The "}}]}            deltas, put together
    data: {"choices": [], "usage": {...}}                          usage, from the last one that has it
    data: [DONE]                                                   the end

A stream that ends without this mark and without a finish reason was cut. What comes out is stored as the answer.
"""

import json
from collections.abc import Iterator, Mapping
from typing import Any

CUT_OFF = "length"
"""The finish reason of a stream that has no end."""
JOINED = ("content", "reasoning_content", "reasoning", "refusal")
"""Fields of a delta whose texts follow one another."""
RENAMED = {"max_tokens": "max_output_tokens", "max_completion_tokens": "max_output_tokens"}


def is_stream(raw: bytes, content_type: str) -> bool:
    """Whether an answer is events, asked for or not."""
    if content_type.lower().startswith("text/event-stream"):
        return True
    return raw.lstrip()[:6].startswith((b"data:", b"event:")) and b"\n" in raw


def as_stream(body: Mapping[str, Any], *, with_usage: bool) -> dict[str, Any]:
    """A request whose answer is streamed. with_usage: its tokens come at the end, as the Responses API's always do."""
    options = {"stream_options": {"include_usage": True}} if with_usage and "messages" in body else {}
    return {**body, "stream": True, **options}


def joined(raw: bytes) -> bytes:
    """The completion, the error or the response that events make together. Events that are no JSON are left out."""
    made: dict[str, Any] = {}
    message: dict[str, Any] = {"role": "assistant", "content": None}
    finish, has_end, logprobs = None, False, []
    for event in _events(raw):
        if event is None:
            has_end = True
            continue
        if event.get("error") and not event.get("choices"):
            return json.dumps(event, ensure_ascii=False).encode()
        if isinstance(event.get("response"), dict) and str(event.get("type")).startswith("response."):
            made = {"response": event["response"]}
            has_end = event["type"] in ("response.completed", "response.incomplete", "response.failed")
            continue
        made |= {name: event[name] for name in ("id", "model", "usage", "created") if event.get(name)}
        choice = next((c for c in event.get("choices") or [] if isinstance(c, dict) and not c.get("index")), {})
        _add(message, choice.get("delta") or choice.get("message") or {})
        finish = choice.get("finish_reason") or finish
        found = choice.get("logprobs")
        logprobs += (found.get("content") or []) if isinstance(found, dict) else []
    if "response" in made:
        return json.dumps(made["response"] if has_end else made["response"] | {"status": "incomplete"}).encode()
    choice: dict[str, Any] = {"index": 0, "message": message}
    choice["finish_reason"] = finish if finish or has_end else CUT_OFF
    choice |= {"logprobs": {"content": logprobs}} if logprobs else {}
    return json.dumps({"object": "chat.completion", **made, "choices": [choice]}, ensure_ascii=False).encode()


def _events(raw: bytes) -> Iterator[dict[str, Any] | None]:
    """Each event's object; None for the mark of the end."""
    lines: list[str] = []
    text = raw.decode("utf-8", "replace").replace("\r\n", "\n").replace("\r", "\n")
    for line in [*text.split("\n"), ""]:
        if line.startswith("data:"):
            lines.append(line.removeprefix("data:").removeprefix(" "))
        elif not line and lines:
            data, lines = "\n".join(lines).strip(), []
            if data == "[DONE]":
                yield None
                continue
            try:
                found = json.loads(data)
            except (ValueError, RecursionError):
                continue
            if isinstance(found, dict):
                yield found


def _add(message: dict[str, Any], delta: Mapping[str, Any]) -> None:
    """Takes a delta into a message."""
    for name, value in delta.items():
        if value is None:
            continue
        before = message.get(name)
        if name in JOINED and isinstance(value, str):
            message[name] = (before if isinstance(before, str) else "") + value
        elif isinstance(value, list):
            message[name] = (before if isinstance(before, list) else []) + value
        else:
            message[name] = value


# --- the Responses API ---------------------------------------------------------------------------------------------


def as_response_request(body: Mapping[str, Any]) -> dict[str, Any]:
    """A chat request as the Responses API takes it: nothing is kept there."""
    made: dict[str, Any] = {"input": body.get("messages", []), "store": False}
    for name, value in body.items():
        if name == "reasoning_effort":
            made["reasoning"] = {"effort": value}
        elif name != "messages":
            made[RENAMED.get(name, name)] = value
    return made


def from_response(raw: bytes) -> bytes:
    """A response as a chat completion; bytes that hold none come back as they are."""
    try:
        answer = json.loads(raw)
    except (ValueError, RecursionError):
        return raw
    if not isinstance(answer, dict) or answer.get("error") or not isinstance(answer.get("output"), list):
        return raw
    texts, thoughts, message = [], [], {"role": "assistant", "content": None}
    for item in answer["output"]:
        kind = item.get("type") if isinstance(item, dict) else None
        parts = [p for p in item.get("content") or [] if isinstance(p, dict)] if isinstance(item, dict) else []
        if kind == "message":
            texts += [p["text"] for p in parts if p.get("type") == "output_text" and isinstance(p.get("text"), str)]
            refusals = [p["refusal"] for p in parts if p.get("refusal")]
            message |= {"refusal": refusals[0]} if refusals else {}
        elif kind == "reasoning":
            parts += [p for p in item.get("summary") or [] if isinstance(p, dict)]
            thoughts += [p["text"] for p in parts if isinstance(p.get("text"), str)]
        elif kind is not None and kind.endswith("_call"):
            message["tool_calls"] = [item]
    message |= {"content": "".join(texts)} if texts else {}
    message |= {"reasoning_content": "\n\n".join(thoughts)} if thoughts else {}
    usage = answer.get("usage") if isinstance(answer.get("usage"), dict) else {}
    counts = {"prompt_tokens": usage.get("input_tokens"), "completion_tokens": usage.get("output_tokens")}  # pyright: ignore[reportOptionalMemberAccess]
    made = {name: answer[name] for name in ("id", "model") if answer.get(name)}
    made |= {"object": "chat.completion", "usage": {**usage, **counts}}  # pyright: ignore[reportGeneralTypeIssues]
    choice = {"index": 0, "message": message, "finish_reason": _finish(answer)}
    return json.dumps({**made, "choices": [choice]}, ensure_ascii=False).encode()


def _finish(answer: Mapping[str, Any]) -> str:
    """A response's status as a finish reason."""
    status = answer.get("status")
    if status == "incomplete":
        details = answer.get("incomplete_details")
        reason = details.get("reason") if isinstance(details, dict) else None
        return "content_filter" if reason == "content_filter" else CUT_OFF
    return "stop" if status in ("completed", None) else str(status)
