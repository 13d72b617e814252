"""Look before you leap: what the first answers of a stage, and of each of its servers, say of the rest.

    nothing read yet             one request at a time
    no usable row yet            no more than 16 answers and requests in flight
    16 answers, no usable row    the run stops
    refused, nothing read yet    up to eight, one after the other; then the run stops
    refused, in the same words   twenty in a row; then the run stops
    timed out, nothing read yet  two attempts; then the run stops

Refusals are kept back until an answer shows that they are the rows' fault and not the settings', the account's or the
server's: a run that stops stores none of them.
"""

from dataclasses import dataclass, field
from typing import Any

MOST_USELESS = 16
FIRST_REFUSALS = 8  # with nothing answered before
SAME_REFUSALS = 20  # among answers
FIRST_TIMEOUTS = 2
LEAST_SAME = 5  # answers, of a stage that has no more
SAME = "one answer to"  # so many questions: why each of them is of no use
LOOKED_AT = 64  # answers of earlier runs, for a usable one
SHOWN = 160  # characters of what was said


@dataclass
class Trial:
    """Of a stage or a server."""

    is_read: bool = False
    """Something has come back that was one row's own: an answer, or a refusal of what stands in it."""
    is_passed: bool = False
    """A row is usable, or the user goes on all the same."""
    n_useless: int = 0
    why: str = ""
    """... the last one was."""
    said: str = ""
    """... and what stood in it."""
    refused: list[Any] = field(default_factory=list)
    """Rows that were refused since the last answer, all in the same words once there was one."""
    n_timeouts: int = 0
    words: str = ""
    mend: str = ""
    """What is known to mend what they say."""

    @property
    def room(self) -> float:
        """How many requests may be in flight."""
        if not self.is_read:
            return 1
        return float("inf") if self.is_passed else max(0, MOST_USELESS - self.n_useless)

    def answered(self, useless: str | None, said: str) -> list[Any]:
        """An answer has come. useless: why no row can be made of it. Gives the refusals that are the rows' fault."""
        held, self.refused, self.words = self.refused, [], ""
        self.is_read = True
        if useless is None:
            self.is_passed = True
        else:
            self.n_useless, self.why, self.said = self.n_useless + 1, useless, said.strip()[:SHOWN]
        return held

    def is_refused(self, row: Any, words: str) -> list[Any]:
        """A request was refused, in words that are not one row's own. Gives the refusals that are the rows' fault."""
        held: list[Any] = []
        if self.is_read and words != self.words:
            held, self.refused = self.refused, []
        self.words = words
        self.refused.append(row)
        return held

    @property
    def has_failed(self) -> bool:
        """Whether answers have come, and none of them of use, as many as are tried."""
        return not self.is_passed and self.n_useless >= MOST_USELESS

    @property
    def is_refusing(self) -> bool:
        """Whether so much was refused that the rows cannot be the cause."""
        return len(self.refused) >= (SAME_REFUSALS if self.is_read else FIRST_REFUSALS)


@dataclass
class Sameness:
    """Whether different questions get different answers."""

    is_open: bool = True
    """It is not known yet."""
    text: str | None = None
    questions: set[bytes] = field(default_factory=set)

    def add(self, question: bytes, text: str) -> None:
        """An answer."""
        if self.text is None:
            self.text = text
        self.questions.add(question)
        if text != self.text:
            self.is_open = False
            self.questions.clear()

    def is_found(self, least: int) -> bool:
        """Whether so many questions have got one answer, and no other was given."""
        return self.is_open and len(self.questions) >= least


CAUSES = (  # why answers are of no use, as they are told, and what mends it
    ("truncated: the thoughts", "let the model think less, or raise {max_tokens}"),
    ("truncated", "raise {max_tokens}"),
    ("no answer behind the thoughts", "if the server takes whole answers for thoughts, give it another "
     "reasoning parser (vllm serve --reasoning-parser), or none; else raise {max_tokens}"),
    ("null content", "the server's reasoning parser takes whole answers for thoughts, or thoughts use up {max_tokens}"),
    ("empty", "thoughts may use up {max_tokens}, or the server's chat template is another model's"),
    *((form, "the model does not answer in the form that it is asked for: take another {model} or --template")
      for form in ("no marker", "two solutions", "no reasoning before it")),
    *((form, "the server sent an answer without a message: see the server's log")
      for form in ("no choices", "a choice without")),
    *((form, "the judge does not answer in the form that it is asked for: take another {model} or --template")
      for form in ("no choice", "both chosen", "no grade", "two grades", "grade out of range")),
    ("unknown finish reason", "see --accept-finish-reason"),
    ("refused", "the model declines what it is asked: take another {model}"),
    ("a tool call", "the server gives the model tools: take one that does not"),
    ("broken off", "the server did not end its answers: see the server's log"),
    ("NUL", "the server's tokenizer or its weights are broken"),
    ("control tokens", "the server's chat template or its stop tokens are another model's"),
    ("thoughts that cannot", "the server leaves thoughts in the answer: give it a reasoning parser (vllm serve "
     "--reasoning-parser)"),
    ("an answer of more than", "lower {max_tokens}, or raise --max-answer-mb"),
)  # fmt: skip


def cause(why: str) -> str:
    """What mends answers that are of no use for a reason; empty where that is not known."""
    return next((mend for start, mend in CAUSES if why.startswith(start)), "")
