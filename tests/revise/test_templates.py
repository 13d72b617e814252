"""The wording of requests: the paper's own, by its name and with its license."""

import configparser

import pytest

from revise import clair, judge, recipes
from revise.templates import FOLDER, read_template
from system.errors import InputError
from tests.pages import ROOT


@pytest.mark.parametrize(
    ("name", "begins", "holds", "ends"),
    [
        (
            "clair",
            "You are a teacher and your task is to minimally improve a student's answer. I will give you a {task} ",
            "\n\n{task}: <TASK>\n\n{student_solution}: <STUDENT_SOLUTION>\n\n-----------------\n\nLet's first think ",
            "the {teacher_reasoning} and {corrected_student_solution} identifiers to structure your answer.\n\n",
        ),
        (
            "judge",
            "You are a teacher and your task is to pick the best student's answer. The best answer is the most clear, ",
            "\n\n{student_solution_1}: <STUDENT_SOLUTION_1>\n\n{student_solution_2}: <STUDENT_SOLUTION_2>\n\n---------",
            "to decide which solution is better, and then answer [1] or [2].\n\n",
        ),
    ],
)
def test_the_papers_wording_is_there_by_its_name(name, begins, holds, ends):
    slots = clair.SLOTS if name == "clair" else judge.CHOICE_SLOTS
    text = read_template("paper", name, slots).text
    assert text.startswith(begins) and holds in text and text.endswith(ends)
    assert "{{" not in text and text.isascii()
    ours = read_template(None, name, slots, clair.OPTIONAL_SLOTS).text
    assert text != ours


def test_the_papers_wording_comes_with_its_license_and_its_authors():
    text = (FOLDER / "paper-LICENSE.txt").read_text()
    assert "Creative Commons Attribution 4.0" in text and "Oosterlinck" in text and "10.1162/tacl_a_00748" in text
    assert "What was changed" in text
    parser = configparser.ConfigParser()
    parser.read(ROOT / "setup.cfg")
    assert "revise/templates/paper-LICENSE.txt" in parser["metadata"]["license_files"].split()
    assert "CC BY 4.0" in (ROOT / "docs/pairs.md").read_text()


def test_the_paper_has_no_wording_of_grades():
    with pytest.raises(InputError, match=r"^--template paper: the paper has no prompt for this command"):
        read_template("paper", "score", judge.SCORE_SLOTS)


def test_a_file_of_that_name_is_given_by_its_path(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "paper").write_text("<TASK> <STUDENT_SOLUTION>")
    assert read_template("./paper", "clair", clair.SLOTS).text == "<TASK> <STUDENT_SOLUTION>"
    assert read_template("paper", "clair", clair.SLOTS).text != "<TASK> <STUDENT_SOLUTION>"


def test_no_degree_is_asked_for_in_the_papers_words():
    settings = {"prompts": "p.jsonl", "out": "o.jsonl", "store": "s.sqlite", "model": "m", "endpoint": ("http://h/v1",)}
    with pytest.raises(InputError, match=r"^paper: has no <DEGREE>"):
        recipes.clair_recipe(recipes.ClairConfig(**settings, template="paper", strength="light"))
    made = recipes.clair_recipe(recipes.ClairConfig(**settings, template="paper"))
    assert made.settings["template"] == "paper" and "strength" not in made.settings
