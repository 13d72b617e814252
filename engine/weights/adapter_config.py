"""adapter_config.json, PEFT's description of an adapter: read with what it leaves out in silence refused, and written
with all its keys.

PEFT takes 8 for a rank or an alpha that is missing, and q_proj and v_proj for missing targets; keys that it does not
know it ignores. What this program does not compute is refused by name.
"""

from collections.abc import Mapping
from pathlib import Path
from types import NoneType
from typing import Any

from data.text import read_json
from engine.model import Adapter, adapters
from system import InputError, cli

CONFIG, TENSORS, OWN = "adapter_config.json", "adapter_model.safetensors", "engine.json"
WHY = {  # keys that have to say nothing: what they would do
    "use_dora": "DoRA is not supported",
    "use_qalora": "QALoRA is not supported",
    "use_bdlora": "block-diagonal LoRA is not supported",
    "lora_bias": "adapters have no bias here",
    "rank_pattern": "one rank is for all layers here, as in vLLM",
    "alpha_pattern": "one alpha is for all layers here, as in vLLM",
    "layers_to_transform": "name the layers in target_modules instead",
    "layers_pattern": "name the layers in target_modules instead",
    "layer_replication": "layers stay as they are here",
    "target_parameters": "adapters are of linear layers here",
    "trainable_token_indices": "single rows of the embedding do not train here",
    "alora_invocation_tokens": "adapters are always on here",
    "fan_in_fan_out": "matrices are [out, in] here",
    "arrow_config": "adapters are not mixed here",
    "kasa_config": "KaSA is not supported",
    "velora_config": "VeLoRA is not supported",
    "monteclora_config": "MonteCLoRA is not supported",
    "megatron_config": "layers are not Megatron's here",
}
MOST_ALPHA = 1e30
"""More than any adapter has, and less than what float32 cannot hold."""
MOVES_BASE = ("pissa", "olora", "loftq", "corda", "lora_ga")
"""What init_lora_weights may say of an adapter whose base has other weights than its checkpoint."""
USED = {"peft_type", "task_type", "r", "lora_alpha", "target_modules", "modules_to_save", "use_rslora", "bias",
        "base_model_name_or_path", "init_lora_weights", "lora_dropout", "exclude_modules"}  # fmt: skip
OF_NO_WEIGHT = {"auto_mapping", "peft_version", "revision", "inference_mode", "megatron_core",
                "loftq_config", "eva_config", "corda_config", "lora_ga_config", "qalora_group_size",
                "ensure_weight_tying"}  # fmt: skip
"""Keys that change nothing of a finished adapter."""


def read_config(folder: Path) -> dict[str, Any]:
    """What adapter_config.json says. Raises InputError where that is no adapter that can be computed here."""
    path = folder / CONFIG
    if not path.is_file():
        if (folder / "config.json").is_file():
            raise InputError(f"{folder}: a model, not an adapter ({CONFIG} is not there); name it with --model")
        raise InputError(f"{folder}: no {CONFIG}; give the folder of an adapter in PEFT's format")
    raw = read_json(path)
    if (kind := raw.get("peft_type")) != "LORA":
        raise InputError(f"{path}: peft_type is {kind!r}; only LORA is supported")
    if raw.get("task_type") not in (None, "CAUSAL_LM"):
        raise InputError(f"{path}: task_type is {raw['task_type']!r}; it has to be CAUSAL_LM")
    for key, why in WHY.items():
        if (said := raw.get(key)) is not None and said is not False and said not in ({}, []):
            raise InputError(f"{path}: {key} is {said!r}, and {why}; use an adapter without it")
    if raw.get("bias") not in (None, "none"):
        raise InputError(
            f"{path}: bias is {raw['bias']!r}, and trained biases are not supported; use an adapter without it"
        )
    if not isinstance(raw.get("use_rslora", False), (bool, NoneType)):
        raise InputError(f"{path}: use_rslora is {raw['use_rslora']!r}; it has to be true or false")
    init = raw.get("init_lora_weights")
    if isinstance(init, str) and init.lower().startswith(MOVES_BASE):
        raise InputError(
            f"{path}: init_lora_weights is {init!r}: the adapter is of a base that was changed with it; convert it "
            "with PEFT's save_pretrained(path_initial_model_for_weight_conversion=...)"
        )
    _check_numbers(path, raw)
    if raw.get("lora_dropout"):
        cli.notify_once(f"{path}: lora_dropout {raw['lora_dropout']} is not applied here")
    if unknown := sorted(raw.keys() - USED - OF_NO_WEIGHT - WHY.keys()):
        cli.notify_once(f"{path}: ignored, since these settings are not known: {', '.join(unknown)}")
    return raw


def _check_numbers(path: Path, raw: Mapping[str, Any]) -> None:
    rank, alpha = raw.get("r"), raw.get("lora_alpha")
    if isinstance(rank, bool) or not isinstance(rank, int) or rank < 1:
        said = "is missing" if rank is None else f"is {rank!r}"
        raise InputError(f"{path}: r {said}; it has to be the rank, a whole number above 0 (PEFT would take 8)")
    if isinstance(alpha, bool) or not isinstance(alpha, (int, float)) or not 0 < alpha < MOST_ALPHA:
        said = "is missing" if alpha is None else f"is {alpha!r}"
        raise InputError(f"{path}: lora_alpha {said}; it has to be a number above 0 (PEFT would take 8)")
    targets, whole = raw.get("target_modules"), raw.get("modules_to_save")
    if not targets or not (isinstance(targets, str) or _is_names(targets)):
        said = "is missing" if targets is None else f"is {targets!r}"
        raise InputError(
            f"{path}: target_modules {said}; it has to name the layers that have an adapter (PEFT would take "
            "q_proj and v_proj)"
        )
    if whole is not None and not _is_names(whole):
        raise InputError(f"{path}: modules_to_save is {whole!r}; it has to be null or a list of names")
    if unknown := [name for name in whole or () if name not in adapters.WHOLE]:
        raise InputError(
            f"{path}: modules_to_save names {unknown[0]}; {' and '.join(adapters.WHOLE)} are taken here, and no other"
        )

    excluded = raw.get("exclude_modules")
    if excluded is not None and not isinstance(excluded, str) and not _is_names(excluded):
        raise InputError(
            f"{path}: exclude_modules is {excluded!r}; it has to be null, an expression or a list of names"
        )


def _is_names(value: object) -> bool:
    return isinstance(value, list) and all(isinstance(name, str) and name for name in value)


def targets_of(raw: Mapping[str, Any]) -> tuple[str, ...]:
    """The names or the expression of target_modules."""
    asked = raw["target_modules"]
    return (asked.lower() if asked.lower() == adapters.ALL else asked,) if isinstance(asked, str) else tuple(asked)


def written(adapter: Adapter, targets: list[str], base: str) -> dict[str, Any]:
    """adapter_config.json with all keys of PEFT 0.21.2. targets: sorted. base: the hub id, perhaps with @revision, or
    an absolute path.
    """
    alpha = int(adapter.alpha) if adapter.alpha == int(adapter.alpha) else adapter.alpha
    base, _, revision = (base, "", "") if Path(base).is_absolute() else base.partition("@")
    return {
        "alora_invocation_tokens": None,
        "alpha_pattern": {},
        "arrow_config": None,
        "auto_mapping": None,
        "base_model_name_or_path": base,
        "bias": "none",
        "corda_config": None,
        "ensure_weight_tying": False,
        "eva_config": None,
        "exclude_modules": None,
        "fan_in_fan_out": False,
        "inference_mode": True,
        "init_lora_weights": True,
        "kasa_config": None,
        "layer_replication": None,
        "layers_pattern": None,
        "layers_to_transform": None,
        "loftq_config": {},
        "lora_alpha": alpha,
        "lora_bias": False,
        "lora_dropout": 0.0,
        "lora_ga_config": None,
        "megatron_config": None,
        "megatron_core": "megatron.core",
        "modules_to_save": sorted(adapter.whole) or None,
        "monteclora_config": None,
        "peft_type": "LORA",
        "peft_version": "0.21.2",
        "qalora_group_size": 16,
        "r": adapter.rank,
        "rank_pattern": {},
        "revision": revision or None,
        "target_modules": targets,
        "target_parameters": None,
        "task_type": "CAUSAL_LM",
        "trainable_token_indices": None,
        "use_bdlora": None,
        "use_dora": False,
        "use_qalora": False,
        "use_rslora": adapter.rslora,
        "velora_config": None,
    }
