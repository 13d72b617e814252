"""Adapter folders for the tests, by hand in PEFT's format, and whole folders of the W + s B A that they mean."""

import json
import shutil
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

LAYERS = ("self_attn.q_proj", "self_attn.v_proj", "mlp.down_proj")
PREFIX = "base_model.model."


def write_adapter(
    folder: Path, base: Path, *, names: str | None = None, seed: int = 0, rank: int = 4, alpha: float = 8.0,
    b: float = 0.1, tokenizer: bool = False, base_dtype: str | None = None,
) -> Path:  # fmt: skip
    """A random adapter of three kinds of layers of a tiny model. names: what it calls its base, else its path. b: the
    size of B. tokenizer: whether the base's is in it too. base_dtype: engine.json's."""
    folder.mkdir(parents=True)
    generator = torch.Generator().manual_seed(seed)
    tensors = {}
    for name, weight in load_file(base / "model.safetensors").items():
        module = name.removesuffix(".weight")
        if module.endswith(LAYERS):
            n_out, n_in = weight.shape
            tensors[f"{PREFIX}{module}.lora_A.weight"] = torch.randn(rank, n_in, generator=generator)
            tensors[f"{PREFIX}{module}.lora_B.weight"] = b * torch.randn(n_out, rank, generator=generator)
    save_file(tensors, folder / "adapter_model.safetensors")
    said = {"peft_type": "LORA", "task_type": "CAUSAL_LM", "r": rank, "lora_alpha": alpha}
    said |= {"target_modules": sorted(layer.rpartition(".")[2] for layer in LAYERS)}
    said |= {"base_model_name_or_path": str(base.resolve()) if names is None else names}
    (folder / "adapter_config.json").write_text(json.dumps(said))
    if base_dtype is not None:
        (folder / "engine.json").write_text(json.dumps({"base_dtype": base_dtype}))
    if tokenizer:
        for path in base.iterdir():
            if path.name.startswith(("tokenizer", "chat_template")):
                shutil.copy(path, folder / path.name)
    return folder


def write_merged(folder: Path, base: Path, adapter: Path | None, *, held: str = "float32") -> Path:
    """A copy of a base with W + s B A in the place of W, by the formula; without an adapter the base as it is held."""
    shutil.copytree(base, folder)
    whole = load_file(base / "model.safetensors")
    for name in whole:
        if held == "int8" and name.endswith("_proj.weight"):
            whole[name] = by_row(whole[name])
    if adapter is not None:
        said, parts = (
            json.loads((adapter / "adapter_config.json").read_text()),
            load_file(adapter / "adapter_model.safetensors"),
        )
        for name, a in parts.items():
            if name.endswith(".lora_A.weight"):
                module = name.removeprefix(PREFIX).removesuffix(".lora_A.weight")
                product = parts[f"{PREFIX}{module}.lora_B.weight"].double() @ a.double()
                whole[f"{module}.weight"] += (said["lora_alpha"] / said["r"] * product).float()
    save_file(whole, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def by_row(weight: Tensor) -> Tensor:
    """What int8 codes of a matrix stand for, a scale for each row."""
    scale = weight.abs().amax(dim=1, keepdim=True) / 127
    return (weight / scale).round() * scale
