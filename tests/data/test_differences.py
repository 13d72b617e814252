"""What differs between two texts: the pieces are the texts, and what is unmarked stands in both."""

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from data import differences
from data.differences import difference


def marked(pieces):
    return "".join(f"[{text}]" if changed else text for changed, text in pieces)


@pytest.mark.parametrize(
    ("before", "after", "left", "right"),
    [
        ("It eats in barns.", "It lives in marshes.", "It [eats ]in [barns].", "It [lives ]in [marshes]."),
        ("a  b\n", "a b", "a  b\n", "a b"),  # blanks alone make no difference
        ("鹭生活在", "鹭住在", "鹭[生活]在", "鹭[住]在"),
        ("ที่น้ำ", "ทีน้ำ", "[ที่]น้ำ", "[ที]น้ำ"),
        ("हिन्दी a", "हिन्द a", "[हिन्दी ]a", "[हिन्द ]a"),
        ("한국어 a", "한국 a", "[한국어 ]a", "[한국 ]a"),
        ("cafe\u0301 a", "cafe a", "[cafe\u0301 ]a", "[cafe ]a"),
        ("ນົກກິນ", "ນົກບິນ", "ນົກ[ກິ]ນ", "ນົກ[ບິ]ນ"),
        ("ငှက်စား", "ငှက်ပျံ", "ငှက်[စား]", "ငှက်[ပျံ]"),
        ("បក្សីស៊ី", "បក្សីហើរ", "បក្សី[ស៊ី]", "បក្សី[ហើរ]"),
        ("さぎはとぶ", "さぎはたつ", "さぎは[とぶ]", "さぎは[たつ]"),
        ("サギ、魚", "サギ。魚", "サギ[、]魚", "サギ[。]魚"),
        ("㐀㐁㐂", "㐀㐃㐂", "㐀[㐁]㐂", "㐀[㐃]㐂"),
        ("𠀀𠀁𠀂", "𠀀𠀃𠀂", "𠀀[𠀁]𠀂", "𠀀[𠀃]𠀂"),
        ("ＡＢ", "ＡＣ", "Ａ[Ｂ]", "Ａ[Ｃ]"),
        ("می\u200cخواهم آن", "می\u200cروم آن", "[می\u200cخواهم ]آن", "[می\u200cروم ]آن"),
        ("x_1 = f(a)", "x_1 = g(a)", "x_1 = [f](a)", "x_1 = [g](a)"),
    ],
    ids=["words", "blanks", "Chinese", "Thai", "Hindi", "Korean", "marks", "Lao", "Burmese", "Khmer", "Hiragana",
         "Katakana", "old Chinese", "rare Chinese", "wide letters", "joiners", "code"],
)  # fmt: skip
def test_words_of_one_side_alone_are_marked(before, after, left, right):
    """Words where there are blanks between them, letters with their marks where there are none."""
    assert tuple(map(marked, difference(before, after))) == (left, right)


@example("", "\x00")
@given(st.text(max_size=60), st.text(max_size=60))
def test_the_pieces_are_the_texts_and_what_is_unmarked_is_common(before, after):
    left, right = difference(before, after)
    assert "".join(text for _, text in left) == before and "".join(text for _, text in right) == after
    common = ["".join(t for changed, t in pieces if not changed).split() for pieces in (left, right)]
    assert "".join(common[0]) == "".join(common[1])


def test_a_long_answer_is_compared_word_by_word():
    """4,000 words against 4,000 others, but for one in the midst."""
    words = [f"w{i} " for i in range(4000)]
    before, after = "".join(words), "".join([*words[:2000], "new ", *words[2001:]])
    assert [text for changed, text in difference(before, after)[1] if changed] == ["new "]


def test_texts_of_very_many_words_are_compared_line_by_line(monkeypatch):
    before, after = "a b\nc d\ne", "a b\nc x\ne"
    assert marked(difference(before, after)[0]) == "a b\nc [d\n]e"
    monkeypatch.setattr(differences, "MOST_COMPARED", 20)
    assert marked(difference(before, after)[0]) == "a b\n[c d\n]e"
    monkeypatch.setattr(differences, "MOST_COMPARED", 5)
    assert marked(difference(before, after)[0]) == f"[{before}]"
