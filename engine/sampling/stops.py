"""What ends an answer by --stop: texts that it says, and special tokens, which are no part of what it says."""

from collections.abc import Callable, Sequence
from pathlib import Path

from data.text import Tokenizer
from engine.sampling.decoding import Answer
from system import InputError


def check_stops(stops: Sequence[str], tokenizer: Tokenizer | None, folder: Path) -> None:
    """Raises InputError where one of the texts can never be said. tokenizer: the folder's; None where it has none."""
    if tokenizer is None and stops:
        raise InputError(f"--stop: {folder} has no tokenizer; give --stop-ids")
    for text in stops:
        assert tokenizer is not None
        if text in tokenizer.special:
            continue
        if match := tokenizer.control_special.search(text):
            raise InputError(
                f"--stop {text!r}: can never match, since the text of an answer holds no {match[0]!r}; give that token "
                "alone"
            )
        said = tokenizer.text_of_tokens(tokenizer.encode([text], goes_on=True)[0])
        if text not in said:
            raise InputError(
                f"--stop {text!r}: can never match, since the tokenizer in {folder} writes {said!r} for it"
            )


def ids_of_stops(stops: Sequence[str], tokenizer: Tokenizer | None) -> list[int]:
    """Ids of those that are special tokens."""
    return [tokenizer.special[text] for text in stops if text in tokenizer.special] if tokenizer else []


def says_stop(stops: Sequence[str], tokenizer: Tokenizer | None) -> Callable[[Answer], bool] | None:
    """Whether an answer has just said one of the texts: its last tokens are read, a byte or more each. None where there
    is nothing to be said.
    """
    if not stops or tokenizer is None:
        return None
    decode, most = tokenizer.decode, max(len(text.encode()) for text in stops) + 4
    return lambda answer: any(text in decode(answer.ids[-most:]) for text in stops)
