"""Scores that a judge or a reward model gives, in the rows that objectives read."""

import collections
import re
import sys

import pytest

from data.rows.records import load_preferences
from revise.loopback import Reply, serve
from revise.score import ScoreConfig
from system import InputError
from tests.revise.commands import read_rows, run, write_rows


def pair(i, recipe=None, **more):
    row = {"prompt": f"Name bird {i}.", "chosen": f"heron {i}", "rejected": f"otter {i}"} | more
    return row | ({"provenance": {"recipe": recipe}} if recipe else {})


def score(folder, base, *more):
    arguments = [
        sys.executable,
        "-m",
        "revise",
        "score",
        "--pairs",
        folder / "pairs.jsonl",
        "--out",
        folder / "scored.jsonl",
    ]
    arguments += ["--store", folder / "s.sqlite", "--endpoint", base, "--model", "judge", *more]
    return run([str(a) for a in arguments])


def graded_of(seen):
    return seen.text.partition("{student_solution}: ")[2].partition("\n\n-----")[0]


def judge(seen):
    return Reply.chat(f"{{teacher_reasoning}}: x\n\n[{9 if 'heron' in graded_of(seen) else 4}]")


def test_winner_loser_and_own_answer_are_graded_by_their_origin(tmp_path):
    recipes = ["clair", "stronger-preferred", "judge-on-policy", "judge-off-policy", None]
    write_rows(tmp_path / "pairs.jsonl", [pair(i, recipe) for i, recipe in enumerate(recipes)])
    with serve(judge) as server:
        found = score(tmp_path, server.base)
        assert found.returncode == 0 and server.n_seen == 10, found.stderr
    rows = read_rows(tmp_path / "scored.jsonl")
    assert [(row["chosen_score"], row["rejected_score"]) for row in rows] == [(9, 4)] * 5
    assert [row.get("own_score") for row in rows] == [4, 4, 6.5, None, None]
    assert all(row["scorer"] == "judge" and row["prompt"] == f"Name bird {i}." for i, row in enumerate(rows))
    ratings = [record.ratings for record in load_preferences(tmp_path / "scored.jsonl")]
    assert [(r.scores, r.own) for r in ratings] == [((9, 4), own) for own in (4, 4, 6.5, None, None)]


def test_own_answers_are_drawn_for_pairs_that_have_none(tmp_path):
    write_rows(tmp_path / "pairs.jsonl", [pair(0, "clair"), pair(1), pair(2, "judge-off-policy")])
    asked = []
    with serve(lambda seen: asked.append(seen.text) or Reply.chat("a heron")) as target, serve(judge) as server:
        more = ["--target-endpoint", target.base, "--target-name", "llama"]
        assert score(tmp_path, server.base, *more).returncode == 0
    assert sorted(asked) == ["Name bird 1.", "Name bird 2."]
    assert [row["own_score"] for row in read_rows(tmp_path / "scored.jsonl")] == [4, 9, 9]


def test_several_grades_are_averaged_and_those_that_are_none_left_out(tmp_path):
    write_rows(tmp_path / "pairs.jsonl", [pair(0)])
    given = collections.Counter()

    def reply(seen):
        text = graded_of(seen)
        given[text] += 1
        return Reply.chat("none" if given[text] == 2 else f"[{given[text]}]")

    with serve(reply) as server:
        assert score(tmp_path, server.base, "--n-grades", 3).returncode == 0
        assert server.n_seen == 6
    (row,) = read_rows(tmp_path / "scored.jsonl")
    assert (row["chosen_score"], row["rejected_score"]) == (2, 2)  # of 1 and 3


def test_what_a_judge_thinks_is_no_grade_and_is_kept(tmp_path):
    write_rows(tmp_path / "pairs.jsonl", [pair(0, "clair")])
    thoughts = "<think>\nGrades are such as [7].\n\n[1]\n</think>\n\n"

    def reply(seen):
        if "otter" in graded_of(seen):
            return Reply.chat("Hm.\n[9]\nNo, all in all", finish="max_tokens")  # cut: no grade
        return Reply.chat(thoughts + "[9]<|im_end|>")

    with serve(reply) as server:
        found = score(tmp_path, server.base)
    (row,) = read_rows(tmp_path / "scored.jsonl")
    assert row["chosen_score"] == 9 and "rejected_score" not in row
    assert row["scorer_reasoning"] == ["Grades are such as [7].\n\n[1]"]
    assert "in 1 rows the judge's thoughts were cut off" in found.stderr and found.returncode == 1


@pytest.mark.parametrize("flags", [{"api": "responses"}, {"stream": True}])
def test_what_a_reward_model_has_not_is_refused(flags):
    with pytest.raises(InputError, match="--api and --stream are for a judge"):
        ScoreConfig(pairs="d", out="o", store="s", endpoint=("http://x",), model="m", reward=True, **flags)


def test_a_reward_model_scores_the_conversation(tmp_path):
    write_rows(tmp_path / "pairs.jsonl", [pair(0, "clair")])
    asked = []

    def reply(seen):
        asked.append(seen)
        return Reply.json({"data": [{"data": [1.5 if "heron" in seen.text else -0.5]}], "model": "rm"})

    with serve(reply) as server:
        assert score(tmp_path, server.base, "--reward").returncode == 0
    assert {seen.path for seen in asked} == {"/pooling"}  # where vLLM has it
    assert (
        asked[0].body["messages"][0] == {"role": "user", "content": "Name bird 0."}
        and "temperature" not in asked[0].body
    )
    (row,) = read_rows(tmp_path / "scored.jsonl")
    assert (row["chosen_score"], row["rejected_score"], row["own_score"]) == (1.5, -0.5, -0.5)


def test_a_row_that_cannot_be_scored_is_said_and_kept_without(tmp_path):
    write_rows(tmp_path / "pairs.jsonl", [pair(0), pair(1)])
    with serve(lambda seen: Reply.chat("hm") if "otter 1" in graded_of(seen) else judge(seen)) as server:
        found = score(tmp_path, server.base)
    assert (
        found.returncode == 1 and "1 of 2 pairs are scored" in found.stderr and "1 rows lack the score" in found.stderr
    )
    rows = read_rows(tmp_path / "scored.jsonl")
    assert len(rows) == 2 and "rejected_score" not in rows[1] and rows[1]["chosen_score"] == 9


def test_another_scorers_scores_are_not_kept_beside_ours(tmp_path):
    old = {"chosen_score": 1, "rejected_score": -3.0, "own_score": -1.5, "scorer": "other"}
    write_rows(tmp_path / "pairs.jsonl", [pair(0) | old])
    with serve(lambda seen: Reply.chat("hm") if "otter" in graded_of(seen) else judge(seen)) as server:
        score(tmp_path, server.base)
    (row,) = read_rows(tmp_path / "scored.jsonl")
    assert row["chosen_score"] == 9 and row["scorer"] == "judge"
    assert "rejected_score" not in row and "own_score" not in row


def test_a_dry_run_sends_nothing(tmp_path):
    write_rows(tmp_path / "pairs.jsonl", [pair(i) for i in range(7)])
    with serve(judge) as server:
        found = score(tmp_path, server.base, "--dry-run")
        assert server.n_seen == 0 and found.returncode == 0
    assert re.search(r"score: 14 requests, about [\d,]+ tokens to send, at most 14,336 to receive", found.stdout)


@pytest.mark.parametrize("row", [{"prompt": "a", "completion": "b"}, {"prompt": "a"}])
def test_a_row_that_is_no_pair_is_named_before_anything_is_sent(tmp_path, row):
    write_rows(tmp_path / "pairs.jsonl", [pair(0), row])
    with serve(judge) as server:
        found = score(tmp_path, server.base)
        assert server.n_seen == 0
    assert found.returncode == 2 and "pairs.jsonl:2:" in found.stderr
