"""Runs of adapters against TRL's DPOTrainer with PEFT, from the same adapter folders, and what each reads of the other.

Both need one environment: pip install -e '.[dev,peer]', then pytest -m slow tests/engine/test_lora_trl.py.
"""

import json

import pytest
import torch
from safetensors.torch import load_file

from engine import train, weights
from engine.config import TrainConfig
from tests import rows as other_rows
from tests import tiny
from tests.engine.adapted import logits_of
from tests.engine.beside_trl import COMPARED, N_STEPS, TOLERANCE, VOCABULARY, id_rows, our_lines, their_lines
from tests.engine.peft_folders import logits_in_peft, logits_in_transformers, write_adapter

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]  # the warnings are those of the peer's packages

RATE, MOST = 1e-3, 0.4  # MOST: beyond it gradients are clipped, in some steps of every run
RUNS = {  # our loss, TRL's, what the adapter is, whether the reference is the base and not where the adapter starts
    "dpo": ("dpo", "sigmoid", {}, False),
    "apo_zero": ("apo_zero", "apo_zero", {}, False),
    "apo_down": ("apo_down", "apo_down", {}, False),
    "rank-stabilised": ("apo_zero", "apo_zero", {"use_rslora": True}, False),
    "a start that is the reference": ("dpo", "sigmoid", {"b": 0.02}, False),
    "a start against the base": ("dpo", "sigmoid", {"b": 0.02}, True),
}


@pytest.mark.parametrize("name", RUNS)
def test_a_run_from_a_given_adapter_is_that_of_trl(tmp_path, name):
    """TRL takes a copy of a given adapter for the reference, where none is handed over."""
    pytest.importorskip("trl")
    pytest.importorskip("peft")
    loss, theirs, adapter, is_base = RUNS[name]
    model = tiny.write_model(tmp_path / "model", vocab_size=VOCABULARY)
    start, rows = write_adapter(tmp_path / "start", model, **adapter), id_rows()
    them = their_lines(model, rows, tmp_path, theirs, start, with_base=is_base, learning_rate=RATE, max_grad_norm=MOST)
    flags = {"adapter": str(start), "lr": RATE, "max_grad_norm": MOST} | (
        {"reference_model": "base"} if is_base else {}
    )
    for n_ranks in (1, 2):
        us = our_lines(model, rows, tmp_path / f"on-{n_ranks}", loss, flags, n_ranks)
        assert [line["step"] for line in us] == [line["step"] for line in them] == list(range(1, N_STEPS + 1))
        apart = {key: max(abs(a[key] - b[key]) for a, b in zip(us, them, strict=True)) for key in COMPARED}
        moved = {key: max(line[key] for line in us) - min(line[key] for line in us) for key in COMPARED}
        norms = [line["grad_norm"] for line in us]
        norm_apart = max(abs(a["grad_norm"] / b["grad_norm"] - 1) for a, b in zip(us, them, strict=True))
        print(f"{name}, {n_ranks} ranks: apart {apart}; moved {moved}; norms {min(norms):.3g} to {max(norms):.3g}, "
              f"apart {norm_apart:.2g}")  # fmt: skip
        assert apart["loss"] < TOLERANCE and norm_apart < 2e-3, (apart, norm_apart)
        assert max(apart[key] for key in COMPARED[1:]) < 5e-3, apart
        assert all(distance > 0.01 for distance in moved.values()), moved  # standing still, anything would agree
        assert min(norms) < MOST < max(norms)
        assert (us[0]["rewards/chosen"] == us[0]["rewards/rejected"] == 0) is not is_base
    one, two = (load_file(tmp_path / f"on-{n}/ours/epoch-02/adapter_model.safetensors") for n in (1, 2))
    for key in one:
        torch.testing.assert_close(two[key], one[key], rtol=0, atol=1e-4)


IDS = list(range(2, 32))
WRITTEN = {
    "rank-stabilised": {"lora_rslora": True, "lora_alpha": 3.5},
    "some layers by an expression": {"lora_targets": (r"model\.layers\.[02]\.mlp\..*", "q_proj")},
    "a head that trains whole": {"train_also": ("lm_head",)},
    "head and embedding whole": {"train_also": ("lm_head", "embed_tokens"), "lora_targets": ("v_proj",)},
}


def run(folder, model, **settings):
    """Three steps of 4 pairs, at a rate that moves a good deal."""
    data = tiny.write_rows(folder / "rows.jsonl", other_rows.id_rows(12))
    asked = {"model": str(model), "data": str(data), "loss": "apo_zero", "batch_size": 4, "epochs": 1, "lr": 3e-3}
    return train.run(TrainConfig(**(asked | {"out": str(folder / "run"), "lora_rank": 4} | settings)))


@pytest.mark.parametrize("name", WRITTEN)
def test_what_is_written_has_our_logits_in_peft_and_in_transformers(tmp_path, name):
    pytest.importorskip("peft")
    model = tiny.write_model(tmp_path / "model", vocab_size=VOCABULARY)
    folder = run(tmp_path, model, **WRITTEN[name]).checkpoints[-1]
    ours, plain = (logits_of(weights.load(place), IDS) for place in (folder, model))
    assert (ours - plain).abs().max() > 0.1
    for peers in (logits_in_peft(model, folder, IDS), logits_in_transformers(folder, IDS)):
        torch.testing.assert_close(ours, peers, rtol=0, atol=1e-5)


SAVED = {
    "every layer": {},
    "rank-stabilised": {"use_rslora": True, "lora_alpha": 5},
    "an expression": {"target_modules": r".*layers\.[01]\..*(q_proj|up_proj)"},
    "all but some": {"exclude_modules": ["o_proj", "model.layers.1.mlp.up_proj"]},
    "whole names": {"target_modules": ["layers.0.self_attn.q_proj", "model.layers.2.mlp.down_proj"]},
    "a whole head": {"modules_to_save": ["lm_head"]},
    "head and embedding": {"modules_to_save": ["embed_tokens", "lm_head"], "target_modules": ["k_proj"]},
}


@pytest.mark.parametrize("name", SAVED)
def test_what_peft_has_saved_has_its_logits_here(tmp_path, name):
    pytest.importorskip("peft")
    model = tiny.write_model(tmp_path / "model", vocab_size=VOCABULARY)
    folder = write_adapter(tmp_path / "adapter", model, b=0.2, **SAVED[name])
    theirs = logits_in_peft(model, folder, IDS)
    assert (theirs - logits_in_transformers(model, IDS)).abs().max() > 0.1
    torch.testing.assert_close(logits_of(weights.load(folder), IDS), theirs, rtol=0, atol=1e-5)


@pytest.mark.parametrize("settings", [{}, {"train_also": ("lm_head",), "base_dtype": "int8"}], ids=["plain", "int8"])
def test_a_run_that_was_stopped_writes_the_same_bytes(tmp_path, settings):
    """Twice as far as it was when it was stopped, in the second epoch, where the reference is a table's."""
    model = tiny.write_model(tmp_path / "model", vocab_size=VOCABULARY)
    found = []
    for name, *parts in (("whole", {}), ("stopped", {"stop_after": 2}, {"resume": True}), ("later", {"stop_after": 4},
                         {"resume": True})):  # fmt: skip
        (tmp_path / name).mkdir()
        for part in parts:
            result = run(tmp_path / name, model, epochs=2, **settings, **part)
        assert [path.name for path in result.checkpoints] == ["epoch-01", "epoch-02"] and result.n_steps == 6
        files = ("adapter_model.safetensors", "adapter_config.json", "engine.json")
        found.append([(path / file).read_bytes() for path in result.checkpoints for file in files])
    assert found[0] == found[1] == found[2] and found[0][0] != found[0][3]
    assert json.loads(found[0][1])["base_model_name_or_path"] == str(model.resolve())
