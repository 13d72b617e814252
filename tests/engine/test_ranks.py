"""The processes of a run: alone, and two real ones (on_two_ranks.py), against what one process computes."""

import math
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from data.forest import pack
from engine import optim
from engine.distributed import Ranks
from engine.model import FusedForward
from system import InputError
from tests import tiny
from tests.engine.on_two_ranks import LENGTHS, MUON, SHAPE, whole_gradients


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    """What each of two ranks found."""
    out = tmp_path_factory.mktemp("ranks")
    (out / "own-0").mkdir()  # a folder that the other rank has not
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    worker = Path(__file__).with_name("on_two_ranks.py")
    done = subprocess.run(
        [*launch, str(worker), str(out)],
        capture_output=True,
        text=True,
        env=tiny.environment(),
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return [torch.load(out / f"rank-{r}.pt", weights_only=True) for r in (0, 1)]


@pytest.fixture(scope="module")
def alone():
    """Log-probs of each rank's example, and the gradient of their sum over both, by one process."""
    model = tiny.random_llama(**SHAPE)
    fused = FusedForward(model, tiny.random_llama(**SHAPE))
    examples = tiny.random_examples(LENGTHS, vocab_size=33)
    logps = [fused(pack([e]), with_reference=True)[0] for e in examples]
    sum(x.sum() for x in logps).backward()
    return [x.detach() for x in logps], dict(model.named_parameters())


# --- what ranks tell one another -----------------------------------------------------------------------------------


def test_each_rank_knows_where_it_stands(two):
    assert [found["is"][0] for found in two] == [(0, 2, True, True, True), (1, 2, False, True, True)]
    assert [found["is"][1] for found in two] == [(0, 2, True, True, True), (1, 2, False, True, False)]  # of copies


def test_the_largest_and_the_sum_are_the_same_on_every_rank(two):
    for found in two:
        assert found["said"]["max"] == [1.0, -1.5, 2.0**52 + 1]
        assert found["said"]["sum"].tolist() == [[3.0, 20.0]]


def test_what_the_first_rank_has_or_does_reaches_all(two):
    assert [found["said"]["broadcast"] for found in two] == [{"from": 0, "said": ["a", None]}] * 2
    assert [found["said"]["on_rank0"] for found in two] == ["made by 0"] * 2
    assert [found["said"]["acted"] for found in two] == [[0], []]
    assert [found["said"]["refused on rank 0"] for found in two] == ["rank 0 does not like it"] * 2


def test_a_fault_of_any_rank_is_every_ranks_and_of_several_the_first_ones(two):
    for found in two:
        assert found["said"]["together"] == {
            (): "returned both",
            (0,): "rank 0 does not like it",
            (1,): "rank 1 does not like it",
            (0, 1): "rank 0 does not like it",
        }


def test_a_folder_of_one_rank_alone_is_not_seen_by_all_and_no_mark_is_left(two):
    for found in two:
        assert found["said"]["sees"] and not found["said"]["sees its own"] and not found["said"]["left"]


# --- who holds what ------------------------------------------------------------------------------------------------


def test_shards_are_consecutive_rows_and_together_the_weights(two):
    whole = dict(tiny.random_llama(**SHAPE).named_parameters())
    for name, p in whole.items():
        (first, n), (second, m) = (found["shards"]["rows"][name] for found in two)
        half = -(-len(p) // 2)
        assert (first, n, second, m) == (0, half, half, len(p) - half), name
        assert all(found["copies"]["rows"][name] == (0, len(p)) for found in two)
        for found in two:
            assert torch.equal(found["shards"]["weights"][name], p) and torch.equal(found["copies"]["weights"][name], p)


@pytest.mark.parametrize("layout", ["shards", "copies"])
def test_log_probs_are_those_of_one_process(two, alone, layout):
    for found, expected in zip(two, alone[0], strict=True):
        policy, reference = found[layout]["logps"]
        torch.testing.assert_close(policy, expected, rtol=0, atol=1e-5)  # float32, sums of at most 6 tokens
        assert torch.equal(policy, reference)


@pytest.mark.parametrize("layout", ["shards", "copies"])
@pytest.mark.parametrize("n_passes", [1, 2])
def test_the_gradient_is_the_sum_over_ranks_and_passes(two, alone, layout, n_passes):
    """Not the mean: ranks hold different counts. Each pass is over the same example here, and so adds the same."""
    square = 0.0
    for name, p in alone[1].items():
        square += (n_passes * p.grad.double()).square().sum().item()
        for found in two:
            torch.testing.assert_close(
                found[layout][f"gradient of {n_passes}"][name], n_passes * p.grad, rtol=1e-4, atol=1e-4
            )
    for found in two:
        assert found[layout][f"norm of {n_passes}"].item() == pytest.approx(math.sqrt(square), rel=1e-5)


@pytest.mark.parametrize("layout", ["shards", "copies"])
def test_muon_makes_the_same_weights_of_shards_as_of_whole_matrices(two, layout):
    """To the last bit: the update is gathered before it is made orthogonal, and nothing is summed over ranks."""
    named = dict(tiny.random_llama(**SHAPE).named_parameters())
    optimizer = optim.build(named.items(), MUON)
    state = optim.state_tensors(optimizer, named.items())
    for gradient in whole_gradients(named):
        for name, p in named.items():
            p.grad = gradient[name]
        optimizer.step()
    expected = named | state
    for found in two:
        assert found["muon"][layout].keys() == expected.keys()
        apart = {name: (x - expected[name]).abs().max().item() for name, x in found["muon"][layout].items()}
        assert not any(apart.values()), apart


def test_the_last_pass_of_a_step_alone_sums_and_gives_its_weights_back(two):
    for found in (x["shards"] for x in two):
        assert found["sharded after pass 1 of 1"] and found["sharded after pass 2 of 2"]
        assert not found["sharded after pass 1 of 2"]
        assert found["collectives of pass 1 of 2"] == 0 < found["collectives of pass 2 of 2"]
        assert found["collectives of pass 1 of 1"] > 0


def test_weights_gathered_without_a_backward_pass_are_given_back_when_asked(two):
    for found in (x["shards"] for x in two):
        assert not found["sharded after a pass without gradient"] and found["sharded again"]
        assert found["bytes of a released model"] == 0


# --- one process ---------------------------------------------------------------------------------------------------


def test_one_process_in_float32_is_plain_and_says_everything_to_itself(tmp_path):
    before = torch.distributed.is_initialized()  # by another test of this process
    ranks = Ranks.join(dtype=torch.float32)
    values, parameter = torch.ones(2), torch.nn.Parameter(torch.ones(3, 2))
    assert (ranks.rank, ranks.size, ranks.is_rank0, ranks.is_sharded, ranks.holds_first_copy) == (
        0,
        1,
        True,
        False,
        True,
    )
    assert torch.distributed.is_initialized() == before
    assert ranks.all_reduce_max(3) == 3.0 and ranks.all_reduce_sum(values) is values and ranks.broadcast("a") == "a"
    assert ranks.on_rank0(lambda: 7) == 7 and ranks.all_see(tmp_path / "nowhere")
    assert ranks.full_tensor(parameter) is parameter and ranks.local(parameter) == (parameter, 0)
    with pytest.raises(InputError, match=r"^mine$"), ranks.together():
        raise InputError("mine")


def test_one_processs_norm_is_that_of_all_gradients_and_of_those_alone():
    parameters = [torch.nn.Parameter(torch.zeros(n)) for n in (2, 3, 4)]
    parameters[0].grad, parameters[2].grad = torch.full((2,), 3.0), torch.full((4,), -2.0)
    assert Ranks().grad_norm(parameters).item() == pytest.approx(math.sqrt(2 * 9 + 4 * 4), rel=1e-6)


@pytest.mark.parametrize(("size", "shard_size"), [("4", 3), ("2", 4)])
def test_copies_that_do_not_come_out_even_are_refused(monkeypatch, size, shard_size):
    monkeypatch.setenv("WORLD_SIZE", size)
    with pytest.raises(InputError, match=f"--shard-size: {size} ranks cannot form groups of {shard_size}; give a"):
        Ranks(shard_size=shard_size)


def test_split_masters_compute_in_bfloat16_and_wrap_nothing():
    ranks = Ranks(splits_masters=True)
    model = ranks.place(FusedForward(tiny.random_llama(**SHAPE)))
    assert not ranks.is_sharded and {p.dtype for p in model.policy.parameters()} == {torch.bfloat16}
