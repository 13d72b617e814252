"""Tokens of chat templates that stand as text in an answer: a server did not end it where the template does."""

import re
from typing import NamedTuple

from revise.client.thoughts import is_quoted

ENDS = (
    "<|eot_id|>", "<|eom_id|>", "<|end_of_text|>", "<|im_end|>", "<|endoftext|>", "<|end|>", "<|return|>",
    "<|end_of_turn|>", "<|END_OF_TURN_TOKEN|>", "<end_of_turn>", "<turn|>", "<｜end▁of▁sentence｜>", "<|eos|>", "<eos>",
    "</s>",
)  # fmt: skip
"""What ends a turn: of Llama 3, ChatML, Phi, gpt-oss, Command, Gemma, DeepSeek, Mistral."""
OTHERS = (
    "<|start_header_id|>", "<|end_header_id|>", "<|begin_of_text|>", "<|python_tag|>", "<|im_start|>", "<|start|>",
    "<|channel|>", "<|message|>", "<|constrain|>", "<|call|>", "<|START_OF_TURN_TOKEN|>", "<|CHATBOT_TOKEN|>",
    "<|USER_TOKEN|>", "<|SYSTEM_TOKEN|>", "<start_of_turn>", "<|turn>", "<｜begin▁of▁sentence｜>", "<｜User｜>",
    "<｜Assistant｜>", "<|user|>", "<|assistant|>", "<|system|>", "<|observation|>", "<bos>", "<|bos|>", "[INST]",
    "[/INST]", "<<SYS>>", "<</SYS>>",
)  # fmt: skip
TOKENS = re.compile("|".join(map(re.escape, (*ENDS, *OTHERS))))
FENCE = re.compile(r"^[ \t]{0,8}```", re.MULTILINE)
NO_TEXT = re.compile("[\x00\ufffd]")


class Cut(NamedTuple):
    """An answer without what a template's token began."""

    text: str
    at: str = ""
    """The token at which it was cut; empty where it is whole as it came."""


def cut(text: str, asked: str = "") -> Cut:
    """An answer up to the first token that ends a turn. asked: what was asked, whose tokens it may repeat.

    Raises ValueError whose text is the reason where what is left is no answer: another token stands in it, or nothing.
    """
    for match in TOKENS.finditer(text):
        if match[0] in asked or is_quoted(text, match) or _is_code(text, match):
            continue
        if match[0] == "</s>" and "<s>" in text[: match.start()]:  # struck through, in HTML
            continue
        if match[0] in ENDS and (left := text[: match.start()].strip()):
            return Cut(left, match[0])
        raise ValueError(f"control tokens: {match[0]}")
    return Cut(text)


def _is_code(text: str, match: re.Match[str]) -> bool:
    """Whether it stands in a block of code that is closed behind it."""
    return len(FENCE.findall(text, 0, match.start())) % 2 == 1 and FENCE.search(text, match.end()) is not None


def has_no_text(text: str) -> bool:
    """Whether it holds what no text holds: NUL, or the sign that a decoder puts for bytes that are none of UTF-8."""
    return NO_TEXT.search(text) is not None
