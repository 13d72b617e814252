"""Checkpoint folders in Hugging Face's layout: read straight into a model, written as transformers and vLLM load them,
and how float32 weights are rounded where a folder has fewer bits.
"""

from engine.weights import safetensors_header
from engine.weights.checkpoint import Checkpoint
from engine.weights.kept import (
    check_has_weights,
    file_digests,
    is_kept,
    keep,
    read_beside,
    read_carried,
)
from engine.weights.names import INDEX
from engine.weights.reading import (
    blank,
    build,
    check,
    check_finite,
    fill,
    load,
    placed,
    say_if_rounded,
    stored_dtypes,
)
from engine.weights.rounding import CHUNK, Cast, hash_of, round_half_away, round_stochastically
from engine.weights.writing import ShardAccess, SingleProcess, save

__all__ = [
    "CHUNK",
    "INDEX",
    "Cast",
    "Checkpoint",
    "ShardAccess",
    "SingleProcess",
    "blank",
    "build",
    "check",
    "check_finite",
    "check_has_weights",
    "file_digests",
    "fill",
    "hash_of",
    "is_kept",
    "keep",
    "load",
    "placed",
    "read_beside",
    "read_carried",
    "round_half_away",
    "round_stochastically",
    "safetensors_header",
    "save",
    "say_if_rounded",
    "stored_dtypes",
]
