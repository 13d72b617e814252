"""Qwen 2, 2.5 and 3: biases on q, k and v in the former, norms of each head's queries and keys in the latter."""

from engine.model.families import ropes
from engine.model.families.config_file import ConfigFile
from engine.model.families.family import Family, layers, sizes
from engine.model.model_config import ModelConfig


def read_qwen2(file: ConfigFile) -> ModelConfig:
    """From the config.json of a Qwen 2 or 2.5."""
    found = sizes(file)
    return ModelConfig(**found, qkv_bias=True, layers=_layers(file, found))


def read_qwen3(file: ConfigFile) -> ModelConfig:
    """From the config.json of a Qwen 3."""
    found = sizes(file, head_size=128)
    bias = file.flag("attention_bias")
    return ModelConfig(**found, qkv_bias=bias, o_bias=bias, qk_norm="each_head", layers=_layers(file, found))


def _layers(file: ConfigFile, found: dict) -> tuple:
    """Releases carry a window that use_sliding_window switches off; where it is on, the upper layers have it."""
    file.only("hidden_act", "silu", "silu")
    n, is_on = found["n_layers"], file.flag("use_sliding_window") and file.raw.get("sliding_window", 4096) is not None
    first = file.raw.get("max_window_layers", 28)
    if type(first) is not int or first < 0:
        raise file.refused(f"max_window_layers = {first!r}; it has to be a whole number")
    slides = file.kinds([is_on and i >= first for i in range(n)])
    if any(slides) and not is_on:
        raise file.refused(
            "layer_types has sliding layers, and use_sliding_window is false; correct the one or the other"
        )
    rope = ropes.of_all_layers(file, found["head_size"])
    return layers([rope] * n, file.windows(slides, 4096))


QWEN2 = Family(
    "qwen2",
    "Qwen2ForCausalLM",
    read_qwen2,
    "Qwen 2, 2.5",
    "biases on q, k, v; a window can be switched on",
)
QWEN3 = Family(
    "qwen3",
    "Qwen3ForCausalLM",
    read_qwen3,
    "Qwen 3",
    "q and k normed; heads of a size of their own",
)
