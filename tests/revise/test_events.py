"""Answers in another form, as chat completions: pure functions."""

import json

import pytest

from revise.client import events
from revise.client.reading import THOUGHTS, Unreadable, read_answer
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


def test_a_format_is_asked_for_where_it_stands_there():
    """https://developers.openai.com/api/docs/guides/migrate-to-responses: text.format, whose schema lies flat."""
    body = {"model": "m", "messages": [], "response_format": {"type": "text"}}
    made = events.as_response_request(body)
    assert made["text"] == {"format": {"type": "text"}} and "response_format" not in made
    schema = {"type": "json_schema", "json_schema": {"name": "n", "schema": {"type": "object"}}}
    made = events.as_response_request(body | {"response_format": schema, "text": {"verbosity": "low"}})
    assert made["text"] == {
        "verbosity": "low", "format": {"type": "json_schema", "name": "n", "schema": {"type": "object"}}
    }  # fmt: skip


def test_a_response_that_was_begun_and_not_ended_is_broken_off():
    assert of(response(status="failed")).fault == "broken off by the server"


# --- odd events ----------------------------------------------------------------------------------------------------

ODD = [None, True, 0, 1.5, "", "x", [], {}, [None], [1], ["x"], [{}], {"a": 1}, "\u00b2"]


def spoilt(value):
    """Everything that one odd value in the place of a part makes of a value."""
    yield from ODD
    if isinstance(value, dict):
        yield from ({**value, k: found} for k, v in value.items() for found in spoilt(v))
    elif isinstance(value, list):
        yield from ([*value[:i], found, *value[i + 1 :]] for i, v in enumerate(value) for found in spoilt(v))


def outcome(convert, raw):
    try:
        return read_answer(convert(raw), ASKED)
    except Unreadable:
        return None


@pytest.mark.parametrize(
    ("convert", "value"),
    [
        (events.joined, chunk("stop", {"prompt_tokens": 7}, content="x", reasoning="y")),
        (events.joined, {"choices": [{"delta": {}, "logprobs": {"content": [{"token": "m"}]}}]}),
        (events.joined, {"type": "response.completed", "response": response()}),
        (events.from_response, response(status="incomplete", incomplete_details={"reason": "content_filter"})),
        (events.joined, {"error": {"code": "x", "message": "no", "innererror": {"code": "y"}}}),
        (events.from_response, {"error": {"code": "x", "message": "no", "metadata": {"reasons": ["z"]}}}),
    ],
)
def test_whatever_stands_in_an_answer_it_is_read_or_unreadable(convert, value):
    """A fault of ours would end the run, and lose what is in flight."""
    raws = [json.dumps(v).encode() for v in spoilt(value)]
    for raw in raws:
        outcome(convert, raw if convert is events.from_response else b"data: " + raw + b"\n\n")
    assert len(raws) > 50


@pytest.mark.parametrize("raw", [b"", b": keep-alive\n\n: keep-alive\n\n", b"data: <html>busy</html>\n\n"])
def test_a_stream_in_which_nothing_came_is_no_answer(raw):
    """It is asked for again: a gateway has closed the connection before the model began."""
    with pytest.raises(Unreadable, match="an empty body"):
        read(raw)


def test_a_stream_of_the_end_alone_has_no_choices():
    assert read(stream({"id": "c", "choices": [], "usage": {"prompt_tokens": 7}})).fault == "no choices"
    assert read(stream(chunk("stop"))).fault == "null content"


def test_parts_and_texts_follow_one_another():
    """Mistral's thinking models stream thoughts as parts, and the answer as texts."""

    def part(text):
        return [{"type": "thinking", "thinking": [{"type": "text", "text": text}]}]

    thoughts = [chunk(content=""), chunk(content=part("h")), chunk(content=part("m"))]
    found = read(stream(*thoughts, chunk(content="The "), chunk(content="heron."), chunk("stop")))
    assert (found.text, found.reasoning, found.fault) == ("The heron.", "h\n\nm", None)
    text = [{"type": "text", "text": "heron."}]
    found = read(stream(chunk(content="The "), chunk(content="grey "), chunk(content=text), chunk("stop")))
    assert (found.text, found.reasoning, found.fault) == ("The grey heron.", "", None)


@pytest.mark.parametrize("name", THOUGHTS)
def test_thoughts_in_any_field_come_apart(name):
    found = read(stream(chunk(**{name: "h"}), chunk(**{name: "m"}), chunk(content="x"), chunk("stop")))
    assert (found.text, found.reasoning) == ("x", "hm")


def test_halves_of_a_letter_follow_one_another():
    """JSON writes an emoji as two escapes, which some gateways send in two events; half of one is no text."""
    halves = [chunk(content="A \ud83d"), chunk(content="\ude00."), chunk("stop")]
    assert read(stream(*halves)).text == "A \U0001f600."
    for found in (read(stream(halves[0], halves[2])), of(response(output=[message_of("A \ud83d")]))):
        assert found.text == "" and "surrogate" in (found.fault or "")


def message_of(text):
    return {"type": "message", "content": [{"type": "output_text", "text": text}]}


# --- what must not be lost or added --------------------------------------------------------------------------------


def test_of_several_usages_the_last_one_counts_and_of_several_choices_the_first():
    first = chunk(content="hello", usage={"prompt_tokens": 7, "completion_tokens": 1})
    other = {"choices": [{"index": 1, "delta": {"content": "other"}, "finish_reason": "length"}]}
    found = read(stream(first, other, chunk("stop", usage={"prompt_tokens": 7, "completion_tokens": 3})))
    assert (found.text, found.finish, found.tokens_out) == ("hello", "stop", 3)


def test_nothing_in_a_delta_takes_nothing_back():
    deltas = [chunk(content="hello", reasoning="hm"), chunk("stop", content=None, reasoning=None)]
    found = read(stream(*deltas))
    assert (found.text, found.reasoning) == ("hello", "hm")


@pytest.mark.parametrize(
    "raw",
    [b'data: {"choices": [{"delta":\ndata:  {"content": "x"}}]}\n\ndata: [DONE]\n\n',
     b'data: {"choices": [{"delta": {"content": "x"}}]}\r\rdata: [DONE]\r\r',
     b'event: message\ndata:{"choices": [{"message": {"content": "x"}}]}\n\ndata:[DONE]',
     b'data: {"choices": [{"delta": {"content": "x"}}]}\n\ndata: not JSON\n\ndata: [DONE]\n\n'],
    ids=["two lines", "CR", "no blank, no last line, a message", "a line of another kind"],
)  # fmt: skip
def test_events_are_read_as_their_standard_has_them(raw):
    """https://html.spec.whatwg.org/multipage/server-sent-events.html: lines of one event are joined by a line's end."""
    found = read(raw)
    assert (found.text, found.fault) == ("x", None)


def test_an_error_beside_a_choice_is_that_choices_end():
    """OpenRouter's, in the midst of a stream."""
    broken = {"error": {"code": 502, "message": "x"}, "choices": [{"delta": {"content": ""}, "finish_reason": "error"}]}
    found = read(stream(chunk(content="hel"), broken))
    assert (found.text, found.fault) == ("hel", "broken off by the server")


def test_a_stream_is_known_by_its_type_in_any_case():
    assert events.is_stream(b"", "Text/Event-Stream")


@pytest.mark.parametrize("status", ["incomplete", "failed"])
def test_a_streamed_response_keeps_the_way_it_ended(status):
    last = {"type": f"response.{status}", "response": response(status=status)}
    found = read_answer(events.from_response(events.joined(stream(last, end=False))), ASKED)
    assert found.fault == {"incomplete": "truncated", "failed": "broken off by the server"}[status]


def test_tokens_of_thoughts_that_only_the_total_counts_are_paid_in_responses_too():
    usage = {"input_tokens": 7, "output_tokens": 3, "total_tokens": 110, "cost": 0.5}
    found = of(response(usage=usage))
    assert (found.tokens_out, found.cost) == (103, 0.5)
