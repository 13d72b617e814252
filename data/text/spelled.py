"""Control tokens whose spellings stand as text in a row: the sign of a conversation that was templated already.

Text never becomes a control token (data/text/tokenizer.py). A row whose text spells them has mostly been through a
template before, this checkpoint's or another one's, and would go through a second one; that is told, never guessed.
"""

import functools
import re
from collections.abc import Iterable

from data.text.tokenizer import Tokenizer

WELL_KNOWN = (
    "<|im_start|>",
    "<|im_end|>",
    "<|begin_of_text|>",
    "<|start_header_id|>",
    "<|end_header_id|>",
    "<|eot_id|>",
    "<|eom_id|>",
    "<|end_of_text|>",
    "<|endoftext|>",
    "<|system|>",
    "<|user|>",
    "<|assistant|>",
    "<|end|>",
    "<|END_OF_TURN_TOKEN|>",
    "<|START_OF_TURN_TOKEN|>",
    "<start_of_turn>",
    "<end_of_turn>",
    "<extra_id_0>",
    "<extra_id_1>",
    "[INST]",
    "[/INST]",
    "<<SYS>>",
)
"""Markers of turns that templates in use write, whichever checkpoint a row is for; none of them is usual in text."""
REMEDY = 'give messages ({"role", "content"}), to which the template of the model is applied'


def spelled_control(texts: Iterable[str], tokenizer: Tokenizer | None = None) -> tuple[str, ...]:
    """The control tokens that stand as text in some texts, each once, in order: those that are well known, and the
    special ones of the tokenizer.
    """
    starts, pattern = _pattern(tokenizer)
    likely = (text for text in texts if any(start in text for start in starts))
    return tuple(dict.fromkeys(found for text in likely for found in pattern.findall(text)))


@functools.lru_cache(maxsize=4)
def _pattern(tokenizer: Tokenizer | None) -> tuple[list[str], re.Pattern[str]]:
    """The spellings' first letters, and a pattern of the whole ones: looking for the first is twenty times as fast."""
    own = () if tokenizer is None else (s for s in tokenizer.special if len(s.strip()) > 1)
    longest_first = sorted({*WELL_KNOWN, *own}, key=lambda s: (-len(s), s))
    return sorted({s[:2] for s in longest_first}), re.compile("|".join(map(re.escape, longest_first)))
