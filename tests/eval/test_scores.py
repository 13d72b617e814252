"""Lines of scores, and when two of them may be subtracted."""

import pytest

from eval import scores
from system.errors import InputError


def line(checkpoint="epoch-01", value=0.5, **more):
    return {"checkpoint": checkpoint, "benchmark": "b", "version": "1", "metric": "overall", "value": value, **more}


def test_a_number_measured_again_replaces_the_old_one(tmp_path):
    path = tmp_path / "scores.jsonl"
    scores.write(path, [line(judge="a"), line(judge="b"), line("base", 0.4, judge="a")])
    scores.write(path, [line(value=0.75, judge="a")])
    found = scores.read(path)
    assert [(x["checkpoint"], x["judge"], x["value"]) for x in found] == [
        ("epoch-01", "b", 0.5), ("base", "a", 0.4), ("epoch-01", "a", 0.75),
    ]  # fmt: skip


@pytest.mark.parametrize("fact", scores.FACTS)
def test_numbers_of_different_origin_are_not_subtracted(fact):
    with pytest.raises(InputError, match=f"{fact} is 'x' in one and 'y' in the other"):
        scores.delta(line(**{fact: "x"}), line("base", **{fact: "y"}))
    assert scores.delta(line(value=0.75, **{fact: "x"}), line("base", 0.5, **{fact: "x"})) == 0.25
    assert scores.delta(line(value=0.75, **{fact: "x"}), line("base", 0.5)) == 0.25  # one of them does not say


@pytest.mark.parametrize("fact", scores.ASKED)
def test_what_was_not_sent_is_another_question_than_what_was(fact):
    with pytest.raises(InputError, match=f"{fact} is '0.0' in one and None in the other"):
        scores.delta(line(**{fact: "0.0"}), line("base", **{fact: None}))
    assert scores.delta(line(value=0.75, **{fact: None}), line("base", 0.5, **{fact: None})) == 0.25


def test_the_newest_lines_are_those_that_may_be_subtracted():
    old, base, new = (
        line(judge_temperature=None),
        line("base", 0.4, judge_temperature=None),
        line(judge_temperature=0.0),
    )
    assert scores.newest([old, base, new]) == [old, base]
    foreign = line("epoch-02", 0.6)  # says nothing of a temperature
    assert scores.newest([old, base, foreign]) == [old, base, foreign]
    assert scores.newest([base, line(judge_model="a", judge_temperature=None)])[0] == base


def test_a_number_that_was_not_judged_whole_is_marked_and_not_subtracted():
    whole, cut = line(n=805, n_unjudged=8, n_asked=805), line("base", 0.4, n=705, n_unjudged=100, n_asked=805)
    assert (scores.mark(whole), scores.mark(cut)) == ("", "100 of 805 not judged")
    assert scores.mark(line(n=100, n_fallbacks=1, n_blocked=1)) == "2 of 100 not judged"  # as it was written before
    assert scores.delta(whole, line("base", 0.25, n=805)) == 0.25
    with pytest.raises(InputError, match="8 of 805 queries of epoch-01 and 100 of 805 queries of base were not judged"):
        scores.delta(whole, cut)
    same = scores.unjudged_facts(["a", "b"], 100)
    assert scores.delta(line(value=0.75, **same), line("base", 0.5, **same)) == 0.25  # both lack the same queries
    with pytest.raises(InputError, match="were not judged"):
        scores.delta(line(**same), line("base", **scores.unjudged_facts(["a", "c"], 100)))


@pytest.mark.parametrize("bad", ['{"value": 1}', "[1]", "{", '{"checkpoint": "a", "benchmark": "b", "version": "c", '
                                 '"metric": "d", "value": true}'])  # fmt: skip
def test_a_line_that_is_no_score_is_located(tmp_path, bad):
    path = tmp_path / "scores.jsonl"
    scores.write(path, [line()])
    path.write_text(path.read_text() + bad + "\n")
    with pytest.raises(InputError, match=r"scores\.jsonl:2"):
        scores.read(path)


def test_the_base_of_another_run_is_taken_over(tmp_path):
    scores.write(tmp_path / "a.jsonl", [line(judge="j"), line("base", 0.25, judge="j")])
    assert scores.copy_base(tmp_path / "a.jsonl", tmp_path / "b.jsonl", judge="j") == 1
    assert [x["checkpoint"] for x in scores.read(tmp_path / "b.jsonl")] == ["base"]
    scores.write(tmp_path / "c.jsonl", [line()])
    with pytest.raises(InputError, match="has no scores of 'base'"):
        scores.copy_base(tmp_path / "c.jsonl", tmp_path / "b.jsonl", judge="j")
    with pytest.raises(InputError, match="by the judge 'k'"):
        scores.copy_base(tmp_path / "a.jsonl", tmp_path / "b.jsonl", judge="k")
