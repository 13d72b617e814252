"""The wording of requests: text files in revise/templates/, the paper's authors' among them, or the user's own.

A template is text with slots in capitals, <TASK> and others, which are replaced by what a row says, once, as it is: the
words of tasks and answers are never read as slots or formats. What stands in braces is meant for the model.
"""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from data.text import Message
from system import InputError

FOLDER = Path(__file__).parent / "templates"
PAPER = "paper"
"""The name of the wording in Table 3 of the paper, which it gives of revisers and of judges of two answers."""
OF_PAPER = ("clair", "judge")
SLOTS = ("TASK", "STUDENT_SOLUTION", "STUDENT_SOLUTION_1", "STUDENT_SOLUTION_2", "DEGREE")


class Template(NamedTuple):
    """A text cut at its slots: pieces of text and names of slots in turn."""

    parts: tuple[str, ...]

    def fill(self, **values: str) -> str:
        """The text with values, named as the slots in lower case, in their places."""
        return "".join(part if i % 2 == 0 else values[part.lower()] for i, part in enumerate(self.parts))

    @property
    def text(self) -> str:
        """As it was written."""
        return "".join(part if i % 2 == 0 else f"<{part}>" for i, part in enumerate(self.parts))


def parse_template(text: str, location: str, needed: Sequence[str], optional: Sequence[str] = ()) -> Template:
    """The template in a text. Raises InputError unless each needed slot stands in it once."""
    parts = tuple(re.split(rf"<({'|'.join(SLOTS)})>", text))
    slots = parts[1::2]
    for name in needed:
        if slots.count(name) != 1:
            found = f"{slots.count(name)} times" if name in slots else "never"
            raise InputError(f"{location}: <{name}> has to occur once in a template, but occurs {found}")
    if extra := [name for name in slots if name not in (*needed, *optional)]:
        raise InputError(f"{location}: <{extra[0]}> has no value in this template; remove it")
    if twice := [name for name in optional if slots.count(name) > 1]:
        raise InputError(f"{location}: <{twice[0]}> occurs more than once; keep one")
    return Template(parts)


def read_template(
    path: str | None, name: str, needed: Sequence[str], optional: Sequence[str] = (), *, flag: str = "--template"
) -> Template:
    """The template in a user's file, the paper's, or where neither is named our own of this name. flag: by which the
    file is given, for messages. Raises InputError.
    """
    if path == PAPER and name not in OF_PAPER:
        mend = f"give a file (./{PAPER} for a file of that name)"
        raise InputError(f"{flag} {PAPER}: the paper has no prompt for this command; {mend}")
    file = FOLDER / (f"{name}.txt" if path is None else f"{PAPER}-{name}.txt") if path in (None, PAPER) else Path(path)
    try:
        text = file.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as fault:
        why = fault.strerror if isinstance(fault, OSError) else "not UTF-8"
        raise InputError(f"{flag}: {file} cannot be read ({why})") from None
    return parse_template(text, str(file), needed, optional)


def task_of(prompt: Sequence[Message]) -> str:
    """A prompt as one text: its words where it is one message of a user, else each turn under its role."""
    if len(prompt) == 1 and prompt[0].role == "user":
        return prompt[0].content
    return "\n\n".join(f"[{m.role}]\n{m.content}" for m in prompt if m.content)
