"""The columns of a step in the forms that objectives take."""

import numpy as np
import torch

from data.rows.examples import Example
from data.rows.records import Ratings
from engine.step.loss_inputs import LossInputs


def columns(k=3, n=2):
    """Log-probs 0, 1, 2 ... and ratings that differ everywhere."""
    ids = np.arange(1, 9, dtype=np.int32)
    examples = [
        Example(
            "f", ids, tuple(ids[: 1 + i + j] for j in range(k)), None, Ratings((5.0, 4.0, 3.0)[:k], i, None, 7.0 + i)
        )
        for i in range(n)
    ]
    logps = torch.arange(n * k, dtype=torch.float64).view(n, k)
    return LossInputs.of(examples, logps, logps - 100)


def test_a_side_is_the_first_or_the_last_response_with_its_score_and_length():
    for side, k in (("chosen", 0), ("rejected", 2)):
        made = columns().as_form("single", side)
        assert made.logps.tolist() == [[float(k)], [3.0 + k]] and made.ref_logps.tolist() == [[k - 100.0], [k - 97.0]]
        assert made.numbers["scores"].tolist() == [[5.0 - k]] * 2 and made.lengths.tolist() == [[1 + k], [2 + k]]
        assert made.mean_lengths == (1.5 + k,) and made.numbers["values"].tolist() == [7.0, 8.0]


def test_a_pair_of_several_is_the_best_and_the_worst():
    made = columns().as_form("pairs")
    assert made.logps.tolist() == [[0.0, 2.0], [3.0, 5.0]] and made.numbers["scores"].tolist() == [[5.0, 3.0]] * 2
    assert columns(2).as_form("pairs").logps.tolist() == [[0.0, 1.0], [2.0, 3.0]]


def test_taken_apart_the_chosen_one_is_desirable():
    made = columns().as_form("unpaired")
    assert made.logps.tolist() == [[0.0], [2.0], [3.0], [5.0]] and made.labels.tolist() == [True, False, True, False]
    assert made.numbers["own_scores"].tolist() == [0, 0, 1, 1] and made.numbers["scores"].tolist() == [[5.0], [3.0]] * 2


def test_what_is_single_or_labelled_serves_its_own_form_alone():
    single, labelled = columns(1), columns().as_form("unpaired")
    assert single.as_form("single") is single and labelled.as_form("unpaired") is labelled
    assert single.as_form("pairs") is None and labelled.as_form("single") is None


def test_a_row_that_is_silent_weighs_1_and_its_winner_always_wins():
    """Where others of its batch speak; of all else nothing is known then, and where none speaks nothing is said."""
    ids = np.arange(1, 9, dtype=np.int32)
    said = [Ratings(None, 3.0, (0.7, 0.2), 4.0, 2.5, (("x", 1.0),)), Ratings()]
    examples = [Example("f", ids, (ids, ids), None, ratings) for ratings in said]
    zeros = torch.zeros(2, 2, dtype=torch.float64)
    made = LossInputs.of(examples, zeros, None).numbers
    assert {name: x.tolist() for name, x in made.items()} == {"weights": [2.5, 1.0], "probs": [[0.7, 0.2], [1.0, 0.0]]}
    assert not LossInputs.of(examples[1:], zeros[1:], None).numbers
    assert LossInputs.of(examples[:1], zeros[:1], None).numbers["x"].tolist() == [1.0]
