"""Objectives beside the functions of TRL's own CPO, ORPO and DPO trainers, in value and gradient.

Needs the extra `peer`: pip install -e '.[dev,peer]', then pytest -m slow tests/losses/test_trl.py.
"""

from collections import defaultdict
from types import SimpleNamespace

import pytest
import torch

import losses
from losses import Responses, TokenResponses

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]  # the warnings are those of the peer's packages

LENGTHS = (torch.tensor([3, 40, 7, 512, 1]), torch.tensor([9, 31, 7, 200, 4]))
LOGPS = torch.tensor([[-4.0, -55.0, -9.5, -700.0, -0.3], [-20.0, -30.0, -9.5, -450.0, -2.0]], dtype=torch.float64)


def settings(**more):
    """What the trainers' methods read of themselves."""
    accelerator = SimpleNamespace(device=torch.device("cpu"))
    return SimpleNamespace(accelerator=accelerator, alpha=0.0, label_smoothing=0.0, **more)


def ours(name, **arguments):
    """(losses, gradient) of our function."""
    logps = LOGPS.clone().requires_grad_()
    columns = [Responses(lp, None, n) for lp, n in zip(logps, LENGTHS, strict=True)]
    found = losses.get(name)(*columns, **arguments).losses
    return found.detach(), torch.autograd.grad(found.sum(), logps)[0]


def theirs(method, trainer, *, per_token):
    """The same of a method of theirs, which takes sums or means of log-probs as the trainer gives them."""
    logps = LOGPS.clone().requires_grad_()
    given = [lp / n if per_token else lp for lp, n in zip(logps, LENGTHS, strict=True)]
    found = method(trainer, *given)[0]
    return found.detach(), torch.autograd.grad(found.sum(), logps)[0]


def test_simpo_cpo_and_slic_are_those_of_cpos_trainer():
    cpo = pytest.importorskip("trl.experimental.cpo").CPOTrainer.cpo_loss
    cases = [
        ("simpo", {"beta": 2.5, "gamma": 1.375}, {"loss_type": "simpo", "beta": 2.5, "simpo_gamma": 1.375}, True),
        ("cpo", {"beta": 0.1, "alpha": 0.0}, {"loss_type": "sigmoid", "beta": 0.1}, False),
        ("slic", {"delta": 1.0, "lam": 0.0}, {"loss_type": "hinge", "beta": 1.0}, False),
    ]
    for name, arguments, trainer, per_token in cases:
        expected = theirs(cpo, settings(**trainer), per_token=per_token)
        for a, b in zip(ours(name, **arguments), expected, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)


def test_orpos_odds_are_those_of_its_trainer():
    orpo = pytest.importorskip("trl.experimental.orpo").ORPOTrainer.odds_ratio_loss
    value, slope = theirs(orpo, settings(beta=0.1), per_token=True)  # a gain, in float32
    found, gradient = ours("orpo", beta=0.1, alpha=0.0)
    torch.testing.assert_close(found, -value.double(), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(gradient, -slope, rtol=1e-4, atol=1e-6)


# DPO's trainer: one function from models to the loss, given models that answer with log-probs.

N, LONGEST = 6, 9
GIVEN = torch.tensor([[3, 9, 1, 5, 7, 2], [9, 2, 1, 4, 7, 8]])  # lengths of winners and losers


def made_up():
    """Log-probs of policy and reference and log-sums of squares, [2 N, LONGEST], winners first; 0 in the padding."""
    g = torch.Generator().manual_seed(0)
    mask = torch.arange(LONGEST) < GIVEN.flatten()[:, None]
    logps, ref_logps, squares = (-3 * torch.rand(3, 2 * N, LONGEST, generator=g)) * mask
    return logps, ref_logps, squares, mask


def as_dpos_trainer_has_it(**more):
    """(mean loss, gradient [2 N, LONGEST], what is logged) of TRL's DPO trainer with these settings."""
    logps, ref_logps, squares, mask = made_up()
    logps.requires_grad_()

    def outputs(values):
        like = {"entropy": squares, "mean_logits": squares, "is_top1": mask, "log_sum_sq_probs": squares}
        return lambda **_: SimpleNamespace(log_probs=values, **like)

    def same(value):
        return value

    completion = torch.cat([torch.zeros(2 * N, 1), mask], dim=1).long()  # behind a prompt of one token
    settings = {
        "beta": 0.1, "ld_alpha": None, "f_divergence_type": "reverse_kl", "f_alpha_divergence_coef": 0.5,
        "use_weighting": False, "label_smoothing": 0.0, "loss_types": ["sigmoid"], "loss_weights": [1.0],
        "aux_loss_enabled": False, "precompute_ref_logps": False,
        "model": torch.nn.Identity(), "ref_model": outputs(ref_logps),
        "args": SimpleNamespace(gradient_checkpointing_kwargs=None),
        "_metrics": {"train": defaultdict(list)}, "_total_train_tokens": 0, "_tp_size": 1,
        "accelerator": SimpleNamespace(device=torch.device("cpu"), gather=same, gather_for_metrics=same),
    }  # fmt: skip
    settings["model"].is_gradient_checkpointing = False
    inputs = {"input_ids": completion, "attention_mask": completion, "completion_mask": completion}
    trainer = pytest.importorskip("trl.trainer.dpo_trainer").DPOTrainer
    loss = trainer._compute_loss(SimpleNamespace(**(settings | more)), outputs(logps), inputs, return_outputs=False)
    gradient = torch.autograd.grad(loss, logps)[0] * mask  # padding is of no model's log-probs
    logged = {name: values[-1] for name, values in settings["_metrics"]["train"].items()}
    return loss.detach(), gradient, logged


def as_ours(name, **arguments):
    """The same of an objective of ours."""
    logps, ref_logps, squares, mask = made_up()
    logps.requires_grad_()
    columns = []
    for side in (slice(0, N), slice(N, 2 * N)):
        here = mask[side]
        sequence, position = here.nonzero(as_tuple=True)
        tokens = [values[side][here].double() for values in (logps, ref_logps, squares)]
        given = TokenResponses(*tokens[:2], sequence, position, here.sum(dim=1), log_sum_squares=tokens[2])
        sums = [given.per_sequence(values) for values in tokens[:2]]
        columns.append(given if losses.get(name).level == "token" else Responses(*sums, given.lengths))
    result = losses.get(name)(*columns, **arguments)
    found = result.losses.mean()
    rewards = {"chosen": result.chosen_rewards.mean().item(), "rejected": result.rejected_rewards.mean().item()}
    return found.detach().float(), torch.autograd.grad(found, logps)[0], rewards


@pytest.mark.parametrize(
    ("name", "arguments", "trainer"),
    [
        ("dpo", {}, {}),
        ("ld_dpo", {"alpha": 0.3}, {"ld_alpha": 0.3}),
        ("ld_dpo", {"alpha": 0.0, "beta": 1.0}, {"ld_alpha": 0.0, "beta": 1.0}),
        ("wpo", {}, {"use_weighting": True}),
        ("wpo", {"beta": 1.0}, {"use_weighting": True, "beta": 1.0}),
        ("f_dpo", {"divergence": "forward_kl"}, {"f_divergence_type": "forward_kl"}),
        ("f_dpo", {"divergence": "js_divergence", "beta": 1.0}, {"f_divergence_type": "js_divergence", "beta": 1.0}),
        ("f_dpo", {"divergence": "alpha_divergence"}, {"f_divergence_type": "alpha_divergence"}),
        (
            "f_dpo",
            {"divergence": "alpha_divergence", "alpha": 0.3},
            {"f_divergence_type": "alpha_divergence", "f_alpha_divergence_coef": 0.7},
        ),
        ("ln_dpo", {"beta": 2.0}, {"loss_types": ["sigmoid_norm"], "beta": 2.0}),
    ],
)
def test_objectives_of_pairs_are_those_of_dpos_trainer(name, arguments, trainer):
    expected, slope, logged = as_dpos_trainer_has_it(**trainer)
    found, gradient, rewards = as_ours(name, **arguments)
    if name in ("dpo", "ln_dpo"):
        assert rewards == pytest.approx({side: logged[f"rewards/{side}"] for side in rewards}, abs=1e-5)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(gradient, slope, rtol=1e-4, atol=1e-6)
