"""LoRA (arXiv 2106.09685): what trains beside a frozen linear layer, and the reference, which is the same weights
without it.

    y = W x + s B (A x), s = alpha / rank, or alpha / sqrt(rank)

`attach` puts a FrozenLinear into the place of every linear layer of a model's blocks; the blocks know nothing of it.
`reference_of` gives the reference: a model that computes with the policy's weights as they lie there at the moment,
gathered or not, and with an adapter of its own or none. Nothing of the base is there twice.

Where a checkpoint fuses several of our matrices (Phi-3's qkv_proj) the adapter is the fused matrix's: its parts share
one A, and B is cut by rows as W is.
"""

# T packed tokens, D hidden, r rank

import math
import re
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from engine.model.head import Head
from engine.model.model_config import ModelConfig
from engine.model.quantisation import Quantisation, dequantise, product, quantise, shapes
from engine.model.transformer import Transformer
from system import InputError

WHOLE = {"lm_head": "head", "embed_tokens": "embed"}
"""What can train whole beside an adapter: the field's names -> ours."""
ALL = "all-linear"
"""What PEFT calls every linear layer but the head."""


@dataclass(frozen=True, kw_only=True)
class Adapter:
    """What an adapter is, without its numbers."""

    rank: int
    alpha: float
    rslora: bool = False
    modules: tuple[str, ...]
    """The linear layers that have one, by their whole names in transformers, sorted."""
    whole: tuple[str, ...] = ()
    """Which of lm_head and embed_tokens train whole beside it."""

    @property
    def scale(self) -> float:
        """s: alpha / rank, or with rank-stabilised scaling alpha / sqrt(rank) (arXiv 2312.03732)."""
        return self.alpha / (math.sqrt(self.rank) if self.rslora else self.rank)


class Part(NamedTuple):
    """One of our linear layers, as part of a checkpoint's."""

    name: str
    """Ours: blocks.0.attention.q."""
    first: int
    """The row of the checkpoint's matrix that is its first one."""


class FrozenLinear(nn.Module):
    """A linear layer whose matrix does not train: as it is, or quantised; with an adapter or without."""

    codes: Tensor | None
    scales: Tensor | None

    def __init__(self, layer: nn.Linear, dtype: torch.dtype | Quantisation) -> None:
        """layer: on the meta device. dtype: how its matrix is held; a bias is held as the layer has it."""
        super().__init__()
        self.in_features, self.out_features = layer.in_features, layer.out_features
        self.kind: Quantisation | None = None if isinstance(dtype, torch.dtype) else dtype
        self.weight = None
        if isinstance(dtype, torch.dtype):
            self.weight = nn.Parameter(layer.weight.detach().to(dtype), requires_grad=False)
        self.bias = None if layer.bias is None else nn.Parameter(layer.bias.detach(), requires_grad=False)
        held = {"codes": None, "scales": None}
        if self.kind is not None:
            found = shapes(self.kind, self.out_features, self.in_features)
            held = {
                name: torch.empty(shape, dtype=own, device="meta")
                for name, (shape, own) in zip(held, found, strict=True)
            }
        for name, tensor in held.items():
            self.register_buffer(name, tensor, persistent=False)
        self.scale = 0.0
        self.lora_A: nn.Parameter | None = None
        self.lora_B: nn.Parameter | None = None
        self._first: tuple[FrozenLinear, ...] = ()  # in a tuple: it is no part of this module

    def adapt(self, adapter: Adapter, first: "FrozenLinear | None") -> None:
        """Puts an adapter beside it, whose A is the first part's of the same matrix where that is another."""
        self.scale = adapter.scale
        self._first = () if first is None else (first,)
        if first is None:
            self.lora_A = nn.Parameter(torch.empty(adapter.rank, self.in_features, device="meta"))
        self.lora_B = nn.Parameter(torch.empty(self.out_features, adapter.rank, device="meta"))

    def quantise(self, rows: Tensor, first: int) -> None:
        """Puts rows [n, in] of the matrix, from its first-th on, into codes and scales."""
        assert self.kind is not None and self.codes is not None and self.scales is not None
        n = len(rows)
        self.codes[first : first + n], self.scales[first : first + n] = quantise(rows.to(self.codes.device), self.kind)

    def matrix(self) -> Tensor:
        """W [out, in]: as it is, or float32 of what its codes stand for."""
        if self.weight is not None:
            return self.weight
        assert self.kind is not None and self.codes is not None and self.scales is not None
        return dequantise(self.codes, self.scales, self.kind, self.in_features, torch.float32)

    def base(self, x: Tensor) -> Tensor:
        """W x + bias: x [T, in] -> [T, out], in x's dtype."""
        bias = None if self.bias is None else self.bias.to(x.dtype)
        if self.weight is not None:
            if self.weight.dtype != x.dtype:
                return _CastProduct.apply(x, self.weight, bias)  # pyright: ignore[reportReturnType]
            return linear(x, self.weight, bias)
        assert self.kind is not None and self.codes is not None and self.scales is not None
        return product(x, self.codes, self.scales, self.kind, self.in_features, bias)

    def forward(self, x: Tensor) -> Tensor:
        """x [T, in] -> [T, out], in x's dtype."""
        a = self._first[0].lora_A if self._first else self.lora_A
        return self.adapted(x, a, self.lora_B, self.scale)

    def adapted(self, x: Tensor, a: Tensor | None, b: Tensor | None, scale: float) -> Tensor:
        """W x + bias + s B (A x), or without an adapter what `base` gives."""
        if a is None or b is None:
            return self.base(x)
        a, b = a.to(x.dtype), (b * scale).to(x.dtype)  # s goes into B, the smallest of all
        if torch.compiler.is_compiling():
            return torch.addmm(self.base(x), x @ a.T, b.T)
        bias = None if self.bias is None else self.bias.to(x.dtype)
        held = (self.weight, None) if self.weight is not None else (self.codes, self.scales)
        return _AdaptedProduct.apply(x, a, b, bias, *held, self.kind)  # pyright: ignore[reportReturnType]


class _AdaptedProduct(torch.autograd.Function):
    """x W + bias + (x A) B of a frozen W, as it is held: what is added is added in place, forward and backward.

    A tensor of the results' size more for each costs a tenth of the time of a product on two cores.
    """

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, a: Tensor, b: Tensor, bias: Tensor | None, held: Tensor, scales: Tensor | None,
        kind: Quantisation | None,
    ) -> Tensor:  # fmt: skip
        y, xa = linear(x, _matrix_in(x.dtype, held, scales, kind, x.shape[1]), bias), x @ a.T
        ctx.save_for_backward(x, a, b, xa, held, scales)
        ctx.kind = kind
        return y.addmm_(xa, b.T)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (dy,) = gradients  # [T, out]
        x, a, b, xa, held, scales = ctx.saved_tensors
        dxa, dx = dy @ b, None
        if ctx.needs_input_grad[0]:
            dx = (dy @ _matrix_in(dy.dtype, held, scales, ctx.kind, x.shape[1])).addmm_(dxa, a)
        of_a = dxa.T @ x if ctx.needs_input_grad[1] else None
        of_b = dy.T @ xa if ctx.needs_input_grad[2] else None
        return dx, of_a, of_b, None, None, None, None


def _matrix_in(dtype: torch.dtype, held: Tensor, scales: Tensor | None, kind: Quantisation | None, n_in: int) -> Tensor:
    """W [out, in], as it is held or of codes, in the dtype that computes."""
    if kind is None or scales is None:
        return held.to(dtype)
    return dequantise(held, scales, kind, n_in, dtype)


class _CastProduct(torch.autograd.Function):
    """x W + bias of a frozen W of another dtype: autograd's own would keep what W was cast to."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(weight)
        return linear(x, weight.to(x.dtype), bias)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        (dy,) = gradients  # [T, out]
        (weight,) = ctx.saved_tensors
        return dy @ weight.to(dy.dtype), None, None


class SharedLinear(nn.Module):
    """A policy's layer as the reference computes with it: with another adapter, which does not train, or with none."""

    def __init__(self, layer: FrozenLinear) -> None:
        super().__init__()
        self._layer = (layer,)  # in a tuple: it stays the policy's, which FSDP gathers and gives back
        self.scale = 0.0
        self.lora_A: nn.Parameter | None = None
        self.lora_B: nn.Parameter | None = None
        self._first: tuple[SharedLinear, ...] = ()

    @property
    def out_features(self) -> int:
        """Rows of the matrix."""
        return self._layer[0].out_features

    @property
    def in_features(self) -> int:
        """Columns of it."""
        return self._layer[0].in_features

    def adapt(self, adapter: Adapter, first: "SharedLinear | None", device: torch.device) -> None:
        """Puts an adapter beside it, as FrozenLinear.adapt does: A and B are zeros."""
        self.scale = adapter.scale
        self._first = () if first is None else (first,)
        layer = self._layer[0]
        if first is None:
            self.lora_A = nn.Parameter(torch.zeros(adapter.rank, layer.in_features, device=device), requires_grad=False)
        self.lora_B = nn.Parameter(torch.zeros(layer.out_features, adapter.rank, device=device), requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        """x [T, in] -> [T, out], in x's dtype."""
        a = self._first[0].lora_A if self._first else self.lora_A
        return self._layer[0].adapted(x, a, self.lora_B, self.scale)


def layers_of(model: Transformer) -> dict[str, list[Part]]:
    """The linear layers of a model's blocks by their whole names in transformers, and the parts of each, in order."""
    inside = replace(model.config, names=model.config.names.inside)
    found: dict[str, list[Part]] = {}
    for name, module in model.named_modules():
        if isinstance(module, (nn.Linear, FrozenLinear, SharedLinear)):
            place = inside.place(f"{name}.weight")
            found.setdefault(place.tensor.removesuffix(".weight"), []).append(Part(name, place.first))
    return {name: sorted(parts, key=lambda part: part.first) for name, parts in found.items()}


def named(layers: Iterable[str], asked: str) -> list[str]:
    """Those of layers that a name (q_proj, or a whole one) or a regular expression over whole names means, as in PEFT.

    Raises InputError for an expression that is none.
    """
    every = list(layers)
    return every if asked == ALL else ending(every, asked) or matching(every, asked)


def ending(layers: Iterable[str], name: str) -> list[str]:
    """Those of layers that end with a name, or have it."""
    return [layer for layer in layers if layer == name or layer.endswith(f".{name}")]


def matching(layers: Iterable[str], asked: str) -> list[str]:
    """Those of layers whose whole name an expression matches. Raises InputError where it is none."""
    try:
        return [layer for layer in layers if re.fullmatch(asked, layer)]
    except (re.error, OverflowError) as fault:
        raise InputError(f"{asked!r} is not a regular expression ({fault})") from None


def select(layers: Iterable[str], asked: Iterable[str]) -> tuple[str, ...]:
    """The layers that names and expressions mean, sorted; all where none is asked for. Raises InputError where one of
    them means nothing.
    """
    every, wanted = list(layers), list(asked)
    found = {one: named(every, one) for one in wanted}
    if missing := [one for one in wanted if not found[one]]:
        ends = sorted({name.rpartition(".")[2] for name in every})
        raise InputError(f"{', '.join(missing)}: no linear layer of a block has this name; there are {', '.join(ends)}")
    return tuple(sorted({name for names in found.values() for name in names} if wanted else every))


def short_names(layers: Iterable[str], modules: Iterable[str]) -> list[str]:
    """Names for target_modules, sorted: q_proj where every layer that ends so is meant, else whole names."""
    chosen = set(modules)
    ends: dict[str, set[str]] = {}
    for name in layers:
        ends.setdefault(name.rpartition(".")[2], set()).add(name)
    made = {end if every <= chosen else "" for end, every in ends.items() if every & chosen} - {""}
    return sorted(made | {name for name in chosen if name.rpartition(".")[2] not in made})


def targets_of(model: Transformer) -> list[str]:
    """target_modules of a model's adapter, sorted: short names, and whole ones of a model that sees. There a name such
    as q_proj means layers of what sees, too, which have no adapter here.
    """
    assert model.adapter is not None
    modules = model.adapter.modules
    return sorted(modules) if model.config.names.carried else short_names(layers_of(model), modules)


def held_as(base_dtype: str | None, dtype: torch.dtype) -> torch.dtype | Quantisation:
    """How a frozen matrix is held: as a name says, or in the dtype that computes."""
    if base_dtype is None:
        return dtype
    if base_dtype == "int8" or base_dtype == "nf4":
        return base_dtype
    return getattr(torch, base_dtype)


def freeze(model: Transformer, dtype: torch.dtype, base: torch.dtype | Quantisation) -> None:
    """Makes a model on the meta device a frozen one. dtype: of compute, and of all but the blocks' matrices, which are
    held as `base` says.
    """
    model.to(dtype).requires_grad_(False)
    model.compute_dtype = dtype
    for name, module in list(model.named_modules()):
        if isinstance(module, nn.Linear):
            _put(model, name, FrozenLinear(module, base))


def attach(model: Transformer, adapter: Adapter) -> None:
    """Puts an adapter beside a frozen model's layers, on the meta device: A, B and what trains whole are float32.

    Raises InputError where it names what the model does not have, or its rank is above one of the matrices.
    """
    check_fits(model, adapter)
    for modules in _parts(model, adapter):
        first = None
        for module in modules:
            assert isinstance(module, FrozenLinear)
            module.adapt(adapter, first)
            first = first or module
    for name in adapter.whole:
        module = getattr(model, WHOLE[name])
        module.weight = nn.Parameter(module.weight.detach().float())
    model.adapter = adapter


def check_fits(model: Transformer, adapter: Adapter) -> None:
    """Raises InputError where an adapter is not one of a model."""
    layers = layers_of(model)
    if unknown := [name for name in adapter.modules if name not in layers]:
        more = f" and {len(unknown) - 1} more" if len(unknown) > 1 else ""
        raise InputError(f"{unknown[0]}{more}: the model has no such linear layer in a block")
    for name in adapter.modules:
        modules = [model.get_submodule(part.name) for part in layers[name]]
        sizes = sum(_size(m)[0] for m in modules), _size(modules[0])[1]
        if adapter.rank > min(sizes):
            raise InputError(f"rank {adapter.rank} is above the smaller side of {name} ({min(sizes)}); lower it")
    if adapter.whole and model.config.tied:
        raise InputError(
            f"{adapter.whole[0]}: embedding and head of this model are one tensor (tie_word_embeddings), and "
            "training one would change both; leave it out"
        )


def n_numbers(model: Transformer, adapter: Adapter) -> int:
    """Numbers of an adapter's A and B on a model: one A for all parts of a matrix."""
    sizes = [[_size(module) for module in modules] for modules in _parts(model, adapter)]
    return adapter.rank * sum(found[0][1] + sum(n_out for n_out, _ in found) for found in sizes)


def n_multiplied(model: Transformer) -> int:
    """Numbers of A and B that a token is multiplied with: of an A that several parts share, once for each."""
    layers = [m for m in model.modules() if isinstance(m, FrozenLinear) and m.lora_B is not None]
    return sum((m.in_features + m.out_features) * m.lora_B.shape[1] for m in layers if m.lora_B is not None)


def _size(module: nn.Module) -> tuple[int, int]:
    """(out, in) of a linear layer."""
    assert isinstance(module, (nn.Linear, FrozenLinear, SharedLinear))
    return module.out_features, module.in_features


def _parts(model: Transformer, adapter: Adapter) -> Iterator[list[nn.Module]]:
    """Our layers of each that has an adapter."""
    layers = layers_of(model)
    for name in adapter.modules:
        yield [model.get_submodule(part.name) for part in layers[name]]


def reference_of(policy: Transformer, adapter: Adapter | None, device: torch.device) -> Transformer:
    """A frozen model that computes with the policy's weights: with another adapter, zeros so far, or with none.

    Its layers are the policy's own, but for those that train there: it is to be called while these are gathered, block
    by block (engine/model/fused_forward.py). What trains whole has its own numbers here, uninitialised.
    """
    with torch.device("meta"):
        view = Transformer(policy.config)
    view.source, view.compute_dtype, view.shares_base, view.adapter = policy.source, policy.compute_dtype, True, adapter
    for name, module in list(policy.named_modules()):
        if isinstance(module, FrozenLinear):
            _put(view, name, SharedLinear(module))
        elif name and next(module.children(), None) is None:
            _put(view, name, module)
    dtype = policy.compute_dtype
    for name in sorted({name for one in (policy.adapter, adapter) if one is not None for name in one.whole}):
        own = _own_copy(getattr(policy, WHOLE[name]), policy.config, dtype).to_empty(device=device)
        setattr(view, WHOLE[name], own.requires_grad_(False))
        view.own_ends.add(WHOLE[name])
    if adapter is not None:
        check_fits(view, adapter)
        for modules in _parts(view, adapter):
            first = None
            for module in modules:
                assert isinstance(module, SharedLinear)
                module.adapt(adapter, first, device)
                first = first or module
    return view


def _own_copy(module: nn.Module, config: ModelConfig, dtype: torch.dtype | None) -> nn.Module:
    """A head or an embedding of the same shape, on the meta device."""
    with torch.device("meta"):
        if isinstance(module, Head):
            made: nn.Module = Head(config.vocab_size, config.hidden_size, module.squash)
            made.chunk_bytes, made.keeps_logits = module.chunk_bytes, module.keeps_logits  # pyright: ignore
        else:
            made = nn.Embedding(config.vocab_size, config.hidden_size)
    return made.to(dtype)


def _put(model: nn.Module, name: str, module: nn.Module) -> None:
    """Puts a module into the place of that name."""
    parent, _, leaf = name.rpartition(".")
    setattr(model.get_submodule(parent), leaf, module)


def own_parameters(model: Transformer) -> dict[str, nn.Parameter]:
    """What a model has of its own beside the base: A and B, and head or embedding that train whole, or of a reference
    on the policy's base those that it has by itself; by our names.
    """
    whole = () if model.adapter is None else model.adapter.whole
    ends = model.own_ends if model.shares_base else {WHOLE[name] for name in whole}
    named = model.named_parameters()
    return {n: p for n, p in named if n.endswith(("lora_A", "lora_B")) or n.removesuffix(".weight") in ends}


def base_parameters(model: Transformer) -> Iterator[tuple[str, nn.Parameter]]:
    """The parameters that a checkpoint has, by our names: all but A and B."""
    return ((n, p) for n, p in model.named_parameters() if not n.endswith(("lora_A", "lora_B")))


def quantised_layers(model: Transformer) -> Iterator[tuple[str, FrozenLinear]]:
    """The layers whose matrix is held as codes, by our names."""
    return ((n, m) for n, m in model.named_modules() if isinstance(m, FrozenLinear) and m.kind is not None)


def initial(name: str, shape: tuple[int, ...], seed: int) -> Tensor:
    """An A before training: uniform in +-1 / sqrt(in), as PEFT's, drawn by the tensor's name and a seed; zeros of a B.

    [*shape] float32 on the CPU: every rank draws the whole and takes its rows.
    """
    if name.endswith("lora_B"):
        return torch.zeros(shape)
    generator = torch.Generator().manual_seed(zlib.crc32(f"{seed} {name}".encode()))  # it looks at 32 bits
    return (2 * torch.rand(shape, generator=generator) - 1) / math.sqrt(shape[1])
