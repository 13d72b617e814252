"""A rendered text as control ids and the runs of text between them, and these runs as ids.

The template's own text may place control tokens; what an assistant says only those that are not special, what anybody
else says none. Runs are encoded whole, so that the ids are those of encoding the rendered conversation in one piece.
"""

from collections.abc import Iterable, Sequence
from typing import Literal, NamedTuple

from data.text.marking import Part, Speaker
from data.text.tokenizer import Tokenizer

Before = Literal["nothing", "control", "text"]
"""What stands before a text."""


class Run(NamedTuple):
    """Text between two control tokens: template and content, each part with who says it."""

    parts: tuple[Part, ...]
    goes_on: bool = False
    """Whether it is encoded as text that follows other text: no blank is put before it."""

    @property
    def text(self) -> str:
        """The run as the tokenizer sees it."""
        return "".join(text for text, _ in self.parts)


class Said(int):
    """The id of an added token that a content spells."""


def cut_at_control(
    parts: Iterable[tuple[str, Speaker, bool]], tokenizer: Tokenizer, after: Before = "nothing"
) -> tuple[list[int | Run], list[int]]:
    """Pieces of parts that are predicted or not, and how much at the beginning of each piece is not.

    after: what comes before the first.
    """
    pieces: list[int | Run] = []
    seen: list[int] = []
    run: list[Part] = []
    n_seen = 0  # letters of the run that are not predicted
    eats_on = False  # whether the last control token eats the blanks behind it

    def close() -> None:
        before = "control" if pieces else after
        bare = before == "text" or (before == "control" and not tokenizer.prefixes_after_control)
        pieces.append(Run(tuple(run), goes_on=bare))
        seen.append(n_seen)
        run.clear()

    for text, speaker, is_predicted in parts:
        for piece in _split(text, speaker, tokenizer):
            if isinstance(piece, str):
                if kept := piece.lstrip() if eats_on and not run else piece:
                    run.append((kept, speaker))
                    n_seen += 0 if is_predicted else len(kept)
                continue
            eats_before, eats_on = tokenizer.eats(piece)
            if eats_before:
                n_seen = min(n_seen, _strip_end(run))
            if run:
                close()
                n_seen = 0
            pieces.append(Said(piece) if speaker else piece)
            seen.append(not is_predicted)
    if run:
        close()
    return pieces, seen


def _strip_end(run: list[Part]) -> int:
    """Takes the blanks off the end of a run. Returns how many letters are left."""
    while run:
        text, speaker = run.pop()
        if kept := text.rstrip():
            run.append((kept, speaker))
            break
    return sum(len(text) for text, _ in run)


def _split(text: str, speaker: Speaker, tokenizer: Tokenizer) -> Sequence[str | int]:
    """A part cut at the control tokens that it may place."""
    if speaker == "other":
        return [text]
    return tokenizer.split_spoken(text) if speaker else tokenizer.split_control(text)


def encode_runs(runs: Sequence[Run], tokenizer: Tokenizer) -> list[list[int]]:
    """The ids of each run."""
    made: list[list[int]] = [[] for _ in runs]
    for goes_on in (False, True):
        chosen = [i for i, run in enumerate(runs) if run.goes_on == goes_on]
        encoded = tokenizer.encode([runs[i].text for i in chosen], goes_on=goes_on)
        for i, ids in zip(chosen, encoded, strict=True):
            made[i] = ids
    return made


def ids_of(pieces: Sequence[int | Run], tokenizer: Tokenizer) -> list[int]:
    """The ids of pieces, one after the other."""
    encoded = iter(encode_runs([piece for piece in pieces if isinstance(piece, Run)], tokenizer))
    return [i for piece in pieces for i in (next(encoded) if isinstance(piece, Run) else [piece])]
