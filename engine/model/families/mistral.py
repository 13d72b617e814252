"""Mistral 7B and Nemo: Llama's block, and a window in every layer unless sliding_window is null."""

from engine.model.families import ropes
from engine.model.families.config_file import ConfigFile
from engine.model.families.family import Family, layers, sizes
from engine.model.model_config import ModelConfig

WINDOW = 4096  # of a file that has no sliding_window


def read(file: ConfigFile) -> ModelConfig:
    """From its config.json."""
    file.only("hidden_act", "silu", "silu")
    found = sizes(file)
    rope = ropes.of_all_layers(file, found["head_size"])
    return ModelConfig(**found, layers=layers([rope] * found["n_layers"], windows(file, WINDOW)))


def windows(file: ConfigFile, default: int | None) -> list[int | None]:
    """sliding_window of every layer; null: of none. default: of a file without the key."""
    slides = [file.raw.get("sliding_window", default) is not None] * file.n_layers
    if file.kinds(slides) != slides:
        raise file.refused(
            f"layer_types contradicts sliding_window, which transformers uses in a {file.get('model_type')}; remove it"
        )
    return file.windows(slides, default)


MISTRAL = Family("mistral", "MistralForCausalLM", read, "Mistral 7B, Nemo, Small", "a window in every layer, or none")
