"""Look before you leap: what the client sends before it knows that answers are of use, and when it stops."""

import gzip
import json

import pytest

from revise.client import Request, endpoints, scheduler
from revise.client.roles import JUDGE, PAIR_JUDGE, REVISER, SCORER, SERVED, TARGET
from revise.client.trial import Sameness, Trial, cause
from revise.loopback import Reply, serve
from system import InputError, RunError
from tests.revise.asks import ask, questions

HELLO = Reply.chat("hello")
EMPTY = Reply.chat(" ", usage=(10, 4096))


@pytest.fixture(autouse=True)
def short_waits(monkeypatch):
    monkeypatch.setattr(scheduler, "LONGEST_BACKOFF", 0.02)
    monkeypatch.setattr(endpoints, "LONGEST_PROBE_WAIT", 0.1)
    monkeypatch.setattr(endpoints, "LONGEST_REACHED_WAIT", 0.02)


def answer_to(seen):
    return Reply.chat(f"about {seen.text}")


def test_the_first_answer_is_waited_for_and_then_all_are_sent(tmp_path):
    n_now = []
    with serve(lambda seen: n_now.append(server.n_now) or answer_to(seen).after(0.5)) as server:
        found = ask(tmp_path, None, 20, endpoint=(server.base,))
    assert n_now[:2] == [1, 1] and max(n_now) > 16
    assert found.states == ["answered"] * 20 and found.tally.n_sent == 20


def test_sixteen_answers_of_no_use_end_the_run_and_no_more_were_paid_for(tmp_path):
    found = ask(tmp_path, lambda seen: EMPTY.after(0.02), 60)
    assert isinstance(found.fault, RunError) and "the first 16 answers are unusable (empty)" in str(found.fault)
    assert "--ask-again" in str(found.fault) and "--go-on" in str(found.fault) and "--extra" in str(found.fault)
    assert len(found.texts) == 16 and found.states.count("unusable") == 16
    assert ask(tmp_path, answer_to, 60).states.count("answered") == 44
    assert ask(tmp_path, answer_to, 60, ask_again=True).states == ["answered"] * 60


def test_one_usable_answer_among_them_opens_the_way(tmp_path):
    found = ask(tmp_path, lambda seen: HELLO if seen.number == 9 else EMPTY, 60)
    assert found.fault is None and found.states.count("unusable") == 59
    other = ask(tmp_path / "b", lambda seen: EMPTY, 60, go_on=True)
    assert other.fault is None and other.states == ["unusable"] * 60


def test_an_earlier_runs_answer_of_use_speaks_for_the_rest(tmp_path):
    assert ask(tmp_path, answer_to, 3).states == ["answered"] * 3
    assert ask(tmp_path, lambda seen: EMPTY, 30).states == ["answered"] * 3 + ["unusable"] * 27


def checked(n):
    return [q._replace(check=lambda answer: "no marker" if "hello" in answer.text else None) for q in questions(n)]


def test_answers_in_another_form_are_of_no_use_though_they_have_a_text(tmp_path):
    found = ask(tmp_path, lambda seen: HELLO, requests=checked(30), role=REVISER)
    assert "no marker: 'hello'" in str(found.fault) and "--template" in str(found.fault)
    assert len(found.texts) == 16 and found.states.count("unusable") == 16  # so that --ask-again asks anew
    few = ask(tmp_path / "b", lambda seen: HELLO, requests=checked(5), role=REVISER)
    assert "all 5 answers are unusable" in str(few.fault)
    one = ask(tmp_path / "c", lambda seen: HELLO, requests=checked(1), role=REVISER)
    assert str(one.fault).startswith("the only answer is unusable (")


@pytest.mark.slow
def test_one_answer_to_different_questions_ends_a_stage_that_makes_responses(tmp_path):
    found = ask(tmp_path, lambda seen: HELLO.after(0.01), 60, role=TARGET)
    assert "16 different questions got the same answer ('hello')" in str(found.fault)
    assert len(found.texts) == 16 and "--target-endpoint" in str(found.fault)
    assert ask(tmp_path / "b", lambda seen: HELLO, 60, role=SERVED).fault is None
    assert ask(tmp_path / "c", lambda seen: HELLO, 60, role=TARGET, go_on=True).fault is None
    assert "5 different questions" in str(ask(tmp_path / "d", lambda seen: HELLO, 5, role=TARGET).fault)
    assert ask(tmp_path / "e", lambda seen: HELLO, 4, role=TARGET).fault is None
    one = [Request(questions(1)[0].body, sample) for sample in range(30)]  # a question that is asked again and again
    assert ask(tmp_path / "f", lambda seen: HELLO, requests=one, role=TARGET).fault is None


def test_each_server_has_to_show_what_it_can(tmp_path):
    with serve(answer_to) as good, serve(lambda seen: Reply.error(400, "no such model")) as bad:
        found = ask(tmp_path, None, 200, endpoint=(bad.base, good.base), concurrency=4)
        assert bad.n_seen == 8 and f"{bad.base[:-3]} has refused the first 8 requests" in str(found.fault)
    assert found.states.count("refused") == 0
    with serve(lambda seen: answer_to(seen).after(0.01)) as good, serve(lambda seen: EMPTY) as bad:
        found = ask(tmp_path / "b", None, 400, endpoint=(bad.base, good.base), concurrency=4)
        assert bad.n_seen == 16 and f"the first 16 answers of {bad.base[:-3]} are" in str(found.fault)


# --- refusals ------------------------------------------------------------------------------------------------------


def test_a_refusal_of_what_stands_in_a_row_stays_that_rows_also_as_the_first(tmp_path):
    flagged = Reply.json({"error": {"code": 403, "message": "x", "metadata": {"reasons": ["violence"]}}}, status=403)
    filtered = Reply.error(400, "anything at all", code="content_filter")
    found = ask(tmp_path, lambda seen: [flagged, filtered][seen.number] if seen.number < 2 else HELLO, 40)
    assert found.fault is None and found.states == ["refused"] * 2 + ["answered"] * 38
    everything = ask(tmp_path / "b", lambda seen: filtered, 30)
    assert everything.fault is None and everything.states == ["refused"] * 30


def test_twenty_refusals_in_the_same_words_among_answers_end_the_run(tmp_path):
    def reply(seen):
        return answer_to(seen) if seen.number < 10 else Reply.error(400, f"request {seen.number}: plan has ended")

    found = ask(tmp_path, reply, 200, concurrency=1)
    assert "has refused 20 requests in a row, in the same words" in str(found.fault) and len(found.texts) == 30
    assert found.states == ["answered"] * 10 + [None] * 190
    assert ask(tmp_path, answer_to, 200).states == ["answered"] * 200
    gone_on = ask(tmp_path / "b", reply, 50, concurrency=1, go_on=True)
    assert gone_on.fault is None and gone_on.states == ["answered"] * 10 + ["refused"] * 40


def test_refusals_in_different_words_are_the_rows_own(tmp_path):
    def reply(seen):
        return answer_to(seen) if seen.number < 3 else Reply.error(400, "ab"[seen.number % 2] * 9)

    assert ask(tmp_path, reply, 60, concurrency=1).states == ["answered"] * 3 + ["refused"] * 57


def test_few_rows_that_are_all_refused_are_not_stored_either(tmp_path):
    found = ask(tmp_path, lambda seen: Reply.error(400, "no such parameter"), 3)
    assert "has refused everything (400: no such parameter)" in str(found.fault) and found.states == [None] * 3


@pytest.mark.parametrize("status", [200, 400, 402, 429])
def test_an_account_that_runs_dry_stores_no_refusal(tmp_path, status):
    dry = Reply.json({"error": {"message": "Your credit balance is too low"}}, status=status)
    found = ask(tmp_path, lambda seen: answer_to(seen) if seen.number < 10 else dry, 60)
    assert "the account is out of credit" in str(found.fault) and found.states.count("answered") == 10
    assert found.states.count(None) == 50
    assert ask(tmp_path, answer_to, 60).states == ["answered"] * 60


# --- names that are learnt -----------------------------------------------------------------------------------------


def capped(n):
    return [Request(q.body | {"max_tokens": 9, "temperature": 0.5}) for q in questions(n)]


def test_a_parameters_new_name_is_learnt_once_and_is_in_the_store(tmp_path, capsys):
    bodies = []

    def reply(seen):
        bodies.append(seen.body)
        if "max_tokens" in seen.body:
            return Reply.error(400, "'max_tokens' is not supported. Use 'max_completion_tokens' instead.")
        return answer_to(seen)

    found = ask(tmp_path, reply, requests=capped(20))
    assert found.states == ["answered"] * 20 and found.tally.n_sent == 21
    assert bodies[-1]["max_completion_tokens"] == 9 and json.loads(found.rows[3].request) == bodies[-1] | {
        "messages": capped(20)[3].body["messages"]
    }
    assert "wants max_completion_tokens instead of max_tokens" in capsys.readouterr().err
    assert not ask(tmp_path, reply, requests=capped(20)).texts  # the question is the same


def test_what_changes_the_question_is_not_changed(tmp_path):
    found = ask(tmp_path, lambda seen: Reply.error(400, "'temperature' does not support 0.5"), requests=capped(20))
    assert len(found.texts) == 1 and "--extra '{\"temperature\": null}'" in str(found.fault)
    assert found.states == [None] * 20


# --- headers, streams, the Responses API, packed answers -----------------------------------------------------------


def test_headers_are_sent_and_their_secrets_shown_nowhere(tmp_path, monkeypatch, capfd):
    monkeypatch.setenv("MY_SECRET", "abc")
    found = ask(
        tmp_path,
        lambda seen: Reply.error(400, f"you sent {seen.headers['api-key']}") if seen.number == 1 else HELLO,
        3,
        header=("api-key: $MY_SECRET", "x-title: mine $$ here"),
    )
    assert found.headers[0]["api-key"] == "abc" and found.headers[0]["x-title"] == "mine $$ here"
    assert [row.answer for row in found.rows if row.state == "refused"] == [b"400: you sent ***"]
    assert "abc" not in "".join(capfd.readouterr())


@pytest.mark.parametrize(
    ("header", "fault"),
    [
        ("api-key", "'NAME: VALUE'"),
        ("api-key: $NO_SUCH", "NO_SUCH"),
        ("Content-Type: text/plain", "Content-Type"),
        ("x:", "empty"),
        ("x: \u00e4", "x"),
        ("two words: x", "'NAME: VALUE'"),
    ],
)
def test_a_header_that_cannot_be_sent_is_said(tmp_path, header, fault):
    with pytest.raises(InputError, match=f"--header: .*{fault}"):
        ask(tmp_path, lambda seen: HELLO, 1, header=(header,))


def test_a_secret_header_is_not_given_to_several_servers(tmp_path, monkeypatch):
    monkeypatch.setenv("MY_SECRET", "abc")
    with serve(lambda seen: HELLO) as a, serve(lambda seen: HELLO) as b:
        found = ask(tmp_path, None, 1, endpoint=(a.base, b.base), header=("api-key: $MY_SECRET",))
        assert "--header: 2 servers would get a secret that is for one" in str(found.fault)
        assert ask(tmp_path, None, 3, endpoint=(a.base, b.base), header=("x-title: mine",)).fault is None


def sse(text):
    deltas = [{"choices": [{"delta": {"content": c}}]} for c in text]
    last = {"choices": [{"delta": {}, "finish_reason": "stop"}], "usage": {"prompt_tokens": 7, "completion_tokens": 3}}
    body = "".join(f"data: {json.dumps(c)}\n\n" for c in [*deltas, last]) + "data: [DONE]\n\n"
    return Reply(body.encode(), headers={"Content-Type": "text/event-stream"})


@pytest.mark.parametrize("is_asked", [True, False])
def test_events_are_read_asked_for_or_not(tmp_path, is_asked):
    bodies = []
    found = ask(tmp_path, lambda seen: bodies.append(seen.body) or sse("hello"), 3, stream=is_asked)
    assert found.states == ["answered"] * 3 and (found.rows[0].tokens_in, found.rows[0].tokens_out) == (7, 3)
    assert json.loads(found.rows[0].answer)["choices"][0]["message"]["content"] == "hello"
    assert ("stream" in bodies[0], "stream_options" in bodies[0]) == (is_asked, is_asked)


def test_a_server_without_usage_in_streams_is_asked_without(tmp_path):
    def reply(seen):
        return Reply.error(400, "unknown field stream_options") if "stream_options" in seen.body else sse("hello")

    found = ask(tmp_path, reply, 5, stream=True)
    assert found.states == ["answered"] * 5 and found.tally.n_sent == 6


def test_the_responses_api_is_asked_where_there_is_no_chat(tmp_path):
    def reply(seen):
        if not seen.path.endswith("/responses"):
            return Reply.error(404, "This model is only supported in v1/responses and not in v1/chat/completions.")
        message = {"type": "message", "content": [{"type": "output_text", "text": seen.body["input"][0]["content"]}]}
        return Reply.json(
            {"status": "completed", "output": [message], "usage": {"input_tokens": 7, "output_tokens": 3}}
        )

    with serve(reply) as server:
        chat = ask(tmp_path, None, 5, endpoint=(server.base,))
        assert "--api responses" in str(chat.fault) and chat.states == [None] * 5
        found = ask(tmp_path, None, 5, endpoint=(server.base,), api="responses")
    assert found.states == ["answered"] * 5 and found.rows[0].tokens_out == 3
    assert json.loads(found.rows[2].answer)["choices"][0]["message"]["content"] == "question 2"


def test_a_packed_answer_is_unpacked_up_to_its_bound(tmp_path):
    packed = {"Content-Encoding": "gzip", "Content-Type": "application/json"}
    found = ask(tmp_path, lambda seen: Reply(gzip.compress(HELLO.body), headers=packed), 1)
    assert found.rows[0].answer == HELLO.body and len(found.texts) == 1
    bomb = Reply(gzip.compress(b"x" * 10**7), headers=packed)
    assert len(bomb.body) < 20_000
    found = ask(tmp_path / "b", lambda seen: bomb, 1)
    assert found.states == ["unusable"] and found.rows[0].answer == b"an answer of more than 8 MB"


# --- money and time ------------------------------------------------------------------------------------------------

PRICES = {"price_in": 10.0, "price_out": 30.0}


@pytest.mark.parametrize(
    ("usage", "dollars"),
    [
        ({"prompt_tokens": 100, "completion_tokens": 50}, (100 * 10 + 50 * 30) / 1e6),
        ({"prompt_tokens": 100, "completion_tokens": 50, "total_tokens": 150}, (100 * 10 + 50 * 30) / 1e6),
        ({"prompt_tokens": 100, "completion_tokens": 50, "total_tokens": 5150}, (100 * 10 + 5050 * 30) / 1e6),
        ({"prompt_tokens": 100, "completion_tokens": 50, "total_tokens": 120}, (100 * 10 + 50 * 30) / 1e6),
        ({"prompt_tokens": 100, "completion_tokens": 50, "cost": 0.125}, 0.125),
    ],
)
def test_what_an_answer_cost_is_what_was_made_or_what_the_server_says(tmp_path, usage, dollars):
    answer = {"choices": [{"message": {"content": "x"}, "finish_reason": "stop"}], "usage": usage}
    found = ask(tmp_path, lambda seen: Reply.json(answer), 1, **PRICES)
    assert found.rows[0].dollars == pytest.approx(dollars)


def test_first_attempts_that_time_out_end_the_run_and_count_as_paid(tmp_path):
    requests = [Request(q.body | {"max_tokens": 1000}) for q in questions(9)]
    found = ask(tmp_path, lambda seen: HELLO.after(3), requests=requests, read_timeout=0.2, **PRICES)
    assert "--read-timeout" in str(found.fault) and len(found.texts) == 2
    bound = 2 * (requests[0].tokens[0] * 10 + 1000 * 30) / 1e6
    assert sum(row.dollars for row in found.rows if row) == pytest.approx(bound)
    again = ask(tmp_path, lambda seen: HELLO, requests=requests, max_cost=bound / 2, **PRICES)
    assert "--max-cost" in str(again.fault) and not again.texts


def test_a_row_that_times_out_among_answers_is_asked_twice(tmp_path):
    def reply(seen):
        return HELLO.after(3) if seen.text == "question 5" else answer_to(seen)

    found = ask(tmp_path, reply, 9, read_timeout=0.3)
    assert found.texts.count("question 5") == 2 and found.states.count("answered") == 8
    assert found.rows[5].answer == b"no byte within 0.3 s (--read-timeout)"


def test_a_server_where_many_time_out_while_others_are_answered_is_sent_half_as_many(capsys):
    endpoint = endpoints.Endpoint("http://127.0.0.1:9/v1", None, 8)
    began = -1.0  # all of them before the answer
    endpoint.answered()
    assert not endpoint.timed_out("no byte", began) and endpoint.most == 8  # one alone is that row's own
    assert endpoint.timed_out("no byte", began) and endpoint.most == 4
    assert "gets 4 at once from now on" in capsys.readouterr().err
    silent = endpoints.Endpoint("http://127.0.0.1:9/v1", None, 8)
    assert not any(silent.timed_out("no byte", 0.0) for _ in range(8)) and silent.most == 8


def test_prompts_that_the_server_cuts_are_said(tmp_path, capsys):
    long = [
        Request({"model": "m", "messages": [{"role": "user", "content": f"{i} " + "word " * 2400}]}) for i in range(3)
    ]
    ask(tmp_path, lambda seen: Reply.chat("x", usage=(2050, 5)), requests=long)
    assert "the server cut 3 prompts: of one with 2,401 words it read 2,050 tokens" in capsys.readouterr().err
    ask(tmp_path / "b", lambda seen: Reply.chat("x", usage=(3100, 5)), requests=long)
    assert "cut" not in capsys.readouterr().err


# --- the rules by themselves ---------------------------------------------------------------------------------------


def test_one_then_sixteen_then_all():
    trial = Trial()
    assert trial.room == 1  # nothing has come back yet
    for n in range(15):
        trial.answered("empty", " ")
        assert trial.room == 15 - n and not trial.has_failed
    trial.answered("no marker", "  Better: " + "x" * 200)
    assert trial.room == 0 and trial.has_failed
    assert trial.why == "no marker" and trial.said == ("Better: " + "x" * 200)[:160]  # the last one's
    trial.answered(None, "hello")
    assert trial.room == float("inf") and not trial.has_failed


def test_refusals_are_the_rows_fault_once_an_answer_comes():
    trial = Trial()
    assert (
        trial.is_refused("a", "400 x") == trial.is_refused("b", "400 y") == []
    )  # whatever their words: nothing is read
    assert trial.answered(None, "hello") == ["a", "b"] and trial.refused == []
    assert trial.is_refused("c", "400 x") == []
    assert trial.is_refused("d", "400 x") == [] and trial.is_refused("e", "400 y") == ["c", "d"]
    assert trial.answered(None, "hello") == ["e"]
    assert trial.is_refused("f", "400 y") == [] and trial.refused == ["f"]


@pytest.mark.parametrize(("is_read", "most"), [(False, 8), (True, 20)])
def test_so_many_refusals_in_a_row_are_no_rows_fault(is_read, most):
    trial = Trial(is_read=is_read)
    for n in range(most):
        assert not trial.is_refusing
        trial.is_refused(n, "400 x")
    assert trial.is_refusing and len(trial.refused) == most


def test_one_other_answer_ends_the_doubt():
    same = Sameness()
    for n in range(16):
        assert not same.is_found(16)
        same.add(str(n).encode(), "hello")
    assert same.is_found(16)
    same.add(b"x", "other")
    assert not same.is_found(16) and not same.is_open


@pytest.mark.parametrize(
    ("why", "mend"),
    [
        ("truncated: the thoughts took all 50 tokens", "think less, or raise {max_tokens}"),
        ("truncated", "raise {max_tokens}"),
        ("no answer behind the thoughts", "--reasoning-parser"),
        ("null content", "reasoning parser"),
        ("empty", "{max_tokens}"),
        ("no marker", "another {model}"),
        ("two solutions", "another {model}"),
        ("no reasoning before it", "another {model}"),
        ("no choice", "another {model}"),
        ("no choices", "the server's log"),
        ("a choice without a message", "the server's log"),
        ("both chosen", "another {model}"),
        ("no grade", "another {model}"),
        ("two grades", "another {model}"),
        ("grade out of range", "another {model}"),
        ("unknown finish reason: 'x'; --accept-finish-reason x accepts it", "--accept-finish-reason"),
        ("NUL or U+FFFD in it", "tokenizer"),
        ("control tokens: [INST]", "chat template"),
        ("thoughts that cannot be told from the answer: </think> stands within a line", "--reasoning-parser"),
        ("a tool call", "tools"),
        ("broken off by the server", "the server's log"),
        ("refused", "another {model}"),
        ("an answer of more than 8 MB", "--max-answer-mb"),
    ],
)
def test_each_way_of_being_of_no_use_has_its_cause(why, mend):
    said = cause(why)
    assert mend in said and said.format(**REVISER._asdict())


@pytest.mark.parametrize(
    ("role", "names"),
    [
        (SERVED, ("--endpoint", "--model", "--key-env", "--header", "--extra", "--api")),
        (REVISER, ("--endpoint", "--model", "--key-env", "--header", "--extra", "--api", "--max-tokens")),
        (TARGET, ("--target-endpoint", "--target-name", "--target-key-env", "--target-header", "--target-extra",
                  "--target-api", "--target-max-tokens", "--target-temperature")),
        (JUDGE, ("--judge-endpoint", "--judge", "--judge-key-env", "--judge-header", "--judge-extra", "--judge-api")),
    ],
)  # fmt: skip
def test_a_roles_flags_are_its_own(role, names):
    assert {*names} <= {*role}
    assert [r.makes_responses for r in (SERVED, REVISER, PAIR_JUDGE, SCORER, TARGET, JUDGE)] == [
        False, True, False, False, True, False
    ]  # fmt: skip


def test_a_judge_may_say_the_same_of_every_pair(tmp_path):
    for name, role in {"pairs": PAIR_JUDGE, "scores": SCORER, "benchmark": JUDGE}.items():
        found = ask(tmp_path / name, lambda seen: HELLO, 30, role=role)
        assert found.fault is None and found.states == ["answered"] * 30


def test_an_earlier_answer_of_use_speaks_for_few_and_for_refusals(tmp_path):
    assert ask(tmp_path, answer_to, 1, role=TARGET).states == ["answered"]
    found = ask(tmp_path, lambda seen: HELLO, 9, role=TARGET)
    assert found.fault is None and found.states == ["answered"] * 9
    more = questions(12)[9:]
    refused = ask(tmp_path, lambda seen: Reply.error(400, "no"), requests=[*questions(9), *more], role=TARGET)
    assert refused.fault is None and refused.states[9:] == ["refused"] * 3


@pytest.mark.parametrize(("n_tokens", "is_cut"), [(744, False), (743, True)])
def test_a_prompt_was_cut_where_it_has_fewer_tokens_than_words_by_more_than_256(tmp_path, capsys, n_tokens, is_cut):
    prompt = [{"role": "system", "content": "word " * 400}, {"role": "user", "content": "word " * 600}]
    ask(tmp_path, lambda seen: Reply.chat("x", usage=(n_tokens, 5)), requests=[Request({"messages": prompt})])
    assert ("the server cut 1 prompts" in capsys.readouterr().err) == is_cut
