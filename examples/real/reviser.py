"""The reviser and the judge of the real model's answers: programs behind a real HTTP server, asked as any language
model is, with the requests of revise/. The reviser repairs what breaks the task's rule, and nothing else; the judge
prefers the answer that keeps more of it, and does not choose between two that keep as much.

    python -m examples.real.reviser --port 8000        for trying `python -m revise` without an account
"""

from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass

from examples.real import task
from examples.requests import parts, serve_models
from examples.serving import ServingConfig, serve_until_ended
from system import cli


@dataclass(frozen=True, kw_only=True)
class ReviserConfig(ServingConfig):
    """Serve, until Ctrl-C, programs that revise and judge answers by the real demo's nine rules, as language models
    would."""


def main(argv: Sequence[str]) -> None:
    """The command."""
    serve_until_ended(
        ReviserConfig, argv, module="examples.real.reviser", serve=serve_both, who="reviser and judge answer"
    )


def serve_both(port: int = 0) -> AbstractContextManager[str]:
    """The address of a server of both models, "reviser" and "judge", until the block ends."""
    return serve_models({
        "reviser": lambda seen: revise(*parts(seen.text)),
        "judge": lambda seen: judge(*parts(seen.text)),
    }, port=port)  # fmt: skip


def revise(prompt: str, answer: str) -> str:
    """The reviser's words on an answer."""
    asked = task.asked(prompt)
    revised = asked.repair(answer)
    if revised is None:
        return "I do not know how to mend this answer."
    said = "keeps the rule" if revised == answer else f"breaks the rule ({asked.kind})"
    return f"{{teacher_reasoning}}: The answer {said}.\n\n{{corrected_student_solution}}: {revised}"


def judge(prompt: str, first: str, second: str) -> str:
    """The judge's words on two answers."""
    asked = task.asked(prompt)
    degrees = [asked.degree(answer) for answer in (first, second)]
    if degrees[0] == degrees[1]:
        return f"Both keep the rule ({asked.kind}) as well: {degrees[0]:.2f}."
    better = 1 + (degrees[1] > degrees[0])
    return f"The rule ({asked.kind}) is kept to {degrees[0]:.2f} and {degrees[1]:.2f}.\n\n[{better}]"


if __name__ == "__main__":
    cli.run(main)
