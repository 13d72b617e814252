"""MixEval-Hard's prompts, judge requests, parsing and tables, on a checkout made up for the test."""

import os

import pytest

from eval.mixeval import aggregate, format_prompt, judge_messages, parse_option, parse_score, read_wording
from system.errors import InputError
from tests.eval.upstream import EVALUATION, JUDGE, checkout


@pytest.fixture
def wording(tmp_path):
    return read_wording(checkout(tmp_path))


def entry(**more):
    return {"prompt": "Why? ", "context": None, "target": ["a", "b {x}"], "benchmark_name": "DROP"} | more


@pytest.mark.parametrize(
    ("row", "prompt"),
    [
        (entry(), "Question: Why? \nBe short."),
        (entry(context="Long ago. "), "Question: Long ago. \nWhy? \nBe short."),
        (entry(context="  "), "Question: Why? \nBe short."),
        (entry(context="NULL"), "Question: Why? \nBe short."),
        (entry(benchmark_name="MATH"), "Question: Why? \nAnswer. \nProve."),
        (entry(benchmark_name="BBH", context="c"), "Question: c\nWhy? \nAnswer. \nThink."),
    ],
)
def test_a_free_form_prompt_is_written_as_upstream_writes_it(wording, row, prompt):
    assert format_prompt(row, "free-form", wording) == prompt


def test_a_question_with_options_has_letters(wording):
    row = entry(options=["one ", "two", "three"])
    assert format_prompt(row, "multiple-choice", wording) == "Why? \nA. one \nB. two\nC. three\nSay a letter."
    assert format_prompt(row | {"context": "c"}, "multiple-choice", wording).startswith("c\nWhy? \nA. one ")


def test_the_judge_sees_question_gold_and_answer_without_context(wording):
    row = entry(context="secret")
    assert judge_messages(row, "x {prompt}", "free-form", wording) == [
        {"role": "system", "content": "Judge."},
        {
            "role": "user",
            "content": 'Mark as "[[score]]".\nQ: Why? \nG: <answer 1> a; <answer 2> b {x}\nA: x {prompt}\nVerdict: \n',
        },
    ]
    shown = judge_messages(entry(options=["o", "p"]), "B", "multiple-choice", wording)[1]["content"]
    assert shown == "Q: Why? \nA. o\nB. p\nA: B\n"


def test_the_checkouts_code_is_parsed_and_never_run(tmp_path):
    evil = f"import os\nos.system('touch {tmp_path}/ran')\nos.abort()\n"
    wording = read_wording(checkout(tmp_path / "a", evil + EVALUATION, evil + JUDGE))
    assert wording.multiple_choice == "Say a letter." and not (tmp_path / "ran").exists()
    hidden = JUDGE.replace("{response}", "{__import__('os').abort()}", 1)
    with pytest.raises(InputError, match="not of the known form"):
        read_wording(checkout(tmp_path / "b", judge=hidden))
    assert os.getpid()


@pytest.mark.parametrize(
    ("evaluation", "judge"),
    [("x = 1", JUDGE), (EVALUATION.replace('"Be short."', "3"), JUDGE), (EVALUATION, "x = 1"), (EVALUATION, "def (:"),
     (EVALUATION, JUDGE.replace("{gold_ans}", "")), (EVALUATION, JUDGE.replace("lambda", "print or lambda"))],
)  # fmt: skip
def test_a_checkout_of_another_form_is_refused(tmp_path, evaluation, judge):
    with pytest.raises(InputError, match=str(tmp_path)):
        read_wording(checkout(tmp_path / "c", evaluation, judge))


def test_a_folder_that_is_no_checkout_is_said(tmp_path):
    with pytest.raises(InputError, match="MixEval checkout"):
        read_wording(tmp_path)


@pytest.mark.parametrize(
    ("text", "score"),
    [("[[0.7]]", 0.7), ("[[1]] no, [[0.5]]", 1), ("[0.3] so [[0.9]]", 0.9), ("as [0] says", 0), ("[[1.]]", 1),
     ("[[0.85]]", 0.85), ("[[ 0.7 ]]", None), ("[[.5]]", None), ("[[0,5]]", None), ("0.9", None), ("[[2]]", None),
     ("[[01]]", None), ("", None)],
)  # fmt: skip
def test_a_score_is_the_first_in_double_brackets(text, score):
    assert parse_score(text) == score


@pytest.mark.parametrize(
    ("text", "letter"), [("[[B]]", "B"), ("[A] or [[C]]", "C"), ("it is [D]", "D"), ("[[b]]", None), ("B", None)]
)
def test_an_option_is_the_first_in_double_brackets(text, letter):
    assert parse_option(text) == letter


def test_both_tables_are_sums_of_means_of_three_digits():
    entries = {
        "free-form": {str(i): entry(benchmark_name=name) for i, name in enumerate(["X", "X", "X", "Both"])},
        "multiple-choice": {
            str(i): entry(benchmark_name=name) for i, name in enumerate(["Both", "Both", "Y", "Y", "Y", "Y"])
        },
    }
    scores = {
        "free-form": {"0": 1.0, "1": 0.0, "2": 0.0, "3": 0.5},
        "multiple-choice": dict(zip("012345", [1.0, 0.0, 1.0, 0.0, 0.0, 0.0], strict=True)),
    }
    old, new = (aggregate(scores, entries, mode) for mode in ("table4_compat", "merged"))
    assert old == pytest.approx({"overall": (0.375 + 0.333) / 2, "X": 0.333, "Both": 0.5, "Y": 0.25}, abs=1e-12)
    assert new == pytest.approx(
        {"overall": (0.375 * 4 + 0.333 * 6) / 10, "X": 0.333, "Both": (0.5 * 1 + 0.5 * 2) / 3, "Y": 0.25}, abs=1e-12
    )


def test_of_a_benchmark_in_both_splits_the_old_table_keeps_the_second_alone():
    entries = {"free-form": {"0": entry(benchmark_name="B")}, "multiple-choice": {"0": entry(benchmark_name="B")}}
    scores = {"free-form": {"0": 1.0}, "multiple-choice": {"0": 0.0}}
    assert aggregate(scores, entries, "table4_compat") == {"overall": 0.5, "B": 0.0}
    assert aggregate(scores, entries, "merged") == {"overall": 0.5, "B": 0.5}


def test_a_query_without_a_score_is_named():
    with pytest.raises(InputError, match="free-form 7"):
        aggregate({"free-form": {}}, {"free-form": {"7": entry()}}, "merged")
