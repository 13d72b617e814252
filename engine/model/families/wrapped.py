"""Models that see, around a language model: Gemma 3 from 4B on, and Mistral 3 (Small 3.1 and later, Ministral 3).

The language model trains; everything else in the checkpoint is carried through into every folder that is written.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace

from engine.model.families.config_file import ConfigFile
from engine.model.families.family import Family
from engine.model.families.gemma import GEMMA3
from engine.model.families.ministral3 import MINISTRAL3
from engine.model.families.mistral import MISTRAL
from engine.model.model_config import ModelConfig

OTHERS = (r"vision_tower\..*", r"multi_modal_projector\..*")
GEMMA3_WITHOUT = {"vocab_size": 262208, "num_attention_heads": 8, "num_key_value_heads": 4, "head_dim": 256}


def _reader(inside: Sequence[Family], without: Mapping[str, object], tied: bool):
    """A reader of text_config. without: what a text_config means by keys that it lacks. tied: the same, of the head."""
    by_type = {family.model_type: family for family in inside}

    def read(file: ConfigFile) -> ModelConfig:
        text = file.mapping("text_config")
        if not text:
            raise file.refused("text_config is missing, which says what the language model is")
        kind = text.get("model_type", inside[0].model_type)
        if kind not in by_type:
            raise file.refused(f"text_config: model_type {kind!r} is not supported; it has to be {', '.join(by_type)}")
        ties = {key: file.raw[key] for key in ("tie_word_embeddings",) if key in file.raw}
        if any(text.get(key, value) != value for key, value in ties.items()):
            raise file.refused(
                f"tie_word_embeddings = {ties['tie_word_embeddings']!r}, and text_config has "
                f"{text['tie_word_embeddings']!r}; write in both whether the head is the embedding"
            )
        named = {"model_type": kind, "tie_word_embeddings": tied} | dict(without) | ties
        found = by_type[kind].read(ConfigFile(named | text, f"{file.location}: text_config"))
        names = replace(found.names, body="language_model.model.", before_head="language_model.", carried=OTHERS)
        return replace(found, raw=file.raw, model_type=file.get("model_type"), names=names)

    return read


GEMMA3_SEEING = Family(
    "gemma3", "Gemma3ForConditionalGeneration", _reader([GEMMA3], GEMMA3_WITHOUT, tied=True),
    "Gemma 3 that sees (4B to 27B)", "the language model inside; what sees is carried through",
)  # fmt: skip
MISTRAL3_SEEING = Family(
    "mistral3", "Mistral3ForConditionalGeneration", _reader([MISTRAL, MINISTRAL3], {}, tied=False),
    "Mistral Small 3.1 and later, Ministral 3 that see", "the language model inside; what sees is carried through",
)  # fmt: skip
