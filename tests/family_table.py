"""The families and variants that tests compare with transformers: a config.json of a tiny model for each.

Windows are of 7 tokens and original contexts of 16 or so, far below the sequences of tests (tests/families.py).
"""

from dataclasses import dataclass, field
from typing import Any

PLAIN = {
    "vocab_size": 101,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 96,
    "rope_theta": 100.0,
    "tie_word_embeddings": False,
    "bos_token_id": None,
    "eos_token_id": None,
    "pad_token_id": None,
    "torch_dtype": "float32",
}
ABSENT = object()
"""Of a key of PLAIN that a variant's file lacks."""

LINEAR = {"rope_type": "linear", "factor": 4.0}
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16}
RAMP = YARN | {"original_max_position_embeddings": 32, "beta_fast": 2.0, "beta_slow": 0.25}  # of which much is between
LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
LONG = {"short_factor": [1.0, 1.1, 1.3, 1.7], "long_factor": [1.2, 2.0, 3.5, 5.0]}
KINDS = ["sliding_attention", "full_attention", "sliding_attention"]
TEXT = {key: value for key, value in PLAIN.items() if key not in ("torch_dtype", "tie_word_embeddings")}


@dataclass(frozen=True)
class Variant:
    """A config.json."""

    name: str
    architecture: str
    config: dict[str, Any] = field(hash=False)
    is_quick: bool = False
    """Whether the fast tests compute it: together these touch each option of a block."""

    @property
    def raw(self) -> dict[str, Any]:
        """What the file holds."""
        plain = {} if "text_config" in self.config else PLAIN
        laid = {"architectures": [self.architecture]} | plain | self.config
        return {key: value for key, value in laid.items() if value is not ABSENT}


def _llama(name: str, *, is_quick: bool = False, **config: Any) -> Variant:
    return Variant(f"llama {name}", "LlamaForCausalLM", {"model_type": "llama"} | config, is_quick)


def _mistral(name: str, **config: Any) -> Variant:
    return Variant(f"mistral {name}", "MistralForCausalLM", {"model_type": "mistral"} | config)


def _ministral3(name: str, *, is_quick: bool = False, **config: Any) -> Variant:
    rope = YARN | {"rope_theta": 100.0, "mscale": 1.0, "mscale_all_dim": 1.0, "llama_4_scaling_beta": 0.3}
    own = {"model_type": "ministral3", "head_dim": 16, "rope_theta": ABSENT, "rope_parameters": rope}
    return Variant(f"ministral3 {name}", "Ministral3ForCausalLM", own | config, is_quick)


def _qwen(kind: str, name: str, **config: Any) -> Variant:
    return Variant(f"{kind} {name}", f"{kind.title()}ForCausalLM", {"model_type": kind} | config)


def _smollm3(name: str, *, is_quick: bool = False, **config: Any) -> Variant:
    own = {"model_type": "smollm3", "num_hidden_layers": 4, "tie_word_embeddings": ABSENT}
    return Variant(f"smollm3 {name}", "SmolLM3ForCausalLM", own | config, is_quick)


def _granite(name: str, *, is_quick: bool = False, **config: Any) -> Variant:
    return Variant(f"granite {name}", "GraniteForCausalLM", {"model_type": "granite"} | config, is_quick)


def _olmo(n: int, name: str, *, is_quick: bool = False, **config: Any) -> Variant:
    own = {"model_type": f"olmo{n}", "num_hidden_layers": 4, "rope_theta": ABSENT}
    return Variant(f"olmo{n} {name}", f"Olmo{n}ForCausalLM", own | config, is_quick)


def _phi3(name: str, *, is_quick: bool = False, **config: Any) -> Variant:
    return Variant(f"phi3 {name}", "Phi3ForCausalLM", {"model_type": "phi3"} | config, is_quick)


GEMMA = {"head_dim": 12, "query_pre_attn_scalar": 20, "sliding_window": 7}


def _gemma2(name: str, *, is_quick: bool = False, **config: Any) -> Variant:
    own = {"model_type": "gemma2", "tie_word_embeddings": ABSENT} | GEMMA
    return Variant(f"gemma2 {name}", "Gemma2ForCausalLM", own | config, is_quick)


def _gemma3(name: str, **config: Any) -> Variant:
    own = {"model_type": "gemma3_text", "tie_word_embeddings": ABSENT, "rope_theta": 1000.0} | GEMMA
    return Variant(f"gemma3 {name}", "Gemma3ForCausalLM", own | config)


def _apertus(name: str, *, is_quick: bool = False, **config: Any) -> Variant:
    own = {"model_type": "apertus", "hidden_act": "xielu", "rope_theta": ABSENT}
    return Variant(f"apertus {name}", "ApertusForCausalLM", own | config, is_quick)


def _exaone4(name: str, **config: Any) -> Variant:
    return Variant(f"exaone4 {name}", "Exaone4ForCausalLM", {"model_type": "exaone4"} | config)


EYES = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2}
EYES |= {"image_size": 28, "patch_size": 14}


def _mistral3(name: str, **text: Any) -> Variant:
    raw = {
        "model_type": "mistral3",
        "image_token_index": 10,
        "tie_word_embeddings": False,
        "torch_dtype": "float32",
        "text_config": {key: value for key, value in (TEXT | text).items() if value is not ABSENT},
        "vision_config": EYES | {"model_type": "pixtral", "head_dim": 8},
    }
    return Variant(f"mistral3 {name}", "Mistral3ForConditionalGeneration", raw)


def _gemma3_seeing(name: str, **text: Any) -> Variant:
    raw = {
        "model_type": "gemma3",
        "mm_tokens_per_image": 4,
        "image_token_index": 100,
        "boi_token_index": 98,
        "eoi_token_index": 99,
        "torch_dtype": "float32",
        "text_config": TEXT | GEMMA | {"model_type": "gemma3_text"} | text,
        "vision_config": EYES | {"model_type": "siglip_vision_model"},
    }
    return Variant(f"gemma3 wrapper {name}", "Gemma3ForConditionalGeneration", raw)


VARIANTS = (
    _llama("plain"),
    _llama("without theta", rope_theta=ABSENT),
    _llama("linear", rope_scaling=LINEAR),
    _llama("linear by its old name", rope_scaling={"type": "linear", "factor": 4.0}),
    _llama("dynamic", rope_scaling={"type": "dynamic", "factor": 2.0}),
    _llama("yarn", rope_scaling=YARN),
    _llama("yarn with a ramp", head_dim=16, rope_scaling=RAMP, is_quick=True),
    _llama("yarn without truncation", head_dim=16, rope_scaling=RAMP | {"truncate": False}),
    _llama("yarn with attention_factor", head_dim=16, rope_scaling=RAMP | {"attention_factor": 1.5}),
    _llama("yarn with mscale", head_dim=16, rope_scaling=RAMP | {"mscale": 2.0, "mscale_all_dim": 0.5}),
    _llama("llama3", rope_scaling=LLAMA3),
    _llama("biases", attention_bias=True, mlp_bias=True),
    _llama("tied", tie_word_embeddings=True, num_key_value_heads=4),
    _llama(
        "5.x spelling", rope_parameters=LLAMA3 | {"rope_theta": 100.0}, rope_theta=ABSENT, dtype="float32",
        torch_dtype=ABSENT,
    ),
    _mistral("with a window", sliding_window=7),
    _mistral("without the key of a window"),
    _mistral("without a window", sliding_window=None),
    _mistral("with heads of their own size", sliding_window=7, head_dim=12),
    _ministral3("", is_quick=True),
    _ministral3("with a window", sliding_window=7),
    _mistral3("around mistral", model_type="mistral", sliding_window=None, head_dim=12),
    _mistral3(
        "around ministral3", model_type="ministral3", head_dim=8, rope_theta=ABSENT,
        rope_parameters=YARN | {"rope_theta": 100.0, "llama_4_scaling_beta": 0.3},
    ),
    _qwen("qwen2", "plain", use_sliding_window=False, sliding_window=7, max_window_layers=1),
    _qwen("qwen2", "with a window", use_sliding_window=True, sliding_window=7, max_window_layers=1),
    _qwen("qwen2", "tied", tie_word_embeddings=True),
    _qwen("qwen2", "layer_types", use_sliding_window=True, sliding_window=7, layer_types=KINDS),
    _qwen("qwen3", "plain", head_dim=12),
    _qwen("qwen3", "biases", head_dim=8, attention_bias=True),
    _qwen("qwen3", "without head_dim"),
    _qwen("qwen3", "with a window", head_dim=8, use_sliding_window=True, sliding_window=7, max_window_layers=2),
    _smollm3("plain"),
    _smollm3("no_rope_layers", no_rope_layers=[0, 1, 1, 0], tie_word_embeddings=False, is_quick=True),
    _smollm3("with a window", use_sliding_window=True, sliding_window=7, no_rope_layer_interval=2),
    _smollm3("biases", attention_bias=True, mlp_bias=True, rope_scaling=YARN),
    _granite(
        "plain", embedding_multiplier=3.0, residual_multiplier=0.4, attention_multiplier=0.2, logits_scaling=0.5,
    ),
    _granite(
        "biases", embedding_multiplier=3.0, residual_multiplier=0.4, attention_multiplier=0.2, logits_scaling=2.0,
        attention_bias=True, mlp_bias=True, tie_word_embeddings=True, is_quick=True,
    ),
    _granite("without multipliers"),
    _olmo(2, "plain", rope_theta=100.0),
    _olmo(2, "biases", rope_theta=100.0, attention_bias=True),
    _olmo(3, "yarn", rope_theta=500000.0, sliding_window=7, rope_scaling=YARN | {"attention_factor": 1.4}),
    _olmo(
        3, "5.x spelling", sliding_window=7, layer_types=KINDS + KINDS[1:2], is_quick=True,
        rope_parameters={
            "full_attention": RAMP | {"rope_theta": 50.0},
            "sliding_attention": {"rope_type": "default", "rope_theta": 300.0},
        },
    ),
    _phi3("plain", partial_rotary_factor=0.5, is_quick=True),
    _phi3("whole heads", sliding_window=None),
    _phi3("longrope", original_max_position_embeddings=16, rope_scaling={"type": "longrope"} | LONG, is_quick=True),
    _phi3(
        "longrope, part of a head, a window", original_max_position_embeddings=16, partial_rotary_factor=0.5,
        sliding_window=7, rope_scaling={"type": "longrope"} | {key: value[:2] for key, value in LONG.items()},
    ),
    _phi3(
        "longrope by its oldest name", original_max_position_embeddings=16, tie_word_embeddings=True,
        rope_scaling={"type": "yarn", "attention_factor": 1.3} | LONG,
    ),
    _gemma2("with caps", attn_logit_softcapping=1.0, final_logit_softcapping=3.0, is_quick=True),
    _gemma2("with its usual caps"),
    _gemma2("without caps", attn_logit_softcapping=None, final_logit_softcapping=None, attention_bias=True),
    _gemma3("plain", num_hidden_layers=6),
    _gemma3("linear", sliding_window_pattern=2, rope_scaling=LINEAR, rope_local_base_freq=50.0),
    _gemma3("a cap of logits", layer_types=KINDS, final_logit_softcapping=3.0, attn_logit_softcapping=1.0),
    _gemma3("biases, untied", sliding_window_pattern=3, attention_bias=True, tie_word_embeddings=False),
    _gemma3_seeing("", sliding_window_pattern=2, rope_scaling=LINEAR),
    _apertus("plain"),
    _apertus("default rope", rope_parameters={"rope_type": "default", "rope_theta": 100.0}, is_quick=True),
    _apertus("llama3, biases", rope_theta=100.0, rope_scaling=LLAMA3, attention_bias=True),
    _exaone4("with a window", sliding_window=7, layer_types=KINDS, rope_scaling=LLAMA3, head_dim=12),
    _exaone4("without a window", sliding_window=None, layer_types=["full_attention"] * 3),
    _exaone4("with a pattern", sliding_window=7, sliding_window_pattern=2, tie_word_embeddings=True),
)  # fmt: skip
