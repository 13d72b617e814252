"""Which added tokens of a tokenizer.json are plain text: found in every text, whoever says it.

Converters make an added token of everything that a tokenizer's maker has defined by hand: of control tokens, of
<think>, and of Gemma's runs of newlines and HTML tags, which are nothing but text. A token that the file calls special
is never text. Of the others those are that are white space alone, and those that stand in the vocabulary of the
tokenizer's own model too, unless a chat template writes them. Every other one is a mark: it is placed by templates, and
by what an assistant says (data/text/tokenizer.py).
"""

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

IsText = Callable[[Mapping[str, Any], bool], bool]
"""An added token as the file has it, and whether its spelling is a word of the model's own vocabulary."""


def no_token_is_text(token: Mapping[str, Any], is_word: bool) -> bool:
    """For files in which every added token is a mark."""
    return False


def text_unless_written(special: Collection[str], templates: Sequence[str]) -> IsText:
    """The rule. special: spellings that a file beside tokenizer.json makes special; templates: the texts of all that
    write conversations.
    """

    def is_text(token: Mapping[str, Any], is_word: bool) -> bool:
        text = token["content"]
        if token.get("special") or text in special:
            return False
        is_letter = len(text) == 1 and is_word  # in a template like any other
        return text.isspace() or is_letter or (is_word and not is_written(text, templates))

    return is_text


def is_written(text: str, templates: Sequence[str]) -> bool:
    """Whether a template spells a token."""
    return any(text in template for template in templates)
