"""Frames: plain conversations rendered once, in the parts that marks would find; by marks where they are not alike."""

import pytest

from data.text import Chat, Message, TemplateContext, Tokenizer
from data.text.messages import NO_CONTEXT
from tests.data import templates
from tests.proofs import counted


def user(text):
    return Message("user", text)


def said(text):
    return Message("assistant", text)


CONVERSATIONS = [
    [user("Why?")],
    [user("two\n\nlines, <|eot_id|> and <|im_end|>")],
    [Message("system", "Short."), user("Why?"), said("So."), user("And <tool_call> now?")],
    [Message("system", "Other."), user("Who?"), said("We."), user("question")],
    [user("<think>"), said("a </think> b"), user("What?")],
    [user("h\ufdd0m")],
    [user("日本語")],
]


def chat_of(folder, name, template=None):
    return Chat(Tokenizer(templates.write(folder, template or templates.TEMPLATES[name], eos=templates.end_of(name))))


@pytest.mark.parametrize("name", templates.TEMPLATES)
def test_the_parts_are_those_that_marks_find(tmp_path, name):
    chat, n_framed = chat_of(tmp_path / "model", name), 0
    for _ in range(2):  # the first of a kind is framed, the others fill the frame
        for messages in CONVERSATIONS:
            for asks in (True, False):
                try:
                    expected = chat._marked(messages, NO_CONTEXT, asks)
                except ValueError as fault:
                    with pytest.raises(type(fault)) as found:
                        chat._render(messages, NO_CONTEXT, asks)
                    assert str(found.value) == str(fault)
                    continue
                assert chat._render(messages, NO_CONTEXT, asks) == expected
                n_framed += chat._frames._kind(messages, NO_CONTEXT, asks) in chat._frames._frames
    assert n_framed >= 8 or name == "Hermes-3"  # which takes no conversation without tools


def test_a_plain_prompt_is_rendered_once(tmp_path, monkeypatch):
    chat = chat_of(tmp_path / "model", "Llama-3.1")
    rendered = counted(monkeypatch, type(chat.template), "render")
    chat.write([user("first")], [[said("a")], [said("b")]])
    n = len(rendered)
    chat.write([user("second")], [[said("c")], [said("d")]])
    assert len(rendered) - n == 1
    marked = counted(monkeypatch, chat._frames, "_marked")
    chat.write([Message("system", "s"), user("third")], [[said("e")]])  # of another kind
    assert len(marked) == 2  # the prompt, and the whole of which its answers are read off
    chat.write([user("h\ufdd3m")], [[said("f")]])  # what marks are made of
    assert len(marked) == 3


def test_what_is_not_alike_is_found_by_marks(tmp_path):
    counts = "{% if messages[0].content.split('\\n') | length > 1 %}LINES {% endif %}"
    chat = chat_of(tmp_path / "model", "Qwen2.5", counts + templates.TEMPLATES["Qwen2.5"])
    for text in ("one", "first\nsecond", "another one", "two\nlines"):
        found = chat._render([user(text)], NO_CONTEXT, True)
        assert found == chat._marked([user(text)], NO_CONTEXT, True)
        assert found.text.startswith("LINES ") == ("\n" in text)
        assert ("".join(t for t, _ in found.parts), [t for t, who in found.parts if who]) == (found.text, [text])


def test_names_that_a_template_sees_are_part_of_the_kind(tmp_path):
    chat = chat_of(tmp_path / "model", "Qwen3")
    quiet = TemplateContext(kwargs={"enable_thinking": False})
    for context in (NO_CONTEXT, quiet, NO_CONTEXT, quiet):
        found = chat._render([user("2+2?")], context, True)
        assert found == chat._marked([user("2+2?")], context, True)
        assert found.text.endswith("</think>\n\n") == (context is quiet)
