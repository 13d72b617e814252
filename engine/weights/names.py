"""What the tensors of a checkpoint folder are called, and which dtypes they may have."""

import re

import torch

DTYPES = {"BF16": torch.bfloat16, "F16": torch.float16, "F32": torch.float32, "F64": torch.float64}
"""Of a checkpoint's numbers, by safetensors' name."""
WHOLE = "model.safetensors"
"""The file of a model that is not divided."""
INDEX = "model.safetensors.index.json"
"""The file that says which tensor stands in which shard."""
_NAMES = {  # ours -> Hugging Face's
    "embed": "model.embed_tokens",
    "norm": "model.norm",
    "head": "lm_head",
    "attention_norm": "input_layernorm",
    "mlp_norm": "post_attention_layernorm",
    **{f"attention.{x}": f"self_attn.{x}_proj" for x in "qkvo"},
    **{f"mlp.{x}": f"mlp.{x}_proj" for x in ("gate", "up", "down")},
}


def checkpoint_name(name: str) -> str:
    """Hugging Face's name of one of our parameters: blocks.3.mlp.up.weight is model.layers.3.mlp.up_proj.weight."""
    match = re.fullmatch(r"(?:blocks\.(\d+)\.)?(.+)\.weight", name)
    assert match is not None  # every parameter of a Llama is a weight
    layer = "" if match[1] is None else f"model.layers.{match[1]}."
    return f"{layer}{_NAMES[match[2]]}.weight"
