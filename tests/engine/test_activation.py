"""A gate's product: the same bits as the plain one, and no more kept than it is made of."""

import pytest
import torch

from engine.model.activation import ACTIVATIONS, gated


@pytest.mark.parametrize("name", ACTIVATIONS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_results_and_gradients_are_those_of_the_plain_product(name, dtype):
    torch.manual_seed(0)
    act = ACTIVATIONS[name]
    gate, up, dy = (3 * torch.randn(37, 50, dtype=dtype) for _ in range(3))
    gate.requires_grad_()
    up.requires_grad_()
    plain, found = act(gate) * up, gated(act, gate, up)
    assert torch.equal(plain, found)
    of_plain, of_found = (torch.autograd.grad(y, (gate, up), dy) for y in (plain, found))
    assert all(torch.equal(a, b) and a.abs().max() > 0 for a, b in zip(of_plain, of_found, strict=True))


def test_nothing_is_kept_but_gate_and_up():
    gate, up = (torch.randn(5, 7).requires_grad_() for _ in range(2))
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda x: kept.append(x) or x, lambda x: x):
        gated(ACTIVATIONS["silu"], gate, up)
    assert [x.data_ptr() for x in kept] == [gate.data_ptr(), up.data_ptr()]


def test_the_gradient_is_that_of_finite_differences():
    gate, up = (torch.randn(3, 4, dtype=torch.float64).requires_grad_() for _ in range(2))
    for act in ACTIVATIONS.values():
        assert torch.autograd.gradcheck(lambda g, u, act=act: gated(act, g, u), (gate, up))
