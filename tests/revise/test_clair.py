"""A reviser's answer: where its parts are, and whether they make a pair."""

import json
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from data.text import Message
from revise import clair
from revise.templates import parse_template, read_template, task_of
from system.errors import InputError

REAL = Path(__file__).parents[2].parent / "shared/data/clair_responses.jsonl"
BOTH = "The student is wrong.", "The heron."
MARKER = "{corrected_student_solution}"


@pytest.mark.parametrize(
    "answer",
    [
        "{teacher_reasoning}: The student is wrong.\n\n{corrected_student_solution}: The heron.",
        "{teacher_reasoning}\n\nThe student is wrong.\n\n{corrected_student_solution}\n\nThe heron.",
        "{{teacher_reasoning}}:\nThe student is wrong.\n{{corrected_student_solution}}:\nThe heron.\n",
        "**{teacher_reasoning}:** The student is wrong.\n\n**{corrected_student_solution}:** The heron.",
        "**{teacher_reasoning}**: The student is wrong.\n\n**{corrected_student_solution}**:\nThe heron.",
        "### {teacher_reasoning}\nThe student is wrong.\n\n### {corrected_student_solution}\nThe heron.",
        "## Teacher Reasoning\nThe student is wrong.\n## Corrected Student Solution\nThe heron.",
        "**Teacher reasoning:**\nThe student is wrong.\n\n**Corrected student solution:**\nThe heron.",
        "teacher_reasoning: The student is wrong.\ncorrected_student_solution: The heron.",
        "[teacher_reasoning] The student is wrong.\n[corrected_student_solution] The heron.",
        "`{teacher_reasoning}`:\nThe student is wrong.\n\n`{corrected_student_solution}`:\nThe heron.",
        "> {teacher_reasoning}: The student is wrong.\n\n> {corrected_student_solution}: The heron.",
        "Sure!\n\n{teacher_reasoning}: The student is wrong.\n\n{corrected_student_solution}: The heron.",
        "{teacher_reasoning}: The student is wrong. {corrected_student_solution}: The heron.",
        "teacher_reasoning: The student is wrong.\n" + MARKER + "\nThe heron.\n{/corrected_student_solution}",
        "<teacher_reasoning>The student is wrong.\n<corrected_student_solution>The heron.\n"
        + "</corrected_student_solution>",
        "{teacher_reasoning}: The student is wrong.\r\n\r\n{corrected_student_solution}:\r\nThe heron.",
        "{teacher_reasoning}：The student is wrong.\n\n{corrected_student_solution}：The heron.",
        "{teacher_reasoning} - The student is wrong.\n\n{corrected_student_solution} - The heron.",
        "\\{teacher\\_reasoning\\}: The student is wrong.\n\n\\{corrected\\_student\\_solution\\}: The heron.",
        "**\\{teacher\\_reasoning\\}:** The student is wrong.\n\n**\\{corrected\\_student\\_solution\\}**: The heron.",
        "```\n{teacher_reasoning}: The student is wrong.\n\n{corrected_student_solution}: The heron.\n```",
    ],
)
def test_the_parts_are_found_however_they_are_marked(answer):
    reasoning, revision = clair.parse(answer)
    assert (reasoning.removesuffix("</teacher_reasoning>").strip(), revision) == BOTH


@pytest.mark.parametrize(
    "marker",
    [MARKER, f"{MARKER}:", f"{MARKER}: ", f"**{MARKER}**:", f"**{MARKER}:**", f"## {MARKER}\n", f"`{MARKER}`:\n",
     "**Corrected student solution:** ", r"{corrected\_student\_solution}:", "## Corrected Solution\n",
     "Corrected Student Solution\n--------------------------\n", "[corrected_student_solution]: "],
)  # fmt: skip
@pytest.mark.parametrize(
    "revision",
    ["**Paris** is it.", '"To be" is it.', "`ls` lists.", "__init__ is it.", "> quoted", ">>> print(1)",
     "* item\n* item", "'tis so.", "[link](a) here", "(so)", "{a: 1}", ": colon", "_emphasis_ here", "# Title\ntext"],
)  # fmt: skip
def test_nothing_of_the_revision_is_taken_for_a_marker(marker, revision):
    if revision[0] == ":" and not marker.rstrip("\n *`").endswith(":"):
        pytest.skip("a colon behind a marker is the marker's")
    for gap in ("\n", "\n\n") if marker in (MARKER, f"**{MARKER}**:") else ("", "\n"):
        assert clair.parse(f"{{teacher_reasoning}}: why\n\n{marker}{gap}{revision}") == ("why", revision)


def test_the_real_answers_parse_and_make_pairs():
    if not REAL.exists():
        pytest.skip("the real answers are not beside this checkout")
    rows = [json.loads(line) for line in REAL.read_text(encoding="utf-8").splitlines()]
    assert len(rows) == 8
    for row in rows:
        reasoning, revision = clair.parse(row["completion"], student_solution=row["student_solution"])
        assert (reasoning, revision) == clair.parse(row["completion"])
        head, _, tail = row["completion"].partition("{corrected_student_solution}")  # each holds it once
        assert revision == tail.lstrip(": \n").rstrip()
        assert reasoning == head.removeprefix("{teacher_reasoning}").lstrip(": \n").rstrip()
        bounds = {"min_ratio": clair.MIN_LENGTH_RATIO, "max_ratio": clair.MAX_LENGTH_RATIO}
        clair.check(revision, row["student_solution"], row["task"], **bounds, may_allude=False)


@pytest.mark.parametrize(
    "student", [f"{MARKER}: old", f"first\n{MARKER}\nold", f"I say {MARKER}: old", f"**{MARKER}:** old"]
)
def test_a_student_who_writes_the_marker_fools_nobody(student):
    revision = student.replace("old", "new")
    answer = f"{{teacher_reasoning}}: Fine.\n\n{MARKER}:\n{revision}"
    for known in (None, student):
        assert clair.parse(answer, student_solution=known) == ("Fine.", revision)
    quoted = f"{{teacher_reasoning}}: The student wrote\n{student}\nwhich is old.\n\n{MARKER}:\n{revision}"
    reasoning, found = clair.parse(quoted, student_solution=student)
    assert found == revision and reasoning.endswith("which is old.")


def test_a_marker_that_is_only_spoken_of_is_none():
    answer = f"{{teacher_reasoning}}: The {MARKER} below is shorter.\nThe {MARKER} is better.\n\n{MARKER}\nThe heron."
    assert clair.parse(answer)[1] == "The heron."
    with pytest.raises(ValueError, match=r"^no marker$"):
        clair.parse(f"{{teacher_reasoning}}: The {MARKER} would be shorter, and I leave it at that.")


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        ("", "empty"),
        ("  \n", "empty"),
        ("The heron.", "no marker"),
        ("{teacher_reasoning}: wrong.", "no marker"),
        ("A corrected student solution is hard to write.", "no marker"),
        ("Corrected student solutions: none", "no marker"),
        ("I'm sorry, but I can't help with that.", "refused"),
        ("I cannot assist with this request.", "refused"),
        (f"{{teacher_reasoning}}: x\n{MARKER}:\n \n", "empty"),
        (f"{MARKER}: The heron.\n\n{{teacher_reasoning}}: The student is wrong.", "no reasoning before it"),
    ],
)
def test_what_cannot_be_split_has_a_reason(answer, reason):
    with pytest.raises(ValueError, match=f"^{reason}$"):
        clair.parse(answer)


def test_a_dash_marks_nothing_by_itself():
    """Behind braces at a line's beginning it is passed over; within a line it makes no marker, and a list keeps it."""
    for answer in (f"I will fix the {MARKER} - the capital is Paris.", f"See the {MARKER} – as asked."):
        with pytest.raises(ValueError, match=r"^no marker$"):
            clair.parse(answer)
    bullet = f"{{teacher_reasoning}}:\n- {MARKER} - keep it short\n\n{MARKER}:\nThe heron."
    assert clair.parse(bullet, student_solution="The otter.")[1] == "The heron."
    for gap in ("\n", "\n\n"):
        assert clair.parse(f"{MARKER} - one{gap}- two{gap}- three")[1] == f"- one{gap}- two{gap}- three"


def test_two_solutions_are_none():
    answer = f"{{teacher_reasoning}}: x\n{MARKER}:\nA\n\n{MARKER}:\nB"
    with pytest.raises(ValueError, match=r"^two solutions$"):
        clair.parse(answer, student_solution="a")


@pytest.mark.parametrize(
    "answer",
    [" " * 10**6, "\n" * 10**6, "{" * 10**6, "*" * 10**6, MARKER * 37_000, f"\n{MARKER}:" * 30_000,
     "corrected student solution " * 37_000, "I am sorry " * 90_000, "the student " * 83_000],
    ids=lambda text: text[:12],
)  # fmt: skip
def test_a_megabyte_of_tricks_takes_no_time(answer):
    start = time.process_time()
    try:
        clair.parse(answer, student_solution="a")
        clair.check(answer, "a", "b", min_ratio=0, max_ratio=1e9, may_allude=False)
    except ValueError:
        pass
    assert time.process_time() - start < 2  # a tenth of that or less; a quadratic search would take hours


@given(st.text(alphabet="{}_*#: \ncorectdsunihag", max_size=200))
def test_whatever_is_parsed_is_part_of_the_answer(text):
    answer = f"{text}\n{MARKER}:\n{text}"
    try:
        reasoning, revision = clair.parse(answer)
    except ValueError:
        return
    assert revision in answer and reasoning in answer and revision.strip() == revision != ""


# --- filters -------------------------------------------------------------------------------------------------------


def check(revision, student="The otter, a bird.", task="Name a bird.", **more):
    clair.check(revision, student, task, **({"min_ratio": 0.5, "max_ratio": 2.0, "may_allude": False} | more))


@pytest.mark.parametrize(
    ("revision", "reason"),
    [
        ("The otter, a bird.", "unchanged"),
        ("x" * 8, "too short"),
        ("x" * 37, "too long"),
        ("The corrected solution: a heron", "alludes to the revision"),
        ("The student's answer, but better", "alludes to the revision"),
        ("{corrected_student_solution} heron", "alludes to the revision"),
        ("Unlike the original answer: heron", "alludes to the revision"),
        ("Here is the revised version: heron", "alludes to the revision"),
        ("I have corrected the animal: heron", "alludes to the revision"),
        ("As the student wrote, a heron.", "alludes to the revision"),
        ("The  otter,\na bird. ", "unchanged"),
        ("The heron, a bird.\n```", "half a block of code"),
        ("I'm sorry, I can't help with it.", "refused"),
        ("In this revision I name the heron", "alludes to the revision"),
    ],
)
def test_a_revision_that_makes_no_pair_has_a_reason(revision, reason):
    with pytest.raises(ValueError, match=f"^{reason}$"):
        check(revision)


@pytest.mark.parametrize("revision", ["x" * 9, "x" * 36, "The heron, a bird.", "Students of birds know it."])
def test_bounds_are_inclusive_and_plain_words_no_allusions(revision):
    check(revision)


BIRD = "The heron, a bird of the marsh."


@pytest.mark.parametrize(
    "note",
    ["---\n\n**Changes made:**\n- otter -> heron", "Changes made:\n- otter", "**Changes I made**:\n1. the animal",
     "(Note: I kept the tone and changed the animal.)", "*Note: I've only replaced the otter.*",
     "What I changed: birds.",
     "### Summary of changes\n- otter", "Explanation of the corrections: otters are no birds.",
     "---\nExplanation: the otter is no bird.", "***\n\n*Rationale:* otters swim.", "---\nI kept the tone.",
     "The corrections made to the text:\n- heron"],
)  # fmt: skip
def test_a_note_to_the_reader_is_an_allusion(note):
    student = "The otter, a bird of the marsh, and of the sea. "
    with pytest.raises(ValueError, match=r"^alludes to the revision$"):
        check(f"{BIRD}\n\n{note}", student)
    check(f"{BIRD}\n\n{note}", student, may_allude=True)
    check(f"{BIRD}\n\n{note}", f"{student}\n\n{note}")  # the answer has it, too


@pytest.mark.parametrize(
    "end",
    ["Note: replace the placeholders by your own values.", "---\n\n**Note:** ask a doctor first.",
     "(Note: herons were seen there in May.)", "---\n## Habits\nIt kept to the reeds.",
     "Improvements to the marsh: none.",
     "Changes of the weather: many.", "Explanation: it stands still."],
)  # fmt: skip
def test_a_note_that_belongs_to_the_answer_is_none(end):
    check(f"{BIRD}\n\n{end}", "The otter, a bird of the marsh, and of the sea. ")


def test_what_the_task_asks_for_is_no_note():
    end = "---\nExplanation: it stands still."
    check(f"{BIRD}\n\n{end}", "The otter, a bird of the marsh, and of the sea.", task="Name a bird, and explain it.")


def test_what_the_task_or_the_answer_speaks_of_is_no_allusion():
    words = "The student's answer is a heron."
    check(words, task="Quote the student's answer.")
    check(words, student="The student's answer, I think.")
    check(words, may_allude=True)


# --- the request ---------------------------------------------------------------------------------------------------


def test_texts_are_put_in_as_they_are():
    template = read_template(None, "clair", clair.SLOTS, clair.OPTIONAL_SLOTS)
    task, student = "{task} <STUDENT_SOLUTION> %s {0}", "<TASK> {student_solution} \\1 $x"
    made = clair.request(task, student, template, strength="standard", keep_length=False)
    assert f"{{task}}: {task}\n" in made and f"{{student_solution}}: {student}\n" in made
    assert len(made) == len(template.fill(task="", student_solution="", degree=clair.STRENGTHS["standard"])) + len(
        task + student
    )


def test_the_strengths_and_the_length_change_the_request():
    template = read_template(None, "clair", clair.SLOTS, clair.OPTIONAL_SLOTS)
    made = {
        clair.request("t", "s", template, strength=strength, keep_length=keep)
        for strength in clair.STRENGTHS
        for keep in (False, True)
    }
    assert len(made) == 6


def test_our_wording_has_the_papers_parts():
    text = read_template(None, "clair", clair.SLOTS, clair.OPTIONAL_SLOTS).text
    for part in ("{task}", "{student_solution}", "{teacher_reasoning}", "{corrected_student_solution}"):
        assert part in text
    assert text.index("{task}: <TASK>") < text.index("{student_solution}: <STUDENT_SOLUTION>") < text.index("\n---")


@pytest.mark.parametrize(
    ("text", "fault"),
    [("<TASK>", "never"), ("<TASK><TASK><STUDENT_SOLUTION>", "2 times"),
     ("<TASK><STUDENT_SOLUTION><STUDENT_SOLUTION_1>", "has no value in this template"),
     ("<TASK><STUDENT_SOLUTION><DEGREE><DEGREE>", "more than once")],
)  # fmt: skip
def test_a_template_without_its_slots_is_refused(text, fault):
    with pytest.raises(InputError, match=f"^mine: .*{fault}"):
        parse_template(text, "mine", clair.SLOTS, clair.OPTIONAL_SLOTS)


def test_a_conversation_is_a_task_with_its_turns():
    assert task_of((Message("user", "Name a bird."),)) == "Name a bird."
    turns = Message("system", "Be brief."), Message("user", "A?"), Message("assistant", "B."), Message("user", "C?")
    assert task_of(turns) == "[system]\nBe brief.\n\n[user]\nA?\n\n[assistant]\nB.\n\n[user]\nC?"
