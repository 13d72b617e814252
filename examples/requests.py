"""The other side of revise/: what is asked in a request, for programs that answer in a language model's place."""

import re


def parts(text: str) -> list[str]:
    """The task and the answers in a request: what stands behind each name in braces, up to the next one."""
    asked = text.partition("\n\n-----------------\n")[0]
    return [part.strip() for part in re.split(r"\n\{(?:task|student_solution(?:_[12])?)\}: ", asked)[1:]]
