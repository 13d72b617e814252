"""Checkpoint folders in Hugging Face's layout: read straight into a model, written as transformers and vLLM load them,
and how float32 weights are rounded where a folder has fewer bits.
"""

from data.rows import is_adapter
from engine.weights import safetensors_header
from engine.weights.adapter_writing import save_adapter
from engine.weights.adapters import (
    AdapterFolder,
    check_vocabulary,
    draw_adapter,
    fill_adapter,
    fill_whole,
    read_adapter,
)
from engine.weights.checkpoint import Checkpoint
from engine.weights.kept import (
    check_has_weights,
    file_digests,
    is_kept,
    keep,
    read_beside,
    read_carried,
)
from engine.weights.merging import files_beside, merge
from engine.weights.names import INDEX
from engine.weights.reading import (
    base_of,
    blank,
    build,
    build_adapted,
    check,
    check_finite,
    fill,
    find_adapted,
    load,
    placed,
    say_if_of_another,
    say_if_rounded,
    stored_dtypes,
)
from engine.weights.rounding import CHUNK, Cast, check_asked, hash_of, round_half_away, round_stochastically
from engine.weights.survival import Survival, Tally
from engine.weights.writing import ShardAccess, SingleProcess, save

__all__ = [
    "CHUNK",
    "INDEX",
    "AdapterFolder",
    "Cast",
    "Checkpoint",
    "ShardAccess",
    "SingleProcess",
    "Survival",
    "Tally",
    "base_of",
    "blank",
    "build",
    "build_adapted",
    "check",
    "check_asked",
    "check_finite",
    "check_has_weights",
    "check_vocabulary",
    "draw_adapter",
    "file_digests",
    "files_beside",
    "fill",
    "fill_adapter",
    "fill_whole",
    "find_adapted",
    "hash_of",
    "is_adapter",
    "is_kept",
    "keep",
    "load",
    "merge",
    "placed",
    "read_adapter",
    "read_beside",
    "read_carried",
    "round_half_away",
    "round_stochastically",
    "safetensors_header",
    "save",
    "save_adapter",
    "say_if_of_another",
    "say_if_rounded",
    "stored_dtypes",
]
