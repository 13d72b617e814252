"""What is known of a run before any weights are read: which tokens were revised, where an objective asks for them."""

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


def inputs(tmp_path, rows, heldout=(), model=None, **more):
    folder = tmp_path / "model"
    if not folder.exists():
        tiny.write_model(folder, **model or {})
    data = tiny.write_rows(tmp_path / "rows.jsonl", rows)
    if heldout:
        more["eval_data"] = str(tiny.write_rows(tmp_path / "heldout.jsonl", heldout))
    more = {"loss": "dpo_revised", "shuffle": False} | more
    return TrainingInputs(TrainConfig(model=str(folder), data=(str(data),), out=str(tmp_path / "run"), **more))


def flags(example):
    return [side.astype(int).tolist() for side in example.revised]


def test_rows_that_are_trained_on_and_held_out_know_their_revised_tokens(tmp_path):
    job = inputs(tmp_path, [PAIR, LATE, PAIR], [LATE])
    assert [flags(e) for e in job.examples] == [[[0, 1, 1, 0], [0, 1, 0]], [[0, 0, 1]] * 2, [[0, 1, 1, 0], [0, 1, 0]]]
    assert [flags(e) for e in job.heldout] == [[[0, 0, 1]] * 2]
    assert flags(job.steps.step(1).examples[0]) == [[0, 1, 1, 0], [0, 1, 0]]


def test_they_go_with_the_responses_of_a_pair_that_is_taken_apart(tmp_path, asks):
    job = inputs(tmp_path, [PAIR], loss="apo_zero_unpaired")
    assert [flags(e) for e in job.examples] == [[[0, 1, 1, 0]], [[0, 1, 0]]]


@pytest.mark.parametrize("loss", ["dpo_revised", "dpo"])
def test_pairs_that_the_cut_made_equal_are_faults(tmp_path, loss):
    with pytest.raises(InputError) as fault:
        inputs(tmp_path, [PAIR, LATE], loss=loss, max_response_tokens=2)
    assert str(fault.value).startswith("1 of 2 rows cannot be used; fix them, or leave them out: --skip-bad-rows")
    assert "rows.jsonl:2: " in str(fault.value) and str(fault.value).endswith("raise --max-response-tokens")
    job = inputs(tmp_path, [PAIR, LATE], [PAIR, LATE], loss=loss, max_response_tokens=2, skip_bad_rows=True)
    assert (len(job.examples), job.facts["skipped_rows"], job.facts["eval_skipped_rows"]) == (1, 1, 1)


def test_a_row_that_is_no_pair_is_named(tmp_path):
    with pytest.raises(InputError, match=r"rows.jsonl:2: revised tokens are .* give pairs, or take another --loss"):
        inputs(tmp_path, [PAIR, COMPLETION])


def test_held_out_rows_of_another_form_have_none(tmp_path):
    job = inputs(tmp_path, [PAIR], [COMPLETION])
    assert [e.revised for e in job.heldout] == [None]


def test_where_nothing_asks_nothing_is_compared(tmp_path):
    job = inputs(tmp_path, [PAIR, LATE], loss="dpo")
    assert [e.revised for e in job.examples] == [None, None]


# --- the model's context, and rows that are held out and trained on -------------------------------------------------

LONG = {"prompt_ids": [5] * 40, "chosen_ids": [6] * 30, "rejected_ids": [7] * 10}


def test_rows_beyond_the_models_context_are_refused_before_any_weights_are_read(tmp_path):
    model = {"max_position_embeddings": 64}
    with pytest.raises(InputError) as fault:
        inputs(tmp_path, [PAIR, LONG, LONG, LONG], model=model)
    first, *lines = str(fault.value).split("\n")
    assert first.startswith("3 of 4 rows cannot be used; ") and len(lines) == 3
    assert lines[0].endswith(
        "rows.jsonl:2: 70 tokens after the cut, but the model's context (max_position_embeddings) has 64; lower "
        "--max-prompt-tokens and --max-response-tokens, or accept such rows: --beyond-context"
    )
    job = inputs(tmp_path, [PAIR, LONG], model=model, beyond_context=True)
    assert len(job.examples[1].prompt) == 40
    cut = inputs(tmp_path, [PAIR, LONG], model=model, max_tokens=64)
    assert [len(r) for r in cut.examples[1].responses] == [24, 10]


def test_rows_that_are_held_out_and_trained_on_are_counted(tmp_path):
    other = PAIR | {"rejected_ids": [6, 9, 2]}
    swapped = PAIR | {"chosen_ids": PAIR["rejected_ids"], "rejected_ids": PAIR["chosen_ids"]}
    apart = {"prompt_ids": [5, 5], "chosen_ids": PAIR["chosen_ids"], "rejected_ids": PAIR["rejected_ids"]}
    job = inputs(tmp_path, [LATE | {"prompt_ids": [9]}, PAIR, PAIR], [PAIR, other, swapped, apart], loss="dpo")
    assert (job.facts["heldout_rows_in_data"], job.facts["heldout_prompts_in_data"]) == (1, 3)
    assert job.report.endswith(
        "; 1 of 4 held-out rows are trained on too, and 3 share their prompt with a training row: what is measured on "
        "these is not held out"
    )


def test_rows_that_are_drawn_from_the_data_are_counted_where_they_stand_there_twice(tmp_path):
    rows = [{"prompt_ids": [i], "chosen_ids": [6, 7], "rejected_ids": [8]} for i in range(2, 8)]
    job = inputs(tmp_path, rows, loss="dpo", eval_pairs=2)
    assert (job.facts["heldout_rows_in_data"], job.facts["heldout_prompts_in_data"]) == (0, 0)
    assert "held-out" not in job.report
    job = inputs(tmp_path, rows * 2, loss="dpo", eval_pairs=2, seed=1)
    twins = [e for e in job.heldout if any(e.prompt[0] == t.prompt[0] for t in job.examples)]
    assert job.facts["heldout_rows_in_data"] == len(twins) > 0


def test_a_share_of_the_rows_is_held_out_rounded_up(tmp_path):
    rows = [{"prompt_ids": [i], "chosen_ids": [6, 7], "rejected_ids": [8]} for i in range(2, 8)]
    for share, n in ((0.2, 2), (1 / 3, 2), (0.5, 3), (0.01, 1)):
        job = inputs(tmp_path, rows, loss="dpo", eval_pairs=share)
        assert (len(job.heldout), len(job.examples)) == (n, 6 - n)
        assert [e.location for e in job.heldout] == [
            e.location for e in inputs(tmp_path, rows, loss="dpo", eval_pairs=n).heldout
        ]
    with pytest.raises(InputError, match=r"--eval-pairs: 2.5 is neither a whole number nor a share below 1"):
        inputs(tmp_path, rows, loss="dpo", eval_pairs=2.5)


def test_without_held_out_rows_none_are_counted(tmp_path):
    assert "heldout_rows_in_data" not in inputs(tmp_path, [PAIR], loss="dpo").facts
