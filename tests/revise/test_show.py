"""Looking at pairs: what has changed, and that the words of models stay words."""

import re
from pathlib import Path

import pytest

from revise import reasons, show
from revise.client import reading, thoughts
from system.errors import InputError
from tests.browser import PAYLOADS, look, looks
from tests.revise.commands import ROOT, write_rows


def pair(chosen="The heron lives in marshes.", rejected="The heron eats in barns.", **more):
    return {"prompt": "Where is the heron?", "chosen": chosen, "rejected": rejected} | more


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


@pytest.mark.parametrize(
    "payload", [*PAYLOADS[:2], *(pytest.param(text, marks=pytest.mark.slow) for text in PAYLOADS[2:])]
)
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
    keys = ("", "j", "j,j,j", "ArrowLeft", "k,k,k", "ArrowRight,ArrowRight,ArrowLeft")
    for number, told in zip((0, 1, 2, 1, 0, 1), looks(html, keys), strict=True):
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
    text, failed, pairs = (told["text"] for told in looks(html, ["", "filter=r:failed", "filter=pairs"]))
    assert "all rows (4)" in text and "rejected: failed (2)" in text and "rejected: no marker (1)" in text
    assert "1 of 2" in failed and "1 of 1" in pairs


def test_search_finds_words_of_any_field(tmp_path):
    rows = [pair(rational="a reason of owls"), pair(chosen="The HERON, grey."), pair()]
    html = tmp_path / "pairs.html"
    show.main([str(write_rows(tmp_path / "pairs.jsonl", rows)), "--html", str(html)])
    wanted = {"owls": "1 of 1", "grey": "1 of 1", "where is": "1 of 3", "zebra": "nothing found"}
    for (typed, n), told in zip(wanted.items(), looks(html, [f"search={typed}" for typed in wanted]), strict=True):
        hits = [text.lower() for kind, text in told["marks"] if kind == "hit"]
        assert n in told["text"] and set(hits) == ({typed} - {"zebra"})


def test_a_page_is_not_written_over_something_else(tmp_path):
    path = write_rows(tmp_path / "pairs.jsonl", [pair()])
    (tmp_path / "mine.html").write_text("mine")
    with pytest.raises(InputError, match=r"mine\.html"):
        show.main([str(path), "--html", str(tmp_path / "mine.html")])
    assert Path(tmp_path / "mine.html").read_text() == "mine"


def shown(tmp_path, rows, dropped=(), **flags):
    """The page of some rows."""
    path = write_rows(tmp_path / "pairs.jsonl", rows)
    if dropped:
        write_rows(tmp_path / "pairs.rejected.jsonl", dropped)
    html = tmp_path / "pairs.html"
    html.unlink(missing_ok=True)
    named = [text for name, value in flags.items() for text in (f"--{name}", str(value))]
    show.main([str(path), "--html", str(html), *named])
    return html


def lines(told):
    """What a page shows, line by line; blanks of a line as one."""
    return [" ".join(line.split()) for line in told["text"].split("\n") if line.strip()]


def test_the_head_counts_and_measures_what_was_found(tmp_path):
    """Lengths 10 and 20, and 10 and 5: ratios of 2 and 0.5; half of the first pair's loser stands in its winner."""
    rows = [pair("a" * 10 + " " + "b" * 9, "a" * 10), pair("x" * 5, "y" * 10)]
    dropped = [{"prompt": "p", "reason": "unchanged", "own": ["a"], "answers": ["a"]}]
    said = lines(look(shown(tmp_path, rows, dropped)))
    assert "2 pairs; 1 rejected row (1 unchanged)." in said
    numbers = {
        said[i]: said[i + 1]
        for i in range(said.index("pairs found"), said.index("words in common (Jaccard), mean") + 1)
    }
    assert numbers["pairs found"] == "2" and numbers["chosen, mean characters"] == "13"  # 12.5
    assert numbers["rejected, mean characters"] == "10" and numbers["length ratio, median"] == "1.25"
    assert numbers["Levenshtein distance, mean"] == "10" and numbers["words in common (Jaccard), mean"] == "25.0 %"
    assert "length ratio; blue: pairs, red: rejected" in said  # below the histogram


@pytest.mark.slow
def test_rows_are_sorted_and_filtered_by_their_numbers(tmp_path):
    """Winners of 4, 1 and 8 times the loser's length, scores that rise against it."""
    rows = [
        pair("b" * 2 * k, "a a", chosen_score=10 - k, rejected_score=1) | {"prompt": f"prompt {k}"} for k in (6, 2, 9)
    ]
    html = shown(tmp_path, rows, [{"prompt": "prompt 0", "reason": "tie"}])
    wanted = {  # what is typed: the first prompt, how many there are
        "order=up": (2, 4), "order=down": (9, 4), "order=file": (6, 4), "order=reason": (6, 4),
        "measure=score,order=up": (9, 4), "measure=distance,order=down": (9, 4), "low=20": (None, 0),
        "measure=ratio,low=3.9,high=4.1": (6, 1), "measure=score,low=1.5": (6, 2), "measure=jaccard,high=0": (6, 3),
    }  # fmt: skip
    found = looks(html, [f"click=#reset,{keys}" for keys in wanted])
    for (keys, (first, n)), told in zip(wanted.items(), found, strict=True):
        assert (f"1 of {n}" if n else "nothing found") in told["text"], keys
        assert first is None or f"prompt {first}" in told["text"], keys


@pytest.mark.slow
def test_a_link_leads_to_a_row(tmp_path):
    rows = [pair() | {"prompt": f"prompt {i}"} for i in (1, 2, 3)]
    html = shown(tmp_path, rows, [{"prompt": "prompt 4", "reason": "tie", "own": [], "answers": []}])
    found = [*looks(html, ["", "j"], place="2"), look(html, place="rejected-1")]
    for (number, end), told in zip(((2, "#2"), (3, "#3"), (4, "#rejected-1")), found, strict=True):
        assert f"prompt {number}" in told["text"] and told["hash"] == end and "link to this row" in told["text"]


@pytest.mark.slow
def test_long_unchanged_passages_are_folded_until_asked_for_or_searched_in(tmp_path):
    middle = " ".join(f"word{i}" for i in range(400))
    html = shown(tmp_path, [pair(f"New {middle} new.", f"Old {middle} old.")])
    told = look(html)
    assert "word0" in told["text"] and "word399" in told["text"] and "word200" not in told["text"]
    assert len(re.findall(r"[\d,]+ characters as before", told["text"])) == 2
    *opened, closed = looks(html, ("click=.fold", "click=#reset,u", "u,search=word200", "click=#reset"))
    for told in opened:
        assert told["text"].count("word200") == 2 and "as before" not in told["text"]
    assert "word200" not in closed["text"]
    alone = shown(tmp_path, [pair("Words.", middle)])
    assert "word200" in look(alone)["text"]  # what has changed is never folded


@pytest.mark.slow
def test_code_stands_in_a_fixed_font_and_found_words_are_marked_in_it(tmp_path):
    fence = "```python\nheron = 1\n```\nThen `owl` and heron."
    html = shown(tmp_path, [pair(fence, fence.replace("1", "2"))])
    assert "monospace" in re.search(r"code, \.block, \.facts \{([^}]*)\}", html.read_text(encoding="utf-8"))[1]
    told = look(html, "search=heron")
    assert [text for kind, text in told["marks"] if kind == "hit"] == ["heron"] * 5  # prompt, and two in each answer
    assert ["", "1\n"] in told["marks"] and ["", "2\n"] in told["marks"]
    assert told["blocks"] == ["```python\nheron = 2\n```\n", "`owl`", "```python\nheron = 1\n```\n", "`owl`"]


def test_rejected_rows_show_their_difference_and_what_the_reason_means(tmp_path):
    answer = (
        "{teacher_reasoning}: Barns are for owls.\n\n{corrected_student_solution}:\nThe heron lives in marshes. "
        + "x" * 99
    )
    by_clair = {"prompt": "p", "reason": "too long", "own": ["The heron lives in barns."], "answers": [answer]}
    by_judge = {"prompt": "p", "reason": "no choice", "own": ["An owl.", "A heron."], "answers": ["Both are birds."]}
    html = shown(tmp_path, [], [by_clair, by_judge])
    told, second = looks(html, ["", "j"])
    assert told["marks"][:2] == [["", "barns"], ["", "marshes"]] and "Barns are for owls." in told["text"]
    assert "{corrected" not in told["text"] and "--max-length-ratio" in told["text"]
    assert [text.strip() for _, text in second["marks"]] == ["An owl", "A heron"]
    assert "neither [1] nor [2]" in second["text"]


def test_every_reason_that_a_recipe_gives_is_explained():
    found = set()
    for name in ("clair.py", "judge.py", "recipes.py", "recipe_runner.py"):
        source = (ROOT / "revise" / name).read_text()
        found |= set(re.findall(r'raise (?:ValueError|Rejected)\(f?"([^"{]+)', source))
    faults = re.findall(r'(?:return|fault=)\s*f?"([a-z][^"{:]+)', (ROOT / "revise/client/reading.py").read_text())
    found |= {*faults, reading.TRUNCATED, reading.EMPTY, reading.NO_ANSWER, reading.NULL, reading.NO_TEXT}
    found |= {thoughts.AMBIGUOUS, f"{reading.TRUNCATED}: the thoughts took all 9 tokens", "control tokens: <s>"}
    assert {"too long", "tie", "truncated", "a tool call"} <= found  # or else this looks for the wrong thing
    grades = {"grade out of range"}  # no recipe asks for one
    assert not [words for words in found - grades if not reasons.meaning(words)]
    for words in ("no choice", "both chosen", "failed: reset", "own answer failed: 500", "refused by the server: 400"):
        assert reasons.meaning(words)
    assert reasons.meaning("own answer failed: 500").startswith("Of the model's own") and not reasons.meaning("zebra")


def test_the_counts_are_those_of_the_files(tmp_path, capsys):
    """Five pairs and three rejected rows, of which two each are on the page."""
    dropped = [{"prompt": "p", "reason": r, "own": ["a"], "answers": []} for r in ("tie", "tie", "no scores")]
    html = shown(tmp_path, [pair() for _ in range(5)], dropped, n=2, row=3)
    assert "2 of 5 pairs and 2 of 3 rejected rows" in capsys.readouterr().err
    text = look(html)["text"]
    assert (
        "5 pairs, of which 3 to 4 are on this page; 3 rejected rows, of which 1 to 2 are on this page (2 tie, "
        "1 no scores)." in text
    )
    assert "all rows (4 of 8)" in text and "pairs (2 of 5)" in text and "rejected: no scores (0 of 1)" in text
    assert "1 of 4" in text and "pairs.jsonl:3" in text
    show.main([str(tmp_path / "pairs.rejected.jsonl"), "--html", str(tmp_path / "alone.html")])
    assert "0 pairs and 3 rejected rows" in capsys.readouterr().err


@pytest.mark.parametrize("width", [1280, 420])
def test_the_page_fits_its_window(tmp_path, width):
    rows = [pair(f"{'long' * 99} `code{'x' * 200}`", "a" * 300, rational="r" * 500) | {"prompt": "p" * 300}]
    assert look(shown(tmp_path, rows), width=width)["wide"] <= width
