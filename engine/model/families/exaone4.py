"""EXAONE 4: OLMo's norms after each sublayer, each head's queries and keys normed; with a window, full layers have no
RoPE.
"""

from engine.model.families import ropes
from engine.model.families.config_file import ConfigFile
from engine.model.families.family import Family, layers, sizes
from engine.model.families.olmo import NAMES
from engine.model.model_config import ModelConfig


def read(file: ConfigFile) -> ModelConfig:
    """From its config.json."""
    file.only("hidden_act", "silu", "silu")
    found = sizes(file, eps=1e-5)
    has_window = file.raw.get("sliding_window", 4096) is not None
    slides = file.kinds(_pattern(file) if has_window else [False] * found["n_layers"])
    rope = ropes.of_all_layers(file, found["head_size"])
    turns = [rope if does or not has_window else None for does in slides]
    return ModelConfig(
        **found, norms="behind", qk_norm="each_head", names=NAMES, layers=layers(turns, file.windows(slides, 4096))
    )


def _pattern(file: ConfigFile) -> list[bool]:
    every = file.raw.get("sliding_window_pattern", 4)
    if file.get("layer_types") is None and (type(every) is not int or every < 1):
        raise file.refused(f"sliding_window_pattern = {every!r} without layer_types; write each layer's kind there")
    return [type(every) is int and (i + 1) % every != 0 for i in range(file.n_layers)]


EXAONE4 = Family(
    "exaone4",
    "Exaone4ForCausalLM",
    read,
    "EXAONE 4",
    "norms after each sublayer; q and k normed; with a window, full layers without RoPE",
)
