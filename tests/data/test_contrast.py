"""How much winners and losers differ."""

import json
import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from data.contrast import contrast, jaccard, texts_of
from data.rows import Record
from data.text import Message, Tokenizer
from tests import forks, tiny
from tests.tables import common, distance

UNITS = ("words", "tokens")
PAIRS = [
    ("the heron is a bird", "the heron is an otter"),
    ("same text here", "same text here"),
    ("nothing", "else at all"),
]


def test_the_measures_of_pairs():
    found = contrast(PAIRS)
    assert found.jaccard_words.tolist() == [3 / 7, 1.0, 0.0]
    assert found.levenshtein.tolist() == [distance(w, l) for w, l in PAIRS]  # noqa: E741
    assert found.copied.tolist() == [3 / 5, 1.0, 0.0]
    assert found.length_ratio.tolist() == [19 / 21, 1.0, 7 / 11] and found.jaccard_tokens is None


def test_a_response_of_several_messages_is_what_the_assistant_says():
    call = {"type": "function", "function": {"name": "weather", "arguments": {"city": "Zürich"}}}
    as_text = {"type": "function", "function": {"name": "weather", "arguments": '{"city": "Bern"}'}}
    chosen = (
        Message("assistant", "", reasoning_content="Look it up.", tool_calls=(call, as_text)),
        Message("tool", "12 degrees"),
        Message("assistant", "It is mild."),
    )
    rejected = (
        Message("assistant", "I look.", tool_calls=(call,)),
        Message("tool", "3"),
        Message("assistant", "Cold."),
    )
    (pair,) = texts_of([Record("rows.jsonl:1", "pairs", (Message("user", "q"),), (chosen, rejected))])
    assert pair == (
        'Look it up.\n\nweather {"city": "Zürich"}\n\nweather {"city": "Bern"}\n\nIt is mild.',
        'I look.\n\nweather {"city": "Zürich"}\n\nCold.',
    )


words = st.text("ab ", max_size=12)


@given(st.lists(st.tuples(words, words.map(lambda t: t + "z")), min_size=1, max_size=4))
def test_they_are_those_of_the_slow_tables(pairs):
    found = contrast(pairs)
    assert found.levenshtein.tolist() == [distance(w, l) for w, l in pairs]  # noqa: E741
    expected = [common(w.split(), l.split()) / len(l.split()) for w, l in pairs]  # noqa: E741
    np.testing.assert_allclose(found.copied, expected)


def test_the_shares_that_were_revised():
    found = contrast([*PAIRS, ("a b c d", "a d")])
    assert found.chosen_revised_words.tolist() == [2 / 5, 0.0, 1.0, 2 / 4]
    assert found.rejected_revised_words.tolist() == [2 / 5, 0.0, 1.0, 0.0]
    assert found.chosen_revised_tokens is None and found.rejected_revised_tokens is None
    assert found.revised == (found.chosen_revised_words, found.rejected_revised_words)


def test_the_shares_of_tokens_are_those_of_whole_words(tmp_path):
    """The ids of the words that differ, over all ids: a word that shares a token with another differs whole."""
    texts = ["un help ful help helpful unhelpful is he"] * 3
    tokenizer = Tokenizer(tiny.write_model(tmp_path / "model", texts, vocab_size=300))
    winner, loser = "he is helpful helped", "he is unhelpful"
    found = contrast([(winner, loser), (loser, loser)], tokenizer)
    count = [[len(tokenizer.encode([text], goes_on=i > 0)[0]) for i, text in enumerate(words)] for words in (
        ("he", " is", " helpful", " helped"), ("he", " is", " unhelpful"),
    )]  # fmt: skip
    assert found.chosen_revised_tokens.tolist() == [sum(count[0][2:]) / sum(count[0]), 0.0]
    assert found.rejected_revised_tokens.tolist() == [count[1][2] / sum(count[1]), 0.0]
    assert found.revised == (found.chosen_revised_tokens, found.rejected_revised_tokens)
    assert found.chosen_revised_words.tolist() == [2 / 4, 0.0] and found.rejected_revised_words[0] == 1 / 3


def test_sets_are_compared_not_lists():
    assert jaccard("abca", "bcab") == 1.0 and jaccard([], []) == 1.0 and jaccard([1], []) == 0.0


def run(*arguments):
    command = [sys.executable, "-m", "data.contrast", *map(str, arguments)]
    return forks.run(command)


def rows_file(path, pairs):
    return tiny.write_rows(path, [{"prompt": "q", "chosen": w, "rejected": l} for w, l in pairs])  # noqa: E741


def test_several_files_stand_side_by_side_with_words_and_tokens(tmp_path):
    one = rows_file(tmp_path / "one.jsonl", [PAIRS[0], PAIRS[2]])
    two = rows_file(tmp_path / "two.jsonl", [("a b c d", "a b c e")])
    model = tiny.write_model(tmp_path / "model", [w for pair in PAIRS for w in pair], vocab_size=300)
    out = tmp_path / "out.json"
    done = run(one, two, "--tokenizer", model, "--paper", "--out", out)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines[0].startswith("|  | pairs | Jaccard, words (%) | Jaccard, tokens (%) | Levenshtein")
    assert f"| {one} | 2 | 21.43 |" in lines[2] and f"| {two} | 1 | 60.00 |" in lines[3]
    assert "| CLAIR (the paper's; its tokens are not said) | - | - | 43.11 | 1,108 |" in done.stdout
    assert len({line.count("|") for line in lines[: lines.index("")]}) == 1  # a table
    found = json.loads(out.read_text())
    assert found[str(two)]["levenshtein"]["mean"] == 1.0 and found[str(one)]["pairs"] == 2
    assert 0 < found[str(one)]["jaccard_tokens"]["mean"] < 1
    assert "| revised tokens, winner (%) | loser |" in lines[0]
    shares = [found[str(two)][f"{side}_revised_{unit}"]["mean"] for side in ("chosen", "rejected") for unit in UNITS]
    assert shares == [1 / 4, 2 / 7] * 2 and "| 1 | 75.0 | 28.6 | 28.6 | 7 | 7 |" in lines[3]  # its blanks are tokens
    alone = run(one, "--out", tmp_path / "words.json")
    assert "| copied (%) | revised words, winner (%) | loser |" in alone.stdout
    found = json.loads((tmp_path / "words.json").read_text())[str(one)]
    assert found["chosen_revised_words"]["mean"] == 0.7 and "chosen_revised_tokens" not in found


def test_the_distributions_can_be_drawn(tmp_path):
    pytest.importorskip("matplotlib")
    done = run(rows_file(tmp_path / "one.jsonl", [PAIRS[0], PAIRS[2]]), "--plot", tmp_path / "p.png")
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "p.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({"prompt": "q", "completion": "a"}, "rows.jsonl:1: not a pair; contrast is measured on pairs of texts"),
        (
            {"prompt_ids": [1], "chosen_ids": [2], "rejected_ids": [3]},
            "rows.jsonl:1: a pair of token ids, but contrast",
        ),
        ({"prompt": "q", "chosen": ""}, "rows.jsonl:1"),
    ],
)
def test_what_is_no_pair_of_texts_is_refused(tmp_path, row, said):
    done = run(tiny.write_rows(tmp_path / "rows.jsonl", [row]))
    assert done.returncode == 2 and said in done.stderr and "Traceback" not in done.stderr


def test_a_plot_of_no_kind_is_refused_before_anything_is_read(tmp_path):
    done = run("absent.jsonl", "--plot", "picture")
    assert done.returncode == 2 and "has to end in .png" in done.stderr


def test_every_pair_that_is_trained_on_is_measured(tmp_path):
    """Columns of other names, ranked answers best over worst, messages as text, conversations, token ids."""
    model = tiny.write_model(tmp_path / "model", ["a b c d e"] * 3, vocab_size=300)
    spell = Tokenizer(model).encode
    better, worse = "a b c d", "a b c e"
    said = {name: [{"role": "Human", "content": "q"}, {"role": "Assistant", "content": text}]
            for name, text in (("chosen", better), ("rejected", worse))}  # fmt: skip
    rows = [
        {"question": "q", "completions": [worse, "x", better], "scores": [1, 2, 3]},
        {"question": "q", "answers": [{"answer": worse, "rank": 2}, {"answer": better, "rank": 1}]},
        {"question": "q"} | {name: json.dumps(value) for name, value in said.items()},
        {"question": "q"} | {name: [value[-1] | {"role": "bot"}] for name, value in said.items()} | {"context": "old"},
        {"prompt_ids": [1], "chosen_ids": spell([better])[0], "rejected_ids": spell([worse])[0], "question": "q"},
    ]
    file = tiny.write_rows(tmp_path / "rows.jsonl", rows)
    flags = ("--columns", "prompt=question", "--roles", "bot=assistant", "--ignore-columns", "context")
    done = run(file, *flags, "--tokenizer", model, "--out", tmp_path / "out.json")
    assert done.returncode == 0, done.stderr
    found = json.loads((tmp_path / "out.json").read_text())[str(file)]
    assert found["pairs"] == 5 and found["levenshtein"] == {"mean": 1.0} | dict.fromkeys(
        ("p10", "p25", "p50", "p75", "p90"), 1.0
    )
    assert f"{file}: not used: prompt" in done.stderr and "2 texts are messages" in done.stderr
    kept = run(file, *flags, "--tokenizer", model, "--keep-json-text", "--out", tmp_path / "kept.json")
    assert json.loads((tmp_path / "kept.json").read_text())[str(file)]["chosen_length"]["p90"] > 30, kept.stderr
