"""What servers say, what becomes of the row, what it cost: the recipes' own command against each way to answer.

Each row of the table in docs/reliability.md on the client has its line here. Most run in this process, where nothing
else is imported again; two as a process of its own.
"""

import collections
import gzip
import json
from types import SimpleNamespace

import pytest

from revise.__main__ import main
from revise.loopback import Reply, serve
from system import RunError
from tests.revise.commands import command, prompts, read_rows, revise, run, write_rows


def here(folder, base, *more, name="clair", rows=None):
    """The command in this process: its exit code. What it says is captured by the test."""
    try:
        main(command(name, folder, base, *more, rows=rows)[3:])
    except RunError as fault:
        print(f"error: {fault}")
        return 1
    return 0


def outcome(folder):
    """(pairs, reasons of what was rejected)."""
    if not (folder / "pairs.jsonl").exists():
        return 0, collections.Counter()
    reasons = (row["reason"] for row in read_rows(folder / "pairs.rejected.jsonl"))
    return len(read_rows(folder / "pairs.jsonl")), collections.Counter(r.partition(":")[0] for r in reasons)


def after(n, reply):
    """A good reviser for n requests, then another reply."""
    return lambda seen: revise(seen) if seen.number < n else reply


def below_v1(reply):
    return lambda seen: revise(seen) if seen.path.startswith("/v1/") else reply


def wants(name):
    """A server that looks for a header."""
    fault = Reply.error(401, "Access denied due to invalid subscription key or wrong API endpoint.")
    return lambda seen: revise(seen) if name in seen.headers else fault


def gpt5(seen):
    if "max_tokens" in seen.body:
        return Reply.error(400, "'max_tokens' is not supported. Use 'max_completion_tokens' instead.")
    if seen.body.get("temperature", 1) != 1:
        return Reply.error(400, "Unsupported value: 'temperature' does not support 0.7 with this model.")
    return Reply.error(400, "Unsupported parameter: 'top_p'.") if "top_p" in seen.body else revise(seen)


def without_empty_system(seen):
    is_empty = any(m["role"] == "system" and not m["content"] for m in seen.body["messages"])
    return Reply.error(400, "system: text content blocks must be non-empty") if is_empty else revise(seen)


def as_events(seen):
    text = json.loads(revise(seen).body)["choices"][0]["message"]["content"]
    events = [f"data: {json.dumps({'choices': [{'delta': {'content': word}}]})}\n\n" for word in text.splitlines(True)]
    return Reply("".join([*events, "data: [DONE]\n\n"]).encode(), headers={"Content-Type": "text/event-stream"})


def streams_only(seen):
    fault = Reply.error(400, "This model only support stream mode, please enable the stream parameter.")
    return as_events(seen) if seen.body.get("stream") else fault


def packed(seen):
    return Reply(gzip.compress(revise(seen).body), headers={"Content-Encoding": "gzip"})


def padded(seen):
    return Reply(b"\n         \n" * 40 + revise(seen).body)


FLAGGED = Reply.json(
    {"error": {"code": 403, "message": "your input was flagged", "metadata": {"reasons": ["violence"]}}}, status=403
)
LONG = "'max_tokens' is too large: 4096. This model's maximum context length is 4096 tokens."
ROOT = "/v1"  # what is taken off the address

CASES = [  # what is said: the server, flags, exit code, pairs of 12, requests, words
    ("an account that runs dry: credit balance", after(5, Reply.error(400, "Your credit balance is too low")), [],
     1, 5, None, "the account is out of credit: top it up, and the same command continues"),
    ("budget_exceeded, 429", after(5, Reply.json({"error": {"type": "budget_exceeded"}}, status=429)), [],
     1, 5, None, "the account is out of credit"),
    ("402 in an answer with 200", lambda seen: Reply.json({"error": {"code": 402, "message": "Insufficient credits"}}),
     [], 1, 0, 1, "answers 402: Insufficient credits"),
    ("a flagged prompt", lambda seen: FLAGGED if "bird 0." in seen.text else revise(seen), [],
     0, 11, 12, "refused by the server"),
    ("a content filter", lambda seen: Reply.error(400, "x", code="content_filter") if seen.number % 3 == 0
     else revise(seen), [], 0, 8, 12, "4  refused by the server"),
    ("no /v1, 404", below_v1(Reply.error(404, "Not Found")), [ROOT], 1, 0, 1, "seems to lack /v1: give --endpoint"),
    ("no /v1, 405", below_v1(Reply.error(405, "Method Not Allowed")), [ROOT], 1, 0, 1, "seems to lack /v1"),
    ("no /v1, 200", below_v1(Reply.json({"error": "Unexpected endpoint or method. (POST /chat/completions)"})), [ROOT],
     1, 0, 1, "seems to lack /v1"),
    ("another header for the key", wants("api-key"), [], 1, 0, 1, "--header 'api-key: $VARIABLE'"),
    ("... which is sent", wants("api-key"), ["--header", "api-key: $MY_SECRET"], 0, 12, 12, "12 pairs"),
    ("gpt-5: temperature", gpt5, [], 1, 0, 2, "--temperature 1"),
    ("gpt-5: top_p", gpt5, ["--temperature", 1], 1, 0, 2, '--extra \'{"top_p": null}\''),
    ("gpt-5 as it wants", gpt5, ["--temperature", 1, "--extra", '{"top_p": null}'], 0, 12, 13, "wants max_completion"),
    ("no empty system message", without_empty_system, [], 1, 0, 1, "--no-empty-system"),
    ("... without one", without_empty_system, ["--no-empty-system"], 0, 12, 12, "12 pairs"),
    ("events unasked", as_events, [], 0, 12, 12, "12 pairs"),
    ("streams only", streams_only, [], 1, 0, 1, "--stream"),
    ("... which are asked for", streams_only, ["--stream"], 0, 12, 12, "12 pairs"),
    ("gzip", packed, [], 0, 12, 12, "12 pairs"),
    ("blanks before the answer", padded, [], 0, 12, 12, "12 pairs"),
    ("a context that is too short", lambda seen: Reply.error(400, LONG), [], 1, 0, 8, "lower --max-tokens"),
    ("another form", lambda seen: Reply.chat(f"Better: heron {seen.number}"), [], 1, 0, 12,
     "--ask-again asks for new ones"),
    ("... and going on", lambda seen: Reply.chat(f"Better: heron {seen.number}"), ["--go-on"], 1, 0, 12,
     "no pair was made of 12 prompts (no marker)"),
    ("one answer to everything", lambda seen: Reply.chat("{teacher_reasoning}: x\n{corrected_student_solution}: The "
     "heron is bird number 1, I say."), [], 1, 0, 12, "got the same answer"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("reply", "flags", "code", "n_pairs", "n_sent", "said"), [c[1:] for c in CASES], ids=[c[0] for c in CASES]
)
def test_what_servers_say(tmp_path, monkeypatch, capsys, reply, flags, code, n_pairs, n_sent, said):
    monkeypatch.setenv("MY_SECRET", "abcdefghijkl")
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    prompts(tmp_path / "prompts.jsonl", 12)
    with serve(reply) as server:
        base = server.base.removesuffix(ROOT) if ROOT in flags else server.base
        assert here(tmp_path, base, *(f for f in flags if f != ROOT)) == code
        assert n_sent in (server.n_seen, None)
    told = "".join(capsys.readouterr())
    assert said in told and "abcdefghijkl" not in told
    found, reasons = outcome(tmp_path)
    assert found == n_pairs
    if code:
        assert not reasons["refused by the server"]
    with serve(revise) as server:  # mended, the rest is asked for, and nothing has been lost
        assert here(tmp_path, server.base, "--ask-again") == 0
        assert outcome(tmp_path) == (12, {})


def test_sixteen_answers_are_paid_for_and_no_more_and_are_written_with_their_reasons(tmp_path):
    """As a process of its own."""
    prompts(tmp_path / "prompts.jsonl", 60)
    with serve(lambda seen: Reply.chat("Here is a better version.")) as server:
        found = run(command("clair", tmp_path, server.base))
        assert (found.returncode, server.n_seen) == (1, 16)
    assert "error: the first 16 answers are unusable (no marker: 'Here is a better version.')" in found.stderr
    assert outcome(tmp_path) == (0, {"no marker": 16, "not asked yet": 44})
    with serve(revise) as server:
        assert run(command("clair", tmp_path, server.base)).returncode == 0
        assert server.n_seen == 44 and outcome(tmp_path) == (44, {"no marker": 16})


def test_one_answer_to_everything_makes_no_pair_until_somebody_says_so(tmp_path):
    prompts(tmp_path / "prompts.jsonl", 20)
    cached = revise(SimpleNamespace(text="{student_solution}: The otter is bird number 1, I say.\n\n-----"))
    with serve(lambda seen: cached) as server:
        assert here(tmp_path, server.base) == 1 and server.n_seen == 16
        assert outcome(tmp_path) == (0, {"one answer to 16 different questions": 16, "not asked yet": 4})
    with serve(revise) as server:  # mended: the same command keeps out what was said before
        assert here(tmp_path, server.base) == 0 and server.n_seen == 4
        assert outcome(tmp_path) == (4, {"one answer to 16 different questions": 16})
        assert here(tmp_path, server.base, "--go-on") == 0 and server.n_seen == 4
        assert outcome(tmp_path) == (20, {})
        assert here(tmp_path, server.base, "--ask-again") == 0 and server.n_seen == 20
        assert here(tmp_path, server.base) == 0 and server.n_seen == 20
    assert [row["chosen"][1]["content"] for row in read_rows(tmp_path / "pairs.jsonl")] == [
        f"The heron is bird number {i}, I think." for i in range(20)
    ]


def test_a_name_that_was_learnt_is_in_the_provenance(tmp_path):
    prompts(tmp_path / "prompts.jsonl", 2)
    more = ["--temperature", 1, "--extra", '{"top_p": null}']
    with serve(gpt5) as server:
        assert here(tmp_path, server.base, *more) == 0
        assert here(tmp_path, server.base, *more) == 0 and server.n_seen == 3
    (answer,) = read_rows(tmp_path / "pairs.jsonl")[1]["provenance"]["answers"]
    assert answer["sent_as"] == {"max_tokens": "max_completion_tokens"}
    with serve(revise) as server:
        assert here(tmp_path, server.base, *more, "--store", tmp_path / "b.sqlite") == 0
    assert "sent_as" not in read_rows(tmp_path / "pairs.jsonl")[1]["provenance"]["answers"][0]


# --- the target's server -------------------------------------------------------------------------------------------


def bare(folder, n):
    write_rows(folder / "prompts.jsonl", [{"prompt": f"Name bird {i}."} for i in range(n)])


def test_a_targets_server_is_mended_by_the_targets_flags(tmp_path, monkeypatch, capsys):
    bare(tmp_path, 6)
    monkeypatch.setenv("MY_SECRET", "abcdefghijkl")
    seen_there = []

    def own(seen):
        seen_there.append(seen)
        if "top_p" in seen.body:
            return Reply.error(400, "Unsupported parameter: 'top_p' is not supported.")
        return Reply.chat(f"otter {seen.text}")

    with serve(own) as target, serve(revise) as server:
        more = ["--target-endpoint", target.base, "--target-name", "llama"]
        assert here(tmp_path, server.base, *more) == 1 and server.n_seen == 0
        assert "--target-extra '{\"top_p\": null}'" in "".join(capsys.readouterr())
        more += ["--target-extra", '{"top_p": null}', "--target-header", "api-key: $MY_SECRET"]
        assert here(tmp_path, server.base, *more, "--header", "x-title: mine") == 0
    assert outcome(tmp_path) == (6, {})
    assert seen_there[-1].headers["api-key"] == "abcdefghijkl" and "x-title" not in seen_there[-1].headers
    assert read_rows(tmp_path / "pairs.jsonl")[0]["provenance"]["settings"]["target"]["extra"] == {"top_p": None}


def test_an_early_end_of_the_targets_answers_writes_what_there_is(tmp_path, capsys):
    bare(tmp_path, 30)
    with serve(lambda seen: Reply.chat("the same otter")) as target, serve(revise) as server:
        more = ["--target-endpoint", target.base, "--target-name", "llama"]
        assert here(tmp_path, server.base, *more) == 1
        assert (target.n_seen, server.n_seen) == (16, 0)
    assert "16 different questions got the same answer" in "".join(capsys.readouterr())
    assert outcome(tmp_path) == (
        0,
        {"own answer one answer to 16 different questions": 16, "own answer not asked yet": 14},
    )


@pytest.mark.parametrize("flag", [["--target-header", "a: b"], ["--target-extra", "{}"]])
def test_a_targets_flags_need_its_server(tmp_path, flag):
    prompts(tmp_path / "prompts.jsonl", 1)
    found = run(command("clair", tmp_path, "http://127.0.0.1:9/v1", *flag))
    assert found.returncode == 2 and f"{flag[0]}: is for --target-endpoint" in found.stderr
