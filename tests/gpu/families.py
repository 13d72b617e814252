"""A small model of every family, and its pass with any attention: what the GPU's checks compare.

Small in depth and width, not in what kernels see: heads of 64, 128 and 256 numbers, grouped; sequences beyond every
window and every original context; weights, norms and biases all random.
"""

# R predicting rows

from typing import Any, NamedTuple

import torch
from torch import Tensor

from data.forest import Forest, PackingOptions, pack
from engine.model import Attend, FusedForward, Transformer, Weighing, read_config, rotations
from tests import tiny

VOCABULARY, HIDDEN, WINDOW, ORIGINAL = 1000, 256, 96, 128
LENGTHS = [(150, 120, 131), (30, 260, 1), (1, 1, 2), (210, 77, 300), (64, 33, 40)]
"""Prompts and responses: of the longest sequences three are beyond twice the window."""
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": ORIGINAL, "rope_theta": 1e4}
SLIDES = ["sliding_attention", "full_attention"]


def _raw(model_type: str, architecture: str, head_size: int = 64, **changes: Any) -> dict[str, Any]:
    plain = {
        "model_type": model_type, "architectures": [architecture], "vocab_size": VOCABULARY, "hidden_size": HIDDEN,
        "intermediate_size": 512, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
        "head_dim": head_size, "max_position_embeddings": 4096, "rms_norm_eps": 1e-6, "tie_word_embeddings": False,
    }  # fmt: skip
    return {key: value for key, value in (plain | changes).items() if value is not None}


def _seeing(architecture: str, model_type: str, text: dict[str, Any]) -> dict[str, Any]:
    return {"model_type": model_type, "architectures": [architecture], "text_config": text}


GEMMA2 = _raw(
    "gemma2", "Gemma2ForCausalLM", 256, sliding_window=WINDOW, layer_types=SLIDES, query_pre_attn_scalar=128,
    attn_logit_softcapping=20.0, final_logit_softcapping=10.0, tie_word_embeddings=True,
)  # fmt: skip
GEMMA3 = _raw(
    "gemma3_text", "Gemma3ForCausalLM", 256, sliding_window=WINDOW, layer_types=SLIDES, query_pre_attn_scalar=168,
    tie_word_embeddings=True, rope_parameters={
        "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1e6},
        "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
    },
)  # fmt: skip
MINISTRAL3 = _raw(
    "ministral3", "Ministral3ForCausalLM", 128, rope_parameters=YARN | {"mscale": 1.0, "llama_4_scaling_beta": 0.1}
)
RAW: dict[str, dict[str, Any]] = {
    "llama": _raw("llama", "LlamaForCausalLM", 128, rope_parameters={
        "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
        "original_max_position_embeddings": ORIGINAL, "rope_theta": 5e5,
    }),
    "llama, yarn": _raw("llama", "LlamaForCausalLM", rope_parameters=YARN),
    "mistral": _raw("mistral", "MistralForCausalLM", 128, sliding_window=WINDOW),
    "ministral3": MINISTRAL3,
    "mistral3": _seeing("Mistral3ForConditionalGeneration", "mistral3", MINISTRAL3),
    "qwen2": _raw("qwen2", "Qwen2ForCausalLM", use_sliding_window=True, max_window_layers=1, sliding_window=WINDOW),
    "qwen3": _raw("qwen3", "Qwen3ForCausalLM", 128),
    "smollm3": _raw("smollm3", "SmolLM3ForCausalLM", no_rope_layers=[1, 0], tie_word_embeddings=True),
    "granite": _raw(
        "granite", "GraniteForCausalLM", embedding_multiplier=12.0, attention_multiplier=0.05, residual_multiplier=0.22,
        logits_scaling=4.0, tie_word_embeddings=True,
    ),
    "olmo2": _raw("olmo2", "Olmo2ForCausalLM", 128),
    "olmo3": _raw("olmo3", "Olmo3ForCausalLM", 128, sliding_window=WINDOW, layer_types=SLIDES, rope_parameters={
        "full_attention": YARN, "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
    }),
    "phi3": _raw("phi3", "Phi3ForCausalLM", sliding_window=WINDOW, original_max_position_embeddings=ORIGINAL,
        rope_scaling={
            "type": "longrope", "short_factor": [1.0 + i / 16 for i in range(16)],
            "long_factor": [1.5 + i for i in range(16)], "partial_rotary_factor": 0.5,
        }),
    "gemma2": GEMMA2,
    "gemma3_text": GEMMA3,
    "gemma3": _seeing("Gemma3ForConditionalGeneration", "gemma3", GEMMA3),
    "apertus": _raw("apertus", "ApertusForCausalLM", 128, hidden_act="xielu"),
    "exaone4": _raw("exaone4", "Exaone4ForCausalLM", 128, sliding_window=WINDOW, layer_types=SLIDES),
    "exaone4, no window": _raw("exaone4", "Exaone4ForCausalLM", 128) | {"sliding_window": None},
}  # fmt: skip
"""config.json of each, by family and variant."""


def random_model(name: str, *, seed: int = 0, std: float = 0.2) -> Transformer:
    """The family's model in float32, of numbers that bfloat16 has: matrices, biases and what norms multiply with all
    random. A matrix has the deviation that makes of its input what `std` does at 32 numbers (tests/tiny.py): at 0.2 and
    256 numbers the softmax is nearly an argmax, and gradients in bfloat16 are a third off with any kernel.
    """
    model = Transformer(read_config(RAW[name], f"{name}.json"))
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter_name, p in model.named_parameters():
            around = p.clone() if "norm" in parameter_name else torch.zeros_like(p)
            size = std * (32 / p.shape[1]) ** 0.5 if p.ndim == 2 and parameter_name != "embed.weight" else std
            p.copy_((around + size * torch.randn(p.shape, generator=generator)).bfloat16())
    return model


def forest_of(model: Transformer, lengths: list[tuple[int, ...]] = LENGTHS) -> Forest:
    """Random examples, packed as the model needs it."""
    examples = tiny.random_examples(lengths, vocab_size=VOCABULARY)
    return pack(examples, PackingOptions(divides_at=model.config.originals))


class Pass(NamedTuple):
    """What a forward and a backward pass give."""

    logps: Tensor
    """[R] nats."""
    gradients: dict[str, Tensor]


def slopes_of(forest: Forest) -> Tensor:
    """[R] what the backward pass begins with: an objective's slopes are of either sign."""
    generator = torch.Generator().manual_seed(1)
    return torch.randn(forest.rows.numel(), generator=generator, dtype=torch.float64).to(forest.tokens.device)


def passed(model: Transformer, forest: Forest, attend: Attend) -> Pass:
    """Block by block, with an attention of one's choice."""
    model.zero_grad()
    turned = rotations(model.config.ropes, forest.positions, forest.spans)
    x = model.embedded(forest.tokens)
    for block in model.blocks:
        x = block(x, turned, attend)
    logps = model.head(model.norm(x)[forest.rows], forest.targets, model.tied).double()
    (logps * slopes_of(forest)).sum().backward()
    return Pass(logps.detach(), gradients_of(model))


def fused(model: Transformer, forest: Forest) -> Pass:
    """As a training step computes it on the forest's device."""
    model.zero_grad()
    logps = FusedForward(model)(forest, with_reference=False, token_values=("logps",)).tokens["logps"]
    (logps * slopes_of(forest)).sum().backward()
    return Pass(logps.detach(), gradients_of(model))


def gradients_of(model: Transformer) -> dict[str, Tensor]:
    """Of all parameters, in float64."""
    return {name: p.grad.double().flatten() for name, p in model.named_parameters() if p.grad is not None}


def error(found: Tensor, exact: Tensor) -> float:
    """Relative, of the whole."""
    return ((found.double() - exact.double()).norm() / exact.double().norm()).item()


class Errors(NamedTuple):
    """Of one pass against another, relative."""

    logps: float
    gradients: float
    """Of all of them together."""
    worst: float
    """Of the parameter that is furthest off."""


def compared(found: Pass, exact: Pass) -> Errors:
    """How far a pass is from the exact one. Raises KeyError where a parameter has no gradient in both."""
    each = [error(found.gradients[name], gradient) for name, gradient in exact.gradients.items()]
    whole = (torch.cat([p.gradients[name] for name in exact.gradients]) for p in (found, exact))
    return Errors(error(found.logps, exact.logps), error(*whole), max(each))


# --- the border of a window ----------------------------------------------------------------------------------------


class Border(NamedTuple):
    """What queries make of one key in a prompt that outweighs all others."""

    found: Tensor
    """[T] what each query gets of its value: 1 where the key is seen, 0 where it is not."""
    expected: Tensor
    """[T] the same by the definition: seen at distances 0 to W - 1, by the prompt and by each response."""
    gradient: Tensor
    """[] of the value: of all queries that see it."""


def border_forest(device: str) -> Forest:
    """A short example, and one of two responses that reach back into their prompt."""
    return pack(tiny.random_examples([(7, 3, 3), (100, 130, 140)])).to(device)


def border(forest: Forest, attend: Attend, how: Weighing, head_size: int, dtype: torch.dtype) -> Border:
    """Four heads on two. how.scale has to be 1 / head_size: the key's score is 40 then, the others' 0."""
    at = forest.bounds[1] + 60
    q, k, v = (torch.zeros(forest.n_tokens, n, head_size, dtype=dtype, device=forest.tokens.device) for n in (4, 2, 2))
    q += 1
    k[at] = 40
    v[at] = 1
    v.requires_grad_()
    made = attend(q, k, v, how)
    made.backward(torch.ones_like(made))
    assert v.grad is not None
    distance = forest.positions - forest.positions[at]
    is_seen = (forest.example == 1) & (distance >= 0) & (distance < (how.window or forest.n_tokens))
    assert bool((made == made[:, :1, :1]).all())  # every head and number alike
    return Border(made[:, 0, 0].detach(), is_seen.to(dtype), v.grad[at].float().mean())
