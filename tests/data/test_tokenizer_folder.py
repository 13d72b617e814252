"""What a folder's files say of a tokenizer: transformers' order of precedence, what differs is said, and all of them
come along into what training writes.
"""

import importlib.util
import json
import shutil
from pathlib import Path

import pytest
import sentencepiece
from transformers import AutoTokenizer

from data.text import Message, tokenizer_files
from data.text.chat import LLAMA3_TEMPLATE, Chat
from data.text.tokenizer import Tokenizer
from engine import weights
from system import InputError
from tests import tiny

BOS, EOS, EOT = "<|begin_of_text|>", "<|end_of_text|>", "<|eot_id|>"
QUESTION, ANSWER = Message("user", "How are you?"), Message("assistant", "I am fine.")
MARKED = (
    "{{ bos_token }}{% for m in messages %}{{ m.role }}: {{ m.content }}{{ eos_token }}{% endfor %}"
    "{% if add_generation_prompt %}assistant: {% endif %}"
)


def write(folder, *, template=MARKED, config=(), special=None, without=(), **files):
    """A tokenizer's folder. config: what tokenizer_config.json says besides; special: special_tokens_map.json."""
    folder.mkdir(exist_ok=True)
    tiny.write_tokenizer(folder, ["How are you? I am fine. user assistant"])
    path = folder / "tokenizer_config.json"
    made = {k: v for k, v in json.loads(path.read_text()).items() if k not in without} | dict(config)
    if "added_tokens_decoder" in made:
        added = json.loads((folder / "tokenizer.json").read_text())["added_tokens"]
        made["added_tokens_decoder"] = {t["id"]: {k: v for k, v in t.items() if k != "id"} for t in added}
    path.write_text(json.dumps(made))
    if special is not None:
        (folder / "special_tokens_map.json").write_text(json.dumps(special))
    if template is not None:
        (folder / "chat_template.jinja").write_text(template)
    return folder


DECODER = {"added_tokens_decoder": {}}  # filled with the tokenizer's own
NAMES = ("bos_token", "eos_token")
EXTENDED = {"content": EOT, "lstrip": False, "normalized": False, "rstrip": False, "single_word": False}
MAPS = {
    "no map": ({}, None, ()),
    "a map alone": ({}, {"bos_token": BOS, "eos_token": EOT}, NAMES),
    "a map of objects": ({}, {"bos_token": BOS, "eos_token": EXTENDED}, NAMES),
    "a map of one": ({}, {"eos_token": EOT}, ("eos_token",)),
    "a map that differs": ({}, {"bos_token": BOS, "eos_token": EOT}, ()),
    "a map of null": ({}, {"eos_token": None, "bos_token": BOS}, ()),
    "a decoder beside a map that differs": (DECODER, {"eos_token": EOT}, ()),
    "a decoder beside a map alone": (DECODER, {"bos_token": BOS, "eos_token": EOT}, NAMES),
    "null beside a map": ({"bos_token": None}, {"bos_token": BOS}, ()),
    "a Llama-2 class of bytes": ({"tokenizer_class": "LlamaTokenizerFast"}, None, NAMES),
}


@pytest.mark.parametrize(("config", "special", "without"), MAPS.values(), ids=MAPS)
def test_special_tokens_have_the_names_that_transformers_gives_them(tmp_path, config, special, without):
    folder = write(tmp_path, config=config, special=special, without=without)
    ours, peer = Tokenizer(folder), AutoTokenizer.from_pretrained(folder)
    for name in NAMES:
        assert ours.text_of(name) == (getattr(peer, name) or ""), name
    assert (ours.bos_id, ours.eos_id) == (peer.bos_token_id, peer.eos_token_id)


def test_a_llama_2_class_names_what_no_file_does(tmp_path):
    """In the tokenizer.json of a sentencepiece model, where transformers takes that class."""
    folder = write(tmp_path, without=NAMES, config={"tokenizer_class": "LlamaTokenizer"})
    description = json.loads((folder / "tokenizer.json").read_text())
    vocab = {word: i for i, word in enumerate(["<unk>", "<s>", "</s>", "\u2581", "a", "b", "\u2581a"])}
    description["model"] |= {"vocab": vocab, "merges": [["\u2581", "a"]], "ignore_merges": False, "unk_token": "<unk>"}
    flags = description["added_tokens"][0]
    description["added_tokens"] = [flags | {"id": i, "content": word} for word, i in [*vocab.items()][:3]]
    space = {"type": "Metaspace", "replacement": "\u2581", "prepend_scheme": "first", "split": False}
    description |= {"pre_tokenizer": space, "decoder": space, "post_processor": None}
    (folder / "tokenizer.json").write_text(json.dumps(description))
    ours, peer = Tokenizer(folder), AutoTokenizer.from_pretrained(folder)
    assert type(peer).__name__ == "LlamaTokenizer"
    assert (ours.text_of("bos_token"), ours.text_of("eos_token")) == (peer.bos_token, peer.eos_token) == ("<s>", "</s>")
    assert (ours.bos_id, ours.eos_id) == (1, 2)


@pytest.mark.parametrize(("config", "special", "without"), MAPS.values(), ids=MAPS)
def test_ids_follow_the_names_of_the_map(tmp_path, config, special, without):
    folder = write(tmp_path, config=config, special=special, without=without)
    try:
        chat = Chat(Tokenizer(folder))
    except InputError as fault:
        assert "name an eos_token" in str(fault)  # no file that counts names one
        assert AutoTokenizer.from_pretrained(folder).eos_token is None
        return
    peer = AutoTokenizer.from_pretrained(folder)
    rows = [{"role": m.role, "content": m.content} for m in (QUESTION,)]
    theirs = peer.apply_chat_template(rows, add_generation_prompt=True, return_dict=False)
    first = [chat.tokenizer.bos_id] if chat.tokenizer.adds_bos and theirs[0] != chat.tokenizer.bos_id else []
    assert chat.prompt_ids([QUESTION]) == first + theirs


@pytest.mark.parametrize(
    ("case", "said"),
    [
        (
            "a map that differs",
            f"special_tokens_map.json's eos_token {EOT!r} goes before tokenizer_config.json's {EOS!r}",
        ),
        (
            "a decoder beside a map that differs",
            f"the eos_token is {EOS!r} by tokenizer_config.json, whose added_tokens",
        ),
        (
            "a decoder beside a map alone",
            "the eos_token is none by tokenizer_config.json, whose added_tokens_decoder puts",
        ),
    ],
)
def test_which_file_counts_is_said_where_they_differ(tmp_path, capfd, case, said):
    config, special, without = MAPS[case]
    folder = write(tmp_path, config=config, special=special, without=without)
    Tokenizer(folder)
    Tokenizer(folder)
    assert capfd.readouterr().err.count(f"{folder}: {said}") == 1


@pytest.mark.parametrize("case", ["no map", "a map alone", "a map of objects", "a map of one"])
def test_nothing_is_said_where_they_agree(tmp_path, capfd, case):
    config, special, without = MAPS[case]
    Tokenizer(write(tmp_path, config=config, special=special, without=without))
    assert capfd.readouterr().err == ""


# --- templates -----------------------------------------------------------------------------------------------------


def test_a_template_file_goes_before_the_config_and_a_difference_is_said(tmp_path, capfd):
    folder = write(tmp_path / "a", config={"chat_template": MARKED + "\n"})
    Tokenizer(folder)
    assert capfd.readouterr().err == ""
    folder = write(tmp_path / "b", config={"chat_template": LLAMA3_TEMPLATE})
    chat = Chat(Tokenizer(folder))
    assert chat.template.source == AutoTokenizer.from_pretrained(folder).chat_template == MARKED
    said = capfd.readouterr().err
    assert said.count(f"{folder}: chat_template.jinja counts, as in transformers; the chat_template in tokeni") == 1


def test_what_transformers_leaves_out_beside_further_templates_is_said(tmp_path, capfd):
    folder = write(tmp_path, template=None, config={"chat_template": MARKED})
    (folder / "additional_chat_templates").mkdir()
    (folder / "additional_chat_templates" / "tool_use.jinja").write_text(LLAMA3_TEMPLATE)
    assert Chat(Tokenizer(folder)).template.source == MARKED
    assert AutoTokenizer.from_pretrained(folder).chat_template == {"tool_use": LLAMA3_TEMPLATE}
    assert "which transformers leaves out beside additional_chat_templates/ (tool_use.jinja)" in capfd.readouterr().err


def test_a_processors_template_is_named(tmp_path, capfd):
    folder = write(tmp_path)
    (folder / "chat_template.json").write_text(json.dumps({"chat_template": MARKED}))
    Tokenizer(folder)
    assert capfd.readouterr().err == ""
    (folder / "chat_template.json").write_text(json.dumps({"chat_template": LLAMA3_TEMPLATE}))
    Tokenizer(folder)
    assert "chat_template.json, which is a processor's, is not read; it is another template" in capfd.readouterr().err


CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def pieces_ids(chat, pieces):
    found = iter(chat.encode([p for p in pieces if not isinstance(p, int)]))
    return [i for p in pieces for i in ([p] if isinstance(p, int) else next(found))]


def test_an_end_that_is_no_token_is_written_as_text_and_said(tmp_path, capfd):
    folder = write(tmp_path, template=CHATML)
    chat = Chat(Tokenizer(folder))
    peer = AutoTokenizer.from_pretrained(folder)
    rows = [{"role": m.role, "content": m.content} for m in (QUESTION, ANSWER)]
    theirs = peer.apply_chat_template(rows, return_dict=False)
    (response,) = chat.write([QUESTION], [(ANSWER,)]).responses
    assert response.is_predicted_whole
    ours = chat.prompt_ids([QUESTION]) + pieces_ids(chat, response.pieces)
    assert ours == [chat.tokenizer.bos_id, *theirs, chat.tokenizer.eos_id]
    said = capfd.readouterr().err
    assert (
        said.count("chat_template.jinja: ends an answer with '<|im_end|>', which is no token of this tokenizer; ") == 1
    )
    assert f"written as text, followed by {EOS}, where sampling stops" in said


def test_an_end_that_is_named_eos_and_is_no_token_gives_way_to_the_models(tmp_path, capfd):
    folder = write(tmp_path, template=CHATML, config={"eos_token": "<|im_end|>"})
    with pytest.raises(InputError, match="ends an answer with no control token; name an eos_token"):
        Chat(Tokenizer(folder))
    end = Tokenizer(folder).added[EOT]
    (folder / "config.json").write_text(json.dumps({"eos_token_id": end}))
    assert Chat(Tokenizer(folder)).end_of_turn == end
    assert "which is no token of this tokenizer" in capfd.readouterr().err


def test_an_eos_that_is_no_token_is_said(tmp_path, capfd):
    folder = write(tmp_path, config={"eos_token": "<|im_end|>"})
    assert Tokenizer(folder).eos_id is None and Tokenizer(folder).text_of("eos_token") == "<|im_end|>"
    peer = AutoTokenizer.from_pretrained(folder)
    assert peer.eos_token_id == len(peer) - 1 == Tokenizer(folder).n_ids
    said = capfd.readouterr().err
    assert said.count("the eos_token '<|im_end|>' is no token of the tokenizer's files, and stays text; transf") == 1


def test_an_end_that_is_a_token_is_not_mentioned(tmp_path, capfd):
    Chat(Tokenizer(write(tmp_path / "a", template=LLAMA3_TEMPLATE)))
    Chat(
        Tokenizer(write(tmp_path / "b", template="{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"))
    )
    assert capfd.readouterr().err == ""


# --- vocabularies --------------------------------------------------------------------------------------------------


def write_sentencepiece(folder):
    """A sentencepiece model and its words in order."""
    folder.mkdir(exist_ok=True)
    (folder / "text").write_text("How are you? I am fine. user assistant\n" * 20, encoding="utf-8")
    sentencepiece.SentencePieceTrainer.train(
        input=str(folder / "text"), model_prefix=str(folder / "tokenizer"), model_type="bpe", vocab_size=60,
        minloglevel=2,
    )  # fmt: skip
    peer = sentencepiece.SentencePieceProcessor(model_file=str(folder / "tokenizer.model"))
    return [peer.id_to_piece(i) for i in range(len(peer))]


@pytest.mark.parametrize("form", ["BPE", "Unigram"])
def test_another_vocabulary_in_the_model_file_is_said(tmp_path, capfd, form):
    folder = write(tmp_path, config={"bos_token": "<start>"})
    words = write_sentencepiece(folder)
    path = folder / "tokenizer.json"
    description = json.loads(path.read_text())
    if form == "BPE":
        description["model"] |= {"vocab": {word: i for i, word in enumerate(words)}, "merges": []}
    else:
        description["model"] = {"type": "Unigram", "unk_id": 0, "vocab": [[word, 0.0] for word in words]}
    flags = description["added_tokens"][0]
    description["added_tokens"] = [flags | {"id": 1, "content": "<start>"}, flags | {"id": 60, "content": EOS}]
    description["post_processor"] = None
    path.write_text(json.dumps(description))
    Tokenizer(folder)
    assert capfd.readouterr().err == ""  # a token of another name is no other vocabulary
    vocab = description["model"]["vocab"]
    if form == "BPE":
        vocab["other"] = vocab.pop(words[7])
    else:
        vocab[7][0] = "other"
    path.write_text(json.dumps(description))
    Tokenizer(folder)
    said = f"tokenizer.model is another vocabulary (1 tokens differ: 7 is 'other' and {words[7]!r})"
    assert said in capfd.readouterr().err
    (folder / "tokenizer.model").write_bytes(b"broken")  # transformers does not open it either
    Tokenizer(folder)
    assert capfd.readouterr().err == ""


@pytest.mark.slow
def test_ranks_beside_their_tokenizer_json_are_the_same_vocabulary(tmp_path, capfd):
    pytest.importorskip("llama_models")
    found = importlib.util.find_spec("llama_models")
    source = Path(found.submodule_search_locations[0]) / "llama3/tokenizer.model"
    shutil.copy(source, tmp_path / "tokenizer.model")
    (tmp_path / "tokenizer.json").write_text(Tokenizer(tmp_path).files["tokenizer.json"])
    Tokenizer(tmp_path)
    assert "another vocabulary" not in capfd.readouterr().err


def test_a_token_with_another_name_beside_tokenizer_json_is_said(tmp_path, capfd):
    folder = write(tmp_path)
    end = Tokenizer(folder).added[EOT]
    (folder / "added_tokens.json").write_text(json.dumps({EOT: end}))
    Tokenizer(folder)
    assert capfd.readouterr().err == ""
    (folder / "added_tokens.json").write_text(json.dumps({"<tool>": end}))
    assert "<tool>" not in Tokenizer(folder).added
    said = capfd.readouterr().err
    assert f"token {end} is {EOT!r} in tokenizer.json, which counts, and '<tool>' in the files beside it" in said
    (folder / "added_tokens.json").write_text(json.dumps({"<tool>": 40}))
    with pytest.raises(InputError, match=r"token 40 is the text '.+' in tokenizer\.json, and the added token '<tool>'"):
        Tokenizer(folder)


# --- what comes along ----------------------------------------------------------------------------------------------

OWN = {
    "tokenizer.json": None,
    "tokenizer_config.json": None,
    "special_tokens_map.json": b"{}",
    "added_tokens.json": b"{}",
    "chat_template.jinja": b"{{ messages }}\r\n",
    "chat_template.json": b"{}",
    "vocab.json": b"{}",
    "vocab.txt": b"a\n",
    "merges.txt": b"a b",
    "tokenizer.model.v3": b"\x00\xff",
    "tekken.json": b"{}",
    "qwen.tiktoken": b"YQ== 0",
    "tokenization_own.py": b"pass",
    "additional_chat_templates/rag.jinja": b"{{ messages }}",
    "additional_chat_templates/tool_use.jinja": "\u00fc".encode("latin-1"),
    "additional_chat_templates/more/deep.jinja": b"x",
}
OTHERS = ("README.md", "config.json", "optimizer.pt", "train/tokenizer.json", "original/tokenizer.model", "LICENSE.txt")


def test_every_file_of_a_tokenizer_comes_along_byte_for_byte(tmp_path):
    folder = tiny.write_model(tmp_path / "model", ["How are you?"])
    for name, content in {**OWN, **dict.fromkeys(OTHERS, b"{}")}.items():
        if content is not None and name != "config.json":
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_bytes(content)
    assert sorted(tokenizer_files(folder)) == sorted(OWN)
    weights.save(weights.load(folder), tmp_path / "out")
    for name in OWN:
        assert (tmp_path / "out" / name).read_bytes() == (folder / name).read_bytes(), name
    beside = {p.relative_to(tmp_path / "out").as_posix() for p in (tmp_path / "out").rglob("*") if p.is_file()}
    assert beside == {*OWN, "config.json", "generation_config.json", "model.safetensors"}


def test_transformers_finds_the_further_templates_of_a_written_folder(tmp_path):
    folder = tiny.write_model(tmp_path / "model", ["How are you?"])
    peer = AutoTokenizer.from_pretrained(folder)
    peer.chat_template = {"default": MARKED, "tool_use": LLAMA3_TEMPLATE}
    peer.save_pretrained(folder)
    assert (folder / "additional_chat_templates" / "tool_use.jinja").is_file()
    weights.save(weights.load(folder), tmp_path / "out")
    assert AutoTokenizer.from_pretrained(tmp_path / "out").chat_template == peer.chat_template


def test_a_link_in_a_hubs_snapshot_is_followed(tmp_path):
    folder = tiny.write_model(tmp_path / "model", ["How are you?"])
    shutil.move(folder / "tokenizer.json", tmp_path / "blob")
    (folder / "tokenizer.json").symlink_to(tmp_path / "blob")
    weights.save(weights.load(folder), tmp_path / "out")
    assert (tmp_path / "out" / "tokenizer.json").read_bytes() == (tmp_path / "blob").read_bytes()
    assert not (tmp_path / "out" / "tokenizer.json").is_symlink()
