"""Phi-3, 3.5, 4 and 4-mini: fused matrices, part of a head that turns, and LongRoPE.

LongRoPE has two sets of frequencies, by the length of the whole sequence: two responses of which one is beyond the
original context do not share their prompt (data/forest.py).
"""

from dataclasses import replace
from typing import Any

from engine.model.families import mistral, ropes
from engine.model.families.config_file import ConfigFile
from engine.model.families.family import Family, layers, sizes
from engine.model.model_config import ModelConfig
from engine.model.names import LLAMA_NAMES

NAMES = replace(
    LLAMA_NAMES,
    fused={
        "self_attn.qkv_proj": ("attention.q", "attention.k", "attention.v"),
        "mlp.gate_up_proj": ("mlp.gate", "mlp.up"),
    },
)
OLD = {"su": "longrope", "yarn": "longrope"}  # what files called it


def read(file: ConfigFile) -> ModelConfig:
    """From its config.json."""
    file.only("hidden_act", "silu", "silu")
    found = sizes(file, eps=1e-5, kv_as_heads=True)
    found["head_size"] = file.equal_share  # head_dim is not read by transformers' check of LongRoPE's factors
    file.only("head_dim", found["head_size"], found["head_size"])
    rope = ropes.of_all_layers(_with_original(file), found["head_size"], kinds=("default", "longrope"))
    of_each = layers([rope] * found["n_layers"], mistral.windows(file, None))
    return ModelConfig(**found, layers=of_each, names=NAMES)


def _with_original(file: ConfigFile) -> ConfigFile:
    """The file with LongRoPE by its name of today; its original context is 4,096 where nothing says so."""
    raw: dict[str, Any] = dict(file.raw)
    for key in ("rope_parameters", "rope_scaling"):
        if rope := file.mapping(key):
            named = {name: OLD.get(str(rope[name]), rope[name]) for name in ("rope_type", "type") if name in rope}
            raw[key] = rope | named
    inside = [file.mapping(key).get("original_max_position_embeddings") for key in ("rope_parameters", "rope_scaling")]
    if raw.get("original_max_position_embeddings") is None and not any(inside):
        raw["original_max_position_embeddings"] = 4096
    return ConfigFile(raw, file.location)


PHI3 = Family(
    "phi3", "Phi3ForCausalLM", read, "Phi-3, 3.5, 4, 4-mini", "fused matrices; part of a head turns; LongRoPE; a window"
)
