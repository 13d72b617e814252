"""What --loss names: mixtures, their hyperparameters, what rows are asked for, and the gradient of a step."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

import losses
from data.rows.examples import Example
from data.rows.records import NO_RATINGS, Ratings
from engine.step.loss_inputs import LossInputs
from engine.step.objective import Objective, describe_all, gradient
from engine.step.trial import check_objective
from losses import Responses, Result, registry
from system import InputError


def examples(lengths, *, ratings=NO_RATINGS, labels=None):
    """Examples of the response lengths given, at rows.jsonl:1 and on."""
    ids = np.arange(1, 100, dtype=np.int32)
    return [
        Example(f"rows.jsonl:{i + 1}", ids[:3], tuple(ids[:n] for n in row), labels and labels[i], ratings)
        for i, row in enumerate(lengths)
    ]


def inputs(logps, ref_logps=None, **named):
    """What an objective is computed from; responses are 2, 3, 4 ... tokens long."""
    logps = torch.tensor(logps, dtype=torch.float64)
    n, k = logps.shape
    rows = examples([[2 + i + j for j in range(k)] for i in range(n)], **named)
    return LossInputs.of(rows, logps, None if ref_logps is None else torch.tensor(ref_logps, dtype=torch.float64))


PAIRS = [[-3.0, -4.0], [-5.0, -2.0], [-1.0, -6.0]]
REFS = [[-2.5, -4.5], [-4.0, -4.0], [-2.0, -5.0]]


def sigmoid(x):
    return 1 / (1 + math.exp(-x))


def dpo(row, ref, beta):
    return -math.log(sigmoid(beta * ((row[0] - ref[0]) - (row[1] - ref[1]))))


# --- mixtures ------------------------------------------------------------------------------------------------------


def test_one_objective_is_its_formula():
    found = Objective("dpo")(inputs(PAIRS, REFS))
    assert found.losses.tolist() == pytest.approx(
        [dpo(*rows, 0.1) for rows in zip(PAIRS, REFS, strict=True)], abs=1e-12
    )
    assert found.chosen_rewards.tolist() == pytest.approx([-0.05, -0.1, 0.1], abs=1e-12)
    assert found.rejected_rewards.tolist() == pytest.approx([0.05, 0.2, -0.1], abs=1e-12)


def test_a_mixture_is_the_weighted_sum_and_logs_each_part():
    mixed = Objective("dpo:2,sft:0.5", hyperparameters={"sft.per": "sum"})
    found = mixed(inputs(PAIRS, REFS))
    parts = [dpo(*rows, 0.1) for rows in zip(PAIRS, REFS, strict=True)], [-row[0] for row in PAIRS]
    expected = [2 * a + 0.5 * b for a, b in zip(*parts, strict=True)]
    assert mixed.form == "pairs" and mixed.name == "dpo,sft" and mixed.has_reference
    assert found.losses.tolist() == pytest.approx(expected, abs=1e-12)
    assert found.metrics["loss/dpo"].item() == pytest.approx(sum(parts[0]) / 3, abs=1e-12)
    assert found.metrics["loss/sft"].item() == pytest.approx(3.0, abs=1e-12)  # without its weight
    assert found.chosen_rewards.tolist() == pytest.approx([-0.05, -0.1, 0.1], abs=1e-12)  # the first term's


def test_a_pair_that_is_taken_apart_counts_as_the_mean_of_its_two_losses():
    found = Objective("dpo:1,apo_zero_unpaired:1")(inputs(PAIRS, REFS))
    expected = []
    for row, ref in zip(PAIRS, REFS, strict=True):
        x_w, x_l = row[0] - ref[0], row[1] - ref[1]
        expected.append(dpo(row, ref, 0.1) + (1 - sigmoid(0.1 * x_w) + sigmoid(0.1 * x_l)) / 2)
    assert found.losses.tolist() == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize(
    ("text", "form"),
    [
        ("sft", "single"),
        ("npo", "single"),
        ("sft,npo", "pairs"),  # of two sides
        ("kto", "unpaired"),
        ("dpo,bco", "pairs"),
        ("dpo,infonca", "ranked"),
        ("infonca", "ranked"),
    ],
)
def test_rows_have_the_form_that_every_term_can_be_computed_from(text, form):
    assert Objective(text).form == form


def test_a_single_objective_takes_its_own_side_of_a_pair():
    x = inputs([[-1.0, -2.0]], [[-4.0, -8.0]])
    assert Objective("sft,npo").side == "chosen"
    assert Objective("npo,sft")(x).rejected_rewards.tolist() == pytest.approx([0.1 * 6.0], abs=1e-12)


def test_a_rank_without_work_gives_a_loss_of_nothing_whose_gradient_is_zero():
    logps = torch.zeros(0, 2, dtype=torch.float64, requires_grad=True)
    result = Objective("apo_zero")(LossInputs(logps, logps.detach(), torch.zeros(0, 2).long(), None, (1.0, 1.0)))
    assert result.losses.shape == (0,)
    result.losses.sum().backward()
    assert logps.grad.shape == (0, 2)


def test_only_what_mismatched_rows_can_be_made_for_mixes_with_others():
    assert (
        Objective("kto").needs_mismatched and not Objective("kto", hyperparameters={"kto.kl": "0.5"}).needs_mismatched
    )
    said = "kto cannot be mixed with .* mismatched sequences; use kto_pair, or fix its KL: --kto.kl 0"
    with pytest.raises(InputError, match=said):
        Objective("kto,dpo")
    assert Objective("kto,dpo", hyperparameters={"kto.kl": "0.5"}).form == "pairs"


def test_the_anchor_is_the_mean_log_ratio_of_the_mismatched_sequences_and_0_without_any():
    x, refs = [[-3.0], [-6.0]], [[-3.5], [-5.0]]
    made = inputs(x, refs, labels=[True, False])
    others = inputs([[-7.0], [-8.0], [-2.0]], [[-7.3], [-8.5], [-2.4]])  # of the whole step, whatever part this is
    made, z = made.with_mismatched(others), (0.3 + 0.5 + 0.4) / 3
    expected = [sigmoid(0.1 * (z - 0.5)), sigmoid(0.1 * (-1.0 - z))]
    assert Objective("kto")(made).losses.tolist() == pytest.approx(expected, abs=1e-12)
    alone = inputs(x, refs, labels=[True, False])
    expected = [sigmoid(0.1 * -0.5), sigmoid(0.1 * -1.0)]
    assert Objective("kto")(alone).losses.tolist() == pytest.approx(expected, abs=1e-12)


# --- rows' weights -------------------------------------------------------------------------------------------------


def weighed(given, weights):
    return replace(given, numbers={**given.numbers, "weights": torch.tensor(weights, dtype=torch.float64)})


WEIGHTS = [0.0, 0.5, 3.0]


@pytest.mark.parametrize("name", ["dpo", "apo_zero", "kto_pair", "aot", "bco_pair", "beta_dpo", "sft", "npo", "simpo"])
def test_a_rows_weight_multiplies_its_loss(name):
    """Whatever the objective, those of the whole step too; rewards and metrics are what they were."""
    plain, found = (Objective(name)(one) for one in (inputs(PAIRS, REFS), weighed(inputs(PAIRS, REFS), WEIGHTS)))
    assert found.losses.tolist() == [w * x for w, x in zip(WEIGHTS, plain.losses.tolist(), strict=True)]
    assert torch.equal(found.chosen_rewards, plain.chosen_rewards) and found.metrics == plain.metrics


def test_a_pair_that_is_taken_apart_and_labelled_rows_weigh_by_their_rows():
    name = "apo_zero_unpaired"
    plain, found = (
        Objective(f"dpo,{name}")(one) for one in (inputs(PAIRS, REFS), weighed(inputs(PAIRS, REFS), WEIGHTS))
    )
    expected = [w * x for w, x in zip(WEIGHTS, plain.losses.tolist(), strict=True)]
    assert found.losses.tolist() == pytest.approx(expected, abs=1e-15)  # a mixture's terms are weighed one by one
    labelled = inputs([[-1.0], [-2.0], [-3.0]], [[-2.0], [-2.5], [-1.0]], labels=[True, False, True])
    plain, found = (Objective(name)(one) for one in (labelled, weighed(labelled, WEIGHTS)))
    assert found.losses.tolist() == [w * x for w, x in zip(WEIGHTS, plain.losses.tolist(), strict=True)]


def test_ranked_rows_weigh_too():
    three = inputs([[-1.0, -2.0, -4.0]] * 3, [[-2.0, -2.5, -3.0]] * 3)
    three = replace(three, numbers={"scores": torch.tensor([[3.0, 2.0, 1.0]] * 3, dtype=torch.float64)})
    plain, found = (Objective("nca_ranked")(one) for one in (three, weighed(three, WEIGHTS)))
    assert found.losses.tolist() == [w * x for w, x in zip(WEIGHTS, plain.losses.tolist(), strict=True)]


def test_what_takes_weights_itself_is_not_multiplied_again():
    """BCO clips them, and of desirable rows it takes none; beside it another term is multiplied."""
    labelled = inputs([[-1.0], [-2.0], [-3.0]], [[-2.0], [-2.5], [-1.0]], labels=[True, False, True])
    plain, found = (
        Objective("bco", hyperparameters={"bco.delta": "0"})(x) for x in (labelled, weighed(labelled, WEIGHTS))
    )
    assert found.losses.tolist() == [x * w for x, w in zip(plain.losses.tolist(), (1.0, 0.5, 1.0), strict=True)]
    assert Objective("apo_zero_unpaired").multiplies_by_weights and not Objective("bco").multiplies_by_weights
    both = Objective("bco:1,apo_zero_unpaired:1", hyperparameters={"bco.delta": "0"})(weighed(labelled, WEIGHTS))
    other = Objective("apo_zero_unpaired")(weighed(labelled, WEIGHTS))
    assert torch.equal(both.losses, found.losses + other.losses)


def test_the_gradient_of_a_weighed_row_is_so_much_larger():
    _, plain = gradient(Objective("dpo"), inputs(PAIRS, REFS))
    _, found = gradient(Objective("dpo"), weighed(inputs(PAIRS, REFS), WEIGHTS))
    expected = plain.logps * torch.tensor(WEIGHTS, dtype=torch.float64)[:, None]  # the mean stays over examples
    torch.testing.assert_close(found.logps, expected, rtol=0, atol=1e-15)


# --- hyperparameters -----------------------------------------------------------------------------------------------


def test_beta_is_every_terms_and_a_terms_own_wins_over_it():
    both = Objective("dpo,apo_zero", beta=0.3, hyperparameters={"apo_zero.beta": "0.7"})
    assert both.arguments == {"dpo.beta": 0.3, "apo_zero.beta": 0.7} and both.beta == 0.3
    assert both.settings == both.arguments  # no beta is that of all
    assert Objective("dpo,apo_zero", beta=0.3).settings == {"beta": 0.3}
    assert Objective("ipo", beta=0.3).settings == {"beta": 0.3, "ipo.length_normalised": True}
    assert Objective("sft").beta == 0.1


def test_beta_changes_the_loss():
    found = Objective("dpo", beta=0.5)(inputs(PAIRS, REFS)).losses.tolist()
    assert found == pytest.approx([dpo(*rows, 0.5) for rows in zip(PAIRS, REFS, strict=True)], abs=1e-12)


def test_a_hyperparameter_may_be_given_by_a_peers_name_of_its_objective():
    assert Objective("dpo", hyperparameters={"sigmoid.beta": "0.25"}).arguments == {"dpo.beta": 0.25}


@pytest.mark.parametrize(("text", "value"), [("true", True), ("False", False), ("1", True), ("0", False)])
def test_a_switch_is_read_in_either_spelling(text, value):
    assert Objective("ipo", hyperparameters={"ipo.length_normalised": text}).arguments["ipo.length_normalised"] is value


def test_what_may_be_none_is_read_as_none_or_as_its_type():
    assert Objective("kto", hyperparameters={"kto.kl": "None"}).arguments["kto.kl"] is None
    assert Objective("kto", hyperparameters={"kto.kl": "1e-1"}).arguments["kto.kl"] == 0.1


@pytest.mark.parametrize(
    ("text", "given", "said"),
    [
        ("dpo", {"dpo.bta": "1"}, "--dpo.bta: this run's objective has no such hyperparameter; perhaps --dpo.beta"),
        ("dpo", {"ipo.beta": "1"}, "--ipo.beta: this run's objective has no such hyperparameter; perhaps --dpo.beta"),
        ("dpo", {"dpo.beta": "fast"}, "--dpo.beta: 'fast' is not a float"),
        ("dpo", {"dpo.beta": "inf"}, "--dpo.beta: 'inf' is not a float"),
        ("dpo", {"dpo.beta": "0"}, "--dpo.beta: 0 has to be above 0"),
        ("ipo", {"ipo.length_normalised": "perhaps"}, "--ipo.length_normalised: 'perhaps' is not a bool"),
        ("sft", {"sft.per": "word"}, "--sft.per: 'word' is not one of token, sequence, sum"),
        ("dpo:0", {}, "--loss: the weight 0 of dpo has to be above 0"),
        ("dpo:inf", {}, "--loss: the weight inf of dpo has to be above 0"),
        ("dpo:1,sigmoid:2", {}, "--loss: dpo is named twice; name it once, with the sum of the weights"),
        ("iqo", {}, "--loss: there is no objective 'iqo'; perhaps 'ipo'; the names are aot, "),
    ],
)
def test_what_cannot_be_is_said_in_a_sentence(text, given, said):
    with pytest.raises(InputError) as fault:
        Objective(text, hyperparameters=given)
    assert str(fault.value).startswith(said)


def test_a_beta_is_refused_where_nothing_has_one():
    with pytest.raises(InputError, match="--beta: dro has no beta; leave it out"):
        Objective("dro", beta=0.1)


def test_the_help_lists_every_objective_with_its_defaults():
    said = describe_all()
    assert all(f"  {name}(" in said for name in losses.names())
    assert "  ipo(beta=0.1, length_normalised=True)\n" in said
    assert "  kto_pair(" in said and said.split("  kto_pair(")[1].split("\n")[0].endswith(
        "each forward pass runs twice]"
    )


def test_a_formula_that_replaced_another_one_is_part_of_a_runs_identity():
    """A run that 0.1.0 began with its wpo, by sequences, is not gone on with by token weights."""
    assert Objective("wpo").digests == {"the formula of wpo": "weights of tokens"}
    assert Objective("wpo_sequence,dpo").digests == {}


# --- what rows are asked for ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "ratings", "said"),
    [
        ("odpo", Ratings(), "rows.jsonl:2: odpo needs a score of each response"),
        ("apo_select", Ratings((1.0, 0.0)), "rows.jsonl:2: apo_select needs a score of the model's own answer"),
        ("dro", Ratings((1.0,)), 'rows.jsonl:2: dro needs "value"'),
    ],
)
def test_a_row_that_lacks_what_is_asked_for_is_named(text, ratings, said):
    full = Ratings((1.0, 0.0)[: 1 + (text != "dro")], own=0.5, probs=(1.0, 0.0), value=2.0)
    objective = Objective(text)
    rows = examples([[2] * (1 + (text != "dro"))] * 3, ratings=full)
    check_objective(objective, rows)
    with pytest.raises(InputError) as fault:
        check_objective(objective, [rows[0], rows[1]._replace(ratings=ratings), rows[2]])
    assert str(fault.value).startswith(said)


def test_a_field_of_rows_reaches_the_loss_and_its_absence_is_located(registered):
    @registry.loss("lead", data="single", fields=("lead",))
    def lead(responses: Responses, *, lead: Tensor) -> Result:
        return Result(lead + 0 * responses.logps, responses.logps[:0], responses.logps[:0])

    objective = Objective("lead")
    rows = examples([[2], [3]], ratings=Ratings(fields=(("lead", 4.0),)))
    assert objective.fields == ("lead",)
    assert objective(LossInputs.of(rows, torch.zeros(2, 1).double(), None)).losses.tolist() == [4.0, 4.0]
    with pytest.raises(InputError, match=r'rows.jsonl:2: lead needs a finite number under "lead"; add it'):
        check_objective(objective, [rows[0], rows[1]._replace(ratings=NO_RATINGS)])


def test_win_rates_of_rows_reach_the_winner_and_the_loser(registered):
    @registry.loss("rates", data="pairs", needs=("probs",))
    def rates(
        chosen: Responses, rejected: Responses, *, probs_w: Tensor | None = None, probs_l: Tensor | None = None
    ) -> Result:
        return Result(10 * probs_w + probs_l, chosen.logps[:0], rejected.logps[:0])

    made = inputs(PAIRS, ratings=Ratings(probs=(0.75, 0.25)))
    assert Objective("rates")(made).losses.tolist() == [7.75] * 3


def test_rows_that_an_objective_refuses_are_named_and_the_others_are_not(registered):
    @registry.loss("refusing", data="single", needs=("lengths",))
    def refusing(responses: Responses) -> Result:
        bad = torch.where(responses.lengths == 9, torch.inf, 0.0)
        return Result(responses.logps + bad, responses.logps[:0], responses.logps[:0])

    objective = Objective("refusing")
    check_objective(objective, examples([[2], [3]]))
    with pytest.raises(InputError) as fault:
        check_objective(objective, examples([[2], [9], [3], [9]]))
    said = str(fault.value)
    assert "rows.jsonl:2" in said and "rows.jsonl:4" in said
    assert "rows.jsonl:1" not in said and "rows.jsonl:3" not in said
    with pytest.raises(InputError, match="--loss: the loss of refusing is not finite before the first step"):
        check_objective(objective, examples([[9], [9]]))


def test_a_statistic_that_is_not_said_to_be_one_is_found_by_a_pass_of_one(registered):
    @registry.loss("spread", data="single")
    def spread(responses: Responses) -> Result:
        return Result(responses.logps / (len(responses.logps) - 1), responses.logps[:0], responses.logps[:0])

    with pytest.raises(InputError, match=r"spread: a row's loss changes by up to .* when other rows share its pass"):
        check_objective(Objective("spread"), examples([[2], [3]]))


def test_a_loss_that_is_no_number_per_example_is_refused(registered):
    @registry.loss("mean", data="pairs")
    def mean(chosen: Responses, rejected: Responses) -> Result:
        return Result(chosen.logps.mean(), chosen.logps, rejected.logps)

    with pytest.raises(InputError, match=r"mean gave losses of shape \[\] for 2 examples; give one for each"):
        check_objective(Objective("mean"), examples([[2, 3], [3, 4]]))


# --- of a whole step -----------------------------------------------------------------------------------------------


def test_the_gradient_of_a_step_is_that_of_its_mean_loss():
    """Eq. 9 of arXiv 2408.06266 with its anchors, which get no gradient: beta s (1 - s) / 2 of each, over n."""
    objective, made = Objective("kto_pair"), inputs(PAIRS, REFS)
    assert objective.whole_step and not Objective("dpo").whole_step
    result, slopes = gradient(objective, made)
    x_w, x_l = (made.logps - made.ref_logps).T.tolist()
    z_w, z_l = max(0, sum(x_w) / 3), max(0, sum(x_l) / 3)
    for i in range(3):
        s_w, s_l = sigmoid(0.1 * (z_l - x_w[i])), sigmoid(0.1 * (x_l[i] - z_w))
        expected = [-0.1 * s_w * (1 - s_w) / 2 / 3, 0.1 * s_l * (1 - s_l) / 2 / 3]
        assert slopes.logps[i].tolist() == pytest.approx(expected, abs=1e-12)
        assert result.losses[i].item() == pytest.approx((s_w + s_l) / 2, abs=1e-12)
    assert not result.losses.requires_grad and not made.logps.requires_grad


def test_the_gradient_of_an_additive_objective_is_its_slope_over_n():
    _, slopes = gradient(Objective("sft", hyperparameters={"sft.per": "sum"}), inputs([[-1.0], [-2.0], [-3.0], [-4.0]]))
    assert slopes.logps.tolist() == [[-0.25]] * 4


def test_what_an_objective_carries_is_kept_under_its_name_and_given_back():
    objective = Objective("bco_pair:1,dpo:1")
    made = inputs(PAIRS, REFS)
    first = objective(made)
    rewards = [0.1 * (x - r) for row, ref in zip(PAIRS, REFS, strict=True) for x, r in zip(row, ref, strict=True)]
    assert objective.state is None and {name.split(".")[0] for name in first.state} == {"bco_pair"}
    assert first.metrics["bco_pair/delta"].item() == pytest.approx(sum(rewards) / 6, abs=1e-12)
    objective.keep(first)
    moved = objective(inputs([[x + 6.0 for x in row] for row in PAIRS], REFS))
    assert moved.metrics["bco_pair/delta"].item() == pytest.approx(sum(rewards) / 6 + 0.3, abs=1e-12)  # of all so far


def test_a_step_is_divided_by_the_mean_length_of_the_whole_of_it():
    made = inputs([[-6.0], [-9.0]])  # of 2 and 3 tokens
    whole = replace(made, mean_lengths=(6.0,))
    assert Objective("sft")(whole).losses.tolist() == [1.0, 1.5]
    assert Objective("sft")(made).losses.tolist() == pytest.approx([2.4, 3.6], abs=1e-12)
