"""Adapter folders for the tests, by hand in PEFT's format, and whole folders of the W + s B A that they mean; and runs
of an adapter on rows beside them.
"""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from engine import train
from engine.config import TrainConfig
from tests import tiny
from tests.metrics import lines

WORDS = ["one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten"]
PAIRS = [{"prompt": WORDS[i], "chosen": WORDS[i + 1], "rejected": WORDS[i + 2]} for i in range(8)]
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


def write_folders(folder: Path, *, tokenizer: bool = False) -> Path:
    """A base and another model, two adapters of the base, pairs and prompts, in a folder. tokenizer: the first adapter
    has the base's in it, too."""
    for seed, name in enumerate(("base", "other")):
        model = tiny.write_model(folder / name, [" ".join(WORDS)] * 20, seed=seed)
        (model / "chat_template.jinja").write_text(tiny.TEMPLATE)
    write_adapter(folder / "adapter", folder / "base", tokenizer=tokenizer)
    write_adapter(folder / "second", folder / "base", seed=1)
    tiny.write_rows(folder / "pairs.jsonl", PAIRS)
    tiny.write_rows(folder / "prompts.jsonl", [{"prompt": word} for word in WORDS])
    return folder


def config_of(folders: Path, out: Path, **changes: object) -> TrainConfig:
    """A run of a fresh adapter on the base and the pairs of write_folders."""
    given = {
        "model": str(folders / "base"), "data": (str(folders / "pairs.jsonl"),), "loss": "dpo", "out": str(out),
        "lr": 1e-2, "epochs": 1, "batch_size": 4, "lora_rank": 4, "track": ("none",), "dtype": "float32",
    }  # fmt: skip
    return TrainConfig(**given | changes)


def run_of(folders: Path, out: Path, **changes: object) -> list[dict[str, float]]:
    """Such a run's lines of metrics."""
    return lines(train.run(config_of(folders, out, **changes)).out)


def by_torchrun(command: str, *flags: object) -> None:
    """A command by two real processes."""
    start = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", "-m", command]
    flags = [*start, *map(str, flags)]
    done = subprocess.run(flags, env=tiny.environment(), capture_output=True, text=True, timeout=500, check=False)
    assert done.returncode == 0, done.stderr
