"""What a step's line says, worked out by hand; what is not finite, and whose rows it names."""

import math
from types import SimpleNamespace

import pytest
import torch

from data.rows.examples import Example
from engine.step import Batch, LossInputs, Objective, Step, check_finite, training_metrics
from engine.step.metrics import heldout_metrics
from losses import Result
from system import RunError
from tests import tiny


def tensor(values):
    return torch.tensor(values, dtype=torch.float64)


def inputs(logps, ref=None, labels=None):
    logps = tensor(logps)
    labels = None if labels is None else torch.tensor(labels)
    lengths = torch.full(logps.shape, 2)
    return LossInputs(logps, None if ref is None else tensor(ref), lengths, labels, (2.0,) * logps.shape[1])


def test_a_step_of_pairs_has_every_name_and_each_is_a_mean():
    result = Result(tensor([1.0, 2.0, 6.0]), tensor([0.3, -0.1, 0.4]), tensor([0.1, 0.2, 0.4]), {"kl": tensor(0.25)})
    made = training_metrics(inputs([[-1.0, -4.0], [-2.0, -5.0], [-6.0, -6.0]]), result)
    assert made == pytest.approx(
        {
            "loss": 3.0,
            "rewards/chosen": 0.2,
            "rewards/rejected": 0.7 / 3,
            "rewards/margins": 0.2 - 0.7 / 3,
            "rewards/accuracies": 1 / 3,  # the third is a draw, which is not won
            "logps/chosen": -3.0,
            "logps/rejected": -5.0,
            "kl": 0.25,
        },
        abs=1e-12,
    )
    assert all(type(value) is float for value in made.values())


def test_of_several_responses_the_first_is_chosen_and_the_last_rejected():
    result = Result(tensor([0.0]), tensor([1.0]), tensor([0.0]))
    made = training_metrics(inputs([[-1.0, -2.0, -3.0]]), result)
    assert made["logps/chosen"] == -1.0 and made["logps/rejected"] == -3.0


def test_labelled_responses_are_told_by_class_and_have_no_accuracy():
    result = Result(tensor([0.0] * 4), tensor([0.5, 0.7]), tensor([-0.2, -0.4]))
    made = training_metrics(inputs([[-1.0], [-2.0], [-3.0], [-6.0]], labels=[False, True, True, False]), result)
    assert made["logps/chosen"] == -2.5 and made["logps/rejected"] == -3.5
    assert made["rewards/margins"] == pytest.approx(0.9, abs=1e-12) and "rewards/accuracies" not in made


def test_a_class_without_examples_is_left_out():
    made = training_metrics(inputs([[-1.0]], labels=[True]), Result(tensor([0.0]), tensor([0.5]), tensor([])))
    assert set(made) == {"loss", "rewards/chosen", "logps/chosen"}


@pytest.mark.parametrize(("side", "rewards"), [("chosen", ([0.5], [])), ("rejected", ([], [0.5]))])
def test_a_single_response_is_of_the_side_that_has_its_reward(side, rewards):
    made = training_metrics(inputs([[-4.0]]), Result(tensor([0.0]), *map(tensor, rewards)))
    assert set(made) == {"loss", f"rewards/{side}", f"logps/{side}"} and made[f"logps/{side}"] == -4.0


# --- held out ------------------------------------------------------------------------------------------------------


def measured(objective, given, own=None):
    own = given.as_form(objective.form, objective.side) if own is None else own
    return heldout_metrics(objective, given, own)


def test_held_out_rewards_are_the_objectives_and_log_ratios_have_names_of_their_own():
    logps, ref = [[-3.0, -4.0], [-5.0, -2.0]], [[-2.5, -4.5], [-4.0, -4.0]]
    made = measured(Objective("apo_down", beta=0.5), inputs(logps, ref))
    assert made["eval_logratios/chosen"] == pytest.approx(-0.75, abs=1e-12)
    assert made["eval_logratios/rejected"] == pytest.approx(1.25, abs=1e-12)
    assert made["eval_logratios/margins"] == pytest.approx(-2.0, abs=1e-12) and made["eval_logratios/accuracies"] == 0
    x = [[logps[i][k] - ref[i][k] for k in (0, 1)] for i in (0, 1)]
    assert made["eval_rewards/chosen"] == pytest.approx(0.5 * (x[0][0] + x[1][0]) / 2, abs=1e-12)
    assert made["eval_rewards/rejected"] == pytest.approx(0.5 * (x[0][1] + x[1][1]) / 2, abs=1e-12)
    assert made["eval_rewards/accuracies"] == 0.0 and made["eval_logps/chosen"] == -4.0

    def s(z):
        return 1 / (1 + math.exp(-z))

    losses = [s(0.5 * w) + s(0.5 * (r - w)) for w, r in x]
    assert made["eval_loss"] == pytest.approx(sum(losses) / 2, abs=1e-12)
    assert all(name.startswith("eval_") for name in made)


@pytest.mark.parametrize(
    "name", ["simpo", "cpo", "slic", "orpo", "ln_dpo", "apo_zero", "f_dpo", "kto_pair", "bco_pair"]
)
def test_a_held_out_number_is_what_training_writes_of_the_same_rows(name):
    """Every name of a step's line, eval_ before it; simpo's rewards are per token, and none of a reference."""
    objective, given = Objective(name), inputs([[-3.0, -4.0], [-5.0, -2.0]], [[-2.5, -4.5], [-4.0, -4.0]])
    trained_on = given if objective.has_reference else given.without_reference()
    trained = training_metrics(trained_on, objective(trained_on))
    made = measured(objective, given, trained_on)
    assert {f"eval_{key}": value for key, value in trained.items()}.items() <= made.items()
    assert {"eval_logratios/margins", "eval_logps/rejected", "eval_loss"} <= made.keys()
    if name == "simpo":
        assert made["eval_rewards/chosen"] == pytest.approx(2.0 * (-3 / 2 - 5 / 2) / 2, abs=1e-12)
        assert made["eval_rewards/chosen"] != pytest.approx(2.0 * made["eval_logratios/chosen"], abs=0.1)


def test_log_ratios_of_a_step_are_in_nats_and_there_where_a_reference_is():
    result = Result(tensor([1.0, 2.0]), tensor([0.3, -0.1]), tensor([0.1, 0.2]))
    given = inputs([[-1.0, -4.0], [-2.0, -5.0]], [[-2.0, -4.5], [-2.5, -4.5]])
    made = training_metrics(given, result)
    assert made["logratios/chosen"] == pytest.approx(0.75, abs=1e-12) and made["logratios/accuracies"] == 1.0
    assert made["logratios/margins"] == pytest.approx(0.75, abs=1e-12)
    assert not any(name.startswith("logratios") for name in training_metrics(given.without_reference(), result))


def test_held_out_pairs_of_an_objective_on_one_side_have_log_ratios_of_both_and_that_sides_loss():
    objective = Objective("npo")
    made = measured(objective, inputs([[-3.0, -4.0]], [[-2.0, -6.0]]))
    assert made["eval_logratios/chosen"] == pytest.approx(-1.0, abs=1e-12) and "eval_rewards/chosen" not in made
    assert made["eval_rewards/rejected"] == pytest.approx(0.2, abs=1e-12) and made["eval_logps/chosen"] == -3.0
    assert made["eval_loss"] == pytest.approx(2 / 0.1 * math.log(1 + math.exp(0.2)), abs=1e-12)
    single = measured(objective, inputs([[-4.0]], [[-6.0]]))
    assert single["eval_rewards/rejected"] == pytest.approx(0.2, abs=1e-12) and "eval_logratios/chosen" not in single


def test_kto_of_held_out_rows_has_a_loss_and_an_anchor_of_their_mismatched_sequences():
    own = inputs([[-1.0], [-3.0]], [[-2.0], [-2.5]], labels=[True, False])
    others = inputs([[-4.0], [-6.0]], [[-4.5], [-6.1]])
    made = measured(Objective("kto"), own, own.with_mismatched(others))
    z = (0.5 + 0.1) / 2

    def s(x):
        return 1 / (1 + math.exp(-x))

    assert made["eval_kl"] == pytest.approx(z, abs=1e-12)
    assert made["eval_loss"] == pytest.approx((s(0.1 * (z - 1.0)) + s(0.1 * (-0.5 - z))) / 2, abs=1e-12)
    assert made["eval_rewards/chosen"] == pytest.approx(0.1, abs=1e-12)


def test_what_cannot_be_computed_of_held_out_rows_is_left_out():
    made = heldout_metrics(Objective("dpo"), inputs([[-1.0]], [[-2.0]]), None)  # of one response
    assert made == {"eval_logps/chosen": -1.0, "eval_logratios/chosen": 1.0}
    without = measured(Objective("sft"), inputs([[-1.0, -3.0]]))
    assert without["eval_loss"] == 0.5 and "eval_logratios/chosen" not in without
    assert without["eval_rewards/chosen"] == pytest.approx(-0.1, abs=1e-12)


# --- what is not finite --------------------------------------------------------------------------------------------


def step(n):
    rows: list[Example] = tiny.random_examples([(3, 2, 4)] * n)
    return Step(number=7, epoch=1, ends_epoch=False, progress=0.0, ids=None, batch=Batch(rows))


def training(holds_gradients=True):
    return SimpleNamespace(plan=SimpleNamespace(memory=SimpleNamespace(holds_gradients=holds_gradients)))


def check(losses, logps, norm=1.0, **named):
    n = len(losses)
    check_finite(training(**named), step(n), inputs(logps), Result(tensor(losses), tensor([]), tensor([])), norm)


FINE = [[-1.0, -2.0]] * 3


def test_what_is_finite_passes():
    check([1.0, 2.0, 3.0], FINE)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_the_rows_of_a_loss_that_is_not_finite_are_named(bad):
    with pytest.raises(RunError) as fault:
        check([1.0, bad, 3.0], FINE)
    assert str(fault.value) == (
        "step 7: the loss of rows.jsonl:2 is not finite; the weights are as step 6 left them; look at these rows, or "
        "lower --lr"
    )


def test_a_log_prob_that_is_not_finite_counts_though_the_loss_saturates():
    with pytest.raises(RunError, match=r"the loss of rows.jsonl:3 is not finite"):
        check([1.0, 2.0, 0.0], [*FINE[:2], [-1.0, -math.inf]])


@pytest.mark.parametrize("norm", [math.nan, math.inf])
def test_a_gradient_that_is_not_finite_names_all_rows_of_its_step(norm):
    with pytest.raises(RunError, match=rf"the gradient \({norm}\) of a step with rows.jsonl:1, rows.jsonl:2 is not"):
        check([1.0, 2.0], FINE[:2], norm)


def test_more_than_ten_rows_are_counted():
    with pytest.raises(RunError, match=r"rows.jsonl:10 and 2 more is not finite"):
        check([math.nan] * 12, FINE * 4)


def test_an_optimizer_that_steps_inside_the_backward_pass_has_lost_the_weights():
    with pytest.raises(RunError, match="the weights in memory are lost; states and checkpoints are whole"):
        check([math.nan], FINE[:1], holds_gradients=False)
