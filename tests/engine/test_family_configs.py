"""How each family's config.json is read: against transformers' own classes, in both spellings, and what is refused."""

import copy
import re
import sys
from dataclasses import replace
from typing import Any

import pytest
import torch
import transformers
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from engine.model import FAMILIES, ModelConfig, read_config
from engine.model.rope import LongRope, Rope, Yarn, frequencies
from system import InputError
from tests.family_table import KINDS, LLAMA3, LONG, PLAIN, VARIANTS, YARN

SIZES = {key: PLAIN[key] for key in PLAIN if key.endswith("size") or key.startswith("num")}
"""What every file has."""
MINIMAL = {  # what else a family's file needs: the rest is left to its absence
    "mistral": {"num_key_value_heads": 4},
    "phi3": {"pad_token_id": None},
    "exaone4": {"num_hidden_layers": 8},
    "gemma3_text": {"num_hidden_layers": 8},
    "olmo3": {"num_hidden_layers": 8},
    "smollm3": {"num_hidden_layers": 8},
    "ministral3": {"max_position_embeddings": 262144},
}
WRAPPED = ("gemma3", "mistral3")


def file_of(model_type: str, *, drops: tuple[str, ...] = (), **keys: Any) -> dict[str, Any]:
    """The smallest config.json of a family, and some keys."""
    raw = {"model_type": model_type} | SIZES | MINIMAL.get(model_type, {}) | keys
    return {key: value for key, value in raw.items() if key not in drops}


def wrapped(model_type: str, text: dict[str, Any], **keys: Any) -> dict[str, Any]:
    """A wrapper's file."""
    return {"model_type": model_type, "text_config": text} | keys


def peer_config(raw: dict[str, Any]) -> Any:
    """transformers' configuration of a file, whose objects it changes."""
    return CONFIG_MAPPING[raw["model_type"]].from_dict(copy.deepcopy(raw))


def told_by_peer(raw: dict[str, Any]) -> dict[str, Any]:
    """What a file means, by transformers' classes."""
    whole = peer_config(raw)
    config = whole.get_text_config()
    n = config.num_hidden_layers
    window = getattr(config, "sliding_window", None)
    slides = getattr(config, "layer_types", None) or ["sliding_attention"] * n
    slides = [kind == "sliding_attention" and window is not None for kind in slides]
    head = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    scale = getattr(config, "query_pre_attn_scalar", None)
    scale = getattr(config, "attention_multiplier", head**-0.5) if scale is None else scale**-0.5
    bias = getattr(config, "attention_bias", False)
    return {
        "sizes": [getattr(config, key) for key in SIZES],
        "head_size": head,
        "eps": config.rms_norm_eps,
        "tied": whole.tie_word_embeddings,
        "context": config.max_position_embeddings,
        "biases": (bias or config.model_type == "qwen2", bias, getattr(config, "mlp_bias", False)),
        "windows": [window if does else None for does in slides],
        "turns": _turns(config, slides),
        "scale": scale,
        "caps": (
            getattr(config, "attn_logit_softcapping", None) if config.model_type == "gemma2" else None,
            getattr(config, "final_logit_softcapping", None),
        ),
        "factors": tuple(
            float(getattr(config, name, 1.0))
            for name in ("embedding_multiplier", "residual_multiplier", "logits_scaling")
        ),
        "ropes": _peer_ropes(config),
    }


def _turns(config: Any, slides: list[bool]) -> list[bool]:
    if config.model_type == "exaone4":
        return [does or config.sliding_window is None for does in slides]
    return [bool(x) for x in getattr(config, "no_rope_layers", [True] * len(slides))]


def _peer_ropes(config: Any) -> list[list[float]]:
    """Frequencies and magnitude of the rope of full layers, and of the one of sliding layers where there are two."""
    model = transformers.AutoModelForCausalLM._model_mapping[type(config)]
    module = sys.modules[model.__module__]
    rotary = next(
        value for name, value in vars(module).items() if name.endswith("RotaryEmbedding") and "Vision" not in name
    )(config)
    names = ["full_attention_", "sliding_attention_"] if hasattr(rotary, "full_attention_inv_freq") else [""]
    return [
        [*getattr(rotary, f"{name}inv_freq").tolist(), getattr(rotary, f"{name}attention_scaling")] for name in names
    ]


def told_by_us(raw: dict[str, Any]) -> dict[str, Any]:
    """The same of what we read."""
    config = read_config(raw, "config.json")
    ropes = {layer.window is not None: layer.rope for layer in config.layers if layer.rope}
    has_two = config.model_type in ("olmo3", "gemma3", "gemma3_text")
    by_kind = [ropes.get(False), ropes.get(True)] if has_two else [config.ropes[0]]
    is_gemma = config.norm_adds_one
    return {
        "sizes": [
            {"num_hidden_layers": config.n_layers, "num_attention_heads": config.n_heads}.get(key)
            or (config.n_kv_heads if key == "num_key_value_heads" else getattr(config, key))
            for key in SIZES
        ],
        "head_size": config.head_size,
        "eps": config.rms_norm_eps,
        "tied": config.tied,
        "context": config.context,
        "biases": (config.qkv_bias, config.o_bias, config.mlp_bias),
        "windows": [layer.window for layer in config.layers],
        "turns": [layer.rope is not None for layer in config.layers],
        "scale": config.head_size**-0.5 if config.attention_scale is None else config.attention_scale,
        "caps": (config.attention_cap, config.logit_cap),
        "factors": (1.0 if is_gemma else config.embed_factor, config.residual_factor, config.logit_divisor),
        "ropes": [_ours(rope) for rope in by_kind if rope],
    }


def _ours(rope: Rope) -> list[float]:
    magnitude = rope.scaling.magnitude if isinstance(rope.scaling, (Yarn, LongRope)) else 1.0
    return [*frequencies(rope).tolist(), magnitude]


def assert_read_alike(raw: dict[str, Any]) -> None:
    """That a file means to us what it means to transformers. Raises AssertionError."""
    ours, theirs = told_by_us(raw), told_by_peer(raw)
    if ours["context"] is None:  # absent: no bound of ours
        theirs["context"] = None
    for name, value in theirs.items():
        if name == "ropes":
            torch.testing.assert_close(torch.tensor(ours[name]), torch.tensor(value), rtol=1e-6, atol=0, msg=name)
        else:
            assert ours[name] == value, name


def unlike(config: ModelConfig, **keys: Any) -> ModelConfig:
    """A configuration without the file that it was read from."""
    return replace(config, raw={}, **keys)


@pytest.mark.parametrize("variant", VARIANTS, ids=lambda v: v.name)
def test_a_file_means_what_it_means_to_transformers(variant):
    assert_read_alike(variant.raw)


@pytest.mark.parametrize("variant", VARIANTS, ids=lambda v: v.name)
def test_what_transformers_writes_of_a_file_means_the_same(variant):
    written = peer_config(variant.raw).to_dict()
    assert "rope_parameters" in written.get("text_config", written)
    ours = read_config(variant.raw, "as it was")
    again = read_config(written | {"architectures": [variant.architecture]}, "as transformers writes it")
    assert unlike(again) == unlike(ours)


@pytest.mark.parametrize("family", [f for f in FAMILIES if f.model_type not in WRAPPED], ids=lambda f: f.model_type)
def test_absent_keys_mean_what_they_mean_to_transformers(family):
    assert_read_alike(file_of(family.model_type))


ABSENT_OR_NULL = [
    file_of("llama", drops=("num_key_value_heads",)),
    file_of("llama", num_key_value_heads=None, head_dim=None, rope_scaling=None),
    file_of("llama", rope_scaling=YARN | {"factor": None}, max_position_embeddings=128),
    file_of("llama", rope_scaling={"rope_type": "yarn", "factor": 2.0}, max_position_embeddings=128),
    file_of("llama", rope_scaling=YARN | {"beta_fast": None, "beta_slow": 0}, max_position_embeddings=128),
    file_of("llama", rope_scaling=YARN | {"mscale": 0, "mscale_all_dim": 1.0}, max_position_embeddings=128),
    file_of("llama", rope_theta=5000, rope_parameters={"rope_type": "default"}),
    file_of("llama", rope_parameters=YARN | {"rope_theta": 70.0, "type": "yarn"}, max_position_embeddings=128),
    file_of("mistral", sliding_window=None, head_dim=None),
    file_of("mistral", head_dim=16),
    file_of("qwen2", use_sliding_window=True, sliding_window=None),
    file_of("qwen2", use_sliding_window=True, num_hidden_layers=30),
    file_of("qwen2", use_sliding_window=False, sliding_window=131072, max_window_layers=1),
    file_of("qwen2", head_dim=16),
    file_of("smollm3", head_dim=16),
    file_of("mistral", sliding_window=7, layer_types=["sliding_attention"] * 3),
    file_of("qwen3", head_dim=16, num_key_value_heads=None),
    file_of("smollm3", no_rope_layers=[1, 0, 1, 0, 1, 1, 1, 1], rope_scaling=YARN, max_position_embeddings=128),
    file_of("smollm3", sliding_window=7, no_rope_layer_interval=3),
    file_of("smollm3", sliding_window=7, use_sliding_window=True),
    file_of("granite", drops=("num_key_value_heads",), embedding_multiplier=12, residual_multiplier=0.22),
    file_of("olmo2", drops=("num_key_value_heads",), rms_norm_eps=1e-6),
    file_of("olmo3", rope_theta=500000, rope_scaling=None),
    file_of("olmo3", rope_parameters={"full_attention": YARN, "sliding_attention": None}, max_position_embeddings=128),
    file_of("phi3", drops=("num_key_value_heads",), rope_scaling=None, partial_rotary_factor=0.5, sliding_window=2047),
    file_of("phi3", rope_scaling={"type": "longrope"} | LONG, max_position_embeddings=131072),
    file_of(
        "phi3", rope_parameters={"rope_type": "longrope", "partial_rotary_factor": 0.5, "rope_theta": 50.0}
        | {key: value[:2] for key, value in LONG.items()}, max_position_embeddings=131072,
        original_max_position_embeddings=32,
    ),
    file_of("gemma2", attn_logit_softcapping=None, sliding_window=None, layer_types=["full_attention"] * 3),
    file_of("gemma2", hidden_act="gelu", final_logit_softcapping=20.0),
    file_of("gemma3_text", sliding_window_pattern=4, rope_local_base_freq=5000, rope_theta=2e6),
    file_of("gemma3_text", _sliding_window_pattern=2),
    file_of("gemma3_text", rope_parameters={"full_attention": {"rope_type": "linear", "factor": 8, "rope_theta": 3.0}}),
    file_of("apertus", rope_theta=12000000, rope_scaling=None),
    file_of("apertus", rope_theta=7.0, rope_parameters={"rope_type": "default"}),
    file_of("exaone4", sliding_window=None, layer_types=["full_attention"] * 8, rope_scaling=LLAMA3),
    file_of("exaone4", sliding_window_pattern=3),
    file_of("exaone4", sliding_window_pattern="LLLG", layer_types=(["sliding_attention"] * 3 + ["full_attention"]) * 2),
    wrapped("mistral3", file_of("mistral", drops=("model_type",)), tie_word_embeddings=False),
    wrapped("mistral3", file_of("ministral3"), tie_word_embeddings=False),
    wrapped("gemma3", file_of("gemma3_text", drops=("model_type", "num_attention_heads", "num_key_value_heads"))),
    wrapped("gemma3", file_of("gemma3_text", drops=("vocab_size",)), tie_word_embeddings=False),
]  # fmt: skip


@pytest.mark.parametrize("raw", ABSENT_OR_NULL, ids=lambda raw: raw["model_type"])
def test_keys_that_are_absent_or_null_or_off_mean_what_they_mean_to_transformers(raw):
    assert_read_alike(raw)


@pytest.mark.parametrize("family", FAMILIES, ids=lambda f: f.model_type)
def test_a_file_is_known_by_its_architecture_and_by_its_model_type(family):
    text = {"text_config": file_of("gemma3_text" if family.model_type == "gemma3" else "mistral")}
    raw = file_of(family.model_type) | (text if family.model_type in WRAPPED else {})
    both = raw | {"architectures": [family.architecture]}
    alone = {key: value for key, value in both.items() if key != "model_type"}
    assert unlike(read_config(raw, "f")) == unlike(read_config(both, "f")) == unlike(read_config(alone, "f"))
    assert getattr(transformers, family.architecture).config_class is CONFIG_MAPPING[family.model_type]


REFUSED = [
    (file_of("llama", architectures=["MixtralForCausalLM"]), "mixture of experts"),
    (file_of("qwen3_next", num_experts=4), "linear attention"),
    (file_of("granitemoehybrid"), "recurrence"),
    (file_of("llava"), "is a vision, audio or encoder model"),
    (file_of("qwen3_vl", architectures=["Qwen3VLForConditionalGeneration"]), "is a vision, audio or encoder model"),
    (file_of("bert", architectures=["BertModel"]), "is not a decoder"),
    (file_of("gpt2", architectures=["GPT2LMHeadModel"]), "GPT2LMHeadModel"),
    (file_of("mistral", architectures=["LlamaForCausalLM"]), "model_type"),
    (file_of("llama", hidden_act="gelu"), "hidden_act"),
    (file_of("gemma2", hidden_activation="gelu"), "hidden_activation"),
    (file_of("gemma3_text", use_bidirectional_attention=True), "use_bidirectional_attention"),
    (file_of("llama", rope_scaling={"rope_type": "longrope"} | LONG), "longrope"),
    (file_of("llama", rope_scaling={"rope_type": "proportional"}), "proportional"),
    (file_of("llama", rope_scaling=YARN | {"type": "linear"}), "rope_type"),
    (file_of("llama", rope_scaling=YARN | {"factor": 0}), "factor"),
    (file_of("llama", rope_scaling=YARN, rope_theta=1), "rope_theta"),
    (file_of("llama", rope_scaling={"rope_type": "linear"}), "factor"),
    (file_of("llama", rope_scaling={"rope_type": "dynamic", "factor": 2.0}), "max_position_embeddings"),
    (file_of("llama", rope_scaling={"rope_type": "yarn", "factor": 2.0}), "original_max_position_embeddings"),
    (file_of("llama", rope_scaling=YARN, original_max_position_embeddings=32), "original_max_position_embeddings"),
    (file_of("llama", rope_parameters=YARN, rope_scaling=LLAMA3), "rope_parameters"),
    (file_of("llama", partial_rotary_factor=0.5), "partial_rotary_factor"),
    (file_of("llama", rope_scaling="yarn"), "rope_scaling"),
    (file_of("llama", attention_bias=1), "attention_bias"),
    (file_of("llama", tie_word_embeddings="no"), "tie_word_embeddings"),
    (file_of("llama", transformers_weights="a.safetensors"), "transformers_weights"),
    (file_of("llama", num_key_value_heads=3), "kv heads"),
    (file_of("llama", head_dim=7), "even"),
    (file_of("llama", quantization_config={"quant_method": "fp8"}), "quantization_config"),
    (file_of("mistral", drops=("num_key_value_heads",)), "num_key_value_heads"),
    (file_of("qwen3", drops=("num_key_value_heads",)), "num_key_value_heads"),
    (file_of("mistral", layer_types=KINDS), "layer_types"),
    (file_of("mistral", sliding_window=0), "sliding_window"),
    (file_of("ministral3", rope_scaling=YARN), "rope_scaling"),
    (file_of("ministral3", rope_parameters=YARN | {"llama_4_scaling_beta": 0.1}), "rope_theta"),
    (file_of("ministral3", rope_parameters=YARN | {"rope_theta": 1e4}), "llama_4_scaling_beta"),
    (file_of("qwen2", layer_types=KINDS), "use_sliding_window"),
    (file_of("qwen2", layer_types=KINDS[:2]), "layer_types"),
    (file_of("qwen3", use_sliding_window=True, max_window_layers="all"), "max_window_layers"),
    (file_of("smollm3", no_rope_layers=[1, 0]), "no_rope_layers"),
    (file_of("smollm3", layer_types=["sliding_attention"] * 8), "sliding_window"),
    (file_of("smollm3", layer_types=["sliding_attention"] * 8, sliding_window=7), "use_sliding_window"),
    (file_of("granite", logits_scaling=0), "logits_scaling"),
    (file_of("olmo3", rope_theta=10000.0), "rope_theta"),
    (file_of("olmo3", rope_scaling={"type": "yarn", "factor": 8.0}), "rope_type"),
    (file_of("olmo3", rope_parameters=YARN), "rope_parameters"),
    (file_of("olmo3", rope_parameters={"full_attention": YARN | {"truncate": False}}), "truncate"),
    (file_of("phi3", rope_scaling={"type": "longrope"}), "short_factor"),
    (file_of("phi3", rope_scaling={"type": "longrope"} | LONG, partial_rotary_factor=0.5), "short_factor"),
    (file_of("phi3", rope_scaling={"type": "longrope", "original_max_position_embeddings": 32} | LONG), "4,096"),
    (file_of("phi3", rope_scaling=LLAMA3, original_max_position_embeddings=64), "llama3"),
    (file_of("phi3", partial_rotary_factor=0.4), "partial_rotary_factor"),
    (file_of("phi3", partial_rotary_factor=2), "partial_rotary_factor"),
    (file_of("phi3", head_dim=16), "head_dim"),
    (
        file_of(
            "phi3",
            rope_parameters={"rope_type": "default", "rope_theta": 1e4, "partial_rotary_factor": 0.5},
            rope_scaling={"rope_type": "default", "rope_theta": 1e4},
        ),
        "partial_rotary_factor",
    ),
    (file_of("gemma2", sliding_window=None), "sliding_window"),
    (file_of("gemma3_text", sliding_window_pattern=0), "sliding_window_pattern"),
    (file_of("gemma3_text", partial_rotary_factor=0.5), "partial_rotary_factor"),
    (file_of("apertus", hidden_act="silu"), "hidden_act"),
    (file_of("apertus", rope_theta=7.0), "without rope_parameters"),
    (file_of("apertus", rope_theta=7.0, rope_scaling=None), "without rope_parameters"),
    (file_of("exaone4", sliding_window_pattern="LLLG"), "sliding_window_pattern"),
    (wrapped("gemma3", {}), "text_config"),
    (wrapped("mistral3", file_of("llama")), "model_type"),
    (wrapped("gemma3", file_of("gemma3_text", quantization_config={"quant_method": "fp8"})), "quantization_config"),
    (wrapped("gemma3", file_of("gemma3_text", hidden_activation="silu")), "hidden_activation"),
]


@pytest.mark.parametrize(("raw", "key"), REFUSED, ids=lambda x: x if isinstance(x, str) else x["model_type"])
def test_what_is_refused_is_refused_in_a_sentence_that_names_file_and_key(raw, key):
    with pytest.raises(InputError) as fault:
        read_config(raw, "folder/config.json")
    said = str(fault.value)
    assert re.match(r"folder/config\.json: ", said) and key in said and "\n" not in said


def test_code_beside_a_known_model_type_is_not_asked_for():
    """Released Phi-3 has auto_map: transformers takes its own class, and so do we."""
    raw = file_of("phi3", auto_map={"AutoModelForCausalLM": "modeling_phi3.Phi3ForCausalLM"})
    assert read_config(raw, "f").model_type == "phi3"


@pytest.mark.parametrize(
    ("top", "text", "is_tied"),
    [
        ({}, {}, None),
        ({"tie_word_embeddings": True}, {}, True),
        ({"tie_word_embeddings": False}, {}, False),
        ({"tie_word_embeddings": True}, {"tie_word_embeddings": False}, True),
        ({}, {"tie_word_embeddings": False}, None),
    ],
)
@pytest.mark.parametrize("model_type", WRAPPED)
def test_a_wrapper_says_whether_the_head_is_tied_and_its_text_does_not(model_type, top, text, is_tied):
    """Where it does not it is, unless the folder's tensors say otherwise."""
    raw = wrapped(model_type, file_of("gemma3_text" if model_type == "gemma3" else "mistral", **text), **top)
    assert read_config(raw, "f").tied == (is_tied is not False)
