"""What a quantised checkpoint is called, by what its config.json says or by the names of its tensors.

Training moves every weight by less than the step of any such format, so that none of them is opened here; but who
gives one is told which it is, and not that a tensor is unknown.
"""

import re
from collections.abc import Mapping
from typing import Any

REMEDY = "give the checkpoint that it was made from, in bfloat16, float16 or float32"
_METHODS = {  # transformers' and vLLM's "quant_method" -> what people call it
    "bitsandbytes": "bitsandbytes",
    "gptq": "GPTQ",
    "awq": "AWQ",
    "compressed-tensors": "compressed-tensors",
    "modelopt": "modelopt",
    "modelopt_fp4": "modelopt",
    "fp8": "fine-grained FP8",
    "fbgemm_fp8": "FBGEMM's FP8",
    "hqq": "HQQ",
    "torchao": "torchao",
    "auto-round": "AutoRound",
    "aqlm": "AQLM",
    "quanto": "Quanto",
    "eetq": "EETQ",
    "bitnet": "BitNet",
    "mxfp4": "MXFP4",
    "gguf": "GGUF",
}
_KEYS = ("quantization_config", "compression_config", "quantization")  # transformers, compressed-tensors of old, MLX
_TENSORS = (  # what only such a checkpoint has, the most telling first: pattern of a name -> method
    (r"quant_state\.bitsandbytes__|\.nested_absmax$|\.absmax$|\.quant_map$", "bitsandbytes, 4 bits"),
    (r"\.SCB$|\.weight_format$", "bitsandbytes, 8 bits"),
    (r"\.g_idx$", "GPTQ"),
    (r"\.qweight$", "AWQ"),
    (r"\.W_q$", "HQQ"),
    (r"_weight_qdata$", "torchao"),
    (r"\.codebooks$", "AQLM"),
    (r"\.weight\._data$", "Quanto"),
    (r"\.weight_packed$", "compressed-tensors"),
    (r"\.weight_scale_2$", "modelopt, NVFP4"),
    (r"\.weight_scale_inv$", "fine-grained FP8"),
    (r"\.weight_scale$", "compressed-tensors or modelopt"),
    (r"\.weight_scales$", "EETQ"),
    (r"\.scales$", "MLX"),
    (r"\.[kv]_scale$", "modelopt or compressed-tensors, for the cache of keys and values"),
)


def quantised_by(raw: Mapping[str, Any]) -> tuple[str, str] | None:
    """(the key that says so, the method in words) of a config.json; None where the checkpoint is not quantised."""
    key = next((key for key in _KEYS if raw.get(key)), None)
    if key is None:
        return None
    asked = raw[key]
    if not isinstance(asked, dict):
        return key, "a method that it does not name"
    return key, "MLX" + _digits(asked) if key == "quantization" and "quant_method" not in asked else _in_words(asked)


def quantised_by_modelopt(written: Mapping[str, Any]) -> str:
    """What NVIDIA's hf_quant_config.json says, in words."""
    found = written.get("quantization")
    found = found if isinstance(found, dict) else written
    weights, cache = found.get("quant_algo"), found.get("kv_cache_quant_algo")
    if weights is None and cache is not None:
        return f"modelopt, {cache} for the cache of keys and values"
    return "modelopt" + (f", {weights}" if weights is not None else "")


def quantised_tensor(tensors: Mapping[str, str]) -> tuple[str, str] | None:
    """(a tensor that gives it away, the method in words); None where there is none. tensors: dtypes by name."""
    for pattern, method in _TENSORS:
        found = next((name for name in tensors if re.search(pattern, name)), None)
        if found is not None:
            return found, method
    found = next((name for name, dtype in tensors.items() if dtype.startswith("F8_")), None)
    return None if found is None else (found, "a form of FP8")


def _in_words(asked: Mapping[str, Any]) -> str:
    method = asked.get("quant_method")
    if method is None:
        if any(str(key).startswith(("load_in_", "bnb_")) for key in asked):
            method = "bitsandbytes"
        elif "config_groups" in asked:
            method = "compressed-tensors"
        elif "quant_algo" in asked:
            method = "modelopt"
        elif "w_bit" in asked:
            method = "awq"
        elif "desc_act" in asked:
            method = "gptq"
    if method is None:
        return "a method that it does not name" + _digits(asked)
    name = _METHODS.get(str(method).lower(), str(method))
    return name + (_digits(asked) or next((f", {asked[k]}" for k in ("quant_algo", "format") if asked.get(k)), ""))


def _digits(asked: Mapping[str, Any]) -> str:
    n = next((asked[key] for key in ("bits", "w_bit") if isinstance(asked.get(key), int)), None)
    n = 4 if asked.get("load_in_4bit") or asked.get("_load_in_4bit") else n
    n = 8 if asked.get("load_in_8bit") or asked.get("_load_in_8bit") else n
    return f", {n} bits" if n is not None else ""
