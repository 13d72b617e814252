"""Models that do not run here, and why, in words."""

import re
from collections.abc import Mapping
from typing import Any

_KINDS = (  # pattern of a model type or an architecture, in lower case -> what it is; the first that fits
    (r"qwen3_?next|kimi_?linear|mamba|jamba|bamba|zamba|falcon_?h1|recurrent|rwkv|lfm2|minimax(?!_?m2)|hybrid|nemotron_?h",
     "has layers of linear attention or of another recurrence"),
    (r"moe|mixtral|dbrx|deepseek|gpt_?oss|llama4|glm4_?5|arctic|jetmoe|ernie4_?5_?m", "is a mixture of experts"),
    (r"llava|mllama|vl_|vl$|vlfor|vision|idefics|paligemma|pixtral|gemma3n|gemma4|smolvlm|internvl|omni|"
     r"conditionalgeneration", "is a vision, audio or encoder model whose language model cannot be used alone here"),
    (r"bert|encoder|\bm?t5", "is not a decoder that predicts the next token"),
)  # fmt: skip
_EXPERTS = ("num_local_experts", "num_experts", "n_routed_experts", "moe_num_experts")


def reason(raw: Mapping[str, Any], names: list[str]) -> str | None:
    """Why a model of these names cannot run here; None where nothing is known of it."""
    said = " ".join([*names, str(raw.get("model_type") or "")]).lower()
    for pattern, what in _KINDS:
        if re.search(pattern, said):
            return what
    return "is a mixture of experts" if any(raw.get(key) for key in _EXPERTS) else None
