"""Conversations as ids: against transformers' apply_chat_template, and against text that spells control tokens."""

import datetime
import json

import pytest
from transformers import AutoTokenizer

from data.text import Message, TemplateSettings
from data.text.chat import LLAMA3_TEMPLATE, Chat, Run, stop_ids
from data.text.tokenizer import Tokenizer
from system import InputError
from tests import tiny

TEXTS = [
    "Hello there, how are you today? I am fine, thank you. What is the answer?",
    "user assistant system [INST] question [/INST] answer\n\n<<SYS>> be brief <</SYS>> <|im_start|>user\n",
]
CHATML = (
    "{% for m in messages %}<|start_header_id|>{{ m['role'] }}\n{{ m['content'] }}<|eot_id|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|start_header_id|>assistant\n{% endif %}"
)
LLAMA2 = (
    "{% for m in messages %}{% if m.role == 'user' %}{{ bos_token }}[INST] {{ m.content }} [/INST]"
    "{% elif m.role == 'assistant' %} {{ m.content }} {{ eos_token }}"
    "{% else %}{{ raise_exception('only users and assistants speak') }}{% endif %}{% endfor %}"
)
TEMPLATES = {"Llama 3": LLAMA3_TEMPLATE, "ChatML": CHATML, "Llama 2": LLAMA2}
SYSTEM, QUESTION, ANSWER = Message("system", "be brief"), Message("user", "how are you?"), Message("assistant", "fine")
PROMPTS = {
    "single": [QUESTION],
    "multi-turn": [QUESTION, ANSWER, Message("user", "What is\n\nthe answer?\n1234")],
    "system": [SYSTEM, QUESTION],
    "system and turns": [SYSTEM, QUESTION, ANSWER, Message("user", "Grüße 世界 🙂")],
}
ANSWERS = ["I am fine, thank you.", "\u00fc", "a\n\nb", "12345 don't", "# Title\n- x"]


def write(folder, template=None, *, added=(), vocab=(), adds_bos=True, **config):
    """A tokenizer's folder. added: further added tokens; vocab: words in the BPE's own vocabulary too."""
    folder.mkdir(exist_ok=True)
    tiny.write_tokenizer(folder, TEXTS)
    file = folder / "tokenizer.json"
    description = json.loads(file.read_text())
    words = description["model"]["vocab"]
    for word in vocab:
        words[word] = len(words) + len(tiny.CONTROL)
    first = 1 + max([*words.values(), *(t["id"] for t in description["added_tokens"])])
    plain = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    for i, (text, special) in enumerate(added):
        at = words.get(text, first + i)
        description["added_tokens"].append({"id": at, "content": text, "special": special, **plain})
    if not adds_bos:
        description["post_processor"] = None
    file.write_text(json.dumps(description))
    names = json.loads((folder / "tokenizer_config.json").read_text()) | config
    (folder / "tokenizer_config.json").write_text(json.dumps(names))
    if template is not None:
        (folder / "chat_template.jinja").write_text(template)
    return folder


def chat_of(folder, template=None, **changes):
    return Chat(Tokenizer(write(folder, template, **changes)))


def peer_ids(folder, messages, template, *, add_generation_prompt):
    """transformers' ids of the conversation, by the same template."""
    peer = AutoTokenizer.from_pretrained(folder)
    rows = [m._asdict() for m in messages]
    return peer.apply_chat_template(
        rows, chat_template=template, add_generation_prompt=add_generation_prompt, return_dict=False
    )


def response_ids(chat, text):
    pieces = chat.write([QUESTION], [[Message("assistant", text)]]).responses[0].pieces
    encoded = iter(chat.encode([p for p in pieces if isinstance(p, Run)]))
    return [i for p in pieces for i in (next(encoded) if isinstance(p, Run) else [p])]


def with_bos(chat, ids):
    """transformers leaves BOS to the template; the tokenizer's own way of encoding begins with it."""
    bos = chat.tokenizer.bos_id
    return ids if ids[:1] == [bos] else [bos, *ids]


CASES = [(t, p) for t in TEMPLATES for p in PROMPTS if not (t == "Llama 2" and p.startswith("system"))]


@pytest.mark.parametrize(("template", "prompt"), CASES)
def test_prompt_ids_are_transformers(tmp_path, template, prompt):
    chat, messages = chat_of(tmp_path, TEMPLATES[template]), PROMPTS[prompt]
    expected = peer_ids(tmp_path, messages, TEMPLATES[template], add_generation_prompt=True)
    assert chat.prompt_ids(messages) == with_bos(chat, expected)


@pytest.mark.parametrize(("template", "prompt"), CASES)
@pytest.mark.parametrize("answer", ANSWERS)
def test_prompt_then_response_is_the_whole_conversation(tmp_path, template, prompt, answer):
    chat, messages = chat_of(tmp_path, TEMPLATES[template]), PROMPTS[prompt]
    whole = [*messages, Message("assistant", answer)]
    expected = with_bos(chat, peer_ids(tmp_path, whole, TEMPLATES[template], add_generation_prompt=False))
    end = len(expected) - 1 - expected[::-1].index(chat.end_of_turn)  # what follows the end of turn is never generated
    assert chat.prompt_ids(messages) + response_ids(chat, answer) == expected[: end + 1]


@pytest.mark.parametrize("adds_bos", [True, False])
@pytest.mark.parametrize("has_bos", [True, False])
def test_bos_stands_once_where_template_or_tokenizer_puts_it(tmp_path, adds_bos, has_bos):
    chat = chat_of(tmp_path, LLAMA3_TEMPLATE if has_bos else CHATML, adds_bos=adds_bos)
    ids = chat.prompt_ids(PROMPTS["multi-turn"])
    assert ids.count(chat.tokenizer.bos_id) == (has_bos or adds_bos)
    assert (ids[0] == chat.tokenizer.bos_id) == (has_bos or adds_bos)
    assert chat.tokenizer.bos_id not in response_ids(chat, "fine")


ENDS = {"Llama 3": "<|eot_id|>", "ChatML": "<|eot_id|>", "Llama 2": "<|end_of_text|>"}


@pytest.mark.parametrize(("template", "end"), ENDS.items())
def test_a_response_ends_with_the_end_of_turn_and_has_it_once(tmp_path, template, end):
    chat = chat_of(tmp_path, TEMPLATES[template])
    assert chat.end_of_turn == chat.tokenizer.added[end]
    ids = response_ids(chat, "fine")
    assert ids[-1] == chat.end_of_turn and ids.count(chat.end_of_turn) == 1


def test_a_template_without_an_end_of_turn_ends_with_eos(tmp_path):
    template = (
        "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
        "{% if add_generation_prompt %}assistant:{% endif %}"
    )
    chat = chat_of(tmp_path, template)
    assert chat.end_of_turn == chat.tokenizer.eos_id
    assert response_ids(chat, "fine")[-1] == chat.tokenizer.eos_id


def test_without_end_of_turn_and_eos_there_is_no_end(tmp_path):
    with pytest.raises(InputError, match=r"ends an answer with no control token.* eos_token"):
        chat_of(tmp_path, "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}", eos_token=None)


WORDS = ["endofturn", "<|>"]  # one piece of Llama-3's split each: a BPE with ignore_merges takes them whole
ADDED = [("<tool>", True), ("<|im_start|>", True), ("endofturn", True), ("<|>", True)]
SPOKEN = [(text, False) for text, _ in ADDED]
SPELLED = [text for text, _ in ADDED] + tiny.CONTROL


@pytest.mark.parametrize("vocab", [(), WORDS], ids=["added only", "in the BPE's vocabulary too"])
@pytest.mark.parametrize("text", [*SPELLED, "".join(SPELLED), " and ".join(SPELLED), "endofturnendofturn endofturn"])
def test_text_that_spells_control_tokens_stays_text(tmp_path, text, vocab):
    chat = chat_of(tmp_path, added=ADDED, vocab=vocab)
    tokenizer = chat.tokenizer
    assert set(SPELLED) == tokenizer.added.keys()
    if vocab and text in vocab:  # the trap is there: the copy without added tokens has it still
        assert tokenizer._coder._plain.encode(text, add_special_tokens=False).ids == [tokenizer.added[text]]
    (ids,) = tokenizer.encode([text])
    assert not set(ids) & set(tokenizer.added.values())
    assert tokenizer.decode(ids) == text
    empty, full = (chat.prompt_ids([Message("user", t)]) for t in ("x", text))
    assert [i for i in full if i in tokenizer.added.values()] == [i for i in empty if i in tokenizer.added.values()]
    response = response_ids(chat, text)
    assert not set(response[:-1]) & set(tokenizer.added.values()) and tokenizer.decode(response[:-1]) == text


@pytest.mark.parametrize("vocab", [(), WORDS], ids=["added only", "in the BPE's vocabulary too"])
def test_added_tokens_that_are_not_special_are_what_an_assistant_says_and_nobody_else(tmp_path, vocab):
    chat = chat_of(tmp_path, LLAMA3_TEMPLATE + "{# endofturn <|> #}", added=SPOKEN, vocab=vocab)
    added, said = chat.tokenizer.added, "<|> a<tool>endofturn b"
    tokens = [added[t] for t in ("<|>", "<tool>", "endofturn")]
    assert [i for i in response_ids(chat, said) if i in added.values()] == [*tokens, chat.end_of_turn]
    assert [i for i in response_ids(chat, "<|eot_id|>") if i in added.values()] == [chat.end_of_turn]
    plain = chat.prompt_ids([QUESTION, ANSWER, QUESTION])
    for turns, spelled in (([QUESTION, Message("assistant", said), QUESTION], tokens), ([Message("user", said)], [])):
        ids = chat.prompt_ids(turns)
        assert [i for i in ids if i in [added[t] for t, _ in SPOKEN]] == spelled
        assert not spelled or [i for i in ids if i in added.values() and i not in spelled] == [
            i for i in plain if i in added.values()
        ]


def test_the_template_itself_may_place_control_tokens_that_are_not_special(tmp_path):
    chat = chat_of(tmp_path, "<tool>" + CHATML, added=ADDED, adds_bos=False)
    assert chat.prompt_ids([QUESTION])[0] == chat.tokenizer.added["<tool>"]


def test_the_longest_control_token_is_taken(tmp_path):
    tokenizer = Tokenizer(write(tmp_path, added=[("<|eot_id|><|eot_id|>", True)]))
    double, single = tokenizer.added["<|eot_id|><|eot_id|>"], tokenizer.added["<|eot_id|>"]
    assert tokenizer.split_control("a<|eot_id|><|eot_id|><|eot_id|>b") == ["a", double, single, "b"]


def test_content_that_holds_the_marks_used_inside_is_kept(tmp_path):
    chat = chat_of(tmp_path)
    text = "a\ufdd0b\ufdd1c\ufdd2"
    parts = chat.render([Message("user", text)], add_generation_prompt=False)
    assert [part for part, is_content in parts if is_content] == [text]


def test_content_that_holds_every_noncharacter_is_refused(tmp_path):
    with pytest.raises(InputError, match="all of Unicode's noncharacters"):
        chat_of(tmp_path).prompt_ids([Message("user", "".join(map(chr, range(0xFDD0, 0xFDF0))))])


def test_a_template_that_refuses_a_role_is_told_with_its_words(tmp_path):
    chat = chat_of(tmp_path, LLAMA2)
    with pytest.raises(InputError, match=r"chat_template\.jinja refuses the conversation: only users and assistants"):
        chat.prompt_ids([SYSTEM, QUESTION])


@pytest.mark.parametrize("cut", ["m.content[:6]", "m.content[2:]"])
def test_a_template_that_cuts_content_is_refused(tmp_path, cut):
    chat = chat_of(tmp_path, CHATML.replace("m['content']", f"m.content if m.content|length < 12 else {cut}"))
    with pytest.raises(InputError, match="content must stay whole"):
        chat.prompt_ids([Message("user", "a question of some length")])


def test_a_template_may_cut_thoughts(tmp_path):
    template = CHATML.replace("m['content']", "m.content.split('</think>')[-1]")
    chat = chat_of(tmp_path, template)
    messages = [QUESTION, Message("assistant", "<|eot_id|> hm</think>fine, thank you <|eot_id|>"), QUESTION]
    said = Message("assistant", "fine, thank you")
    whole, plain = chat.prompt_ids(messages), chat.prompt_ids([QUESTION, said, QUESTION])
    assert chat.tokenizer.decode(whole) == chat.tokenizer.decode(plain).replace("you", "you <|eot_id|>", 2).replace(
        "are you <|eot_id|>", "are you", 1
    )
    assert [i for i in whole if chat.tokenizer.is_control(i)] == [i for i in plain if chat.tokenizer.is_control(i)]


def test_a_template_may_look_into_content(tmp_path):
    look = "{% if m.content == 'rude' %}{{ raise_exception('no rude words') }}{% endif %}"
    chat = chat_of(tmp_path, CHATML.replace("{{ m['content'] }}", look + "{{ m['content'] }}"))
    assert chat.prompt_ids([QUESTION])
    with pytest.raises(InputError, match="refuses the conversation: no rude words"):
        chat.prompt_ids([Message("user", "rude")])
    greet = "{% if m.content.startswith('Hi') %}Hello! {% endif %}"
    other = chat_of(tmp_path, CHATML.replace("{{ m['content'] }}", greet + "{{ m['content'] }}"))
    assert other.prompt_ids([QUESTION])
    greeted = chat.render([Message("user", "Hello! Hi there")], add_generation_prompt=True)
    found = other.render([Message("user", "Hi there")], add_generation_prompt=True)
    assert "".join(text for text, _ in found) == "".join(text for text, _ in greeted)
    assert ("Hi there", "other") in found  # the greeting is the template's


def test_a_template_may_trim_content(tmp_path):
    chat = chat_of(
        tmp_path, CHATML.replace("m['content']", "m['content'] | trim").replace("<|eot_id|>\n", "<|eot_id|>")
    )
    assert "how are you?" in chat.tokenizer.decode(chat.prompt_ids([QUESTION]))


@pytest.mark.parametrize("template", ["{% for m in messages %}", "{{ messages | nosuchfilter }}", "{% endif %}"])
def test_a_template_that_is_not_jinja_is_named(tmp_path, template):
    with pytest.raises(InputError, match=r"chat_template\.jinja: not a chat template \(.*\); copy it again from"):
        chat_of(tmp_path, template)


@pytest.mark.parametrize("template", ["{{ 1 / 0 }}", "{{ messages[9].content }}", "{{ 'a' + 1 }}", "{{ nothing.x }}"])
def test_a_template_that_fails_is_an_input_error(tmp_path, template):
    with pytest.raises(InputError, match=r"the chat template .*chat_template\.jinja (fails|refuses)"):
        chat_of(tmp_path, template)


def test_a_template_may_ask_for_a_field_that_a_message_lacks(tmp_path):
    """As transformers lets it: many templates test message.tool_calls."""
    template = CHATML.replace("{{ m['content'] }}", "{% if not m.tool_calls %}{{ m['content'] }}{% endif %}")
    chat = chat_of(tmp_path, template)
    expected = peer_ids(tmp_path, [QUESTION], template, add_generation_prompt=True)
    assert chat.prompt_ids([QUESTION]) == with_bos(chat, expected)


def test_a_template_may_mark_what_the_assistant_generates(tmp_path):
    """As transformers lets it: {% generation %} encloses an answer for masks."""
    template = LLAMA3_TEMPLATE.replace("{{ m.content }}", "{% generation %}{{ m.content }}{% endgeneration %}")
    chat = chat_of(tmp_path, template)
    assert chat.prompt_ids([QUESTION]) == peer_ids(tmp_path, [QUESTION], template, add_generation_prompt=True)


@pytest.mark.parametrize(
    "template",
    [
        "{{ bos_token }}{{ messages[0].content }}<|eot_id|>{% if add_generation_prompt %}assistant{% endif %}",
        CHATML.replace("assistant\n{% endif", "thinking\n{% endif"),
    ],
    ids=["answers are not shown", "another header"],
)
def test_a_prompt_that_does_not_begin_the_conversation_is_refused(tmp_path, template):
    said = (
        r"does not begin with its own generation prompt"
        r'|has no place for the content of message 2, of the role "assistant"'
    )
    with pytest.raises(InputError, match=said):
        chat_of(tmp_path, template)


def test_a_template_that_shows_an_answer_twice_is_refused(tmp_path):
    with pytest.raises(InputError, match="shows one twice"):
        chat_of(tmp_path, CHATML.replace("{{ m['content'] }}", "{{ m['content'] }}{{ m['content'] }}"))


def test_a_message_that_a_template_leaves_out_is_a_fault_of_the_row(tmp_path):
    chat = chat_of(tmp_path, CHATML.replace("{% for m in messages %}", "{% for m in messages if m.role != 'system' %}"))
    assert chat.prompt_ids([QUESTION])
    with pytest.raises(
        InputError, match=r'no place for the content of message 1, of the role "system"; remove it from the row, or'
    ):
        chat.prompt_ids([SYSTEM, QUESTION])


def test_all_that_a_template_puts_behind_an_answer_is_trained(tmp_path):
    template = CHATML.replace("<|eot_id|>", "</response><|eot_id|>")
    added = [("</response>", True)]
    chat = chat_of(tmp_path, template, added=added, eos_token="<|eot_id|>")
    ids = response_ids(chat, "fine")
    assert ids[-2:] == [chat.tokenizer.added["</response>"], chat.tokenizer.added["<|eot_id|>"]]
    assert chat.end_of_turn == ids[-1]


@pytest.mark.parametrize("broken", [5, {}, ["x"], [{"name": []}], [{"name": "other"}]])
def test_a_template_that_is_none_is_not_passed_over(tmp_path, broken):
    with pytest.raises(InputError, match=r"chat_template is neither text nor a list of named templates; copy it again"):
        chat_of(tmp_path, chat_template=broken)


def chosen(folder, **settings):
    return Chat(Tokenizer(folder), TemplateSettings(**settings))


def test_a_list_without_a_default_says_what_can_be_chosen(tmp_path):
    named = [{"name": name, "template": CHATML + f"{{# {name} #}}"} for name in ("tool_use", "rag")]
    with pytest.raises(
        InputError, match=r"a list without one called default; choose one of them: --chat-template rag or tool_use$"
    ):
        chat_of(tmp_path, chat_template=named)
    chat = chosen(tmp_path, chat_template="rag")
    assert chat.template.source.endswith("{# rag #}") and chat.files == {"chat_template.jinja": chat.template.source}


def test_a_template_is_chosen_by_its_name_or_file(tmp_path, monkeypatch):
    folder = write(tmp_path / "model", LLAMA2)
    beside = folder / "additional_chat_templates"
    beside.mkdir()
    (beside / "short.jinja").write_text(CHATML)
    (tmp_path / "mine.jinja").write_text(CHATML + "{# mine #}")
    monkeypatch.chdir(tmp_path)
    assert Chat(Tokenizer(folder)).files == {}
    assert chosen(folder, chat_template="short").template.source == CHATML
    for name in ("mine.jinja", str(tmp_path / "mine.jinja")):
        chat = chosen(folder, chat_template=name)
        assert chat.files == {"chat_template.jinja": CHATML + "{# mine #}"}
    with pytest.raises(InputError, match=r"^--chat-template other: neither a file nor a template of .*; it has short$"):
        chosen(folder, chat_template="other")
    (tmp_path / "short").write_text(CHATML)
    with pytest.raises(
        InputError, match=r"^--chat-template short: both a file and a template of .*; for the file write"
    ):
        chosen(folder, chat_template="short")
    assert chosen(folder, chat_template="./short").template.location == tmp_path.relative_to(tmp_path) / "short"


@pytest.mark.parametrize(
    ("given", "found"),
    [
        ("a=false", {"a": False}),
        ("a=1,b=low", {"a": 1, "b": "low"}),
        ('a=[1,2] , b={"c": "d,e"},f="g"', {"a": [1, 2], "b": {"c": "d,e"}, "f": "g"}),
        ("a=26 Jul 2024,b=", {"a": "26 Jul 2024", "b": ""}),
        ("a=falsehood", {"a": "falsehood"}),
    ],
)
def test_names_of_the_flag_are_json_where_they_can_be(given, found):
    assert TemplateSettings(chat_template_kwargs=given).kwargs == found


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (
            {"chat_template_kwargs": "a"},
            "--chat-template-kwargs: 'a' is not of the form name=value, such as enable_thinking=false",
        ),
        ({"chat_template_kwargs": "a b=1"}, "--chat-template-kwargs: 'a b' is not of the form name=value"),
        ({"chat_template_kwargs": "a=1,a=2"}, "--chat-template-kwargs: a is given twice; give it once"),
        ({"chat_template_kwargs": "messages=1"}, "--chat-template-kwargs: messages comes from the row"),
        ({"template_date": "26 Jul"}, "--template-date: '26 Jul' is not a date such as 2024-07-26"),
    ],
)
def test_flags_that_cannot_be_read_are_named(flags, said):
    with pytest.raises(InputError) as fault:
        TemplateSettings(**flags)
    assert str(fault.value).startswith(said)


def test_flags_that_a_template_has_no_use_for_are_named(tmp_path):
    folder = write(tmp_path, CHATML)
    with pytest.raises(InputError, match=r"^--template-date: the chat template .* asks for no date; leave it out"):
        chosen(folder, template_date="2024-07-26")
    with pytest.raises(InputError, match=r"^--chat-template-kwargs: the chat template .* never reads 'thinking'"):
        chosen(folder, chat_template_kwargs="thinking=true")


def test_a_template_file_that_cannot_be_read_is_not_passed_over(tmp_path):
    write(tmp_path)
    (tmp_path / "chat_template.jinja").symlink_to(tmp_path / "nothing")
    with pytest.raises(InputError, match=r"chat_template\.jinja: cannot be read .* a link to nothing"):
        Chat(Tokenizer(tmp_path))


def test_a_template_that_asks_for_the_date_gets_one_day(tmp_path):
    folder = write(tmp_path, "{{ strftime_now('%d %b %Y, %H:%M') }}" + CHATML)
    chat = chosen(folder, template_date="2024-07-26")
    assert "26 Jul 2024, 00:00" in chat.tokenizer.decode(chat.prompt_ids([QUESTION]))
    today = chosen(folder).template.day
    assert today is not None and abs(today - datetime.date.today()) <= datetime.timedelta(days=1)
    assert chosen(write(folder, CHATML)).template.day is None


def test_where_a_template_is_looked_for(tmp_path):
    assert chat_of(tmp_path / "a").template.source == LLAMA3_TEMPLATE  # its control tokens are there
    assert chat_of(tmp_path / "b", chat_template=CHATML).template.source == CHATML
    named = [{"name": "tool_use", "template": LLAMA2}, {"name": "default", "template": CHATML}]
    assert chat_of(tmp_path / "c", chat_template=named).template.source == CHATML
    both = chat_of(tmp_path / "d", LLAMA2, chat_template=CHATML)
    assert both.template.source == LLAMA2 and both.template.location == tmp_path / "d" / "chat_template.jinja"


def test_a_tokenizer_without_any_template_is_refused(tmp_path):
    write(tmp_path)
    file = tmp_path / "tokenizer.json"
    file.write_text(file.read_text().replace("<|start_header_id|>", "<|start|>"))
    with pytest.raises(InputError, match=r": no chat template; put one into chat_template\.jinja"):
        Chat(Tokenizer(tmp_path))


def test_a_folder_without_a_tokenizer_is_refused(tmp_path):
    with pytest.raises(InputError, match=r"neither tokenizer\.json nor tokenizer\.model; add the checkpoint's own"):
        Tokenizer(tmp_path)


@pytest.mark.parametrize(
    ("content", "said"),
    [("{", "not JSON"), ("[]", "a list, not an object"), ('{"model": 5}', "not a tokenizer"), ("\xff", "not JSON")],
)
def test_a_broken_tokenizer_file_is_named(tmp_path, content, said):
    (tmp_path / "tokenizer.json").write_bytes(content.encode("latin-1"))
    with pytest.raises(InputError, match=rf"tokenizer\.json: {said}.*copy it again"):
        Tokenizer(tmp_path)


def test_every_id_that_ends_an_answer_is_known(tmp_path):
    chat = chat_of(tmp_path)
    (tmp_path / "config.json").write_text('{"eos_token_id": 7}')
    (tmp_path / "generation_config.json").write_text('{"eos_token_id": [9, 3]}')
    assert stop_ids(tmp_path, chat) == tuple(sorted({3, 7, 9, chat.end_of_turn}))
    assert stop_ids(tmp_path, None) == (3, 7, 9)
