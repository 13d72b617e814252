"""One process in bf16 casts copies of its float32 masters; FSDP on one rank, which it replaces, gives the same bits."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch.distributed.fsdp._fully_shard._fsdp_param_group import FSDPParamGroup

from engine.config import TrainConfig
from engine.distributed import Ranks
from engine.model import FusedForward, Llama
from engine.step import Hooks
from engine.train import run
from tests import tiny
from tests.proofs import counted, watched
from tests.rows import id_rows

IN_BFLOAT16 = {"dtype": "bfloat16", "save_dtype": "float32", "batch_size": 4, "epochs": 2, "lr": 1e-3}
NUMBERS = ("loss", "grad_norm", "logps/chosen", "rewards/margins", "eval_loss", "eval_rewards/margins")


@pytest.fixture
def job(tmp_path):
    """A function that gives a run's configuration, in a folder of that name."""
    model = tiny.write_model(tmp_path / "model", vocab_size=101)
    rows = tiny.write_rows(tmp_path / "rows.jsonl", id_rows(16))

    def config(name, **settings):
        given = IN_BFLOAT16 | {"eval_pairs": 4} | settings
        return TrainConfig(model=str(model), data=(str(rows),), out=str(tmp_path / name), **given)

    return config


def saved(config):
    """The float32 weights that a run ended with."""
    return load_file(Path(config.out) / "epoch-02" / "model.safetensors")


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"micro_tokens": 40, "recompute_blocks": 1},
        {"loss": "kto_pair", "micro_tokens": 40},
        {"reference_update": "soft", "reference_update_steps": 1},
        {"optimizer": "adamw", "weight_decay": 0.1, "loss": "tdpo2", "reference": "fused"},
        {"reference": "precompute", "loss": "dpo"},
    ],
    ids=lambda x: "-".join(map(str, x)) or "plain",
)
def test_copies_give_the_bits_of_fsdp_on_one_rank(job, settings, monkeypatch):
    gathered = counted(monkeypatch, FSDPParamGroup, "unshard")
    found = {}
    for name, reshard in (("copies", "no"), ("fsdp", "yes")):
        gathered.clear()
        config = job(name, reshard=reshard, **settings)
        lines, watch = watched(config)
        assert (bool(gathered), watch.mesh) == ((False, []) if name == "copies" else (True, [1]))
        found[name] = [{k: line[k] for k in NUMBERS if k in line} for line in lines], saved(config)
    (lines, weights), (expected_lines, expected) = found.values()
    assert lines == expected_lines and len({line["loss"] for line in lines}) > 1  # it learns
    for name, weight in expected.items():
        assert torch.equal(weights[name], weight), name


def test_a_state_of_the_one_goes_on_with_the_other(job):
    """Saved with copies and gone on with FSDP, and the other way: the bits of a run that never stopped."""
    run(job("whole"))
    expected = saved(job("whole"))
    for first, then in (("no", "yes"), ("yes", "no")):
        name = f"{first}-{then}"
        assert not run(job(name, reshard=first, stop_after=3)).is_finished
        assert run(job(name, reshard=then, resume=True)).is_finished
        for tensor, weight in saved(job(name)).items():
            assert torch.equal(expected[tensor], weight), (name, tensor)


def test_the_copies_compute_and_the_masters_are_what_everything_else_sees(job):
    """In a pass the modules hold bf16; when a step is done, float32, though a pass without gradient came in between."""
    seen = {"backward": set(), "after": set()}
    held = {}

    def note(step, phase):
        if phase == "backward":
            seen["backward"].update(p.dtype for p in held["policy"].parameters())

    hooks = Hooks(
        begin=lambda training: held.update(policy=training.policy),
        after_step=lambda training, step: seen["after"].update(p.dtype for p in training.policy.parameters()),
        on_phase=note,
    )
    result = run(job("run"), hooks)
    assert seen == {"backward": {torch.bfloat16}, "after": {torch.float32}}
    assert {p.dtype for p in held["policy"].parameters()} == {torch.float32}
    assert "eval_loss" in result.metrics


def test_gradients_of_several_passes_add_up_in_float32():
    """In bf16 the second of two equal gradients and a small one would be lost: 256 + 1 is 256 there."""
    ranks = Ranks.join(dtype=torch.bfloat16)
    with torch.device("meta"):
        policy = Llama(tiny.random_llama().config)
    fused = ranks.place(FusedForward(policy), reshards=False)
    masters = dict(policy.named_parameters())
    for factor in (256.0, 1.0):
        for hook in fused._forward_pre_hooks.values():
            hook(fused, ())
        sum(p.sum() * factor for p in policy.parameters()).backward()
        assert {p.dtype for p in policy.parameters()} == {torch.bfloat16}
        ranks.take_gradients()
    assert dict(policy.named_parameters()).keys() == masters.keys()
    for name, p in policy.named_parameters():
        assert p is masters[name] and p.grad.dtype == torch.float32 and bool((p.grad == 257.0).all()), name
    assert torch.tensor(256.0, dtype=torch.bfloat16) + 1 == 256  # the proof would hold for nothing


def test_a_reference_that_is_released_leaves_nothing():
    ranks = Ranks.join(dtype=torch.bfloat16)
    with torch.device("meta"):
        policy, reference = (Llama(tiny.random_llama().config) for _ in range(2))  # both float32: it may move
    fused = ranks.place(FusedForward(policy, reference), reshards=False)
    (copies,) = ranks._copies
    n = len(copies._places)
    ranks.release(reference)
    assert len(copies._places) == n / 2 and all(m in set(policy.modules()) for m, *_ in copies._places)
    assert sum(p.untyped_storage().size() for p in reference.parameters()) == 0
    assert isinstance(fused.reference, Llama)  # whoever releases it takes it out
