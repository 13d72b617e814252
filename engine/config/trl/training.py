"""How a file for TRL trains: how long, in which steps, with which optimizer and learning rates, in which precision."""

import json
import math
from decimal import Decimal
from typing import Any

from engine.config.train_config import world_size
from engine.config.trl.draft import Draft, as_number, plain, shown

OPTIMIZERS = {
    "rmsprop": "rmsprop",
    "adamw": "adamw",
    "adamw_torch": "adamw",
    "adamw_torch_fused": "adamw",
    "adamw_hf": "adamw",
    "adamw_apex_fused": "adamw",
    "paged_adamw": "adamw",  # pages move memory, not numbers
    "paged_adamw_32bit": "adamw",
}
"""Optimizers with the same updates; the name of each there -> here."""
SCHEDULES = {  # lr_scheduler_type -> --schedule
    "linear": "linear",
    "cosine": "cosine",
    "cosine_with_min_lr": "cosine",
    "constant": "constant",
    "constant_with_warmup": "constant",
    "warmup_stable_decay": "wsd",
}
BATCH = ("per_device_train_batch_size", "gradient_accumulation_steps")
ADAM = ("adam_beta1", "adam_beta2", "adam_epsilon")


def translate_training(draft: Draft) -> None:
    """--batch-size, --epochs, --max-steps, --seed, --shuffle, the optimizer's flags, the schedule's, and --dtype."""
    _optimizer(draft)
    _schedule(draft)
    _duration(draft)
    _batch(draft)
    _order(draft)
    _precision(draft)


# --- steps ---------------------------------------------------------------------------------------------------------


def _optimizer(draft: Draft) -> None:
    given = draft.take("optim")
    if given is None:
        draft.default("optimizer", "adamw")
    elif (ours := OPTIMIZERS.get(shown(given).lower())) is not None:
        draft.put("optimizer", ours, draft.named("optim"))
    else:
        known = ", ".join(OPTIMIZERS)
        draft.refuse("optim", f"is not supported here; use one of {known} (--optimizer adamw or rmsprop)")
    if (rate := draft.take("learning_rate")) is None:
        draft.default("lr", "1e-06")
    else:
        draft.put("lr", rate, draft.named("learning_rate"))
    is_adam = draft.made.get("optimizer", "adamw") == "adamw"
    for name in ADAM:
        if (value := draft.take(name)) is not None:
            _same_name(draft, name, value, is_read=is_adam)
    for name in ("weight_decay", "max_grad_norm"):
        if (value := draft.take(name)) is not None:
            _same_name(draft, name, value)


def _same_name(draft: Draft, name: str, value: Any, *, is_read: bool = True) -> None:
    """A setting of the same name and meaning, where it is read and is not the default of both."""
    default = {"adam_beta1": "0.9", "adam_beta2": "0.999", "adam_epsilon": "1e-8", "weight_decay": "0"}.get(name)
    if is_read and (default is None or as_number(value) != Decimal(default)):
        draft.made.setdefault(name, value)


def _batch(draft: Draft) -> None:
    """Examples of a step, over all processes."""
    if draft.has("per_gpu_train_batch_size") and not draft.has(BATCH[0]):
        draft.theirs[BATCH[0]] = draft.theirs["per_gpu_train_batch_size"]  # its name before
    draft.take("per_gpu_train_batch_size")
    is_named = draft.has(BATCH[0]) or draft.has(BATCH[1])
    n_before = len(draft.faults)
    per_device, accumulated = draft.whole(BATCH[0]), draft.whole(BATCH[1])
    if len(draft.faults) > n_before:
        return
    per_device, accumulated = 8 if per_device is None else per_device, 1 if accumulated is None else accumulated
    parts = f"{BATCH[0]}: {per_device} x {BATCH[1]} {accumulated} x {world_size()} processes"
    size = str(per_device * accumulated * world_size())
    if is_named:
        draft.put("batch_size", size, parts)
    else:
        draft.default("batch_size", size)


def _order(draft: Draft) -> None:
    """In which order rows come; KTO's trainer takes them as they stand."""
    seed, of_data = draft.take("seed"), draft.take("data_seed")
    if of_data is not None:
        draft.put("seed", of_data, draft.named("data_seed"))
    elif seed is not None:
        draft.made.setdefault("seed", seed)
    else:
        draft.default("seed", "42")
    sampling = draft.take("train_sampling_strategy")
    if sampling in (None, "random", "sequential"):
        in_order = sampling == "sequential" or (sampling is None and draft.trainer == "kto")
        if sampling is None and in_order and "shuffle" not in draft.typed and "no_shuffle" not in draft.typed:
            if "shuffle" not in draft.made:
                draft.made["shuffle"] = "false"
                draft.defaults.append("--no-shuffle")
        elif sampling == "sequential":
            draft.made.setdefault("shuffle", "false")
            draft.said.append(f"{draft.named('train_sampling_strategy')} is --no-shuffle here")
    else:
        draft.refuse("train_sampling_strategy", "is not supported; use random or sequential (--no-shuffle)")


# --- how long ------------------------------------------------------------------------------------------------------


def _duration(draft: Draft) -> None:
    """--epochs and --max-steps. There max_steps wins over the epochs, and repeats the rows as often as it takes."""
    n_epochs = draft.number("num_train_epochs")
    given = draft.number("max_steps")
    if given is not None and given <= 0:  # as if it were not there
        given = None
    if given is not None and given != int(given):
        draft.refuse("max_steps", "is not a whole number")
        return
    if given is not None:
        steps = plain(given)
        draft.made.setdefault("max_steps", steps)
        if "epochs" not in draft.made and "epochs" not in draft.typed:  # a step at least is in each
            draft.made["epochs"] = steps
            draft.said.append(
                f"max_steps: {steps} is --max-steps {steps} --epochs {steps} here, so that rows come again until then"
            )
        if n_epochs is not None:
            draft.leave("num_train_epochs", "max_steps decides there and here")
    elif n_epochs is None:
        draft.default("epochs", "3")
    elif n_epochs <= 0:
        draft.refuse("num_train_epochs", "has to be above 0")
    else:
        draft.put("epochs", plain(n_epochs), draft.named("num_train_epochs"))


# --- learning rates ------------------------------------------------------------------------------------------------


def _schedule(draft: Draft) -> None:
    given = draft.take("lr_scheduler_type")
    theirs = "linear" if given is None else shown(given).lower()
    kwargs = draft.take("lr_scheduler_kwargs")
    kwargs = _mapping(kwargs)
    if theirs not in SCHEDULES:
        draft.refuse(
            "lr_scheduler_type",
            f"is not supported here; use one of {', '.join(SCHEDULES)} (--schedule linear, cosine, constant or wsd)",
        )
    else:
        if given is None:
            draft.default("schedule", "linear")
        else:
            draft.put("schedule", SCHEDULES[theirs], draft.named("lr_scheduler_type"))
        _schedule_kwargs(draft, theirs, kwargs)
    _warmup(draft, without=theirs == "constant")


def _mapping(value: Any) -> dict[str, Any]:
    """A nested mapping, or the one that a text is in JSON; what is neither stands under an empty name."""
    try:
        found = json.loads(value) if isinstance(value, str) else value
    except ValueError:
        return {"": value}
    return {name: str(part) for name, part in found.items()} if isinstance(found, dict) else {}


def _schedule_kwargs(draft: Draft, theirs: str, kwargs: dict[str, Any]) -> None:
    """--min-lr-ratio and --decay-ratio out of lr_scheduler_kwargs."""
    numbers = {name: as_number(value) for name, value in kwargs.items()}
    if theirs == "cosine_with_min_lr":
        share, least = numbers.pop("min_lr_rate", None), numbers.pop("min_lr", None)
        if share is None and least is not None:
            share = least / (as_number(draft.made.get("lr", "")) or Decimal("1e-6"))
        if share is None:
            draft.faults.append("lr_scheduler_type: cosine_with_min_lr needs min_lr_rate in lr_scheduler_kwargs")
        else:
            draft.put("min_lr_ratio", _digits(share), "lr_scheduler_kwargs: " + shown(kwargs))
    if theirs == "warmup_stable_decay":
        n_decay, n_steps = numbers.pop("num_decay_steps", None), as_number(draft.look("max_steps"))
        if (least := numbers.pop("min_lr_ratio", None)) is not None:
            draft.put("min_lr_ratio", _digits(least), f"lr_scheduler_kwargs: min_lr_ratio {least}")
        if n_decay is not None and n_steps is not None and n_steps > 0:
            draft.put("decay_ratio", _share(n_decay, n_steps), f"lr_scheduler_kwargs: num_decay_steps {n_decay}")
        elif not {"decay_ratio"} & {*draft.made, *draft.typed}:
            draft.faults.append(
                "lr_scheduler_type: warmup_stable_decay needs num_decay_steps and max_steps, or in their place the "
                "share of the steps in which the rate falls: --decay-ratio 0.1"
            )
        if kwargs.get("decay_type") == "cosine":
            numbers.pop("decay_type")
        if kwargs.get("warmup_type") == "linear":
            numbers.pop("warmup_type")
    if theirs.startswith("cosine") and numbers.get("num_cycles") == Decimal("0.5"):
        numbers.pop("num_cycles")
    if numbers:
        unread = shown({name: kwargs[name] for name in numbers})
        draft.faults.append(f"lr_scheduler_kwargs: {unread} is not supported here with {theirs}; remove it")


def _warmup(draft: Draft, *, without: bool) -> None:
    """--warmup-steps and --warmup-ratio. Steps below 1 are a share there, and steps win over the share.

    without: for a schedule that knows no warm-up there.
    """
    steps, share = draft.number("warmup_steps"), draft.number("warmup_ratio")
    if without:
        if steps or share:
            draft.leave("warmup_steps" if steps else "warmup_ratio", "lr_scheduler_type: constant has no warm-up there")
        return
    for name, value in (("warmup_steps", steps), ("warmup_ratio", share)):
        if value is not None and value < 0:
            draft.refuse(name, "has to be at least 0")
            return
    if steps and steps >= 1:
        draft.made.setdefault("warmup_steps", str(int(steps)))
        if share:
            draft.leave("warmup_ratio", "warmup_steps wins there")
    elif steps:
        draft.put("warmup_ratio", _digits(steps), draft.named("warmup_steps"))
    elif share:
        draft.made.setdefault("warmup_ratio", draft.theirs["warmup_ratio"])


def _share(part: Decimal, whole: Decimal) -> str:
    """A share of which ceil(share * whole) is the part, in floats."""
    found = float(part) / float(whole)
    while math.ceil(found * float(whole)) > part:
        found = math.nextafter(found, 0.0)
    return repr(found)


def _digits(number: Decimal) -> str:
    return repr(float(number))


# --- precision -----------------------------------------------------------------------------------------------------


def _precision(draft: Draft) -> None:
    """--dtype: what computes. Masters are float32 always, as they are there where bf16 is true."""
    stored_name = "torch_dtype" if draft.has("torch_dtype") else "dtype"
    stored = draft.take("torch_dtype", "dtype")
    stored = None if stored is None else shown(stored).removeprefix("torch.").lower()
    is_half, is_bfloat = draft.truth("fp16"), draft.truth("bf16")
    if is_half:
        draft.refuse("fp16", "is not supported: --dtype is bfloat16 or float32 here; remove it, or write bf16: true")
    if stored not in (None, "auto", "bfloat16", "float32"):
        draft.refuse(stored_name, "is not supported: --dtype is bfloat16 or float32 here; use one of these")
        return
    if is_bfloat is None:
        draft.default("dtype", "bfloat16")
    elif is_bfloat or stored != "bfloat16":
        draft.put("dtype", "bfloat16" if is_bfloat else "float32", draft.named("bf16"))
    if stored == "bfloat16" and not is_bfloat:
        draft.put("dtype", "bfloat16", draft.named(stored_name))
    if is_bfloat is False and stored == "bfloat16":
        draft.leave("bf16", f"{stored_name}: bfloat16 computes in it")
