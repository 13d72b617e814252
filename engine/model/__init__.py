"""The model in plain PyTorch, which knows neither files nor processes: blocks, attention over a token forest, the head
that gives log-probs, and the fused forward pass of policy and reference. A new attention kernel goes into attention.py.
"""

from engine.model import adapters, attention, head
from engine.model.activation import XIELU
from engine.model.adapters import Adapter, FrozenLinear, SharedLinear
from engine.model.distribution import BUFFERS, BUFFERS_OF_TWO, DIVERGENCES, STATISTICS
from engine.model.dtypes import StoredDtypes, is_narrower, name_of
from engine.model.families import FAMILIES, architecture_of, read_config
from engine.model.fused_forward import ForwardResult, FusedForward, in_turn
from engine.model.head import Head
from engine.model.logits import CHUNK_BYTES, PIECE_BYTES, logits_by_token
from engine.model.model_config import Layer, ModelConfig
from engine.model.names import Place
from engine.model.quantisation import Quantisation
from engine.model.quantised_checkpoint import REMEDY, quantised_by_modelopt, quantised_tensor
from engine.model.rope import Dynamic, LongRope
from engine.model.shapes import SHAPES, Shape, raw_config
from engine.model.transformer import PLAIN, Attend, Block, Transformer, Weighing, rotations

Llama = Transformer
"""What it was called when it was the only one."""

__all__ = [
    "BUFFERS",
    "BUFFERS_OF_TWO",
    "CHUNK_BYTES",
    "DIVERGENCES",
    "FAMILIES",
    "PIECE_BYTES",
    "PLAIN",
    "REMEDY",
    "SHAPES",
    "STATISTICS",
    "XIELU",
    "Adapter",
    "Attend",
    "Block",
    "Dynamic",
    "ForwardResult",
    "FrozenLinear",
    "FusedForward",
    "Head",
    "Layer",
    "Llama",
    "LongRope",
    "ModelConfig",
    "Place",
    "Quantisation",
    "Shape",
    "SharedLinear",
    "StoredDtypes",
    "Transformer",
    "Weighing",
    "adapters",
    "architecture_of",
    "attention",
    "head",
    "in_turn",
    "is_narrower",
    "logits_by_token",
    "name_of",
    "quantised_by_modelopt",
    "quantised_tensor",
    "raw_config",
    "read_config",
    "rotations",
]
