"""Tiny checkpoints of every family, made and read by transformers: random matrices, biases and norms."""

from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor

VOCABULARY = 101
SIZES: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 40,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "pad_token_id": None,
}
GEMMA = {"head_dim": 8, "query_pre_attn_scalar": 11, "sliding_window": 5}
YARN = {"rope_type": "yarn", "rope_theta": 1e4, "factor": 4.0, "original_max_position_embeddings": 16}
LONG = {"rope_type": "longrope", "rope_theta": 1e4, "short_factor": [1.1, 1.2, 1.3, 1.4], "long_factor": [2, 3, 4, 5]}
KINDS = ["sliding_attention", "sliding_attention", "sliding_attention", "full_attention"]
OWN: dict[str, dict[str, Any]] = {
    "Llama": {"attention_bias": True, "mlp_bias": True},
    "Qwen2": {"use_sliding_window": True, "sliding_window": 5, "max_window_layers": 2},
    "Qwen3": {"head_dim": 16, "tie_word_embeddings": True},
    "SmolLM3": {},
    "Mistral": {"sliding_window": 5, "head_dim": 16},
    "Ministral3": {
        "head_dim": 8,
        "rope_parameters": YARN | {"mscale": 1.0, "mscale_all_dim": 1.0, "llama_4_scaling_beta": 0.1},
    },
    "Granite": {
        "attention_multiplier": 0.2,
        "embedding_multiplier": 3.0,
        "residual_multiplier": 0.3,
        "logits_scaling": 2.0,
    },
    "Olmo2": {},
    "Olmo3": {"sliding_window": 5},
    "Phi3": {"rope_parameters": LONG, "original_max_position_embeddings": 12, "sliding_window": 7},
    "Gemma2": GEMMA,
    "Gemma3": GEMMA,
    "Apertus": {},
    "Exaone4": {"sliding_window": 5, "layer_types": KINDS},
}
SEEING = {"Gemma3 that sees": "Gemma3", "Mistral3 that sees": "Mistral"}
FAMILIES = [*OWN, *SEEING]
VISION = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2}


def model_of(family: str) -> Any:
    """A random model, in float32 and ready to evaluate."""
    if family in SEEING:
        made = _seeing(family)
    else:
        kind = "Gemma3Text" if family == "Gemma3" else family
        config = getattr(transformers, f"{kind}Config")(**SIZES | OWN[family])
        made = getattr(transformers, f"{family}ForCausalLM")(config)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for p in made.parameters():
            start = 1.0 if p.ndim == 1 and bool((p == 1).all()) else 0.0
            p.copy_(start + 0.2 * torch.randn(p.shape, generator=generator))
    return made.eval()


def _seeing(family: str) -> Any:
    sees = VISION | {"image_size": 8, "patch_size": 4}
    inside = SIZES | OWN[SEEING[family]]
    if family.startswith("Gemma3"):
        text, vision = transformers.Gemma3TextConfig(**inside), transformers.SiglipVisionConfig(**sees)
        sizes = {"mm_tokens_per_image": 4, "image_token_index": 98, "boi_token_index": 99, "eoi_token_index": 100}
        config = transformers.Gemma3Config(text_config=text.to_dict(), vision_config=vision.to_dict(), **sizes)
        return transformers.Gemma3ForConditionalGeneration(config)
    text, vision = transformers.MistralConfig(**inside), transformers.PixtralVisionConfig(**sees)
    config = transformers.Mistral3Config(
        text_config=text.to_dict(), vision_config=vision.to_dict(), image_token_index=98, tie_word_embeddings=False
    )
    return transformers.Mistral3ForConditionalGeneration(config)


def write(family: str, folder: Path, **options: Any) -> Path:
    """A checkpoint folder of a family. options: of save_pretrained."""
    model_of(family).save_pretrained(folder, **options)
    return folder


def read(folder: Path, family: str) -> Any:
    """A folder's model in float64; what is missing or unexpected fails."""
    head = "ForConditionalGeneration" if family in SEEING else "ForCausalLM"
    found, said = getattr(transformers, family.split()[0] + head).from_pretrained(
        folder, dtype=torch.float64, attn_implementation="eager", output_loading_info=True
    )
    assert not any(said.values()), said
    return found.eval()


def logps(peer: Any, prompt: Tensor, response: Tensor) -> float:
    """The response's log-prob by a model of transformers."""
    ids = torch.cat([prompt, response]).long()
    with torch.no_grad():
        of_all = torch.log_softmax(peer(input_ids=ids[None]).logits[0].double(), dim=-1)
    at = torch.arange(len(prompt) - 1, len(ids) - 1)
    return float(of_all[at, ids[at + 1]].sum())
