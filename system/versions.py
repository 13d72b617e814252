"""What a report of a fault has to name: the program's version, its surroundings', and the machine."""

import os
import platform
from importlib import metadata

import torch

PACKAGES = (
    "torch", "triton", "numpy", "safetensors", "tokenizers", "sentencepiece", "protobuf", "tiktoken", "transformers",
    "trl", "huggingface_hub", "httpx", "Jinja2", "PyYAML", "tqdm", "tyro", "tensorboard", "rapidfuzz", "pyarrow",
    "wandb", "trackio", "mlflow",
)  # fmt: skip
"""What the program uses, and what its results are compared with."""


def report(program: str) -> dict[str, str]:
    """Names and values in the order in which they are shown. program: its own version.

    Packages are looked up, not loaded; one that is missing is "not installed".
    """
    found = {
        "program": program,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "cores": f"{os.cpu_count()}, of which this process may use {_usable_cores()}",
        "memory": f"{os.sysconf('SC_PHYS_PAGES') * os.sysconf('SC_PAGE_SIZE') / 1e9:.1f} GB",
        "CUDA": torch.version.cuda or "none",
    }
    found |= {f"GPU {i}": _gpu(i) for i in range(torch.cuda.device_count())}
    return found | {name: _version(name) for name in PACKAGES}


def table(found: dict[str, str]) -> str:
    """Names and values in two columns."""
    width = max(map(len, found))
    return "\n".join(f"{name:{width}}  {value}" for name, value in found.items())


def _usable_cores() -> int | None:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()


def _gpu(i: int) -> str:
    it = torch.cuda.get_device_properties(i)
    return f"{it.name}, {it.total_memory / 1e9:.1f} GB, compute capability {it.major}.{it.minor}"


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "not installed"
