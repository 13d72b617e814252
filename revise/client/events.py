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
JOINED = ("content", "reasoning_content", "reasoning", "thinking", "refusal")
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
    """The completion, the error or the response that events make together; nothing where there are none. Events that
    are no JSON are left out.
    """
    made: dict[str, Any] = {}
    message: dict[str, Any] = {"role": "assistant", "content": None}
    finish, has_end, has_choice, logprobs = None, False, False, []
    for event in _events(raw):
        if event is None:
            has_end = True
            continue
        if event.get("error") and not event.get("choices"):
            return _bytes(event)
        if isinstance(event.get("response"), dict) and str(event.get("type")).startswith("response."):
            made = {"response": event["response"]}
            has_end = event["type"] in ("response.completed", "response.incomplete", "response.failed")
            continue
        made |= {name: event[name] for name in ("id", "model", "usage", "created") if event.get(name)}
        choice = next((c for c in _dicts(event.get("choices")) if not c.get("index")), {})
        has_choice = has_choice or bool(choice)
        _add(message, _dict(choice.get("delta")) or _dict(choice.get("message")))
        finish = choice.get("finish_reason") or finish
        logprobs += _dicts(_dict(choice.get("logprobs")).get("content"))
    if "response" in made:
        return _bytes(made["response"] if has_end else made["response"] | {"status": "incomplete"})
    if not has_choice:
        return _bytes({**made, "choices": []}) if made else b""
    choice: dict[str, Any] = {"index": 0, "message": message}
    choice["finish_reason"] = finish if finish or has_end else CUT_OFF
    choice |= {"logprobs": {"content": logprobs}} if logprobs else {}
    return _bytes({"object": "chat.completion", **made, "choices": [choice]})


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
        if isinstance(value, list) or isinstance(before, list):
            message[name] = _parts(before) + _parts(value)
        elif name in JOINED and isinstance(value, str):
            message[name] = (before if isinstance(before, str) else "") + value
        else:
            message[name] = value


def _parts(content: Any) -> list[Any]:
    """A content as parts: some servers stream thoughts as parts, and the answer as texts."""
    if isinstance(content, str) and content:
        return [{"type": "text", "text": content}]
    return content if isinstance(content, list) else []


def _bytes(value: Any) -> bytes:
    """JSON. Halves of letters, which no UTF-8 has, are escapes: two of them that have come together are one letter."""
    try:
        return json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        return json.dumps(value).encode()


def _dict(value: Any) -> dict[str, Any]:
    """It, or an empty one in the place of anything else."""
    return value if isinstance(value, dict) else {}


def _dicts(value: Any) -> list[dict[str, Any]]:
    """Those of a list; none of anything else."""
    return [item for item in value if isinstance(item, dict)] if isinstance(value, list) else []


# --- the Responses API ---------------------------------------------------------------------------------------------


def as_response_request(body: Mapping[str, Any]) -> dict[str, Any]:
    """A chat request as the Responses API takes it: nothing is kept there."""
    made: dict[str, Any] = {"input": body.get("messages", []), "store": False}
    for name, value in body.items():
        if name == "reasoning_effort":
            made["reasoning"] = {"effort": value}
        elif name == "response_format" and isinstance(value, dict):
            inner = {"type": value.get("type"), **_dict(value.get("json_schema"))}
            made["text"] = {**_dict(body.get("text")), "format": inner}
        elif name == "text" and "response_format" in body:
            continue
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
    for item in _dicts(answer["output"]):
        kind, parts = str(item.get("type")), _dicts(item.get("content"))
        if kind == "message":
            texts += [p["text"] for p in parts if p.get("type") == "output_text" and isinstance(p.get("text"), str)]
            refusals = [p["refusal"] for p in parts if p.get("refusal")]
            message |= {"refusal": refusals[0]} if refusals else {}
        elif kind == "reasoning":
            parts += _dicts(item.get("summary"))
            thoughts += [p["text"] for p in parts if isinstance(p.get("text"), str)]
        elif kind.endswith("_call"):
            message["tool_calls"] = [item]
    message |= {"content": "".join(texts)} if texts else {}
    message |= {"reasoning_content": "\n\n".join(thoughts)} if thoughts else {}
    usage = _dict(answer.get("usage"))
    counts = {"prompt_tokens": usage.get("input_tokens"), "completion_tokens": usage.get("output_tokens")}
    made = {name: answer[name] for name in ("id", "model") if answer.get(name)}
    made |= {"object": "chat.completion", "usage": {**usage, **counts}}
    choice = {"index": 0, "message": message, "finish_reason": _finish(answer)}
    return _bytes({**made, "choices": [choice]})


def _finish(answer: Mapping[str, Any]) -> str:
    """A response's status as a finish reason."""
    status = answer.get("status")
    if status == "incomplete":
        reason = _dict(answer.get("incomplete_details")).get("reason")
        return "content_filter" if reason == "content_filter" else CUT_OFF
    return "stop" if status in ("completed", None) else str(status)
