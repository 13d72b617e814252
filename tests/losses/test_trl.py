"""Objectives without a reference beside the functions of TRL's own CPO and ORPO trainers, in value and gradient.

Needs the extra `peer`: pip install -e '.[dev,peer]', then pytest -m slow tests/losses/test_trl.py.
"""

from types import SimpleNamespace

import pytest
import torch

import losses
from losses import Responses

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
