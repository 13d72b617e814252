"""Adapter folders for the tests, written for any tiny base; and what they add to it, from the files alone."""

import math
from pathlib import Path

import torch
from safetensors.torch import load_file

from data.text import read_json
from engine import weights
from engine.model import Adapter, Transformer, adapters

PREFIX = "base_model.model."


def bare(base: Path, *, rank=4, alpha=8.0, rslora=False, targets=(), whole=()) -> Transformer:
    """A base with an adapter, in float32: its own numbers are still to be filled in."""
    model = weights.build(base)
    adapters.freeze(model, torch.float32, torch.float32)
    modules = adapters.select(adapters.layers_of(model), targets)
    adapters.attach(model, Adapter(rank=rank, alpha=alpha, rslora=rslora, modules=modules, whole=whole))
    model.to_empty(device="cpu")
    weights.fill(model, base)
    return model


def write(folder: Path, base: Path, *, b=0.05, base_dtype="float32", seed=1, **options) -> Path:
    """An adapter of random A and B, the latter of size b; what trains whole is the base's and noise of that size.

    options: of `bare`.
    """
    model, generator = bare(base, **options), torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in adapters.own_parameters(model).items():
            noise = torch.randn(parameter.shape, generator=generator)
            if name.endswith("lora_A"):
                parameter.copy_(noise / math.sqrt(parameter.shape[1]))
            else:
                parameter.copy_(b * noise + (0 if name.endswith("lora_B") else parameter))
    weights.save_adapter(model, folder, base=str(base.resolve()), base_dtype=base_dtype)
    return folder


def tensors_of(folder: Path) -> dict[str, torch.Tensor]:
    """Every tensor of a checkpoint folder, from all its files."""
    return {name: tensor for file in sorted(folder.glob("*.safetensors")) for name, tensor in load_file(file).items()}


def added(folder: Path) -> dict[str, torch.Tensor]:
    """What an adapter adds to each of transformers' matrices, float64, by their names: s B A, multiplied out."""
    raw, found = read_json(folder / "adapter_config.json"), load_file(folder / "adapter_model.safetensors")
    scale = raw["lora_alpha"] / (math.sqrt(raw["r"]) if raw["use_rslora"] else raw["r"])
    return {
        name.removeprefix(PREFIX).replace("lora_A.", ""): scale
        * (found[name.replace("lora_A", "lora_B")].double() @ a.double())
        for name, a in found.items()
        if "lora_A" in name
    }
