"""Gemma 2 and 3: norms on both sides that multiply with 1 + w, scaled embeddings, a scale of their own, windows.

Gemma 2 caps scores and logits. Gemma 3 norms each head's queries and keys, and has one rope for full layers and another
for sliding ones.
"""

from typing import Any

from engine.model.families import ropes
from engine.model.families.config_file import ConfigFile
from engine.model.families.family import Family, layers, sizes
from engine.model.model_config import ModelConfig
from engine.model.names import LLAMA_NAMES

NAMES = LLAMA_NAMES.but(
    {
        "attention_out_norm": "post_attention_layernorm",
        "mlp_norm": "pre_feedforward_layernorm",
        "mlp_out_norm": "post_feedforward_layernorm",
    }
)
WINDOW = 4096


def read_gemma2(file: ConfigFile) -> ModelConfig:
    """From the config.json of a Gemma 2."""
    found = _read(file)
    n = found["n_layers"]
    slides = file.kinds([i % 2 == 0 for i in range(n)])
    rope = ropes.of_all_layers(file, found["head_size"])
    return ModelConfig(
        **found,
        layers=layers([rope] * n, file.windows(slides, WINDOW)),
        attention_cap=_cap(file, "attn_logit_softcapping", 50.0),
        logit_cap=_cap(file, "final_logit_softcapping", 30.0),
    )


def read_gemma3(file: ConfigFile) -> ModelConfig:
    """From the config.json of a Gemma 3 without eyes, or the text_config of one that sees."""
    found = _read(file)
    pattern = file.count("sliding_window_pattern", 6)
    slides = file.kinds([(i + 1) % pattern != 0 for i in range(found["n_layers"])])
    theta = file.positive("rope_theta", 1e6), file.positive("rope_local_base_freq", 1e4)
    full, sliding = ropes.by_kind(file, found["head_size"], *theta, ropes.USUAL)
    of_each = [sliding if does else full for does in slides]
    return ModelConfig(
        **found,
        qk_norm="each_head",
        layers=layers(of_each, file.windows(slides, WINDOW)),
        logit_cap=_cap(file, "final_logit_softcapping", None),  # the one of scores is not used
    )


def _read(file: ConfigFile) -> dict[str, Any]:
    file.only("hidden_activation", "gelu_pytorch_tanh", "gelu_pytorch_tanh")  # hidden_act is not read
    if file.get("use_bidirectional_attention"):
        raise file.refused("use_bidirectional_attention is not supported: that is an encoder, which predicts nothing")
    found = sizes(file, tied=True, head_size=256)
    bias = file.flag("attention_bias")
    return found | {
        "norms": "both",
        "norm_adds_one": True,
        "norm_rounds_late": True,
        "qkv_bias": bias,
        "o_bias": bias,
        "attention_scale": file.positive("query_pre_attn_scalar", 256) ** -0.5,
        "activation": "gelu_tanh",
        "embed_factor": found["hidden_size"] ** 0.5,
        "embed_factor_rounds": True,
        "names": NAMES,
    }


def _cap(file: ConfigFile, key: str, default: float | None) -> float | None:
    return None if file.raw.get(key, default) is None else file.positive(key, default)


GEMMA2 = Family(
    "gemma2",
    "Gemma2ForCausalLM",
    read_gemma2,
    "Gemma 2",
    "norms before and after each sublayer, of 1 + w; caps; windows",
)
GEMMA3 = Family(
    "gemma3_text",
    "Gemma3ForCausalLM",
    read_gemma3,
    "Gemma 3",
    "as Gemma 2; q and k normed, no caps, two ropes",
)
