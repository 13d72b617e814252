"""Published templates, by stand-ins of the same structure: ids and masks against transformers, token by token."""

import json
import re

import pytest
from transformers import AutoTokenizer

from data.rows.examples import Limits, encode
from data.rows.records import Record
from data.text import NO_CONTEXT, Chat, Message, TemplateContext, TemplateSettings, Tokenizer
from system import InputError
from tests.data import clock, templates
from tests.data.templates import TEMPLATES

DAY = "2024-07-26"
WIDE = Limits(prompt_tokens=10_000, response_tokens=10_000)
QUESTION, SYSTEM = Message("user", "2+2?"), Message("system", "be brief")
TOOLS = [
    {"type": "function", "function": {"name": "get_weather", "description": "Of <think> now, <|eot_id|> and \"here\".",
     "parameters": {"type": "object", "properties": {"city": {"type": "string", "description": "c"}}}}}
]  # fmt: skip
CALL = {"type": "function", "function": {"name": "get_weather", "arguments": {"city": "Oslo <|im_end|>"}}}
CALLS = Message("assistant", "", tool_calls=[CALL])
FOUND = Message("tool", '3 C\n"rain"', tool_call_id="a", name="get_weather")
WITH_TOOLS = TemplateContext(tools=TOOLS)


def chat_of(folder, name, **settings):
    settings.setdefault("template_date", DAY if "strftime_now" in TEMPLATES[name] else None)
    templates.write(folder, TEMPLATES[name], eos=templates.end_of(name))
    return Chat(Tokenizer(folder), TemplateSettings(**settings))


class Peer:
    """transformers' view of the same folder."""

    def __init__(self, folder, name, **kwargs):
        self._tokenizer = AutoTokenizer.from_pretrained(folder)
        self._end, self._kwargs = templates.end_of(name), kwargs

    def text(self, messages, context=NO_CONTEXT, *, asks=False):
        fields = [m.fields() for m in messages]
        given = {"tools": context.tools, "documents": context.documents, **self._kwargs, **context.kwargs}
        return self._tokenizer.apply_chat_template(fields, tokenize=False, add_generation_prompt=asks, **given)

    def ids(self, text):
        return self._tokenizer(text, add_special_tokens=False)["input_ids"]

    def masked(self, prompt, response, context=NO_CONTEXT):
        """Ids of a whole conversation up to the end of its last message, and which are predicted: what stands between
        the place where each message of an assistant is asked for and the token that ends it."""
        whole = self.text([*prompt, *response], context)
        spans = []
        for i, message in enumerate(response):
            if message.role == "assistant":
                before = self.text([*prompt, *response[:i]], context, asks=True)
                begin = len(before)
                if not whole.startswith(before):  # Hermes 3 ends a tool's words otherwise where they are the last
                    header = "<|im_start|>assistant\n"
                    begin = [m.end() for m in re.finditer(re.escape(header), whole)][before.count(header) - 1]
                spans.append((begin, whole.index(self._end, begin) + len(self._end)))
        return self._flagged(whole[: spans[-1][1]], spans)

    def _flagged(self, text, spans):
        made = self._tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
        inside = [any(begin < b and a < end for begin, end in spans) for a, b in made["offset_mapping"]]
        return made["input_ids"], inside

    def generated(self, messages, template):
        """The same by what the template itself marks with {% generation %}."""
        made = self._tokenizer.apply_chat_template(
            [m.fields() for m in messages], chat_template=template, return_dict=True, return_assistant_tokens_mask=True
        )
        return made["input_ids"], made["assistant_masks"]


@pytest.fixture(autouse=True)
def fixed_day(monkeypatch):
    clock.stop(monkeypatch)


def cut_of(chat, prompt, responses, context=NO_CONTEXT):
    form = "pairs" if len(responses) == 2 else "single"
    record = Record("rows.jsonl:1", form, tuple(prompt), tuple(map(tuple, responses)), context=context)
    (cut,) = encode([record], chat, WIDE, n_ids=1000)
    if isinstance(cut, InputError):
        raise cut
    return cut


def written(chat, prompt, response, context=NO_CONTEXT):
    """Ids of a prompt and of its response, and which of the latter are predicted."""
    example = cut_of(chat, prompt, [response], context).example
    flags = [True] * len(example.responses[0]) if example.predicted is None else example.predicted[0].tolist()
    return example.prompt.tolist(), example.responses[0].tolist(), flags


def compare(folder, name, prompt, response, context=NO_CONTEXT, **kwargs):
    """Ids and mask are those of transformers, rendered with and without each message."""
    given = ",".join(f"{n}={json.dumps(v)}" for n, v in kwargs.items()) or None
    chat, peer = chat_of(folder, name, chat_template_kwargs=given), Peer(folder, name, **kwargs)
    asked, answer, flags = written(chat, prompt, response, context)
    assert asked == peer.ids(peer.text(prompt, context, asks=True))
    ids, mask = peer.masked(prompt, response, context)
    assert asked + answer == ids and [False] * len(asked) + flags == mask
    return chat, flags


def said(text, **fields):
    return Message("assistant", text, **fields)


PLAIN = {
    "a question": [QUESTION],
    "a system message": [SYSTEM, QUESTION],
    "turns": [SYSTEM, QUESTION, said("4"), Message("user", "3+3?\n\nSay it in words.")],
}
ANSWERS = ["6", "It is six.\n\nNo, 6.", "f(x) = 'user' <b>"]


@pytest.mark.parametrize("answer", ANSWERS)
@pytest.mark.parametrize("prompt", PLAIN.values(), ids=PLAIN)
@pytest.mark.parametrize("name", [n for n in TEMPLATES if n not in ("R1-Distill-Llama", "Hermes-3", "Llama-3.3")])
def test_plain_rows_are_transformers(tmp_path, name, prompt, answer):
    _, flags = compare(tmp_path, name, prompt, [said(answer)])
    assert all(flags)


@pytest.mark.parametrize("prompt", PLAIN.values(), ids=PLAIN)
def test_a_template_that_needs_tools_is_given_those_of_the_row(tmp_path, prompt):
    chat, _ = compare(tmp_path, "Hermes-3", prompt, [said("6")], WITH_TOOLS)
    with pytest.raises(InputError, match=r"^rows\.jsonl:1: the chat template .*chat_template\.jinja fails: TypeError"):
        written(chat, prompt, [said("6")])


def test_qwen3_writes_an_empty_thought_that_is_predicted(tmp_path):
    chat, _ = compare(tmp_path, "Qwen3", [QUESTION], [said("4")])
    _, answer, _ = written(chat, [QUESTION], [said("4")])
    added = chat.tokenizer.added
    assert answer[0] == added["<think>"] and added["</think>"] in answer
    assert chat.tokenizer.decode(answer) == "<think>\n\n</think>\n\n4"


@pytest.mark.parametrize("text", ["<think>\nTwo and two.\n</think>\n\n4", "<think>\na\n\nb </think>\n4\n\n5"])
def test_qwen3_thoughts_in_an_answer_are_tokens(tmp_path, text):
    chat, flags = compare(tmp_path, "Qwen3", [QUESTION], [said(text)])
    _, answer, _ = written(chat, [QUESTION], [said(text)])
    assert all(flags) and {chat.tokenizer.added[token] for token in ("<think>", "</think>")} <= {*answer}


def test_qwen3_thoughts_beside_an_answer(tmp_path):
    thinking = said("4", reasoning_content="two and two is four")
    chat, _ = compare(tmp_path, "Qwen3", [QUESTION], [thinking])
    same = said("<think>\ntwo and two is four\n</think>\n\n4")
    assert written(chat, [QUESTION], [thinking]) == written(chat, [QUESTION], [same])


@pytest.mark.parametrize("earlier", [said("<think>\nhm\n</think>\n\n4"), said("4", reasoning_content="hm")])
def test_qwen3_drops_earlier_thoughts(tmp_path, earlier):
    chat, _ = compare(tmp_path, "Qwen3", [QUESTION, earlier, Message("user", "3+3?")], [said("6")])
    asked, *_ = written(chat, [QUESTION, earlier, Message("user", "3+3?")], [said("6")])
    assert "hm" not in chat.tokenizer.decode(asked)


def test_qwen3_told_not_to_think(tmp_path):
    chat, _ = compare(tmp_path, "Qwen3", [QUESTION], [said("4")], enable_thinking=False)
    asked, answer, _ = written(chat, [QUESTION], [said("4")])
    assert chat.tokenizer.decode(asked).endswith("<think>\n\n</think>\n\n") and chat.tokenizer.decode(answer) == "4"
    own = TemplateContext(kwargs={"enable_thinking": True})  # the row's own wins
    asked, answer, _ = written(chat, [QUESTION], [said("4")], own)
    assert chat.tokenizer.decode(answer) == "<think>\n\n</think>\n\n4"
    _, answer, _ = written(chat, [QUESTION], [said("<think>\nhm\n</think>\n\n4")])  # it thinks all the same
    assert chat.tokenizer.decode(answer) == "<think>\nhm\n</think>\n\n4"
    with pytest.raises(InputError, match="does not begin with its own generation prompt"):
        written(chat, [QUESTION], [said("4", reasoning_content="hm")])


@pytest.mark.parametrize("name", [n for n in TEMPLATES if n not in ("Qwen3", "R1-Distill-Llama", "Hermes-3")])
def test_elsewhere_thoughts_in_an_answer_are_plain_content(tmp_path, name):
    text = "<think>\nTwo and two.\n</think>\n\n4"
    chat, _ = compare(tmp_path, name, [QUESTION], [said(text)])
    compare(tmp_path, name, [QUESTION, said(text), Message("user", "3+3?")], [said("6")])
    assert chat.tokenizer.added["<think>"] in written(chat, [QUESTION], [said(text)])[1]


# --- R1's generation prompt has opened a thought ---------------------------------------------------------------------


def test_r1_does_not_double_a_thought(tmp_path):
    chat, peer = chat_of(tmp_path, "R1-Distill-Llama"), Peer(tmp_path, "R1-Distill-Llama")
    opened = peer.ids(peer.text([QUESTION], asks=True))
    end = peer.ids(templates.end_of("R1-Distill-Llama"))
    assert opened[-2] == chat.tokenizer.added["<think>"]
    for text in (
        "<think>\nTwo and two.\n</think>\n\n4",
        "<think>Two and two.\n</think>\n\n4",
        "Two and two.\n</think>\n\n4",
    ):
        asked, answer, _ = written(chat, [QUESTION], [said(text)])
        assert asked == opened and answer == peer.ids("Two and two.\n</think>\n\n4") + end
        assert cut_of(chat, [QUESTION], [[said(text)]]).n_without_thought == 0


def test_r1_answers_without_a_thought_are_taken_as_they_are_and_counted(tmp_path):
    chat, peer = chat_of(tmp_path, "R1-Distill-Llama"), Peer(tmp_path, "R1-Distill-Llama")
    cut = cut_of(chat, [QUESTION], [[said("4")], [said("<think>\nhm\n</think>\n\n5")]])
    assert cut.example.responses[0].tolist() == peer.ids("4" + templates.end_of("R1-Distill-Llama"))
    assert cut.n_without_thought == 1


def test_r1_cuts_earlier_thoughts(tmp_path):
    chat, peer = chat_of(tmp_path, "R1-Distill-Llama"), Peer(tmp_path, "R1-Distill-Llama")
    prompt = [SYSTEM, QUESTION, said("<think>\nhm\n</think>\n\n4"), Message("user", "3+3?")]
    asked = chat.prompt_ids(prompt)
    assert asked == peer.ids(peer.text(prompt, asks=True)) and "hm" not in chat.tokenizer.decode(asked)
    only = [QUESTION, said("<think>hm</think>"), Message("user", "3+3?")]  # nothing is left of it
    assert chat.prompt_ids(only) == peer.ids(peer.text(only, asks=True))


def test_r1_behind_a_tools_answer_no_thought_is_opened(tmp_path):
    prompt = [QUESTION, said("Calling."), FOUND]
    chat, flags = compare(tmp_path, "R1-Distill-Llama", prompt, [said("3 degrees.")])
    assert all(flags) and chat.tokenizer.added["<think>"] not in chat.prompt_ids(prompt)


def test_r1_several_messages_open_a_thought_each_time(tmp_path):
    chat = chat_of(tmp_path, "R1-Distill-Llama")
    asked, answer, flags = written(chat, [QUESTION], [said("<think>\na\n</think>\n\nCalling."), FOUND, said("3.")])
    peer, end = Peer(tmp_path, "R1-Distill-Llama"), templates.end_of("R1-Distill-Llama")
    found = '<\uff5coutput\uff5c>3 C\n"rain"<\uff5coutputs\u2581end\uff5c>'  # behind which no thought is opened
    first, between, last = (peer.ids(text) for text in (f"a\n</think>\n\nCalling.{end}", found, f"3.{end}"))
    assert answer == first + between + last
    assert flags == [True] * len(first) + [False] * len(between) + [True] * len(last)
    assert [i for i in asked if i == chat.tokenizer.added["<think>"]] == [chat.tokenizer.added["<think>"]]


# --- tools -----------------------------------------------------------------------------------------------------------

CALLING = ["Llama-3.1", "Llama-3.2", "Llama-3.3", "Hermes-3", "Qwen2.5", "Qwen3"]


@pytest.mark.parametrize("name", CALLING)
def test_tools_and_what_they_say_before_an_answer(tmp_path, name):
    """Their descriptions spell a special token, which stays text; so do a tool's words."""
    chat, peer = chat_of(tmp_path, name), Peer(tmp_path, name)
    for prompt in ([QUESTION], [SYSTEM, QUESTION], [QUESTION, said("Calling."), FOUND], [QUESTION, CALLS, FOUND]):
        asked, answer, _ = written(chat, prompt, [said("3 degrees.")], WITH_TOOLS)
        text = peer.text(prompt, WITH_TOOLS, asks=True)
        for spelled in ("Of <think> now, <|eot_id|> and", "Oslo <|im_end|>"):  # stand as text
            text = text.replace(spelled, re.sub("[<>]", "", spelled))
        ids = chat.tokenizer.added.values()
        assert [i for i in asked if i in ids] == [i for i in peer.ids(text) if i in ids]
        assert chat.tokenizer.decode(answer[-1:]) == ""


def harmless(context):
    """The same tools without a spelling of control tokens, so that transformers reads them as text too."""
    return TemplateContext(tools=json.loads(json.dumps(context.tools).replace("<think>", "").replace("<|eot_id|>", "")))


@pytest.mark.parametrize("name", CALLING)
def test_a_response_of_several_messages(tmp_path, name):
    calls = said(
        "", tool_calls=[{"type": "function", "function": {"name": "get_weather", "arguments": {"city": "Oslo"}}}]
    )
    for response in ([calls], [calls, FOUND, said("3 degrees.")], [said("I look."), Message("user", "do"), said("6")]):
        _, flags = compare(tmp_path, name, [SYSTEM, QUESTION], response, harmless(WITH_TOOLS))
        assert all(flags) == (len(response) == 1) and flags[0] and flags[-1]


def test_calls_and_thoughts_in_one_response(tmp_path):
    calls = said(
        "I look.", tool_calls=CALLS.tool_calls and [{"function": {"name": "f", "arguments": {"a": [1, None]}}}] * 2
    )
    first = calls._replace(reasoning_content="It asks for it.")
    for response in ([first, FOUND, FOUND, said("3.", reasoning_content="So.")], [calls, FOUND, said("3.")]):
        _, flags = compare(tmp_path, "Qwen3", [QUESTION], response)
        assert flags[0] and flags[-1] and not all(flags)


@pytest.mark.parametrize("name", CALLING)
def test_arguments_are_given_as_the_template_wants_them(tmp_path, name):
    """As an object or as JSON text: a template that writes JSON would write it twice."""
    chat = chat_of(tmp_path, name)
    made = []
    for arguments in ({"city": "Oslo"}, '{"city": "Oslo"}'):
        calls = said("", tool_calls=[{"type": "function", "function": {"name": "get_weather", "arguments": arguments}}])
        made.append(written(chat, [QUESTION], [calls], harmless(WITH_TOOLS)))
    assert made[0] == made[1] and '": {"city": "Oslo"}' in chat.tokenizer.decode(made[0][1])


def test_a_template_that_puts_text_together_gets_text(tmp_path):
    template = TEMPLATES["Qwen2.5"].replace("tool_call.arguments | tojson", "'' + tool_call.arguments")
    templates.write(tmp_path, template)
    chat = Chat(Tokenizer(tmp_path))
    calls = said("", tool_calls=[{"function": {"name": "f", "arguments": {"city": "Ör"}}}])
    assert '"arguments": {"city": "Ör"}}' in chat.tokenizer.decode(written(chat, [QUESTION], [calls])[1])


def test_arguments_that_are_no_object_are_named(tmp_path):
    chat = chat_of(tmp_path, "Qwen2.5")
    calls = said("", tool_calls=[{"function": {"name": "f", "arguments": "{city"}}])
    with pytest.raises(
        InputError, match=r"^rows\.jsonl:1: \"tool_calls\": the arguments '\{city' are not an object in JSON"
    ):
        written(chat, [QUESTION], [calls])


# --- what a template has no place for --------------------------------------------------------------------------------

NO_PLACE = {
    ("Tulu-3", "tools"): ([QUESTION], [said("4")], WITH_TOOLS, 'has no place for "tools"'),
    ("R1-Distill-Llama", "tools"): ([QUESTION], [said("4")], WITH_TOOLS, 'has no place for "tools"'),
    ("SmolLM3", "tools"): ([QUESTION], [said("4")], WITH_TOOLS, 'has no place for "tools"'),
    ("Tulu-3", "calls"): ([QUESTION], [CALLS], NO_CONTEXT, 'has no place for "tool_calls"'),
    ("R1-Distill-Llama", "calls"): ([QUESTION], [CALLS], NO_CONTEXT, 'has no place for "tool_calls"'),
    ("SmolLM3", "calls before"): ([QUESTION, CALLS, FOUND], [said("4")], NO_CONTEXT, 'has no place for "tool_calls"'),
    ("Tulu-3", "an answer of a tool"): ([QUESTION, said("Calling."), FOUND], [said("4")], NO_CONTEXT,
                                        'has no place for the role "tool"; it knows system, user, assistant'),
    ("Llama-3.1", "thoughts"): ([QUESTION], [said("4", reasoning_content="hm")], NO_CONTEXT,
                                'has no place for "reasoning_content"'),
    ("R1-Distill-Llama", "thoughts"): ([QUESTION], [said("4", reasoning_content="hm")], NO_CONTEXT,
                                       'has no place for "reasoning_content"'),
    ("Tulu-3", "thoughts before"): ([QUESTION, said("4", reasoning_content="hm"), QUESTION], [said("4")], NO_CONTEXT,
                                    'has no place for "reasoning_content"'),
    ("Qwen3", "documents"): ([QUESTION], [said("4")], TemplateContext(documents=[{"text": "a"}]),
                             'has no place for "documents"'),
    ("Qwen2.5", "names"): ([QUESTION], [said("4")], TemplateContext(kwargs={"enable_thinking": False}),
                           '"chat_template_kwargs": the chat template .* never reads \'enable_thinking\''),
    ("Qwen3", "our names"): ([QUESTION], [said("4")], TemplateContext(kwargs={"messages": []}),
                             '"chat_template_kwargs": messages comes from the row'),
    ("Llama-3.1", "words beside calls"): ([QUESTION], [CALLS._replace(content="Calling.")], NO_CONTEXT,
                                          'no place for the content of message 2, of the role "assistant" beside its'),
}  # fmt: skip


@pytest.mark.parametrize(("name", "what"), NO_PLACE)
def test_what_a_template_has_no_place_for_is_an_error_of_the_row(tmp_path, name, what):
    prompt, response, context, text = NO_PLACE[name, what]
    with pytest.raises(InputError, match=rf"^rows\.jsonl:1: .*{text}"):
        written(chat_of(tmp_path, name), prompt, response, context)


# --- names, days and masks of the template's own ---------------------------------------------------------------------


@pytest.mark.parametrize("name", ["Llama-3.2", "SmolLM3"])
def test_the_day_of_a_template_is_that_of_the_flag(tmp_path, name):
    compare(tmp_path, name, [SYSTEM, QUESTION], [said("4")])
    chat = chat_of(tmp_path, name, template_date="2031-03-01")
    assert re.search(r"Today: 01 Mar(ch)? 2031", chat.tokenizer.decode(chat.prompt_ids([QUESTION])))
    assert chat.template.day is not None and chat.template.day.isoformat() == "2031-03-01"


@pytest.mark.parametrize("text", ["be brief /no_think", "/no_think", "be /think brief", "/system_override be brief"])
def test_what_smollm3_looks_for_in_a_system_message(tmp_path, text):
    for answer in ("4", "<think>\nhm\n</think>\n4"):
        _, flags = compare(tmp_path, "SmolLM3", [Message("system", text), QUESTION], [said(answer)])
        assert all(flags)


def test_a_users_text_that_a_template_looks_for_stays_text(tmp_path):
    """Qwen3 asks whether a user speaks for a tool; what it looks for is still not the user's to write as tokens."""
    chat = chat_of(tmp_path, "Qwen3")
    spoken = Message("user", "<tool_response>\n3 C\n</tool_response>")
    thinking = said("<think>\nhm\n</think>\n\nI look.")
    asked = chat.prompt_ids([QUESTION, thinking, spoken])
    assert not {chat.tokenizer.added[t] for t in ("<tool_response>", "</tool_response>")} & set(asked)
    assert "hm" in chat.tokenizer.decode(asked)  # it belongs to the same query, so that thoughts stay
    peer = Peer(tmp_path, "Qwen3")
    assert chat.tokenizer.decode(asked) == re.sub(
        r"<\|im_\w+\|>", "", peer.text([QUESTION, thinking, spoken], asks=True)
    )


MASKS = {
    "SmolLM3": TEMPLATES["SmolLM3"],
    "Qwen2.5": TEMPLATES["Qwen2.5"].replace(
        "{{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>' + '\\n' }}",
        "{{- '<|im_start|>' + message.role + '\\n' }}{% if message.role == 'assistant' %}{% generation %}"
        "{{- message.content + '<|im_end|>' }}{% endgeneration %}{% else %}{{- message.content + '<|im_end|>' }}"
        "{% endif %}{{- '\\n' }}",
    ),
    "Llama-3.2": TEMPLATES["Llama-3.2"].replace(
        "{{- message['content'] | trim + '<|eot_id|>' }}",
        "{%- if message.role == 'assistant' %}{% generation %}{{- message['content'] | trim + '<|eot_id|>' }}"
        "{% endgeneration %}{% else %}{{- message['content'] | trim + '<|eot_id|>' }}{% endif %}",
    ),
}


@pytest.mark.parametrize("name", MASKS)
def test_masks_are_those_that_the_template_marks_itself(tmp_path, name):
    templates.write(tmp_path, MASKS[name], eos=templates.end_of(name))
    chat = Chat(Tokenizer(tmp_path), TemplateSettings(template_date=None if name == "Qwen2.5" else DAY))
    response = [said("I look."), Message("user", "do"), said("3 degrees.\n\nRain.")]
    asked, answer, flags = written(chat, [QUESTION], response)
    ids, mask = Peer(tmp_path, name).generated([QUESTION, *response], MASKS[name])
    n = len(asked) + len(answer)
    assert asked + answer == ids[:n] and [False] * len(asked) + flags == list(map(bool, mask[:n]))


# --- cutting ---------------------------------------------------------------------------------------------------------


def test_a_long_prompt_loses_tokens_that_an_assistant_has_said_and_none_of_the_templates(tmp_path):
    chat = chat_of(tmp_path, "Qwen2.5")
    added = chat.tokenizer.added
    prompt = (QUESTION, said("<think> <think> <think> hm </think> 4"), Message("user", "3+3?"))
    record = Record("rows.jsonl:1", "single", prompt, ((said("6"),),))
    (whole,) = encode([record], chat, WIDE, n_ids=1000)
    n_content = sum(len(ids) for ids in chat.tokenizer.encode(["2+2?", "3+3?"]))
    (cut,) = encode([record], chat, Limits(prompt_tokens=len(whole.whole_prompt) - n_content - 6), n_ids=1000)
    kept = cut.example.prompt.tolist()
    assert kept.count(added["<|im_start|>"]) == whole.whole_prompt.count(added["<|im_start|>"]) == 5
    assert kept.count(added["<think>"]) < 3 == whole.whole_prompt.count(added["<think>"])


def test_a_response_that_is_cut_ends_with_what_is_predicted(tmp_path):
    chat = chat_of(tmp_path, "Qwen3")
    record = Record("rows.jsonl:1", "single", (QUESTION,), ((said("I look."), FOUND, said("3.")),))
    (whole,) = encode([record], chat, WIDE, n_ids=1000)
    flags = whole.example.predicted[0].tolist()
    first = flags.index(False)
    for n in (first, first + 3, flags.index(True, first)):
        (cut,) = encode([record], chat, Limits(response_tokens=n), n_ids=1000)
        assert len(cut.example.responses[0]) == first and cut.example.predicted is None


# --- chats that are written as all of their kind are ---------------------------------------------------------------


def test_plain_answers_are_written_as_the_first_of_their_kind(tmp_path, monkeypatch):
    """So that rows are quick; whatever a template looks for is written out with its whole conversation."""
    chat = chat_of(tmp_path, "Qwen3")
    chat.write([QUESTION], [[said("first")]])
    rendered = []
    plain = chat.template.render
    monkeypatch.setattr(chat.template, "render", lambda *a, **k: rendered.append(a) or plain(*a, **k))
    chat.write([Message("user", "another")], [[said("second")], [said("third")]])
    assert len(rendered) == 1  # the prompt
    chat.write([Message("user", "another")], [[said("<think>\nhm\n</think>\n\n4")]])
    assert (n := len(rendered)) >= 4  # the prompt, and the whole conversation, with marks and without
    chat.write([SYSTEM, QUESTION], [[said("4")]])  # another kind of conversation
    assert len(rendered) - n >= 4
