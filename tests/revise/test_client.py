"""The client against a real server on this machine that does what servers do."""

import collections
import email.utils
import gzip
import json
import logging
import os
import random
import shutil
import signal
import socket
import ssl
import subprocess
import threading
import time

import pytest

from revise.client import (
    ClientConfig,
    Request,
    Store,
    answer_all,
    endpoints,
    endpoints_of,
    open_store,
    run_limits,
    scheduler,
    trial,
)
from revise.client.run_limits import RunLimits
from revise.loopback import Reply, serve
from system.errors import InputError, RunError, Stopped
from tests.revise.asks import ask, questions

HELLO = Reply.chat("hello")


@pytest.fixture(autouse=True)
def short_waits(monkeypatch):
    monkeypatch.setattr(scheduler, "LONGEST_BACKOFF", 0.02)
    monkeypatch.setattr(endpoints, "LONGEST_PROBE_WAIT", 0.1)
    monkeypatch.setattr(endpoints, "LONGEST_REACHED_WAIT", 0.02)


def first_then(*replies):
    """Replies to the first requests; hello to the rest."""
    return lambda seen: replies[seen.number] if seen.number < len(replies) else HELLO


def misbehaving(share, reply, seed=0):
    """A share of requests, drawn, gets another reply."""
    rng = random.Random(seed)
    return lambda seen: reply() if rng.random() < share else HELLO


# --- each question once --------------------------------------------------------------------------------------------


def test_every_request_is_answered_once(tmp_path):
    found = ask(tmp_path, lambda seen: Reply.chat(f"about {seen.text}"), 50)
    assert collections.Counter(found.texts) == {f"question {i}": 1 for i in range(50)}
    assert [json.loads(row.answer)["choices"][0]["message"]["content"] for row in found.rows] == [
        f"about question {i}" for i in range(50)
    ]
    assert found.tally[:5] == (0, 50, 0, 0, 50)


def test_equal_requests_are_sent_once_and_a_rerun_sends_nothing(tmp_path):
    requests = [*questions(5), *questions(5)]
    assert ask(tmp_path, lambda seen: HELLO, requests=requests).tally[:5] == (0, 5, 0, 0, 5)
    again = ask(tmp_path, lambda seen: HELLO, requests=requests)
    assert again.tally[:5] == (5, 0, 0, 0, 0) and not again.texts


def test_who_heard_signals_before_hears_them_again(tmp_path):
    """A program that asks along the way ends its other processes by its own handlers."""
    mine = {number: lambda *_: None for number in (signal.SIGTERM, signal.SIGINT)}
    before = {number: signal.signal(number, handler) for number, handler in mine.items()}
    try:
        ask(tmp_path, lambda seen: HELLO, 3)
        assert {number: signal.getsignal(number) for number in mine} == mine
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def test_no_more_are_in_flight_than_asked_for(tmp_path):
    found = ask(tmp_path, lambda seen: HELLO.after(0.02), 60, concurrency=7)
    assert found.server.n_most == 7


def test_connections_are_kept(tmp_path):
    ports = set()
    real = socket.socket.accept

    def accept(self):
        connection, address = real(self)
        ports.add(address)
        return connection, address

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(socket.socket, "accept", accept)
        ask(tmp_path, lambda seen: HELLO, 60, concurrency=3)
    assert 1 <= len(ports) <= 3  # of 60 requests: as many at most as are asked at once


def test_tokens_and_money_are_counted_from_usage(tmp_path):
    found = ask(tmp_path, lambda seen: Reply.chat("x", usage=(1000, 500)), 4, price_in=10.0, price_out=30.0)
    assert found.tally.n_tokens == 6000
    assert found.tally.dollars == pytest.approx(4 * (1000 * 10 + 500 * 30) / 1e6)


# --- limits --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "headers",
    [{}, {"retry_after": "0.05"}, {"retry_after": "0"}, {"retry_after": "-1"}, {"retry_after": "nan"},
     {"retry_after": "soon"}, {"retry_after_ms": "50"}, {"retry_after": email.utils.formatdate(0, usegmt=True)}],
    ids=str,
)  # fmt: skip
def test_three_in_ten_told_to_come_later_are_answered_all_the_same(tmp_path, headers):
    reply = misbehaving(0.3, lambda: Reply.error(429, "slow down", **headers))
    found = ask(tmp_path, reply, 60)
    assert found.states == ["answered"] * 60
    assert found.tally.n_sent == len(found.texts) == 60 + sum(n - 1 for n in collections.Counter(found.texts).values())


def test_nobody_asks_while_a_server_rests(tmp_path):
    arrivals = []

    def reply(seen):
        arrivals.append(time.monotonic())
        return Reply.error(429, "later", retry_after="0.6") if seen.number == 0 else HELLO

    found = ask(tmp_path, reply, 30, concurrency=1)
    assert found.states == ["answered"] * 30
    assert arrivals[1] - arrivals[0] >= 0.59


def test_a_rest_without_end_is_capped_and_said(tmp_path, capsys):
    start = time.monotonic()
    found = ask(tmp_path, first_then(Reply.error(429, "tomorrow", retry_after="1000000000")), 2, max_wait=0.3)
    assert found.states == ["answered"] * 2 and 0.3 <= time.monotonic() - start < 10
    assert "asks for a pause of 1,000,000,000 s; it is tried again after 0 s" in capsys.readouterr().err


def test_requests_a_minute_are_kept_to_evenly(tmp_path):
    arrivals, start = [], time.monotonic()
    ask(tmp_path, lambda seen: arrivals.append(time.monotonic()) or HELLO, 11, rpm=1200.0)
    assert arrivals[-1] - start >= 10 * 60 / 1200  # from the start: the first one's way may be the longest


def test_tokens_a_minute_are_settled_by_what_was_used(tmp_path):
    arrivals = []

    def reply(seen):
        arrivals.append(time.monotonic())
        return Reply.chat("x", usage=(100, 100))

    ask(tmp_path, reply, 6, tpm=60_000.0, concurrency=1)  # 200 tokens each take 0.2 s
    assert arrivals[-1] - arrivals[0] >= 5 * 0.2 - 0.15  # the first estimate was lower
    assert arrivals[-1] - arrivals[0] < 5


def test_a_limit_in_the_headers_is_learnt(tmp_path):
    arrivals = []

    def reply(seen):
        arrivals.append(time.monotonic())
        return Reply.json(json.loads(HELLO.body), x_ratelimit_limit_requests="1200")

    ask(tmp_path, reply, 11, concurrency=1)
    assert arrivals[-1] - arrivals[1] >= 9 * 60 / 1200 - 0.02


# --- what stops a run ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("status", "code"),
    [(401, None), (402, None), (403, None), (404, "model_not_found"), (429, "insufficient_quota"),
     (429, "credit_balance_exhausted"), (429, "project_spend_limit_exceeded"),
     (429, "organization_usage_limit_exceeded")],
)  # fmt: skip
def test_what_waiting_does_not_mend_stops_the_run_at_once(tmp_path, status, code):
    found = ask(tmp_path, lambda seen: Reply.error(status, "no, thank you", code=code), 200, concurrency=8)
    assert isinstance(found.fault, RunError) and f"answers {status}: no, thank you" in str(found.fault)
    assert len(found.texts) <= 8
    assert found.states == [None] * 200


def test_a_quota_that_is_none_can_be_waited_for(tmp_path):
    found = ask(tmp_path, first_then(Reply.error(429, "no", code="insufficient_quota")), 3, retry_quota=True)
    assert found.states == ["answered"] * 3


@pytest.mark.parametrize("status", [400, 413, 422])
def test_a_refused_row_is_marked_and_the_others_go_on(tmp_path, status):
    def reply(seen):
        return Reply.error(status, "this one not") if seen.text == "question 3" else HELLO

    found = ask(tmp_path, reply, 10)
    assert found.states == ["answered"] * 3 + ["refused"] + ["answered"] * 6
    assert found.rows[3].answer == f"{status}: this one not".encode() and found.texts.count("question 3") == 1
    assert not ask(tmp_path, reply, 10).texts
    assert ask(tmp_path, reply, 10, ask_again=True).texts == ["question 3"]


def test_a_server_that_refuses_everything_stops_the_run(tmp_path):
    found = ask(tmp_path, lambda seen: Reply.error(400, "max_tokens is not supported"), 500, concurrency=2)
    assert isinstance(found.fault, RunError) and "max_tokens is not supported" in str(found.fault)
    assert len(found.texts) == trial.FIRST_REFUSALS


def test_refusals_before_slower_answers_are_the_rows_fault(tmp_path):
    def reply(seen):
        return Reply.error(400, "too long") if int(seen.text.split()[1]) < 6 else HELLO.after(0.3)

    found = ask(tmp_path, reply, 60)
    assert found.states == ["refused"] * 6 + ["answered"] * 54


def test_what_is_refused_by_wrong_settings_is_asked_again_when_they_are_mended(tmp_path):
    assert ask(tmp_path, lambda seen: Reply.error(400, "no such parameter"), 50, concurrency=4).states == [None] * 50
    assert ask(tmp_path, lambda seen: HELLO, 50).states == ["answered"] * 50


@pytest.mark.slow
def test_patience_counts_from_the_last_answer(tmp_path):
    def reply(seen):  # one that hangs, and is given up, while the others are answered
        return HELLO.after(30) if seen.text == "question 1" else HELLO.after(0.05)

    found = ask(tmp_path, reply, 120, concurrency=4, timeout=0.8, patience=0.7, max_attempts=2)
    assert found.fault is None and found.states == ["answered", "failed", *["answered"] * 118]


def test_rows_that_always_fail_are_marked_and_do_not_hold_up_the_end(tmp_path):
    def reply(seen):
        return Reply.error(500, "poison") if int(seen.text.split()[1]) % 5 == 0 else HELLO

    found = ask(tmp_path, reply, 20, max_attempts=4, patience=30)
    assert found.fault is None
    assert found.states == ["failed" if i % 5 == 0 else "answered" for i in range(20)]


def test_a_fault_in_the_rows_lets_come_home_what_was_asked(tmp_path):
    def broken():
        yield from questions(12)
        time.sleep(0.1)
        raise RunError("the file has changed")

    requests = broken()
    with serve(lambda seen: HELLO.after(0.1)) as server:
        config = ClientConfig(store=str(tmp_path / "s.sqlite"), endpoint=(server.base,), model="m", concurrency=4)
        with open_store(tmp_path / "s.sqlite") as store:
            with pytest.raises(RunError, match="the file has changed"):
                answer_all(requests, store, config, endpoints_of(config.endpoint, config), purpose="test")
            assert server.n_seen == 12 and len(store.states()) == 12


@pytest.mark.parametrize(
    "reply",
    [
        Reply(b'{"error": {"message": "bad \\ud800"}}', 400),
        Reply(HELLO.body, headers={"x-ratelimit-limit-requests": "\u00b2"}),
    ],
    ids=["half of a surrogate pair", "a number that is none"],
)
def test_odd_words_of_a_server_lose_nothing(tmp_path, reply):
    found = ask(tmp_path, lambda seen: reply if seen.number == 3 else HELLO.after(0.1), 10)
    assert found.fault is None and found.states.count("answered") >= 9 and None not in found.states


def test_a_server_that_never_answers_stops_the_run_when_patience_ends(tmp_path):
    start = time.monotonic()
    found = ask(tmp_path, lambda seen: Reply.error(503, "busy"), 5, patience=0.5)
    assert isinstance(found.fault, RunError) and "no answer for 0.5 s (the last attempt: 503: busy)" in str(found.fault)
    assert time.monotonic() - start < 10


@pytest.mark.slow
def test_a_slow_server_that_asks_for_a_rest_first_is_waited_for(tmp_path, monkeypatch):
    """The short patience is for addresses where nobody is."""
    monkeypatch.setattr(run_limits, "FIRST_PATIENCE", 0.3)
    replies = first_then(Reply.error(429, "slow down", **{"Retry-After": "1"}))
    found = ask(tmp_path, lambda seen: replies(seen).after(0.8), 4, patience=30.0)
    assert found.fault is None and found.states == ["answered"] * 4


def test_a_redirect_is_not_followed_and_names_both_places(tmp_path):
    keys = []
    with serve(lambda seen: keys.append(seen) or HELLO) as other:
        found = ask(tmp_path, lambda seen: Reply(b"", 307, {"Location": f"{other.base}/chat/completions"}))
        assert not keys
    assert other.base.removesuffix("/v1") in str(found.fault) and found.server.base.removesuffix("/v1") in str(
        found.fault
    )


def test_the_number_of_requests_can_be_capped(tmp_path):
    found = ask(tmp_path, lambda seen: HELLO, 100, max_requests=17, concurrency=4)
    assert isinstance(found.fault, Stopped) and len(found.texts) == 17
    assert found.states.count("answered") == 17
    assert ask(tmp_path, lambda seen: HELLO, 100).tally[:2] == (17, 83)


def test_a_cap_on_money_waits_for_what_is_in_flight_and_not_for_ever(tmp_path):
    body = {"model": "m", "max_tokens": 4096}
    requests = [Request(body | {"messages": q.body["messages"]}) for q in questions(100)]
    reply = lambda seen: Reply.chat("x", usage=(20, 20)).after(0.01)  # noqa: E731
    found = ask(tmp_path, reply, requests=requests, price_in=100.0, price_out=100.0, max_cost=1.0)
    assert found.fault is None and found.states == ["answered"] * 100  # 0.4 dollars; all at their most would be 41


def test_money_can_be_capped_and_what_was_spent_before_counts(tmp_path):
    settings = {"price_in": 1000.0, "price_out": 1000.0, "max_cost": 1.0}  # 0.02 dollars an answer
    found = ask(tmp_path, lambda seen: HELLO, 200, concurrency=4, **settings)
    assert isinstance(found.fault, Stopped) and "--max-cost" in str(found.fault)
    assert 46 <= found.states.count("answered") <= 54  # 50, and no more than were in flight
    again = ask(tmp_path, lambda seen: HELLO, 200, concurrency=4, **settings)
    assert again.states == found.states


# --- what passes ---------------------------------------------------------------------------------------------------

CUT = json.dumps({"choices": [{"message": {"content": "hel"}}]}).encode()
PASSING = {
    **{str(status): Reply.error(status, "passing") for status in (408, 409, 500, 502, 503, 504, 529)},
    "reset before an answer": Reply(breaks="before"),
    "reset in the head": Reply(HELLO.body, breaks="head"),
    "reset in the body": Reply(HELLO.body, breaks="body"),
    "closed in the body": Reply(HELLO.body, breaks="close"),
    "closed in a body without length": Reply(HELLO.body, breaks="close", length=None),
    "closed between chunks": Reply(HELLO.body, breaks="close", length="chunked"),
    "a length too small": Reply(HELLO.body, length=20),
    "a length too large": Reply(HELLO.body, length=10_000, breaks="close"),
    "no length that is one": Reply(HELLO.body, headers={"Content-Length": "many"}, length=None),
    "no status line": Reply(raw=b"nonsense\r\n\r\n"),
    "nothing at all": Reply(raw=b""),
    "a head of 200 KB": Reply(HELLO.body, headers={"X": "x" * 200_000}),
    "an empty body": Reply(b""),
    "HTML": Reply(b"<html>gateway</html>", headers={"Content-Type": "text/html"}),
    "JSON that is cut": Reply(HELLO.body[:-20]),
    "Latin-1": Reply('{"choices": "ä"}'.encode("latin-1")),
    "deep JSON": Reply(b'{"choices": ' + b"[" * 5000 + b"]" * 5000 + b"}"),
    "an error with status 200": Reply.json({"error": {"message": "overloaded"}}),
    "packed in a way that is not known": Reply(HELLO.body, headers={"Content-Encoding": "br"}),
    "gzip that is none": Reply(HELLO.body, headers={"Content-Encoding": "gzip"}),
    "gzip that is cut": Reply(gzip.compress(HELLO.body)[:-5], headers={"Content-Encoding": "gzip"}),
}


@pytest.mark.parametrize("fault", PASSING)
def test_a_passing_fault_is_asked_again_and_only_the_answer_is_stored(tmp_path, fault):
    found = ask(tmp_path, first_then(PASSING[fault]), 1)
    assert found.states == ["answered"] and found.rows[0].answer == HELLO.body
    n_more = fault == "a length too small"  # what was left over spoils the connection for one request more
    assert found.rows[0].attempts == len(found.texts) == 2 + n_more


def test_a_hang_and_a_drip_end_at_the_deadline(tmp_path):
    for i, reply in enumerate(
        (HELLO.after(30), Reply(HELLO.body, drip=0.05), Reply(raw=b"HTTP/1.1 100 Continue\r\n\r\n" * 9))
    ):
        start = time.monotonic()
        found = ask(tmp_path / str(i), first_then(reply), 1, timeout=0.5, read_timeout=0.4)
        assert found.states == ["answered"] and time.monotonic() - start < 5


def test_a_server_that_takes_and_never_reads_ends_at_the_deadline(tmp_path):
    with socket.socket() as deaf:
        deaf.bind(("127.0.0.1", 0))
        deaf.listen()
        body = {"model": "m", "messages": [{"role": "user", "content": "x" * 20_000_000}]}  # more than buffers hold
        base = f"http://127.0.0.1:{deaf.getsockname()[1]}/v1"
        start = time.monotonic()
        found = ask(tmp_path, None, requests=[Request(body)], endpoint=(base,), timeout=0.3, max_attempts=2)
    assert found.states == ["failed"] and b"no whole answer" in found.rows[0].answer
    assert time.monotonic() - start < 10


def test_a_storm_of_errors_loses_nothing(tmp_path):
    kinds = [Reply.error(500), Reply.error(502), Reply.error(503), Reply.error(529), *PASSING.values()]
    rng = random.Random(1)
    found = ask(tmp_path, misbehaving(0.5, lambda: rng.choice(kinds), 2), 80, max_attempts=40)
    assert found.states == ["answered"] * 80


def test_what_fails_too_often_is_marked_and_tried_again_by_the_next_run(tmp_path):
    def reply(seen):
        return Reply.error(500, "never") if seen.text == "question 1" else HELLO

    found = ask(tmp_path, reply, 3, max_attempts=3)
    assert found.states == ["answered", "failed", "answered"] and found.tally.n_failed == 1
    assert found.texts.count("question 1") == 3 and found.rows[1].answer == b"500: never"
    again = ask(tmp_path, lambda seen: HELLO, 3)
    assert again.texts == ["question 1"] and again.states == ["answered"] * 3


UNUSABLE = {
    "NaN": Reply(HELLO.body.replace(b"20", b"NaN")),
    "half of a surrogate pair": Reply(b'{"choices": [{"message": {"content": "a\\ud83d"}}], "usage": 1}'),
    "a character that is cut": Reply(b'{"choices": [{"message": {"content": "a\xc3"}}]}'),
    "a key twice": Reply(b'{"choices": [{"message": {"content": "a", "content": "a"}}]}'),
    "no choices": Reply.json({"choices": []}),
    "null content": Reply.json({"choices": [{"message": {"content": None}}]}),
    "content with a part of type image": Reply.json({"choices": [{"message": {"content": [{"type": "image"}]}}]}),
    "refused": Reply.json({"choices": [{"message": {"content": None, "refusal": "no"}}]}),
    "a tool call": Reply.json({"choices": [{"message": {"content": None, "tool_calls": [{"id": "1"}]}}]}),
    "empty": Reply.chat(" "),
}


@pytest.mark.parametrize("fault", UNUSABLE)
def test_what_is_paid_for_and_of_no_use_is_kept_and_not_asked_again(tmp_path, fault):
    found = ask(tmp_path, lambda seen: UNUSABLE[fault], 2)
    assert found.states == ["unusable"] * 2 and found.tally.n_unusable == 2 and len(found.texts) == 2
    assert found.rows[0].answer == UNUSABLE[fault].body
    assert not ask(tmp_path, lambda seen: HELLO, 2).texts
    assert ask(tmp_path, lambda seen: HELLO, 2, ask_again=True).states == ["answered"] * 2


def test_a_cap_holds_where_answers_are_paid_for_and_of_no_use(tmp_path):
    """A server whose every text ends in half of an emoji: each is stored, with what it took."""
    usage = b'"usage": {"prompt_tokens": 1000, "completion_tokens": 4096}'
    half = Reply(b'{"choices": [{"message": {"content": "a\\ud83d"}}], ' + usage + b"}")
    prices = {"price_in": 10.0, "price_out": 30.0, "max_cost": 0.5}
    found = ask(tmp_path, lambda seen: half, 20, concurrency=1, **prices)
    assert isinstance(found.fault, Stopped) and "of $0.5000 are spent" in str(found.fault)
    n = found.states.count("unusable")
    assert n == len(found.texts) == 3  # a fourth would pass the cap
    assert sum(row.dollars for row in found.rows if row) == pytest.approx(n * (1000 * 10 + 4096 * 30) / 1e6)


def test_an_answer_of_ten_megabytes_is_dropped_while_it_is_read(tmp_path):
    large = Reply.chat("x" * 10_000_000)
    found = ask(tmp_path, first_then(large), 2, concurrency=1)
    assert found.states == ["unusable", "answered"] and found.rows[0].answer == b"an answer of more than 8 MB"
    assert found.rows[0].tokens_out >= 8 * 2**20 / 4 and not found.rows[0].is_counted  # it was paid for
    assert ask(tmp_path / "b", lambda seen: large, 1, max_answer_mb=16.0).states == ["answered"]


def test_an_answer_that_has_arrived_is_stored_however_the_run_ends(tmp_path, monkeypatch):
    slow = Store.write

    def write(self, rows):
        time.sleep(0.5)
        slow(self, rows)

    monkeypatch.setattr(Store, "write", write)

    def stop():
        for _ in range(2):
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(0.05)

    def reply(seen):
        if seen.number == 9:  # the last; while the first ones are being stored, and the others wait for that
            threading.Timer(0.35, stop).start()
        return HELLO.after(0.02 * seen.number)

    found = ask(tmp_path, reply, 10, concurrency=10)
    assert isinstance(found.fault, Stopped) and found.fault.code == 130
    assert found.states == ["answered"] * 10 and "10 answers are stored" in str(found.fault)


# --- several servers -----------------------------------------------------------------------------------------------


def test_servers_share_the_work_by_what_they_take(tmp_path):
    with serve(lambda seen: HELLO.after(0.02)) as slow:
        found = ask(tmp_path, lambda seen: HELLO.after(0.002), 0)
        with serve(lambda seen: HELLO.after(0.002)) as fast:
            found = ask(tmp_path, None, 200, endpoint=(slow.base, fast.base), concurrency=4)
            assert found.states == ["answered"] * 200
            assert slow.n_seen + fast.n_seen == 200 and fast.n_seen > slow.n_seen > 0


def test_a_server_that_answers_nonsense_does_not_swallow_the_run(tmp_path):
    with serve(lambda seen: Reply(b"<html>busy</html>")) as odd, serve(lambda seen: HELLO.after(0.02)) as well:
        found = ask(tmp_path, None, 100, endpoint=(odd.base, well.base), concurrency=4)
    assert found.states == ["answered"] * 100 and odd.n_seen < 100


def test_a_server_that_is_down_costs_nothing_and_is_used_when_it_is_back(tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    seen_there = []
    stop = threading.Event()

    def come_back():
        time.sleep(0.6)
        with serve(lambda seen: seen_there.append(seen.text) or HELLO.after(0.01), port=port):
            stop.wait(30)

    back = threading.Thread(target=come_back)
    back.start()
    try:
        with serve(lambda seen: HELLO.after(0.05)) as steady:
            found = ask(tmp_path, None, 150, endpoint=(f"http://127.0.0.1:{port}/v1", steady.base), concurrency=4)
    finally:
        stop.set()
        back.join()
    assert found.states == ["answered"] * 150
    assert len(seen_there) > 10


def test_all_servers_down_is_waited_out(tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    stop = threading.Event()

    def come_back():
        time.sleep(1)
        with serve(lambda seen: HELLO, port=port):
            stop.wait(30)

    back = threading.Thread(target=come_back)
    back.start()
    try:
        found = ask(tmp_path, None, 40, endpoint=(f"http://127.0.0.1:{port}/v1",), max_attempts=9)
    finally:
        stop.set()
        back.join()
    assert found.states == ["answered"] * 40


# --- secrets -------------------------------------------------------------------------------------------------------

KEY = "sk-Zq7wXv9Kf3Lm5Np8Rt2Yb4"


@pytest.fixture
def key(monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", KEY)


def parts(key):
    """The key, and every twelve letters of it."""
    return {key[i : i + 12] for i in range(len(key) - 11)}


def test_the_key_reaches_its_server_and_nothing_that_is_written(tmp_path, key, caplog, capfd):
    caplog.set_level(logging.DEBUG)
    replies = [
        *PASSING.values(),
        *UNUSABLE.values(),
        Reply.error(400, f"you sent {KEY}"),
        Reply.error(500, f"Bearer {KEY}"),
    ]
    found = ask(tmp_path, lambda seen: replies[seen.number % len(replies)], 40, max_attempts=2)
    assert {headers["authorization"] for headers in found.headers} == {f"Bearer {KEY}"}
    stopped = ask(tmp_path, lambda seen: Reply.error(401, f"Incorrect API key provided: {KEY}"), 41)
    assert "Incorrect API key provided: ***" in str(stopped.fault)
    written = b"".join(path.read_bytes() for path in tmp_path.rglob("*") if path.is_file())
    told = "".join(capfd.readouterr()) + caplog.text + str(stopped.fault) + repr(found.fault)
    assert len(written) > 10_000
    assert not [part for part in parts(KEY) if part.encode() in written or part in told]


def test_each_key_goes_to_its_own_server(tmp_path, monkeypatch):
    monkeypatch.setenv("FIRST_KEY", "first")
    monkeypatch.setenv("SECOND_KEY", "second")
    told = collections.defaultdict(set)
    with (
        serve(lambda seen: told["a"].add(seen.headers["authorization"]) or HELLO) as a,
        serve(lambda seen: told["b"].add(seen.headers["authorization"]) or HELLO) as b,
    ):
        ask(tmp_path, None, 20, endpoint=(a.base, b.base), key_env=("FIRST_KEY", "SECOND_KEY"))
    assert told == {"a": {"Bearer first"}, "b": {"Bearer second"}}


def test_one_key_is_not_given_to_several_servers(tmp_path, key):
    with serve(lambda seen: HELLO) as a, serve(lambda seen: HELLO) as b:
        bases = a.base, b.base
        assert "would get the same key" in str(ask(tmp_path, None, 1, endpoint=bases).fault)
        assert ask(tmp_path, None, 3, endpoint=bases, key_env=("OPENAI_API_KEY", "none")).states == ["answered"] * 3


def test_a_key_in_the_place_of_a_variable_is_not_shown(tmp_path):
    fault = ask(tmp_path, None, 1, key_env=("sk-proj-abcdef",)).fault
    assert isinstance(fault, InputError) and "sk-proj" not in str(fault)


def test_a_server_that_repeats_the_key_in_its_answer_puts_it_nowhere(tmp_path, key):
    found = ask(tmp_path, lambda seen: Reply.chat(f"you sent {seen.headers['authorization']}"), 2)
    assert found.states == ["refused"] * 2 and b"contains the API key" in found.rows[0].answer
    assert KEY.encode() not in (tmp_path / "store.sqlite").read_bytes()
    found = ask(tmp_path / "b", lambda seen: Reply.json({"error": {"message": f"bad {KEY}"}}), 1, max_attempts=1)
    assert KEY not in str(found.rows)


@pytest.mark.parametrize("word", ["test", "1", "sk-no-key-required"])
def test_what_a_model_says_is_stored_as_it_was_said_whatever_the_key_is(tmp_path, monkeypatch, word):
    monkeypatch.setenv("OPENAI_API_KEY", word)
    found = ask(tmp_path, lambda seen: Reply.chat(f"a {word} of {seen.headers['authorization']}"), 1)
    assert found.states == ["answered"] and f"a {word} of Bearer {word}".encode() in found.rows[0].answer
    found = ask(tmp_path / "b", lambda seen: Reply.json({"error": {"message": f"bad {word}!"}}), 1, max_attempts=1)
    assert found.rows[0].answer == b"an error with status 200: bad ***!"


def test_a_packed_401_stops_the_run_all_the_same(tmp_path):
    packed = Reply(gzip.compress(b"no"), 401, {"Content-Encoding": "gzip"})
    assert "answers 401" in str(ask(tmp_path, lambda seen: packed, 1).fault)


def test_a_named_variable_has_to_be_set(tmp_path):
    with pytest.raises(InputError, match="NO_SUCH_KEY"):
        raise ask(tmp_path, None, 1, key_env=("NO_SUCH_KEY",)).fault


def test_without_a_key_none_is_sent(tmp_path, monkeypatch):
    (tmp_path / "netrc").write_text("machine 127.0.0.1 login me password secret\n")
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    assert "authorization" not in ask(tmp_path, lambda seen: HELLO, 1).headers[0]


def test_the_environments_proxy_is_not_used_unless_asked_for(tmp_path, monkeypatch, capsys):
    through = []
    with serve(lambda seen: through.append(seen.path) or HELLO) as proxy:
        for name in ("http_proxy", "HTTP_PROXY", "ALL_PROXY"):
            monkeypatch.setenv(name, proxy.base.removesuffix("/v1"))
        monkeypatch.delenv("NO_PROXY", raising=False)
        monkeypatch.delenv("no_proxy", raising=False)
        assert ask(tmp_path, lambda seen: HELLO, 1).states == ["answered"] and not through
        ask(tmp_path, lambda seen: HELLO, 2, proxy=True)
    assert len(through) == 1 and "proxy" in capsys.readouterr().err


# --- TLS -----------------------------------------------------------------------------------------------------------


def test_a_certificate_is_verified(tmp_path):
    if shutil.which("openssl") is None:
        pytest.skip("openssl is not installed")
    pem = tmp_path / "both.pem"
    made = [
        "openssl",
        "req",
        "-x509",
        "-newkey",
        "ec",
        "-pkeyopt",
        "ec_paramgen_curve:prime256v1",
        "-nodes",
        "-days",
        "2",
    ]
    made += ["-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1"]
    subprocess.run([*made, "-keyout", tmp_path / "key", "-out", tmp_path / "cert"], check=True, capture_output=True)
    pem.write_bytes((tmp_path / "key").read_bytes() + (tmp_path / "cert").read_bytes())
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(pem)
    with serve(lambda seen: HELLO, tls=context) as server:
        base = server.base.replace("http:", "https:")
        found = ask(tmp_path / "a", None, 1, endpoint=(base,))
        assert isinstance(found.fault, RunError) and "certificate cannot be verified" in str(found.fault)
        assert ask(tmp_path / "b", None, 1, endpoint=(base,), ca_file=str(tmp_path / "cert")).states == ["answered"]


def test_a_ca_file_that_is_none_is_said(tmp_path):
    (tmp_path / "ca").write_text("nothing")
    with pytest.raises(InputError, match="--ca-file"):
        raise ask(tmp_path, lambda seen: HELLO, 1, ca_file=str(tmp_path / "ca")).fault


def test_the_system_has_not_been_left_with_core_files(tmp_path):
    import resource

    ask(tmp_path, lambda seen: HELLO, 1)
    assert resource.getrlimit(resource.RLIMIT_CORE)[0] == 0 and os.getpid()


# --- when a run ends, by itself ------------------------------------------------------------------------------------


def limits(spent=0.0, **settings):
    return RunLimits(ClientConfig(store="s", endpoint=("http://127.0.0.1:9/v1",), model="m", **settings), spent)


def test_a_cap_on_requests_is_reached_at_its_number():
    found = limits(max_requests=3)
    assert found.allows(0.0, 2, 0)
    with pytest.raises(Stopped, match=r"^--max-requests: 3 requests have been sent$"):
        found.allows(0.0, 3, 9)


def test_a_cap_on_money_counts_what_is_spent_and_what_is_on_its_way():
    found = limits(0.5, max_cost=1.0, price_in=1.0)
    assert found.allows(0.5, 0, 0) and not found.allows(0.75, 0, 1)
    found.reserve(0.25)
    assert found.allows(0.25, 0, 1) and not found.allows(0.5, 0, 1)
    found.answered(0.125)
    found.release(0.25)
    assert found.allows(0.375, 0, 0)
    found.spend(0.375)
    with pytest.raises(Stopped, match=r"^--max-cost: \$1\.0000 of \$1\.0000 are spent$"):
        found.allows(0.125, 0, 0)


def test_patience_is_short_where_no_server_was_ever_reached(monkeypatch):
    now = [1000.0]
    monkeypatch.setattr(run_limits.time, "monotonic", lambda: now[0])

    def ended_after(seconds, prepare, *, has_known=False):
        now[0] = 1000.0
        found = limits(patience=600.0)
        prepare(found)
        now[0] += seconds
        try:
            found.check_patience(has_known=has_known)
        except RunError as fault:
            return str(fault)
        return None

    def never_reached(found):
        found.failed("refused", is_reached=False)

    def reached(found):
        found.failed("503", is_reached=True)
        found.failed("refused", is_reached=False)

    def answered_later(found):
        found.failed("refused", is_reached=False)
        now[0] += 500
        found.answered(0.0)
        found.failed("refused", is_reached=False)

    assert ended_after(59, never_reached) is None
    assert "no answer for 60 s (the last attempt: refused)" in ended_after(61, never_reached)
    assert ended_after(599, never_reached, has_known=True) is None
    assert ended_after(599, reached) is None and "600 s" in ended_after(601, reached)
    assert ended_after(599, answered_later) is None and "600 s" in ended_after(601, answered_later)
    assert ended_after(9999, lambda found: found.answered(0.0)) is None  # nothing has failed
