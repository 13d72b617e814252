"""Llama 2, 3, 3.1, 3.2 and what shares its architecture: the block as it is, with every kind of RoPE but LongRoPE."""

from engine.model.families import ropes
from engine.model.families.config_file import ConfigFile
from engine.model.families.family import Family, biases, layers, sizes
from engine.model.model_config import ModelConfig


def read(file: ConfigFile) -> ModelConfig:
    """From its config.json."""
    file.only("hidden_act", "silu", "silu")
    found = sizes(file, kv_as_heads=True)
    n = found["n_layers"]
    rope = ropes.of_all_layers(file, found["head_size"])
    return ModelConfig(**found, **biases(file), layers=layers([rope] * n, [None] * n))


LLAMA = Family("llama", "LlamaForCausalLM", read, "Llama 2, 3, 3.1, 3.2", "")
