"""A judge's answer."""

import pytest

from revise import judge
from revise.templates import read_template


@pytest.mark.parametrize(
    ("answer", "choice"),
    [
        ("[1]", 1),
        ("{teacher_reasoning}: the second is clearer.\n\n[2]", 2),
        ("[1] is vague and [2] is clear.\n\nFinal answer: [2]", 2),
        ("**[1]**", 1),
        ("The best answer is [1].\nIt is clear.", 1),
        ("Answer: [1].\n(Not [2].)", 1),
        ("a[2] is cited, see [2].\n\n**Final answer: [1]**", 1),
        ("In the end I choose [2] for its clarity.", 2),
        ("[1] [1]", 1),
        ("**Final Answer: [2]**", 2),
        ("\\boxed{[2]}", 2),
        ("\\boxed{2}", 2),
        ("The better answer is {student_solution_2}.\n\n[2]", 2),
        ("[[2]]", 2),
        ("<answer>[2]</answer>", 2),
        ("I choose [2] because [1] is wrong.", 2),
        ("[2]\n\nStudent [1] says otter, which is wrong.", 2),
        ("最终答案：[2]", 2),
        ("**Final answer:** [ 2 ]", 2),
        ("The better answer is [2], since [1] names an otter.", 2),
    ],
)
def test_a_line_that_is_a_verdict_decides(answer, choice):
    assert judge.parse_choice(answer) == choice


@pytest.mark.parametrize(
    ("answer", "reason"),
    [("", "no choice"), ("the first", "no choice"), ("1", "no choice"), ("[3]", "no choice"),
     ("[1] or [2]", "both chosen"), ("[12]", "no choice"), ("[2]\n[1]", "both chosen"),
     ("It cites [2].\n\nTherefore the first one.", "no choice"), ("It uses argv[1].\n\nFinal answer: 2", "no choice"),
     ("it is not [2]", "no choice"), ("Student 2 names a bird.\n\nThere is no reason to prefer [1].", "no choice"),
     ("The worse answer is [1].", "no choice"), ("I would choose [1] if it were true.", "no choice"),
     ("[1] is better in style, but [2] is right.", "no choice"), ("I cannot choose [1].", "no choice"),
     ("2", "no choice"), ("The better answer in style is [1] because it is short.", "no choice"),
     ("It is better than [1].", "no choice"), ("So much for [1].", "no choice"),
     ("\\boxed{1}\n\\boxed{2}", "both chosen"),
     ("I do not choose [1] because [2] is right.", "no choice")],
)  # fmt: skip
def test_anything_else_is_no_judgment(answer, reason):
    with pytest.raises(ValueError, match=f"^{reason}$"):
        judge.parse_choice(answer)


@pytest.mark.parametrize(
    ("answer", "score"),
    [
        ("[7]", 7),
        ("so:\n\n[10]", 10),
        ("[6.5]", 6.5),
        ("[8/10]", 8),
        ("[3] for style\nin all [4]\n", 4),
        ("[7]\nReference [10] is weak.", 7),
        ("**[1]**", 1),
        ("Grade: [8/10]", 8),
        ("[8 / 10]", 8),
        ("[8.5]", 8.5),
        ("[ 8 ]", 8),
        ("The grade is [8].", 8),
        ("[8]/10", 8),
        ("Overall grade:\n[8]\n\nRubric:\n[1] useless [10] perfect", 8),
        ("I would give it a grade of [8].", 8),
    ],
)
def test_a_grade_is_read(answer, score):
    assert judge.parse_score(answer) == score


@pytest.mark.parametrize(
    ("answer", "reason"),
    [("7", "no grade"), ("[0]", "grade out of range"), ("[11]", "grade out of range"), ("[-3]", "grade out of range"),
     ("[7] or [8]", "two grades"), ("a[3] is used.\n\nFinal grade: 8/10", "no grade"), ("", "no grade"),
     ("[nan]", "no grade"), ("Score: 8/10", "no grade"), ("Grade: **8**", "no grade"), ("[4]/5", "no grade"),
     ("[80/100]", "no grade"), ("[8]/100", "no grade"), ("It is far from a [10].", "no grade")],
)  # fmt: skip
def test_anything_else_is_no_grade(answer, reason):
    with pytest.raises(ValueError, match=f"^{reason}$"):
        judge.parse_score(answer)


def test_answers_are_shown_in_the_order_given():
    template = read_template(None, "judge", judge.CHOICE_SLOTS)
    made = judge.choose_request("T {x}", "A <TASK>", "B [2]", template)
    assert "{student_solution_1}: A <TASK>\n" in made and "{student_solution_2}: B [2]\n" in made
    assert made.index("A <TASK>") < made.index("B [2]")
