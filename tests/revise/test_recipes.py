"""The four recipes, from prompts to rows that engine.train takes, by the real command against a real server."""

import collections
import re

import pytest

from data.rows.records import load_preferences
from engine import train
from engine.config import TrainConfig
from revise.loopback import Reply, serve
from tests import tiny
from tests.revise.commands import command, prompts, read_rows, revise, run, write_rows

TEXTS = ["Name a bird of the marsh.", "The heron, a bird of the marsh.", "The otter is not a bird."]


def student_of(seen):
    return seen.text.partition("{student_solution}: ")[2].partition("\n\n-----")[0]


def done(arguments, *, code=0, **more):
    """A run that ended well, or with a code."""
    found = run(arguments, **more)
    assert (found.returncode, "Traceback" in found.stderr) == (code, False), found.stderr
    return found


# --- CLAIR ---------------------------------------------------------------------------------------------------------


def test_clair_revises_given_answers_into_rows_that_can_be_trained_on(tmp_path):
    prompts(tmp_path / "prompts.jsonl", 12)
    asked = []
    with serve(lambda seen: asked.append(seen.body) or revise(seen)) as server:
        found = done(command("clair", tmp_path, server.base))
    assert "12 pairs of 12 prompts" in found.stderr and "12 requests were sent (1.00 for each prompt)" in found.stderr
    assert "Jaccard, words (%)" in found.stdout
    rows = read_rows(tmp_path / "pairs.jsonl")
    first = rows[0]
    assert first["prompt"] == "Name bird 0." and first["rational"] == "otters are no birds."
    assert first["rejected"] == [
        {"role": "user", "content": "Name bird 0."},
        {"role": "assistant", "content": "The otter is bird number 0, I think."},
    ]
    assert first["chosen"][1]["content"] == "The heron is bird number 0, I think."
    (answer,) = first["provenance"]["answers"]
    assert answer["model"] == "loopback" and re.fullmatch("[0-9a-f]{64}", answer["request"])
    assert answer["usage"] == {"prompt_tokens": 100, "completion_tokens": 50} and answer["finish_reason"] == "stop"
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\+00:00", answer["time"])
    assert [r.texts for r in load_preferences(tmp_path / "pairs.jsonl")] == [
        tuple(row[name][1]["content"] for name in ("chosen", "rejected")) for row in rows
    ]
    body = asked[0]  # the authors' settings
    assert {k: body[k] for k in ("model", "temperature", "max_tokens")} == {
        "model": "reviser", "temperature": 0.7, "max_tokens": 4096
    }  # fmt: skip
    assert body["messages"][0] == {"role": "system", "content": ""} and body["messages"][1]["role"] == "user"


def test_what_makes_no_pair_is_set_aside_with_its_reason(tmp_path):
    wrong = {
        "no marker": Reply.chat("I would say: the heron."),
        "refused": Reply.chat("I'm sorry, but I can't help with that."),
        "empty": Reply.chat("{teacher_reasoning}: x\n{corrected_student_solution}:\n"),
        "truncated": Reply.chat("{teacher_reasoning}: x\n{corrected_student_solution}: The her", finish="length"),
        "unchanged": None,
        "too long": Reply.chat("{teacher_reasoning}: x\n{corrected_student_solution}: " + "heron " * 100),
        "too short": Reply.chat("{teacher_reasoning}: x\n{corrected_student_solution}: heron"),
        "alludes to the revision": Reply.chat(
            "{teacher_reasoning}: x\n{corrected_student_solution}: In this revision it is a heron, I think."
        ),
        "null content": Reply.json({"choices": [{"message": {"content": None}}]}),
    }
    reasons = list(wrong)
    prompts(tmp_path / "prompts.jsonl", len(reasons) + 2)

    def reply(seen):
        i = int(re.search(r"Name bird (\d+)", seen.text)[1])
        if i >= len(reasons):
            return revise(seen)
        same = f"{{teacher_reasoning}}: x\n{{corrected_student_solution}}: {student_of(seen)}"
        return wrong[reasons[i]] or Reply.chat(same)

    with serve(reply) as server:
        found = done(command("clair", tmp_path, server.base))
        rejected = read_rows(tmp_path / "pairs.rejected.jsonl")
        assert [row["reason"] for row in rejected] == reasons and len(read_rows(tmp_path / "pairs.jsonl")) == 2
        assert all(re.search(rf"\b1  {reason}", found.stderr) for reason in reasons)
        assert rejected[0]["answers"] == ["I would say: the heron."] and rejected[0]["own"][0].startswith("The otter")
        n = server.n_seen
        more = ["--max-length-ratio", 100, "--min-length-ratio", 0, "--allow-allusions"]
        done(command("clair", tmp_path, server.base, *more))  # other bounds read the same answers again
        assert server.n_seen == n and len(read_rows(tmp_path / "pairs.jsonl")) == 5


def test_rows_that_fail_are_named_and_the_next_run_asks_for_them_alone(tmp_path):
    prompts(tmp_path / "prompts.jsonl", 10)

    def reply(seen, broken=True):
        return Reply.error(500, "no") if broken and "bird 7." in seen.text else revise(seen)

    with serve(reply) as server:
        found = run(command("clair", tmp_path, server.base, "--max-attempts", 1))
    assert found.returncode == 1 and "1 of 10 rows lack an answer" in found.stderr
    assert [row["reason"] for row in read_rows(tmp_path / "pairs.rejected.jsonl")] == ["failed: 500: no"]
    assert len(read_rows(tmp_path / "pairs.jsonl")) == 9
    with serve(revise) as server:
        done(command("clair", tmp_path, server.base))
        assert server.n_seen == 1
    assert len(read_rows(tmp_path / "pairs.jsonl")) == 10


def test_equal_prompts_are_asked_once_unless_told_otherwise(tmp_path):
    row = {"prompt": "Name a bird.", "response": "The otter, I think."}
    rows = write_rows(tmp_path / "prompts.jsonl", [row] * 5)
    with serve(revise) as server:
        done(command("clair", tmp_path, server.base, rows=rows))
        assert server.n_seen == 1 and len(read_rows(tmp_path / "pairs.jsonl")) == 5
        done(command("clair", tmp_path, server.base, "--no-dedupe", rows=rows))
        assert server.n_seen == 5 and len(read_rows(tmp_path / "pairs.jsonl")) == 5


def test_another_template_extra_fields_and_no_system_message(tmp_path):
    prompts(tmp_path / "prompts.jsonl", 1)
    (tmp_path / "mine.txt").write_text("TASK {task}: <TASK>\n{student_solution}: <STUDENT_SOLUTION>\n\n-----")
    asked = []
    with serve(lambda seen: asked.append(seen.body) or revise(seen)) as server:
        more = ["--template", tmp_path / "mine.txt", "--no-empty-system", "--temperature", 0, "--max-tokens", 99]
        done(command("clair", tmp_path, server.base, *more, "--extra", '{"top_k": 5, "top_p": null}'))
    text = "TASK {task}: Name bird 0.\n{student_solution}: The otter is bird number 0, I think.\n\n-----"
    assert asked == [
        {
            "model": "reviser",
            "messages": [{"role": "user", "content": text}],
            "temperature": 0,
            "max_tokens": 99,
            "top_k": 5,
        }
    ]


def test_strengths_are_asked_for_in_words(tmp_path):
    prompts(tmp_path / "prompts.jsonl", 1)
    texts = []
    with serve(lambda seen: texts.append(seen.text) or revise(seen)) as server:
        for strength in ("light", "standard", "strong"):
            done(command("clair", tmp_path, server.base, "--strength", strength))
        done(command("clair", tmp_path, server.base, "--keep-length"), code=1)  # this reviser gives the request back
    assert len(set(texts)) == 4 and "as long as the {student_solution}" in texts[3]


# --- the model's own answers ---------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def llama(tmp_path_factory):
    """A tiny Llama with a tokenizer; its answers are nonsense."""
    folder = tmp_path_factory.mktemp("model") / "tiny-llama"
    tiny.write_model(folder, texts=TEXTS)
    return folder


def bare_prompts(folder, n):
    return write_rows(folder / "prompts.jsonl", [{"prompt": f"Name bird {i}.", "id": f"b{i}"} for i in range(n)])


def lengthen(seen):
    text = f"{student_of(seen)} heron".replace("\ufffd", "")
    return Reply.chat(f"{{teacher_reasoning}}: x\n\n{{corrected_student_solution}}:\n{text}")


@pytest.mark.slow
def test_clair_with_a_tiny_llama_as_target_trains_that_llama(tmp_path, llama):
    bare_prompts(tmp_path, 10)
    more = ["--target-model", llama, "--target-max-tokens", 6, "--max-length-ratio", 9, "--cut-answers", "keep"]
    with serve(lengthen) as server:
        done(command("clair", tmp_path, server.base, *more))
        pairs = (tmp_path / "pairs.jsonl").read_bytes()
        rows = read_rows(tmp_path / "pairs.jsonl")
        assert len(rows) >= 8  # nonsense may be empty
        assert rows[0]["provenance"]["target"][0]["model"] == "tiny-llama" and rows[0]["provenance"]["id"] == "b0"
        n = server.n_seen
        done(command("clair", tmp_path, server.base, *more))
        assert (server.n_seen, (tmp_path / "pairs.jsonl").read_bytes()) == (n, pairs)
    result = train.run(
        TrainConfig(
            model=str(llama),
            data=(str(tmp_path / "pairs.jsonl"),),
            loss="apo_zero",
            out=str(tmp_path / "run"),
            epochs=1,
        )
    )
    assert result.checkpoints


def nonsense(arguments):
    """Of a model that is one: its answers may all hold half characters, and then no pair is made."""
    made = run(arguments)
    assert made.returncode == 0 or "no pair was made" in made.stderr, made.stderr


@pytest.mark.slow
def test_own_answers_do_not_depend_on_what_else_is_asked(tmp_path, llama):
    def own(rows, name, *more):
        folder = tmp_path / name
        folder.mkdir()
        write_rows(folder / "prompts.jsonl", rows)
        with serve(lengthen) as server:
            nonsense(command("clair", folder, server.base, "--target-model", llama, "--max-length-ratio", 99, *more))
        found = [*read_rows(folder / "pairs.jsonl"), *read_rows(folder / "pairs.rejected.jsonl")]
        return {row["prompt"]: row["rejected"][1]["content"] if "rejected" in row else row["own"] for row in found}

    rows = [{"prompt": f"Name bird {i}."} for i in range(6)]
    all_of_them, some = own(rows, "all"), own(rows[3:5], "some")
    assert some == {prompt: all_of_them[prompt] for prompt in some} and len(some) == 2
    assert own(rows, "again", "--seed", 1) != all_of_them


def test_the_target_can_be_a_server_whose_key_is_its_own(tmp_path):
    bare_prompts(tmp_path, 5)
    told = []
    with serve(lambda seen: told.append(seen) or Reply.chat(f"otter {seen.text}")) as target, serve(revise) as server:
        more = ["--target-endpoint", target.base, "--target-name", "llama", "--target-temperature", 0.6]
        done(command("clair", tmp_path, server.base, *more), env={"OPENAI_API_KEY": "sk-of-the-reviser"})
        assert {seen.headers.get("authorization") for seen in told} == {None}
        assert told[0].body["temperature"] == 0.6 and told[0].body["model"] == "llama"
        done(
            command(
                "clair", tmp_path, server.base, *more, "--target-key-env", "MY_KEY", "--store", tmp_path / "b.sqlite"
            ),
            env={"OPENAI_API_KEY": "sk-of-the-reviser", "MY_KEY": "sk-of-the-target"},
        )
        assert told[-1].headers["authorization"] == "Bearer sk-of-the-target"
    assert read_rows(tmp_path / "pairs.jsonl")[0]["chosen"][1]["content"] == "heron Name bird 0."


@pytest.mark.slow
def test_the_same_prompts_are_drawn_for_every_recipe(tmp_path, llama):
    rows = [
        {
            "instruction": f"Name bird {i}.",
            "completions": [{"response": f"good {i}", "overall_score": 9}, {"response": "bad", "overall_score": 2}],
        }
        for i in range(30)
    ]
    write_rows(tmp_path / "prompts.jsonl", rows)
    drawn = {}

    def reply(seen):
        if "{student_solution_1}" in seen.text:
            return Reply.chat("[1]")
        return lengthen(seen) if "{student_solution}: " in seen.text else Reply.chat(f"a strong answer to {seen.text}")

    with serve(reply) as server:
        for name in ("clair", "judge-on-policy", "judge-off-policy", "stronger-preferred"):
            more = ["--sample", 9, "--seed", 4, "--target-model", llama]
            nonsense(command(name, tmp_path, server.base, *more, "--out", tmp_path / f"{name}.jsonl"))
            both = read_rows(tmp_path / f"{name}.jsonl") + read_rows(tmp_path / f"{name}.rejected.jsonl")
            drawn[name] = sorted(row["prompt"] for row in both)
    assert len({tuple(prompts) for prompts in drawn.values()}) == 1 and len(drawn["clair"]) == 9
    assert drawn["clair"] != sorted(row["instruction"] for row in rows[:9])


# --- judges --------------------------------------------------------------------------------------------------------


def judged(tmp_path, reply, n=60, *more, code=0):
    rows = [{"prompt": f"Name bird {i}.", "responses": [f"The heron {i}.", f"The otter {i}."]} for i in range(n)]
    write_rows(tmp_path / "prompts.jsonl", rows)
    with serve(reply) as server:
        found = done(command("judge-on-policy", tmp_path, server.base, *more), code=code)
    return found, read_rows(tmp_path / "pairs.jsonl"), read_rows(tmp_path / "pairs.rejected.jsonl"), server


def likes_herons(seen):
    first = seen.text.partition("{student_solution_1}: ")[2].partition("\n")[0]
    return Reply.chat(f"{{teacher_reasoning}}: herons.\n\n[{1 if 'heron' in first else 2}]")


def test_the_judges_choice_wins_in_whatever_order_it_was_shown(tmp_path):
    found, pairs, rejected, server = judged(tmp_path, likes_herons)
    assert len(pairs) == 60 and not rejected
    assert all("heron" in row["chosen"][1]["content"] and "otter" in row["rejected"][1]["content"] for row in pairs)
    swapped = collections.Counter(row["provenance"]["swapped"][0] for row in pairs)
    assert 15 <= swapped[True] <= 45  # of 60 fair draws: outside once in 10,000
    n_both = sum(len(row["provenance"]["choices"]) == 2 for row in pairs)
    assert server.n_seen == 60 + n_both and 1 <= n_both <= 15
    assert f"of {n_both} pairs judged in both orders 100.0% had one winner" in found.stderr
    assert pairs[0]["rational"].startswith("{teacher_reasoning}: herons.")


def test_a_judge_who_takes_the_first_is_found_out(tmp_path):
    found, pairs, rejected, _ = judged(tmp_path, lambda seen: Reply.chat("[1]"), 40, "--both-orders", 1, code=1)
    assert not pairs and {row["reason"] for row in rejected} == {"the order decides"}
    assert "no pair was made of 40 prompts (the order decides)" in found.stderr
    assert "another --model or --store asks for new ones" in found.stderr and "--ask-again" not in found.stderr
    assert (
        "the answer shown first won 100.0% of 80 judgments; of 40 pairs judged in both orders 0.0% had one winner"
        in (found.stderr)
    )


@pytest.mark.parametrize(("answer", "reason"), [("no idea", "no choice"), ("[1] or [2]", "both chosen")])
def test_a_judgment_that_is_none_is_set_aside(tmp_path, answer, reason):
    _, pairs, rejected, _ = judged(tmp_path, lambda seen: Reply.chat(answer), 3, code=1)
    assert not pairs and [row["reason"] for row in rejected] == [reason] * 3


def test_two_equal_answers_are_not_judged(tmp_path):
    rows = write_rows(tmp_path / "prompts.jsonl", [{"prompt": "a", "responses": ["x", "x "]}])
    with serve(likes_herons) as server:
        done(command("judge-on-policy", tmp_path, server.base, rows=rows), code=1)
        assert server.n_seen == 0
    assert read_rows(tmp_path / "pairs.rejected.jsonl")[0]["reason"] == "the two answers are equal"


def test_the_best_of_judged_answers_wins_over_the_worst_and_ties_are_dropped(tmp_path):
    def row(*scores, prompt="p"):
        completions = [{"model": f"m{i}", "response": f"answer {i}", "overall_score": s} for i, s in enumerate(scores)]
        return {"instruction": prompt, "completions": completions, "source": "flan"}

    write_rows(tmp_path / "prompts.jsonl", [row(3, 9, 1, 9), row(5, 5), {"prompt": "q"}, row(2, None), row(4, 4.5)])
    done(command("judge-off-policy", tmp_path, "http://127.0.0.1:9/v1"))
    first, last = read_rows(tmp_path / "pairs.jsonl")
    assert first["chosen"][1]["content"] == "answer 1" and first["rejected"][1]["content"] == "answer 2"
    assert first["provenance"] == {
        "recipe": "judge-off-policy", "row": 0, "source": "flan", "scores": [9, 1], "models": ["m1", "m2"]
    }  # fmt: skip
    assert last["chosen"][1]["content"] == "answer 1"
    reasons = [r["reason"].partition(":")[0] for r in read_rows(tmp_path / "pairs.rejected.jsonl")]
    assert reasons == ["tie", "no completions", "bad row"]


# --- a stronger model ----------------------------------------------------------------------------------------------


def test_the_stronger_models_answer_wins_over_the_own(tmp_path):
    prompts(tmp_path / "prompts.jsonl", 4)
    asked = []

    def reply(seen):
        asked.append(seen.body["messages"])
        if "bird 2" in seen.text:
            return Reply.chat("I cannot help with that.")
        return Reply.chat("cut", finish="length") if "bird 3" in seen.text else Reply.chat(f"strong {seen.text}")

    with serve(reply) as server:
        done(command("stronger-preferred", tmp_path, server.base))
    assert sorted(asked, key=str) == [[{"role": "user", "content": f"Name bird {i}."}] for i in range(4)]
    pairs = read_rows(tmp_path / "pairs.jsonl")
    assert [row["chosen"][1]["content"] for row in pairs] == ["strong Name bird 0.", "strong Name bird 1."]
    assert [row["reason"] for row in read_rows(tmp_path / "pairs.rejected.jsonl")] == ["refused", "truncated"]


TOOLS = [{"type": "function", "function": {"name": "weather", "parameters": {}}}]


def test_what_a_row_gives_its_template_goes_to_the_server_and_into_the_pairs(tmp_path):
    row = {"question": "Weather?", "system": "Be brief.", "tools": TOOLS, "context": "old"}
    rows = [row | {"chat_template_kwargs": {"enable_thinking": False}}, {"question": "Name a bird."}]
    write_rows(tmp_path / "prompts.jsonl", rows)
    asked = []

    def reply(seen):
        asked.append(seen.body)
        return Reply.chat("own" if seen.body["model"] == "own" else "strong")

    flags = ["--target-endpoint", None, "--target-name", "own", "--columns", "prompt=question"]
    with serve(reply) as server:
        flags[1] = server.base
        done(command("stronger-preferred", tmp_path, server.base, *flags, "--ignore-columns", "context"))
    with_tools = [body for body in asked if body["messages"][0]["role"] == "system"]
    assert [body["model"] for body in with_tools] == ["own", "reviser"] and len(asked) == 4
    for body in with_tools:
        assert body["tools"] == TOOLS and body["chat_template_kwargs"] == {"enable_thinking": False}
    assert not any("tools" in body for body in asked if body not in with_tools)
    first, second = load_preferences(tmp_path / "pairs.jsonl")
    assert first.context.tools == TOOLS and first.context.kwargs == {"enable_thinking": False}
    assert [m.role for m in first.prompt] == ["system", "user"] and not second.context.fields()


@pytest.mark.parametrize(
    ("name", "row", "said"),
    [
        ("clair", {"tools": TOOLS}, '"tools" have no place in the text of a request; ignore them'),
        ("clair", {"prompt": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "", "tool_calls": [
            {"name": "f", "arguments": {}}]}, {"role": "tool", "content": "x"}]}, "the prompt has tool calls or"),
        ("judge-on-policy", {"documents": [{"text": "x"}]}, '"documents" have no place in the text of a req'),
        ("stronger-preferred", {"documents": [{"text": "x"}]}, '"documents" cannot be sent to a server; write'),
        ("stronger-preferred", {"images": ["x.png"]}, '"images" is there, but only text can be trained on'),
    ],
)  # fmt: skip
def test_what_cannot_be_handed_on_is_told_before_anything_is_sent(tmp_path, name, row, said):
    write_rows(tmp_path / "prompts.jsonl", [{"prompt": "q", "response": "a", "responses": ["a", "b"]} | row])
    with serve(revise) as server:
        found = run(command(name, tmp_path, server.base))
        assert server.n_seen == 0
    assert found.returncode == 2 and f"prompts.jsonl:1: {said}" in found.stderr, found.stderr


def test_pairs_of_judged_answers_keep_what_their_template_is_given(tmp_path):
    completions = [{"response": "worse", "overall_score": 1}, {"response": "better", "overall_score": 9}]
    write_rows(tmp_path / "prompts.jsonl", [{"instruction": "q", "completions": completions, "tools": TOOLS}])
    done([*command("judge-off-policy", tmp_path, None)])
    (pair,) = load_preferences(tmp_path / "pairs.jsonl")
    assert pair.context.tools == TOOLS and pair.texts == ("better", "worse")


# --- before anything is sent ---------------------------------------------------------------------------------------


def test_a_dry_run_sends_nothing_and_says_the_most_that_it_can_cost(tmp_path):
    prompts(tmp_path / "prompts.jsonl", 20)
    more = ["--dry-run", "--price-in", 10, "--price-out", 30, "--max-tokens", 1000]
    with serve(revise) as server:
        found = done(command("clair", tmp_path, server.base, *more))
        assert server.n_seen == 0
    n_in = int(
        re.search(r"clair: 20 requests, about ([\d,]+) tokens to send, at most 20,000", found.stdout)[1].replace(
            ",", ""
        )
    )
    dollars = float(re.search(r"in all at most \$([\d.]+); nothing was sent", found.stdout)[1])
    assert dollars == pytest.approx((n_in * 10 + 20_000 * 30) / 1e6, abs=0.01) and 20 * 200 < n_in < 20 * 400
    assert not (tmp_path / "pairs.jsonl").exists()


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["--min-length-ratio", 3], "leave nothing between them"),
        (["--max-cost", 1], "--max-cost needs prices"),
        (["--target-endpoint", "http://127.0.0.1:9/v1"], "--target-name"),
        (["--endpoint", "ftp://x"], "is not an address"),
        (["--endpoint", "http://user:word@localhost/v1"], "name or password"),
        (["--endpoint", "http://localhost/v1?api_key=abc"], "the address contains a key"),
        (["--extra", "[1]"], "--extra"),
        (["--extra", "{"], "--extra"),
        (["--temperature", 3], "--temperature"),
        (["--concurrency", 0], "--concurrency"),
        (["--sample", 0], "--sample"),
        (["--sample", 99], "99 of 3 prompts"),
        (["--template", "/nowhere.txt"], "--template: /nowhere.txt"),
        (["--key-file", "/nowhere.txt"], "/nowhere.txt"),
        (["--key-env", "A", "B"], "2 variables for 1 endpoints"),
        (["--batch-write", "b.jsonl", "--batch-read", "a.jsonl"], "--batch-write and --batch-read"),
        (["--out", "pairs.csv"], "has to end in .jsonl"),
        (["--strenght", "light"], "perhaps --strength"),
        (["--strength", "huge"], "huge"),
        (["--target-model", "/nowhere"], "/nowhere"),
    ],
    ids=lambda value: value if isinstance(value, str) else " ".join(map(str, value)),
)
def test_bad_input_is_one_sentence_and_nothing_is_sent(tmp_path, more, said):
    prompts(tmp_path / "prompts.jsonl", 3)
    with serve(revise) as server:
        found = run(command("clair", tmp_path, None if "--endpoint" in more else server.base, *more))
        assert server.n_seen == 0
    assert found.returncode == 2 and said in found.stderr and len(found.stderr.splitlines()) == 1
    assert not (tmp_path / "pairs.jsonl").exists()


@pytest.mark.parametrize(
    "more",
    [["--extra", '{"a": NaN}'], ["--extra", '{"max_tokens": "abc"}'], ["--extra", '{"u": "\\ud800"}'],
     ["--extra", "[" * 3000],     ["--extra", '{"stream": true}'], ["--store", ""], ["--store", "."], ["--endpoint", "http://localhost:99999/v1"],
     ["--endpoint", "http://localhost:abc/v1"], ["--endpoint", "http://[::1/v1"], ["--endpoint", "user:word@host"],
     ["--ca-file", "/nowhere.pem", "--dry-run"], ["--target-endpoint", "nonsense", "--target-name", "x", "--dry-run"],
     ["--max-length-ratio", "inf"], ["--min-length-ratio", "nan"], ["--key-env", "sk-proj-abc"]],
    ids=lambda more: " ".join(more)[:40],
)  # fmt: skip
def test_what_no_setting_can_be_is_one_sentence_too(tmp_path, more):
    prompts(tmp_path / "prompts.jsonl", 2)
    found = run(command("clair", tmp_path, None if "--endpoint" in more else "http://127.0.0.1:9/v1", *more))
    assert found.returncode == 2 and len(found.stderr.splitlines()) == 1, found.stderr
    assert "word" not in found.stderr and "sk-proj" not in found.stderr


def test_what_is_read_is_never_written_over(tmp_path):
    prompts(tmp_path / "prompts.jsonl", 2)
    prompts(tmp_path / "pairs.rejected.jsonl", 2)
    (tmp_path / "folder").mkdir()
    prompts(tmp_path / "folder/p.jsonl", 2)
    for more in (
        ["--prompts", tmp_path / "pairs.rejected.jsonl"],
        ["--out", tmp_path / "a.jsonl", "--store", tmp_path / "a.jsonl"],
        ["--prompts", tmp_path / "folder", "--out", tmp_path / "folder/pairs.jsonl"],
    ):
        before = {path: path.read_bytes() for path in tmp_path.rglob("*.jsonl")}
        found = run(command("clair", tmp_path, "http://127.0.0.1:9/v1", *more))
        assert (found.returncode == 2 and "--out" in found.stderr) or "was not written by a recipe" in found.stderr
        assert {path: path.read_bytes() for path in tmp_path.rglob("*.jsonl")} == before


def test_a_cap_ends_a_run_with_the_pairs_that_were_paid_for(tmp_path):
    prompts(tmp_path / "prompts.jsonl", 30)
    with serve(revise) as server:
        found = run(command("clair", tmp_path, server.base, "--max-requests", 12))
        assert (
            found.returncode == 1
            and server.n_seen == 12
            and "--max-requests: 12 requests have been sent" in found.stderr
        )
        assert "12 answers are stored" in found.stderr and "18  not asked yet" in found.stderr
    assert len(read_rows(tmp_path / "pairs.jsonl")) == 12


def test_a_cap_on_requests_holds_for_both_servers_together(tmp_path):
    bare_prompts(tmp_path, 8)
    with serve(lambda seen: Reply.chat(f"otter {seen.text}")) as target, serve(revise) as server:
        more = ["--target-endpoint", target.base, "--target-name", "llama", "--max-requests", 10]
        assert run(command("clair", tmp_path, server.base, *more)).returncode == 1
        assert (target.n_seen, server.n_seen) == (8, 2)


def test_provenance_says_how_both_were_asked(tmp_path):
    bare_prompts(tmp_path, 1)
    with serve(lambda seen: Reply.chat("an otter, I think")) as target, serve(revise) as server:
        more = ["--target-endpoint", target.base, "--target-name", "llama", "--target-temperature", 0.6]
        done(command("clair", tmp_path, server.base, *more, "--max-tokens", 99, "--extra", '{"top_k": 5}'))
    settings = read_rows(tmp_path / "pairs.jsonl")[0]["provenance"]["settings"]
    assert settings["target"] == {"temperature": 0.6, "top_p": 1.0, "max_tokens": 512, "model": "llama"}
    assert (settings["model"], settings["temperature"], settings["max_tokens"]) == ("reviser", 0.7, 99)
    assert (
        settings["extra"] == {"top_k": 5} and settings["strength"] == "standard" and settings["max_length_ratio"] == 2.0
    )


def test_the_targets_tokens_have_their_own_price(tmp_path):
    bare_prompts(tmp_path, 4)
    with serve(lambda seen: Reply.chat("an otter", usage=(10**6, 0))) as target, serve(revise) as server:
        more = ["--target-endpoint", target.base, "--target-name", "llama", "--price-in", 10, "--price-out", 30]
        assert "$0.01" in done(command("clair", tmp_path, server.base, *more)).stderr  # 4 x (100 x 10 + 50 x 30) / 10^6
        more += ["--target-price-in", 1, "--store", tmp_path / "b.sqlite"]
        assert "$4.01" in done(command("clair", tmp_path, server.base, *more)).stderr


def test_an_own_answer_that_was_cut_never_wins(tmp_path):
    bare_prompts(tmp_path, 6)
    cut = lambda seen: Reply.chat(f"heron {seen.number} and", finish="length")  # noqa: E731
    with serve(cut) as target, serve(lambda seen: Reply.chat("[1]")) as server:
        more = ["--target-endpoint", target.base, "--target-name", "llama", "--both-orders", 0]
        found = run(command("judge-on-policy", tmp_path, server.base, *more))
        assert (found.returncode, target.n_seen, server.n_seen) == (1, 24, 0)
    assert "no pair was made of 6 prompts (own answer truncated)" in found.stderr and "--ask-again" in found.stderr
    reasons = {row["reason"].partition(":")[0] for row in read_rows(tmp_path / "pairs.rejected.jsonl")}
    assert not read_rows(tmp_path / "pairs.jsonl") and reasons == {"own answer truncated"}


def test_rows_without_an_answer_need_a_target(tmp_path):
    bare_prompts(tmp_path, 2)
    found = run(command("clair", tmp_path, "http://127.0.0.1:9/v1"))
    assert found.returncode == 2 and f'{tmp_path}/prompts.jsonl:1: no "response"' in found.stderr


def test_bad_rows_are_listed_or_left_out(tmp_path):
    rows = write_rows(tmp_path / "prompts.jsonl", [{"prompt": "a", "response": "otter b"}, {"prompt": 3}, {"x": 1}])
    with serve(revise) as server:
        found = run(command("clair", tmp_path, server.base, rows=rows))
        assert found.returncode == 2 and "prompts.jsonl:2:" in found.stderr and "prompts.jsonl:3:" in found.stderr
        done(command("clair", tmp_path, server.base, "--skip-bad-rows", rows=rows))
    assert len(read_rows(tmp_path / "pairs.jsonl")) == 1


def test_a_file_that_is_no_pairs_is_not_replaced(tmp_path):
    prompts(tmp_path / "prompts.jsonl", 2)
    write_rows(tmp_path / "notes.jsonl", [{"note": "mine"}])
    with serve(revise) as server:
        for name in ("notes.jsonl", "prompts.jsonl"):
            before = (tmp_path / name).read_bytes()
            found = run(command("clair", tmp_path, server.base, "--out", tmp_path / name))
            assert found.returncode == 2 and name in found.stderr and (tmp_path / name).read_bytes() == before
        assert server.n_seen == 0


def test_a_run_takes_its_settings_from_a_file(tmp_path):
    prompts(tmp_path / "prompts.jsonl", 2)
    with serve(revise) as server:
        (tmp_path / "c.yaml").write_text(
            f"prompts: {tmp_path}/prompts.jsonl\nout: {tmp_path}/pairs.jsonl\nstore: {tmp_path}/s.sqlite\n"
            f"endpoint: [{server.base}]\nmodel: reviser\n"
        )
        done([*command("clair", tmp_path, server.base)[:4], "--config", str(tmp_path / "c.yaml")])
    assert len(read_rows(tmp_path / "pairs.jsonl")) == 2
