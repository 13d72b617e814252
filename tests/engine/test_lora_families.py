"""Adapters of every family in PEFT: what a run writes is loaded there with our logits, what PEFT writes is read here,
and what engine.merge makes of it has the same logits in transformers.

Slow: each family is trained, and PEFT and transformers are imported. Names are those of transformers' modules, which of
a model that sees are not its file's, and of Phi-3 those of its fused matrices.
"""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from data.text import read_json
from engine import merge, train, weights
from engine.config import TrainConfig
from engine.model import adapters
from tests import tiny
from tests.engine.adapted import logits_of
from tests.rows import id_rows

FAMILIES = (
    *("Llama", "Qwen2", "Qwen3", "SmolLM3", "Mistral", "Ministral3", "Granite", "Olmo2", "Olmo3", "Phi3", "Gemma2"),
    *("Gemma3", "Gemma3 that sees", "Mistral3 that sees", "Apertus", "Exaone4"),
)
SEEING = ("Gemma3 that sees", "Mistral3 that sees")
SEES = ("model.vision_tower.", "model.multi_modal_projector.")
IDS = np.random.default_rng(7).integers(0, 98, 30).tolist()  # beyond windows of 5 and 7; no token of an image
SETTINGS = {"loss": "apo_zero", "batch_size": 8, "epochs": 1, "lr": 3e-3, "lora_rank": 4}

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing.*:FutureWarning"),  # PEFT asks transformers for it
]


@dataclass
class Trained:
    """A family's tiny model, and an adapter that a run has trained beside it."""

    family: str
    model: Path
    adapter: Path

    def base(self) -> Any:
        """transformers' model in float32, anew each time: PEFT changes what it is given."""
        from tests.engine import peers

        return peers.read(self.model, self.family).float()

    @cached_property
    def plain(self) -> Tensor:
        """[T, V] logits of the base by transformers."""
        return logits_of_peer(self.base())

    @property
    def names(self) -> set[str]:
        """The linear layers that have an adapter here."""
        return set(adapters.layers_of(weights.build(self.model)))


@pytest.fixture(scope="module", params=FAMILIES)
def trained(request, tmp_path_factory) -> Trained:
    """A family: its tests follow one another, so that each is trained once."""
    pytest.importorskip("peft")
    from tests.engine import peers  # brings transformers

    folder = tmp_path_factory.mktemp("family")
    peers.write(request.param, folder / "model")
    rows = tiny.write_rows(folder / "rows.jsonl", id_rows(22))
    where = {"model": str(folder / "model"), "data": str(rows), "out": str(folder / "run")}
    return Trained(request.param, folder / "model", train.run(TrainConfig(**SETTINGS | where)).checkpoints[-1])


def logits_of_peer(peer: Any) -> Tensor:
    """[T, V] of IDS by a model of transformers or PEFT."""
    with torch.no_grad():
        return peer(input_ids=torch.tensor([IDS])).logits[0]


def loaded(trained: Trained, adapter: Path) -> Any:
    """The base with an adapter in PEFT, which warns, and so fails, where a tensor is missing."""
    return pytest.importorskip("peft").PeftModel.from_pretrained(trained.base(), adapter)


def adapted_in(model: Any) -> set[str]:
    """The layers of a PEFT model that have an adapter, by their names in the base."""
    ends = (name for name, _ in model.named_modules() if name.endswith(".lora_A"))
    return {name.removeprefix("base_model.model.").removesuffix(".lora_A") for name in ends}


def test_peft_loads_what_a_run_wrote_with_the_same_logits(trained):
    found = logits_of_peer(loaded(trained, trained.adapter))
    ours = logits_of(weights.load(trained.adapter), IDS)
    assert (found - trained.plain).abs().max() > 0.1  # 10,000 times the tolerance: it has trained
    torch.testing.assert_close(ours, found, rtol=0, atol=1e-5)
    torch.testing.assert_close(logits_of(weights.load(trained.model), IDS), trained.plain, rtol=0, atol=1e-5)


def test_peft_uses_every_tensor_of_the_folder_and_finds_none_missing(trained):
    model = loaded(trained, trained.adapter)
    said = model.load_adapter(trained.adapter, "again")  # gives what the first loading drops
    assert not said.missing_keys and not said.unexpected_keys
    stored = load_file(trained.adapter / "adapter_model.safetensors")
    held = {name: p for name, p in model.named_parameters() if ".default." in name}
    assert {name.replace(".default", "") for name in held} == stored.keys()
    assert all(torch.equal(p, stored[name.replace(".default", "")]) for name, p in held.items())
    assert all(p.any() for p in held.values())


def test_a_merged_folder_is_to_transformers_what_the_adapter_is_to_peft(trained, tmp_path):
    from tests.engine import peers

    merge.main(["--adapter", str(trained.adapter), "--out", str(tmp_path / "merged")])
    # in float64, so that what differs is the rounding of the sums that were written, and not of two ways to compute
    found = logits_of_peer(peers.read(tmp_path / "merged", trained.family).double())
    expected = logits_of_peer(loaded(trained, trained.adapter).double())
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5, check_dtype=False)
    assert (found - trained.plain).abs().max() > 0.1


def test_ours_are_all_linear_layers_that_peft_would_adapt_but_of_what_sees(trained):
    peft = pytest.importorskip("peft")
    model = peft.get_peft_model(trained.base(), peft.LoraConfig(task_type="CAUSAL_LM", target_modules="all-linear"))
    found = adapted_in(model)
    seeing = {name for name in found if name.startswith(SEES)}
    assert found - seeing == trained.names == adapted_in(loaded(trained, trained.adapter))
    assert bool(seeing) == (trained.family in SEEING)
    if trained.family == "Phi3":  # vLLM's names, too: packed_modules_mapping of its Phi3ForCausalLM
        ends = {name.rpartition(".")[2] for name in found}
        assert ends == {"qkv_proj", "o_proj", "gate_up_proj", "down_proj"}


def targets_of(family: str, kind: str) -> Any:
    """target_modules as PEFT's users write them."""
    if kind == "all":
        return r"model\.language_model\.layers\..*_proj" if family in SEEING else "all-linear"
    some = ["qkv_proj", "down_proj"] if family == "Phi3" else ["q_proj", "v_proj", "up_proj"]
    return rf".*language_model.*\.({'|'.join(some)})" if family in SEEING else some


@pytest.mark.parametrize("kind", ["all", "some"])
def test_what_peft_saves_is_read_here_with_the_same_logits(trained, kind, tmp_path):
    peft = pytest.importorskip("peft")
    asked = peft.LoraConfig(
        r=6,
        lora_alpha=9,
        use_rslora=kind == "some",
        target_modules=targets_of(trained.family, kind),
        init_lora_weights=False,  # B is random
        modules_to_save=["lm_head"] if kind == "all" and not weights.build(trained.model).config.tied else None,
    )
    torch.manual_seed(3)
    model = peft.get_peft_model(trained.base(), asked)
    with torch.no_grad():
        for name, p in model.named_parameters():
            if "modules_to_save" in name:
                p.mul_(1.25)
            elif "lora_B" in name:
                p.mul_(0.2)
    model.save_pretrained(tmp_path / "saved")
    assert read_json(tmp_path / "saved/adapter_config.json")["base_model_name_or_path"] == str(trained.model)
    found = logits_of_peer(model.eval())
    ours = weights.load(tmp_path / "saved")
    assert (found - trained.plain).abs().max() > 0.1
    torch.testing.assert_close(logits_of(ours, IDS), found, rtol=0, atol=1e-5)
    again = tmp_path / "written"  # and as we write it, it is the same to PEFT
    weights.save_adapter(ours, again, base=str(trained.model), base_dtype="float32")
    assert torch.equal(logits_of_peer(loaded(trained, again)), found)
