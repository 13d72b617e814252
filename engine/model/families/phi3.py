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
ORIGINAL = 4096  # context of LongRoPE in a file that does not say it
OLD = {"su": "longrope", "yarn": "longrope"}  # what files called it


def read(file: ConfigFile) -> ModelConfig:
    """From its config.json."""
    file.only("hidden_act", "silu", "silu")
    found = sizes(file, eps=1e-5, kv_as_heads=True)
    if found["head_size"] != file.equal_share:  # by which transformers checks LongRoPE's factors
        raise file.refused(f"head_dim = {found['head_size']} is not supported; heads of a phi3 divide the hidden size")
    rope = ropes.of_all_layers(_with_original(file), found["head_size"], kinds=("default", "longrope"))
    of_each = layers([rope] * found["n_layers"], mistral.windows(file, None))
    return ModelConfig(**found, layers=of_each, names=NAMES)


def _with_original(file: ConfigFile) -> ConfigFile:
    """The file with LongRoPE by its name of today, and its original context beside it."""
    raw: dict[str, Any] = dict(file.raw)
    for key in ("rope_parameters", "rope_scaling"):
        if rope := file.mapping(key):
            named = {name: OLD.get(str(rope[name]), rope[name]) for name in ("rope_type", "type") if name in rope}
            raw[key] = rope | named
    if raw.get("original_max_position_embeddings") is None:
        for key in ("rope_parameters", "rope_scaling"):
            inside = file.mapping(key).get("original_max_position_embeddings")
            if inside not in (None, ORIGINAL):
                raise file.refused(
                    f"{key} has original_max_position_embeddings = {inside!r}, of which transformers makes "
                    f"{ORIGINAL:,} where it does not stand beside {key} too; write it there"
                )
        raw["original_max_position_embeddings"] = ORIGINAL
    return ConfigFile(raw, file.location)


PHI3 = Family(
    "phi3", "Phi3ForCausalLM", read, "Phi-3, 3.5, 4, 4-mini", "fused matrices; partial RoPE; LongRoPE; a window"
)
