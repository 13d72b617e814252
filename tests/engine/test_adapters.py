"""LoRA: the numbers of W + s B A, one copy of the weights for policy and reference, and what trains of it."""

import math
from dataclasses import replace

import pytest
import torch

from data.forest import pack
from engine.model import Adapter, FusedForward, Transformer, adapters
from engine.weights.adapter_config import written
from system import InputError
from tests import tiny
from tests.engine.adapted import adapted, multiplied_out

EVERY = ["down_proj", "gate_proj", "k_proj", "o_proj", "q_proj", "up_proj", "v_proj"]


def forest():
    return pack(tiny.random_examples([(5, 4, 6), (7, 3, 2), (3, 1, 5)], seed=3))


def weighed(logps):
    """A smooth function of log-probs in which every sequence has a weight of its own."""
    return (logps * torch.linspace(-1, 2, len(logps), dtype=torch.float64)).sum()


@pytest.mark.parametrize(("rslora", "scale"), [(False, 8 / 4), (True, 8 / math.sqrt(4))])
@pytest.mark.parametrize("shape", ["llama3", "llama3.2"])
def test_an_adapter_computes_what_its_product_added_to_the_matrix_does(shape, rslora, scale):
    plain, model = adapted(shape, rslora=rslora)
    found = FusedForward(model)(forest(), with_reference=False).logps
    base = FusedForward(plain)(forest(), with_reference=False).logps.detach()
    expected = FusedForward(multiplied_out(plain, model, scale))(forest(), with_reference=False).logps
    assert (expected - base).abs().max() > 1  # it does something
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-10)


def test_the_gradients_of_a_and_b_are_those_of_finite_differences():
    _, model = adapted()
    fused, packed = FusedForward(model), forest()
    weighed(fused(packed, with_reference=False).logps).backward()
    generator = torch.Generator().manual_seed(5)
    for name, parameter in model.trained():
        direction = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
        values = []
        for sign in (1, -1):
            with torch.no_grad():
                parameter += sign * 1e-6 * direction
                values.append(weighed(fused(packed, with_reference=False).logps))
                parameter -= sign * 1e-6 * direction
        assert parameter.grad is not None
        slope = ((values[0] - values[1]) / 2e-6).item()
        assert (parameter.grad * direction).sum().item() == pytest.approx(slope, rel=2e-5, abs=1e-6), name


def test_nothing_but_a_and_b_has_a_gradient():
    _, model = adapted()
    weighed(FusedForward(model)(forest(), with_reference=False).logps).backward()
    assert {name.rpartition(".")[2] for name, p in model.named_parameters() if p.grad is not None} == {
        "lora_A",
        "lora_B",
    }
    assert sum(p.grad is not None for p in model.parameters()) == 2 * 7 * 3  # of every layer of three blocks


def test_a_zero_b_has_the_bits_of_the_base():
    plain, model = adapted(b=0.0)
    found, base = (FusedForward(m)(forest(), with_reference=False).logps for m in (model, plain))
    assert torch.equal(found, base)


def test_a_reference_on_the_policys_base_is_the_base_and_has_no_weights_of_its_own():
    plain, model = adapted()
    view = adapters.reference_of(model, None, torch.device("cpu"))
    found = FusedForward(model, view)(forest(), with_reference=True)
    expected = FusedForward(plain)(forest(), with_reference=False).logps.detach()
    assert (found.logps - expected).abs().max() > 1
    torch.testing.assert_close(found.ref_logps, expected, rtol=0, atol=0)
    ours = {p.data_ptr() for p in model.parameters()}
    assert all(p.data_ptr() in ours for p in view.parameters())


def test_a_reference_on_the_policys_base_with_the_policys_adapter_has_the_policys_bits():
    _, model = adapted()
    view = adapters.reference_of(model, model.adapter, torch.device("cpu")).double()
    mine = dict(model.named_parameters())
    with torch.no_grad():
        for name, parameter in view.named_parameters():
            if name.endswith(("lora_A", "lora_B")):
                parameter.copy_(mine[name])
    found = FusedForward(model, view)(forest(), with_reference=True)
    assert torch.equal(found.logps.detach(), found.ref_logps)
    with torch.no_grad():
        mine["blocks.1.mlp.up.lora_B"].mul_(2)
    found = FusedForward(model, view)(forest(), with_reference=True)
    assert not torch.equal(found.logps.detach(), found.ref_logps)  # its own numbers: it stays where it was


def test_the_gradient_is_the_same_with_the_reference_beside_it_and_with_recomputed_blocks():
    _, model = adapted()
    found = []
    for with_reference, n_recomputed in ((False, 0), (True, 0), (True, 3)):
        model.zero_grad()
        model.recompute(n_recomputed)
        fused = FusedForward(model, adapters.reference_of(model, None, torch.device("cpu")))
        weighed(fused(forest(), with_reference=with_reference).logps).backward()
        found.append({name: p.grad.clone() for name, p in model.trained() if p.grad is not None})
    assert found[0] and max(g.abs().max().item() for g in found[0].values()) > 0.1
    for other in found[1:]:
        assert all(torch.equal(found[0][name], gradient) for name, gradient in other.items())


def test_a_head_that_trains_whole_leaves_the_references_alone():
    plain, model = adapted(whole=("lm_head", "embed_tokens"))
    view = adapters.reference_of(model, None, torch.device("cpu"))
    with torch.no_grad():
        for name in ("head", "embed"):
            getattr(view, name).weight.copy_(getattr(plain, name).weight)
            getattr(model, name).weight.mul_(1.5)
    found = FusedForward(model, view)(forest(), with_reference=True)
    expected = FusedForward(plain)(forest(), with_reference=False).logps.detach()
    torch.testing.assert_close(found.ref_logps, expected, rtol=0, atol=1e-10)
    weighed(found.logps).backward()
    assert model.head.weight is not None and model.head.weight.grad is not None
    assert model.embed.weight.grad is not None and view.embed.weight.grad is None


def test_a_reference_with_a_head_of_its_own_leaves_the_policys_alone():
    """Whose adapter trains none: the base's head is the policy's, and not to be written over."""
    _, model = adapted()
    with_head = replace(adapter_of(model), whole=("lm_head",))
    view = adapters.reference_of(model, with_head, torch.device("cpu"))
    assert view.head is not model.head and view.embed is model.embed
    own = adapters.own_parameters(view)
    assert "head.weight" in own and "embed.weight" not in own
    assert own["head.weight"].data_ptr() != dict(model.named_parameters())["head.weight"].data_ptr()


def adapter_of(model):
    assert model.adapter is not None
    return model.adapter


@pytest.mark.parametrize("held", ["int8", "nf4"])
def test_a_quantised_base_computes_with_the_matrix_that_its_codes_stand_for(held):
    plain, model = adapted(held=held)
    with torch.no_grad():
        own = dict(plain.named_parameters())
        for name, layer in adapters.quantised_layers(model):
            matrix, held_as = own[f"{name}.weight"], layer.matrix()
            assert 1e-4 < (held_as - matrix).norm() / matrix.norm() < 0.2  # another one
            matrix.copy_(held_as)
    expected = FusedForward(multiplied_out(plain, model, 2.0))(forest(), with_reference=False).logps
    found = FusedForward(model)(forest(), with_reference=False).logps
    torch.testing.assert_close(found, expected, rtol=0, atol=2e-4)  # codes times scales are float32


@pytest.mark.parametrize(
    ("asked", "meant"),
    [
        ((), EVERY),
        (("all-linear",), EVERY),
        (("q_proj", "down_proj"), ["down_proj", "q_proj"]),
        (("model.layers.1.self_attn.q_proj",), ["model.layers.1.self_attn.q_proj"]),
        ((r"model\.layers\.[02]\.mlp\.up_proj",), ["model.layers.0.mlp.up_proj", "model.layers.2.mlp.up_proj"]),
        ((r".*\.self_attn\..*",), ["k_proj", "o_proj", "q_proj", "v_proj"]),
        ((r".*layers\.0\..*", "q_proj"), [*(f"model.layers.0.mlp.{x}_proj" for x in ("down", "gate", "up")),
                                        *(f"model.layers.0.self_attn.{x}_proj" for x in "kov"), "q_proj"]),
    ],
)  # fmt: skip
def test_targets_are_names_or_expressions_over_whole_names(asked, meant):
    layers = adapters.layers_of(tiny.random_llama())
    assert adapters.short_names(layers, adapters.select(layers, asked)) == meant


def test_each_target_that_means_nothing_is_named():
    layers = adapters.layers_of(tiny.random_llama())
    with pytest.raises(
        InputError, match=r"^qkv_proj, proj: no linear layer of a block has this name; there are down_proj,"
    ):
        adapters.select(layers, ("q_proj", "qkv_proj", "proj"))
    with pytest.raises(InputError, match="is not a regular expression"):
        adapters.select(layers, ("(q_proj",))


def test_a_rank_above_a_matrix_is_refused():
    model = Transformer(tiny.random_llama().config)
    modules = adapters.select(adapters.layers_of(model), ())
    with pytest.raises(InputError, match=r"rank 17 is above the smaller side of .*k_proj \(16"):
        adapters.check_fits(model, Adapter(rank=17, alpha=1, modules=modules))
    adapters.check_fits(model, Adapter(rank=16, alpha=1, modules=modules))


def test_a_tied_head_is_not_trained_whole():
    model = tiny.random_llama("llama3.2")
    with pytest.raises(InputError, match="tie_word_embeddings"):
        adapters.check_fits(model, Adapter(rank=2, alpha=1, modules=(), whole=("lm_head",)))


def test_a_fresh_a_is_uniform_by_its_columns_and_drawn_by_name_and_seed():
    found = adapters.initial("blocks.0.attention.q.lora_A", (64, 400), seed=0)
    assert found.abs().max() <= 1 / 20 and found.std().item() == pytest.approx(1 / 20 / math.sqrt(3), rel=0.02)
    assert torch.equal(found, adapters.initial("blocks.0.attention.q.lora_A", (64, 400), seed=0))
    for name, seed in (("blocks.0.attention.q.lora_A", 1), ("blocks.1.attention.q.lora_A", 0)):
        assert not torch.equal(found, adapters.initial(name, (64, 400), seed))
    assert not adapters.initial("blocks.0.attention.q.lora_B", (64, 4), seed=0).any()


@pytest.mark.parametrize(
    ("base", "expected"),
    [("org/m", ("org/m", None)), ("org/m@v1", ("org/m", "v1")), ("/at/m@home", ("/at/m@home", None))],
)
def test_a_bases_revision_stands_where_peft_reads_it(base, expected):
    """PEFT knows no NAME@REVISION."""
    made = written(Adapter(rank=2, alpha=4, modules=("q_proj",)), ["q_proj"], base)
    assert (made["base_model_name_or_path"], made["revision"]) == expected
