"""What is sent and what comes back, as pure functions."""

import hashlib
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from revise.client import wire
from revise.client.wire import Request, Unreadable, read_answer, retry_after

ASKED = Request({"model": "m", "messages": [{"role": "user", "content": "x" * 400}], "max_tokens": 50})


def completion(content="hello", **more):
    message = {"role": "assistant", "content": content}
    return {"choices": [{"message": message, "finish_reason": "stop"}], "model": "gpt", "id": "a1"} | more


def read(value, request=ASKED):
    return read_answer(json.dumps(value).encode(), request)


def test_a_key_is_the_hash_of_what_is_sent_written_in_one_way():
    body = {"messages": [{"role": "user", "content": "ä"}], "model": "m"}
    text = '{"body":{"messages":[{"content":"ä","role":"user"}],"model":"m"},"sample":0}'
    assert Request(body).key == hashlib.sha256(text.encode()).hexdigest()
    assert Request(dict(reversed(body.items()))).key == Request(body).key


def test_another_sample_occurrence_path_or_body_is_another_key():
    body = {"model": "m", "messages": []}
    others = [Request(body, 1), Request(body, 0, 1), Request(body, path="pooling"), Request(body | {"top_p": 1.0})]
    assert len({r.key for r in [Request(body), *others]}) == 5


def test_a_completion_is_read_with_its_counts():
    found = read(completion(usage={"prompt_tokens": 7, "completion_tokens": 3}))
    assert found == ("hello", "stop", "gpt", 7, 3, True, "a1", None)


@pytest.mark.parametrize(
    "usage",
    [
        *(None, {}, [], "7", {"prompt_tokens": 1}),
        *({"prompt_tokens": n, "completion_tokens": 1} for n in (-1, 10**12, True, 1.5, None)),
    ],
)
def test_tokens_that_cannot_be_true_are_estimated_and_marked(usage):
    found = read(completion("y" * 80, usage=usage))
    assert (found.tokens_in, found.tokens_out, found.is_counted) == (104, 20, False)  # 400 / 4 + 4, 80 / 4


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        ({"choices": []}, "no choices"),
        ({"choices": [{}]}, "a choice without a message"),
        ({"choices": ["x"]}, "a choice without a message"),
        (completion(None), "null content"),
        (completion([{"type": "text", "text": "x"}]), "content that is a list"),
        (completion("  \n"), "empty"),
        ({"choices": [{"message": {"content": "x"}, "finish_reason": "content_filter"}]}, "refused"),
        ({"choices": [{"message": {"content": None, "refusal": "no"}}]}, "refused"),
        ({"choices": [{"message": {"content": None, "tool_calls": [{}]}}]}, "a tool call"),
        ({"choices": [{"message": {"content": "x"}, "finish_reason": "tool_calls"}]}, "a tool call"),
    ],
)
def test_an_answer_without_a_text_has_a_reason(answer, reason):
    assert read(answer).fault == reason


@pytest.mark.parametrize(
    ("raw", "reason"),
    [
        (b"", "an empty body"),
        (b" \n", "an empty body"),
        (b"<html>busy</html>", "HTML, not JSON"),
        (b'{"choices": [{"message', "not JSON"),
        (b'{"choices": [], "usage": NaN}', "NaN is not JSON"),
        (b'{"choices": [], "choices": []}', "the key 'choices' stands twice"),
        ('{"choices": "ä"}'.encode("latin-1"), "not UTF-8"),
        (b"[" * 3000, "nested deeper|not JSON"),
        (b'{"choices": ' + b"[" * 100 + b"]" * 100 + b"}", "nested deeper"),
        (b"[]", "a list, not an object"),
        (b'{"object": "list"}', "JSON without choices"),
        (b'{"choices": [], "error": {"message": "overloaded"}}', "an error with status 200: overloaded"),
    ],
)
def test_what_is_no_completion_is_unreadable(raw, reason):
    with pytest.raises(Unreadable, match=reason):
        read_answer(raw, ASKED)


REWARD = Request({"model": "r", "messages": []}, path=wire.REWARD_PATH)


@pytest.mark.parametrize(
    ("data", "score"),
    [
        ([{"data": [1.5]}], 1.5),
        ([{"data": [[-2]]}], -2.0),
        ([{"data": 0.25}], 0.25),
        ([{"label": "LABEL_0", "probs": [0.75]}], 0.75),
    ],
)
def test_a_reward_is_one_number(data, score):
    assert float(read({"data": data}, REWARD).text) == score


@pytest.mark.parametrize(
    "data", [[], [{"data": [1, 2]}], [{"data": True}], [{"data": None}], [{}], None, [{"data": []}]]
)
def test_anything_else_is_no_reward(data):
    with pytest.raises(Unreadable):
        read({"data": data}, REWARD)


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({"retry-after": "7"}, 7),
        ({"retry-after": "0"}, 0),
        ({"retry-after": "0.25"}, 0.25),
        ({"retry-after-ms": "1500", "retry-after": "9"}, 1.5),
        ({"retry-after-ms": "soon", "retry-after": "9"}, 9),
        ({"retry-after": "Thu, 01 Jan 1970 00:01:40 GMT"}, 90),  # 100 s after the epoch, seen at 10 s
        ({"retry-after": "Thu, 01 Jan 1970 00:00:00 GMT"}, 0),
        ({"retry-after": "-5"}, None),
        ({"retry-after": "nan"}, None),
        ({"retry-after": "inf"}, None),
        ({"retry-after": "in a while"}, None),
        ({"retry-after": ""}, None),
        ({"retry-after": "1000000000"}, 1e9),
        ({}, None),
    ],
)
def test_a_wait_is_read_where_it_is_one(headers, seconds):
    assert retry_after(headers, 10.0) == seconds


@given(st.text(max_size=40))
def test_no_header_breaks_the_reading(text):
    wait = retry_after({"retry-after": text}, 0.0)
    assert wait is None or wait >= 0


@pytest.mark.parametrize(
    ("error", "is_quota"),
    [
        ({"code": "insufficient_quota"}, True),
        ({"type": "insufficient_quota", "code": None}, True),
        ({"code": "credit_balance_exhausted"}, True),
        ({"code": "organization_spend_limit_exceeded"}, True),
        ({"code": "organization_usage_limit_exceeded"}, True),
        ({"code": "rate_limit_exceeded"}, False),
        ({"code": "slow_down"}, False),
        ({}, False),
    ],
)
def test_an_empty_account_is_told_from_a_limit(error, is_quota):
    said, names = wire.error_of(json.dumps({"error": {"message": "no"} | error}).encode())
    assert (said, wire.is_quota(names)) == ("no", is_quota)


@pytest.mark.parametrize("raw", [b"", b"plain words", b"\xff\xfe", b"[1]", b'{"detail": "plain words"}', b"[" * 10000])
def test_any_error_body_says_something(raw):
    assert wire.error_of(raw)[0]
