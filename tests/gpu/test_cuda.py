"""What only a GPU can show: each kernel against float32 or float64, and whole runs. Part of ./launch.sh gpu-checks."""

import json
from contextlib import nullcontext

import pytest
import torch
from torch._dynamo.utils import counters

from data.forest import pack
from engine import score, weights
from engine.config import TrainConfig
from engine.distributed.ranks import Ranks
from engine.model import attention
from engine.model.distribution import STATISTICS, OtherModel
from engine.model.fused_forward import FusedForward
from engine.model.head import Head
from engine.model.logits import wide_logits
from engine.optim import optimizers as optim
from engine.optim import split_master as split
from engine.optim.formulas import ADAMW, RMSPROP, adamw_numbers, rmsprop_numbers
from engine.optim.fused_adamw import FusedAdamW
from engine.optim.fused_rmsprop import FusedRMSprop
from engine.optim.split_master import SplitMasterWeights, SplitOptimizer
from engine.train import run
from tests import tiny
from tests.rows import id_rows

pytestmark = [
    pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU, or ./launch.sh gpu-checks does not run"),
    pytest.mark.filterwarnings("ignore"),
]

LENGTHS = [(162, 348, 349), (30, 512, 1), (1, 1, 1), (512, 512, 512), (77, 40, 300), (200, 1, 17)]


def error(found, expected):
    """Relative, of the whole."""
    return ((found.double() - expected.double()).norm() / expected.double().norm()).item()


def test_one_kernel_call_attends_as_masks_in_float32_do():
    """Unequal lengths of queries and keys, 32 heads on 8, forward and backward."""
    forest = pack(tiny.random_examples(LENGTHS)).to("cuda")
    generator = torch.Generator("cuda").manual_seed(0)
    q, k, v, weight = (
        torch.randn(forest.n_tokens, n, 128, device="cuda", generator=generator).bfloat16() for n in (32, 8, 8, 32)
    )
    found, gradients = [], []
    for attend, dtype in ((attention.varlen(forest), torch.bfloat16), (attention.dense(forest), torch.float32)):
        leaves = [x.to(dtype, copy=True).requires_grad_() for x in (q, k, v)]
        made = attend(*leaves)
        (made * weight).sum().backward()
        found.append(made)
        gradients.append([x.grad for x in leaves])
    assert error(*found) < 4e-3
    for ours, exact in zip(*gradients, strict=True):
        assert error(ours, exact) < 8e-3


def test_the_kernels_backward_pass_repeats_within_its_rounding():
    forest = pack(tiny.random_examples(LENGTHS)).to("cuda")
    generator = torch.Generator("cuda").manual_seed(0)
    q, k, v, weight = (
        torch.randn(forest.n_tokens, n, 128, device="cuda", generator=generator).bfloat16() for n in (32, 8, 8, 32)
    )
    seen = []
    for _ in range(3):
        leaves = [x.clone().requires_grad_() for x in (q, k, v)]
        (attention.varlen(forest)(*leaves) * weight).sum().backward()
        seen.append([x.grad for x in leaves])
    pairs = [(a, b) for other in seen[1:] for a, b in zip(seen[0], other, strict=True)]
    assert max(error(a, b) for a, b in pairs) < 4e-3
    print(f"FIGURE flash backward repeats bit for bit: {all(torch.equal(a, b) for a, b in pairs)}")


def test_float32_logits_of_a_bf16_product():
    generator = torch.Generator("cuda").manual_seed(0)
    rows = torch.randn(300, 4096, device="cuda", generator=generator).bfloat16()
    weight = (0.02 * torch.randn(20000, 4096, device="cuda", generator=generator)).bfloat16()
    exact = rows.double() @ weight.double().T
    assert error(wide_logits(rows, weight), exact) < 1e-5
    assert error(rows @ weight.T, exact) > 1e-3  # what rounding them to bf16 would do


@pytest.mark.parametrize("chunk_rows", [300, 128])  # kept, and made again in chunks
def test_log_probs_of_a_vocabulary_of_128256(chunk_rows):
    generator = torch.Generator("cuda").manual_seed(0)
    layer = Head(128_256, 1024).to("cuda", torch.bfloat16)
    layer.chunk_bytes = chunk_rows * 128_256 * 4
    torch.nn.init.normal_(layer.weight, std=0.1, generator=generator)
    hidden = torch.randn(300, 1024, device="cuda", generator=generator).bfloat16().requires_grad_()
    targets = torch.randint(128_256, (300,), device="cuda", generator=generator)
    slopes = torch.randn(300, device="cuda", generator=generator)
    found = layer(hidden, targets)
    (found * slopes).sum().backward()
    exact_hidden = hidden.detach().double().requires_grad_()
    exact_weight = layer.weight.detach().double().requires_grad_()
    exact = torch.log_softmax(exact_hidden @ exact_weight.T, dim=1).gather(1, targets[:, None])[:, 0]
    (exact * slopes).sum().backward()
    torch.testing.assert_close(found.double(), exact, rtol=0, atol=1e-4)
    assert error(hidden.grad, exact_hidden.grad) < 5e-3
    assert error(layer.weight.grad, exact_weight.grad) < 5e-3


@pytest.mark.parametrize("chunk_rows", [2000, 128])  # one piece, and several
def test_entropies_and_divergences_of_a_vocabulary_of_128256(chunk_rows):
    generator = torch.Generator("cuda").manual_seed(0)
    layer = Head(128_256, 1024).to("cuda", torch.bfloat16)
    layer.chunk_bytes = chunk_rows * 128_256 * 4
    torch.nn.init.normal_(layer.weight, std=0.05, generator=generator)
    theirs = (layer.weight.detach() + 0.01 * torch.randn(128_256, 1024, device="cuda", generator=generator)).bfloat16()
    hidden = torch.randn(200, 1024, device="cuda", generator=generator).bfloat16().requires_grad_()
    targets = torch.randint(128_256, (200,), device="cuda", generator=generator)
    slopes = torch.randn(5, 200, device="cuda", generator=generator)
    other = OtherModel(hidden.detach(), lambda: nullcontext(theirs))
    found = layer(hidden, targets, statistics=STATISTICS, other=other)
    (found * slopes).sum().backward()
    exact_hidden = hidden.detach().double().requires_grad_()
    exact_weight = layer.weight.detach().double().requires_grad_()
    lp = torch.log_softmax(exact_hidden @ exact_weight.T, dim=1)
    lq = torch.log_softmax(exact_hidden.detach() @ theirs.double().T, dim=1)
    p, q = lp.exp(), lq.exp()
    exact = torch.stack([
        lp.gather(1, targets[:, None])[:, 0], -(p * lp).sum(1), p.square().sum(1).log(),
        (q * (lq - lp)).sum(1), (p * (lp - lq)).sum(1),
    ])  # fmt: skip
    (exact * slopes).sum().backward()
    torch.testing.assert_close(found.double(), exact, rtol=0, atol=1e-4)
    assert error(hidden.grad, exact_hidden.grad) < 5e-3
    assert error(layer.weight.grad, exact_weight.grad) < 5e-3


PEERS = {
    "rmsprop": (RMSPROP, FusedRMSprop, torch.optim.RMSprop, {"alpha": 0.99, "eps": 1e-8}),
    "adamw": (ADAMW, FusedAdamW, torch.optim.AdamW, {"betas": (0.9, 0.99), "eps": 1e-8, "weight_decay": 0.1}),
}
"""By name: our formula for split masters, our optimizer of whole ones, torch's, and the options of each."""


@pytest.mark.parametrize("name", PEERS)
@pytest.mark.parametrize("factor", [None, 0.37])
def test_the_split_kernel_is_torchs_on_float32_masters_bit_for_bit(name, factor):
    formula, _, peer, options = PEERS[name]
    generator = torch.Generator("cuda").manual_seed(0)
    model = torch.nn.ParameterList(
        torch.empty(n, device="cuda", dtype=torch.bfloat16) for n in (1, 4095, 4096, 100_003)
    )
    masters = SplitMasterWeights(model)
    rows = [0.02 * torch.randn(len(p), device="cuda", generator=generator) for p in model]
    with torch.no_grad():
        for p, values in zip(model, rows, strict=True):
            masters.copy_into(p, values)
    ours = SplitOptimizer(masters, formula, moments=torch.float32, lr=2e-5, **options)
    plain = [torch.nn.Parameter(values.clone()) for values in rows]
    theirs = peer(plain, lr=2e-5, foreach=True, **options)
    for step in range(20):
        for p, q in zip(model, plain, strict=True):
            p.grad = torch.randn(len(p), device="cuda", generator=generator).bfloat16() * 10.0 ** -(step % 7)
            q.grad = p.grad.float() if factor is None else p.grad.float() * torch.tensor(factor, device="cuda")
        ours.factor = None if factor is None else torch.tensor([factor], device="cuda")
        ours.step()
        theirs.step()
        for p, q in zip(model, plain, strict=True):
            different = (masters.full_tensor(p) != q).float().mean().item()
            assert different == 0, (step, len(p), different, (masters.full_tensor(p) - q).abs().max())


@pytest.mark.parametrize("name", PEERS)
@pytest.mark.parametrize("rates", [(2e-5,), (2e-5, 3e-4)], ids=["one group", "two groups"])
@pytest.mark.parametrize("max_norm", [0.0, 1e-3, 1e9])
def test_the_whole_kernel_clipped_is_torchs_bit_for_bit(name, max_norm, rates):
    _, kind, peer, options = PEERS[name]
    generator = torch.Generator("cuda").manual_seed(0)
    rows = [0.02 * torch.randn(n, 3, device="cuda", generator=generator) for n in (0, 1, 1365, 4096, 33_335)]
    ours, theirs = ([torch.nn.Parameter(values.clone()) for values in rows] for _ in range(2))
    n = len(rates)
    grouped = [[{"params": each[i::n], "lr": rate} for i, rate in enumerate(rates)] for each in (ours, theirs)]
    optimizer = kind(grouped[0], lr=2e-5, **options)
    peer = peer(grouped[1], lr=2e-5, foreach=True, **options)
    ranks = Ranks.join()
    for step in range(20):
        for p, q in zip(ours, theirs, strict=True):
            p.grad = torch.randn(p.shape, device="cuda", generator=generator) * 10.0 ** -(step % 7)
            q.grad = p.grad.clone()
        norms = [optim.clip(each, ranks, max_norm) for each in (optimizer, peer)]
        assert norms[0] == norms[1]
        optimizer.step()
        peer.step()
        for p, q in zip(ours, theirs, strict=True):
            assert torch.equal(p, q), (step, len(p), (p != q).float().mean(), (p - q).abs().max())
            for name, value in peer.state[q].items():
                assert torch.equal(optimizer.state[p][name], value)


@pytest.mark.parametrize("name", PEERS)
def test_the_split_kernel_rounds_as_the_cpu_does(name):
    from engine.optim import adamw_kernels, rmsprop_kernels  # Triton comes with torch for CUDA

    formula, numbers_of, kernels = {
        "rmsprop": (RMSPROP, rmsprop_numbers, rmsprop_kernels), "adamw": (ADAMW, adamw_numbers, adamw_kernels),
    }[name]  # fmt: skip
    generator = torch.Generator("cuda").manual_seed(0)
    high, low = split.split(0.02 * torch.randn(10_000, device="cuda", generator=generator))
    grad = torch.randn(10_000, device="cuda", generator=generator).bfloat16()
    kernel, plain = (
        [torch.zeros(10_000, device="cuda", dtype=torch.bfloat16) for _ in formula.moments] for _ in range(2)
    )
    numbers = numbers_of(PEERS[name][3] | {"lr": 1e-3}, 1)
    asked = {"factor": None, "keys": [2**31 - 2, 7]} | numbers
    kernels.update_split(high.clone(), low.clone(), kernel, grad, **asked)
    split.update_in_chunks(high, low, plain, grad, formula=formula, **asked)
    assert all(torch.equal(a, b) for a, b in zip(kernel, plain, strict=True))


def wide_model(n_layers=2):
    return tiny.random_llama(
        vocab_size=1000, hidden_size=512, intermediate_size=1024, num_hidden_layers=n_layers, num_attention_heads=8,
        num_key_value_heads=2, std=0.05, seed=1,
    )  # fmt: skip


def test_the_fused_pass_in_bf16_is_near_float32_and_starts_at_a_ratio_of_exactly_0():
    examples = tiny.random_examples(LENGTHS, vocab_size=1000)
    forest = pack(examples)
    exact = FusedForward(wide_model().double())(forest, with_reference=False).logps
    fused = FusedForward(wide_model().to("cuda", torch.bfloat16), wide_model().to("cuda", torch.bfloat16))
    for model in (fused.policy, fused.reference):
        model.compile_blocks()
    found, reference, _ = fused(forest.to("cuda"), with_reference=True)
    assert torch.equal(found, reference)
    per_token = (found.cpu() - exact).abs() / forest.lengths
    assert per_token.mean() < 0.01
    print(f"FIGURE bf16 against float64, nats a token, two random layers: mean {per_token.mean():.1e}")


def test_nothing_is_compiled_again_after_the_second_pass():
    fused = FusedForward(wide_model(4).to("cuda", torch.bfloat16), wide_model(4).to("cuda", torch.bfloat16))
    for model in (fused.policy, fused.reference):
        model.compile_blocks()
    n_graphs = []
    for seed, lengths in enumerate([LENGTHS, LENGTHS[:3], LENGTHS[1:], LENGTHS[3:], LENGTHS[:1], LENGTHS * 2]):
        forest = pack(tiny.random_examples(lengths, vocab_size=1000, seed=seed)).to("cuda")
        logps = fused(forest, with_reference=True).logps
        logps.sum().backward()
        n_graphs.append(counters["stats"]["unique_graphs"])
    assert n_graphs[1:] == n_graphs[1:2] * (len(n_graphs) - 1), n_graphs


def trained(tmp_path, name, **changes):
    model, rows = tmp_path / "model", tmp_path / "rows.jsonl"
    if not model.exists():
        # heads of 8 numbers at least: the kernel takes no smaller ones
        tiny.write_model(model, std=0.05, hidden_size=64, num_attention_heads=4)
        tiny.write_rows(rows, id_rows(22))
    settings = {"epochs": 2, "batch_size": 4, "lr": 1e-4, "max_prompt_tokens": 64} | changes
    result = run(TrainConfig(model=str(model), data=(str(rows),), out=str(tmp_path / name), **settings))
    return result, [json.loads(line) for line in (tmp_path / name / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.parametrize(
    "settings",
    [{}, {"master_weights": "split"}, {"master_weights": "split", "max_grad_norm": 0.0}, {"recompute_blocks": 2}],
)
def test_a_run_starts_at_0_learns_and_goes_on_where_it_was_stopped(tmp_path, settings):
    whole, lines = trained(tmp_path, "whole", **settings)
    assert lines[0]["rewards/margins"] == 0
    assert lines[-1]["loss"] < lines[0]["loss"]
    trained(tmp_path, "parts", stop_after=3, **settings)
    parts, again = trained(tmp_path, "parts", resume=True, **settings)
    differences = [abs(a["loss"] - b["loss"]) for a, b in zip(lines, again, strict=True)]
    assert max(differences) < 1e-3
    a, b = (weights.load(r.checkpoints[-1]) for r in (whole, parts))
    same = all(torch.equal(p, q) for p, q in zip(a.parameters(), b.parameters(), strict=True))
    print(f"FIGURE {settings}: stopped and gone on with, same bits: {same}, losses differ by {max(differences):.1e}")


def test_split_masters_move_as_whole_ones_do(tmp_path):
    _, lines = trained(tmp_path, "split", master_weights="split")
    _, others = trained(tmp_path, "whole", master_weights="float32")
    worst = max(abs(a["loss"] - b["loss"]) for a, b in zip(lines, others, strict=True))
    print(f"FIGURE split against whole masters, loss over {len(lines)} steps: {worst:.1e}")
    assert worst < 5e-3


@pytest.mark.parametrize("settings", [{"master_weights": "float32"}, {"master_weights": "split"}], ids=str)
def test_a_folder_gives_the_log_probs_of_the_runs_last_line(tmp_path, settings):
    heldout, out = tmp_path / "heldout.jsonl", tmp_path / "logps.jsonl"
    tiny.write_rows(heldout, id_rows(30, seed=1))
    settings |= {"eval_data": str(heldout), "micro_tokens": 1024, "compile": "no"}  # engine.score compiles nothing
    result, lines = trained(tmp_path, "run", **settings)
    asked = ["--model", str(result.checkpoints[-1]), "--data", str(heldout), "--out", str(out), "--dtype", "bfloat16"]
    score.main([*asked, "--micro-tokens", "1024"])
    found = [json.loads(line) for line in out.read_text().splitlines()]
    for side in ("chosen", "rejected"):
        mean = torch.tensor([row[f"logps/{side}"] for row in found], dtype=torch.float64).mean().item()
        print(f"FIGURE {side}, folder against run, nats: {mean - lines[-1][f'eval_logps/{side}']:.1e}")
        assert mean == pytest.approx(lines[-1][f"eval_logps/{side}"], rel=1e-9)


@pytest.mark.parametrize(
    "settings",
    [{"master_weights": "float32"}, {"master_weights": "split"}, {"master_weights": "split", "max_grad_norm": 0.0}],
    ids=str,
)
def test_measuring_what_a_folder_loses_leaves_every_master_as_it_was(tmp_path, settings):
    narrow, lines = trained(tmp_path, "narrow", save_rounding="stochastic", save_dtype="bfloat16", **settings)
    whole, _ = trained(tmp_path, "whole", save_dtype="float32", **settings)
    assert lines[-1]["saved/logps_difference"] > 0
    a, b = (weights.load(r.checkpoints[-1]) for r in (narrow, whole))
    far = [(p - q).abs() > q.abs() / 64 + 1e-6 for p, q in zip(a.parameters(), b.parameters(), strict=True)]
    assert not any(x.any() for x in far)  # a rounding apart; bits differ by the kernels' order of adding up
