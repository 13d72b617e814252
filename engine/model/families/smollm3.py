"""SmolLM3: Llama's block, of which every fourth layer has no RoPE."""

from engine.model.families import ropes
from engine.model.families.config_file import ConfigFile
from engine.model.families.family import Family, biases, layers, sizes
from engine.model.model_config import ModelConfig


def read(file: ConfigFile) -> ModelConfig:
    """From its config.json."""
    file.only("hidden_act", "silu", "silu")
    found = sizes(file, tied=True)
    turns = _turns(file)
    is_on = file.flag("use_sliding_window") and file.get("sliding_window") is not None
    slides = file.kinds([is_on and not does for does in turns])
    if any(slides) and not is_on:
        raise file.refused(
            "layer_types has sliding layers, which need use_sliding_window to be true and a sliding_window"
        )
    rope = ropes.of_all_layers(file, found["head_size"], theta=2e6)
    of_each = layers([rope if does else None for does in turns], file.windows(slides, None))
    return ModelConfig(**found, **biases(file), layers=of_each)


def _turns(file: ConfigFile) -> list[bool]:
    """no_rope_layers: 1 where a layer turns, 0 where it does not."""
    n, given = file.n_layers, file.get("no_rope_layers")
    if given is None:
        interval = file.count("no_rope_layer_interval", 4)
        return [(i + 1) % interval != 0 for i in range(n)]
    if not isinstance(given, list) or len(given) < n or not all(value in (0, 1) for value in given):
        raise file.refused(
            f"no_rope_layers = {given!r}; it has to be 1 or 0 for each of the {n} layers: 1 for those with RoPE"
        )
    return [value == 1 for value in given[:n]]


SMOLLM3 = Family("smollm3", "SmolLM3ForCausalLM", read, "SmolLM3", "every fourth layer has no RoPE")
