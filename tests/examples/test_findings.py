"""The paper's claims against numbers: each can hold, and each can fail."""

import pytest

from examples import findings
from examples.findings import Trajectory

GAINS = {
    "clair": {"dpo": 4.0, "kto_pair": 6.0, "sft": 1.0, "apo_zero": 8.0, "apo_down": 2.0},
    "judge-on-policy": {"dpo": 3.0, "kto_pair": 4.0, "sft": 0.0, "apo_zero": 5.0, "apo_down": 1.0},
    "judge-off-policy": {"dpo": 0.0, "kto_pair": 1.0, "sft": -2.0, "apo_zero": -1.0, "apo_down": 2.0},
    "stronger-preferred": {"dpo": -1.0, "kto_pair": 1.0, "sft": 4.0, "apo_zero": 3.0, "apo_down": -4.0},
}


def claims(**changed):
    gained = {(data, loss): value for data, of in GAINS.items() for loss, value in of.items()}
    for name, value in changed.items():
        data, _, loss = name.partition("__")
        gained[data.replace("_", "-"), loss] = value
    return findings.of_gains(gained)


def failing(**changed):
    return [claim for claim, is_so in claims(**changed).items() if not is_so]


def test_the_papers_own_order_holds_every_claim_of_its_tables():
    assert len(claims()) == 9 and failing() == []
    assert all(
        findings.of_contrast(
            {"clair": 43.0, "judge-off-policy": 18.0}, {"clair": 1108.0, "judge-off-policy": 1203.0}
        ).values()
    )


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        (
            {"judge_on_policy__kto_pair": 9.0},
            ["CLAIR with APO-zero has the best mean", "APO has the best mean of every data set"],
        ),
        ({"stronger_preferred__dpo": 4.5}, ["DPO is never the best", "SFT beats every contrastive objective"]),
        ({"judge_on_policy__apo_down": 5.5}, ["judge-on-policy): APO-zero beats APO-down"]),
        ({"judge_off_policy__apo_zero": 2.5}, ["APO-down beats APO-zero"]),
    ],
)
def test_a_claim_that_does_not_hold_is_found(changed, words):
    found = failing(**changed)
    assert len(found) == len(words) and all(said in claim for said, claim in zip(words, found, strict=True))


def test_no_loss_on_stronger_preferred_refutes_that_it_can_hurt():
    assert [
        "stronger-preferred can hurt" in claim
        for claim in failing(stronger_preferred__dpo=1.0, stronger_preferred__apo_down=0.5)
    ] == [True]


def test_an_objective_that_loses_on_clair_too_says_nothing_of_stronger_preferred():
    assert any("can hurt" in claim for claim in failing(clair__dpo=-1.0, clair__apo_down=-2.0))
    assert not any("can hurt" in claim for claim in failing(clair__dpo=-1.0))


def test_contrast_needs_both_measures():
    jaccard, levenshtein = {"clair": 43.0, "judge-on-policy": 39.0}, {"clair": 1300.0, "judge-on-policy": 1258.0}
    assert list(findings.of_contrast(jaccard, levenshtein).values()) == [False]


def moving(chosen, rejected, epochs=(1.0, 2.0)):
    return Trajectory({"chosen": [], "rejected": []}, {"chosen": chosen, "rejected": rejected}, list(epochs))


def test_claims_on_trajectories():
    zero, down = moving([0.5, 1.0], [0.0, -0.5]), moving([-0.5, -2.0], [-1.0, -4.0])
    dpo = moving([0.4, -1.0], [-0.1, -3.0])
    assert all(findings.of_trajectories(zero, down, dpo).values())
    swapped = findings.of_trajectories(down, zero, dpo)
    assert [claim for claim, is_so in swapped.items() if is_so] == [
        "all three widen the margin between winning and losing rewards"
    ]


def test_what_was_measured_inside_the_first_epoch_says_what_dpo_is_near_to_in_it():
    """At step 0 all rewards are 0; in the first epoch DPO is near to APO-zero, at its very end to APO-down."""
    epochs = (0.0, 0.5, 1.0, 2.0)
    zero = moving([0.0, 0.5, 0.6, 0.9], [0.0, 0.1, 0.1, 0.0], epochs)
    down = moving([0.0, -0.5, -0.2, -1.0], [0.0, -0.6, -0.4, -2.0], epochs)
    dpo = moving([0.0, 0.5, 0.1, -0.9], [0.0, 0.1, -0.2, -1.5], epochs)
    near = ("DPO is nearer to APO-zero in the first epoch", "DPO is nearer to APO-down in the last")
    found = findings.of_trajectories(zero, down, dpo)
    assert [found[claim] for claim in near] == [True, True]
    at_ends = [moving(t.rewards["chosen"][2:], t.rewards["rejected"][2:]) for t in (zero, down, dpo)]
    assert [findings.of_trajectories(*at_ends)[claim] for claim in near] == [False, True]


def test_the_papers_own_means_do_not_hold_every_claim_that_its_text_makes():
    """On the judge's on-policy pairs and on stronger-preferred ones APO-down is ahead in the mean."""
    found = findings.of_paper()
    assert len(findings.PAPER) == 20 and len(found) == 9
    assert [claim for claim, is_so in found.items() if not is_so] == [
        "winners better than the model (judge-on-policy): APO-zero beats APO-down",
        "winners better than the model (stronger-preferred): APO-zero beats APO-down",
    ]
