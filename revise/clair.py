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
no bounds. These are from eight answers and no more: the GPT-4 revisions that they show lie between 0.65 and 1.62, and
two and a half standard deviations of their logarithms around the mean, as eight tell them, are 0.52 to 2.0."""

DECORATION = " \t>*#_`-\"'\\"
OPENERS, CLOSERS = "{[<(", "}]>)"
LONGEST_DECORATION = 16
UNDERLINE = re.compile(r"\r?\n(?:-{3,}|={3,})[ \t]*(?=\r?\n|$)")
REASONING = r"teacher(?:\\?_| )reasoning"
SOLUTION = r"corrected(?:\\?_| )(?:student(?:\\?_| ))?solution"
ALLUSIONS = re.compile(
    r"(?:correct|revis|improv)ed[ _](?:student(?:'s|’s)?[ _])?(?:solution|answer|response|version)"
    r"|teacher[ _]reasoning|student[ _]solution"
    r"|\bstudent(?:'s|’s) (?:original )?(?:solution|answer|response)\b|\bthe student (?:wrote|said|answered)\b"
    r"|\b(?:your|the) (?:original|previous|initial) (?:solution|answer|response)\b"
    r"|\bI(?: have|'ve|’ve)? (?:corrected|revised|improved)\b"
    r"|\b(?:in|for) (?:this|my|the) (?:revision|correction)\b",
    re.IGNORECASE,
)
FENCE = re.compile(r"^[ \t]{0,8}```(?!.*```)", re.MULTILINE)
DASH = re.compile(r"[ \t]{0,4}([-–—])(?=[ \t])(?![^\n]{0,1000}(?:\r?\n){1,2}[ \t]{0,8}\1[ \t])")
CLOSING = re.compile(rf"\s*[{{<\[]{{1,2}}(?:/|end[ _]?(?:of[ _])?)(?:{SOLUTION})[}}>\]]{{1,2}}\s*\Z", re.IGNORECASE)
LONGEST_CLOSING = 60
KEYWORDS = re.compile(  # every allusion holds one: to look around these alone is twice as fast
    "student|teacher|original|previous|initial|corrected|revised|improved|revision|correction", re.IGNORECASE
)
EDITED = (
    "kept|changed|corrected|removed|added|revised|fixed|replaced|preserved|retained|adjusted|shortened|rephrased|rewrote"
    "|edited|modified|updated|improved|simplified|clarified|maintained|made|left|only|tried to (?:keep|preserve)"
)
EDITS = "changes|corrections|improvements|revisions|edits|modifications|adjustments"
BEGINNING = r"^[ \t>*#_(\[-]{0,8}"  # of a line, with what marks a heading, a list or a note
ENDING = r"[*_]{0,3}[ \t]{0,4}(?:[:：]|$)"
NOTES = re.compile(
    rf"{BEGINNING}(?:(?:the|my|key|main|major|minor|specific|all) )*(?:{EDITS})(?: i| we)?(?:'ve|’ve| have)?(?: were)?"
    rf" made(?: (?:to|in|from)\b[^\n:]{{0,60}})?{ENDING}"
    rf"|{BEGINNING}(?:(?:a|the|brief) )*(?:summary|list|explanation|overview) of (?:(?:the|my|key|main) )*(?:{EDITS})"
    rf"{ENDING}"
    rf"|{BEGINNING}what (?:i|was|were|has been|i've|i have) (?:changed|corrected|improved|revised){ENDING}"
    rf"|\bnote[*_]{{0,3}}[:：][^\n]{{0,120}}?\b(?:i|we)(?:'ve|’ve| have)? (?:{EDITED})\b",
    re.IGNORECASE | re.MULTILINE,
)
"""What is written to the reader of a revision, behind it or in its midst."""
RULE = re.compile(r"(?:^|\n)[ \t]*\n[ \t]{0,3}(?:-{3,}|\*{3,}|_{3,}|={3,})[ \t]*\n")
BEHIND_A_RULE = re.compile(
    rf"\s*[>*#_(\[ \t-]{{0,8}}(explanation|reasoning|rationale|justification|{EDITS})\b[^\n]{{0,40}}?{ENDING}"
    rf"|[^\n]{{0,200}}?(\b(?:i|we)(?:'ve|’ve| have)? (?:{EDITED})\b)",
    re.IGNORECASE | re.MULTILINE,
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
    answer = _unfenced(answer)
    reasons = _headings(REASONING, answer)
    found = _headings(SOLUTION, answer) or _inline(SOLUTION, answer)
    if not found:
        raise ValueError("refused" if is_refusal(answer) else "no marker" if answer.strip() else "empty")
    students_lines = {line.strip() for line in (student_solution or "").split("\n")}
    own = [m for m in found if m.line not in students_lines] or found
    headings = [m for m in own if m.is_heading]
    marker = (headings or own)[0]
    if student_solution is not None and len(headings) > 1 and "student_solution" not in student_solution:
        raise ValueError("two solutions")
    before = [m for m in reasons if m.end <= marker.start]
    if reasons and not before and not (student_solution and "teacher_reasoning" in student_solution):
        raise ValueError("no reasoning before it")
    revision = CLOSING.sub("", answer[marker.end :].strip()[-LONGEST_CLOSING:])
    revision = (answer[marker.end :].strip()[:-LONGEST_CLOSING] + revision).strip()
    if not revision:
        raise ValueError("empty")
    return answer[before[0].end if before else 0 : marker.start].strip(), revision


def _unfenced(answer: str) -> str:
    """An answer that stands as a whole in one block of code, without the block."""
    first, _, rest = answer.strip().partition("\n")
    is_fenced = re.fullmatch(r"```\w*", first.strip()) and rest.endswith("\n```") and rest.count("\n```") == 1
    return rest.removesuffix("\n```") if is_fenced else answer


def _headings(name: str, text: str) -> list[_Marker]:
    """Markers of this name that begin a line."""
    found = []
    for match in re.finditer(name, text, re.IGNORECASE):
        begin = match.start()  # never more than some characters back: lines can be a million blanks long
        while begin > 0 and text[begin - 1] != "\n" and match.start() - begin < LONGEST_DECORATION:
            begin -= 1
        before = text[begin : match.start()]
        begins_line = begin == 0 or text[begin - 1] == "\n"
        if not begins_line or before.strip(DECORATION + OPENERS):
            continue
        behind = _behind(text, match, before)
        is_marked = behind.is_braced or behind.has_colon or "*" in before or "#" in before or "_" in match[0]
        is_heading = behind.has_colon or behind.ends_line
        if not is_marked and (underline := UNDERLINE.match(text, behind.end)):
            behind, is_marked = behind._replace(end=underline.end()), True
        if is_marked and (is_heading or behind.is_braced):
            line_end = text.find("\n", behind.end)
            line = text[begin : line_end if line_end >= 0 else len(text)].strip()
            found.append(_Marker(begin, behind.end, line, is_heading))
    return found


def _inline(name: str, text: str) -> list[_Marker]:
    """The one marker in braces and with a colon that stands within a line; none where there are several."""
    found = []
    for match in re.finditer(name, text, re.IGNORECASE):
        behind = _behind(text, match, text[max(0, match.start() - 2) : match.start()])
        if behind.is_braced and behind.has_colon:
            found.append(_Marker(match.start() - 1, behind.end, "", True))
    return found if len(found) == 1 else []


class _Behind(NamedTuple):
    """What stands behind a marker's name."""

    end: int
    """Where the part begins."""
    is_braced: bool
    has_colon: bool
    ends_line: bool
    """Whether nothing else stands on its line."""


def _behind(text: str, match: re.Match[str], before: str) -> _Behind:
    """Passes over what closes the decoration before the name, a colon and blanks: over nothing of the part itself."""
    end = match.end()
    closer = re.compile(rf"\\?[{re.escape(CLOSERS)}]")  # Markdown may escape it
    is_braced = before[-1:] in tuple(OPENERS) and closer.match(text, end) is not None
    n_braces = len(before) - len(before.rstrip(OPENERS)) if is_braced else 0
    while n_braces and (brace := closer.match(text, end)):
        end, n_braces = brace.end(), n_braces - 1
    has_colon = False
    marks = before.rstrip(OPENERS + "\\").rstrip("> \t#")  # of bold, code and quotes: closed before or behind the colon
    for _ in range(2):
        while marks and text[end : end + 1] == marks[-1:] and marks[-1] in "*_`\"'":
            end, marks = end + 1, marks[:-1]
        if not has_colon and (colon := re.compile(r"[ \t]{0,4}[:：]").match(text, end)):
            end, has_colon = colon.end(), True
    if is_braced and not has_colon and (dash := DASH.match(text, end)):
        end = dash.end()  # behind braces alone, and not the first of a list: else it may be the part's own
    blanks = re.compile(r"[ \t]{0,16}").match(text, end)
    after = blanks.end() if blanks else end
    return _Behind(after, is_braced, has_colon, after >= len(text) or text[after] in "\r\n")


def check(
    revision: str, student_solution: str, task: str, *, min_ratio: float, max_ratio: float, may_allude: bool
) -> None:
    """Raises ValueError whose text is the reason where a revision makes no pair with the answer that it revises:
    "unchanged" (but for blanks), "half a block of code", "refused", "too short", "too long", "alludes to the revision"
    (a note to its reader, such as "Changes made:", is one, too).
    """
    if revision.split() == student_solution.split():
        raise ValueError("unchanged")
    if len(FENCE.findall(revision)) % 2 and not len(FENCE.findall(student_solution)) % 2:
        raise ValueError("half a block of code")
    if is_refusal(revision) and not is_refusal(student_solution):
        raise ValueError("refused")
    known = f"{task}\n{student_solution}".lower()
    if not may_allude and any(words.lower() not in known for words in _notes(revision)):  # which is what makes it long
        raise ValueError("alludes to the revision")
    ratio = len(revision) / len(student_solution.strip())
    if ratio < min_ratio:
        raise ValueError("too short")
    if ratio > max_ratio:
        raise ValueError("too long")
    if not may_allude and any(words.lower() not in known for words in _allusions(revision)):
        raise ValueError("alludes to the revision")


def is_refusal(answer: str) -> bool:
    """Whether an answer begins as those that refuse do."""
    return REFUSAL.match(answer.lstrip()[:200]) is not None


def _allusions(text: str) -> Iterator[str]:
    for word in KEYWORDS.finditer(text):
        if found := ALLUSIONS.search(text, max(0, word.start() - 12), word.end() + 40):
            yield found[0]


def _notes(text: str) -> Iterator[str]:
    """What tells the reader what was changed: in words that nothing else says, or behind a rule."""
    yield from (match[0] for match in NOTES.finditer(text))
    if rules := list(RULE.finditer(text)):
        tail = text[rules[-1].end() :]
        if found := BEHIND_A_RULE.match(tail):
            words = (found[1] or found[2]).lower()
            yield "expla" if words == "explanation" else words  # who asks to explain asks for that
