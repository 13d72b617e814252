"""Added tokens that are text: found in every text as transformers finds them, while marks stay what templates place."""

import json
import random

import pytest
import tokenizers
from transformers import PreTrainedTokenizerFast

from data.text import Chat, Message, TemplateSettings, Tokenizer
from data.text.plain_tokens import text_unless_written
from data.text.runs import ids_of
from system import InputError
from tests import texts
from tests.data import family_tokenizers
from tests.data.family_templates import TEMPLATES
from tests.data.family_tokenizers import NEWLINES, TAGS, byte_level, plain, specials
from tests.data.templates import QWEN25

TEXTS = ["a\n\nb", "\n\n\n", "<b>x</b>\n\n<table>", "  a    b", "x <br>\n\n\n\n<td>y", "\u2581\u2581a", "<unused0>"]


def edited(folder, change):
    """The folder with its tokenizer.json changed."""
    file = folder / "tokenizer.json"
    description = json.loads(file.read_text())
    change(description)
    file.write_text(json.dumps(description))
    return folder


def made(folder, description, template=QWEN25, **names):
    """A folder with a tokenizer of this description."""
    folder.mkdir(exist_ok=True)
    (folder / "tokenizer.json").write_text(json.dumps(description))
    (folder / "tokenizer_config.json").write_text(json.dumps({"eos_token": "<|im_end|>"} | names))
    (folder / "chat_template.jinja").write_text(template)
    return folder


def asked(chat, text):
    return chat.prompt_ids([Message("user", text)])


def answered(chat, text):
    (response,) = chat.write([Message("user", "x")], [[Message("assistant", text)]]).responses
    return ids_of(response.pieces, chat.tokenizer)


@pytest.fixture(scope="module")
def gemma(tmp_path_factory):
    return family_tokenizers.write(tmp_path_factory.mktemp("gemma"), "Gemma 3")


# --- Gemma's -------------------------------------------------------------------------------------------------------


def test_ids_of_gemmas_form_are_transformers_in_every_text(gemma):
    ours, peer = Tokenizer(gemma), PreTrainedTokenizerFast.from_pretrained(gemma)
    some = [line for kind, lines in texts.kinds().items() if "longer" not in kind for line in lines[:20]]
    lines = [*TEXTS, *(line for line in some if not ours.control.search(line))]
    assert ours.encode(lines) == [peer(text, add_special_tokens=False)["input_ids"] for text in lines]
    for text, ids in zip(lines, ours.encode(lines), strict=True):
        assert ours.decode(ids) == text.replace("\u2581", " ")  # sentencepiece's sign for a blank
        spans = ours.offsets(text)
        assert len(spans) == len(ids) and (not spans or spans[-1][1] == len(text))


def test_ids_of_llama2s_form_with_defined_newlines_are_transformers(tmp_path):
    """Which puts a blank before each text between added tokens, be they text."""
    before = specials("<unk>", "<s>", "</s>", "<|im_start|>", "<|im_end|>")
    folder = made(tmp_path, family_tokenizers.pieces(before, defined=plain([*NEWLINES, *TAGS]), prefix=True))
    ours, peer = Tokenizer(folder), PreTrainedTokenizerFast.from_pretrained(folder)
    assert ours.encode(TEXTS) == [peer(text, add_special_tokens=False)["input_ids"] for text in TEXTS]


def test_runs_of_newlines_and_tags_are_words_of_a_user_and_of_an_assistant(gemma):
    chat = Chat(Tokenizer(gemma))
    vocab = json.loads((gemma / "tokenizer.json").read_text())["model"]["vocab"]
    assert not {*NEWLINES, *TAGS} & chat.tokenizer.added.keys()
    for ids in (asked(chat, "a\n\n<b>x"), answered(chat, "a\n\n<b>x")):
        assert {vocab["\n\n"], vocab["<b>"]} <= {*ids}
        assert not any(chat.tokenizer.is_control(vocab[text]) for text in ("\n\n", "<b>"))


@pytest.mark.parametrize("mark", ["<end_of_turn>", "<start_of_turn>", "<bos>", "<eos>"])
def test_marks_among_them_stay_letters(gemma, mark):
    chat = Chat(Tokenizer(gemma))
    own = chat.tokenizer.added[mark]
    newlines = chat.tokenizer.encode(["\n\n"])[0]
    description = json.loads((gemma / "tokenizer.json").read_text())
    description["added_tokens"] = [t for t in description["added_tokens"] if not t["special"]]
    without = tokenizers.Tokenizer.from_str(json.dumps(description))
    for text in (f"a\n\n{mark}\n\n<b>", f"{mark}{mark}", f"<b>{mark}</b>"):
        (ids,) = chat.tokenizer.encode([text])
        assert ids == without.encode(text, add_special_tokens=False).ids
        assert own not in ids and chat.tokenizer.decode(ids) == text
        assert asked(chat, text).count(own) == asked(chat, "x").count(own)
        assert ids.count(newlines[0]) == text.count("\n\n")


def test_a_prompt_of_gemmas_begins_with_one_bos(gemma):
    chat = Chat(Tokenizer(gemma))
    bos = chat.tokenizer.added["<bos>"]
    assert chat.tokenizer.adds_bos and "{{ bos_token }}" in chat.template.source
    assert asked(chat, "x").count(bos) == 1 and asked(chat, "x")[0] == bos


def test_what_gemmas_template_refuses_is_told_in_its_words(tmp_path):
    chat = Chat(Tokenizer(family_tokenizers.write(tmp_path, "Gemma 2")))
    with pytest.raises(InputError, match="nobody is called system"):
        chat.prompt_ids([Message("system", "s"), Message("user", "x")])
    with pytest.raises(InputError, match="take turns"):
        chat.prompt_ids([Message("user", "x"), Message("user", "y")])


# --- text or mark --------------------------------------------------------------------------------------------------


RULE = {
    "white space": ("\n\n", False, True),
    "blanks behind the vocabulary": ("  \t", False, True),
    "white space that is special": ("\n\n", True, False),
    "a word": ("<b>", False, True),
    "a word that is special": ("<b>", True, False),
    "a word that the template writes": ("<think>", False, False),
    "no word": ("<x>", False, False),
    "named beside the file": ("<i>", False, False),
    "a letter that the template writes": ("a", False, True),
}


@pytest.mark.parametrize(("text", "special", "is_text"), RULE.values(), ids=RULE)
def test_which_added_tokens_are_text(text, special, is_text):
    rule = text_unless_written({"<i>"}, ["{{ m }}<think>", "an end"])
    words = {"\n\n", "<b>", "<think>", "<i>", "a"}
    assert rule({"content": text, "special": special}, text in words) == is_text


def words_and_marks(folder, template=QWEN25, words=("<b>", "<think>"), **names):
    """A byte-level tokenizer with these words in its vocabulary and as added tokens, and <call> as one alone."""
    description = byte_level([*specials("<|endoftext|>", "<|im_start|>", "<|im_end|>"), *plain(["<call>"])])
    vocab = description["model"]["vocab"]
    for i, token in enumerate(plain(words)):
        vocab[token.content] = 1000 + i
        description["added_tokens"].append(token.entry(1000 + i))
    return made(folder, description, template, **names)


@pytest.mark.slow
def test_a_word_that_a_template_writes_is_a_mark_under_it(tmp_path):
    folder = words_and_marks(tmp_path / "model")
    chat = Chat(Tokenizer(folder))
    for ids in (asked(chat, "a<b><think>"), answered(chat, "a<b><think>")):
        assert {1000, 1001} <= {*ids}  # text both
    file = tmp_path / "thinking.jinja"
    file.write_text(QWEN25 + "{# <think> #}")
    chat = Chat(Tokenizer(folder), TemplateSettings(chat_template=str(file)))
    assert chat.tokenizer.is_spoken(1001) and not chat.tokenizer.is_control(1000)
    assert 1000 in asked(chat, "a<b><think>") and 1001 not in asked(chat, "a<b><think>")
    assert {1000, 1001} <= {*answered(chat, "a<b><think>")}


def test_a_word_that_only_the_template_for_tools_writes_is_a_mark_in_every_row(tmp_path):
    named = [{"name": "default", "template": QWEN25}, {"name": "tool_use", "template": QWEN25 + "{# <think> #}"}]
    folder = words_and_marks(tmp_path, chat_template=named)
    (folder / "chat_template.jinja").unlink()
    chat = Chat(Tokenizer(folder))
    assert chat.for_tools is not None and chat.for_tools.tokenizer is chat.tokenizer
    assert 1001 not in asked(chat, "a<b><think>") and 1001 in answered(chat, "a<b><think>")


def test_tokens_behind_the_vocabulary_are_marks_as_before(tmp_path):
    chat = Chat(Tokenizer(words_and_marks(tmp_path)))
    call = chat.tokenizer.added["<call>"]
    assert call not in asked(chat, "a<call><b>") and call in answered(chat, "a<call><b>")


def test_a_word_that_a_file_beside_names_is_special(tmp_path):
    folder = words_and_marks(tmp_path, additional_special_tokens=["<b>"])
    chat = Chat(Tokenizer(folder))
    assert chat.tokenizer.special["<b>"] == 1000 and 1000 not in [*asked(chat, "<b>"), *answered(chat, "<b>")]


def test_a_list_of_added_tokens_beside_changes_nothing(tmp_path):
    listed = {"1000": {"content": "<b>", "special": False}, "1001": {"content": "<think>", "special": False}}
    plain_ones = Chat(Tokenizer(words_and_marks(tmp_path / "a")))
    chat = Chat(Tokenizer(words_and_marks(tmp_path / "b", added_tokens_decoder=listed)))
    assert asked(chat, "a<b><think>") == asked(plain_ones, "a<b><think>")
    assert chat.tokenizer.added == plain_ones.tokenizer.added


@pytest.mark.parametrize("normalized", [True, False])
def test_runs_of_blanks_behind_the_vocabulary_have_their_ids(tmp_path, normalized):
    """GPT-NeoX's form, which OLMo and Phi-2 have: normalized, with a normalizer that changes the text around them."""
    runs = plain([" " * n for n in range(12, 1, -1)] + ["\t\t", "\n"], normalized=normalized)
    end = specials("<|endoftext|>", "<|im_start|>", "<|im_end|>")
    folder = made(tmp_path, byte_level([*end[:1], *runs, *end[1:]], form="NFC"))
    ours, peer = Chat(Tokenizer(folder)).tokenizer, PreTrainedTokenizerFast.from_pretrained(folder)
    rng = random.Random(0)
    lines = ["".join(rng.choices([" ", "  ", "\t", "\n", "ab", "e\u0301", "x "], k=30)) for _ in range(100)]
    assert ours.encode(lines) == [peer(text, add_special_tokens=False)["input_ids"] for text in lines]
    assert [i for i in ours.encode(["a      b"])[0] if i in range(600, 612)]
    assert ours.n_ids == 1 + max(t["id"] for t in json.loads((folder / "tokenizer.json").read_text())["added_tokens"])
    assert not ours.ids_without_token(ours.n_ids)


def test_a_letter_is_text_unless_it_is_special(tmp_path):
    def define(special):
        def change(description):
            i = description["model"]["vocab"]["e"]
            token = plain(["e"])[0]._replace(special=special)
            description["added_tokens"].insert(0, token.entry(i))

        return change

    folder = edited(words_and_marks(tmp_path / "a"), define(False))
    ours, peer = Tokenizer(folder), PreTrainedTokenizerFast.from_pretrained(folder)
    assert ours.encode(["there we are"])[0] == peer("there we are")["input_ids"] and "e" not in ours.added
    with pytest.raises(InputError, match="an ordinary letter of text"):
        Tokenizer(edited(words_and_marks(tmp_path / "b"), define(True)))


def test_a_token_that_the_library_gives_another_id_is_refused(tmp_path):
    def change(description):
        description["added_tokens"][-1]["id"] = 2000

    with pytest.raises(InputError, match=r"'<think>' \(2000\) is token 1001 for the library"):
        Tokenizer(edited(words_and_marks(tmp_path), change))


# --- Mistral's system message --------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["Mistral v3", "Mistral tekken"])
def test_an_answer_stands_behind_a_system_message_that_goes_away_with_it(tmp_path, name):
    chat = Chat(Tokenizer(family_tokenizers.write(tmp_path, name)))
    peer = PreTrainedTokenizerFast.from_pretrained(tmp_path)
    system, *turns = [Message("system", "be brief"), Message("user", "2+2?"), Message("assistant", "4\n\n.")]
    for prompt in ([turns[0]], [*turns, turns[0]]):
        with_system, without = (
            chat.write(p, [[turns[1]], [Message("assistant", "5")]]) for p in ([system, *prompt], prompt)
        )
        assert with_system.responses == without.responses and with_system.prompt != without.prompt
        fields = [{"role": m.role, "content": m.content} for m in (system, *prompt)]
        theirs = peer.apply_chat_template(fields, add_generation_prompt=True, return_dict=False)
        assert ids_of(with_system.prompt, chat.tokenizer) == theirs


def test_a_message_that_is_shown_nowhere_is_refused_still(tmp_path):
    folder = family_tokenizers.write(tmp_path, "Mistral v3")
    (folder / "chat_template.jinja").write_text(
        TEMPLATES["Mistral v3"].replace("if loop.last and before is defined", "if false")
    )
    with pytest.raises(InputError, match='no place for the content of message 1, of the role "system"'):
        Chat(Tokenizer(folder)).write([Message("system", "s"), Message("user", "x")], [[Message("assistant", "y")]])
