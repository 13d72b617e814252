"""KTO's mismatched sequences are walked without gradient, ahead of the step, and its numbers are those of one graph."""

import json

import numpy as np
import pytest
import torch

from engine import train, weights
from engine.config import TrainConfig
from tests import tiny
from tests.engine.padded import padded_logps
from tests.metrics import lines
from tests.proofs import Watch
from tests.rows import id_rows

N = 6


@pytest.fixture
def job(tmp_path):
    """A function that trains with KTO on labelled rows, and gives its lines; what it did is in `watch`."""
    model = tiny.write_model(tmp_path / "model", vocab_size=101)
    labelled = [row | {"label": i != 2} for i, row in enumerate(id_rows(N, form="unpaired"))]  # what rises lifts others
    rows = tiny.write_rows(tmp_path / "rows.jsonl", labelled)
    count = iter(range(100))

    def go(**changes):
        told = {"model": str(model), "data": str(rows), "out": str(tmp_path / f"run{next(count)}"), "loss": "kto"}
        told |= {"lr": 1e-3, "batch_size": N, "epochs": 3, "shuffle": False, "max_grad_norm": 0.0}
        go.watch = Watch()
        return lines(train.run(TrainConfig(**told | changes), go.watch.hooks).out)

    go.model, go.rows, go.tmp = model, rows, tmp_path
    return go


def of_one_graph(before, policy, examples, beta=0.1):
    """(loss, anchor, norm of the gradient) of KTO where every sequence is in the graph, the anchor detached from it."""
    others = [e._replace(responses=examples[(i + 1) % N].responses) for i, e in enumerate(examples)]
    with torch.no_grad():
        ref, ref_others = (padded_logps(before, rows) for rows in (examples, others))
    x, z = padded_logps(policy, examples) - ref, (padded_logps(policy, others) - ref_others).mean()
    z = z.clamp(min=0).detach()
    signs = torch.tensor([1.0 if e.label else -1.0 for e in examples], dtype=torch.float64)
    loss = torch.sigmoid(-beta * signs * (x - z)).mean()
    loss.backward()
    return loss.item(), z.item(), torch.sqrt(sum(p.grad.square().sum() for p in policy.parameters())).item()


@pytest.mark.parametrize("micro_tokens", [1024, 20])
def test_loss_anchor_and_gradient_are_those_of_one_graph(job, micro_tokens):
    """In the third step, where the policy has moved away from the reference and the anchor is not 0."""
    found = job(micro_tokens=micro_tokens, keep_checkpoints=None)
    rows = [json.loads(line) for line in job.rows.read_text().splitlines()]
    examples = [tiny.Example("", np.array(r["prompt_ids"]), (np.array(r["completion_ids"]),), r["label"]) for r in rows]
    assert len({tuple(r["prompt_ids"]) for r in rows}) == N
    before, policy = weights.load(job.model).double(), weights.load(job.tmp / "run0/epoch-02").double()
    loss, z, norm = of_one_graph(before, policy, examples)
    assert z > 0.1 and found[2]["kl"] == pytest.approx(z, abs=1e-3)
    assert found[2]["loss"] == pytest.approx(loss, abs=1e-5)
    assert found[2]["grad_norm"] == pytest.approx(norm, rel=1e-3)


def test_mismatched_sequences_have_no_backward_pass_and_their_reference_alone_walks_in_later_epochs(job):
    job()
    assert [(one.has_gradient, one.walks_reference, one.n_sequences) for one in job.watch.passes] == [
        (False, True, N), (True, True, N), (False, True, N), (True, False, N), (False, True, N), (True, False, N),
    ]  # fmt: skip


def test_held_out_rows_have_a_loss_and_a_kl(job, tmp_path):
    pairs = tiny.write_rows(tmp_path / "pairs.jsonl", id_rows(5, seed=3))
    for heldout in (pairs, tiny.write_rows(tmp_path / "labelled.jsonl", id_rows(5, seed=3, form="unpaired"))):
        found = job(eval_data=str(heldout))
        assert found[0].keys() >= {"eval_loss", "eval_kl", "eval_rewards/chosen", "eval_logratios/chosen"}
        assert found[-1]["eval_kl"] >= 0 and found[-1]["eval_loss"] != 0.5
        assert found[-1]["eval_rewards/chosen"] == pytest.approx(0.1 * found[-1]["eval_logratios/chosen"], abs=1e-12)


def test_a_loss_of_held_out_rows_is_that_of_the_step_where_they_are_trained_on(job):
    """Measured behind step 1, the rows of step 2: the same weights, the same rows, the same mismatched sequences."""
    found = job(eval_data=str(job.rows))
    for name in ("loss", "kl", "rewards/chosen", "rewards/rejected", "logratios/margins", "logps/chosen"):
        assert found[0][f"eval_{name}"] == pytest.approx(found[1][name], abs=1e-6), name
    assert found[1]["kl"] != found[2]["kl"]
