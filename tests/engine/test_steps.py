"""The plan of a run's steps: which examples, in which epoch, on which rank, in which forest; and what comes back."""

import math
import threading
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from data.rows.examples import Example
from engine.config import DataConfig, MeasuringConfig, ScheduleConfig
from engine.distributed import Ranks
from engine.step import Batch, LossInputs, MicroBatching, Objective, Steps
from tests import tiny


def rank(number, of):
    """One of several ranks, as far as a plan asks; what it adds up is set by the test."""
    return SimpleNamespace(rank=number, size=of, device=torch.device("cpu"), all_reduce_sum=lambda values: values)


def steps(n=10, *, batch_size=4, epochs=2, objective="dpo", shuffle=True, seed=0, max_steps=None, rows=None):
    rows = tiny.random_examples([(3, 2 + i % 5, 4) for i in range(n)]) if rows is None else rows
    schedule = ScheduleConfig(batch_size=batch_size, epochs=epochs, max_steps=max_steps)
    return Steps(rows, DataConfig(sources=("f",), shuffle=shuffle, seed=seed), schedule, Objective(objective))


# --- steps ---------------------------------------------------------------------------------------------------------


def test_every_epoch_takes_every_example_once_and_its_last_step_what_is_left():
    made = [steps().step(number) for number in range(1, 7)]
    assert [len(s.batch) for s in made] == [4, 4, 2] * 2
    assert [s.epoch for s in made] == [1, 1, 1, 2, 2, 2] and [s.number for s in made] == [1, 2, 3, 4, 5, 6]
    assert [s.ends_epoch for s in made] == [False, False, True] * 2
    epochs = [np.concatenate([s.ids for s in made[at : at + 3]]).tolist() for at in (0, 3)]
    assert sorted(epochs[0]) == sorted(epochs[1]) == list(range(10)) and epochs[0] != epochs[1]


def test_a_step_holds_the_examples_that_its_ids_say():
    rows = tiny.random_examples([(3, 2, 4)] * 10)
    step = steps(rows=rows).step(2)
    assert [e.location for e in step.examples] == [f"rows.jsonl:{i + 1}" for i in step.ids]


def test_the_seed_decides_the_order_and_without_shuffling_it_is_that_of_the_rows():
    def orders(**named):
        return [steps(**named).step(number).ids.tolist() for number in (1, 2, 3)]

    assert orders(seed=1) == orders(seed=1) != orders(seed=2)
    assert orders(shuffle=False) == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9]]


def test_a_run_that_ends_early_ends_its_epoch_there():
    made = steps(max_steps=4)
    assert len(made) == 4 and made.step(4).ends_epoch and made.step(4).epoch == 2
    assert len(steps(max_steps=100)) == 6
    assert [s.number for s in made.first_epoch()] == [1, 2, 3]
    assert [s.number for s in steps(max_steps=2).first_epoch()] == [1, 2]


@pytest.mark.parametrize(("epochs", "n"), [(0.5, 2), (1 / 3, 1), (0.01, 1), (1.5, 5), (2.0, 6), (2, 6)])
def test_a_part_of_an_epoch_is_so_much_of_its_steps_rounded_up(epochs, n):
    made = steps(epochs=epochs)  # of 3 steps each; as transformers has it: ceil(epochs * steps)
    assert len(made) == n and made.step(n).ends_epoch and made.step(n).epoch == math.ceil(n / 3)


def test_a_bound_ends_epochs_that_are_more_than_enough():
    made = steps(epochs=100, max_steps=7)
    assert len(made) == 7 and [made.step(n).epoch for n in range(1, 8)] == [1, 1, 1, 2, 2, 2, 3]


@pytest.mark.parametrize("done", [0, 1, 5, 6])
def test_packed_steps_are_the_planned_ones_but_those_that_are_done(done):
    plan = steps()
    found = list(plan.packed(rank(0, 1), MicroBatching(micro_tokens=20), done=done))
    assert [s.number for s in found] == list(range(done + 1, 7))
    for step in found:
        assert step.ids.tolist() == plan.step(step.number).ids.tolist() and step.batch.micro_batches


def test_the_next_step_is_packed_by_a_thread_while_one_is_computed(monkeypatch):
    plan, packed, packs = steps(), threading.Event(), Batch.pack

    def pack(batch, *arguments):
        assert threading.current_thread() is not threading.main_thread()
        packs(batch, *arguments)
        if len(seen := [*seen_before, batch]) == 2:
            packed.set()
        seen_before[:] = seen

    seen_before = []
    monkeypatch.setattr(Batch, "pack", pack)
    walked = plan.packed(rank(0, 1), MicroBatching(micro_tokens=20))
    next(walked)
    assert packed.wait(30)  # though nobody has asked for step 2
    assert len(list(walked)) == 5 and len(seen_before) == 6


# --- mismatched sequences ------------------------------------------------------------------------------------------


def labelled(prompts):
    ids = np.arange(1, 100, dtype=np.int32)
    return [Example(f"f:{i}", ids[p : p + 2], (ids[10 * i : 10 * i + 2],), True) for i, p in enumerate(prompts)]


def test_each_prompt_gets_the_response_of_the_next_example_whose_prompt_differs():
    rows = labelled([5, 5, 7, 9])
    step = steps(rows=rows, objective="kto", shuffle=False).step(1)
    assert [e.prompt.tolist() for e in step.mismatched.examples] == [e.prompt.tolist() for e in rows]
    partners = [rows[j].responses[0].tolist() for j in (2, 2, 3, 0)]
    assert [[r.tolist() for r in e.responses] for e in step.mismatched.examples] == [[p] for p in partners]
    assert [[r.tolist() for r in e.responses] for e in step.examples] == [[e.responses[0].tolist()] for e in rows]
    assert step.n_tokens == 4 * (2 + 2 + 2)  # prompts once, both responses
    assert steps(rows=rows, objective="kto").n_responses == 1
    assert steps(rows=rows, objective="sft").step(1).mismatched is None


@pytest.mark.parametrize("shuffle", [True, False])
def test_steps_of_one_prompt_have_no_mismatched_sequences_and_are_counted(shuffle):
    for prompts in ([5, 5, 5, 5, 7], [5, 5, 5, 7, 7], [5] * 5, [5, 7, 9, 11, 13]):
        plan = steps(rows=labelled(prompts), objective="kto", shuffle=shuffle)
        alone = [plan.step(number).mismatched is None for number in range(1, len(plan) + 1)]
        assert plan.n_of_one_prompt() == sum(alone)
        assert any(alone)  # the last step of an epoch has one row


# --- batches -------------------------------------------------------------------------------------------------------


def test_tokens_are_counted_with_prompts_once_and_responses_whole():
    batch = Batch(tiny.random_examples([(3, 2, 4), (5, 1, 6)]))
    assert batch.n_tokens == 3 + 2 + 4 + 5 + 1 + 6 and batch.n_predicted == 13 and batch.n_responses == 2
    assert len(batch) == 2


@pytest.mark.parametrize("n_ranks", [1, 2, 3])
@pytest.mark.parametrize("is_balanced", [True, False])
def test_every_example_is_on_one_rank_and_every_rank_has_as_many_passes(n_ranks, is_balanced):
    rows = tiny.random_examples([(3, 2 + 7 * (i % 3), 4) for i in range(7)])
    split = MicroBatching(micro_tokens=25, is_balanced=is_balanced)
    shares = [Batch(rows).pack(rank(r, n_ranks), split) for r in range(n_ranks)]
    assert sorted(i for share in shares for micro in share for i in micro.indices) == list(range(7))
    assert len({len(share) for share in shares}) == 1 and len(shares[0]) > 1


def test_ranks_get_about_the_same_tokens_or_the_examples_as_they_come():
    rows = tiny.random_examples([(3, n, 4) for n in (40, 20, 5, 5)])
    for is_balanced, expected in ((True, [[0], [1, 2, 3]]), (False, [[0, 1], [2, 3]])):
        split = MicroBatching(micro_tokens=10**6, is_balanced=is_balanced)
        shares = [[m.indices for m in Batch(rows).pack(rank(r, 2), split)] for r in range(2)]
        assert shares == [[share] for share in expected]


def test_a_pass_holds_no_more_tokens_than_it_may_but_one_example_at_least():
    rows = tiny.random_examples([(3, 2, 4), (3, 2, 4), (3, 90, 4), (3, 2, 4)])
    batch = Batch(rows)
    made = batch.pack(rank(0, 1), MicroBatching(micro_tokens=20))
    assert made is batch.micro_batches and [micro.indices for micro in made] == [[0, 1], [2], [3]]
    assert [micro.forest.n_tokens for micro in made] == [2 * (3 + 1 + 3), 3 + 89 + 3, 3 + 1 + 3]


def test_a_rank_with_nothing_left_takes_part_with_an_empty_forest():
    batch = Batch(tiny.random_examples([(3, 2, 4)]))
    assert [micro.indices for micro in batch.pack(rank(0, 2), MicroBatching(micro_tokens=20))] == [[0]]
    (empty,) = Batch(batch.examples).pack(rank(1, 2), MicroBatching(micro_tokens=20))
    assert empty.indices == [] and empty.forest.n_sequences == 0
    nothing = batch.loss_inputs(empty, torch.zeros(0, dtype=torch.float64), None)
    assert nothing.logps.shape == (0, 2) and nothing.mean_lengths == (2.0, 4.0)


def test_what_is_configured_decides_how_a_batch_is_cut():
    split = MicroBatching.of(MeasuringConfig(disable=("balance", "prompt-sharing")), 7, (16,))
    assert split.micro_tokens == 7 and not split.is_balanced and not split.packing.shares_prompts
    assert split.packing.divides_at == (16,) and MicroBatching.of(MeasuringConfig(), 7, ()).is_balanced


def test_loss_inputs_of_a_pass_are_of_its_examples_with_the_lengths_of_the_step():
    batch = Batch(tiny.random_examples([(3, 2, 4), (5, 1, 6), (3, 3, 8)]))
    micro = SimpleNamespace(indices=[2, 0])
    logps = torch.tensor([1.0, 2.0, 3.0, 4.0], dtype=torch.float64)
    made = batch.loss_inputs(micro, logps, -logps)
    assert made.logps.tolist() == [[1.0, 2.0], [3.0, 4.0]] and made.ref_logps.tolist() == [[-1.0, -2.0], [-3.0, -4.0]]
    assert made.lengths.tolist() == [[3, 8], [2, 4]] and made.mean_lengths == (2.0, 6.0)


def filled(batch, micro_batches, *, with_reference):
    """Adds log-probs 10 i + k, and the reference's below them by 100, of each example i."""
    for micro in micro_batches:
        logps = torch.tensor([[10.0 * i + k for k in range(2)] for i in micro.indices], dtype=torch.float64)
        logps = logps.reshape(-1).requires_grad_()
        batch.add(micro, batch.loss_inputs(micro, logps, logps.detach() - 100 if with_reference else None))


@pytest.mark.parametrize("n_ranks", [1, 2])
@pytest.mark.parametrize("with_reference", [True, False])
def test_what_ranks_found_is_gathered_in_the_order_of_the_batch(n_ranks, with_reference):
    rows = tiny.random_examples([(3, 2 + 3 * (i % 3), 4) for i in range(5)])
    batches = [Batch(rows) for _ in range(n_ranks)]
    for r, batch in enumerate(batches):
        filled(batch, batch.pack(rank(r, n_ranks), MicroBatching(micro_tokens=15)), with_reference=with_reference)
    own = []
    for batch in batches:  # what each brings to the sum
        ranks = rank(0, n_ranks)
        ranks.all_reduce_sum = lambda values: own.append(values.clone()) or values
        batch.gather(ranks, with_reference=with_reference)
    ranks.all_reduce_sum = lambda _: sum(own)
    found = batches[0].gather(ranks, with_reference=with_reference)
    assert found.logps.tolist() == [[10.0 * i, 10.0 * i + 1] for i in range(5)] and not found.logps.requires_grad
    if with_reference:
        assert found.ref_logps.tolist() == [[10.0 * i - 100, 10.0 * i - 99] for i in range(5)]
    else:
        assert found.ref_logps is None
    assert found.lengths[:, 0].tolist() == [2, 5, 8, 2, 5] and found.mean_lengths == (22 / 5, 4.0)


def test_one_process_gathers_what_it_found_itself():
    batch = Batch(tiny.random_examples([(3, 2, 4), (5, 1, 6)]))
    filled(batch, batch.pack(Ranks(), MicroBatching(micro_tokens=10**6)), with_reference=False)
    found = batch.gather(Ranks(), with_reference=False)
    assert isinstance(found, LossInputs) and found.logps.tolist() == [[0.0, 1.0], [10.0, 11.0]]
