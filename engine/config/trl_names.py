"""TRL's names of settings in ours, for a YAML file that was written for `trl dpo` or `trl kto`.

Every translation is said aloud. A setting that would change the result and has no counterpart here is an error; one
that does not matter here is named, with the reason.
"""

# Names and defaults as of TRL 1.16 (trl/trainer/dpo_config.py, kto_config.py) and transformers' TrainingArguments.

import re
from collections.abc import Callable
from decimal import Decimal, InvalidOperation
from typing import Any

from engine.config.trackers import not_tracked, tracked
from engine.config.train_config import world_size
from system import InputError

Settings = dict[str, Any]

RENAMED = {
    "model_name_or_path": "model",
    "dataset_name": "data",
    "output_dir": "out",
    "learning_rate": "lr",
    "num_train_epochs": "epochs",
    "max_prompt_length": "max_prompt_tokens",
    "max_completion_length": "max_response_tokens",
    "save_total_limit": "keep_checkpoints",
    "ref_model_mixup_alpha": "reference_update_alpha",
    "ref_model_sync_steps": "reference_update_steps",
}
BATCH = ("per_device_train_batch_size", "gradient_accumulation_steps")
LOSSES: dict[str, str] = {  # the others have the same name in both, or none here
    "sigmoid": "dpo",
    "exo_pair": "exo",
    "nca_pair": "nca",
    "robust": "robust_dpo",
    "sppo_hard": "sppo",
    "sigmoid_norm": "ln_dpo",
}
SMOOTHED = ("robust_dpo", "exo", "aot", "aot_unpaired")  # whose labels TRL smooths; its sigmoid takes them as they are
OTHER_BETA = ("sppo", "discopop")  # whose beta is 0.1 there, as every objective's is, and their paper's own here
NEUTRAL = {  # what does not change the result, and what is done here
    "logging_steps": "every step is logged",
    "logging_strategy": "every step is logged",
    "logging_first_step": "every step is logged",
    "run_name": "a run is called as its folder is",
    "save_strategy": "a checkpoint is saved after every epoch",
    "save_steps": "a checkpoint is saved after every epoch",
    "eval_strategy": "held-out rows are measured after every epoch",
    "eval_steps": "held-out rows are measured after every epoch",
    "do_eval": "held-out rows are measured where --eval-data or --eval-pairs is given",
    "per_device_eval_batch_size": "held-out rows are packed as --micro-tokens allows",
    "gradient_checkpointing": "memory is bounded by --micro-tokens",
    "gradient_checkpointing_kwargs": "memory is bounded by --micro-tokens",
    "attn_implementation": "the engine brings its own attention",
    "padding_free": "nothing is padded",
    "dataset_num_proc": "rows are encoded on all cores",
    "dataloader_num_workers": "rows are encoded before the first step",
    "ddp_timeout": "torch's own time-outs hold",
    "log_level": "there is one",
    "disable_tqdm": "the bar is quiet where there is no terminal",
    "evaluation_strategy": "held-out rows are measured after every epoch",
    "preprocessing_num_workers": "rows are encoded on all cores",
    "overwrite_output_dir": "a folder that holds a run is never written over",
    "hub_model_id": "nothing is uploaded",
    "hub_strategy": "nothing is uploaded",
    "deepspeed": "ranks are torchrun's, sharding is PyTorch's own",
    "fsdp": "ranks are torchrun's, sharding is PyTorch's own",
    "fsdp_config": "ranks are torchrun's, sharding is PyTorch's own",
    "remove_unused_columns": "columns that nothing reads are named",
    "f_alpha_divergence_coef": "f_dpo takes 1 minus it as --f_dpo.alpha with alpha_divergence, nothing else does",
    "discopop_tau": "discopop takes it as --discopop.tau, no other loss takes it",
}
NO_LIMIT = ("max_steps", "-1")
OF_NONE = ("track", "report_to", "reference")
"""Settings of which none is a value; of others it stands for one that is not given."""
COUNTERPARTS = {
    "report_to": "track",
    "loss_type": "loss",
    "optim": "optimizer",
    "bf16": "dtype",
    "torch_dtype": "dtype",
    "truncation_mode": "keep-prompt",
    "precompute_ref_log_probs": "reference",
    "max_length": "max-tokens",
    "warmup_ratio": "warmup-steps",
    "ld_alpha": "ld_dpo.alpha, of --loss ld_dpo",
    "use_weighting": "loss wpo",
    "f_divergence_type": "f_dpo.divergence, of --loss f_dpo",
    "f_alpha_divergence_coef": "f_dpo.alpha, which is 1 minus it",
    "dataset_train_split": "data NAME:SPLIT",
}
ONLY = {  # settings of which one value means what is done here
    "lr_scheduler_type": ("linear", "the rate falls linearly"),
    "fp16": ("false", "--dtype is bfloat16 or float32"),
    "use_peft": ("false", "all parameters are trained"),
    "load_in_4bit": ("false", "all parameters are trained"),
    "load_in_8bit": ("false", "all parameters are trained"),
    "push_to_hub": ("false", "nothing is uploaded"),
    "trust_remote_code": ("false", "no code of a model folder is ever run"),
    "weight_decay": ("0", "there is no weight decay"),
    "warmup_ratio": ("0", "the warm-up is counted in steps: --warmup-steps"),
    "label_smoothing": ("0", "labels are taken as they are"),
    "dataset_train_split": ("train", "a split is named behind the source: --data NAME:SPLIT"),
}


def translate(settings: Settings, say: Callable[[str], None]) -> Settings:
    """Settings with TRL's names put into ours; each translation is handed to `say` as a sentence.

    Raises InputError for a setting that has no counterpart here, and where two names of one setting disagree.
    """
    given = {name.replace("-", "_"): value for name, value in settings.items()}
    given = {name: value for name, value in given.items() if not _is_unset(name, value)}
    ours, theirs = {}, {}
    for name, value in given.items():
        (theirs if _is_theirs(name, value) else ours)[name] = value
    if any(name.endswith("desirable_weight") for name in theirs):
        theirs.setdefault("loss_type", "kto")  # what TRL's KTO trainer trains
    made: Settings = dict(ours)
    for name, value in theirs.items():
        found = _ours(name, value, given)
        if name == "truncation_mode" and not found:
            say(f"{name}: {_shown(value)} is what --max-tokens alone does here, by which sequences lose their end")
        for our_name, our_value, said in found:
            if made.setdefault(our_name, our_value) != our_value:
                raise InputError(f"{name} and {our_name}: two names of one setting, with two values; keep one")
            flag = our_name if "." in our_name else our_name.replace("_", "-")
            say(f"{said} is --{flag} {_shown(our_value)} here")
        for sentence in not_tracked(value) if name == "report_to" else []:
            say(sentence)
        if name in NEUTRAL:
            say(f"{name}: left out, {NEUTRAL[name]} here")
    if theirs:
        defaults = [name for name in ("loss", "optimizer", "epochs", "lr", "batch_size") if name not in made]
        say("not named there, so that our defaults hold: " + (", ".join(defaults) or "nothing of weight"))
    return made


def counterpart(name: str) -> str | None:
    """What to say of a flag with one of TRL's names; None where it is none."""
    if name in BATCH:
        return "--batch-size, examples per step over all processes"
    if name in COUNTERPARTS:
        return f"--{COUNTERPARTS[name]}"
    if name in RENAMED:
        return f"--{RENAMED[name].replace('_', '-')}"
    if name in ONLY or name in NEUTRAL:
        return f"nothing of that name; in a --config file {name} is understood"
    return None


def _is_unset(name: str, value: Any) -> bool:
    return value in ("null", "", []) or (value in ("none", "None") and name not in OF_NONE)


def _is_theirs(name: str, value: Any) -> bool:
    if name == "dtype":  # a name of both
        return value not in ("float32", "bfloat16")
    return any(name in names for names in (SPECIAL, RENAMED, NEUTRAL, ONLY, BATCH)) or (name, value) == NO_LIMIT


def _ours(name: str, value: Any, given: Settings) -> list[tuple[str, Any, str]]:
    """(our name, value, what is translated) of one of TRL's settings."""
    said = f"{name}: {_shown(value)}"
    if name in RENAMED:
        is_whole = name == "num_train_epochs" and isinstance(value, str)
        return [(RENAMED[name], value.removesuffix(".0") if is_whole else value, said)]
    if name in ONLY and name not in SPECIAL:
        _check_only(name, value)
    if name in SPECIAL:
        return [(ours, theirs, said) for ours, theirs in SPECIAL[name](value, given)]
    if name == BATCH[0] or (name == BATCH[1] and BATCH[0] not in given):
        parts, size = _batch(given)
        return [("batch_size", size, parts)]
    return []


def _check_only(name: str, value: Any) -> None:
    wanted, why = ONLY[name]
    meant = str(value).lower()
    meant = {"no": "false", "off": "false", "yes": "true", "on": "true"}.get(meant, meant)
    is_zero = wanted == "0" and re.fullmatch(r"0*\.?0*", meant)
    if meant != wanted and not is_zero:
        raise InputError(f"{name}: {_shown(value)} is not to be had, {why} here; take it out")


def _whole(name: str, value: Any) -> int:
    if not isinstance(value, str) or not re.fullmatch("[0-9]{1,9}", value):
        raise InputError(f"{name}: {_shown(value)} is not a whole number")
    return int(value)


def _batch(given: Settings) -> tuple[str, str]:
    """How many examples a step takes over all processes, and how that came to be."""
    per_device, accumulated = (_whole(name, given.get(name, d)) for name, d in zip(BATCH, ("8", "1"), strict=True))
    n_processes = world_size()
    parts = f"{BATCH[0]}: {per_device} x {BATCH[1]} {accumulated} x {n_processes} processes"
    return parts, str(per_device * accumulated * n_processes)


def _loss(value: Any, given: Settings) -> list[tuple[str, str]]:
    """--loss, and what TRL's formulas have otherwise than ours by default."""
    names = _objectives(value)
    if variant := _variant(given):
        names = [variant[0] if name == "dpo" else name for name in names]
    weights = given.get("loss_weights")
    weights = weights if isinstance(weights, list) else [weights] if weights is not None else []
    if weights and len(weights) != len(names):
        raise InputError(f"loss_weights: {_shown(weights)} are {len(weights)}, of {len(names)} in loss_type")
    mixture = [f"{name}:{weight}" for name, weight in zip(names, weights, strict=True)] if weights else names
    made = [("loss", ",".join(mixture))]
    if "bco_pair" in names:
        made.append(("bco_pair.shift", "false"))
    made += [("beta", "0.1")] if set(names) & set(OTHER_BETA) and "beta" not in given else []
    smoothing = str(given.get("label_smoothing", "0"))
    made += [(f"{name}.label_smoothing", smoothing) for name in names if name in SMOOTHED]
    made += [("discopop.tau", str(given["discopop_tau"]))] if "discopop_tau" in given and "discopop" in names else []
    return made


def _objectives(loss_type: Any) -> list[str]:
    """Our names of those in loss_type, of which a file without one has sigmoid."""
    return [LOSSES.get(str(name), str(name)) for name in (loss_type if isinstance(loss_type, list) else [loss_type])]


def _variant(given: Settings) -> tuple[str, dict[str, str]] | None:
    """The objective that TRL's sigmoid is with ld_alpha, use_weighting or f_divergence_type, and its hyperparameters.

    Raises InputError where two of them are asked for, and beside an objective that has no such variant here.
    """
    found: dict[str, tuple[str, dict[str, str]]] = {}
    if "ld_alpha" in given:
        found["ld_alpha"] = "ld_dpo", {"ld_dpo.alpha": str(given["ld_alpha"])}
    if _is_true("use_weighting", given.get("use_weighting", "false")):
        found["use_weighting"] = "wpo", {}
    if (divergence := str(given.get("f_divergence_type", "reverse_kl")).lower()) != "reverse_kl":
        found["f_divergence_type"] = "f_dpo", {"f_dpo.divergence": _divergence(divergence)}
        if divergence == "alpha_divergence":
            coefficient = _decimal("f_alpha_divergence_coef", given.get("f_alpha_divergence_coef", "0.5"))
            found["f_divergence_type"][1]["f_dpo.alpha"] = str(1 - coefficient)
    if len(found) > 1:
        raise InputError(f"{' and '.join(found)}: each is an objective of its own here, keep one")
    for setting, variant in found.items():
        beside = {"dpo", "sft"} if setting != "use_weighting" else {"dpo"}  # weights would be those of sft too
        others = [name for name in _objectives(given.get("loss_type", "sigmoid")) if name not in beside]
        if others or "dpo" not in _objectives(given.get("loss_type", "sigmoid")):
            raise InputError(
                f"{setting}: {_shown(given[setting])} goes with loss_type: sigmoid alone here, as --loss {variant[0]}; "
                "take it out, or take that loss_type"
            )
        return variant
    return None


def _varied(value: Any, given: Settings) -> list[tuple[str, str]]:
    """--loss and the hyperparameters of what ld_alpha, use_weighting or f_divergence_type make of sigmoid."""
    variant = _variant(given)
    if variant is None:
        return []
    return [_loss(given.get("loss_type", "sigmoid"), given)[0], *variant[1].items()]


def _coefficient(value: Any, given: Settings) -> list[tuple[str, str]]:
    """Translated with f_divergence_type: alpha_divergence, and of no weight elsewhere."""
    _decimal("f_alpha_divergence_coef", value)
    return []


def _divergence(value: str) -> str:
    known = ("reverse_kl", "forward_kl", "js_divergence", "alpha_divergence")
    if value not in known:
        raise InputError(f"f_divergence_type: {value} is not to be had here; one of {', '.join(known)}")
    return value


def _decimal(name: str, value: Any) -> Decimal:
    try:
        found = Decimal(str(value))
    except InvalidOperation:
        found = Decimal("nan")
    if not found.is_finite():
        raise InputError(f"{name}: {_shown(value)} is not a number")
    return found


def _is_true(name: str, value: Any) -> bool:
    if str(value).lower() not in ("true", "yes", "on", "false", "no", "off"):
        raise InputError(f"{name}: {_shown(value)} is not true or false")
    return str(value).lower() in ("true", "yes", "on")


def _smoothing(value: Any, given: Settings) -> list[tuple[str, str]]:
    """Translated with the objective that smooths its labels; refused beside any other."""
    if not set(_objectives(given.get("loss_type", "sigmoid"))) <= set(SMOOTHED):
        _check_only("label_smoothing", value)
    return []


def _with_losses(value: Any, given: Settings) -> list[tuple[str, str]]:
    """Translated with loss_type."""
    if "loss_type" not in given:
        raise InputError(f"loss_weights: {_shown(value)} go with loss_type; name the objectives")
    return []


def _length(value: Any, given: Settings) -> list[tuple[str, str]]:
    """Of prompt and response together, by the rule that max_prompt_length beside it decides, as there."""
    return [("max_tokens", str(_whole("max_length", value)))]


def _truncation(value: Any, given: Settings) -> list[tuple[str, str]]:
    """Of prompts there, where they have a limit of their own; else of the whole sequence, of which the start is kept
    here.
    """
    ((name, found),) = _keep(value, given)
    if "max_length" not in given or any(limit in given for limit in ("max_prompt_length", "max_prompt_tokens")):
        return [(name, found)]
    if found == "end":
        raise InputError(
            f"truncation_mode: {_shown(value)} is not to be had with max_length alone, by which a sequence loses its "
            "end here; name max_prompt_length too, by which prompts are cut"
        )
    return []


def _choice(name: str, ours: str, choices: dict[str, str | None]) -> Callable[[Any, Settings], list[tuple[str, str]]]:
    def choose(value: Any, given: Settings) -> list[tuple[str, str]]:
        if str(value).lower() not in choices:
            raise InputError(f"{name}: {_shown(value)} is not to be had here; one of {', '.join(choices)}")
        found = choices[str(value).lower()]
        return [] if found is None else [(ours, found)]

    return choose


def _weight(name: str) -> Callable[[Any, Settings], list[tuple[str, str]]]:
    def put(value: Any, given: Settings) -> list[tuple[str, str]]:
        named = given.get("loss") or _loss(given.get("loss_type", "kto"), given)[0][1]
        loss = named.partition(",")[0].partition(":")[0]
        return [(f"{loss}.{name}", value)]

    return put


def _shown(value: Any) -> str:
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)


def _tracked(value: Any, given: Settings) -> list[tuple[str, Any]]:
    return [("track", found)] if (found := tracked(value)) else []


_keep = _choice("truncation_mode", "keep_prompt", {"keep_end": "end", "keep_start": "start"})
SPECIAL: dict[str, Callable[[Any, Settings], list[tuple[str, Any]]]] = {
    "report_to": _tracked,
    "loss_type": _loss,
    "loss_weights": _with_losses,
    "label_smoothing": _smoothing,
    "ld_alpha": _varied,
    "use_weighting": _varied,
    "f_divergence_type": _varied,
    "f_alpha_divergence_coef": _coefficient,
    "sync_ref_model": _choice("sync_ref_model", "reference_update", {"true": "soft", "false": None}),
    "max_length": _length,
    "optim": _choice(
        "optim",
        "optimizer",
        {"rmsprop": "rmsprop", "adamw_torch": "adamw", "adamw_torch_fused": "adamw", "adamw": "adamw"},
    ),
    "dtype": _choice("dtype", "dtype", {"auto": None}),
    "bf16": _choice("bf16", "dtype", {"true": "bfloat16", "false": None}),
    "torch_dtype": _choice("torch_dtype", "dtype", {"bfloat16": "bfloat16", "float32": "float32", "auto": None}),
    "truncation_mode": _truncation,
    "precompute_ref_log_probs": _choice("precompute_ref_log_probs", "reference", {"true": "precompute", "false": None}),
    "desirable_weight": _weight("desirable_weight"),
    "undesirable_weight": _weight("undesirable_weight"),
}
