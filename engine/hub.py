"""Models by hub id."""

import os
from pathlib import Path

from data import InputError

PATTERNS = ["*.safetensors", "*.json", "*.jinja", "tokenizer.model"]


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
    if name.count("/") != 1 or name.startswith((".", "/", "~")):
        raise InputError(
            f"{name}: no such folder; give a checkpoint folder or a hub id such as meta-llama/Meta-Llama-3-8B-Instruct"
        )
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    from huggingface_hub import snapshot_download  # slow to import, and not needed for folders
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(name, allow_patterns=PATTERNS))
    except HFValidationError:
        raise InputError(f"{name}: no such folder, and not a hub id; give a checkpoint folder") from None
    except LocalEntryNotFoundError:
        raise InputError(
            f"{name}: no such folder, and the hub cannot be reached; download it elsewhere and give its folder"
        ) from None
    except HfHubHTTPError as fault:
        said = str(fault).split("\n")[0]
        raise InputError(
            f"{name}: no such folder, and the hub refuses it ({said}); check the id, or log in for gated models"
        ) from None
