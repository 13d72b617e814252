"""Ways in which language models answer, by the real commands: what becomes of the rows."""

import contextlib

import pytest

from data.rows.records import load_preferences
from revise import recipes, score
from revise.loopback import Reply, serve
from system.errors import RunError
from tests.revise.commands import command, prompts, read_rows, revise, run, write_rows

PLAN = (
    "The student's answer is about an otter. I need to output two parts:\n\n{teacher_reasoning}: what is wrong\n"
    "{corrected_student_solution}: the same with a heron\n\nLet me write that down."
)
TURN = "<|start_header_id|>assistant<|end_header_id|>\n\nIs there anything else?"


def answer(content, *, finish="stop", usage=(100, 50), **message):
    counts = {"prompt_tokens": usage[0], "completion_tokens": usage[1], "total_tokens": sum(usage)}
    said = {"role": "assistant", "content": content} | message
    return Reply.json({"model": "m-1", "choices": [{"message": said, "finish_reason": finish}], "usage": counts})


def student_of(seen):
    return seen.text.partition("{student_solution}: ")[2].partition("\n\n-----")[0]


def better(seen):
    return student_of(seen).replace("otter", "heron")


def whole(seen, behind=""):
    """What a reviser says that needs no more reading."""
    return f"{{teacher_reasoning}}: otters are no birds.\n\n{{corrected_student_solution}}:\n{better(seen)}{behind}"


def made(name, folder, base, *more):
    """Pairs and rejected rows of a recipe that runs here."""
    main = {"clair": recipes.clair_main, "judge-on-policy": recipes.judge_main,
            "stronger-preferred": recipes.stronger_main}[name]  # fmt: skip
    with contextlib.suppress(RunError):  # where no pair is made
        main(command(name, folder, base, *more)[4:])
    return read_rows(folder / "pairs.jsonl"), read_rows(folder / "pairs.rejected.jsonl")


# --- the reviser ---------------------------------------------------------------------------------------------------

GOOD = {
    "thoughts that speak of the format": (lambda seen: answer(f"<think>\n{PLAN}\n</think>\n\n{whole(seen)}"), PLAN),
    "thoughts without their beginning": (lambda seen: answer(f"{PLAN}\n</think>\n\n{whole(seen)}"), PLAN),
    "harmony's channels": (
        lambda seen: answer(
            f"<|channel|>analysis<|message|>{PLAN}<|end|><|start|>assistant<|channel|>final<|message|>{whole(seen)}"
        ),
        PLAN,
    ),
    "a list of parts": (
        lambda seen: answer(
            [{"type": "thinking", "thinking": [{"type": "text", "text": PLAN}]}, {"type": "text", "text": whole(seen)}]
        ),
        PLAN,
    ),
    "a field of thoughts": (lambda seen: answer(whole(seen), reasoning_content=PLAN), PLAN),
    "another turn behind it": (lambda seen: answer(whole(seen, f"<|eot_id|>{TURN}")), None),
    "an end of turn behind it": (lambda seen: answer(whole(seen, "<|im_end|>")), None),
    "an end in another spelling": (lambda seen: answer(whole(seen), finish="END_TURN"), None),
    "no reason of its end": (lambda seen: answer(whole(seen), finish=None), None),
}


@pytest.mark.parametrize("way", GOOD)
def test_a_revision_is_what_was_said_and_nothing_around_it(tmp_path, capsys, way):
    reply, thoughts = GOOD[way]
    prompts(tmp_path / "prompts.jsonl", 3)
    with serve(reply) as server:
        pairs, rejected = made("clair", tmp_path, server.base)
        assert server.n_seen == 3
    assert not rejected
    assert [row["chosen"][1]["content"] for row in pairs] == [
        f"The heron is bird number {i}, I think." for i in range(3)
    ]
    assert [row["rational"] for row in pairs] == ["otters are no birds."] * 3
    assert [row.get("reasoning") for row in pairs] == [thoughts] * 3
    assert [r.texts[0] for r in load_preferences(tmp_path / "pairs.jsonl")] == [
        row["chosen"][1]["content"] for row in pairs
    ]
    said = capsys.readouterr().err
    assert ("3 rows had thoughts before an answer: cut off, and kept as reasoning" in said) == (thoughts is not None)
    is_cut = "turn behind it" in way
    assert ("3 rows had an answer that ran past a chat template's end of turn" in said) == is_cut
    assert all(("cut_at" in row["provenance"]["answers"][0]) == is_cut for row in pairs)


BAD = {
    "thoughts that took all": (
        lambda seen: answer("", finish="length", usage=(100, 4096), reasoning_content="hm " * 40),
        "truncated: the thoughts took all 4,096 tokens; raise --max-tokens",
    ),
    "thoughts that took all, and null": (
        lambda seen: answer(None, finish="length", usage=(100, 4096), reasoning_content="hm " * 40),
        "truncated: the thoughts took all 4,096 tokens; raise --max-tokens",
    ),
    "thoughts that no tag ends": (
        lambda seen: answer(f"<think>\n{PLAN}", finish="length", usage=(100, 4096)),
        "truncated: the thoughts took all 4,096 tokens; raise --max-tokens",
    ),
    "an answer among the thoughts": (
        lambda seen: answer(None, reasoning_content=whole(seen)),
        "no answer behind the thoughts",
    ),
    "a marker among the thoughts alone": (
        lambda seen: answer(f"<think>\n{PLAN}\n</think>\n\n{better(seen)}"),
        "no marker",
    ),
    "MAX_TOKENS": (lambda seen: answer(whole(seen)[:-12], finish="MAX_TOKENS"), "truncated"),
    "an end that nobody knows": (
        lambda seen: answer(whole(seen), finish="pause_turn"),
        "unknown finish reason: 'pause_turn'; --accept-finish-reason pause_turn accepts it",
    ),
    "SAFETY": (lambda seen: answer(whole(seen), finish="SAFETY"), "refused"),
    "U+FFFD": (lambda seen: answer(whole(seen, " \ufffd\ufffd")), "NUL or U+FFFD in it"),
    "tokens of a template": (lambda seen: answer(whole(seen, " [INST] more")), "control tokens: [INST]"),
    "notes behind a rule": (
        lambda seen: answer(whole(seen, "\n\n---\n\n**Changes made:**\n- otter -> heron")),
        "alludes to the revision",
    ),
    "a note in brackets": (
        lambda seen: answer(whole(seen, "\n\n(Note: I kept the rest.)")),
        "alludes to the revision",
    ),
}


@pytest.mark.parametrize("way", BAD)
def test_what_is_no_whole_revision_is_set_aside_with_the_reason(tmp_path, way):
    reply, reason = BAD[way]
    prompts(tmp_path / "prompts.jsonl", 4)
    with serve(lambda seen: answer(whole(seen)) if "bird 0" in seen.text else reply(seen)) as server:
        pairs, rejected = made("clair", tmp_path, server.base)
    assert len(pairs) == 1 and [row["reason"] for row in rejected] == [reason] * 3


def test_an_unknown_end_is_let_in_by_its_name(tmp_path):
    prompts(tmp_path / "prompts.jsonl", 2)
    with serve(lambda seen: answer(whole(seen), finish="Pause_Turn")) as server:
        assert made("clair", tmp_path, server.base)[0] == []
        n = server.n_seen
        pairs, _ = made("clair", tmp_path, server.base, "--accept-finish-reason", "pause_turn")
        assert len(pairs) == 2 and server.n_seen == n  # the answers were kept


def test_tokens_that_the_own_answer_holds_are_no_leak(tmp_path):
    rows = [{"prompt": "Name the token.", "response": "The otter ends turns by <|eot_id|>, as a bird would."}]
    write_rows(tmp_path / "prompts.jsonl", rows)
    with serve(lambda seen: answer(whole(seen))) as server:
        ((pair,), _) = made("clair", tmp_path, server.base)
    assert pair["chosen"][1]["content"] == "The heron ends turns by <|eot_id|>, as a bird would."


@pytest.mark.parametrize("key", ["test", "1"])
def test_a_key_that_is_a_word_is_never_edited_out_of_what_is_said(tmp_path, key):
    rows = [{"prompt": "Name a bird.", "response": f"The otter, test number 1, is bird number {i}."} for i in range(2)]
    write_rows(tmp_path / "prompts.jsonl", rows)
    with serve(revise) as server:
        done = run(command("clair", tmp_path, server.base), env={"OPENAI_API_KEY": key})
    assert done.returncode == 0, done.stderr
    chosen = [row["chosen"][1]["content"] for row in read_rows(tmp_path / "pairs.jsonl")]
    assert chosen == [f"The heron, test number 1, is bird number {i}." for i in range(2)]


def test_a_long_key_in_an_answer_refuses_its_row(tmp_path, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", key := "sk-Zq7wXv9Kf3Lm5Np8Rt2Yb4")
    prompts(tmp_path / "prompts.jsonl", 3)
    with serve(lambda seen: answer(whole(seen, f" {key}" if "bird 1" in seen.text else ""))) as server:
        pairs, (row,) = made("clair", tmp_path, server.base)
    assert len(pairs) == 2 and row["reason"].startswith("refused by the server: an answer that contains the API key")
    assert not [path for path in tmp_path.iterdir() if key.encode() in path.read_bytes()]


@pytest.mark.parametrize("role", ["--header", "--target-header"])
def test_a_long_secret_of_a_header_in_an_answer_refuses_its_row(tmp_path, monkeypatch, role):
    """As a key does: some gateways repeat what they were sent."""
    monkeypatch.setenv("MY_SECRET", secret := "Zq7wXv9Kf3Lm5Np8Rt2Yb4")
    write_rows(tmp_path / "prompts.jsonl", [{"prompt": f"Name bird {i}."} for i in range(3)])

    def target(seen):
        echo = f" {secret}" if role == "--target-header" and "bird 1" in seen.text else ""
        return answer(f"The otter is bird number {seen.text[10]}, I think.{echo}")

    def reviser(seen):
        return answer(whole(seen, f" {secret}" if role == "--header" and "number 1" in seen.text else ""))

    with serve(target) as one, serve(reviser) as other:
        more = ["--target-endpoint", one.base, "--target-name", "llama", role, "api-key: $MY_SECRET"]
        pairs, (row,) = made("clair", tmp_path, other.base, *more)
    assert len(pairs) == 2 and "an answer that contains" in row["reason"]
    assert not [path for path in tmp_path.iterdir() if secret.encode() in path.read_bytes()]


# --- a stronger model, the model's own answers ---------------------------------------------------------------------


@pytest.mark.parametrize(
    "before",
    ["<think>\nAn otter? No.\n</think>\n\n", "An otter? No.\n</think>\n\n",
     "<|channel|>analysis<|message|>An otter? No.<|end|><|start|>assistant<|channel|>final<|message|>"],
)  # fmt: skip
def test_a_stronger_models_thoughts_are_not_its_answer(tmp_path, before):
    prompts(tmp_path / "prompts.jsonl", 2)
    with serve(lambda seen: answer(f"{before}The heron: {seen.text}")) as server:
        pairs, _ = made("stronger-preferred", tmp_path, server.base)
    assert [row["chosen"][1]["content"] for row in pairs] == [f"The heron: Name bird {i}." for i in range(2)]
    assert [row["reasoning"] for row in pairs] == ["An otter? No."] * 2


def test_the_models_own_thoughts_are_no_part_of_its_answer(tmp_path):
    write_rows(tmp_path / "prompts.jsonl", [{"prompt": f"Name bird {i}."} for i in range(2)])

    def target(seen):
        return answer(f"<think>\nHm, {seen.text}\n</think>\n\nThe otter is bird number {seen.text[10]}, I think.")

    with serve(target) as one, serve(revise) as other:
        more = ["--target-endpoint", one.base, "--target-name", "llama"]
        pairs, _ = made("clair", tmp_path, other.base, *more)
    assert [row["rejected"][1]["content"] for row in pairs] == [
        f"The otter is bird number {i}, I think." for i in range(2)
    ]
    assert [row["own_reasoning"] for row in pairs] == [["Hm, Name bird 0."], ["Hm, Name bird 1."]]


def test_own_answers_that_are_all_thoughts_say_what_to_raise(tmp_path):
    write_rows(tmp_path / "prompts.jsonl", [{"prompt": "Name bird 0."}])
    with serve(lambda seen: answer("<think>\nHm", finish="length", usage=(9, 512))) as one, serve(revise) as other:
        more = ["--target-endpoint", one.base, "--target-name", "llama"]
        _, (row,) = made("clair", tmp_path, other.base, *more)
    assert row["reason"].startswith("own answer truncated: the thoughts took all 512 tokens")
    assert "raise --target-max-tokens" in row["reason"]


# --- judges --------------------------------------------------------------------------------------------------------

FORMS = (
    "<think>\nFormat: [1] or [2].\nMaybe:\n[{bad}]\nWait, no.\n</think>\n\nThe heron is right.\n\n[{good}]",
    "**Final Answer: [{good}]**", "\\boxed{{[{good}]}}", "\\boxed{{{good}}}", "[[{good}]]", "<answer>[{good}]</answer>",
    "The better answer is {{student_solution_{good}}}.\n\n[{good}]", "I choose [{good}] because [{bad}] is wrong.",
    "[{good}]\n\nStudent [{bad}] says otter, which is wrong.", "最终答案：[{good}]",
)  # fmt: skip
NO_FORMS = ("{good}", "Student {good} names a bird.\n\nThere is no reason to prefer [{bad}].", "[{bad}] or [{good}]")


def judged(folder, form, **how):
    """What a judge's way of saying it comes to."""
    own = ["The otter is a bird.", "The heron is a bird."]
    write_rows(folder / "prompts.jsonl", [{"prompt": f"Bird {i}?", "responses": own} for i in range(3)])

    def reply(seen):
        first = seen.text.partition("{student_solution_1}: ")[2].partition("\n\n{student_solution_2}")[0]
        good = 1 if "heron" in first else 2
        return answer(form.format(good=good, bad=3 - good), **how)

    with serve(reply) as server:
        return made("judge-on-policy", folder, server.base, "--both-orders", 1)


@pytest.mark.parametrize("form", FORMS)
def test_a_verdict_is_read_however_it_is_said(tmp_path, form):
    pairs, rejected = judged(tmp_path, form)
    assert not rejected and [row["chosen"][1]["content"] for row in pairs] == ["The heron is a bird."] * 3


@pytest.mark.parametrize("form", NO_FORMS)
def test_what_is_no_verdict_makes_no_pair(tmp_path, form):
    pairs, rejected = judged(tmp_path, form)
    assert not pairs and {row["reason"] for row in rejected} <= {"no choice", "both chosen"}


def test_a_verdict_that_was_cut_is_none(tmp_path):
    pairs, rejected = judged(tmp_path, "[{good}]\n\nBut wait", finish="length")
    assert not pairs and {row["reason"] for row in rejected} == {"truncated"}


GRADES = ("Grade: [8/10]", "**[8]**", "[8 / 10]", "[ 8 ]", "The grade is [8].", "[8]/10", "<think>\n[3]\n</think>\n[8]",
          "Overall grade:\n[8]\n\nRubric:\n[1] useless [10] perfect", "[8]<|im_end|>")  # fmt: skip
NO_GRADES = ("Score: 8/10", "Grade: **8**", "[80/100]", "[4]/5", "It is far from a [10].")


def test_a_grade_is_read_or_left_and_never_another_one(tmp_path):
    said = (*GRADES, *NO_GRADES)
    rows = [{"prompt": "Name a bird.", "chosen": f"heron {i:02}", "rejected": "otter"} for i in range(len(said))]
    write_rows(tmp_path / "pairs.jsonl", rows)

    def reply(seen):
        graded = student_of(seen)
        return answer(said[int(graded[6:])] if graded.startswith("heron") else "[2]")

    with serve(reply) as server:
        arguments = ["--pairs", tmp_path / "pairs.jsonl", "--out", tmp_path / "scored.jsonl", "--model", "j"]
        with pytest.raises(RunError, match=f"{len(NO_GRADES)} rows lack the score"):
            score.main([*map(str, arguments), "--store", str(tmp_path / "s.sqlite"), "--endpoint", server.base])
    found = [row.get("chosen_score") for row in read_rows(tmp_path / "scored.jsonl")]
    assert found == [8] * len(GRADES) + [None] * len(NO_GRADES)
