"""The reviser of the field guide: a program behind a real HTTP server, asked as any language model is.

It reads the task and the student's answer out of the request, repairs what is wrong in the answer, and replies in the
form that it was asked for. Like its betters it is not always well: some answers lack the markers, one is far too long,
and the server is now and then too busy, broken or slow.

    python -m examples.miniature.reviser --port 8000        for trying `python -m revise` without an account
"""

import hashlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from examples.miniature import world
from examples.requests import parts
from examples.serving import ServingConfig, serve_until_ended
from revise.clair import STRENGTHS
from revise.loopback import Reply, Seen, serve
from system import cli

FORMLESS = 0.02  # share of answers without markers
BUSY, BROKEN = (40, 41, 42, 300), (120,)  # the numbers of requests that are answered 429 and 500


@dataclass(frozen=True, kw_only=True)
class ReviserConfig(ServingConfig):
    """Serve, until Ctrl-C, a program in place of a revising language model, so that you can try revise without an
    account. It corrects answers about the animals of the miniature examples (the field guide)."""


@contextmanager
def serve_reviser(port: int = 0) -> Iterator[str]:
    """The address of a reviser, until the block ends. port 0: a free one. Raises OSError where it is taken."""
    with serve(reply, port=port) as server:
        yield server.base


def main(argv: Sequence[str]) -> None:
    """The command."""
    serve_until_ended(
        ReviserConfig, argv, module="examples.miniature.reviser", serve=serve_reviser, who="the reviser answers"
    )


def reply(seen: Seen) -> Reply:
    """What is sent back: a revision, or now and then a fault."""
    if seen.number in BUSY:
        return Reply.error(429, "too many requests", retry_after="0.2")
    if seen.number in BROKEN:
        return Reply.error(500, "internal error")
    task, student = parts(seen.text)
    strength = next(name for name, words in STRENGTHS.items() if words in seen.text)
    text = answer(world.asked(task), student, strength)
    return Reply.chat(text, usage=(len(seen.text) // 4, len(text) // 4), model="field-guide-reviser")


def answer(question: world.Question, student: str, strength: str = "standard") -> str:
    """What the reviser says of a student's answer: its reasoning and its revision, or that it cannot help."""
    revised = revise(question, student, strength)
    if revised is None:
        return "I do not know how to mend this answer."
    luck = int(hashlib.sha256(f"{question.prompt}\n{student}".encode()).hexdigest()[:8], 16) / 2**32
    if luck < FORMLESS:
        return f"Here is a better answer. {revised}"
    if luck > 0.999:
        revised = " ".join([revised] * 4)
    wrong = len(question.facts) - world.n_right(question, student)
    return (
        f"{{teacher_reasoning}}: {wrong} of the {len(question.facts)} facts asked for are wrong or missing.\n\n"
        f"{{corrected_student_solution}}: {revised}"
    )


def revise(question: world.Question, student: str, strength: str) -> str | None:
    """A repaired answer. light: the first fault alone; standard: every fault, in place; strong: every fault, and in
    another phrasing. None where an answer cannot be repaired.
    """
    whole = world.revise(question, student)
    parsed = world.parse(student)
    if whole is None or parsed is None or strength == "standard":
        return whole
    facts, phrasing = parsed
    if strength == "strong":
        return world.render(question.facts, "list" if phrasing == "prose" else "prose")
    right = {(f.animal, f.attribute): f for f in question.facts}
    for i, fact in enumerate(facts):
        if fact != right[fact.animal, fact.attribute]:
            return world.render([*facts[:i], right[fact.animal, fact.attribute], *facts[i + 1 :]], phrasing)
    return whole  # nothing but missing facts


if __name__ == "__main__":
    cli.run(main)
