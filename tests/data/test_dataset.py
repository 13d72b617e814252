"""From names to examples: several sources, weights, what is counted, and a tokenizer that does not fit."""

import collections
import subprocess
import sys

import pytest

from data.rows.dataset import RowSettings, digest, find_cut, read_examples
from data.rows.model_folder import open_model
from data.text.chat import Chat
from data.text.tokenizer import Tokenizer
from system import InputError
from tests import tiny

SETTINGS = RowSettings()


def ids_row(i, n=1):
    return {"prompt_ids": [i], "chosen_ids": [1] * n, "rejected_ids": [2] * n}


def read(*sources, chat=None, n_ids=100, **more):
    return read_examples([str(s) for s in sources], chat, SETTINGS.limits, SETTINGS.reading, n_ids=n_ids, **more)


@pytest.fixture
def files(tmp_path):
    """Two files of ten rows each, with prompts 0 to 9 and 10 to 19."""
    return [
        tiny.write_rows(tmp_path / f"{name}.jsonl", [ids_row(i) for i in range(start, start + 10)])
        for name, start in (("a", 0), ("b", 10))
    ]


def prompts(rows):
    return [int(e.prompt[0]) for e in rows.examples]


def test_sources_come_one_after_the_other(files):
    assert prompts(read(*files)) == list(range(20))


@pytest.mark.parametrize(("weight", "n"), [(0.5, 5), (1, 10), (2, 20), (2.3, 23), (0.25, 2)])
def test_a_weight_says_how_often_rows_are_taken(files, weight, n):
    rows = read(*files, weights=(1, weight))
    taken = collections.Counter(prompts(rows)[10:])
    assert prompts(rows)[:10] == list(range(10)) and sum(taken.values()) == n
    assert max(taken.values()) - min(taken[i] for i in range(10, 20)) <= 1  # every row about as often
    assert prompts(read(*files, weights=(1, weight))) == prompts(rows)  # drawn by the seed alone
    if weight == 0.5:
        assert any(prompts(read(*files, weights=(1, weight), seed=s)) != prompts(rows) for s in range(1, 5))


def test_what_was_read_is_counted_and_its_digest_changes_with_an_id(tmp_path):
    tie = {"instruction": "q", "completions": [{"response": r, "overall_score": 1} for r in "ab"]}
    rows = [ids_row(1), tie, ids_row(2, 600), {"prompt_ids": "x"}, ids_row(999)]
    made = read(tiny.write_rows(tmp_path / "rows.jsonl", rows), skip_bad_rows=True)
    facts = made.facts()
    counts = {name: facts[name] for name in ("rows", "ties", "skipped_rows", "cut_prompts", "cut_responses")}
    assert counts == {"rows": 2, "ties": 1, "skipped_rows": 2, "cut_prompts": 0, "cut_responses": 2}
    assert "1 rows left out because their answers are rated alike, 2 rows skipped: " in facts["report"]
    assert [fault.rpartition("rows.jsonl")[2][:3] for fault in facts["skipped"]] == [":4:", ":5:"]
    changed = read(tiny.write_rows(tmp_path / "x.jsonl", [ids_row(1), ids_row(3, 600)]))
    assert digest(changed.examples).hexdigest() != facts["token_ids_sha256"]


def test_what_nothing_reads_is_named_once_and_messages_as_text_are_counted(tmp_path):
    text = '[{"role": "assistant", "content": "x"}]'
    tokenised = ids_row(1) | {"id": "7", "source": "toy"}
    made = read(tiny.write_rows(tmp_path / "rows.jsonl", [tokenised | {"note": "x"}, tokenised]))
    assert made.facts()["not_used"] == ["id", "source", "note"] and "messages_in_text" not in made.facts()
    assert made.report().endswith("responses cut, not used: id, source, note")
    folder = tiny.write_model(tmp_path / "model", ["user assistant system q x y"] * 5)
    rows = [{"prompt": "q", "chosen": text, "rejected": "y"}] * 3
    made = read(tiny.write_rows(tmp_path / "text.jsonl", rows), chat=Chat(Tokenizer(folder)), n_ids=500)
    assert made.facts()["messages_in_text"] == 3 and "not_used" not in made.facts()
    assert "3 texts are messages, and are read as such (--keep-json-text keeps them as text)" in made.report()
    assert not {"not_used", "messages_in_text"} & {*read(tiny.write_rows(tmp_path / "x.jsonl", [ids_row(1)])).facts()}


def test_many_columns_are_named_in_part(tmp_path):
    row = ids_row(1) | {f"c{i:02}": i for i in range(25)}
    made = read(tiny.write_rows(tmp_path / "rows.jsonl", [row]))
    assert made.report().endswith("c18, c19 and 5 more") and len(made.facts()["not_used"]) == 25


def test_faults_of_all_kinds_are_listed_in_the_files_order(tmp_path):
    rows = [ids_row(999), {"prompt_ids": "x"}, ids_row(1), ids_row(998)] * 4
    with pytest.raises(InputError) as fault:
        read(tiny.write_rows(tmp_path / "rows.jsonl", rows))
    first, *lines = str(fault.value).split("\n")
    assert first.startswith("12 of 16 rows cannot be used; ")
    numbers = [int(line.rpartition("rows.jsonl:")[2].partition(":")[0]) for line in lines[:-1]]
    assert numbers == [1, 2, 4, 5, 6, 8, 9, 10, 12, 13] and lines[-1] == "  ... and 2 more"


MEMORY = """
import resource, sys
from data.text.chat import Chat
from data.rows.dataset import RowSettings, read_examples
from data.text.tokenizer import Tokenizer
from pathlib import Path
chat, settings = Chat(Tokenizer(Path(sys.argv[1]))), RowSettings()
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
rows = read_examples([sys.argv[2]], chat, settings.limits, settings.reading, n_ids=400)
print(len(rows.examples), (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024)
"""


@pytest.mark.slow
def test_long_rows_are_encoded_a_few_at_a_time(tmp_path):
    tiny.write_tokenizer(tmp_path, ["user assistant question answer"])
    row = {"prompt": "q " * 20_000, "chosen": "answer " * 30_000, "rejected": "question " * 30_000}
    file = tiny.write_rows(tmp_path / "rows.jsonl", [row] * 100)  # 52 MB, which at once would take 3 GB
    command = [sys.executable, "-c", MEMORY, str(tmp_path), str(file)]
    n, megabytes = map(int, subprocess.run(command, capture_output=True, text=True, check=True).stdout.split())
    assert n == 100 and megabytes < 700


def test_a_row_is_found_again_by_its_location(files):
    for e in read(*files).examples[7:13]:
        cut = find_cut(e.location, [str(f) for f in files], None, SETTINGS.limits, SETTINGS.reading, n_ids=100)
        assert cut.example.location == e.location and cut.example.prompt.tolist() == e.prompt.tolist()
    with pytest.raises(InputError, match=r"nowhere:1: the row is gone; the file was changed"):
        find_cut("nowhere:1", [str(files[0])], None, SETTINGS.limits, SETTINGS.reading, n_ids=100)


def test_a_tokenizer_of_another_model_is_told_before_any_row(tmp_path):
    tiny.write_tokenizer(tmp_path, ["user assistant"])  # 256 bytes, some words, 5 control tokens
    chat = Chat(Tokenizer(tmp_path))
    with pytest.raises(InputError, match=r"is id \d+, config\.json says vocab_size 260; .* belong together"):
        read("absent.jsonl", chat=chat, n_ids=260)


def test_a_model_without_a_config_is_told(tmp_path):
    with pytest.raises(InputError, match=r"no config\.json; give a checkpoint folder"):
        open_model(str(tmp_path))


@pytest.mark.parametrize("change", [{"max_prompt_tokens": 0}, {"max_row_mb": -1}, {"columns": "chosen"}])
def test_settings_that_cannot_be_are_refused(change):
    with pytest.raises(InputError, match=r"^--(max-prompt-tokens|max-row-mb|columns): "):
        RowSettings(**change)
