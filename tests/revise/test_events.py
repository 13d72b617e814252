"""Answers in another form, as chat completions: pure functions."""

import json

import pytest

from revise.client import events
from revise.client.reading import read_answer
from revise.client.wire import Request

ASKED = Request({"model": "m", "messages": [{"role": "user", "content": "x"}]})


def chunk(finish=None, usage=None, **delta):
    return {"id": "c", "model": "gpt", "choices": [{"index": 0, "delta": delta, "finish_reason": finish}]} | (
        {"usage": usage} if usage else {}
    )


def stream(*chunks, end=True, newline="\n"):
    lines = [f"data: {json.dumps(c)}{newline}{newline}" for c in chunks]
    return "".join([": a comment\n\n", *lines, f"data: [DONE]{newline}{newline}" if end else ""]).encode()


def read(raw):
    return read_answer(events.joined(raw), ASKED)


@pytest.mark.parametrize("newline", ["\n", "\r\n"])
def test_deltas_are_put_together_and_usage_is_the_last_ones(newline):
    usage = {"prompt_tokens": 7, "completion_tokens": 3}
    last = {"id": "c", "choices": [], "usage": usage}
    deltas = [chunk(role="assistant", content=""), chunk(content="hel"), chunk(content="lo"), chunk("stop")]
    found = read(stream(*deltas, last, newline=newline))
    assert (found.text, found.finish, found.model, found.id) == ("hello", "stop", "gpt", "c")
    assert (found.tokens_in, found.tokens_out, found.is_counted, found.fault) == (7, 3, True, None)


def test_thoughts_come_apart():
    found = read(stream(chunk(reasoning_content="h"), chunk(reasoning_content="m"), chunk(content="x"), chunk("stop")))
    assert (found.text, found.reasoning) == ("x", "hm")


@pytest.mark.parametrize(
    ("finish", "end", "fault"), [(None, False, "truncated"), (None, True, None), ("stop", False, None)]
)
def test_a_stream_without_an_end_was_cut(finish, end, fault):
    assert read(stream(chunk(content="hel"), chunk(finish), end=end)).fault == fault


def test_an_error_in_the_midst_is_an_error():
    raw = events.joined(stream(chunk(content="hel"), {"error": {"code": 402, "message": "Insufficient credits"}}))
    assert json.loads(raw) == {"error": {"code": 402, "message": "Insufficient credits"}}


def test_events_are_known_without_being_announced():
    assert events.is_stream(b"data: {}\n\n", "application/json") and events.is_stream(b"", "text/event-stream; x")
    assert not events.is_stream(b'{"data": 1}', "application/json")


def test_logprobs_are_kept():
    probs = [{"choices": [{"delta": {}, "logprobs": {"content": [{"token": t}]}}]} for t in "mM"]
    assert json.loads(events.joined(stream(*probs)))["choices"][0]["logprobs"]["content"] == [
        {"token": "m"}, {"token": "M"}
    ]  # fmt: skip


# --- the Responses API ---------------------------------------------------------------------------------------------


def response(**more):
    message = {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": "hello"}]}
    thoughts = {"type": "reasoning", "summary": [{"type": "summary_text", "text": "hm"}]}
    usage = {"input_tokens": 7, "output_tokens": 3, "total_tokens": 10}
    return {"id": "r", "model": "gpt", "status": "completed", "output": [thoughts, message], "usage": usage} | more


def of(value):
    return read_answer(events.from_response(json.dumps(value).encode()), ASKED)


def test_a_response_is_read_as_a_completion():
    found = of(response())
    assert (found.text, found.finish, found.reasoning) == ("hello", "stop", "hm")
    assert (found.tokens_in, found.tokens_out, found.id) == (7, 3, "r")


@pytest.mark.parametrize(
    ("more", "fault"),
    [
        ({"status": "incomplete", "incomplete_details": {"reason": "max_output_tokens"}}, "truncated"),
        ({"status": "incomplete", "incomplete_details": {"reason": "content_filter"}}, "refused"),
        ({"output": [{"type": "message", "content": [{"type": "refusal", "refusal": "no"}]}]}, "refused"),
        ({"output": [{"type": "function_call", "name": "f"}]}, "a tool call"),
    ],
)
def test_a_response_that_is_none_has_the_reason_of_a_completion(more, fault):
    assert of(response(**more)).fault == fault


def test_a_request_is_asked_in_the_responses_way():
    body = {"model": "m", "messages": [{"role": "user", "content": "x"}], "max_tokens": 5, "reasoning_effort": "low"}
    assert events.as_response_request(body) == {
        "model": "m",
        "input": [{"role": "user", "content": "x"}],
        "max_output_tokens": 5,
        "reasoning": {"effort": "low"},
        "store": False,
    }


def test_streamed_responses_are_the_last_one():
    deltas = [
        {"type": "response.output_text.delta", "delta": "hel"},
        {"type": "response.completed", "response": response()},
    ]
    assert read_answer(events.from_response(events.joined(stream(*deltas, end=False))), ASKED).text == "hello"
    cut = [{"type": "response.in_progress", "response": response(status="in_progress")}]
    assert read_answer(events.from_response(events.joined(stream(*cut, end=False))), ASKED).fault == "truncated"
