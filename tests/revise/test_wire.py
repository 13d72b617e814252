"""What is sent, and what errors and headers say, as pure functions."""

import hashlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from revise.client.wire import Request, retry_after


def test_a_key_is_the_hash_of_what_is_sent_written_in_one_way():
    body = {"messages": [{"role": "user", "content": "ä"}], "model": "m"}
    text = '{"body":{"messages":[{"content":"ä","role":"user"}],"model":"m"},"sample":0}'
    assert Request(body).key == hashlib.sha256(text.encode()).hexdigest()
    assert Request(dict(reversed(body.items()))).key == Request(body).key


def test_another_sample_occurrence_path_or_body_is_another_key():
    body = {"model": "m", "messages": []}
    others = [Request(body, 1), Request(body, 0, 1), Request(body, path="pooling"), Request(body | {"top_p": 1.0})]
    assert len({r.key for r in [Request(body), *others]}) == 5


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
