"""The shapes of models that are measured and planned for without their weights: the config.json of each release.

Left out are the keys that say nothing of a size or of a layer, and LongRoPE's factors (Phi-4-mini), of which no number
here depends.
"""

from typing import Any, Literal

from engine.model.families import FAMILIES

Shape = Literal[
    "tiny", "llama3-8b", "llama3-70b", "llama3-405b", "qwen3-8b", "qwen3-0.6b", "qwen2.5-7b", "smollm3-3b",
    "smollm2-135m", "olmo3-7b", "olmo2-7b", "gemma3-4b", "gemma2-9b", "mistral-7b", "ministral3-8b", "phi4-mini",
    "apertus-8b", "granite3.3-8b", "exaone4-32b",
]  # fmt: skip
"""Their names, those of the table below."""

Raw = dict[str, Any]


def _raw(
    model_type: str, hidden: int, inside: int, layers: int, heads: int, kv: int, vocabulary: int, **others: Any
) -> Raw:
    return {
        "model_type": model_type,
        "hidden_size": hidden,
        "intermediate_size": inside,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": kv,
        "vocab_size": vocabulary,
    } | others


LLAMA3: Raw = {"rms_norm_eps": 1e-5, "rope_theta": 500_000.0, "max_position_embeddings": 8192}
GEMMA: Raw = {"hidden_activation": "gelu_pytorch_tanh", "head_dim": 256, "query_pre_attn_scalar": 256}
YARN8: Raw = {
    "rope_type": "yarn", "factor": 8.0, "original_max_position_embeddings": 8192,
    "attention_factor": 1.2079441541679836, "beta_fast": 32.0, "beta_slow": 1.0,
}  # fmt: skip
LLAMA3_OF_16: Raw = {
    "rope_type": "llama3", "factor": 16.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}  # fmt: skip

SHAPES: dict[Shape, Raw] = {
    "tiny": _raw("llama", 256, 688, 8, 8, 4, 32_000, **LLAMA3),
    "llama3-8b": _raw("llama", 4096, 14_336, 32, 32, 8, 128_256, **LLAMA3),
    "llama3-70b": _raw("llama", 8192, 28_672, 80, 64, 8, 128_256, **LLAMA3),
    "llama3-405b": _raw("llama", 16_384, 53_248, 126, 128, 8, 128_256, **LLAMA3),
    "qwen3-8b": _raw("qwen3", 4096, 12_288, 36, 32, 8, 151_936, head_dim=128, rope_theta=1e6),
    "qwen3-0.6b": _raw(
        "qwen3", 1024, 3072, 28, 16, 8, 151_936, head_dim=128, rope_theta=1e6, tie_word_embeddings=True
    ),
    "qwen2.5-7b": _raw("qwen2", 3584, 18_944, 28, 28, 4, 152_064, rope_theta=1e6),
    "smollm3-3b": _raw("smollm3", 2048, 11_008, 36, 16, 4, 128_256, rope_theta=5e6, no_rope_layer_interval=4),
    "smollm2-135m": _raw(
        "llama", 576, 1536, 30, 9, 3, 49_152, rms_norm_eps=1e-5, rope_theta=1e5, max_position_embeddings=8192,
        tie_word_embeddings=True,
    ),
    "olmo3-7b": _raw(
        "olmo3", 4096, 11_008, 32, 32, 32, 100_278, rms_norm_eps=1e-6, rope_theta=5e5, sliding_window=4096,
        rope_scaling=YARN8,
    ),
    "olmo2-7b": _raw("olmo2", 4096, 11_008, 32, 32, 32, 100_352, rms_norm_eps=1e-6, rope_theta=5e5),
    "gemma3-4b": _raw(  # the language model inside
        "gemma3_text", 2560, 10_240, 34, 8, 4, 262_208, sliding_window=1024,
        rope_scaling={"rope_type": "linear", "factor": 8.0}, **GEMMA,
    ),
    "gemma2-9b": _raw("gemma2", 3584, 14_336, 42, 16, 8, 256_000, sliding_window=4096, **GEMMA),
    "mistral-7b": _raw(  # v0.1, which has a window
        "mistral", 4096, 14_336, 32, 32, 8, 32_000, rms_norm_eps=1e-5, sliding_window=4096
    ),
    "ministral3-8b": _raw("ministral3", 4096, 14_336, 34, 32, 8, 131_072, head_dim=128),
    "phi4-mini": _raw(
        "phi3", 3072, 8192, 32, 24, 8, 200_064, partial_rotary_factor=0.75, sliding_window=262_144,
        tie_word_embeddings=True,
    ),
    "apertus-8b": _raw("apertus", 4096, 21_504, 32, 32, 8, 131_072, hidden_act="xielu"),
    "granite3.3-8b": _raw(
        "granite", 4096, 12_800, 40, 32, 8, 49_159, rms_norm_eps=1e-5, rope_theta=1e7, tie_word_embeddings=True,
        attention_multiplier=0.0078125, embedding_multiplier=12.0, residual_multiplier=0.22, logits_scaling=16.0,
    ),
    "exaone4-32b": _raw(
        "exaone4", 5120, 27_392, 64, 40, 8, 102_400, head_dim=128, rope_theta=1e6, sliding_window=4096,
        sliding_window_pattern=4, rope_scaling=LLAMA3_OF_16,
    ),
}  # fmt: skip


def raw_config(shape: Shape, layers: int | None = None) -> Raw:
    """The config.json of a named shape, with so many layers instead of its own."""
    raw = SHAPES[shape]
    family = next(family for family in FAMILIES if family.model_type == raw["model_type"])
    made = {"architectures": [family.architecture], "hidden_act": "silu", "bos_token_id": 0, "eos_token_id": 1} | raw
    return made | ({"num_hidden_layers": layers} if layers else {})
