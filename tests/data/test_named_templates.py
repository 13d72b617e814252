"""Templates of folders as people have them: one for rows with tools, names of further tokens, ends of their own."""

import json

import pytest
from transformers import AutoTokenizer

from data.text import Chat, Message, TemplateContext, TemplateSettings, stop_ids
from data.text.tokenizer import Tokenizer
from system import InputError
from tests.data import templates

PLAIN = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
WITH_TOOLS = "<|im_start|>system\nCall: {{ tools | tojson }}<|im_end|>\n" + PLAIN
QUESTION, ANSWER = Message("user", "Which tide?"), Message("assistant", "The low one.")
TOOLS = TemplateContext([{"type": "function", "function": {"name": "tide", "parameters": {}}}])


def folder_of(tmp_path, template=None, **config):
    folder = templates.write(tmp_path / "model", template)
    (folder / "tokenizer_config.json").write_text(
        json.dumps(json.loads((folder / "tokenizer_config.json").read_text()) | config)
    )
    return folder


def spelled(chat, response):
    """A response's pieces as text."""
    return "".join(chat.tokenizer.spelling(p) if isinstance(p, int) else p.text for p in response.pieces)


def as_list(tmp_path):
    named = [{"name": "default", "template": PLAIN}, {"name": "tool_use", "template": WITH_TOOLS}]
    return folder_of(tmp_path, None, chat_template=named)


def as_files(tmp_path):
    folder = folder_of(tmp_path, PLAIN)
    (folder / "additional_chat_templates").mkdir()
    (folder / "additional_chat_templates" / "tool_use.jinja").write_text(WITH_TOOLS)
    (folder / "additional_chat_templates" / "rag.jinja").write_text("{{ documents }}" + PLAIN)
    return folder


@pytest.mark.parametrize("layout", [as_list, as_files])
def test_rows_with_tools_are_written_by_the_template_for_them(tmp_path, layout):
    folder = layout(tmp_path)
    chat, peer = Chat(Tokenizer(folder)), AutoTokenizer.from_pretrained(folder)
    for context in (TemplateContext(), TOOLS):
        theirs = peer.apply_chat_template(
            [QUESTION.fields()], tools=context.tools, add_generation_prompt=True, return_dict=False
        )
        assert chat.prompt_ids([QUESTION], context) == theirs
        (response,) = chat.write([QUESTION], [[ANSWER]], context).responses
        assert spelled(chat, response) == "The low one.<|im_end|>"
        assert "".join(text for text, _ in chat.render([QUESTION], add_generation_prompt=True, context=context)) == (
            peer.apply_chat_template(
                [QUESTION.fields()], tools=context.tools, add_generation_prompt=True, tokenize=False
            )
        )


def test_a_template_that_is_chosen_is_that_of_every_row(tmp_path):
    chat = Chat(Tokenizer(as_list(tmp_path)), TemplateSettings(chat_template="default"))
    with pytest.raises(InputError, match='has no place for "tools"'):
        chat.prompt_ids([QUESTION], TOOLS)


def test_a_template_sees_every_token_that_the_folder_names(tmp_path):
    template = PLAIN.replace("<|im_end|>", "{{ eot_token }}") + "{% if not sep_token %}{{ lost }}{% endif %}"
    folder = folder_of(tmp_path, template, eot_token="<|im_end|>", sep_token="<|im_start|>")
    theirs = AutoTokenizer.from_pretrained(folder).apply_chat_template(
        [QUESTION.fields()], add_generation_prompt=True, return_dict=False
    )
    assert Chat(Tokenizer(folder)).prompt_ids([QUESTION]) == theirs


def test_a_processors_template_alone_is_named(tmp_path):
    folder = folder_of(tmp_path, None)
    (folder / "chat_template.json").write_text(json.dumps({"chat_template": PLAIN}))
    with pytest.raises(InputError, match=r"the only chat template is a processor's, chat_template\.json"):
        Chat(Tokenizer(folder))


def test_an_end_of_the_whole_conversation_is_none_of_an_answer(tmp_path):
    folder = templates.write(tmp_path / "model", PLAIN + "{% if not add_generation_prompt %}{{ eos_token }}{% endif %}",
                             eos="<|end_of_text|>")  # fmt: skip
    chat = Chat(Tokenizer(folder))
    (response,) = chat.write([QUESTION], [[ANSWER]]).responses
    assert spelled(chat, response) == "The low one.<|im_end|>"
    assert chat.tokenizer.spelling(chat.end_of_turn) == "<|im_end|>"


def test_calls_may_end_in_a_token_of_their_own(tmp_path):
    template = (
        "{{ tools | tojson if tools else '' }}{% for m in messages %}<|im_start|>"
        "{{ 'ipython' if m.role == 'tool' else m.role }}\n{{ m.content }}"
        "{% if m.tool_calls %}{{ m.tool_calls | tojson }}<|eot_id|>{% else %}<|im_end|>{% endif %}\n{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    )
    chat = Chat(Tokenizer(templates.write(tmp_path / "model", template)))
    call = {"type": "function", "function": {"name": "tide", "arguments": {}}}
    calling = Message("assistant", "", tool_calls=[call])
    responses = [[calling], [calling, Message("tool", "low"), ANSWER], [ANSWER]]
    found = [spelled(chat, r) for r in chat.write([QUESTION], responses, TOOLS).responses]
    assert found[0].endswith("}]<|eot_id|>") and found[1].endswith("The low one.<|im_end|>")
    assert found[1].startswith(found[0]) and found[2] == "The low one.<|im_end|>"
    ends = {chat.tokenizer.added[token] for token in ("<|eot_id|>", "<|im_end|>")}
    assert chat.ends == ends and ends <= {*stop_ids(chat.tokenizer.folder, chat)}


def test_an_end_that_generation_config_json_lacks_is_one_of_the_ids_that_epochs_name(tmp_path, capfd):
    folder = templates.write(tmp_path / "model", PLAIN, eos="<|end_of_text|>")
    eos = Tokenizer(folder).eos_id
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": eos}))
    chat = Chat(Tokenizer(folder))
    assert chat.end_of_turn == chat.tokenizer.added["<|im_end|>"] != eos
    assert {*stop_ids(folder, chat)} == {eos, chat.end_of_turn}
    assert not capfd.readouterr().err


def test_a_token_that_the_normalizer_sees_is_named(tmp_path):
    folder = templates.write(tmp_path / "model", PLAIN)
    file = folder / "tokenizer.json"
    description = json.loads(file.read_text())
    (end,) = (t for t in description["added_tokens"] if t["content"] == "<|im_end|>")
    end["normalized"] = True
    file.write_text(json.dumps(description))
    Chat(Tokenizer(folder))  # no normalizer is there
    description["normalizer"] = {"type": "Prepend", "prepend": "_"}
    file.write_text(json.dumps(description))
    with pytest.raises(InputError, match=r"the added token <\|im_end\|> is normalized, so transformers and vLLM read"):
        Chat(Tokenizer(folder))
    end["normalized"] = False
    file.write_text(json.dumps(description))
    prompt = [QUESTION.fields()]
    theirs = AutoTokenizer.from_pretrained(folder).apply_chat_template(
        prompt, add_generation_prompt=True, return_dict=False
    )
    assert Chat(Tokenizer(folder)).prompt_ids([QUESTION]) == theirs
