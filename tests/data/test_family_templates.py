"""Templates and tokenizers of further families, by stand-ins: ids of random conversations are transformers'."""

import functools
import json
import random

import pytest
from transformers import PreTrainedTokenizerFast

from data.text import Chat, Message, TemplateContext, TemplateSettings, Tokenizer
from data.text.runs import ids_of
from tests import texts
from tests.data import clock, family_tokenizers
from tests.data.family_templates import TEMPLATES

DAY = "2024-07-26"
WITHOUT_SYSTEM = ("Gemma 2",)
CASES = {name: (name, {}) for name in TEMPLATES} | {
    f"{name}, {key}={json.dumps(value)}": (name, {key: value})
    for name, key, value in [
        ("Qwen3", "enable_thinking", False),
        ("SmolLM3", "enable_thinking", False),
        ("Granite 3.1", "thinking", True),
        ("EXAONE 4", "enable_thinking", True),
        ("Apertus", "enable_thinking", True),
    ]
}
PIECES = [
    *" ".join(texts.LANGUAGES).split(),
    *["the", "a", "f(x)", "12345", "don't", "user", "3.14", "<b>", "</b>", "<table>", "<br>", "<i>", "[x]", "<|", "\\"],
    *["\u2581\u2581", "e\u0301", "\u212b", "assistant", "_"],
    *["\U0001f642", "\U0001f468\u200d\U0001f469\u200d\U0001f467", "\ufdd0", "\u0300", "\u200b", "\ue000", "\ufffd"],
]
BETWEEN = [" ", " ", " ", "", "  ", "\n", "\n\n", "\n\n\n\n", "\t", " \n ", "     ", "\t\t", "\r\n", "\u00a0", "\u2028"]


def random_text(rng):
    """Words, blanks and letters of all of Unicode, without any mark of a template's in it."""
    letters = [chr(c) for c in (rng.randrange(0x20, 0x30000) for _ in range(4)) if not 0xD800 <= c < 0xE000]
    chosen = [
        rng.choice(PIECES) if rng.random() < 0.9 else rng.choice(letters or ["x"]) for _ in range(rng.randrange(1, 25))
    ]
    return "".join(text + rng.choice(BETWEEN) for text in chosen).strip() or "x"


def random_conversation(rng, *, has_system):
    """A system message or none, and one to four questions with their answers."""
    turns = [Message("system", random_text(rng))] if has_system and rng.random() < 0.5 else []
    for _ in range(rng.randrange(1, 5)):
        turns += [Message("user", random_text(rng)), Message("assistant", random_text(rng))]
    return turns


@pytest.fixture
def fixed_day(monkeypatch):
    clock.stop(monkeypatch)


def opened(folder, name, **kwargs):
    """A chat, and transformers' tokenizer of the same folder."""
    family_tokenizers.write(folder, name)
    given = ",".join(f"{n}={json.dumps(v)}" for n, v in kwargs.items()) or None
    day = DAY if "strftime_now" in TEMPLATES[name] else None
    settings = TemplateSettings(chat_template_kwargs=given, template_date=day)
    return Chat(Tokenizer(folder), settings), PreTrainedTokenizerFast.from_pretrained(folder)


def conversation_ids(peer, messages, *, asks, **kwargs):
    """transformers' ids of a conversation."""
    fields = [{"role": m.role, "content": m.content} for m in messages]
    return peer.apply_chat_template(fields, add_generation_prompt=asks, return_dict=False, **kwargs)


SHOWS_SYSTEM_LAST = ("Mistral v3", "Mistral tekken")
"""Where a system message stands before the last question, and only as long as that has no answer."""


OPENS_A_THOUGHT = {"OLMo 3 Think": "", "EXAONE 4, enable_thinking=true": "\n</think>\n\n"}
"""What follows the thought that the prompt opens: nothing, where no thought is shown, or the end of an empty one."""


def assert_same_ids(folder, case, n):
    """Ids of n conversations, of the prompts in them, and of the last answers behind these are transformers'."""
    name, kwargs = CASES[case]
    chat, peer = opened(folder, name, **kwargs)
    theirs = functools.partial(conversation_ids, peer, **kwargs)
    context = TemplateContext(kwargs=kwargs)
    rng = random.Random(case)
    for _ in range(n):
        turns = random_conversation(rng, has_system=name not in WITHOUT_SYSTEM)
        asked = chat.prompt_ids(turns[:-1])
        assert asked == theirs(turns[:-1], asks=True)
        (response,) = chat.write(turns[:-1], [turns[-1:]]).responses
        answer = ids_of(response.pieces, chat.tokenizer)
        is_hidden = turns[0].role == "system" and name in SHOWS_SYSTEM_LAST
        turns = turns[1:] if is_hidden else turns
        parts = chat.render(turns, add_generation_prompt=False, context=context)
        whole = theirs(turns, asks=False)
        assert ids_of(chat.pieces(parts), chat.tokenizer) == whole
        end = len(whole) - whole[::-1].index(chat.end_of_turn)  # what follows it is never generated
        if case in OPENS_A_THOUGHT:  # and the conversation goes on otherwise than its prompt
            text = OPENS_A_THOUGHT[case] + turns[-1].content
            assert answer == [*peer(text, add_special_tokens=False)["input_ids"], chat.end_of_turn]
        else:
            assert answer == whole[end - len(answer) : end] and len(answer) > 1
            assert is_hidden or asked + answer == whole[:end]


FAST = ["Gemma 3", "Mistral v3", "OLMo 3 Think", "Phi-3"]
"""Those furthest from ChatML; the others take as long: a template is tried in a process of its own."""


@pytest.mark.parametrize("case", [pytest.param(case, marks=[pytest.mark.slow] * (case not in FAST)) for case in CASES])
@pytest.mark.usefixtures("fixed_day")
def test_ids_of_random_conversations_are_transformers(tmp_path, case):
    assert_same_ids(tmp_path, case, 10)


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
@pytest.mark.usefixtures("fixed_day")
def test_ids_of_two_hundred_conversations_are_transformers(tmp_path, case):
    assert_same_ids(tmp_path, case, 200)


UNTRIMMED = [
    [Message("user", " \n a b \n")],
    [Message("user", "\n\na  "), Message("assistant", "\n b \n"), Message("user", "c\n\n")],
    [Message("system", " s \n"), Message("user", "\td\n\n")],
]


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=[pytest.mark.slow] * (n not in ("Gemma 3", "Phi-3"))) for n in TEMPLATES]
)
@pytest.mark.usefixtures("fixed_day")
def test_blanks_around_contents_are_written_or_eaten_as_in_transformers(tmp_path, name):
    """Rows are trimmed; the questions of an evaluation are not. Phi's marks eat the blanks beside them."""
    chat, peer = opened(tmp_path, name)
    for turns in UNTRIMMED:
        if turns[0].role != "system" or name not in WITHOUT_SYSTEM:
            assert chat.prompt_ids(turns) == conversation_ids(peer, turns, asks=True)
