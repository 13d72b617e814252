"""Text in, token forests out: rows/, text/ (templates and tokenizers), packing, batching, contrast, revisions."""

from data.rows import load_preferences

__all__ = ["load_preferences"]
