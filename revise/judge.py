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
LEAD = (
    r"(?:(?:so|thus|therefore|hence|overall|in all|in total|in the end|in conclusion|in summary)\b[,:]? ?)?"
    r"(?:(?:the|my) )?(?:(?:final|best|better|overall|total) )*"
)
NOUN = (
    r"(?:answer|choice|solution|student_solution|response|verdict|decision|grade|score|rating)(?: is)?"
    r"|最终答案|答案|评分"
)
VERB = (
    r"i (?:choose|pick|select|prefer|would choose|would pick|would select)"
    r"|i (?:would |'d )?(?:give|rate|grade)(?: (?:it|this|the (?:answer|solution|student_solution)))?(?: an?)?"
    r"(?: (?:grade|score|rating) of)?"
)
"""What may stand before the brackets of a verdict: nothing that could turn it round."""
JOINED = r"(?:[,;]? (?:or|and|/)?[ ]?)"
REASON = r"[,;]? (?:because|since|for its|for being)\b"
LONGEST_VERDICT = 80  # characters


def choose_request(task: str, first: str, second: str, template: Template) -> str:
    """The text that a judge of two answers is sent."""
    return template.fill(task=task, student_solution_1=first, student_solution_2=second)


def choice_template(path: str | None = None, *, flag: str = "--template") -> Template:
    """Our own wording of such a request, or that of a user's file, given by the flag. Raises InputError where that
    cannot be used.
    """
    return read_template(path, "judge", CHOICE_SLOTS, flag=flag)


def compare(prompt: Sequence[Message], first: str, second: str, template: Template) -> str:
    """What a judge of two answers to a conversation is sent."""
    return choose_request(task_of(prompt), first, second, template)


def score_request(task: str, answer: str, template: Template) -> str:
    """The text that a judge of one answer is sent."""
    return template.fill(task=task, student_solution=answer)


def parse_choice(answer: str) -> int:
    """1 or 2: the final answer. Raises ValueError whose text is the reason: "no choice", "both chosen".

    A verdict is a line that is nothing else: "[2]", "[[2]]", "\\boxed{2}", "<answer>[2]</answer>", "Final answer: [2]",
    "I choose [2]", in bold or not; all such lines have to agree. On the last line a reason may follow ("The better
    answer is [2] because ..."). What merely speaks of an answer ("There is no reason to prefer [1]") is none.
    """
    return int(_final(r"\[\s?([12])\s?\]", r"[12]", answer, none="no choice", several="both chosen"))


def parse_score(answer: str) -> float:
    """The grade, found as a choice is: "[7]", "Grade: [7.5]", "[7/10]", "[7]/10". Raises ValueError whose text is the
    reason: "no grade", "two grades", "grade out of range".
    """
    number = r"-?[0-9]{1,3}(?:\.[0-9]{1,3})?"
    bracket = rf"\[\s?({number})(?:\s?/\s?10)?\s?\](?:\s?/\s?10(?![0-9])| out of 10)?"
    score = float(_final(bracket, number, answer, none="no grade", several="two grades"))
    if not 1 <= score <= BEST_SCORE:
        raise ValueError("grade out of range")
    return score


def _final(bracket: str, number: str, answer: str, *, none: str, several: str) -> str:
    """What the final answer holds in brackets."""
    lead = rf"{LEAD}(?:{NOUN}|{VERB})?"
    alone = re.compile(rf"[\W_]{{0,8}}{lead}[\W_]{{0,8}}?{bracket}(?:{JOINED}{bracket})*[\W_]{{0,8}}", re.IGNORECASE)
    marked = re.compile(
        rf"[\W_]{{0,8}}{lead}[\W_]{{0,8}}(?:\\boxed{{\[?({number})\]?}}|<answer>\s?\[?({number})\]?\s?</answer>)"
        r"[\W_]{0,8}",
        re.IGNORECASE,
    )
    with_reason = re.compile(rf"[\W_]{{0,8}}{LEAD}(?:{NOUN}|{VERB})[\W_]{{0,8}}{bracket}{REASON}", re.IGNORECASE)
    lines = [line.strip() for line in answer.split("\n") if line.strip()]
    found: set[str] = set()
    for line in lines:
        if len(line) > LONGEST_VERDICT:
            continue
        if alone.fullmatch(line):
            found |= set(re.findall(bracket, line))
        elif match := marked.fullmatch(line):
            found.add(match[1] or match[2])
    if not found and lines and (match := with_reason.match(lines[-1])):
        found = {match[1]}
    if len(found) != 1:
        raise ValueError(several if found else none)
    return found.pop()
