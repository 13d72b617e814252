"""CLAIR: a reviser improves the model's own answer as little as possible, and the two are a pair (arXiv 2408.06266,
section 3.1 and appendix A).

    request(task, student_solution, template)     what the reviser is asked
    parse(answer)                                 its reasoning and its revision
    check(...)                                    whether the revision makes a pair
"""

import re
from collections.abc import Iterator
from typing import NamedTuple

from revise.templates import Template

SLOTS = ("TASK", "STUDENT_SOLUTION")
OPTIONAL_SLOTS = ("DEGREE",)

STRENGTHS = {
    "light": "Correct only the one thing that matters most, and leave every other word as it is.",
    "standard": "Correct what is wrong or unclear, and nothing that is good enough.",
    "strong": "Correct whatever can be better, and rewrite sentences freely where that helps the reader.",
}
"""How much a revision may change: section 8 of the paper asks what is best."""
KEEP_LENGTH = (
    "Keep it about as long as the {student_solution}: more words are no improvement by themselves, and what is added"
    " in one place is saved in another."
)

MIN_LENGTH_RATIO, MAX_LENGTH_RATIO = 0.5, 2.0
"""Characters of the revision over those of the answer. The authors reject what "altered the length too much" and give
no bounds; the eight GPT-4 revisions that they show lie between 0.65 and 1.62, and two and a half standard deviations
of their logarithms around the mean are 0.52 to 2.0."""

DECORATION = " \t>*#_`-\"'"
OPENERS, CLOSERS = "{[<(", "}]>)"
LONGEST_DECORATION = 16
ALLUSIONS = re.compile(
    r"(?:correct|revis)ed[ _]student(?:'s|’s)?[ _](?:solution|answer|response)"
    r"|teacher[ _]reasoning|student[ _]solution"
    r"|\bstudent(?:'s|’s) (?:original )?(?:solution|answer|response)\b"
    r"|\b(?:your|the) (?:original|previous|initial) (?:solution|answer|response)\b"
    r"|\b(?:the|a|my|this) (?:corrected|revised) (?:solution|answer|response)\b"
    r"|\b(?:in|for) (?:this|my|the) (?:revision|correction)\b",
    re.IGNORECASE,
)
KEYWORDS = re.compile(  # every allusion holds one: to look around these alone is twice as fast
    "student|teacher|original|previous|initial|corrected|revised|revision|correction", re.IGNORECASE
)
REFUSAL = re.compile(
    r"(?:(?:i['’]m|i am) (?:very )?sorry\b|sorry,|i apologi[sz]e\b|(?:i['’]m|i am) (?:unable|not able) to\b"
    r"|(?:unfortunately, )?i (?:cannot|can['’]t|won['’]t) (?:assist|help|fulfil|fulfill|comply|provide|create|revise))",
    re.IGNORECASE,
)


def request(task: str, student_solution: str, template: Template, *, strength: str, keep_length: bool) -> str:
    """The text that the reviser is sent."""
    degree = STRENGTHS[strength] + (f" {KEEP_LENGTH}" if keep_length else "")
    return template.fill(task=task, student_solution=student_solution, degree=degree)


class _Marker(NamedTuple):
    """A place where an answer names one of its parts."""

    start: int
    end: int
    """Where the part begins."""
    line: str
    """The line that it stands in, without blanks around it."""
    is_heading: bool
    """Whether it stands alone on its line, or before a colon."""


def parse(answer: str, *, student_solution: str | None = None) -> tuple[str, str]:
    """The reasoning and the revision in a reviser's answer.

    The revision is what stands behind the marker {corrected_student_solution}, in any of the spellings that models use:
    with or without braces, colon, bold or heading, at the beginning of a line. A marker that the answer's text itself
    holds changes nothing: the first one counts, and with student_solution given its lines are not taken for markers.
    Raises ValueError whose text is the reason: "no marker", "two solutions", "no reasoning before it", "refused",
    "empty".
    """
    reasons = _headings("teacher reasoning", answer)
    found = _headings("corrected student solution", answer) or _inline("corrected student solution", answer)
    if not found:
        raise ValueError("refused" if is_refusal(answer) else "no marker" if answer.strip() else "empty")
    own = [m for m in found if m.line not in _lines(student_solution)] or found
    headings = [m for m in own if m.is_heading]
    marker = (headings or own)[0]
    if student_solution is not None and len(headings) > 1 and "student_solution" not in student_solution:
        raise ValueError("two solutions")
    before = [m for m in reasons if m.end <= marker.start]
    if reasons and not before and not (student_solution and "teacher_reasoning" in student_solution):
        raise ValueError("no reasoning before it")
    revision = _without_closing(answer[marker.end :]).strip()
    if not revision:
        raise ValueError("empty")
    return answer[before[0].end if before else 0 : marker.start].strip(), revision


def _lines(text: str | None) -> set[str]:
    return {line.strip() for line in (text or "").split("\n")} - {""}


def _spellings(name: str, text: str) -> Iterator[re.Match[str]]:
    return re.finditer(name.replace(" ", "[ _]"), text, re.IGNORECASE)


def _headings(name: str, text: str) -> list[_Marker]:
    """Markers of this name that begin a line."""
    found = []
    for match in _spellings(name, text):
        begin = match.start()  # never more than some characters back: lines can be a million blanks long
        while begin > 0 and text[begin - 1] != "\n" and match.start() - begin < LONGEST_DECORATION:
            begin -= 1
        before = text[begin : match.start()]
        if (begin > 0 and text[begin - 1] != "\n") or before.strip(DECORATION + OPENERS):
            continue
        end, is_braced, has_colon, ends_line = _behind(text, match)
        is_bold = "*" in before or "#" in before
        if not (has_colon or ends_line or is_braced) or not (is_braced or has_colon or is_bold or "_" in match[0]):
            continue
        line_end = text.find("\n", end)
        line = text[begin : line_end if line_end >= 0 else len(text)].strip()
        found.append(_Marker(begin, end, line, has_colon or ends_line))
    return found


def _inline(name: str, text: str) -> list[_Marker]:
    """The one marker in braces and with a colon that stands within a line; none where there are several."""
    found = []
    for match in _spellings(name, text):
        end, is_braced, has_colon, _ = _behind(text, match)
        if is_braced and has_colon:
            found.append(_Marker(text.rindex("{", 0, match.start()), end, "", True))
    return found if len(found) == 1 else []


def _behind(text: str, match: re.Match[str]) -> tuple[int, bool, bool, bool]:
    """(where the part begins, marker in braces, colon behind it, nothing else on its line)."""
    end = match.end()
    is_braced = text[match.start() - 1 : match.start()] in tuple("{[<") and text[end : end + 1] in tuple(CLOSERS)
    has_colon = False
    while end < len(text) and end - match.end() < LONGEST_DECORATION:
        if text[end] == ":" and not has_colon:
            has_colon = True
        elif text[end] not in CLOSERS + "*_`\"' \t":
            break
        end += 1
    return end, is_braced, has_colon, end >= len(text) or text[end] in "\r\n"


def _without_closing(text: str) -> str:
    """Without a last line that only closes the part: {/corrected_student_solution}."""
    head, _, last = text.rstrip().rpartition("\n")
    closes = re.fullmatch(
        r"[{<\[]{1,2}(?:/|end[ _]?(?:of[ _])?)(?:corrected[ _]student[ _]solution)[}>\]]{1,2}", last.strip()
    )
    return head if closes else text


def check(
    revision: str, student_solution: str, task: str, *, min_ratio: float, max_ratio: float, may_allude: bool
) -> None:
    """Raises ValueError whose text is the reason where a revision makes no pair with the answer that it revises:
    "unchanged", "too short", "too long", "alludes to the revision".
    """
    if revision == student_solution.strip():
        raise ValueError("unchanged")
    ratio = len(revision) / len(student_solution.strip())
    if ratio < min_ratio:
        raise ValueError("too short")
    if ratio > max_ratio:
        raise ValueError("too long")
    known = f"{task}\n{student_solution}".lower()
    if not may_allude and any(words.lower() not in known for words in _allusions(revision)):
        raise ValueError("alludes to the revision")


def is_refusal(answer: str) -> bool:
    """Whether an answer begins as those that refuse do."""
    return REFUSAL.match(answer.lstrip()[:200]) is not None


def _allusions(text: str) -> Iterator[str]:
    for word in KEYWORDS.finditer(text):
        if found := ALLUSIONS.search(text, max(0, word.start() - 12), word.end() + 40):
            yield found[0]
