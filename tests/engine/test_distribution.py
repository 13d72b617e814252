"""Entropies and divergences of whole next-token distributions against torch's own on whole logits."""

import subprocess
import sys
from contextlib import contextmanager, nullcontext

import pytest
import torch

from engine.model import DIVERGENCES, STATISTICS, Head, distribution
from engine.model.distribution import OtherModel

ROWS, HIDDEN, VOCABULARY = 37, 16, 211


def sides(dtype=torch.float64, *, seed=0, apart=0.7):
    """Final hidden rows and head weights of a policy and a reference, and targets."""
    generator = torch.Generator().manual_seed(seed)
    made = [torch.randn(n, HIDDEN, dtype=torch.float64, generator=generator) for n in (ROWS, VOCABULARY) * 2]
    x, w, y, u = made
    y, u = x + apart * y, w + apart * u
    targets = torch.randint(VOCABULARY, (ROWS,), generator=generator)
    return [t.to(dtype) for t in (x, w, y, u)], targets


def by_torch(x, w, y, u):
    """The same from whole logits, by autograd alone."""
    lp, lq = (torch.log_softmax(a.double() @ b.double().T, dim=1) for a, b in ((x, w), (y, u)))
    p, q = lp.exp(), lq.exp()
    return {
        "entropy": torch.distributions.Categorical(logits=lp).entropy(),
        "log_sum_squares": torch.logsumexp(2 * lp, dim=1),
        "kl_ref_policy": torch.nn.functional.kl_div(lp, q, reduction="none").sum(dim=1),
        "kl_policy_ref": (p * (lp - lq)).sum(dim=1),
    }


def found_by(head, x, y, u, targets, names):
    other = OtherModel(y, lambda: nullcontext(u)) if set(names) & set(DIVERGENCES) else None
    return head(x, targets, statistics=names, other=other)


def head_of(w, chunk_rows=None):
    head = Head(VOCABULARY, HIDDEN).to(w.dtype)
    head.weight.data.copy_(w)
    if chunk_rows is not None:
        head.chunk_bytes = 4 * VOCABULARY * chunk_rows
    return head


@pytest.mark.parametrize("chunk_rows", [1, 6, 100, None])
@pytest.mark.parametrize("names", [*((name,) for name in STATISTICS), STATISTICS], ids="+".join)
@pytest.mark.parametrize(("dtype", "atol"), [(torch.float64, 1e-12), (torch.float32, 1e-6)])
def test_values_and_gradients_are_those_of_whole_float64_logits(names, dtype, atol, chunk_rows):
    (x, w, y, u), targets = sides(dtype)
    x.requires_grad_()
    head = head_of(w, chunk_rows)
    found = found_by(head, x, y, u, targets, names)
    wide = [t.detach().double().requires_grad_() for t in (x, w)]
    expected = by_torch(*wide, y, u)
    logps = torch.log_softmax(wide[0] @ wide[1].T, dim=1).gather(1, targets[:, None])[:, 0]
    expected = torch.stack([logps, *(expected[name] for name in names)])
    assert found.dtype == dtype
    torch.testing.assert_close(found.double(), expected, rtol=0, atol=atol * 10)  # log-probs reach 40 nats
    slopes = torch.randn(expected.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1)) / ROWS
    gradients = torch.autograd.grad(found, (x, head.weight), slopes.to(dtype))
    for got, wanted in zip(gradients, torch.autograd.grad(expected, wide, slopes), strict=True):
        torch.testing.assert_close(got.double(), wanted, rtol=0, atol=atol)


def test_log_probs_are_the_same_bits_with_and_without_statistics():
    (x, w, y, u), targets = sides(torch.float32)
    head = head_of(w)
    assert torch.equal(found_by(head, x, y, u, targets, STATISTICS)[0], head(x, targets))


def test_equal_models_have_no_divergence_at_all():
    (x, w, _, _), targets = sides(torch.float32)
    found = found_by(head_of(w), x, x.clone(), w.clone(), targets, DIVERGENCES)
    assert torch.equal(found[1:], torch.zeros(2, ROWS))


def test_the_reference_gets_no_gradient():
    (x, w, y, u), targets = sides()
    y.requires_grad_(), u.requires_grad_()
    found_by(head_of(w), x, y, u, targets, STATISTICS).sum().backward()
    assert y.grad is None and u.grad is None


def test_the_references_weight_is_held_while_it_is_used_and_no_longer():
    """Once in the forward pass and once in the backward pass, also where there are no rows."""
    (x, w, y, u), targets = sides()
    seen = []

    @contextmanager
    def held():
        seen.append("taken")
        yield u
        seen.append("given back")

    for rows in (slice(0, ROWS), slice(0, 0)):
        found = head_of(w)(x[rows], targets[rows], statistics=DIVERGENCES, other=OtherModel(y[rows], held))
        assert seen == ["taken", "given back"]
        found.sum().backward()
        assert seen == ["taken", "given back"] * 2
        seen.clear()


@pytest.mark.parametrize("names", [("entropy", "log_sum_squares"), STATISTICS], ids=["policy", "both"])
def test_never_more_than_a_chunk_of_logits_is_held(monkeypatch, names):
    """Counted by what is made: every product gives a piece of logits, of at most a chunk's share."""
    sizes = []
    made = distribution.wide_logits
    monkeypatch.setattr(distribution, "wide_logits", lambda *a: sizes.append(len(a[0])) or made(*a))
    (x, w, y, u), targets = sides()
    x.requires_grad_()
    n = distribution.BUFFERS if len(names) == 2 else distribution.BUFFERS_OF_TWO
    found_by(head_of(w, chunk_rows=4 * n), x, y, u, targets, names).sum().backward()
    n_pieces, models = -(-ROWS // 4), 1 + (len(names) > 2)
    assert max(sizes) == 4 and len(sizes) == 2 * models * n_pieces


PEAK = """
import resource, sys, torch
from contextlib import nullcontext
from engine.model import STATISTICS, Head
from engine.model.distribution import OtherModel

n_rows, vocabulary, hidden = int(sys.argv[1]), 16_000, 64
head = Head(vocabulary, hidden)
torch.nn.init.normal_(head.weight, std=0.02)
head.chunk_bytes = 16 * 2**20
x, y = (torch.randn(n_rows, hidden) for _ in range(2))
other = OtherModel(y, lambda: nullcontext(head.weight.detach() + 0.01))
x.requires_grad_()
head(x, torch.zeros(n_rows, dtype=torch.int64), statistics=STATISTICS, other=other).sum().backward()
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)
"""


@pytest.mark.slow
def test_the_peak_does_not_grow_with_the_number_of_chunks():
    """Four times the rows, none of whose [rows, vocabulary] of 183 MB more is held, forward or backward."""
    peaks = []
    for n_rows in (1000, 4000):
        command = [sys.executable, "-c", PEAK, str(n_rows)]
        peaks.append(float(subprocess.run(command, capture_output=True, text=True, check=True).stdout))
    assert peaks[1] - peaks[0] < 25, peaks
