"""JSON files of a checkpoint folder, looked at before they are opened."""

import codecs
import json
import os
from pathlib import Path
from typing import Any

from system import InputError, check_regular, cli

MAX_FILE_BYTES = 256 * 2**20  # Llama-3's tokenizer.json has 9 MB, the largest in use some 35


def existing(path: Path) -> Path | None:
    """The path where a regular file of a sensible size is there. Raises InputError where something else is."""
    if not os.path.lexists(path):
        return None
    check_regular(path)
    if path.stat().st_size > MAX_FILE_BYTES:
        raise InputError(f"{path}: larger than {MAX_FILE_BYTES >> 20} MB, which no tokenizer is; copy it again")
    return path


def decoded(content: bytes, path: Path) -> str:
    """The text of a file in UTF-8, without a byte order mark, of which it is said once that it is left out. Raises
    UnicodeDecodeError.
    """
    if content.startswith(codecs.BOM_UTF8):
        cli.notify_once(f"{path}: begins with a byte order mark, which is left out here and in checkpoints")
    return content.decode("utf-8-sig")


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file. Raises InputError where it is missing, not a regular file, or holds anything else."""
    try:
        if os.path.lexists(path):
            check_regular(path)
        content = path.read_bytes()
        if content.startswith(b"version https://git-lfs"):
            raise InputError(f"{path}: a Git LFS pointer, not the file; run git lfs pull in its folder")
        value = json.loads(decoded(content, path))
    except FileNotFoundError:
        raise InputError(f"{path}: no such file; is the checkpoint complete?") from None
    except InputError:
        raise
    except (OSError, ValueError, RecursionError) as fault:
        raise InputError(f"{path}: not JSON ({fault}); copy it again") from None
    if not isinstance(value, dict):
        raise InputError(f"{path}: a {type(value).__name__}, not an object; copy it again")
    return value
