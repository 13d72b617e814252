"""OLMo 2 and 3: norms behind attention and MLP, and one norm over all heads of queries and of keys.

OLMo 3 slides in three layers of four, and stretches positions in the full ones alone. Versions of transformers before
5.3 stretch them in all: such a one is no oracle.
"""

from typing import Any

from engine.model.families import ropes
from engine.model.families.config_file import ConfigFile
from engine.model.families.family import Family, biases, layers, sizes
from engine.model.model_config import ModelConfig
from engine.model.names import LLAMA_NAMES

NAMES = LLAMA_NAMES.but(
    {"attention_out_norm": "post_attention_layernorm", "mlp_out_norm": "post_feedforward_layernorm"}
)
THETA = 500000.0


def read_olmo2(file: ConfigFile) -> ModelConfig:
    """From the config.json of an OLMo 2."""
    found = _read(file)
    n = found["n_layers"]
    rope = ropes.of_all_layers(file, found["head_size"])
    return ModelConfig(**found, layers=layers([rope] * n, [None] * n))


def read_olmo3(file: ConfigFile) -> ModelConfig:
    """From the config.json of an OLMo 3."""
    found = _read(file)
    slides = file.kinds([(i + 1) % 4 != 0 for i in range(found["n_layers"])])
    if file.get("rope_theta") not in (None, THETA):
        raise file.refused(
            f"rope_theta = {file.get('rope_theta')!r}: transformers gives it to the full layers alone; write "
            "rope_parameters with a rope_theta for full_attention and one for sliding_attention"
        )
    full, sliding = ropes.by_kind(file, found["head_size"], THETA, THETA, ("default", "linear", "yarn", "llama3"))
    of_each = [sliding if does else full for does in slides]
    return ModelConfig(**found, layers=layers(of_each, file.windows(slides, 4096)))


def _read(file: ConfigFile) -> dict[str, Any]:
    file.only("hidden_act", "silu", "silu")
    found = sizes(file, eps=1e-5, kv_as_heads=True) | biases(file, mlp=False)
    return found | {"norms": "behind", "norm_rounds_late": True, "qk_norm": "all_heads", "names": NAMES}


OLMO2 = Family(
    "olmo2", "Olmo2ForCausalLM", read_olmo2, "OLMo 2", "norms after each sublayer; q and k normed over all heads"
)
OLMO3 = Family(
    "olmo3", "Olmo3ForCausalLM", read_olmo3, "OLMo 3", "as OLMo 2; windows in three layers of four, YaRN in the fourth"
)
