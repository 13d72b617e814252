"""OpenAI's batch files: written, answered elsewhere, read back into the same store."""

import json

import pytest

from revise.client import ClientConfig, Request, batch, open_store
from revise.loopback import Reply, Seen, serve
from tests.revise.commands import command, prompts, read_rows, revise, run, write_rows

N = 12


def write_batch(folder, *more):
    """The lines of the batch file that the real command writes; nothing is sent."""
    prompts(folder / "prompts.jsonl", N)
    found = run(command("clair", folder, None, "--batch-write", folder / "batch.jsonl", *more))
    assert found.returncode == 0, found.stderr
    return read_rows(folder / "batch.jsonl")


def answer(line, **more):
    """A line of the output file, as the API writes it."""
    body = json.loads(revise(Seen(0, "", {}, line["body"])).body)
    response = {"status_code": 200, "request_id": "r", "body": body}
    return {"id": "b", "custom_id": line["custom_id"], "response": response, "error": None} | more


def read_back(folder, lines, *more):
    write_rows(folder / "answers.jsonl", lines)
    return run(command("clair", folder, None, "--batch-read", folder / "answers.jsonl", *more))


def test_a_batch_file_is_in_the_apis_form(tmp_path):
    lines = write_batch(tmp_path)
    assert len(lines) == N and len({line["custom_id"] for line in lines}) == N
    assert {(line["method"], line["url"]) for line in lines} == {("POST", "/v1/chat/completions")}
    assert all(len(line["custom_id"]) == 64 for line in lines)  # the API's limit
    assert lines[0]["custom_id"] == Request(lines[0]["body"]).key and lines[0]["body"]["model"] == "reviser"


def test_answers_in_any_order_make_the_same_pairs_as_online(tmp_path):
    for name in ("batch", "online"):
        (tmp_path / name).mkdir()
    lines = write_batch(tmp_path / "batch")
    found = read_back(tmp_path / "batch", [answer(line) for line in reversed(lines)])
    assert (
        found.returncode == 0
        and f"of {N} answers 0 were in the store" in found.stderr
        and "0 are missing" in found.stderr
    )
    prompts(tmp_path / "online/prompts.jsonl", N)
    with serve(revise) as server:
        assert run(command("clair", tmp_path / "online", server.base)).returncode == 0
        both = [read_rows(tmp_path / name / "pairs.jsonl") for name in ("batch", "online")]
        for rows in both:
            for row in rows:
                row["provenance"]["answers"][0].pop("time")
        assert both[0] == both[1]
        n = server.n_seen
        assert run(command("clair", tmp_path / "batch", server.base)).returncode == 0  # all is in the store
        assert server.n_seen == n


@pytest.mark.slow
def test_what_comes_back_damaged_twice_unknown_or_not_at_all_is_counted_and_stays_open(tmp_path):
    lines = write_batch(tmp_path)
    good = [answer(line) for line in lines]
    expired = {
        "custom_id": lines[2]["custom_id"],
        "response": None,
        "error": {"code": "batch_expired", "message": "too late"},
    }
    refused = {"custom_id": lines[3]["custom_id"],
               "response": {"status_code": 400, "body": {"error": {"message": "too long"}}}, "error": None}  # fmt: skip
    unusable = answer(lines[4])
    unusable["response"]["body"]["choices"] = []
    back = [
        good[1],
        good[0],
        answer(lines[0]),
        {"custom_id": "0" * 64, "response": good[5]["response"]},
        expired,
        refused,
        unusable,
    ]
    found = read_back(tmp_path, back)
    assert found.returncode == 1 and "8 of 12 rows lack an answer" in found.stderr
    for said in ("2 answered", "1 twice", "1 unknown", "1 failed", "1 refused", "1 unusable", "8 are missing"):
        assert said in found.stderr, said
    assert len(read_rows(tmp_path / "pairs.jsonl")) == 2
    (tmp_path / "answers.jsonl").write_text(json.dumps(good[5]) + "\n" + json.dumps(good[6])[:-30])  # cut
    found = run(command("clair", tmp_path, None, "--batch-read", tmp_path / "answers.jsonl"))
    assert "1 answered" in found.stderr and "1 damaged" in found.stderr and "7 are missing" in found.stderr
    half = answer(lines[7])
    half["response"]["body"]["choices"][0]["message"]["content"] = "a\ud83d"  # half an emoji: paid for all the same
    (tmp_path / "answers.jsonl").write_text(json.dumps(half) + "\n")
    found = run(command("clair", tmp_path, None, "--batch-read", tmp_path / "answers.jsonl"))
    assert "1 unusable" in found.stderr and "6 are missing" in found.stderr
    again = run(command("clair", tmp_path, None, "--batch-write", tmp_path / "rest.jsonl"))
    assert again.returncode == 0
    assert {line["custom_id"] for line in read_rows(tmp_path / "rest.jsonl")} == {
        line["custom_id"] for i, line in enumerate(lines) if i in (2, 6, 8, 9, 10, 11)
    }
    found = read_back(tmp_path, good)
    assert found.returncode == 0 and len(read_rows(tmp_path / "pairs.jsonl")) == N - 3  # refused and unusable stay so
    read_back(tmp_path, good, "--ask-again")
    assert len(read_rows(tmp_path / "pairs.jsonl")) == N


def test_files_keep_to_the_apis_limits(tmp_path, monkeypatch):
    requests = [
        Request({"model": "m", "messages": [{"role": "user", "content": "x" * 100 + str(i)}]}) for i in range(10)
    ]
    with open_store(tmp_path / "s.sqlite") as store:
        monkeypatch.setattr(batch, "MOST_REQUESTS", 4)
        said = batch.write_batch(requests, store, tmp_path / "a.jsonl")
        assert [len(read_rows(tmp_path / name)) for name in ("a.jsonl", "a-2.jsonl", "a-3.jsonl")] == [4, 4, 2]
        assert "10 requests" in said and "a-3.jsonl" in said
        monkeypatch.setattr(batch, "MOST_BYTES", 700)
        batch.write_batch(requests, store, tmp_path / "b.jsonl")
        parts = sorted(tmp_path.glob("b*.jsonl"))
        assert all(part.stat().st_size <= 700 for part in parts) and sum(len(read_rows(p)) for p in parts) == 10


def test_a_file_is_not_written_over(tmp_path):
    write_batch(tmp_path)
    found = run(command("clair", tmp_path, None, "--batch-write", tmp_path / "batch.jsonl"))
    assert found.returncode == 2 and "batch.jsonl: exists already" in found.stderr


def test_there_is_no_key_in_a_batch_file(tmp_path):
    prompts(tmp_path / "prompts.jsonl", 2)
    key = "sk-Zq7wXv9Kf3Lm5Np8Rt2Yb4"
    found = run(command("clair", tmp_path, None, "--batch-write", tmp_path / "b.jsonl"), env={"OPENAI_API_KEY": key})
    assert found.returncode == 0
    assert not [p for p in tmp_path.iterdir() if key[3:15].encode() in p.read_bytes()]


@pytest.mark.parametrize(
    ("status", "error", "state"),
    [
        (400, {"message": "'temperature' does not support 0.7 with this model."}, "failed"),
        (401, {"message": "Incorrect API key provided"}, "failed"),
        (404, {"message": "The model does not exist"}, "failed"),
        (400, {"message": "Your credit balance is too low"}, "failed"),
        (429, {"message": "slow down"}, "failed"),
        (400, {"message": "whatever, temperature too", "code": "content_filter"}, "refused"),
        (403, {"message": "x", "metadata": {"reasons": ["violence"]}}, "refused"),
        (400, {"message": "This model's maximum context length is 4096 tokens."}, "refused"),
    ],
)
def test_what_settings_keys_or_accounts_are_the_cause_of_is_asked_for_again(tmp_path, status, error, state):
    """As over HTTP: no row is stored as refused for a fault that is not its own."""
    request = Request({"model": "m", "messages": [{"role": "user", "content": "x"}], "temperature": 0.7})
    line = {"custom_id": request.key, "response": {"status_code": status, "body": {"error": error}}, "error": None}
    write_rows(tmp_path / "answers.jsonl", [line])
    config = ClientConfig(store=str(tmp_path / "s.sqlite"), model="m")
    with open_store(tmp_path / "s.sqlite") as store:
        batch.read_batch([tmp_path / "answers.jsonl"], [request], store, config, "clair")
        row = store.get(request.key)
        assert row is not None and row.state == state and error["message"] in row.answer.decode()


@pytest.mark.parametrize("text", ["", "[]\n", "not JSON\n"])
def test_files_of_nothing_leave_everything_open(tmp_path, text):
    write_batch(tmp_path)
    (tmp_path / "answers.jsonl").write_text(text)
    found = run(command("clair", tmp_path, None, "--batch-read", tmp_path / "answers.jsonl"))
    assert found.returncode == 1 and f"{N} are missing" in found.stderr and "Traceback" not in found.stderr


def test_a_missing_file_is_said(tmp_path):
    prompts(tmp_path / "prompts.jsonl", 2)
    found = run(command("clair", tmp_path, None, "--batch-read", tmp_path / "nowhere.jsonl"))
    assert found.returncode == 2 and "nowhere.jsonl" in found.stderr and len(found.stderr.splitlines()) == 1


assert Reply  # the form of an answer is the loopback server's
