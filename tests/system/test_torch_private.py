"""The private names of torch that we use: each is there, and where one is gone, what is promised happens."""

import io
import pickle
import types

import pytest
import torch
from torch.distributed import distributed_c10d
from torch.distributed.checkpoint.state_dict_saver import save

from engine.distributed.ranks import Ranks
from engine.model import FusedForward
from system import InputError, torch_private
from tests import tiny

LACKS = f"torch {torch.__version__} has no such name; see system/torch_private.py for what follows: "


def test_the_compiler_can_be_let_compute_again():
    from torch._functorch import config

    name = "ban_recompute_materialized_backward"
    assert hasattr(config, name), LACKS + name
    with config.patch({name: True}):  # what monkeypatch restores there is hidden from the compiler
        torch_private.let_compiler_recompute()
        assert getattr(config, name) is False
    assert hasattr(config, name)


def test_without_that_setting_it_is_said_and_nothing_is_set(monkeypatch, capsys):
    from torch import _functorch

    lacks = types.SimpleNamespace()
    monkeypatch.setattr(_functorch, "config", lacks)
    torch_private.let_compiler_recompute()
    assert "with this version of torch compiled blocks keep more" in capsys.readouterr().err and not vars(lacks)


def test_the_compiler_can_be_let_keep_more_graphs():
    from torch._dynamo import config

    assert hasattr(config, "recompile_limit"), LACKS + "recompile_limit"
    for before, after in ((8, torch_private.GRAPHS), (100, 100)):  # what somebody has set higher stays
        with config.patch(recompile_limit=before):
            torch_private.allow_graphs()
            assert config.recompile_limit == after


def test_without_that_limit_it_is_said_and_nothing_is_set(monkeypatch, capsys):
    from torch import _dynamo

    lacks = types.SimpleNamespace()
    monkeypatch.setattr(_dynamo, "config", lacks)
    torch_private.allow_graphs()
    assert "some blocks may run uncompiled" in capsys.readouterr().err and not vars(lacks)


def test_the_store_of_the_ranks_is_given_out():
    if not distributed_c10d.is_initialized():  # by another test of this process
        ranks = Ranks.join(dtype=torch.bfloat16)
        ranks.place(FusedForward(tiny.random_llama()), reshards=True)  # makes the group
    assert hasattr(distributed_c10d, "_get_default_store"), LACKS + "_get_default_store"
    store = torch_private.default_store()
    store.set("private", "x")
    assert store.get("private") == b"x" and store.check(["private"]) and not store.check(["none"])


def test_without_the_store_a_lost_rank_is_not_named_and_that_is_said(monkeypatch, capsys):
    monkeypatch.delattr(distributed_c10d, "_get_default_store")
    assert torch_private.default_store() is None
    assert "will not name a rank that is lost" in capsys.readouterr().err


@pytest.mark.filterwarnings("ignore:torch.distributed is disabled")
def test_what_describes_a_state_has_the_names_that_are_let_in(tmp_path):
    """All that torch's own pickle of a state's metadata names, one of strided float32 and int64 tensors."""
    tensors = {"a": torch.zeros(2, 3), "b": torch.ones(4, dtype=torch.int64)}
    save(tensors, checkpoint_id=tmp_path / "state", no_dist=True)
    named = set()

    class Names(pickle.Unpickler):
        def find_class(self, module, name):
            named.add((module, name))
            return super().find_class(module, name)

    Names(io.BytesIO((tmp_path / "state/.metadata").read_bytes())).load()
    of_states = {name for module, name in named if module.startswith("torch.distributed.checkpoint")}
    assert {"Metadata", "TensorStorageMetadata", "_StorageInfo"} <= of_states, LACKS + str(of_states)
    assert of_states <= set(torch_private.DESCRIBES_STATES), LACKS + str(of_states)
    assert torch_private.DESCRIBES_LAYOUTS in named, LACKS + str(named)


def test_a_matrix_is_made_orthogonal_as_torchs_muon_makes_it():
    """Momentum 0 and no decay leave of its step the matrix alone: lr times it is what the weights lose."""
    from torch.optim import _muon

    assert hasattr(_muon, "_zeropower_via_newtonschulz"), LACKS + "_zeropower_via_newtonschulz"
    gradient = torch.randn(6, 4, generator=torch.Generator().manual_seed(0))
    weights = torch.nn.Parameter(torch.zeros(6, 4))
    weights.grad = gradient.clone()
    torch.optim.Muon([weights], lr=1.0, momentum=0.0, weight_decay=0.0, adjust_lr_fn="match_rms_adamw").step()
    made = torch_private.orthogonalise(gradient)
    torch.testing.assert_close(weights.detach(), -0.2 * 6**0.5 * made.float(), rtol=1e-6, atol=0)
    sizes = torch.linalg.svdvals(made.float())
    assert sizes.min() > 0.5 and sizes.max() < 1.5


def test_without_torchs_muon_it_is_said(monkeypatch):
    from torch.optim import _muon

    monkeypatch.delattr(_muon, "_zeropower_via_newtonschulz")
    with pytest.raises(InputError, match=r"^--optimizer muon: this version of torch has another Muon than 2\.11 to"):
        torch_private.orthogonalise(torch.ones(2, 2))
