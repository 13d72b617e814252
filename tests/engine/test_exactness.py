"""Settings that change the speed only, where a run's numbers cannot tell whether they were in force."""

import json
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import torch
from torch.distributed.fsdp._fully_shard._fsdp_param_group import FSDPParamGroup

from data.forest import PackingOptions, pack
from engine.config import TrainConfig
from engine.distributed import Ranks
from engine.inputs import TrainingInputs
from engine.model import FusedForward, attention
from engine.score import score_under
from engine.step import Batch, MicroBatching, fingerprint, steps
from tests import tiny
from tests.proofs import counted, watched
from tests.rows import id_rows


def of_two(rank):
    """One of two processes, as far as sharing rows out goes."""
    made = Ranks()
    made.rank, made.size = rank, 2
    return made


def test_balanced_ranks_hold_the_same_rows_with_more_equal_tokens():
    examples = tiny.random_examples([(1, 30, 30), (1, 30, 30), (1, 2, 2), (1, 2, 2)])
    sizes = {}
    for is_balanced in (True, False):
        split = MicroBatching(micro_tokens=1000, is_balanced=is_balanced)
        batches = [Batch(examples) for _ in range(2)]
        packed = [batch.pack(of_two(rank), split) for rank, batch in enumerate(batches)]
        assert sorted(i for micro in packed for one in micro for i in one.indices) == [0, 1, 2, 3]
        sizes[is_balanced] = [sum(one.forest.n_tokens for one in micro) for micro in packed]
    assert sizes == {True: [62, 62], False: [118, 6]}


def test_as_many_passes_on_every_rank_though_one_has_less_to_do():
    examples = tiny.random_examples([(1, 30, 30), (1, 2, 2), (1, 2, 2)])
    split = MicroBatching(micro_tokens=4)
    packed = [Batch(examples).pack(of_two(rank), split) for rank in range(2)]
    assert [[one.indices for one in micro] for micro in packed] == [[[0], []], [[1], [2]]]
    assert packed[0][1].forest.n_sequences == 0


@pytest.mark.parametrize(("response", "path"), [(10, "dense"), (400, "by_document")])
def test_short_documents_share_masks_and_long_ones_have_calls_of_their_own(response, path, monkeypatch):
    forest = pack(tiny.random_examples([(3, response, response)] * 2))
    calls = {name: counted(monkeypatch, attention, name) for name in ("dense", "by_document")}
    attention.for_forest(forest, torch.float32)
    assert {name: len(of) for name, of in calls.items()} == {"dense": 0, "by_document": 0} | {path: 1}


def test_a_run_of_short_documents_ends_where_its_mask_is_large_enough():
    """Whole examples, 256 tokens at most: the cost of a mask grows with the square of its side."""
    sizes = []
    forest = pack(tiny.random_examples([(10, 31, 31)] * 10))  # 70 tokens each
    with pytest.MonkeyPatch.context() as patched:
        calls = counted(patched, attention, "masked")
        q = torch.zeros(700, 4, 8)
        attention.dense(forest)(q, q, q)
        sizes = [len(given[0]) for given in calls]
    assert sizes == [210, 210, 210, 70]


def test_the_next_step_is_packed_by_another_thread_while_one_is_computed(tmp_path, monkeypatch):
    model = tiny.write_model(tmp_path / "model", vocab_size=101)
    rows = tiny.write_rows(tmp_path / "rows.jsonl", id_rows(12))
    config = TrainConfig(model=str(model), data=(str(rows),), out=str(tmp_path / "run"), batch_size=4)
    planned = TrainingInputs(config).steps
    plain, by, second = steps.pack, [], threading.Event()

    def noted(*given):
        by.append(threading.current_thread() is threading.main_thread())
        if len(by) == 2:
            second.set()
        return plain(*given)

    monkeypatch.setattr(steps, "pack", noted)
    made = planned.packed(Ranks(), MicroBatching(micro_tokens=10**6))
    first = next(made)
    assert second.wait(30)  # though nobody has asked for the second step
    found = [first, *made]
    assert by == [False] * len(planned) and [step.number for step in found] == list(range(1, len(planned) + 1))
    for step in found:
        assert step.ids.tolist() == planned.step(step.number).ids.tolist()
        forest = pack(step.examples, PackingOptions())
        assert torch.equal(step.batch.micro_batches[0].forest.tokens, forest.tokens)


def test_scores_do_not_depend_on_the_tokens_of_a_pass(tmp_path, monkeypatch):
    n_rows = 70  # in two batches
    folder = tiny.write_model(tmp_path / "model", vocab_size=101)
    examples = tiny.random_examples([(1 + i % 5, 1 + i % 7, 1 + i % 3) for i in range(n_rows)])
    passes = counted(monkeypatch, FusedForward, "forward")
    found, n_passes = [], []
    for micro_tokens in (1, 20, 8192):
        passes.clear()
        found.append(torch.stack(list(score_under(folder, examples, micro_tokens=micro_tokens))))
        n_passes.append(len(passes))
    assert n_passes[0] == n_rows and n_passes[2] == 2 < n_passes[1] < n_rows
    for other in found[1:]:
        torch.testing.assert_close(found[0], other, rtol=0, atol=1e-4)


def test_weights_that_are_given_back_and_gathered_again_change_no_bit(tmp_path, monkeypatch):
    """--reshard, on one process in bf16: a unit is gathered from a single shard, or nothing is wrapped at all."""
    model = tiny.write_model(tmp_path / "model", vocab_size=101)
    rows = tiny.write_rows(tmp_path / "rows.jsonl", id_rows(8))
    plain, gathered = FSDPParamGroup.unshard, []

    def noted(group, *given, **named):
        gathered.append(not group.is_unsharded)
        return plain(group, *given, **named)

    monkeypatch.setattr(FSDPParamGroup, "unshard", noted)
    found, n_gathered = [], []
    for reshard in ("no", "yes"):
        gathered.clear()
        settings = {"batch_size": 4, "epochs": 1, "lr": 1e-4, "dtype": "bfloat16", "reshard": reshard}
        out = str(tmp_path / reshard)
        lines, watch = watched(TrainConfig(model=str(model), data=(str(rows),), out=out, **settings))
        assert watch.mesh == ([1] if reshard == "yes" else [])
        found.append([(line["loss"], line["grad_norm"]) for line in lines])
        n_gathered.append(sum(gathered))
    assert n_gathered[0] == 0 and n_gathered[1] >= 2 * 2 * 2  # two steps; a model's blocks but the last; two models
    assert found[0] == found[1]


def test_held_out_rows_are_the_policys_though_the_reference_is_still_there(tmp_path):
    model = tiny.write_model(tmp_path / "model", vocab_size=101)
    rows = tiny.write_rows(tmp_path / "rows.jsonl", id_rows(12))
    found, walks = [], []
    for name, disable in (("gone", ()), ("there", ("reference-cache",))):
        settings = {"batch_size": 4, "epochs": 2, "lr": 1e-3, "eval_pairs": 4, "reference": "fused", "disable": disable}
        config = TrainConfig(model=str(model), data=(str(rows),), out=str(tmp_path / name), **settings)
        lines, watch = watched(config)
        found.append(lines[-1]["eval_rewards/margins"])
        walks.append(max(one.step for one in watch.of_reference))
    assert walks == [2, 4] and abs(found[0]) > 1e-3
    assert found[0] == pytest.approx(found[1], abs=1e-5)


def test_a_table_is_of_its_weights_configuration_rows_and_dtype(tmp_path):
    folder = tiny.write_model(tmp_path / "model", vocab_size=101)
    examples, config = tiny.random_examples([(2, 3, 4)]), folder / "config.json"
    made = [fingerprint(folder, examples, torch.float32), fingerprint(folder, examples, torch.bfloat16)]
    made.append(fingerprint(folder, tiny.random_examples([(2, 3, 4)], seed=1), torch.float32))
    text = config.read_text()
    config.write_text(text.replace('"rope_theta": 500000.0', '"rope_theta": 500001.0'))
    assert config.read_text() != text
    made.append(fingerprint(folder, examples, torch.float32))
    config.write_text(text)
    assert fingerprint(folder, examples, torch.float32) == made[0] and len(set(made)) == 4


PAGES = """
import ctypes, json
import torch
from engine.config import host
class Info(ctypes.Structure):
    _fields_ = [(n, ctypes.c_size_t) for n in "arena ordblks smblks hblks hblkhd usmblks fsmblks uordblks fordblks cost".split()]
libc = ctypes.CDLL(None)
libc.mallinfo2.restype = Info
for act in (lambda: None, host.keep_pages):
    act()
    for n in (2**20, 2**24):
        before = libc.mallinfo2()
        held = torch.zeros(n)
        during = libc.mallinfo2()
        del held
        print(json.dumps([during.hblkhd - before.hblkhd, libc.mallinfo2().arena - before.arena]))
"""  # noqa: E501

HOLES = """
import sys
import torch
from engine.config import host
def resident():
    return int(open("/proc/self/statm").read().split()[1]) * host.PAGE_BYTES
if sys.argv[1] == "kept":
    host.keep_pages()
start = resident()
held = [torch.ones(2**20) for _ in range(200)]
del held[::2]
before = resident()
host.give_back(before)  # bytes beside those of the start
assert resident() >= before - 2**20  # no more is held than the limit
host.give_back(before - start - 2**23)
print(before, before - resident())
"""


@pytest.mark.slow
def test_what_is_free_is_given_back_behind_a_pass():
    """Every second of 200 blocks of 4 MB, between others that are in use."""
    found = {}
    for way in ("kept", "plain"):
        command = [sys.executable, "-c", HOLES, way]
        done = subprocess.run(command, capture_output=True, text=True, env=tiny.environment(), timeout=100, check=True)
        found[way] = [int(number) for number in done.stdout.split()]
    assert found["kept"][0] > 800 * 2**20 and found["kept"][1] > 380 * 2**20
    assert found["plain"][0] < 700 * 2**20 and found["plain"][1] == 0  # given back as soon as it is free


HUGE = """
import re
import engine.config
import torch
held = torch.zeros(2**24)
print(re.search(r"AnonHugePages: +(\\d+) kB", open("/proc/self/smaps_rollup").read())[1])
"""
ENABLED = Path("/sys/kernel/mm/transparent_hugepage/enabled")


@pytest.mark.skipif(not ENABLED.exists() or "[never]" in ENABLED.read_text(), reason="a kernel without huge pages")
@pytest.mark.slow
def test_large_blocks_are_of_pages_of_2_mb_unless_the_environment_says_no():
    """Else a block that is given back as soon as it is free costs a fault for every 4 KB the next time."""
    found = []
    for more in ({}, {"THP_MEM_ALLOC_ENABLE": "0"}):
        command = [sys.executable, "-c", HUGE]
        environment = tiny.environment() | more
        found.append(int(subprocess.run(command, capture_output=True, env=environment, check=True).stdout))
    assert found[0] - found[1] > 2**15  # kB: half of the block at least


@pytest.mark.slow
def test_used_pages_are_kept_by_the_allocator():
    """4 MB: mapped apart and given back, or part of the heap and still there once they are freed. 64 MB, which would
    leave a hole that nothing fits: given back both ways.
    """
    command = [sys.executable, "-c", PAGES]
    done = subprocess.run(command, capture_output=True, text=True, env=tiny.environment(), timeout=100, check=False)
    assert done.returncode == 0, done.stderr
    plain, plain_large, kept, kept_large = map(json.loads, done.stdout.splitlines())
    assert plain[0] >= 2**22 and plain[1] < 2**20
    assert kept[0] == 0 and kept[1] > 2**21
    for mapped, grown in (plain_large, kept_large):
        assert mapped >= 2**26 and grown < 2**20
