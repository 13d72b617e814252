"""Tiny models with an adapter, for the tests: the frozen one and the plain one that it was made from."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from data.forest import pack
from data.rows import Example
from engine.model import Adapter, Transformer, adapters, attention, rotations
from tests import tiny


def adapted(shape: str = "llama3", **options: Any) -> tuple[Transformer, Transformer]:
    """(plain, frozen) float64 models of the same weights; options: of the latter's adapter (`beside`)."""
    plain = tiny.random_llama(shape, dtype=torch.float64)
    return plain, beside(plain, **options)


def beside(
    plain: Transformer,
    *,
    rank: int = 4,
    alpha: float = 8.0,
    rslora: bool = False,
    targets: tuple[str, ...] = (),
    whole: tuple[str, ...] = (),
    held: torch.dtype | str = torch.float64,
    b: float = 0.1,
) -> Transformer:
    """A frozen float64 model of a float64 one's weights and constants, with an adapter of random A and B, of size b."""
    with torch.device("meta"):
        model = Transformer(plain.config)
    adapters.freeze(model, torch.float64, held)  # pyright: ignore[reportArgumentType]
    modules = adapters.select(adapters.layers_of(model), targets)
    adapters.attach(model, Adapter(rank=rank, alpha=alpha, rslora=rslora, modules=modules, whole=whole))
    model.double().to_empty(device="cpu")
    own, generator = dict(plain.named_parameters()), torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, layer in adapters.quantised_layers(model):
            layer.quantise(own[f"{name}.weight"], 0)
        for name, parameter in model.named_parameters():
            if name in own:
                parameter.copy_(own[name])
            else:
                size = b if name.endswith("lora_B") else 1.0
                parameter.copy_(size * torch.randn(parameter.shape, generator=generator, dtype=torch.float64))
        constants = dict(plain.constants())
        for name, buffer in model.constants():
            buffer.copy_(constants[name])
    return model


def multiplied_out(plain: Transformer, model: Transformer, scale: float) -> Transformer:
    """The plain model with W + scale B A in the place of W, by hand. Parts of a fused matrix have the first one's A."""
    found: dict[str, Tensor] = dict(model.named_parameters())
    own: dict[str, Tensor] = dict(plain.named_parameters())
    with torch.no_grad():
        for parts in adapters.layers_of(model).values():
            for part in parts:
                if f"{part.name}.lora_B" in found:
                    product = found[f"{part.name}.lora_B"] @ found[f"{parts[0].name}.lora_A"]
                    own[f"{part.name}.weight"] += scale * product
    return plain


def logits_of(model: Transformer, ids: Sequence[int]) -> Tensor:
    """[T, V] of one sequence, in the dtype of the head's products: by one pass, with the attention of training."""
    at = torch.arange(len(ids))
    dtype = model.compute_dtype or model.embed.weight.dtype
    turned = rotations(model.config.ropes, at, torch.full_like(at, len(ids)), dtype)
    attend = attention.dense(pack([Example("", np.array(ids), (np.zeros(1, dtype=np.int64),))]))
    with torch.no_grad():
        x = model.embedded(torch.tensor(ids))
        for block in model.blocks:
            x = block(x, turned, attend)
        return model.head.squash(model.norm(x) @ model.head.matrix(model.tied).to(x.dtype).T)
