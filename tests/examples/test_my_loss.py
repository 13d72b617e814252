"""The objective of examples/my_loss.py, as its author would test it."""

import torch

import losses
from losses import Responses, registry


def test_the_gradient_is_that_of_the_formula(monkeypatch):
    """loss = log(1 + exp(by - m)), m = beta (x_w - x_l): d loss / d lp_w = -beta s(by - m), and the negative of it."""
    for name in ("_losses", "_aliases", "_files"):  # what is registered here is gone after the test
        monkeypatch.setattr(registry, name, dict(getattr(registry, name)))
    lead = losses.get("examples/my_loss.py:lead")
    generator = torch.Generator().manual_seed(0)
    lp_w, lp_l, ref_w, ref_l = (-20 * torch.rand(9, dtype=torch.float64, generator=generator) for _ in range(4))
    lp_w.requires_grad_(), lp_l.requires_grad_()
    result = lead(Responses(lp_w, ref_w), Responses(lp_l, ref_l), beta=0.3, by=2.0)
    m = 0.3 * ((lp_w - ref_w) - (lp_l - ref_l)).detach()
    torch.testing.assert_close(result.losses.detach(), torch.log1p(torch.exp(2.0 - m)), rtol=1e-12, atol=0)
    result.losses.sum().backward()
    slope = 0.3 * torch.sigmoid(2.0 - m)
    torch.testing.assert_close(lp_w.grad, -slope, rtol=1e-12, atol=0)
    torch.testing.assert_close(lp_l.grad, slope, rtol=1e-12, atol=0)
