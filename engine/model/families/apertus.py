"""Apertus: norms of each head's queries and keys, and an MLP without a gate whose activation has trained numbers."""

from dataclasses import replace

from engine.model.families import ropes
from engine.model.families.config_file import ConfigFile
from engine.model.families.family import Family, layers, sizes
from engine.model.model_config import ModelConfig
from engine.model.names import LLAMA_NAMES

NAMES = replace(
    LLAMA_NAMES.but(
        {
            "attention_norm": "attention_layernorm",
            "mlp_norm": "feedforward_layernorm",
            **{f"mlp.act.{x}": f"mlp.act_fn.{x}" for x in ("alpha_p", "alpha_n", "beta", "eps")},
        }
    ),
    carried=(r"model\.layers\.\d+\.mlp\.act_fn\.(beta|eps)",),  # the activation's constants
)
WITHOUT = {  # of a file that has no rope_parameters
    "rope_type": "llama3",
    "rope_theta": 12e6,
    "factor": 8.0,
    "original_max_position_embeddings": 8192,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
}


def read(file: ConfigFile) -> ModelConfig:
    """From its config.json."""
    file.only("hidden_act", "xielu", "xielu")
    found = sizes(file, eps=1e-5, kv_as_heads=True)
    bias = file.flag("attention_bias")
    if not file.mapping("rope_parameters") and not file.mapping("rope_scaling"):
        if file.get("rope_theta") not in (None, WITHOUT["rope_theta"]):
            raise file.refused(
                f"rope_theta = {file.get('rope_theta')!r} without rope_parameters: transformers takes "
                f"{WITHOUT['rope_theta']:.0f} and llama3 scaling then; write rope_parameters"
            )
        file = ConfigFile(file.raw | {"rope_parameters": WITHOUT}, file.location)
    n = found["n_layers"]
    rope = ropes.of_all_layers(file, found["head_size"], theta=12e6)
    return ModelConfig(
        **found,
        qkv_bias=bias,
        o_bias=bias,
        layers=layers([rope] * n, [None] * n),
        qk_norm="each_head",
        activation="xielu",
        has_gate=False,
        names=NAMES,
    )


APERTUS = Family("apertus", "ApertusForCausalLM", read, "Apertus", "q and k normed; xIELU without a gate")
