"""Judges: which of two answers is better (arXiv 2408.06266, equation 2 and appendix A), and how good one is.

choose_request(...)  parse_choice(answer)     1 or 2
score_request(...)   parse_score(answer)      1 to 10
"""

import re

from revise.templates import Template

CHOICE_SLOTS = ("TASK", "STUDENT_SOLUTION_1", "STUDENT_SOLUTION_2")
SCORE_SLOTS = ("TASK", "STUDENT_SOLUTION")
BEST_SCORE = 10


def choose_request(task: str, first: str, second: str, template: Template) -> str:
    """The text that a judge of two answers is sent."""
    return template.fill(task=task, student_solution_1=first, student_solution_2=second)


def score_request(task: str, answer: str, template: Template) -> str:
    """The text that a judge of one answer is sent."""
    return template.fill(task=task, student_solution=answer)


def parse_choice(answer: str) -> int:
    """1 or 2: what the last line that holds [1] or [2] says. Raises ValueError whose text is the reason: "no choice",
    "both chosen".
    """
    found = _last_line(r"\[([12])\]", answer)
    if not found:
        raise ValueError("no choice")
    if len(found) > 1:
        raise ValueError("both chosen")
    return int(found.pop())


def parse_score(answer: str) -> float:
    """The grade in the last line that holds one in square brackets. Raises ValueError whose text is the reason: "no
    grade", "two grades", "grade out of range".
    """
    found = _last_line(r"\[(-?[0-9]{1,3}(?:\.[0-9]{1,3})?)(?:/10)?\]", answer)
    if not found:
        raise ValueError("no grade")
    if len(found) > 1:
        raise ValueError("two grades")
    score = float(found.pop())
    if not 1 <= score <= BEST_SCORE:
        raise ValueError("grade out of range")
    return score


def _last_line(pattern: str, answer: str) -> set[str]:
    """What a pattern finds, each once, in the last line in which it finds something."""
    for line in reversed(answer.split("\n")):
        if found := set(re.findall(pattern, line)):
            return found
    return set()
