"""Responses of which some tokens are not predicted, as examples: cut, taken apart, compared, shown and counted."""

import hashlib

import numpy as np
import pytest

from data.revisions import with_revised
from data.rows import Cut, Limits, digest, encode, examples
from data.rows.examples import Example, in_form
from data.rows.records import Ratings, Record
from data.show import show
from system import InputError
from tests import tiny

WIDE = Limits()


def flags(text):
    return np.array([c == "1" for c in text])


def example(*texts, **more):
    """A prompt of three tokens; each text has a response's flags."""
    (made,) = tiny.random_examples([(3, *map(len, texts))])
    return made._replace(predicted=tuple(map(flags, texts)), **more)


def spelled(e):
    return None if e.predicted is None else ["".join("01"[int(f)] for f in one) for one in e.predicted]


# --- what is known of them -----------------------------------------------------------------------------------------


def test_lengths_and_targets_are_of_predicted_tokens():
    e = example("1101", "01")
    w, l = (r.tolist() for r in e.responses)  # noqa: E741
    assert e.lengths == (3, 1) and [t.tolist() for t in e.targets()] == [[w[0], w[1], w[3]], [l[1]]]
    whole = e._replace(predicted=None)
    assert whole.lengths == (4, 2) and whole.targets() is whole.responses
    assert [v.tolist() for v in e.of_predicted((np.arange(4), np.arange(2)))] == [[0, 1, 3], [1]]


def test_flags_go_with_their_responses():
    e = example("1101", "01", "111")
    assert spelled(e.only(slice(2, 3), None)) == ["111"] and spelled(e.only(slice(0, 2), None)) == ["1101", "01"]
    assert [spelled(one) for one in in_form([example("1101", "01")], "unpaired")] == [["1101"], ["01"]]
    assert [spelled(one) for one in in_form([example("1101", "01")], "single", side="rejected")] == [["01"]]


def test_another_rows_response_keeps_its_flags():
    plain, masked = example("11"), example("0101")
    plain = plain._replace(predicted=None)
    assert spelled(plain.answered_by(masked)) == ["0101"] and masked.answered_by(plain).predicted is None
    made = masked._replace(location="f:7").answered_by(plain)
    assert made.prompt.tolist() == masked.prompt.tolist() and made.location == "f:7"
    assert [r.tolist() for r in made.responses] == [plain.responses[0].tolist()]


def test_what_was_fed_is_the_ids_and_where_there_are_some_the_flags():
    e = example("1101", "01")
    by_hand = hashlib.sha256()
    for ids in (e.prompt, *e.responses):
        by_hand.update(len(ids).to_bytes(8, "little") + ids.astype("<i4").tobytes())
    assert digest([e._replace(predicted=None)]).hexdigest() == by_hand.hexdigest()  # what it always was
    assert len({digest([one]).hexdigest() for one in (e, example("1111", "01"), e._replace(predicted=None))}) == 3


# --- the cut -------------------------------------------------------------------------------------------------------


@pytest.fixture
def cut(monkeypatch):
    """Encodes one row whose template gave these flags; a response's ids count from 1, the next one's from 11."""

    def encoded(*texts, limits=WIDE, form="pairs"):
        content = examples._Content(ROW, [1], [[1]], None)
        parts = [examples._Part([1], content)]
        parts += [
            examples._Part(
                [10 * n + i for i in range(1, len(t) + 1)], content, [c == "1" for c in t] if "0" in t else None
            )
            for n, t in enumerate(texts)
        ]
        monkeypatch.setattr(examples, "_pieces_of", lambda records, chat: iter([parts]))
        (made,) = encode([ROW], None, limits, n_ids=100)
        return made

    return encoded


ROW = Record("rows.jsonl:7", "pairs", (1,), ((2,), (3,)))


def test_flags_are_cut_with_their_ids(cut):
    made = cut("1100111", "10001", limits=Limits(response_tokens=6))
    assert spelled(made.example) == ["110011", "10001"] and sum(made.cut_responses) == 1
    assert [len(w) for w in made.whole_responses] == [7, 5]


def test_what_a_cut_leaves_at_the_end_and_no_one_predicts_is_left_out(cut):
    made = cut("1100111", "11", limits=Limits(response_tokens=4))
    assert [r.tolist() for r in made.example.responses] == [[1, 2], [11, 12]] and sum(made.cut_responses) == 1
    assert made.example.predicted is None  # what is left is predicted, all of it
    made = cut("0111", "110000")  # no cut: the template's blank line after the end
    assert [len(r) for r in made.example.responses] == [4, 2] and not any(made.cut_responses)
    assert spelled(made.example) == ["0111", "11"]


def test_flags_that_are_all_true_are_none(cut):
    assert cut("111", "1110").example.predicted is None and cut("111", "11").example.predicted is None


@pytest.mark.parametrize(
    ("texts", "said"),
    [
        (
            ("11", "0001"),
            "the first 3 tokens of a response hold nothing that the assistant says; raise --max-response-tokens",
        ),
        (
            ("11", "00"),
            "the assistant says nothing in a response, so there is nothing to predict in it; take the row out",
        ),
    ],
)
def test_a_response_of_which_nothing_is_predicted_is_a_fault_of_its_row(cut, texts, said):
    made = cut(*texts, limits=Limits(response_tokens=3))
    assert isinstance(made, InputError) and str(made) == f"rows.jsonl:7: {said}"


# --- compared and shown --------------------------------------------------------------------------------------------


def ids(*numbers):
    return np.array(numbers, dtype=np.int32)


CALLS = Example(
    "rows.jsonl:1", ids(5), (ids(10, 11, 50, 51, 52, 12, 13), ids(10, 11, 60, 12, 14)), ratings=Ratings(),
    predicted=(flags("1100011"), flags("11011")),
)  # fmt: skip
"""Both call alike, get other answers of the tool's, and end otherwise."""


def test_what_a_tool_says_is_not_compared():
    (made,) = with_revised([CALLS], None)
    assert [one.astype(int).tolist() for one in made.revised] == [[0, 0, 0, 0, 0, 0, 1], [0, 0, 0, 0, 1]]
    (whole,) = with_revised([CALLS._replace(predicted=None)], None)
    assert [one.astype(int).tolist() for one in whole.revised] == [[0, 0, 1, 1, 1, 0, 1], [0, 0, 1, 0, 1]]


def test_the_view_says_how_many_tokens_are_predicted():
    cut = Cut(CALLS, [5], [True], tuple(r.tolist() for r in CALLS.responses))
    page = show(cut, None)
    assert "chosen: 7 tokens (4 are predicted, the others seen; the last is no input)" in page
    assert "revised: 1 of 4 tokens:" in page and page.count("revised: 1 of 4 tokens") == 2
    coloured = show(cut, None, colour=True)
    assert "\x1b[0m 50 \x1b[0m" in coloured and "\x1b[32m 12 \x1b[0m" in coloured
    assert "(each is predicted; the last is no input)" in show(
        cut._replace(example=CALLS._replace(predicted=None)), None
    )
