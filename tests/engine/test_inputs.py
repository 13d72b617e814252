"""What is known of a run before any weights are read: which tokens were revised, where an objective asks for them."""

import numpy as np
import pytest

from engine.config import TrainConfig
from engine.inputs import TrainingInputs
from engine.step import Objective
from system import InputError
from tests import tiny

PAIR = {"prompt_ids": [5], "chosen_ids": [6, 7, 8, 1], "rejected_ids": [6, 9, 1]}
LATE = {"prompt_ids": [5], "chosen_ids": [2, 3, 4], "rejected_ids": [2, 3, 5]}  # equal after a cut to two
COMPLETION = {"prompt_ids": [5], "completion_ids": [6, 7]}


@pytest.fixture
def asks(monkeypatch):
    """Every objective asks for revised tokens, those too that take pairs apart."""
    monkeypatch.setattr(Objective, "needs", frozenset({"revised"}))


def inputs(tmp_path, rows, heldout=(), **more):
    model = tiny.write_model(tmp_path / "model")
    data = tiny.write_rows(tmp_path / "rows.jsonl", rows)
    if heldout:
        more["eval_data"] = str(tiny.write_rows(tmp_path / "heldout.jsonl", heldout))
    more = {"loss": "dpo_revised", "shuffle": False} | more
    return TrainingInputs(TrainConfig(model=str(model), data=(str(data),), out=str(tmp_path / "run"), **more))


def flags(example):
    return [side.astype(int).tolist() for side in example.revised]


def test_rows_that_are_trained_on_and_held_out_know_their_revised_tokens(tmp_path):
    job = inputs(tmp_path, [PAIR, LATE, PAIR], [LATE])
    assert [flags(e) for e in job.examples] == [[[0, 1, 1, 0], [0, 1, 0]], [[0, 0, 1]] * 2, [[0, 1, 1, 0], [0, 1, 0]]]
    assert [flags(e) for e in job.heldout] == [[[0, 0, 1]] * 2]
    assert flags(job.steps.step(1).examples[0]) == [[0, 1, 1, 0], [0, 1, 0]]
    assert (job.facts["pairs_without_revisions"], job.facts["eval_pairs_without_revisions"]) == (0, 0)
    assert "do not differ" not in job.report


def test_they_go_with_the_responses_of_a_pair_that_is_taken_apart(tmp_path, asks):
    job = inputs(tmp_path, [PAIR], loss="apo_zero_unpaired")
    assert [flags(e) for e in job.examples] == [[[0, 1, 1, 0]], [[0, 1, 0]]]


def test_pairs_that_the_cut_made_equal_are_counted_and_reported(tmp_path):
    job = inputs(tmp_path, [PAIR, LATE], [LATE], max_response_tokens=2)
    assert not any(np.concatenate(job.examples[1].revised))
    assert (job.facts["pairs_without_revisions"], job.facts["eval_pairs_without_revisions"]) == (1, 1)
    assert job.report.count(", 1 pairs whose responses do not differ after the cut") == 2


def test_a_row_that_is_no_pair_is_named(tmp_path):
    with pytest.raises(InputError, match=r"rows.jsonl:2: revised tokens are .* give pairs, or take another --loss"):
        inputs(tmp_path, [PAIR, COMPLETION])


def test_held_out_rows_of_another_form_have_none(tmp_path):
    job = inputs(tmp_path, [PAIR], [COMPLETION])
    assert [e.revised for e in job.heldout] == [None]


def test_where_nothing_asks_nothing_is_compared(tmp_path):
    job = inputs(tmp_path, [PAIR, LATE], loss="dpo", max_response_tokens=2)
    assert [e.revised for e in job.examples] == [None, None] and "pairs_without_revisions" not in job.facts
