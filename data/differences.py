"""What differs between two texts, word by word: for pages and terminals that show it.

    difference("The heron eats.", "The heron lives.")    the heron in both, what it does in one of them each

A word is a run of letters, digits and combining marks with the blanks behind it, which alone make no difference; any
other sign stands for itself. Scripts that put no blanks between words (Chinese, Japanese, Thai, Lao, Burmese, Khmer)
are compared letter by letter. Texts of very many words are compared line by line, since the comparison takes memory
with the product of their lengths.
"""

import functools
import itertools
import re
import unicodedata
from collections.abc import Sequence

from rapidfuzz.distance import Indel

UNSPACED = (
    "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3000-\u30ff\u3400-\u9fff\uf900-\ufaff\uff00-\uff9f\U00020000-\U0003ffff"
)
"""Letters of scripts that put no blanks between words, with the punctuation of two of them: inside of a [class]."""
JOINERS = "\u200c\u200d"
LINE = re.compile(r"[^\n]*\n\s*|[^\n]+")
MOST_COMPARED = 2**30  # words times words: 128 MB

Pieces = list[tuple[bool, str]]
"""A text in pieces: whether each stands in this text alone, and its words."""


@functools.cache
def word() -> re.Pattern[str]:
    """What a text is cut into: words with the blanks behind them, and the blanks that it begins with."""
    planes = itertools.chain(range(0x300, 0x20000), range(0xE0100, 0xE01F0))  # there are marks in these alone
    mark = f"[{_ranges([i for i in planes if unicodedata.category(chr(i))[0] == 'M'])}{JOINERS}]"
    return re.compile(rf"(?:(?:[^\W{UNSPACED}]{mark}*)+|[^\s]{mark}*)\s*|^\s+")


def _ranges(numbers: Sequence[int]) -> str:
    """Characters, in order, as the inside of a [class]."""
    starts = [n for n, before in zip(numbers, [-1, *numbers], strict=False) if n != before + 1]
    ends = [n for n, after in zip(numbers, [*numbers[1:], -1], strict=True) if n + 1 != after]
    return "".join(f"{re.escape(chr(a))}-{re.escape(chr(b))}" for a, b in zip(starts, ends, strict=True))


def difference(before: str, after: str) -> tuple[Pieces, Pieces]:
    """Both texts in pieces: words that stand in both, in order, and those of one alone (longest common subsequence)."""
    for unit in (word(), LINE):
        a, b = unit.findall(before), unit.findall(after)
        if len(a) * len(b) <= MOST_COMPARED:
            return _compared(a, b)
    return [(True, before)], [(True, after)]


def _compared(a: Sequence[str], b: Sequence[str]) -> tuple[Pieces, Pieces]:
    left: Pieces = []
    right: Pieces = []
    keys = ([part.strip() or " " for part in parts] for parts in (a, b))  # not "": the library takes it for NUL
    for step in Indel.opcodes(*keys):
        if words := "".join(a[step.src_start : step.src_end]):
            left.append((step.tag != "equal", words))
        if words := "".join(b[step.dest_start : step.dest_end]):
            right.append((step.tag != "equal", words))
    return left, right
