"""Ministral 3: Llama's block with YaRN, and queries that grow with their position."""

from dataclasses import replace

from engine.model.families import mistral, ropes
from engine.model.families.config_file import ConfigFile
from engine.model.families.family import Family, layers, sizes
from engine.model.model_config import ModelConfig
from engine.model.rope import Growth

WITHOUT = {  # of a file that has no rope_parameters
    "rope_type": "yarn",
    "rope_theta": 1e6,
    "factor": 16.0,
    "original_max_position_embeddings": 16384,
    "beta_fast": 32.0,
    "beta_slow": 1.0,
    "mscale": 1.0,
    "mscale_all_dim": 1.0,
    "llama_4_scaling_beta": 0.1,
}


def read(file: ConfigFile) -> ModelConfig:
    """From its config.json."""
    file.only("hidden_act", "silu", "silu")
    found = sizes(file, eps=1e-5, head_size=128)
    given = file.mapping("rope_parameters")
    if file.mapping("rope_scaling"):
        raise file.refused("rope_scaling: a ministral3 has rope_parameters; put it there")
    if given and "rope_theta" not in given and file.get("rope_theta") is None:
        raise file.refused("rope_parameters has no rope_theta; write it")
    with_rope = ConfigFile(file.raw | {"rope_parameters": given or WITHOUT}, file.location)
    rope = ropes.of_all_layers(with_rope, found["head_size"], kinds=("yarn", "default"))
    inside = ConfigFile(given or WITHOUT, file.location)
    growth = Growth(
        beta=inside.positive("llama_4_scaling_beta"), original=inside.count("original_max_position_embeddings")
    )
    n = found["n_layers"]
    return ModelConfig(**found, layers=layers([replace(rope, growth=growth)] * n, mistral.windows(file, None)))


MINISTRAL3 = Family(
    "ministral3", "Ministral3ForCausalLM", read, "Ministral 3", "YaRN; queries that grow with their position"
)
