"""Which measurement of a held-out number is the best, and how many came after it."""

import math

import pytest

from engine.run import check_name
from engine.run.best import Record
from system import InputError


def record(metric, *values):
    made = Record(metric)
    return made, [made.add(10 * i, value) for i, value in enumerate(values)]


@pytest.mark.parametrize(
    ("metric", "best"),
    [
        ("loss", 1), ("eval_loss", 1), ("eval_kl", 1), ("perplexity", 1), ("nll_loss", 1),
        ("rewards/accuracies", 2), ("eval_rewards/margins", 2), ("logps/chosen", 2), ("eval_rewards/chosen", 2),
        ("logratios/chosen", 2),
    ],
)  # fmt: skip
def test_losses_are_best_where_they_are_smallest_and_rewards_where_they_are_greatest(metric, best):
    made, _ = record(metric, 0.5, 0.2, 0.9)
    assert made.name == f"eval_{metric.removeprefix('eval_')}"
    assert made.best() == (10 * best, [0.5, 0.2, 0.9][best])


def test_the_first_of_equals_is_the_best_and_what_is_no_number_never_is():
    made, better = record("loss", math.nan, 0.5, 0.5, 0.4, math.nan, 0.4)
    assert better == [False, True, False, True, False, False]
    assert made.best() == (30, 0.4) and made.n_worse == 2
    assert made.best(20) == (10, 0.5) and made.best(0) is None
    assert record("loss", math.nan)[0].n_worse == 1


def test_a_record_is_taken_up_from_the_lines_that_have_the_number():
    lines = [{"step": 0, "eval_loss": 0.7}, {"step": 1, "loss": 0.1}, {"step": 2, "eval_loss": 0.6}]
    made = Record("loss")
    made.restore(lines)
    assert made.best() == (2, 0.6) and made.best(1) == (0, 0.7)


def test_a_name_that_nothing_has_is_answered_by_those_that_there_are():
    names = ["eval_loss", "eval_rewards/margins"]
    check_name("--keep-best", "loss", names)
    check_name("--keep-best", "eval_rewards/margins", names)
    with pytest.raises(
        InputError,
        match=r"--early-stop: no metric of the held-out rows is called 'rewards/margin'; "
        r"perhaps eval_rewards/margins; there are: "
        r"eval_loss, eval_rewards/margins$",
    ):
        check_name("--early-stop", "rewards/margin", names)
