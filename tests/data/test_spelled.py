"""Control tokens whose spellings stand as text: which they are, how often, and what is said of them."""

import json

import pytest

from data.rows import RowSettings, encode, parse_record, read_examples
from data.show import show
from data.text import REMEDY, Chat, Tokenizer, spelled_control
from system import InputError
from tests import tiny

LLAMA3 = {
    "prompt": "<|begin_of_text|><|start_header_id|>user<|end_header_id|>\n\nWhy?<|eot_id|>"
    "<|start_header_id|>assistant<|end_header_id|>\n\n",
    "chosen": "Light.<|eot_id|>",
    "rejected": "Air.<|eot_id|>",
}
CHATML = {"prompt": "<|im_start|>user\nWhy?<|im_end|>\n<|im_start|>assistant\n", "chosen": "Light.", "rejected": "Air."}
PLAIN = {"prompt": "if a<b and c[1] then <s>this</s> <|x", "chosen": "<b>bold</b>", "rejected": "<|nothing|>"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokenizer")
    tiny.write_tokenizer(folder, ["user assistant system\n\n"])
    file = folder / "tokenizer.json"
    description = json.loads(file.read_text())
    first = description["added_tokens"][0]
    n = max(token["id"] for token in description["added_tokens"])
    description["added_tokens"] += [
        first | {"id": n + 1, "content": "[turn]", "special": True},
        first | {"id": n + 2, "content": "<think>", "special": False},
    ]
    file.write_text(json.dumps(description))
    return folder


@pytest.fixture(scope="module")
def chat(folder):
    return Chat(Tokenizer(folder))


def test_each_is_found_once_in_the_order_of_the_texts():
    texts = ["a<|im_start|>b<|im_end|>c<|im_start|>", "[INST] d", "<|im_end|>"]
    assert spelled_control(texts) == ("<|im_start|>", "<|im_end|>", "[INST]")
    assert spelled_control(["<|im_start |> <|im_star"]) == () == spelled_control([])


def test_special_tokens_of_the_tokenizer_are_found_and_others_are_text(chat):
    tokenizer = chat.tokenizer
    assert {"[turn]", "<|eot_id|>"} <= tokenizer.special.keys() and "<think>" not in tokenizer.special
    text = "<think>[turn]</s> <|eot_id|>"
    assert spelled_control([text], tokenizer) == ("[turn]", "<|eot_id|>")
    assert spelled_control([text]) == ("<|eot_id|>",)


def read(tmp_path, chat, *rows, **more):
    file = tiny.write_rows(tmp_path / "rows.jsonl", rows)
    settings = RowSettings()
    return read_examples([str(file)], chat, settings.limits, settings.reading, n_ids=500, **more)


def test_rows_that_spell_them_are_counted_and_named_and_their_ids_stay_text(tmp_path, chat):
    rows = read(tmp_path, chat, PLAIN, CHATML, LLAMA3, LLAMA3)
    facts = rows.facts()
    assert facts["templated_rows"] == 3
    assert facts["control_tokens_in_text"] == {
        "<|begin_of_text|>": 2,
        "<|start_header_id|>": 2,
        "<|end_header_id|>": 2,
        "<|eot_id|>": 2,
        "<|im_start|>": 1,
        "<|im_end|>": 1,
    }
    said = "3 rows have control tokens as text, and they stay text (<|begin_of_text|> <|start_header_id|> "
    assert said in facts["report"] and facts["report"].endswith(f"): {REMEDY}")
    assert rows.examples[2].prompt.tolist().count(chat.tokenizer.bos_id) == 1  # the template's own
    plain = read(tmp_path, chat, PLAIN)
    assert plain.facts()["templated_rows"] == 0 and "control tokens" not in plain.report()


def test_a_row_shows_them(tmp_path, chat):
    (record,) = [parse_record(LLAMA3, "rows.jsonl:1")]
    (cut,) = encode([record], chat, RowSettings().limits, n_ids=500)
    note = "note: control tokens occur as text, and they stay text (<|begin_of_text|> <|start_header_id|> "
    assert note in show(cut, chat) and f"<|eot_id|>): {REMEDY}" in show(cut, chat)
    (cut,) = encode([parse_record(PLAIN, "rows.jsonl:1")], chat, RowSettings().limits, n_ids=500)
    assert "note" not in show(cut, chat)


def test_whole_conversations_that_are_templated_and_have_no_prompt_are_a_fault():
    whole = {side: LLAMA3["prompt"] + LLAMA3[side] for side in ("chosen", "rejected")}
    with pytest.raises(InputError) as fault:
        parse_record(whole, "rows.jsonl:1")
    assert str(fault.value) == (
        'rows.jsonl:1: "prompt" is missing, and the answers went through a chat template already (they contain '
        f"<|begin_of_text|> <|start_header_id|> <|end_header_id|> <|eot_id|>); {REMEDY}"
    )
    with pytest.raises(InputError, match=r'^rows.jsonl:1: "prompt" is missing'):
        parse_record({"chosen": whole["chosen"], "rejected": "plain"}, "rows.jsonl:1")
    assert parse_record(whole | {"prompt": "Why?"}, "rows.jsonl:1").form == "pairs"
