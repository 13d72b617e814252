"""Our Llama against transformers' LlamaForCausalLM, in float32, on the same weights."""

import pytest
import torch
from transformers import LlamaConfig as PeerConfig
from transformers import LlamaForCausalLM

from engine import weights
from engine.model import Llama, attention, read_config
from engine.model.logits import wide_logits
from system import InputError
from tests import tiny


def all_logits(model: Llama, ids: torch.Tensor) -> torch.Tensor:
    """[T] -> [T, V], one causal document."""

    def attend(q, k, v, _):
        t = len(q)
        return attention.masked(q, k, v, torch.ones(t, t, dtype=torch.bool).tril())

    x = model.embed(ids)
    turned = tiny.turned(model, len(ids))
    for block in model.blocks:
        x = block(x, turned, attend)
    return wide_logits(model.norm(x), model.head.matrix(model.tied))


@pytest.mark.parametrize("shape", tiny.SHAPES)
def test_logits_equal_those_of_transformers(shape, tmp_path):
    torch.manual_seed(1)
    peer = LlamaForCausalLM(
        PeerConfig(**tiny.raw_config(shape, initializer_range=0.2, attn_implementation="eager"))
    ).eval()
    peer.save_pretrained(tmp_path / "peer")  # transformers 5 writes rope_parameters
    ids = torch.randint(0, 101, (200,))
    ours = weights.load(tmp_path / "peer")
    with torch.no_grad():
        torch.testing.assert_close(all_logits(ours, ids), peer(ids[None]).logits[0], rtol=0, atol=1e-4)


@pytest.mark.parametrize("shape", ["llama3", "llama3.1"])
def test_both_spellings_of_rope_mean_the_same(shape):
    meta = tiny.raw_config(shape)  # rope_theta and rope_scaling, as in Meta's releases
    written_by_5 = PeerConfig(**meta).to_dict()
    assert "rope_theta" not in written_by_5
    ours, theirs = read_config(meta, "meta"), read_config(written_by_5, "transformers")
    assert ours.ropes == theirs.ropes
    written_by_5["rope_theta"] = written_by_5["rope_parameters"].pop("rope_theta")  # beside it: transformers takes that
    beside = read_config(written_by_5, "converted")
    assert beside.ropes == ours.ropes
    assert PeerConfig(**written_by_5).rope_parameters["rope_theta"] == ours.ropes[0].theta != 10000.0


def test_head_dim_is_taken_where_it_is_given(tmp_path):
    torch.manual_seed(1)
    peer = LlamaForCausalLM(PeerConfig(**tiny.raw_config("llama3", head_dim=12, initializer_range=0.2))).eval()
    peer.save_pretrained(tmp_path / "peer")
    ids = torch.randint(0, 101, (50,))
    with torch.no_grad():
        torch.testing.assert_close(
            all_logits(weights.load(tmp_path / "peer"), ids), peer(ids[None]).logits[0], rtol=0, atol=1e-4
        )


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"architectures": ["MixtralForCausalLM"]}, "mixture of experts.*LlamaForCausalLM"),
        ({"attention_bias": "yes"}, "attention_bias"),
        ({"rope_scaling": {"rope_type": "longrope", "factor": 2.0}}, "longrope"),
        ({"quantization_config": {"bits": 4}}, "quantization_config"),
        ({"num_hidden_layers": 10**9}, "num_hidden_layers"),
        ({"num_key_value_heads": 3}, "kv heads"),
        ({"rms_norm_eps": float("nan")}, "rms_norm_eps"),
        ({"hidden_size": -32}, "hidden_size"),
    ],
)
def test_what_is_not_supported_is_refused_in_one_sentence(change, said):
    with pytest.raises(InputError, match=said) as caught:
        read_config(tiny.raw_config(**change), "folder/config.json")
    assert str(caught.value).startswith("folder/config.json: ") and "\n" not in str(caught.value)


def test_parameters_are_counted(tmp_path):
    for shape in tiny.SHAPES:
        model = tiny.random_llama(shape)
        assert model.config.n_parameters == sum(p.numel() for p in model.parameters())
