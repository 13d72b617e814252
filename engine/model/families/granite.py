"""Granite 3: Llama's block with four multipliers: of embeddings, of scores, of what a layer adds, and of logits."""

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
    return ModelConfig(
        **found,
        **biases(file),
        layers=layers([rope] * n, [None] * n),
        embed_factor=file.positive("embedding_multiplier", 1.0),
        attention_scale=file.positive("attention_multiplier", 1.0),  # in the place of head_size^-1/2
        residual_factor=file.positive("residual_multiplier", 1.0),
        logit_divisor=file.positive("logits_scaling", 1.0),
    )


GRANITE = Family("granite", "GraniteForCausalLM", read, "Granite 3", "multipliers of embedding, scores, logits")
