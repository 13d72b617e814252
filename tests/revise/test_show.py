"""Looking at pairs: what has changed, and that the words of models stay words."""

import re
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from revise import show
from system.errors import InputError
from tests.browser import PAYLOADS, look
from tests.revise.commands import write_rows


def pair(chosen="The heron lives in marshes.", rejected="The heron eats in barns.", **more):
    return {"prompt": "Where is the heron?", "chosen": chosen, "rejected": rejected} | more


def marked(pieces):
    return "".join(f"[{text}]" if changed else text for changed, text in pieces)


def test_words_of_one_side_alone_are_marked():
    left, right = show.difference("The heron eats in barns.", "The heron lives in marshes.")
    assert marked(left) == "The heron [eats ]in [barns]."
    assert marked(right) == "The heron [lives ]in [marshes]."


def test_blanks_alone_make_no_difference():
    left, right = show.difference("a  b\n", "a b")
    assert (marked(left), marked(right)) == ("a  b\n", "a b")


@example("", "\x00")
@given(st.text(max_size=60), st.text(max_size=60))
def test_the_pieces_are_the_texts_and_what_is_unmarked_is_common(before, after):
    left, right = show.difference(before, after)
    assert "".join(text for _, text in left) == before and "".join(text for _, text in right) == after
    common = [" ".join(show.WORD.findall(t)).split() for t in (
        "".join(t for changed, t in pieces if not changed) for pieces in (left, right)
    )]  # fmt: skip
    assert common[0] == common[1]


def run(capsys, *arguments):
    show.main([str(a) for a in arguments])
    return capsys.readouterr()


def test_the_terminal_shows_pairs_and_their_reasoning(tmp_path, capsys, monkeypatch):
    monkeypatch.delenv("FORCE_COLOR", raising=False)
    path = write_rows(tmp_path / "pairs.jsonl", [pair(), pair(rational="barns are for owls"), pair()])
    out = run(capsys, path, "--row", 2, "--n", 1).out
    assert "pairs.jsonl:2" in out and "pairs.jsonl:1" not in out and "pairs.jsonl:3" not in out
    assert "The heron [-eats -]in [-barns-]." in out and "barns are for owls" in out
    monkeypatch.setenv("FORCE_COLOR", "1")
    assert "The heron \033[32mlives \033[0min \033[32mmarshes\033[0m." in run(capsys, path).out


def test_control_characters_never_reach_a_terminal(tmp_path, capsys, monkeypatch):
    monkeypatch.delenv("FORCE_COLOR", raising=False)
    evil = "\033]52;c;ZXZpbA==\a \033[2J \x9b31m \u202e"
    path = write_rows(tmp_path / "p.jsonl", [pair(chosen=evil, rational=evil) | {"prompt": evil}])
    out = run(capsys, path).out
    assert not re.search("[\x00-\x09\x0b-\x1f\x7f-\x9f\u202e]", out) and "\\u001b" in out


def test_a_row_that_is_no_pair_is_named(tmp_path, capsys):
    path = write_rows(tmp_path / "p.jsonl", [{"prompt": "a", "completion": "b"}])
    with pytest.raises(InputError, match=r"p\.jsonl:1"):
        run(capsys, path)
    with pytest.raises(InputError, match="--row"):
        run(capsys, write_rows(tmp_path / "q.jsonl", [pair()]), "--row", 2)


# --- the page ------------------------------------------------------------------------------------------------------


def hostile_page(tmp_path, payload):
    """A page with a payload in every field of a pair and of a rejected row, names included."""
    name = re.sub(r"[/\0]", "_", payload)[:60]
    path = write_rows(tmp_path / f"{name}.jsonl", [
        pair(chosen=payload, rejected=f"{payload}!", rational=payload, provenance={payload: payload, "recipe": payload})
        | {"prompt": payload}
    ])  # fmt: skip
    dropped = {"prompt": payload, "reason": payload, "own": [payload], "answers": [payload], "provenance": {payload: 1}}
    write_rows(tmp_path / f"{name}.rejected.jsonl", [dropped])
    html = tmp_path / "page.html"
    html.unlink(missing_ok=True)
    show.main([str(path), "--html", str(html)])
    return html


def test_a_payload_that_is_markup_would_be_seen_to_run(tmp_path):
    """The control: without escaping and policy, the same look finds it."""
    html = tmp_path / "control.html"
    html.write_text("<title>x</title><body><img src=x onerror='window.pwned = 1'></body>")
    assert look(html, guarded=False)["pwned"] == "1"


@pytest.mark.parametrize("payload", PAYLOADS)
@pytest.mark.parametrize("guarded", [True, pytest.param(False, marks=pytest.mark.slow)], ids=["guarded", "bare"])
def test_the_words_of_models_are_never_markup(tmp_path, payload, guarded):
    told = look(hostile_page(tmp_path, payload), guarded=guarded)
    assert told["pwned"] == "undefined" and told["n"] == told["links"] == 0
    shown = " ".join(payload.split())
    assert " ".join(told["text"].split()).count(shown) >= 3  # prompt, winner, loser as typed
    told = look(hostile_page(tmp_path, payload), "j", guarded=guarded)  # the rejected row
    assert told["pwned"] == "undefined" and " ".join(told["text"].split()).count(shown) >= 3


def test_the_page_loads_nothing_and_runs_its_own_script_alone(tmp_path):
    html = hostile_page(tmp_path, PAYLOADS[0]).read_text(encoding="utf-8")
    policy = re.search(r'Content-Security-Policy" content="([^"]*)"', html)[1]
    assert policy.startswith("default-src 'none';") and "unsafe" not in policy and "http" not in policy
    assert not re.search(r'(?:src|href)="?http', html)


def test_the_keyboard_moves_and_the_reasoning_is_folded(tmp_path):
    path = write_rows(
        tmp_path / "pairs.jsonl", [pair(rational=f"reason {i}") | {"prompt": f"prompt {i}"} for i in range(3)]
    )
    html = tmp_path / "pairs.html"
    show.main([str(path), "--html", str(html)])
    for keys, number in (("", 0), ("j", 1), ("j,j,j", 2), ("ArrowRight,ArrowRight,ArrowLeft", 1), ("j,k", 0)):
        told = look(html, keys)
        assert f"prompt {number}" in told["text"] and f"{number + 1} of 3" in told["text"]
        assert told["title"] == "pairs.jsonl"
    assert "<details" not in html.read_text(encoding="utf-8")  # made by the script, closed until r or a click


def test_rejected_rows_are_counted_by_reason(tmp_path):
    path = write_rows(tmp_path / "pairs.jsonl", [pair()])
    reasons = ["no marker", "failed: 500", "failed: reset"]
    write_rows(
        tmp_path / "pairs.rejected.jsonl", [{"prompt": "p", "reason": r, "own": ["a"], "answers": []} for r in reasons]
    )
    html = tmp_path / "pairs.html"
    show.main([str(path), "--html", str(html)])
    text = look(html)["text"]
    assert "all rows (4)" in text and "rejected: failed (2)" in text and "rejected: no marker (1)" in text
    assert "1 of 2" in look(html, "filter=r:failed")["text"] and "1 of 1" in look(html, "filter=pairs")["text"]


def test_search_finds_words_of_any_field(tmp_path):
    rows = [pair(rational="a reason of owls"), pair(chosen="The HERON, grey."), pair()]
    html = tmp_path / "pairs.html"
    show.main([str(write_rows(tmp_path / "pairs.jsonl", rows)), "--html", str(html)])
    for wanted, n in (("owls", "1 of 1"), ("grey", "1 of 1"), ("where is", "1 of 3"), ("zebra", "nothing found")):
        assert n in look(html, f"search={wanted}")["text"]


def test_a_page_is_not_written_over_something_else(tmp_path):
    path = write_rows(tmp_path / "pairs.jsonl", [pair()])
    (tmp_path / "mine.html").write_text("mine")
    with pytest.raises(InputError, match=r"mine\.html"):
        show.main([str(path), "--html", str(tmp_path / "mine.html")])
    assert Path(tmp_path / "mine.html").read_text() == "mine"
