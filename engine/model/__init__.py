"""The model in plain PyTorch, which knows neither files nor processes: blocks, attention over a token forest, the head
that gives log-probs, and the fused forward pass of policy and reference. A new attention kernel goes into attention.py.
"""

from engine.model import attention, head
from engine.model.distribution import BUFFERS, BUFFERS_OF_TWO, DIVERGENCES, STATISTICS
from engine.model.dtypes import StoredDtypes, is_narrower, name_of
from engine.model.fused_forward import ForwardResult, FusedForward, in_turn
from engine.model.head import Head
from engine.model.llama import Attend, Llama
from engine.model.llama_config import LlamaConfig
from engine.model.logits import CHUNK_BYTES, PIECE_BYTES, logits_by_token
from engine.model.quantised import REMEDY, quantised_by_modelopt, quantised_tensor
from engine.model.shapes import SHAPES, raw_config

__all__ = [
    "BUFFERS",
    "BUFFERS_OF_TWO",
    "CHUNK_BYTES",
    "DIVERGENCES",
    "PIECE_BYTES",
    "REMEDY",
    "SHAPES",
    "STATISTICS",
    "Attend",
    "ForwardResult",
    "FusedForward",
    "Head",
    "Llama",
    "LlamaConfig",
    "StoredDtypes",
    "attention",
    "head",
    "in_turn",
    "is_narrower",
    "logits_by_token",
    "name_of",
    "quantised_by_modelopt",
    "quantised_tensor",
    "raw_config",
]
