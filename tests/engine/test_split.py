"""Split masters against torch.optim.RMSprop and AdamW on a float32 master."""

import json

import pytest
import torch

from engine import weights
from engine.optim import split_master as split
from engine.optim.formulas import ADAMW, RMSPROP
from engine.optim.split_master import SplitMasterWeights, SplitOptimizer
from engine.step import NO_HOOKS
from engine.train import Hooks, TrainConfig, run
from system import RunError
from tests import tiny
from tests.proofs import Watch, counted
from tests.rows import id_rows

# every exponent, both signs, the middles between two bf16 numbers, zeros
EVERY_HIGH = (torch.arange(-(2**15), 2**15, dtype=torch.int32) << 16).view(torch.float32)
EVERY_LOW = (torch.arange(2**16, dtype=torch.int32) + 0x3F800000).view(torch.float32)


def finite(values):
    return values[values.isfinite()]


@pytest.mark.parametrize("values", [finite(EVERY_HIGH), EVERY_LOW, -EVERY_LOW, 0.02 * torch.randn(2**16)])
def test_the_halves_are_the_master_bit_for_bit(values):
    high, low = split.split(values)
    assert torch.equal(split.join(high, low).view(torch.int32), values.view(torch.int32))


def test_the_high_half_is_the_nearest_bf16_and_half_goes_away_from_zero():
    values = 0.02 * torch.randn(2**18, generator=torch.Generator().manual_seed(0))
    high, low = split.split(values)
    differs = high != values.bfloat16()
    assert (low[differs] == -(2**15)).all()  # what is left is a half, to the bit
    assert differs.float().mean() < 1e-4


@pytest.mark.parametrize("chunk", [split.CHUNK, 512])
@pytest.mark.parametrize("clips", [False, True])
@pytest.mark.parametrize("in_backward", [False, True])
@pytest.mark.parametrize("optimizer", ["rmsprop", "adamw"])
def test_twenty_steps_are_those_of_torch_on_float32_masters(optimizer, clips, in_backward, chunk, monkeypatch):
    if clips and in_backward:
        pytest.skip("the norm is known too late")
    monkeypatch.setattr(split, "CHUNK", chunk)
    model = tiny.random_llama(std=0.02).bfloat16()
    masters = SplitMasterWeights(model)
    plain = {}
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, p in model.named_parameters():
            rows = 0.02 * torch.randn(p.shape, generator=generator)
            masters.copy_into(p, rows)
            plain[name] = torch.nn.Parameter(rows.clone())
    assert any(p.numel() > chunk for p in model.parameters()) == (chunk == 512)
    formula, theirs, options = {
        "rmsprop": (RMSPROP, torch.optim.RMSprop, {"alpha": 0.99, "eps": 1e-8}),
        "adamw": (ADAMW, torch.optim.AdamW, {"betas": (0.8, 0.99), "eps": 1e-7, "weight_decay": 0.1}),
    }[optimizer]
    ours = SplitOptimizer(masters, formula, lr=3e-5, moments=torch.float32, **options)
    if in_backward:
        ours.step_in_backward()
    theirs = theirs(plain.values(), lr=3e-5, **options)
    for _ in range(20):
        loss = sum((p.float() * torch.randn(p.shape, generator=generator)).sum() for p in model.parameters())
        gradients = torch.autograd.grad(loss, list(model.parameters()), retain_graph=True)
        for p, g in zip(plain.values(), gradients, strict=True):
            p.grad = g.float()
        norm = torch.nn.utils.get_total_norm([p.grad for p in plain.values()])
        loss.backward()
        assert all((p.grad is None) == in_backward for p in model.parameters())
        torch.testing.assert_close(ours.grad_norm(), norm, rtol=1e-6, atol=0)
        if clips:
            ours.factor = torch.tensor([0.5])
            for p in plain.values():
                p.grad *= 0.5
        ours.step()
        theirs.step()
        ours.zero_grad()
        for name, p in model.named_parameters():
            assert torch.equal(masters.full_tensor(p), plain[name]), name


def test_stochastic_rounding_has_no_bias_and_depends_on_the_key():
    values = torch.full((2**20,), 1.0 + 2**-10)  # an eighth of the way from 1 to the next bf16 number
    places = torch.arange(len(values))
    found = split.round_stochastically(values, places, 7).float()
    assert set(found.tolist()) == {1.0, 1.0 + 2**-7}
    share = (found > 1).float().mean().item()
    assert abs(share - 1 / 8) < 5 * (1 / 8 * 7 / 8 / len(values)) ** 0.5
    assert not torch.equal(found, split.round_stochastically(values, places, 8).float())
    halves = found.view(2, -1)
    together = (halves > 1).all(dim=0).float().mean().item()  # neighbours in the hash are independent
    assert abs(together - 1 / 64) < 5 * (1 / 64 / 2**19) ** 0.5


def trained(tmp_path, name, watch=NO_HOOKS, **changes):
    model, rows = tmp_path / "model", tmp_path / "rows.jsonl"
    if not model.exists():
        tiny.write_model(model, std=0.05)
        tiny.write_rows(rows, id_rows(22))
    settings = {"epochs": 2, "batch_size": 4, "lr": 1e-4, "master_weights": "split", "max_prompt_tokens": 64} | changes
    result = run(TrainConfig(model=str(model), data=(str(rows),), out=str(tmp_path / name), **settings), watch)
    lines = [json.loads(line) for line in (tmp_path / name / "metrics.jsonl").read_text().splitlines()]
    return result, lines


@pytest.mark.parametrize(
    "settings",
    [
        {"square_avg": "bfloat16"},
        {"max_grad_norm": 0.0},
        pytest.param({}, marks=pytest.mark.slow),
        pytest.param({"recompute_blocks": 2}, marks=pytest.mark.slow),
    ],
)
def test_a_run_stopped_and_gone_on_with_ends_at_the_same_bits(tmp_path, settings):
    whole, lines = trained(tmp_path, "whole", **settings)
    trained(tmp_path, "parts", stop_after=3, **settings)
    watch = Watch()
    parts, again = trained(tmp_path, "parts", watch.hooks, resume=True, **settings)
    assert watch.steps[0] == 4 and len(watch.steps) == len(lines) - 3
    assert [line["loss"] for line in again] == [line["loss"] for line in lines]
    a, b = (weights.load(r.checkpoints[-1]) for r in (whole, parts))
    for p, q in zip(a.parameters(), b.parameters(), strict=True):
        assert torch.equal(p, q)


def test_an_optimizer_inside_the_backward_pass_takes_one_step_a_step(tmp_path, monkeypatch):
    """Whatever a step's tokens: a second backward pass would update every parameter a second time."""
    update, n_updates = SplitOptimizer._update, []

    def counted(optimizer, parameter):
        n_updates.append(parameter)
        update(optimizer, parameter)

    monkeypatch.setattr(SplitOptimizer, "_update", counted)
    result, _ = trained(tmp_path, "run", max_grad_norm=0.0, micro_tokens=1)
    n_parameters = len(list(weights.load(result.checkpoints[-1]).parameters()))
    assert len(n_updates) == result.n_steps * n_parameters


def test_stepping_inside_the_backward_pass_changes_no_bit(tmp_path, monkeypatch):
    taken = counted(monkeypatch, SplitOptimizer, "_take")
    inside, lines = trained(tmp_path, "inside", max_grad_norm=0.0)
    n_taken = len(taken)
    after, others = trained(tmp_path, "after", max_grad_norm=1e9)  # beyond any gradient's norm
    n_parameters = len(list(weights.load(after.checkpoints[-1]).parameters()))
    assert (n_taken, len(taken)) == (inside.n_steps * n_parameters, n_taken)
    assert [line["loss"] for line in lines] == [line["loss"] for line in others]
    a, b = (weights.load(r.checkpoints[-1]) for r in (inside, after))
    assert all(torch.equal(p, q) for p, q in zip(a.parameters(), b.parameters(), strict=True))


def test_a_gradient_that_is_not_finite_is_not_said_to_have_left_the_weights(tmp_path, monkeypatch):
    monkeypatch.setattr(split, "_norm", lambda gradients: torch.tensor(torch.inf))
    with pytest.raises(RunError, match="not finite; the weights in memory are lost; states and checkpoints are whole"):
        trained(tmp_path, "run", max_grad_norm=0.0)


def test_a_float32_checkpoint_is_read_and_written_with_every_bit(tmp_path):
    result, _ = trained(tmp_path, "still", lr=1e-30, epochs=1, save_dtype="float32")
    before, after = weights.load(tmp_path / "model"), weights.load(result.checkpoints[-1])
    for p, q in zip(before.parameters(), after.parameters(), strict=True):
        assert torch.equal(p, q)


def test_split_masters_move_as_sharded_ones_do(tmp_path):
    """Both compute in bf16 with a float32 master: the gradients differ by how they are added up."""
    made, begin = [], Hooks(begin=lambda training: made.append(training.masters is not None))
    _, lines = trained(tmp_path, "split", begin)
    _, others = trained(tmp_path, "whole", begin, master_weights="float32", dtype="bfloat16")
    assert made == [True, False]
    for a, b in zip(lines, others, strict=True):
        assert a["loss"] == pytest.approx(b["loss"], abs=2e-3)
        assert a["grad_norm"] == pytest.approx(b["grad_norm"], rel=0.05)
