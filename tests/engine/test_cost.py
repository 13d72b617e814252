"""Operations counted product by product, and what they come to over a run: time, traffic, disk."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from data.forest import PackingOptions, pack
from engine.model import Layer, Llama, read_config
from engine.planning import Documents, MemoryInputs, TokenStatistics, capped_flops, cost, forward_flops
from tests import tiny

SHAPE = read_config(tiny.raw_config(), "f")  # hidden 32, 4 heads and 2 of keys of 8, inside 56, 3 layers, 101 ids
PER_TOKEN = 3 * 2 * (32 * 32 + 2 * 32 * 16 + 32 * 32 + 3 * 32 * 56)  # q, k and v, o, the three of the mlp
PER_KEY = 3 * 2 * 2 * 4 * 8  # a score and its share of the sum, of every head
PER_ROW = 2 * 32 * 101


def seen(prompt, *responses):
    """Keys that each token of a forest sees, counted one by one; a response's last token is none."""
    keys = sum(at + 1 for at in range(prompt))
    return keys + sum(prompt + at + 1 for n in responses for at in range(n - 1))


def inputs(**changes):
    return MemoryInputs(shape=SHAPE, device="cuda", dtype=torch.bfloat16, **changes)


def statistics(**changes):
    """Of a prompt of 3 with responses of 6 and 2: a document of 8 tokens, and a token that sees 4."""
    documents = Documents(queries=np.array([8, 1]), keys=np.array([8, 4]))
    found = TokenStatistics(n=10, tokens=9.0, rows=6.0, documents=documents, most_scores=64, longest=12, step=30)
    return replace(found, **changes)


FORWARD = 9 * PER_TOKEN + 40 * PER_KEY + 6 * PER_ROW


def test_a_forest_costs_its_tokens_keys_and_predicting_rows():
    blocks, head = forward_flops(SHAPE, pack(tiny.random_examples([(4, 3, 5), (2, 6, 1)])))
    n_tokens = 4 + 2 + 4 + 2 + 5 + 0
    assert blocks == n_tokens * PER_TOKEN + (seen(4, 3, 5) + seen(2, 6, 1)) * PER_KEY
    assert head == (3 + 5 + 6 + 1) * PER_ROW


def test_the_mean_example_of_rows_is_that_of_their_forests():
    rows = tiny.random_examples([(4, 33, 5), (2, 6, 1), (3, 2, 2)])
    found = TokenStatistics.of(rows, PackingOptions(), batch_size=2)
    blocks, head = forward_flops(SHAPE, pack(rows))
    assert cost.forward_of_example(SHAPE, found) == pytest.approx((blocks + head) / 3, rel=1e-12)
    assert found.n == 3 and found.longest == 40  # 4 + 32 + 4
    mean, worst = 2 * (40 + 7 + 5) / 3, 40 + 7
    assert found.step == int(mean + (worst - mean) / 4)  # a quarter of the way


def windowed(*windows, **changes):
    return replace(SHAPE, layers=tuple(Layer(window=window) for window in windows), n_layers=len(windows), **changes)


LENGTHS = [(4, 33, 5), (2, 6, 1), (3, 2, 2), (30, 1, 1)]


@pytest.mark.parametrize("packing", [PackingOptions(), PackingOptions(shares_prompts=False)])
@pytest.mark.parametrize("window", [1, 2, 5, 34, 36, 37, 38, 1000, None])
def test_a_window_cuts_what_each_query_sees(window, packing):
    """Counted from every token's position, in a branch as in its trunk; of rows as of their forest."""
    rows = tiny.random_examples(LENGTHS)
    forest = pack(rows, packing)
    expected = int((forest.positions + 1).clamp(max=window or 10**6).sum())
    assert Documents.of(forest).seen(window) == expected
    found = TokenStatistics.of(rows, packing, batch_size=2)
    assert found.documents.seen(window) == expected / len(rows)
    assert found.most_scores == max(n_queries * n_keys for n_queries, n_keys in sizes_of(forest))


def sizes_of(forest):
    return zip(forest.cu_q.diff().tolist(), forest.cu_k.diff().tolist(), strict=True)


def test_layers_of_several_windows_are_each_counted_by_their_own():
    forest = pack(tiny.random_examples(LENGTHS))
    blocks, head = forward_flops(windowed(5, None, 5), forest)
    narrow, whole = (int((forest.positions + 1).clamp(max=n).sum()) for n in (5, 10**6))
    assert blocks == forest.n_tokens * PER_TOKEN + (2 * narrow + whole) * PER_KEY / 3
    assert head == forward_flops(SHAPE, forest)[1]


def test_an_mlp_without_a_gate_has_two_products():
    forest = pack(tiny.random_examples(LENGTHS))
    with_gate, without = (forward_flops(windowed(None, has_gate=has), forest)[0] for has in (True, False))
    assert with_gate - without == forest.n_tokens * 2 * 32 * 56


def test_capped_scores_are_made_again_and_so_are_capped_logits():
    load = statistics()
    shape = windowed(3, None, attention_cap=50.0, logit_cap=30.0)
    again = (8 * 3 - 3 + 3 + 40) * PER_KEY / 3  # within a window of three: 1 + 2 + 6 x 3, and 3; in the other layer all
    assert capped_flops(shape, load.documents) == again and capped_flops(SHAPE, load.documents) == 0
    plain = windowed(3, None)
    two, one = (cost.run_flops(replace(inputs(), shape=s), load, 4, has_reference=False) for s in (shape, plain))
    assert two - one == pytest.approx(load.n * 4 * (again + 6 * PER_ROW), rel=1e-12)
    (two, _), (one, _) = (
        cost.step_seconds(replace(inputs(), shape=s), load, 16, 1, cost.Speed()) for s in (shape, plain)
    )
    assert two - one == pytest.approx(16 * (again + 6 * PER_ROW) / (989e12 * 0.5), rel=1e-9)


@pytest.mark.parametrize(
    ("settings", "load", "passes"),
    [
        ({}, {}, 3 * 4 + 1),  # the reference walks once
        ({"moves_reference": True}, {}, 3 * 4 + 4),
        ({}, {"is_mismatched": True}, 3 * 4 + 1 + 2 * 4),  # both models, ahead of each step
        ({"n_recomputed": 3}, {}, 3 * 4 + 1 + 4),  # every block again
        ({"n_recomputed": 1}, {}, 3 * 4 + 1 + 4 / 3),
        ({"has_several_passes": True}, {"whole_step": True}, 3 * 4 + 1 + 4),
        ({"has_several_passes": False}, {"whole_step": True}, 3 * 4 + 1),
    ],
)
def test_a_run_walks_so_often(settings, load, passes):
    found = cost.run_flops(inputs(**settings), statistics(**load), 4, has_reference=True)
    assert found == pytest.approx(passes * 10 * FORWARD, rel=1e-12)


@pytest.mark.parametrize(("n", "passes", "heads"), [(0, 3 * 4 + 1, 0), (1, 3 * 4 + 1, 4), (2, 3 * 4 + 4, 4 * 3)])
def test_whole_distributions_cost_products_with_the_heads_and_those_of_both_a_reference_in_every_epoch(
    n, passes, heads
):
    found = cost.run_flops(inputs(), statistics(n_distributions=n), 4, has_reference=True)
    assert found == pytest.approx(10 * (passes * FORWARD + heads * 6 * PER_ROW), rel=1e-12)
    computing, _ = cost.step_seconds(inputs(), statistics(n_distributions=n), 16, 1, cost.Speed())
    step = (3 + (n == 2)) * FORWARD + heads / 4 * 6 * PER_ROW
    assert computing == pytest.approx(16 * step / (989e12 * 0.5), rel=1e-12)


def test_without_a_reference_nothing_walks_for_it():
    assert cost.run_flops(inputs(), statistics(), 4, has_reference=False) == pytest.approx(12 * 10 * FORWARD, rel=1e-12)


@pytest.mark.parametrize(
    ("settings", "n_gpus", "moved"),
    [
        ({}, 1, (0, 0)),
        (
            {"n_shards": 8},
            8,
            (2 * (2 + 2 + 4), 0),
        ),  # gathered twice in bf16, summed once in float32, in each of 2 passes
        ({"n_shards": 8, "reshards": False}, 8, (2 * (2 + 4), 0)),
        ({"n_shards": 16}, 16, (0, 2 * (2 + 2 + 4))),
        ({"n_shards": 8}, 16, (2 * (2 + 2 + 4), 2 * 2 * 4 / 8)),  # copies add their shards' gradients up
    ],
)
def test_what_crosses_between_gpus_is_bytes_of_every_parameter(settings, n_gpus, moved):
    n = SHAPE.n_parameters
    found = cost.step_bytes(inputs(**settings), 2, n_gpus)
    assert found == pytest.approx((moved[0] * n, moved[1] * n), rel=1e-12)


def test_a_step_computes_at_the_reached_share_and_waits_for_the_slowest():
    one, _ = cost.step_seconds(inputs(), statistics(), 16, 1, cost.Speed())
    assert one == pytest.approx(16 * 3 * FORWARD / (989e12 * 0.5), rel=1e-12)
    eight, moving = cost.step_seconds(inputs(n_shards=8, micro_tokens=10), statistics(), 16, 8, cost.Speed())
    assert eight == pytest.approx(1.08 * one / 8, rel=1e-12)
    assert moving == pytest.approx(2 * 8 * SHAPE.n_parameters / 300e9, rel=1e-12)  # 18 tokens a GPU: two passes of 10


def test_disk_is_bytes_of_every_number():
    n = SHAPE.n_parameters
    assert [cost.checkpoint_bytes(SHAPE, dtype) for dtype in (torch.bfloat16, torch.float32)] == [2 * n, 4 * n]
    assert cost.state_bytes(inputs(optimizer="adamw")) == 12 * n
    assert cost.state_bytes(inputs(square_avg_bytes=2)) == 6 * n
    assert cost.state_bytes(inputs(optimizer="adamw", square_avg_bytes=2)) == 8 * n
    shape = inputs().shape
    ends = sum(p.numel() for name, p in Llama(shape).named_parameters() if name.startswith(("embed", "head")))
    assert cost.state_bytes(inputs(optimizer="muon")) == pytest.approx(
        8 * n + 4 * ends, abs=1
    )  # one mean of a matrix, two of the others
