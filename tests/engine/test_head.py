"""The log-prob head against log_softmax over all logits."""

import pytest
import torch

from engine.model.head import Head


def both(chunk_rows, dtype=torch.float64, rows=23, hidden=12, vocabulary=50):
    """(logps, d hidden, d weight) by the head and by log_softmax."""
    g = torch.Generator().manual_seed(0)
    x = torch.randn(rows, hidden, dtype=dtype, generator=g)
    w = torch.randn(vocabulary, hidden, dtype=dtype, generator=g)
    targets = torch.randint(0, vocabulary, (rows,), generator=g)
    slopes = torch.randn(rows, dtype=torch.float64, generator=g)
    head = Head(None, hidden)
    head.chunk_bytes = chunk_rows * vocabulary * 4
    found = []
    for logps_of in (
        lambda x, w: head(x, targets, w),
        lambda x, w: torch.log_softmax(x @ w.T, dim=1).gather(1, targets[:, None])[:, 0],
    ):
        a, b = x.clone().requires_grad_(), w.clone().requires_grad_()
        logps = logps_of(a, b)
        (logps * slopes.to(logps.dtype)).sum().backward()
        found.append((logps.detach(), a.grad, b.grad))
    return found


@pytest.mark.parametrize("chunk_rows", [1, 5, 23, 1000])
def test_chunks_change_neither_value_nor_gradient(chunk_rows):
    ours, expected = both(chunk_rows)
    for a, b in zip(ours, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-12)


def test_no_rows_give_no_log_probs_and_a_zero_gradient():
    w = torch.randn(50, 12, requires_grad=True)
    x = torch.randn(0, 12, requires_grad=True)
    logps = Head(None, 12)(x, torch.zeros(0, dtype=torch.int64), w)
    logps.sum().backward()
    assert logps.shape == (0,) and not w.grad.any()


@pytest.mark.parametrize("chunk_rows", [4, 1000])
def test_bf16_inputs_give_float32_log_probs(chunk_rows):
    ours, _ = both(chunk_rows, dtype=torch.bfloat16)
    g = torch.Generator().manual_seed(0)
    x = torch.randn(23, 12, dtype=torch.bfloat16, generator=g).float()
    w = torch.randn(50, 12, dtype=torch.bfloat16, generator=g).float()
    targets = torch.randint(0, 50, (23,), generator=g)
    expected = torch.log_softmax(x @ w.T, dim=1).gather(1, targets[:, None])[:, 0]
    assert ours[0].dtype == torch.float32  # rounding the logits to bf16 would be off by 1e-2
    torch.testing.assert_close(ours[0], expected, rtol=0, atol=1e-5)
    assert ours[1].dtype == ours[2].dtype == torch.bfloat16


def test_memory_of_a_pass_is_bounded_by_the_chunk():
    """The largest tensor that the backward pass keeps is the inputs, not [rows, vocabulary]."""
    sizes = []
    head = Head(None, 8)
    head.chunk_bytes = 10 * 4000 * 4
    x, w = torch.randn(200, 8, requires_grad=True), torch.randn(4000, 8, requires_grad=True)
    with torch.autograd.graph.saved_tensors_hooks(lambda t: sizes.append(t.numel()) or t, lambda t: t):
        head(x, torch.zeros(200, dtype=torch.int64), w)
    assert max(sizes) == w.numel() < 200 * 4000
