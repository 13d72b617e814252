"""What of a model's text is its thoughts, and what its answer, where the server has not told them apart.

    <think> ... </think> answer              DeepSeek-R1, Qwen3, GLM ...; and the same under other names
    ... </think> answer                      templates that put <think> into the prompt
    <|channel|>analysis<|message|> ...       gpt-oss (harmony), with its tokens or without

A tag that is quoted, or that what was asked speaks of, says little: where it cannot be told what a text's thoughts are,
there is no answer in it.
"""

import re
from typing import NamedTuple

TAGS = (
    ("<think>", "</think>"),
    ("[THINK]", "[/THINK]"),  # Magistral
    ("<seed:think>", "</seed:think>"),
    ("<mm:think>", "</mm:think>"),  # MiniMax
    ("<|begin_of_thought|>", "<|end_of_thought|>"),
    ("<|START_THINKING|>", "<|END_THINKING|>"),  # Command A Reasoning
    ("◁think▷", "◁/think▷"),  # Kimi
    ("<|channel>thought", "<channel|>"),  # Gemma 4
    ("<thought>", "</thought>"),
    ("<thinking>", "</thinking>"),
)
SURE = 7  # so many of the tags close thoughts that nothing opens; the others are words of other texts, too
FIRST_CHANNEL = re.compile(r"\s*(?:<\|start\|>)?(?:assistant)?<\|channel\|>")
CHANNEL = re.compile(
    r"<\|channel\|>\s*(\w+)[^<]*(?:<\|constrain\|>[^<]*)?<\|message\|>(.*?)(<\|(?:end|return|call|start|channel)\|>|\Z)",
    re.DOTALL,
)
BARE_CHANNELS = re.compile(r"\s*analysis(.*?)assistantfinal(.*)", re.DOTALL)
BARE_ANALYSIS = re.compile(r"\s*analysis(?=[A-Z])")
AMBIGUOUS = "thoughts that cannot be told from the answer"


class Said(NamedTuple):
    """A text in its parts."""

    thoughts: str
    answer: str
    is_open: bool = False
    """Whether it ends inside its thoughts."""
    cut_at: str = ""
    """The token of a template that ended the answer, where more stood behind it."""


def split(text: str, asked: str = "") -> Said:
    """A model's text in its parts. asked: what it was asked, whose tags it may repeat.

    Raises ValueError whose text is the reason where they cannot be told apart.
    """
    if FIRST_CHANNEL.match(text) and (found := list(CHANNEL.finditer(text))):
        return _of_channels(text, found)
    if found := BARE_CHANNELS.match(text):
        return Said(found[1].strip(), found[2].strip())
    if found := BARE_ANALYSIS.match(text):
        return Said(text[found.end() :].strip(), "", is_open=True)
    for i, (opening, closing) in enumerate(TAGS):
        if (said := _of_tags(text, asked, opening, closing, is_sure=i < SURE)) is not None:
            return said
    return Said("", text)


def _of_channels(text: str, found: list[re.Match[str]]) -> Said:
    """Harmony's messages: the first of the channel "final" is the answer, what stands before it is not."""
    final = next((match for match in found if match[1] == "final"), None)
    before = found if final is None else found[: found.index(final)]
    thoughts = "\n\n".join(match[2].strip() for match in before)
    if final is None:
        return Said(thoughts, "", is_open=True)
    return Said(thoughts, final[2].strip(), cut_at=final[3] if text[final.end() :].strip() else "")


def _of_tags(text: str, asked: str, opening: str, closing: str, *, is_sure: bool) -> Said | None:
    """None where these tags part nothing."""
    head = text.lstrip()
    is_opened = head.startswith(opening)
    if not is_opened and closing not in text:
        return None
    ends = [match.start() for match in re.finditer(re.escape(closing), text) if not is_quoted(text, match)]
    if not is_opened and not (is_sure and ends):
        return None
    if not ends:
        return Said(head[len(opening) :].strip(), "", is_open=True)
    if closing in asked and not (is_opened and len(ends) == 1):
        raise ValueError(f"{AMBIGUOUS}: {closing} stands in what was asked")
    thoughts = text[: ends[-1]]
    first = re.search(re.escape(opening), thoughts)
    if first and thoughts[: first.start()].rpartition("\n")[2].strip():
        raise ValueError(f"{AMBIGUOUS}: {opening} stands within a line")
    return Said(thoughts.strip().removeprefix(opening).strip(), text[ends[-1] + len(closing) :].strip())


def is_quoted(text: str, match: re.Match[str]) -> bool:
    """Whether a tag or token is spoken of, and not meant: in quotes, or in code within its line."""
    before, behind = text[: match.start()][-1:], text[match.end() :][:1]
    line = text[text.rfind("\n", 0, match.start()) + 1 : match.start()]
    return (before == behind and before in tuple("\"'`“”’")) or line.count("`") % 2 == 1
