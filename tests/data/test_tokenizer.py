"""Three kinds of tokenizer file: ids equal to their makers', text that stays text, files that are refused."""

import base64
import importlib.util
import json
import os
import re
import shutil
from pathlib import Path

import pytest
import sentencepiece
import tokenizers
from tokenizers import decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import AutoTokenizer

from data.text import Message
from data.text.chat import Chat, Run
from data.text.tokenizer import Tokenizer
from system import InputError
from tests import texts, tiny

WORDS = ["Hello there, how are you? I am fine.", "user assistant [INST] question [/INST] answer <|im_start|> <tool>"]
SYMBOLS = ["<tool>", "[INST]", "[/INST]", "endofturn"]  # user-defined: sentencepiece itself makes them of text
LLAMA2 = (
    "{{ bos_token }}{% for m in messages %}{% if m.role == 'user' %}[INST] {{ m.content }} [/INST]"
    "{% else %} {{ m.content }} {{ eos_token }}{% endif %}{% endfor %}"
)


def find(package, path):
    """A file of an installed package, without importing it."""
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        pytest.skip(f"{package} is not installed: pip install --no-deps {package}")
    return Path(spec.submodule_search_locations[0]) / path


def write_ranks(folder):
    folder.mkdir(exist_ok=True)
    shutil.copy(find("llama_models", "llama3/tokenizer.model"), folder / "tokenizer.model")
    return folder


def write_sentencepiece(folder, **options):
    folder.mkdir(exist_ok=True)
    (folder / "text").write_text("\n".join(WORDS * 20 + texts.LANGUAGES[:20]), encoding="utf-8")
    settings = dict(
        model_type="bpe", vocab_size=900, byte_fallback=True, character_coverage=0.98, add_dummy_prefix=True,
        normalization_rule_name="identity", remove_extra_whitespaces=False, allow_whitespace_only_pieces=True,
        split_digits=True, user_defined_symbols=SYMBOLS, control_symbols=["<|eot_id|>"], minloglevel=2,
    )  # fmt: skip
    sentencepiece.SentencePieceTrainer.train(
        input=str(folder / "text"), model_prefix=str(folder / "tokenizer"), **(settings | options)
    )
    (folder / "text").unlink()
    return folder


def write_json(folder):
    folder.mkdir(exist_ok=True)
    tiny.write_tokenizer(folder, WORDS)
    file = folder / "tokenizer.json"
    description = json.loads(file.read_text())
    flags = description["added_tokens"][0]
    vocab = description["model"]["vocab"]
    vocab["endofturn"] = len(vocab) + len(tiny.CONTROL)  # in the BPE's own vocabulary too
    for i, (text, special) in enumerate([("<tool>", False), ("[INST]", True), ("[/INST]", False)]):
        description["added_tokens"].append(
            flags | {"id": vocab["endofturn"] + 1 + i, "content": text, "special": special}
        )
    description["added_tokens"].append(flags | {"id": vocab["endofturn"], "content": "endofturn", "special": False})
    file.write_text(json.dumps(description))
    return folder


def write_mistral(folder):
    folder.mkdir(exist_ok=True)
    model = find("mistral_common", "data/mistral_instruct_tokenizer_240323.model.v3")
    shutil.copy(model, folder / "tokenizer.model")
    return folder


WRITERS = {
    "tokenizer.json": write_json,
    "ranks": write_ranks,
    "sentencepiece": write_sentencepiece,
    "Mistral's": write_mistral,
}


@pytest.fixture(scope="module")
def tokenizer_of(tmp_path_factory):
    """The tokenizer of a kind; opened once."""
    opened = {}

    def get(kind):
        if kind not in opened:
            opened[kind] = Tokenizer(WRITERS[kind](tmp_path_factory.mktemp("tokenizer")))
        return opened[kind]

    return get


# --- ids -----------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_ids_of_ranks_are_metas(tokenizer_of):
    ours = tokenizer_of("ranks")
    pytest.importorskip("tiktoken")
    from llama_models.llama3.tokenizer import Tokenizer as Meta

    meta = Meta.get_instance()
    kinds = texts.kinds()
    assert sum(map(len, kinds.values())) > 2000
    for kind, lines in kinds.items():
        different = [
            text[:60]
            for text, ids in zip(lines, ours.encode(lines), strict=True)
            if ids != meta.encode(text, bos=False, eos=False)
        ]
        assert not different, kind
    assert ours.added == meta.special_tokens
    assert (ours.bos_id, ours.eos_id, ours.n_ids) == (meta.bos_id, meta.eos_id, meta.n_words)


@pytest.mark.slow
def test_offsets_of_a_very_long_word_are_those_of_its_ids(tokenizer_of):
    ours = tokenizer_of("ranks")
    text = "a b " + "xyz" * 10_000 + " end"
    spans = ours.offsets(text)
    assert len(spans) == len(ours.encode([text])[0])
    assert "".join(text[a:b] for a, b in spans) == text


@pytest.mark.parametrize("kind", ["sentencepiece", "Mistral's"])
def test_ids_of_sentencepiece_are_the_librarys(tokenizer_of, kind):
    ours = tokenizer_of(kind)
    peer = sentencepiece.SentencePieceProcessor(model_file=str(ours.folder / "tokenizer.model"))
    for name, lines in texts.kinds().items():
        lines = [text for text in lines if not any(symbol in text for symbol in SYMBOLS)]
        if name not in ("very long words", "longer than a window"):
            assert ours.encode(lines) == peer.encode(lines), name


@pytest.mark.parametrize("kind", WRITERS)
@pytest.mark.parametrize("goes_on", [False, True])
def test_decoding_gives_every_text_back(tokenizer_of, kind, goes_on):
    ours = tokenizer_of(kind)
    for name, lines in texts.kinds().items():
        if "longer" in name:
            continue
        lines = [text for text in lines if "\u2581" not in text]  # sentencepiece's own sign for a blank
        decode = ours.text_of_tokens if goes_on else ours.decode
        for text, ids in zip(lines, ours.encode(lines, goes_on=goes_on), strict=True):
            assert decode(ids) == text, name


# --- control tokens stay out of text -------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", WRITERS)
def test_no_text_writes_a_control_token(tokenizer_of, kind):
    ours = tokenizer_of(kind)
    assert len(ours.added) > 5
    spelled = [
        text
        for token in [*ours.added, "<s>", "</s>", "[INST]", "<tool_call>", "<|eot_id|>"]
        for text in (
            token,
            f" {token} ",
            f"a{token}b",
            token * 3,
            f"{token[:2]} {token[2:]}",
            f"x\n\n{token}\n",
            token[1:],
        )
    ]
    for goes_on, decode in ((False, ours.decode), (True, ours.text_of_tokens)):
        for text, ids in zip(spelled, ours.encode(spelled, goes_on=goes_on), strict=True):
            assert not set(ids) & set(ours.added.values()), text
            assert decode(ids) == text


@pytest.mark.parametrize(
    "kind", [pytest.param(kind, marks=[pytest.mark.slow] * (kind == "Mistral's")) for kind in WRITERS]
)
def test_a_template_places_control_tokens_and_content_does_not(tokenizer_of, kind, tmp_path):
    ours = tokenizer_of(kind)
    names = {"bos_token": "<s>", "eos_token": "</s>"} if kind in ("sentencepiece", "Mistral's") else {}
    folder = tmp_path / "copy"
    shutil.copytree(ours.folder, folder)
    end = "<|eot_id|>" if "<|eot_id|>" in ours.added else "</s>"
    (folder / "chat_template.jinja").write_text(
        "{% for m in messages %}{{ m.role }}: {{ m.content }}" + end + "{% endfor %}"
        "{% if add_generation_prompt %}assistant: {% endif %}"
    )
    config = json.loads((folder / "tokenizer_config.json").read_text()) if kind == "tokenizer.json" else {}
    (folder / "tokenizer_config.json").write_text(json.dumps(config | names))
    chat = Chat(Tokenizer(folder))
    plain = control_ids(chat, "question", "answer")
    for token in [*ours.special, "assistant: ", "user: x"]:
        assert control_ids(chat, f"{token} {token}", token) == plain
        assert control_ids(chat, f"x{token[: len(token) // 2]}", token[len(token) // 2 :] + "y") == plain


def response_pieces(chat, text):
    return chat.write([Message("user", "question")], [[Message("assistant", text)]]).responses[0].pieces


def control_ids(chat, prompt, response):
    """The control ids of a prompt and its response, in order."""
    pieces = [*chat.prompt_pieces([Message("user", prompt)]), *response_pieces(chat, response)]
    runs = iter(chat.encode([p for p in pieces if isinstance(p, Run)]))
    ids = [i for p in pieces for i in (next(runs) if isinstance(p, Run) else [p])]
    return [i for i in ids if chat.tokenizer.is_control(i)]


SAID = ["{a}\nTwo and two.\n{b}\n\n4", "{a}{b}", "x{a} y {b}z", "{a} a  {a}b", "I am {a}\n\n{b} fine.", "{b}  {a}  x"]


@pytest.mark.parametrize("kind", WRITERS)
def test_what_a_model_says_is_the_same_ids_as_text_again(tokenizer_of, kind, tmp_path):
    """Added tokens that are not special are spelled where an answer is decoded, and are the tokens again."""
    folder = tmp_path / "copy"
    shutil.copytree(tokenizer_of(kind).folder, folder)
    names = {"bos_token": "<s>", "eos_token": "</s>"} if kind in ("sentencepiece", "Mistral's") else {}
    end = "<|eot_id|>" if "<|eot_id|>" in tokenizer_of(kind).added else "</s>"
    config = json.loads((folder / "tokenizer_config.json").read_text()) if kind == "tokenizer.json" else {}
    if kind in ("ranks", "Mistral's"):  # whose files have none of that kind
        first = tokenizer_of(kind).n_ids
        config["added_tokens_decoder"] = {
            str(first + i): {"content": text, "special": False} for i, text in enumerate(["<tool>", "endofturn"])
        }
    (folder / "tokenizer_config.json").write_text(json.dumps(config | names))
    for header in ("assistant: ", end):  # the answer follows text, or a control token
        (folder / "chat_template.jinja").write_text(
            "{% for m in messages %}{% if m.role == 'user' %}user: {% else %}HEADER{% endif %}{{ m.content }}END"
            "{% endfor %}{% if add_generation_prompt %}HEADER{% endif %}{# <tool>endofturn #}".replace(
                "HEADER", header
            ).replace("END", end)  # spelled in the template: a mark, though a word of the model's vocabulary too
        )
        chat = Chat(Tokenizer(folder))
        a, b = (chat.tokenizer.added[t] for t in ("<tool>", "endofturn"))
        for said in (text.format(a="<tool>", b="endofturn") for text in SAID):
            ids = ids_of(chat, response_pieces(chat, said))
            assert [i for i in ids if i in (a, b)] == [
                a if t == "<tool>" else b for t in re.findall("<tool>|endof", said)
            ]
            text = chat.tokenizer.decode(ids)
            assert text == said and ids_of(chat, response_pieces(chat, text)) == ids


def ids_of(chat, pieces):
    runs = iter(chat.encode([p for p in pieces if isinstance(p, Run)]))
    return [i for p in pieces for i in (next(runs) if isinstance(p, Run) else [p])]


# --- the blank before a first word ---------------------------------------------------------------------------------


def write_metaspace(folder, form):
    """A tokenizer.json of Llama-2's family, which puts a blank before a text in one of its three ways."""
    folder.mkdir()
    made = tokenizers.Tokenizer(models.BPE(unk_token="<unk>", fuse_unk=True))
    if form == "legacy":
        steps = [normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")]
        made.normalizer = normalizers.Sequence(steps)  # pyright: ignore[reportAttributeAccessIssue]
    else:
        made.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=form, split=False)  # pyright: ignore[reportAttributeAccessIssue]
    steps = [decoders.Replace("\u2581", " "), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    made.decoder = decoders.Sequence(steps)  # pyright: ignore[reportAttributeAccessIssue]
    special = ["<unk>", "<s>", "</s>"]
    alphabet = sorted(set("".join(WORDS)) | {"\u2581", "\n"})
    trainer = trainers.BpeTrainer(
        vocab_size=300, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    made.train_from_iterator([line for words in WORDS for line in words.split()] * 3, trainer)
    made.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])  # pyright: ignore[reportAttributeAccessIssue]
    made.save(str(folder / "tokenizer.json"))
    names = {
        "bos_token": "<s>",
        "eos_token": "</s>",
        "unk_token": "<unk>",
        "tokenizer_class": "PreTrainedTokenizerFast",
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(names))
    (folder / "chat_template.jinja").write_text(LLAMA2)
    return folder


CONTROL_BEFORE = (
    "{{ bos_token }}{% for m in messages %}{% if m.role == 'user' %}[INST]{{ m.content }}[/INST]"
    "{% else %}{{ m.content }}{{ eos_token }}{% endif %}{% endfor %}"
)


@pytest.mark.parametrize("form", ["legacy", "first", "always"])
def test_a_response_behind_a_control_token_is_as_transformers_writes_it(tmp_path, form):
    folder = write_metaspace(tmp_path / "model", form)
    peer = AutoTokenizer.from_pretrained(folder)
    peer.add_special_tokens({"additional_special_tokens": ["[INST]", "[/INST]"]})
    peer.chat_template = CONTROL_BEFORE
    peer.save_pretrained(tmp_path / "with")
    chat = Chat(Tokenizer(tmp_path / "with"))
    rows = [m._asdict() for m in TURNS]
    theirs = peer.apply_chat_template([*rows, {"role": "assistant", "content": "you are"}], return_dict=False)
    pieces = [*chat.prompt_pieces(TURNS), *response_pieces(chat, "you are")]
    runs = iter(chat.encode([p for p in pieces if isinstance(p, Run)]))
    assert [i for p in pieces for i in (next(runs) if isinstance(p, Run) else [p])] == theirs


SETTINGS = [{"legacy": legacy} | more for legacy in (True, False, None) for more in ({}, {"add_prefix_space": False})]


def test_settings_of_sentencepiece_count_as_in_transformers(tmp_path):
    """Where there is no tokenizer.json: before which texts a blank is put."""
    made = write_sentencepiece(tmp_path / "made", user_defined_symbols=[], control_symbols=[])
    names = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "tokenizer_class": "LlamaTokenizer"}
    found = []
    for i, settings in enumerate(SETTINGS):
        folder = Path(shutil.copytree(made, tmp_path / str(i)))
        (folder / "tokenizer_config.json").write_text(json.dumps(names | settings))
        peer = AutoTokenizer.from_pretrained(folder)
        (folder / "chat_template.jinja").write_text(CONTROL_BEFORE)
        chat = Chat(Tokenizer(folder))
        rows = [m._asdict() for m in TURNS] + [{"role": "assistant", "content": "you are"}]
        theirs = peer.apply_chat_template(rows, chat_template=CONTROL_BEFORE, return_dict=False)
        ours = ids_of(chat, [*chat.prompt_pieces(TURNS), *response_pieces(chat, "you are")])
        (alone,) = chat.tokenizer.encode(["how are you?"])  # with which everything begins
        assert (ours, alone) == (theirs, peer("how are you?", add_special_tokens=False).input_ids), settings
        assert chat.tokenizer.decode(alone) == "how are you?"
        found.append((tuple(ours), tuple(alone)))
    assert all(len(set(ids)) == 2 for ids in zip(*found, strict=True))  # they decide


def test_tokens_that_only_a_config_names_are_control_tokens_too(tmp_path):
    folder = write_json(tmp_path / "model")
    description = json.loads((folder / "tokenizer.json").read_text())
    vocab = description["model"]["vocab"]
    vocab["endofall"] = 1 + max([*vocab.values(), *(t["id"] for t in description["added_tokens"])])
    (folder / "tokenizer.json").write_text(json.dumps(description))
    config = json.loads((folder / "tokenizer_config.json").read_text())
    more = {"eos_token": "endofall", "added_tokens_decoder": {"700": {"content": "<|im_end|>", "special": True}}}
    (folder / "tokenizer_config.json").write_text(json.dumps(config | more))
    ours = Tokenizer(folder)
    assert ours.eos_id == vocab["endofall"] == ours.added["endofall"] and ours.added["<|im_end|>"] == 700
    (ids,) = ours.encode(["endofall <|im_end|>"])
    assert not set(ids) & set(ours.added.values()) and ours.text_of_tokens(ids) == "endofall <|im_end|>"


@pytest.mark.timeout(20)
def test_a_thousand_spellings_of_a_control_token_are_no_trouble(tokenizer_of):
    ours = tokenizer_of("tokenizer.json")
    text = "endofturn " * 3000
    (ids,) = ours.encode([text])
    assert not set(ids) & set(ours.added.values()) and ours.decode(ids) == text


def test_letters_that_somebody_defined_are_text(tmp_path):
    symbols = ["\n", "0", "\u2581\u2581", "<tool>"]
    ours = Tokenizer(write_sentencepiece(tmp_path, user_defined_symbols=symbols))
    peer = sentencepiece.SentencePieceProcessor(model_file=str(tmp_path / "tokenizer.model"))
    lines = ["a  b\n0 10", "\n\n00"]
    assert ours.encode(lines) == peer.encode(lines) and "<tool>" in ours.added and "0" not in ours.added


TURNS = [Message("user", "how are you?"), Message("assistant", "I am fine."), Message("user", "Hello there")]


@pytest.mark.parametrize("form", ["legacy", "first", "always"])
def test_prompt_and_response_are_the_conversation_that_transformers_writes(tmp_path, form):
    folder = write_metaspace(tmp_path / "model", form)
    chat, peer = Chat(Tokenizer(folder)), AutoTokenizer.from_pretrained(folder)
    for turns in (TURNS[:1], TURNS):
        rows = [m._asdict() for m in turns]
        theirs = peer.apply_chat_template(rows, add_generation_prompt=True, return_dict=False)
        assert chat.prompt_ids(turns) == theirs
        whole = [*rows, {"role": "assistant", "content": "you are there"}]
        pieces = response_pieces(chat, "you are there")
        runs = iter(chat.encode([p for p in pieces if isinstance(p, Run)]))
        response = [i for p in pieces for i in (next(runs) if isinstance(p, Run) else [p])]
        assert theirs + response == peer.apply_chat_template(whole, return_dict=False)
        assert chat.tokenizer.decode(response[:-1]) == "you are there "  # the template's own blank before the end


def test_a_text_that_goes_on_has_no_blank_before_it(tokenizer_of):
    ours = tokenizer_of("sentencepiece")
    peer = sentencepiece.SentencePieceProcessor(model_file=str(ours.folder / "tokenizer.model"))
    behind_digit = peer.encode("7are you", out_type=str)  # a digit that is not in the text: its byte
    assert behind_digit[:2] == ["\u2581", "<0x37>"]
    (ids,), (with_blank,) = ours.encode(["are you"], goes_on=True), ours.encode(["are you"])
    assert [peer.id_to_piece(i) for i in ids] == behind_digit[2:]
    assert peer.id_to_piece(with_blank[0]).startswith("\u2581") and ids != with_blank


# --- what goes into a checkpoint, and what transformers makes of it ------------------------------------------------


@pytest.mark.slow
def test_a_folder_with_ranks_is_completed_for_transformers(tokenizer_of, tmp_path):
    ours = tokenizer_of("ranks")
    assert set(ours.files) == {"tokenizer.json", "tokenizer_config.json"}
    for name, text in ours.files.items():
        (tmp_path / name).write_text(text, encoding="utf-8")
    peer = AutoTokenizer.from_pretrained(tmp_path)
    lines = texts.LANGUAGES + texts.SYMBOLS[:-1]
    bos = [ours.bos_id]
    assert [peer.encode(t) for t in lines] == [bos + ids for ids in ours.encode(lines)]
    assert peer.eos_token_id == ours.eos_id
    again = Tokenizer(tmp_path)
    assert again.added == ours.added and again.encode(lines) == ours.encode(lines) and not again.files


# --- files that are refused ----------------------------------------------------------------------------------------


def refused(folder):
    with pytest.raises(InputError) as fault:
        Tokenizer(folder)
    said = str(fault.value)
    assert "\n" not in said and str(folder) in said
    return said


def rank_lines(n=3):
    return [base64.b64encode(bytes([65 + i])) + b" %d" % i for i in range(n)]


RANKS = {
    "bad base64": (lambda lines: [lines[0], b"!!! 1", lines[2]], r":2: not a base64 token and its rank"),
    "no rank": (lambda lines: [lines[0], b"QQ=="], r":2: not a base64 token"),
    "rank twice": (lambda lines: [lines[0], b"Qg== 0"], r":2: the token or rank occurs twice or out of order"),
    "token twice": (lambda lines: [lines[0], lines[0][:-1] + b"1"], r":2: the token or rank occurs twice"),
    "too few": (lambda lines: lines, r": 3 ranks, Llama-3 has 128000; use the checkpoint's tokenizer.json"),
}


@pytest.mark.parametrize(("change", "said"), RANKS.values(), ids=RANKS)
def test_a_broken_rank_file_is_refused_by_line(tmp_path, change, said):
    (tmp_path / "tokenizer.model").write_bytes(b"\n".join(change(rank_lines())) + b"\n")
    assert said in refused(tmp_path)


@pytest.mark.parametrize("content", [b"", b"\x00" * 100, b"\x80\x04\x95pickle", b"PK\x03\x04zip", b"{}"])
def test_a_model_file_of_another_kind_is_refused_by_content(tmp_path, content):
    (tmp_path / "tokenizer.model").write_bytes(content)
    assert "neither a sentencepiece model nor ranks" in refused(tmp_path)


def test_a_cut_sentencepiece_model_is_refused(tokenizer_of, tmp_path):
    content = (tokenizer_of("sentencepiece").folder / "tokenizer.model").read_bytes()
    (tmp_path / "tokenizer.model").write_bytes(content[: len(content) // 2])
    assert "neither a sentencepiece model nor ranks" in refused(tmp_path)


def edit_added(folder, change):
    file = write_json(folder) / "tokenizer.json"
    description = json.loads(file.read_text())
    change(description["added_tokens"], description["model"]["vocab"])
    file.write_text(json.dumps(description))


ADDED = {
    "two tokens with one id": (lambda added, vocab: added[1].update(id=added[0]["id"]), "shares its id or name"),
    "one name with two ids": (
        lambda added, vocab: added[1].update(content=added[0]["content"]),
        "shares its id or name",
    ),
    "no name": (lambda added, vocab: added[1].update(content=""), "not a tokenizer|is an ordinary letter of text"),
    "a letter": (
        lambda added, vocab: added.append(added[0] | {"content": "e", "id": vocab["e"]}),
        "an ordinary letter of",
    ),
    "a letter again": (
        lambda added, vocab: added.append(added[0] | {"content": "e", "id": 500}),
        "an ordinary letter of",
    ),
}


@pytest.mark.parametrize(("change", "said"), ADDED.values(), ids=ADDED)
def test_added_tokens_that_cannot_be_are_refused(tmp_path, change, said):
    import re

    edit_added(tmp_path, change)
    assert re.search(said, refused(tmp_path))


def test_an_added_blank_does_no_harm(tmp_path):
    edit_added(tmp_path, lambda added, vocab: added.append(added[0] | {"content": " ", "id": 500}))
    ours = Tokenizer(tmp_path)
    (ids,) = ours.encode(["here we are, e e"])
    assert 500 not in ids and ours.decode(ids) == "here we are, e e"


def test_a_huge_file_is_refused_unread(tmp_path):
    with open(tmp_path / "tokenizer.json", "wb") as file:
        file.truncate(2**30)
    assert "larger than 256 MB" in refused(tmp_path)


def test_a_pointer_is_told_from_the_file(tmp_path):
    (tmp_path / "tokenizer.json").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:1\nsize 2\n")
    assert "a Git LFS pointer" in refused(tmp_path)


@pytest.mark.timeout(20)
@pytest.mark.parametrize("name", ["tokenizer.json", "tokenizer.model", "tokenizer_config.json"])
def test_what_is_no_file_is_refused_and_not_opened(tmp_path, name):
    write_json(tmp_path)
    if name == "tokenizer.model":
        (tmp_path / "tokenizer.json").unlink()
    (tmp_path / name).unlink(missing_ok=True)
    os.mkfifo(tmp_path / name)
    assert "not a regular file" in refused(tmp_path)


def test_added_tokens_beside_a_model_file_are_known(tokenizer_of, tmp_path):
    shutil.copy(tokenizer_of("sentencepiece").folder / "tokenizer.model", tmp_path)
    (tmp_path / "added_tokens.json").write_text(json.dumps({"<|im_start|>": 900}))
    ours = Tokenizer(tmp_path)
    assert ours.split_control("a<|im_start|>b") == ["a", 900, "b"] and ours.n_ids == 901
    assert ours.decode([*ours.encode(["a"])[0], 900]) == "a<|im_start|>" and ours.is_spoken(
        900
    )  # nobody calls it special
    (tmp_path / "special_tokens_map.json").write_text(json.dumps({"additional_special_tokens": ["<|im_start|>"]}))
    ours = Tokenizer(tmp_path)
    assert ours.decode([*ours.encode(["a"])[0], 900]) == "a" and not ours.is_spoken(900)
    (tmp_path / "added_tokens.json").write_text(json.dumps({"<s>": 900}))
    assert "the added token '<s>' has two ids" in refused(tmp_path)


BESIDE = {
    "a list": ("tokenizer_config.json", {"added_tokens_decoder": [1]}),
    "a key that is no number": ("tokenizer_config.json", {"added_tokens_decoder": {"\u00b2": {"content": "<x>"}}}),
    "an id of a list": ("added_tokens.json", {"<x>": [1]}),
    "an id of truth": ("added_tokens.json", {"<x>": True}),
}


@pytest.mark.parametrize(("name", "content"), BESIDE.values(), ids=BESIDE)
def test_added_tokens_that_are_none_are_refused(tokenizer_of, tmp_path, name, content):
    shutil.copy(tokenizer_of("sentencepiece").folder / "tokenizer.model", tmp_path)
    (tmp_path / name).write_text(json.dumps(content))
    assert "copy" in refused(tmp_path)


def test_a_letter_that_a_tokenizer_does_not_know_is_told(tmp_path):
    ours = Tokenizer(write_sentencepiece(tmp_path, byte_fallback=False, vocab_size=500))
    with pytest.raises(InputError, match=r"has no token for .*世"):
        ours.encode(["ab 世"])
