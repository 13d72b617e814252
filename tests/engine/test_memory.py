"""What is planned for a block, with an adapter or without, for capped scores and logits, against what autograd saves
and what is there.
"""

import weakref
from dataclasses import replace

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from data.forest import pack
from engine.config import AdapterConfig
from engine.model import FAMILIES as model_families
from engine.model import Head, Transformer, Weighing, adapters, attention, read_config, rotations
from engine.model.logits import Squash
from engine.planning import NO_ADAPTERS, Adapted, MemoryInputs, asked_adapter, memory
from system import torch_private
from tests import tiny

LENGTHS = [(40, 70, 60), (10, 90, 30), (25, 50, 81)]


class Attended(torch.autograd.Function):
    """Saves what a fused kernel does: its inputs and its result."""

    @staticmethod
    def forward(ctx, q, k, v):
        out = q.clone()
        ctx.save_for_backward(q, k, v, out)
        return out

    @staticmethod
    def backward(ctx, gradient):
        _, k, v, _ = ctx.saved_tensors
        return gradient, torch.zeros_like(k), torch.zeros_like(v)


FAMILIES = {
    "llama": {"head_dim": 32},
    "qwen3": {"head_dim": 32},
    "phi3": {},
    "olmo2": {"head_dim": 32},
    "gemma2": {"head_dim": 32, "hidden_activation": "gelu_pytorch_tanh"},
    "gemma3_text": {"head_dim": 32, "hidden_activation": "gelu_pytorch_tanh"},
    "exaone4": {"head_dim": 32},
    "apertus": {"head_dim": 32, "hidden_act": "xielu", "rope_theta": 12e6},
}


def random_model(family, dtype):
    shape = {"hidden_size": 96, "intermediate_size": 224, "num_attention_heads": 4, "num_key_value_heads": 2}
    architecture = next(f.architecture for f in model_families if f.model_type == family)
    raw = tiny.raw_config(**shape, model_type=family, architectures=[architecture], num_hidden_layers=1)
    model = Transformer(read_config(raw | FAMILIES[family], "config.json"))
    for name, parameter in model.named_parameters():
        if "norm" not in name:
            torch.nn.init.normal_(parameter, std=0.2)
    return model.to(dtype)


def bytes_kept_a_token(model, forest):
    """Of a block, by what autograd saves of it beside the weights, the rotations and the forest."""
    own = {p.untyped_storage().data_ptr() for p in [*model.parameters(), *model.buffers()]}
    turned = rotations(model.config.ropes, forest.positions, forest.spans)
    kept = [x for rotation in turned.values() if rotation for x in rotation if x is not None]
    own |= {x.untyped_storage().data_ptr() for x in kept} | {forest.keys.untyped_storage().data_ptr()}
    saved = {}

    def keep(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            saved[storage.data_ptr()] = (storage.nbytes(), tensor)
        return tensor

    def attend(q, k, v, _):
        return Attended.apply(q, attention.gather(k, forest.keys), attention.gather(v, forest.keys))

    x = model.embed(forest.tokens).detach().requires_grad_()
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        model.blocks[0](x, turned, attend)
    return sum(size for size, _ in saved.values()) / forest.n_tokens


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_what_a_block_keeps_is_what_autograd_saves(monkeypatch, family, dtype):
    model, forest = random_model(family, dtype), pack(tiny.random_examples(LENGTHS))
    monkeypatch.setattr(memory, "KEYS", forest.keys.numel() / forest.n_tokens)
    setting = MemoryInputs(shape=model.config, device="cpu", dtype=dtype)
    assert memory.kept_bytes(setting) == pytest.approx(bytes_kept_a_token(model, forest), rel=0.01)


def random_adapted(family, dtype, asked):
    """(a frozen model with an adapter, what is counted of it)."""
    plain = random_model(family, dtype)
    with torch.device("meta"):
        model = Transformer(plain.config)
    adapters.freeze(model, dtype, adapters.held_as(asked.base_dtype, dtype))
    adapters.attach(model, asked_adapter(model, asked))
    model.to_empty(device="cpu")
    own = dict(plain.named_parameters())
    with torch.no_grad():
        for name, layer in adapters.quantised_layers(model):
            layer.quantise(own[f"{name}.weight"], 0)
        for name, parameter in model.named_parameters():
            parameter.copy_(own[name]) if name in own else torch.nn.init.normal_(parameter, std=0.1)
    return model, Adapted.of(plain.config, asked, dtype, NO_ADAPTERS, moves=False)


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("held", [None, "float32", "bfloat16", "int8", "nf4"])
def test_what_an_adapted_block_keeps_is_what_autograd_saves(monkeypatch, family, dtype, held):
    """However the base is held: a matrix that is made for a product is not kept for the backward pass."""
    asked = AdapterConfig(rank=6, base_dtype=held)
    model, counted = random_adapted(family, dtype, asked)
    forest = pack(tiny.random_examples(LENGTHS))
    monkeypatch.setattr(memory, "KEYS", forest.keys.numel() / forest.n_tokens)
    setting = MemoryInputs(shape=model.config, device="cpu", dtype=dtype, adapted=counted)
    cast = dtype.itemsize * counted.n_cast / forest.n_tokens  # of a pass, not of a token
    found = bytes_kept_a_token(model, forest)
    if family == "apertus":  # a frozen xIELU keeps less than one that trains, by which it is counted
        assert found <= memory.kept_bytes(setting) + cast <= 1.15 * found
    else:
        assert memory.kept_bytes(setting) + cast == pytest.approx(found, rel=0.01)
    model.recompute(1)
    assert bytes_kept_a_token(model, forest) == dtype.itemsize * model.config.hidden_size  # its input, as ever


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # of the compiler's own
@pytest.mark.parametrize("family", ["llama", "qwen3", "olmo2", "gemma2", "apertus"])
def test_what_a_compiled_block_keeps_is_what_the_compilers_cut_saves(monkeypatch, family):
    """The compiler's own choice of what to keep and what to make again, without the code that it would write."""
    model, forest = random_model(family, torch.bfloat16), pack(tiny.random_examples(LENGTHS))
    monkeypatch.setattr(memory, "KEYS", forest.keys.numel() / forest.n_tokens)
    torch_private.let_compiler_recompute()
    torch.compiler.reset()
    block = model.blocks[0]
    block.project = torch.compile(block.project, backend="aot_eager_decomp_partition")
    block.finish = torch.compile(block.finish, backend="aot_eager_decomp_partition")
    setting = MemoryInputs(shape=model.config, device="cpu", dtype=torch.bfloat16, is_compiled=True)
    assert memory.kept_bytes(setting) == pytest.approx(bytes_kept_a_token(model, forest), rel=0.01)


class Live(TorchDispatchMode):
    """The most bytes of tensors that were there at once, of those made inside."""

    def __init__(self):
        super().__init__()
        self.now = self.most = 0
        self.sizes = {}

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        found = operation(*args, **(kwargs or {}))
        for tensor in found if isinstance(found, (tuple, list)) else (found,):
            if isinstance(tensor, torch.Tensor) and tensor.untyped_storage()._cdata not in self.sizes:
                storage = tensor.untyped_storage()
                self.sizes[storage._cdata] = storage.nbytes()
                self.now += storage.nbytes()
                self.most = max(self.most, self.now)
                weakref.finalize(storage, self.drop, storage._cdata)
        return found

    def drop(self, address):
        self.now -= self.sizes.pop(address)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_capped_scores_take_what_is_planned_for_them(dtype):
    n, heads = 256, 4
    q, k, v = (torch.randn(1, h, n, 8, dtype=dtype, requires_grad=True) for h in (heads, 2, 2))
    mask = torch.ones(n, n, dtype=torch.bool).tril()
    with Live() as live:
        attention.capped(q, k, v, mask, Weighing(cap=50.0)).sum().backward()
    assert memory.OF_SCORE * heads * n * n == pytest.approx(live.most, rel=0.05)
    gemma = random_model("gemma2", dtype).config
    setting = MemoryInputs(shape=gemma, device="cuda", dtype=dtype, pass_tokens=n)
    many = replace(setting, most_scores=10**7)
    assert memory.needs(many)["scores"] == memory.OF_SCORE * 4 * 10**7
    assert "scores" not in memory.needs(replace(many, shape=replace(gemma, attention_cap=None)))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_capped_logits_take_what_is_planned_for_them(dtype):
    """Those of a piece and their cap's slope; the weight's gradient is held in float32, or made of a piece's own."""
    rows, vocabulary = 300, 4000
    head = Head(vocabulary, 16, Squash(1.0, 30.0)).to(dtype)
    torch.nn.init.normal_(head.weight, std=0.2)
    hidden = torch.randn(rows, 16, dtype=dtype, requires_grad=True)
    with Live() as live:
        head(hidden, torch.randint(0, vocabulary, (rows,))).sum().backward()
    gemma = replace(random_model("gemma2", dtype).config, vocab_size=vocabulary, hidden_size=16)
    setting = MemoryInputs(shape=gemma, device="cpu", dtype=dtype)
    assert memory._head(setting, rows) == pytest.approx(live.most, rel=0.06)
