"""Token weights of rows of ids: read where they stand, cut with their ids; what cannot be one is told by line."""

import re

import numpy as np
import pytest

from data.rows import Reading, digest, read_examples, read_records
from data.rows.dataset import RowSettings
from system import InputError
from tests import tiny

IDS = {"prompt_ids": [1], "chosen_ids": [2, 3, 4], "rejected_ids": [5, 6]}
WEIGHTS = {"chosen_token_weights": [1, 0.5, -2], "rejected_token_weights": [0, 3e300]}
ROW = IDS | WEIGHTS
ONE = {"prompt_ids": [1], "completion_ids": [2, 3], "completion_token_weights": [0.25, 1]}
SEVERAL = {"prompt_ids": [1], "completions_ids": [[2], [3, 4], [5]], "scores": [2, 1, 3]}
OF_SEVERAL = {"completions_token_weights": [[0.5], [1, 2], [4]]}


def read(tmp_path, *rows, columns=None, ranked=False, **limits):
    settings = RowSettings(columns=columns, **limits)
    reading = Reading(columns=settings.reading.columns, ranked=ranked)
    file = tiny.write_rows(tmp_path / "rows.jsonl", rows)
    return read_examples([str(file)], None, settings.limits, reading, n_ids=10).examples


def lists(example):
    return None if example.token_weights is None else [w.tolist() for w in example.token_weights]


def test_each_token_id_has_its_number(tmp_path):
    labelled = ONE | {"label": True}
    nulls = IDS | {"chosen_token_weights": None, "completion_token_weights": None}
    made = read(tmp_path, ROW, ONE, labelled, IDS, nulls)
    assert [lists(e) for e in made] == [[[1, 0.5, -2], [0, 3e300]], [[0.25, 1]], [[0.25, 1]], None, None]
    assert {w.dtype for e in made for w in e.token_weights or ()} == {np.dtype(np.float64)}


def test_they_are_cut_with_their_ids(tmp_path):
    (made,) = read(tmp_path, ROW, max_response_tokens=2)
    assert lists(made) == [[1, 0.5], [0, 3e300]] and [len(r) for r in made.responses] == [2, 2]


def test_those_of_several_completions_are_ordered_with_them(tmp_path):
    (best_over_worst,) = read(tmp_path, SEVERAL | OF_SEVERAL)
    assert [r.tolist() for r in best_over_worst.responses] == [[5], [3, 4]]
    assert lists(best_over_worst) == [[4], [1, 2]]
    (ranked,) = read(tmp_path, SEVERAL | OF_SEVERAL, ranked=True)
    assert lists(ranked) == [[4], [0.5], [1, 2]]
    unrated = {name: value for name, value in (SEVERAL | OF_SEVERAL).items() if name != "scores"}
    assert lists(read(tmp_path, unrated)[0]) == [[0.5], [4]]


def test_columns_may_be_called_otherwise(tmp_path):
    row = IDS | {"w": [1, 2, 3], "l": [4, 5]}
    (made,) = read(tmp_path, row, columns="chosen_token_weights=w,rejected_token_weights=l")
    assert lists(made) == [[1, 2, 3], [4, 5]]


def test_the_digest_of_what_was_fed_changes_with_a_weight(tmp_path):
    found = [digest(read(tmp_path, row)).hexdigest() for row in (IDS, ROW, ROW | {"rejected_token_weights": [0, 1]})]
    assert len(set(found)) == 3


FAULTS = {
    "too few": (
        {"chosen_token_weights": [1, 2]},
        '"chosen_token_weights" has 2 numbers; it has to be a list of 3 finite',
    ),
    "too many": (
        {"rejected_token_weights": [1, 2, 3]},
        '"rejected_token_weights" has 3 numbers; it has to be a list of 2',
    ),
    "a number": (
        {"chosen_token_weights": 1},
        '"chosen_token_weights" is a int; it has to be a list of 3 finite numbers, one',
    ),
    "text": ({"chosen_token_weights": [1, "2", 3]}, "\"chosen_token_weights[1]\" is '2'; it has to be a number"),
    "truth": ({"chosen_token_weights": [1, True, 3]}, '"chosen_token_weights[1]" is True; it has to be a number'),
    "a null": ({"chosen_token_weights": [1, None, 3]}, '"chosen_token_weights[1]" is None; it has to be a number'),
    "of one side": (
        {"rejected_token_weights": None},
        '"chosen_token_weights" without "rejected_token_weights"; give both or none',
    ),
    "of nothing": (
        {"completion_token_weights": [1]},
        '"completion_token_weights" without "completion_ids"; token weights belong to token ids: give',
    ),
}


@pytest.mark.parametrize(("changes", "sentence"), FAULTS.values(), ids=FAULTS)
def test_what_cannot_be_a_weight_is_told_by_file_and_line(tmp_path, changes, sentence):
    file = tiny.write_rows(tmp_path / "rows.jsonl", [ROW, ROW | changes])
    good, fault = read_records(file)
    assert not isinstance(good, InputError) and str(fault).startswith(f"{file}:2: {sentence}")


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": "q", "chosen": "a", "rejected": "b", "chosen_token_weights": [1]},
        {"prompt": "q", "completion": "a", "completion_token_weights": [1]},
        {"prompt": "q", "completions": ["a", "b"], "completions_token_weights": [[1], [1]]},
        {"messages": [{"role": "user", "content": "q"}], "completion_token_weights": [1]},
    ],
)
def test_rows_of_text_have_none(tmp_path, row):
    file = tiny.write_rows(tmp_path / "rows.jsonl", [row])
    (fault,) = read_records(file)
    assert re.match(rf'{re.escape(str(file))}:1: "[a-z]+_token_weights" without "[a-z]+_ids"; .*', str(fault))


@pytest.mark.parametrize(
    ("weights", "sentence"),
    [
        ([[0.5]], '"completions_token_weights" has to be a list of 3 lists, one per completion'),
        ([[0.5], [1], [2]], '"completions_token_weights[1]" has 1 numbers; it has to be a list of 2 finite numbers'),
    ],
)
def test_those_of_several_completions_are_as_many(tmp_path, weights, sentence):
    file = tiny.write_rows(tmp_path / "rows.jsonl", [SEVERAL | {"completions_token_weights": weights}])
    (fault,) = read_records(file)
    assert str(fault).startswith(f"{file}:1: {sentence}")
