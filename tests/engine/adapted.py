"""Tiny models with an adapter, for the tests: the frozen one and the plain one that it was made from."""

import torch

from engine.model import Adapter, Transformer, adapters
from tests import tiny


def adapted(
    shape: str = "llama3",
    *,
    rank: int = 4,
    alpha: float = 8.0,
    rslora: bool = False,
    targets: tuple[str, ...] = (),
    whole: tuple[str, ...] = (),
    held: torch.dtype | str = torch.float64,
    b: float = 0.1,
) -> tuple[Transformer, Transformer]:
    """(plain, frozen) float64 models of the same weights; the latter has an adapter of random A and B, of size b."""
    plain = tiny.random_llama(shape, dtype=torch.float64)
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
    return plain, model


def multiplied_out(plain: Transformer, model: Transformer, scale: float) -> Transformer:
    """The plain model with W + scale B A in the place of W, by hand."""
    found = dict(model.named_parameters())
    with torch.no_grad():
        for name, parameter in plain.named_parameters():
            stem = name.removesuffix(".weight")
            if f"{stem}.lora_B" in found:
                parameter += scale * found[f"{stem}.lora_B"] @ found[f"{stem}.lora_A"]
    return plain
