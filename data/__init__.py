"""Text in, token forests out: rows/, text/ (templates and tokenizers), packing, batching, contrast, revisions."""

import runpy
from pathlib import Path

runpy.run_path(str(Path(__file__).parents[1] / "system/neighbours.py"))["refuse"]()

from data.rows import load_preferences  # noqa: E402 (once it is known to be ours)

__all__ = ["load_preferences"]
