"""A page for each family of models: how its config.json is read, what its weights are called, and what is refused.

A new one is a file with a `Family`, its name in the table below, and its row in the tests.
"""

from dataclasses import replace
from pathlib import Path
from typing import Any

from engine.model.families.apertus import APERTUS
from engine.model.families.config_file import ConfigFile
from engine.model.families.exaone4 import EXAONE4
from engine.model.families.family import Family
from engine.model.families.gemma import GEMMA2, GEMMA3
from engine.model.families.granite import GRANITE
from engine.model.families.llama import LLAMA
from engine.model.families.ministral3 import MINISTRAL3
from engine.model.families.mistral import MISTRAL
from engine.model.families.olmo import OLMO2, OLMO3
from engine.model.families.phi3 import PHI3
from engine.model.families.qwen import QWEN2, QWEN3
from engine.model.families.refusals import reason
from engine.model.families.smollm3 import SMOLLM3
from engine.model.families.wrapped import GEMMA3_SEEING, MISTRAL3_SEEING
from engine.model.model_config import ModelConfig
from engine.model.quantised_checkpoint import REMEDY, quantised_by

FAMILIES = (
    LLAMA, MISTRAL, MINISTRAL3, MISTRAL3_SEEING, QWEN2, QWEN3, SMOLLM3, GRANITE, OLMO2, OLMO3, PHI3, GEMMA2, GEMMA3,
    GEMMA3_SEEING, APERTUS, EXAONE4,
)  # fmt: skip
WEIGHTS = (None, "model.safetensors", "model.safetensors.index.json")


def read_config(raw: dict[str, Any], location: str | Path) -> ModelConfig:
    """The configuration in a parsed config.json. Raises InputError where it is no model that runs here."""
    file = ConfigFile(raw, location)
    family = family_of(file)
    if raw.get("transformers_weights") not in WEIGHTS:
        raise file.refused(
            f"transformers_weights = {raw['transformers_weights']!r} is not supported; the weights have to be "
            "model.safetensors, or shards with an index"
        )
    text = raw.get("text_config")
    for part in (raw, text if isinstance(text, dict) else {}):
        if found := quantised_by(part):
            raise file.refused(f"{found[0]} says that the weights are quantised ({found[1]}); {REMEDY}")
    config = family.read(ConfigFile(raw | {"model_type": family.model_type}, location))
    return replace(config, raw=raw)


def architecture_of(config: ModelConfig) -> str:
    """What a family's files have under architectures."""
    return next(family.architecture for family in FAMILIES if family.model_type == config.model_type)


def family_of(file: ConfigFile) -> Family:
    """The family of a file, by architectures and model_type, which have to agree."""
    names = file.get("architectures") or [file.get("model_type")]
    found = next((f for f in FAMILIES if names in ([f.architecture], [f.model_type])), None)
    if found is None:
        why = reason(file.raw, [str(name) for name in names if name] if isinstance(names, list) else [])
        what = f"the architecture {names!r} " + (f"{why}, which is" if why else "is") + " not supported"
        raise file.refused(f"{what}; it has to be one of {', '.join(f.architecture for f in FAMILIES)}")
    if (file.get("model_type") or found.model_type) != found.model_type:
        raise file.refused(
            f"architectures says {names[0]}, and model_type, which transformers uses, says "
            f"{file.get('model_type')!r}; correct the one or the other"
        )
    return found
