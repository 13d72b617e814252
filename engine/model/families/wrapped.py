"""Models that see, around a language model: Gemma 3 from 4B on, and Mistral 3 (Small 3.1 and later, Ministral 3).

The language model trains; everything else in the checkpoint is carried through into every folder that is written.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

from engine.model.families.config_file import ConfigFile
from engine.model.families.family import Family
from engine.model.families.gemma import GEMMA3
from engine.model.families.ministral3 import MINISTRAL3
from engine.model.families.mistral import MISTRAL
from engine.model.model_config import ModelConfig
from engine.model.names import Layout

CARRIED = {name: rf"(model\.)?{name}\..*" for name in ("vision_tower", "multi_modal_projector")}
LAYOUTS = (
    Layout("language_model.model.", "language_model."),  # the hub's, and what transformers writes
    Layout("model.language_model.", ""),  # what it calls them inside, and writes with save_original_format=False
)
GEMMA3_WITHOUT = {"vocab_size": 262208, "num_attention_heads": 8, "num_key_value_heads": 4, "head_dim": 256}


def _reader(inside: Sequence[Family], without: Mapping[str, object], tied: bool) -> Callable[[ConfigFile], ModelConfig]:
    """A reader of text_config. without: what a text_config means by keys that it lacks. tied: whether the head is,
    where the file does not say; what its folder holds goes before that (engine/weights/checkpoint.py).
    """
    by_type = {family.model_type: family for family in inside}

    def read(file: ConfigFile) -> ModelConfig:
        text = file.mapping("text_config")
        if not text:
            raise file.refused("text_config is missing, which says what the language model is")
        kind = text.get("model_type", inside[0].model_type)
        if kind not in by_type:
            raise file.refused(f"text_config: model_type {kind!r} is not supported; it has to be {', '.join(by_type)}")
        named = {"model_type": kind} | dict(without) | text
        ties = {"tie_word_embeddings": file.flag("tie_word_embeddings", tied)}  # transformers goes by the outer one
        found = by_type[kind].read(ConfigFile(named | ties, f"{file.location}: text_config"))
        names = replace(found.names, **LAYOUTS[0]._asdict(), carried=CARRIED, layouts=LAYOUTS)
        return replace(found, raw=file.raw, model_type=file.get("model_type"), names=names)

    return read


GEMMA3_SEEING = Family(
    "gemma3", "Gemma3ForConditionalGeneration", _reader([GEMMA3], GEMMA3_WITHOUT, tied=True),
    "Gemma 3 that sees (4B to 27B)", "the language model inside; what sees is carried through",
)  # fmt: skip
MISTRAL3_SEEING = Family(
    "mistral3", "Mistral3ForConditionalGeneration", _reader([MISTRAL, MINISTRAL3], {}, tied=True),
    "Mistral Small 3.1 and later, Ministral 3 that see", "the language model inside; what sees is carried through",
)  # fmt: skip
