"""What a row becomes: a prompt and its responses, with what the row says of them."""

from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

from data.text import NO_CONTEXT, Message, TemplateContext, answer_text
from system import InputError


class Ratings(NamedTuple):
    """What a row says in numbers; None where it does not."""

    scores: tuple[float, ...] | None = None
    """Of each response: "chosen_score" and "rejected_score", "score", or "scores"; by one scorer, any scale."""
    own: float | None = None
    """"own_score": of the model's own answer, by the same scorer."""
    probs: tuple[float, ...] | None = None
    """"chosen_prob" and "rejected_prob": win rates against the policy's own samples, 0 to 1."""
    value: float | None = None
    """"value": the score that the policy gets on the prompt."""
    weight: float | None = None
    """"weight": how much the row counts, 0 or above; 1 where it does not say."""
    fields: tuple[tuple[str, float], ...] = ()
    """(name, number) of each further field that was asked for (`Reading.fields`) and holds a finite number here."""

    def numbers(self) -> dict[str, float | tuple[float, ...]]:
        """All that the row says, of the row or of each response, under the names by which objectives ask for it."""
        known = {"scores": self.scores, "own_scores": self.own, "probs": self.probs}
        known |= {"values": self.value, "weights": self.weight, **dict(self.fields)}
        return {name: number for name, number in known.items() if number is not None}

    def of(self, which: slice) -> "Ratings":
        """The ratings of some of the responses alone, without what is of pairs."""
        return self._replace(scores=self.scores and self.scores[which], probs=None)


NO_RATINGS = Ratings()


@dataclass(frozen=True, slots=True)
class Record:
    """A prompt and its responses: two (chosen, rejected) where the form is "pairs", several, best first, where it is
    "ranked" or in the row's order where it is "listed", else one.
    """

    location: str
    """"FILE:LINE", for messages."""
    form: Literal["pairs", "unpaired", "single", "ranked", "listed"]
    prompt: tuple[Message, ...] | tuple[int, ...]
    """Messages, or token ids that are taken as they are."""
    responses: tuple[tuple[Message, ...], ...] | tuple[tuple[int, ...], ...]
    """Each of one or more messages, or token ids."""
    label: bool | None = None
    """Unpaired: True where the response is desirable."""
    ratings: Ratings = NO_RATINGS
    token_weights: tuple[tuple[float, ...], ...] | None = None
    """Of each response a number for each of its token ids; None where the row has none."""
    context: TemplateContext = NO_CONTEXT
    """What the template is given beside the messages."""
    unused: tuple[str, ...] = field(default=(), compare=False)
    """What the row holds and nothing reads: its columns, and "messages' weight" for keys inside messages."""
    n_parsed: int = field(default=0, compare=False)
    """How many of its fields were messages written as text (JSON, or Python's repr)."""
    n_indented: int = field(default=0, compare=False)
    """How many of its answers begin with blanks as code does, which are trimmed."""

    @property
    def is_tokenised(self) -> bool:
        """Whether prompt and responses are token ids."""
        return isinstance(self.responses[0][0], int)

    @property
    def messages(self) -> tuple[Message, ...]:
        """The prompt of a row of text. Raises TypeError for one of token ids."""
        return tuple(_message(m) for m in self.prompt)

    @property
    def conversations(self) -> tuple[tuple[Message, ...], ...]:
        """The responses of a row of text. Raises TypeError for one of token ids."""
        return tuple(tuple(_message(m) for m in response) for response in self.responses)

    @property
    def texts(self) -> tuple[str, ...]:
        """What the assistant says in each response of a row of text. Raises TypeError for one of token ids."""
        return tuple(answer_text(response) for response in self.conversations)


def _message(item: Message | int) -> Message:
    if isinstance(item, int):
        raise TypeError("a row of token ids has no messages")
    return item


class PromptRow(NamedTuple):
    """A row that is read for its prompt."""

    location: str
    """"FILE:LINE", for messages."""
    prompt: tuple[Message, ...] | tuple[int, ...]
    """Messages, or token ids where the row has "prompt_ids"."""
    row: dict[str, Any]
    """Its fields as they are."""
    context: TemplateContext = NO_CONTEXT
    """What the template is given beside the messages."""
    unused: tuple[str, ...] = ()
    """What the row holds and its prompt does not: columns, and "messages' weight" for keys inside messages."""
    n_parsed: int = 0
    """How many of its fields were messages written as text (JSON, or Python's repr)."""


class Tie(InputError):
    """A row that is well-formed and of which no pair can be made: its answers are rated alike."""
