"""Models and data sets by hub id."""

import os
from pathlib import Path
from typing import Literal

from system import InputError

PATTERNS = {
    "model": ["*.safetensors", "*.json", "*.jinja", "*.model", "tokenizer.model*", "*.tiktoken", "merges*", "vocab*"],
    "dataset": [
        "README.md",  # which files are which split
        *("*.jsonl", "*.json", "*.ndjson", "*.csv", "*.tsv", "*.parquet", "*.arrow"),
        *("*.jsonl.gz", "*.json.gz", "*.ndjson.gz", "*.csv.gz", "*.tsv.gz"),
    ],
}
EXAMPLES = {
    "model": "a checkpoint folder or a hub id such as meta-llama/Meta-Llama-3-8B-Instruct",
    "dataset": "a file, a folder or a hub id such as ContextualAI/ultrafeedback_clair_32k",
}


def find_model(name: str) -> Path:
    """The folder of a model: `name` itself where it is a folder, else the hub's snapshot of that id.

    Under torchrun one rank of a node downloads while the others wait for its lock. Raises InputError in one sentence
    where there is neither.
    """
    folder = Path(name)
    if folder.is_dir():
        return folder
    if folder.exists():
        raise InputError(f"{name}: a file; give the checkpoint's folder")
    return snapshot(name, "model")


def is_hub_id(name: str) -> bool:
    """Whether a name has the form of a hub id: owner/name, perhaps with @revision."""
    return name.partition("@")[0].count("/") == 1 and not name.startswith((".", "/", "~"))


def snapshot(name: str, kind: Literal["model", "dataset"]) -> Path:
    """The folder of the hub's snapshot of an id, owner/name or owner/name@revision. Raises InputError."""
    if not is_hub_id(name):
        raise InputError(f"{name}: no such file or folder; give {EXAMPLES[kind]}")
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    from huggingface_hub import snapshot_download  # slow to import, and not needed for folders
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    repo, _, revision = name.partition("@")
    try:
        folder = snapshot_download(repo, repo_type=kind, revision=revision or None, allow_patterns=PATTERNS[kind])
        return Path(folder)
    except HFValidationError:
        raise InputError(f"{name}: no such file or folder, and not a hub id; give {EXAMPLES[kind]}") from None
    except LocalEntryNotFoundError:
        raise InputError(
            f"{name}: no such file or folder, and the hub cannot be reached; download it elsewhere and give its folder"
        ) from None
    except HfHubHTTPError as fault:
        said = str(fault).split("\n")[0]
        raise InputError(
            f"{name}: no such file or folder, and the hub refuses it ({said}); check the id, or log in if it is gated"
        ) from None
