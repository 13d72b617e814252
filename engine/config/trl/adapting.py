"""What a file for TRL says of adapters (use_peft, lora_*) and of a quantised base (load_in_4bit, bnb_* ...)."""

import contextlib
from pathlib import Path
from typing import get_args

from data.text import read_json
from engine.config.adapters import Whole
from engine.config.trl.draft import Draft, shown
from system import InputError

TARGETS = ["q_proj", "v_proj"]
"""PEFT's default of every family here that it has one for (peft/utils/constants.py of 0.21.2)."""
WITH_DEFAULT = ("llama", "mistral", "qwen2", "qwen3", "gemma2", "gemma3_text")
"""model_type of these."""
NO_DROPOUT = (
    "is not supported: what it drops would depend on how rows are packed, on the ranks and on what is recomputed, and "
    "TRL turns it off by default (disable_dropout: true)"
)
NO_DORA = (
    "is not supported: PEFT leaves the norm out of DoRA's gradient, so that a run can have either PEFT's numbers or an "
    "exact gradient, and vLLM refuses such adapters; remove it"
)
OF_PEFT = (
    *("lora_r", "lora_alpha", "lora_dropout", "lora_target_modules", "lora_target_parameters", "lora_modules_to_save"),
    *("lora_task_type", "use_rslora", "use_dora"),
)
OF_BITSANDBYTES = (
    *("bnb_4bit_quant_type", "use_bnb_nested_quant", "bnb_4bit_use_double_quant", "bnb_4bit_compute_dtype"),
    "bnb_4bit_quant_storage",
)
WHOLE = get_args(Whole)


def translate_adapter(draft: Draft) -> None:
    """--lora-rank and its flags, and --base-dtype; after --model and --dtype."""
    given, is_theirs = {*draft.made, *draft.typed}, draft.truth("use_peft") is True
    is_used = is_theirs or not given.isdisjoint(("lora_rank", "adapter"))
    if "adapter" in given:  # whose own rank, alpha and targets are taken, as by PEFT
        for name in (name for name in OF_PEFT if draft.has(name)):
            draft.leave(name, "--adapter's own holds")
        draft.take(*OF_PEFT)
    elif is_used:
        _sizes(draft, is_theirs=is_theirs)
        _targets(draft, is_theirs=is_theirs)
        _whole(draft)
        _not_here(draft)
    else:
        draft.take(*OF_PEFT)  # without use_peft they change nothing there either
    _base(draft, is_used=is_used)


def _sizes(draft: Draft, *, is_theirs: bool) -> None:
    """--lora-rank, --lora-alpha and --lora-rslora. is_theirs: whether use_peft is true, so that TRL's defaults hold."""
    for theirs, ours, default in (("lora_r", "lora_rank", "16"), ("lora_alpha", "lora_alpha", "32")):
        if (value := draft.take(theirs)) is not None:
            draft.put(ours, value, draft.named(theirs))
        elif is_theirs:
            draft.default(ours, default)
    if draft.truth("use_rslora"):
        draft.put("lora_rslora", "true", draft.named("use_rslora"))


def _targets(draft: Draft, *, is_theirs: bool) -> None:
    """--lora-targets. Where none are named PEFT has a default for some families, and none for others."""
    if (given := draft.take("lora_target_modules")) is not None:
        draft.put("lora_targets", given if isinstance(given, list) else [given], draft.named("lora_target_modules"))
        return
    if not is_theirs or "lora_targets" in {*draft.made, *draft.typed}:
        return
    kind = _model_type(draft)
    if kind is None or kind in WITH_DEFAULT:
        of = f"PEFT's default for {kind}" if kind else "PEFT's default for Llama, Mistral, Qwen and Gemma"
        draft.made["lora_targets"] = TARGETS
        draft.said.append(f"lora_target_modules: not named, {of} holds: --lora-targets {' '.join(TARGETS)}")
    else:
        draft.faults.append(
            f"lora_target_modules: PEFT has no default for {kind}; name it, as lora_target_modules: all-linear, or by "
            "--lora-targets"
        )


def _model_type(draft: Draft) -> str | None:
    """model_type of --model where that is a folder; None where it is not known yet."""
    model = draft.typed.get("model") or draft.made.get("model")
    found = None
    if isinstance(model, str) and (path := Path(model) / "config.json").is_file():
        with contextlib.suppress(InputError):  # what is wrong with it is said where it is read for the run
            found = read_json(path).get("model_type")
    return found if isinstance(found, str) else None


def _whole(draft: Draft) -> None:
    """--train-also."""
    if (given := draft.take("lora_modules_to_save")) is None:
        return
    names = given if isinstance(given, list) else [given]
    if unknown := [name for name in names if name not in WHOLE]:
        draft.refuse(
            "lora_modules_to_save",
            f"names {shown(unknown)}, and {' and '.join(WHOLE)} alone can train whole here (--train-also); remove it",
        )
    else:
        draft.put("train_also", names, draft.named("lora_modules_to_save"))


def _not_here(draft: Draft) -> None:
    """Dropout, DoRA, parameters that are no matrices of linear layers, other tasks."""
    share, is_off = draft.number("lora_dropout"), draft.truth("disable_dropout") is not False
    if is_off and share:
        draft.leave("lora_dropout", "disable_dropout is true there by default, and sets it to 0")
    elif not is_off and share != 0:
        mend = f"{NO_DROPOUT}; write lora_dropout: 0, or remove disable_dropout: false"
        if share is None:
            draft.refuse("disable_dropout", f"trains with TRL's lora_dropout of 0.05, which {mend}")
        else:
            draft.refuse("lora_dropout", mend)
    if draft.truth("use_dora"):
        draft.refuse("use_dora", NO_DORA)
    if draft.take("lora_target_parameters") is not None:
        draft.refuse("lora_target_parameters", "is not supported: adapters are of linear layers here; remove it")
    if draft.take("lora_task_type") not in (None, "CAUSAL_LM"):
        draft.refuse("lora_task_type", "is not supported: models here predict tokens (CAUSAL_LM); remove it")


def _base(draft: Draft, *, is_used: bool) -> None:
    """--base-dtype."""
    in_4bit, in_8bit = draft.truth("load_in_4bit"), draft.truth("load_in_8bit")
    kind, storage = draft.take("bnb_4bit_quant_type"), draft.take("bnb_4bit_quant_storage")
    nested = [n for n in ("use_bnb_nested_quant", "bnb_4bit_use_double_quant") if draft.truth(n)]
    computes = draft.take("bnb_4bit_compute_dtype")
    if in_4bit and in_8bit:
        draft.faults.append("load_in_4bit and load_in_8bit: are both true; keep one")
        return
    if not (in_4bit or in_8bit):
        return
    name = "load_in_4bit" if in_4bit else "load_in_8bit"
    if not is_used:
        draft.refuse(
            name, "needs an adapter, in TRL and here, since all weights are trained without one; add use_peft: true"
        )
        return
    if in_8bit:
        draft.put("base_dtype", "int8", draft.named(name))
        draft.said.append(
            "load_in_8bit: is int8 by row here, for weights only, where LLM.int8() also quantises the inputs of a "
            "layer "
            "and keeps outliers: the results are close to it, but not the same"
        )
        return
    if kind not in (None, "nf4"):
        draft.refuse("bnb_4bit_quant_type", "is not supported; use nf4 (--base-dtype nf4)")
        return
    draft.put("base_dtype", "nf4", draft.named(name))
    for option in nested:
        draft.leave(option, "it only saves memory: a scale for 64 numbers is a bfloat16 here")
    if storage is not None:
        draft.leave("bnb_4bit_quant_storage", "codes are bytes here, and are not sharded by their dtype")
    if computes is not None:
        _check_computes(draft, shown(computes).removeprefix("torch."))


def _check_computes(draft: Draft, computes: str) -> None:
    """That bnb_4bit_compute_dtype is what computes everything else."""
    dtype = draft.typed.get("dtype") or draft.made.get("dtype")
    if computes == dtype:
        draft.said.append(f"{draft.named('bnb_4bit_compute_dtype')} is --dtype here")
    else:
        draft.refuse(
            "bnb_4bit_compute_dtype",
            f"is not --dtype {dtype}, in which everything is computed here; set both to the same",
        )
