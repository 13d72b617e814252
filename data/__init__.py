"""Text in, token forests out: records, chat templates, tokenizers, truncation, packing, contrast measures."""

from data.errors import InputError, RunError
from data.records import load_preferences

__all__ = ["InputError", "RunError", "load_preferences"]
