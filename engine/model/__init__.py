"""The model in plain PyTorch, which knows neither files nor processes: blocks, attention over a token forest, the head
that gives log-probs, and the fused forward pass of policy and reference. A new attention kernel goes into attention.py.
"""

from engine.model import attention, head
from engine.model.dtypes import is_narrower, name_of
from engine.model.fused_forward import FusedForward
from engine.model.head import CHUNK_BYTES, PIECE_BYTES, Head, logits_by_token
from engine.model.llama import Attend, Llama, LlamaConfig
from engine.model.shapes import SHAPES, raw_config

__all__ = [
    "CHUNK_BYTES",
    "PIECE_BYTES",
    "SHAPES",
    "Attend",
    "FusedForward",
    "Head",
    "Llama",
    "LlamaConfig",
    "attention",
    "head",
    "is_narrower",
    "logits_by_token",
    "name_of",
    "raw_config",
]
