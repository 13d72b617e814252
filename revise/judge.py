"""Judges: which of two answers is better (arXiv 2408.06266, equation 2 and appendix A), and how good one is.

choose_request(...)  parse_choice(answer)     1 or 2
score_request(...)   parse_score(answer)      1 to 10
"""

import re
from collections.abc import Sequence

from data.text import Message
from revise.templates import Template, read_template, task_of

CHOICE_SLOTS = ("TASK", "STUDENT_SOLUTION_1", "STUDENT_SOLUTION_2")
SCORE_SLOTS = ("TASK", "STUDENT_SOLUTION")
BEST_SCORE = 10
VERDICT = (
    r"(?:(?:so|thus|therefore),? )?(?:(?:the|my) )?(?:final |best |better )?"
    r"(?:answer|choice|solution|grade|score|rating)?(?: is)?"
)


def choose_request(task: str, first: str, second: str, template: Template) -> str:
    """The text that a judge of two answers is sent."""
    return template.fill(task=task, student_solution_1=first, student_solution_2=second)


def choice_template(path: str | None = None) -> Template:
    """Our own wording of such a request, or that of a user's file. Raises InputError where that cannot be used."""
    return read_template(path, "judge", CHOICE_SLOTS)


def compare(prompt: Sequence[Message], first: str, second: str, template: Template) -> str:
    """What a judge of two answers to a conversation is sent."""
    return choose_request(task_of(prompt), first, second, template)


def score_request(task: str, answer: str, template: Template) -> str:
    """The text that a judge of one answer is sent."""
    return template.fill(task=task, student_solution=answer)


def parse_choice(answer: str) -> int:
    """1 or 2: the final answer. Raises ValueError whose text is the reason: "no choice", "both chosen".

    Lines that hold nothing but the answer ("[2]", "Final answer: [2].") have to agree; where there is none, the last
    line has to hold exactly one of [1] and [2].
    """
    return int(_final(r"\[([12])\]", answer, none="no choice", several="both chosen"))


def parse_score(answer: str) -> float:
    """The grade, found as a choice is. Raises ValueError whose text is the reason: "no grade", "two grades", "grade out
    of range".
    """
    score = float(_final(r"\[(-?[0-9]{1,3}(?:\.[0-9]{1,3})?)(?:/10)?\]", answer, none="no grade", several="two grades"))
    if not 1 <= score <= BEST_SCORE:
        raise ValueError("grade out of range")
    return score


def _final(bracket: str, answer: str, *, none: str, several: str) -> str:
    """What the final answer holds in brackets."""
    verdict = re.compile(rf"\W{{0,8}}{VERDICT}[\W_]{{0,8}}{bracket}\W{{0,8}}", re.IGNORECASE)
    lines = [line.strip() for line in answer.split("\n") if line.strip()]
    found = {match[1] for line in lines if len(line) < 80 and (match := verdict.fullmatch(line))}
    if not found and lines and not re.search(r"\b(?:not|neither)\b", lines[-1], re.IGNORECASE):
        found = set(re.findall(rf"(?<![\w\]]){bracket}", lines[-1]))
    if len(found) != 1:
        raise ValueError(several if found else none)
    return found.pop()
