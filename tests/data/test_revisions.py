"""Which tokens of a pair were revised: whole words, by hand on a tokenizer whose every piece is known."""

import re

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from data.revisions import differing, revised, with_revised
from data.rows import Cut, Limits, Record, encode
from data.text import Chat, Message, Tokenizer
from system import InputError
from tests import tiny
from tests.rows import answers
from tests.tables import common


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    texts = ["unhelpful helpful help", " the heron the heron.\n\nThe", "user assistant system\n\n"] * 3
    return tiny.write_model(tmp_path_factory.mktemp("tmp") / "model", texts)


@pytest.fixture(scope="module")
def chat(folder):
    return Chat(Tokenizer(folder))


class Pieces:
    """A tokenizer of pieces that are given: id 0 is a control token, id i spells the i-th piece."""

    def __init__(self, *pieces):
        self.pieces = pieces

    def is_control(self, token):
        return token == 0

    def text_of_tokens(self, ids):
        return "".join(self.pieces[i - 1] for i in ids)

    def ids(self, spelled):
        """Of pieces divided by bars; @ is the control token."""
        return np.array([0 if p == "@" else 1 + self.pieces.index(p) for p in spelled.split("|")], dtype=np.int32)


def marked(chosen, rejected, *others):
    """Both responses' flags as text: x where a token was revised."""
    pieces = Pieces(*dict.fromkeys(p for text in (chosen, rejected, *others) for p in text.split("|") if p != "@"))
    found = revised(pieces.ids(chosen), pieces.ids(rejected), pieces)
    assert [flags.dtype for flags in found] == [bool, bool]
    return tuple("".join("x" if flag else "." for flag in flags) for flags in found)


@pytest.mark.parametrize(
    ("chosen", "rejected", "expected"),
    [
        ("The| heron|.|@", "The| otter|.|@", (".xx.", ".xx.")),  # the full stop is a part of its word
        ("The| her|on| is|@", "The| ot|ter| is|@", (".xx..", ".xx..")),
        ("It| is| un|help|ful|@", "It| is| help|ful|@", ("..xxx.", "..xx.")),  # no half of a word is unchanged
        (" help|ful| one|@", " help|less| one|@", ("xx..", "xx..")),
        ("a| b| c|@", "a| c|@", (".x..", "...")),  # an insertion: nothing of the loser was revised
        ("a| c|@", "a| b| c|@", ("...", ".x..")),
        ("a| b|@", "c| d| e|@", ("xx.", "xxx.")),
        ("a| b|@", "a| b", ("..x", "..")),  # the end of turn of a response whose other one was cut
        ("a| b", " a| b", ("x.", "x.")),  # the blank before a word belongs to it
        ("a|\n|\n| b|@", "a|\n| b|@", (".xxx.", ".xx.")),  # so do several, in tokens of their own
        ("a.\n|b| c", "a. |b| c", ("x..", "x..")),  # a blank at a token's end belongs to the word that it begins in
        (" a b|c| d", " a x|c| d", ("xx.", "xx.")),  # two words in one token: what goes on with the second is no word
        ("@|a|@|b", "@|c|@|b", (".x..", ".x..")),  # control tokens stand for themselves, and divide words
        ("|a| b", "|c| b", (".x.", ".x.")),  # a token without a text, too
        (" \ufffd|\ufffd|a| b", " \ufffd|\ufffd|c| b", ("xxx.", "xxx.")),  # halves of a letter, and its word
        ("\u4e16|\u754c|\u597d", "\u4e16|\u4eba|\u597d", (".x.", ".x.")),  # a script without blanks: tokens are words
        ("\u4e16|\ufffd|\ufffd|\u597d", "\u4e16|\ufffd|\ufffd\ufffd|\u597d", (".xx.", ".xx.")),
        ("\u0e01|\u0e31|\u0e02", "\u0e01|\u0e34|\u0e02", ("xx.", "xx.")),  # a mark and its letter
    ],
)  # fmt: skip
def test_tokens_that_were_revised(chosen, rejected, expected):
    assert marked(chosen, rejected) == expected
    assert marked(rejected, chosen) == expected[::-1]


letters = st.text("ab \n.\u4e16\u00e9\U0001f642", max_size=14).map(lambda text: f"a{text}z")


def ids_of(chat, text):
    (ids,) = chat.tokenizer.encode([text])
    return np.array([*ids, chat.end_of_turn], dtype=np.int32)


@given(letters, letters)
def test_without_what_was_revised_both_are_the_same_and_neither_comes_first(chat, one, two):
    ids = ids_of(chat, one), ids_of(chat, two)
    flags = revised(*ids, chat.tokenizer)
    assert ids[0][~flags[0]].tolist() == ids[1][~flags[1]].tolist() != []
    turned = revised(*ids[::-1], chat.tokenizer)
    assert [f.tolist() for f in turned] == [f.tolist() for f in flags[::-1]]
    assert not any(f.any() for f in revised(ids[0], ids[0], chat.tokenizer))


spaced = st.text("ab \n.\u00e9\U0001f642", max_size=14).map(lambda text: f"a{text}z")


@given(spaced, spaced)
def test_all_tokens_that_begin_in_a_word_share_its_flag(chat, one, two):
    flags = revised(ids_of(chat, one), ids_of(chat, two), chat.tokenizer)
    for text, found in zip((one, two), flags, strict=True):
        of_letter = [n for n, word in enumerate(re.findall(r"\s*\S+", text)) for _ in word]
        words = [of_letter[begin] for begin, _ in chat.tokenizer.offsets(text)]
        assert all(len({flag for w, flag in zip(words, found[:-1], strict=True) if w == n}) == 1 for n in words)


words = st.lists(st.sampled_from([b"a", b"b", b"c"]), max_size=9)


@given(words, words)
def test_as_little_is_left_out_as_can_be(one, two):
    left, right = differing(one, two)
    assert (~left).sum() == (~right).sum() == common(one, two)


def test_of_several_ways_to_align_the_same_is_taken_whichever_comes_first():
    """Of "a b" and "b a" either word could stay."""
    (one, two), (two_first, one_second) = differing([b"a", b"b"], [b"b", b"a"]), differing([b"b", b"a"], [b"a", b"b"])
    assert sorted(map(tuple, (one.tolist(), two.tolist()))) == [(False, True), (True, False)]
    assert (one.tolist(), two.tolist()) == (one_second.tolist(), two_first.tolist())


def test_long_responses_without_a_tokenizer_are_compared_id_by_id():
    rng = np.random.default_rng(0)
    one = rng.integers(0, 9, 5000).astype(np.int32)
    two = np.delete(one, rng.choice(5000, 700, replace=False))
    flags = revised(one, two, None)
    assert (flags[0].sum(), flags[1].sum()) == (700, 0)
    assert [f.tolist() for f in revised(np.array([5, 6, 7]), np.array([5, 7]), None)] == [
        [False, True, False],
        [False] * 2,
    ]


def pair(chat, *texts, **limits):
    record = Record("rows.jsonl:3", "pairs" if len(texts) == 2 else "ranked", (Message("user", "q"),), answers(*texts))
    (cut,) = encode([record], chat, Limits(**limits), n_ids=400)
    assert isinstance(cut, Cut)
    return cut.example


def shares(example):
    return [flags.tolist() for flags in example.revised]


def test_rows_are_compared_after_the_cut(chat):
    whole = pair(chat, "the heron", "the heron the")
    n = len(whole.responses[0])  # with the end of turn
    (made,) = with_revised([whole], chat.tokenizer)
    assert shares(made) == [[False] * n, [False] * (n - 1) + [True, False]]
    assert made._replace(revised=None) == whole
    (made,) = with_revised([pair(chat, "the heron", "the heron the", response_tokens=n)], chat.tokenizer)
    assert shares(made) == [[False] * (n - 1) + [True]] * 2  # the end of turn against a word


def test_of_ranked_completions_the_best_is_compared_with_the_worst(chat):
    (made,) = with_revised([pair(chat, "the heron", "help", "the helpful")], chat.tokenizer)
    (ends,) = with_revised([pair(chat, "the heron", "the helpful")], chat.tokenizer)
    assert [shares(made)[i] for i in (0, 2)] == shares(ends) and not made.revised[1].any()


def test_a_row_that_is_there_several_times_stays_one(chat):
    e, other = pair(chat, "the heron", "the"), pair(chat, "help", "helpful")
    made = with_revised([e, other, e], chat.tokenizer)
    assert made[0] is made[2] and shares(made[1]) == shares(with_revised([other], chat.tokenizer)[0])


def test_a_completion_alone_has_nothing_to_be_compared_with(chat):
    with pytest.raises(InputError, match=r"^rows.jsonl:3: revised tokens are .* give pairs, or take another --loss$"):
        with_revised([pair(chat, "the heron", "the").only(slice(0, 1), None)], chat.tokenizer)
