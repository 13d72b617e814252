"""Which tokens of a pair were revised: those that do not stand in both responses, word by word.

    response's ids -> words -> longest common subsequence of the two sequences of words -> one flag a token

A word is what stands between blanks, with the blanks before it, as the ids that spell it; it was revised where the
longest common subsequence of both responses' words leaves it out, and all of its tokens with it: "unhelpful" beside
"helpful" is another word, though it shares a token with it. Bounds are found in what the tokenizer's tokens decode to:

    a token begins a word     where its text begins with a blank, or the text before it ends in one, unless that token
                              is blank altogether: blanks belong to the word that follows them
    two words in one token    belong together with whatever goes on with the second of them
    tokens that make a letter only together are never apart, nor is a combining mark from its letter
    control tokens            stand for themselves: the end of turn is unchanged where both responses have it, revised
                              where the cut took it from the other one
    scripts without blanks    (Chinese, Japanese, Thai, Lao, Burmese, Khmer): a token is a word

Without a tokenizer every id stands for itself. Responses are compared as they are trained on, after the cut, and in
what is predicted: what a tool says between is left out, and none of its tokens is called revised. Where
there are several longest common subsequences the one that is taken does not depend on which response is the chosen one.
"""

import functools
import re
import unicodedata
from collections.abc import Sequence
from itertools import pairwise

import numpy as np
from rapidfuzz.distance import LCSseq

from data.differences import UNSPACED
from data.rows import Example
from data.text import Tokenizer
from system import InputError

IS_KNOWN, IS_APART, IS_BLANK, BEGINS_BLANK, ENDS_BLANK, BEGINS_UNSPACED, ENDS_UNSPACED, BEGINS_MARK = (
    1 << bit for bit in range(8)
)
"""Traits of a token, as bits of a byte."""
_UNSPACED = re.compile(f"[{UNSPACED}]")


def with_revised(examples: Sequence[Example], tokenizer: Tokenizer | None) -> list[Example]:
    """The examples with `revised`: of the first response against the last one, chosen and rejected.

    Of ranked completions those between are compared with nothing, and none of their tokens is called revised. A row
    that is there several times is compared once. Raises InputError, located, for a row of one response.
    """
    made: dict[int, Example] = {}
    for e in examples:
        if len(e.responses) == 1:
            raise InputError(
                f"{e.location}: revised tokens are what differs between chosen and rejected, but this is a single "
                "completion; give pairs, or take another --loss"
            )
        if id(e) not in made:
            made[id(e)] = e._replace(revised=_flags(e, tokenizer))
    return [made[id(e)] for e in examples]


def _flags(e: Example, tokenizer: Tokenizer | None) -> tuple[np.ndarray, ...]:
    said = e.targets()
    flags = tuple(np.zeros(len(ids), dtype=bool) for ids in e.responses)
    predicted = e.predicted or tuple(np.ones(len(ids), dtype=bool) for ids in e.responses)
    for k, differs in zip((0, -1), revised(said[0], said[-1], tokenizer), strict=True):
        flags[k][predicted[k]] = differs
    return flags


def revised(chosen: np.ndarray, rejected: np.ndarray, tokenizer: Tokenizer | None) -> tuple[np.ndarray, np.ndarray]:
    """For each token of the chosen and of the rejected response whether it was revised: [n_w] and [n_l] bool.

    chosen, rejected: token ids, of one dtype. tokenizer: theirs; None where there is none, and every id is a word.
    """
    words = _words_of(tokenizer)
    bounds_w, bounds_l = words.bounds(chosen), words.bounds(rejected)
    revised_w, revised_l = differing(_spelled(chosen, bounds_w), _spelled(rejected, bounds_l))
    return np.repeat(revised_w, np.diff(bounds_w)), np.repeat(revised_l, np.diff(bounds_l))


def differing(left: Sequence[str | bytes], right: Sequence[str | bytes]) -> tuple[np.ndarray, np.ndarray]:
    """For each item of both sequences whether their longest common subsequence leaves it out, [n] bool each."""
    number: dict[str | bytes, int] = {}  # the library compares hashes; those of small numbers never collide
    swaps = tuple(right) < tuple(left)
    sides = (right, left) if swaps else (left, right)
    first, second = ([number.setdefault(item, len(number)) for item in side] for side in sides)
    flags = np.ones(len(first), dtype=bool), np.ones(len(second), dtype=bool)
    for block in LCSseq.opcodes(first, second):
        if block.tag == "equal":
            flags[0][block.src_start : block.src_end] = False
            flags[1][block.dest_start : block.dest_end] = False
    return (flags[1], flags[0]) if swaps else flags


def _spelled(ids: np.ndarray, bounds: np.ndarray) -> list[bytes]:
    """Each word's ids, as bytes: equal where they are."""
    raw, size = ids.tobytes(), ids.itemsize
    return [raw[size * a : size * b] for a, b in pairwise(bounds.tolist())]


class _Words:
    """Where words begin in token ids; what a token's text says of that is found out once per id."""

    def __init__(self, tokenizer: Tokenizer | None) -> None:
        self._tokenizer = tokenizer
        self._traits = np.zeros(0, dtype=np.uint8)  # by id; 0 where it is not known yet

    def bounds(self, ids: np.ndarray) -> np.ndarray:
        """[words + 1] the place of each word's first token, and the number of tokens."""
        if self._tokenizer is None or not len(ids):
            return np.arange(len(ids) + 1)
        traits = self._traits_of(ids, self._tokenizer)
        before, here = traits[:-1], traits[1:]
        meets_unspaced = ((before & ENDS_UNSPACED) | (here & BEGINS_UNSPACED)) != 0
        begins = ((before & ENDS_BLANK) | (here & BEGINS_BLANK)) != 0
        begins |= meets_unspaced & (here & BEGINS_MARK == 0)
        begins &= before & IS_BLANK == 0
        begins |= (before | here) & IS_APART != 0
        return np.concatenate([[0], 1 + np.flatnonzero(begins), [len(ids)]])

    def _traits_of(self, ids: np.ndarray, tokenizer: Tokenizer) -> np.ndarray:
        if (n := int(ids.max()) + 1) > len(self._traits):
            self._traits = np.concatenate([self._traits, np.zeros(n - len(self._traits), dtype=np.uint8)])
        traits = self._traits[ids]
        if not traits.all():
            for i in np.unique(ids[traits == 0]).tolist():
                is_text = not tokenizer.is_control(i)
                self._traits[i] = _traits(tokenizer.text_of_tokens([i]) if is_text else "")
            traits = self._traits[ids]
        return traits


def _traits(text: str) -> int:
    """What the text of a token says of bounds; none: it is a control token, or one without a text."""
    if not text:
        return IS_APART
    said = {
        BEGINS_BLANK: text[0].isspace(),
        ENDS_BLANK: text[-1].isspace(),
        IS_BLANK: text.isspace(),
        BEGINS_UNSPACED: bool(_UNSPACED.match(text[0])),
        ENDS_UNSPACED: bool(_UNSPACED.match(text[-1])),
        BEGINS_MARK: unicodedata.category(text[0])[0] == "M",
    }
    return IS_KNOWN | sum(trait for trait, holds in said.items() if holds)


@functools.lru_cache(maxsize=2)
def _words_of(tokenizer: Tokenizer | None) -> _Words:
    return _Words(tokenizer)
