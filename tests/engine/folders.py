"""Tiny checkpoint folders of families that have more in them than what trains, made tensor by tensor."""

import json
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

VOCABULARY = 101
SIZES = {
    "vocab_size": VOCABULARY,
    "hidden_size": 24,
    "intermediate_size": 13,
    "num_hidden_layers": 2,
    "num_attention_heads": 3,
    "num_key_value_heads": 1,
    "max_position_embeddings": 64,
}
PHI3 = {"architectures": ["Phi3ForCausalLM"], "model_type": "phi3", "sliding_window": 5, **SIZES}
APERTUS = {"architectures": ["ApertusForCausalLM"], "model_type": "apertus", "hidden_act": "xielu", **SIZES}
GEMMA3 = {
    "architectures": ["Gemma3ForConditionalGeneration"],
    "model_type": "gemma3",
    "torch_dtype": "float32",
    "text_config": {"model_type": "gemma3_text", "head_dim": 8, "sliding_window": 5, "torch_dtype": "float32", **SIZES},
    "vision_config": {"hidden_size": 8, "torch_dtype": "bfloat16"},
}
MISTRAL3 = {
    "architectures": ["Mistral3ForConditionalGeneration"],
    "model_type": "mistral3",
    "text_config": {"model_type": "mistral", "tie_word_embeddings": False, **SIZES},
    "vision_config": {"hidden_size": 8},
}
HUB, INSIDE = ("language_model.model.", "language_model."), ("model.language_model.", "")
SEES = {  # of all dtypes that what sees may have
    "vision_tower.patch.weight": torch.bfloat16,
    "vision_tower.patch.bias": torch.float32,
    "vision_tower.position_ids": torch.int64,
    "vision_tower.mask": torch.bool,
    "multi_modal_projector.mm_input_projection_weight": torch.float16,
}


def _normal(*shape: int, generator: torch.Generator, mean: float = 0.0, dtype=torch.float32) -> Tensor:
    return (0.2 * torch.randn(*shape, generator=generator) + mean).to(dtype)


def tensors_of(raw: dict[str, Any], *, seed: int = 0, dtype=torch.float32) -> dict[str, Tensor]:
    """Random ones for one of the configurations above, as the hub's files name them; the head is the embedding."""
    generator = torch.Generator().manual_seed(seed)
    d, i, e = 24, 13, 8
    matrices = {
        **{f"self_attn.{x}_proj.weight": (n * e, d) for x, n in (("q", 3), ("k", 1), ("v", 1))},
        "self_attn.o_proj.weight": (d, 3 * e),
        **{f"mlp.{x}_proj.weight": (i, d) for x in ("gate", "up")},
        "mlp.down_proj.weight": (d, i),
    }
    norms = {f"{x}_layernorm.weight": d for x in ("input", "post_attention")}
    if raw["model_type"] == "gemma3":
        norms |= {f"{x}_feedforward_layernorm.weight": d for x in ("pre", "post")}
    if raw["model_type"] in ("gemma3", "apertus"):
        norms |= {f"self_attn.{x}_norm.weight": e for x in "qk"}
    if raw["model_type"] == "apertus":
        norms["attention_layernorm.weight"] = norms.pop("input_layernorm.weight")
        norms["feedforward_layernorm.weight"] = norms.pop("post_attention_layernorm.weight")
        norms |= {f"mlp.act_fn.alpha_{x}": 1 for x in "pn"}
        del matrices["mlp.gate_proj.weight"]
    found = {"embed_tokens.weight": _normal(VOCABULARY, d, generator=generator, dtype=dtype)}
    found["norm.weight"] = _normal(d, generator=generator, mean=1, dtype=dtype)
    for k in range(2):
        layer = {name: _normal(*shape, generator=generator, dtype=dtype) for name, shape in matrices.items()}
        layer |= {name: _normal(n, generator=generator, mean=1, dtype=dtype) for name, n in norms.items()}
        if raw["model_type"] == "apertus":
            layer |= {"mlp.act_fn.beta": torch.tensor(0.5, dtype=torch.bfloat16) + k}
            layer |= {"mlp.act_fn.eps": torch.tensor(-1e-6, dtype=torch.bfloat16)}
        if raw["model_type"] == "phi3":
            layer["self_attn.qkv_proj.weight"] = torch.cat([layer.pop(f"self_attn.{x}_proj.weight") for x in "qkv"])
            layer["mlp.gate_up_proj.weight"] = torch.cat([layer.pop(f"mlp.{x}_proj.weight") for x in ("gate", "up")])
        found |= {f"layers.{k}.{name}": tensor for name, tensor in layer.items()}
    return found


def write(
    folder: Path, raw: dict[str, Any], *, layout=HUB, sees: bool = True, head: Tensor | None = None, dtype=torch.float32
) -> Path:
    """A folder of one of the configurations above. layout: of a wrapper's names. sees: whether what sees is there.
    head: of its own, or a copy of the embedding's.
    """
    wraps = "text_config" in raw
    body, before_head = layout if wraps else ("model.", "")
    found = {body + name: tensor for name, tensor in tensors_of(raw, dtype=dtype).items()}
    if head is not None:
        found[f"{before_head}lm_head.weight"] = head
    if wraps and sees:
        generator, start = torch.Generator().manual_seed(5), "model." if layout == INSIDE else ""
        for name, kind in SEES.items():
            found[start + name] = torch.randint(0, 2 if kind == torch.bool else 99, (3, 5), generator=generator).to(
                kind
            )
    folder.mkdir(parents=True)
    save_file({name: tensor.contiguous() for name, tensor in found.items()}, folder / "model.safetensors")
    tied = {} if wraps else {"tie_word_embeddings": True}
    (folder / "config.json").write_text(json.dumps(raw | tied))
    return folder


def stored(folder: Path) -> dict[str, Tensor]:
    """Every tensor of a folder."""
    with safe_open(folder / "model.safetensors", framework="pt") as file:
        return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (no dictionary)


def n_bytes(folder: Path) -> int:
    """Of all its tensors."""
    return sum(tensor.nbytes for tensor in stored(folder).values())
