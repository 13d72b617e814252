"""The shapes of models that are measured and planned for without their weights."""

from typing import Any

SHAPES: dict[str, dict[str, Any]] = {
    "tiny": {
        "hidden_size": 256,
        "intermediate_size": 688,
        "num_hidden_layers": 8,
        "num_attention_heads": 8,
        "num_key_value_heads": 4,
        "vocab_size": 32_000,
    },
    "llama3-8b": {
        "hidden_size": 4096,
        "intermediate_size": 14_336,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "vocab_size": 128_256,
    },
    "llama3-70b": {
        "hidden_size": 8192,
        "intermediate_size": 28_672,
        "num_hidden_layers": 80,
        "num_attention_heads": 64,
        "num_key_value_heads": 8,
        "vocab_size": 128_256,
    },
    "llama3-405b": {
        "hidden_size": 16_384,
        "intermediate_size": 53_248,
        "num_hidden_layers": 126,
        "num_attention_heads": 128,
        "num_key_value_heads": 8,
        "vocab_size": 128_256,
    },
}


def raw_config(shape: str, layers: int | None = None) -> dict[str, Any]:
    """The config.json of a named shape, with so many layers instead of its own."""
    made = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "rms_norm_eps": 1e-5,
        "hidden_act": "silu",
        "rope_theta": 500_000.0,
        "max_position_embeddings": 8192,
        "bos_token_id": 0,
        "eos_token_id": 1,
    } | SHAPES[shape]
    return made | ({"num_hidden_layers": layers} if layers else {})
