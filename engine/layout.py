"""How a run fits into the memory that is free: its plan, and whether its float32 masters are split in halves."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from engine import weights
from engine.config import TrainConfig, world_size
from engine.distributed import Ranks, free_memory
from engine.inputs import TrainingInputs
from engine.model import name_of
from engine.optim import largest_share
from engine.planning import NO_ADAPTERS, Plan, adapters_instead, plan_run, refusal, tried, ways
from engine.run import has_split_masters
from engine.weights import Cast
from system import InputError


def splits_masters(inputs: TrainingInputs) -> bool:
    """Whether float32 masters are split in halves: where it is asked for, or one GPU cannot hold them whole.

    A run that goes on keeps what it began with. Raises InputError where that cannot be.
    """
    memory = inputs.config.memory
    if memory.master_weights != "auto":
        return memory.master_weights == "split"
    if inputs.adapting is not None:
        return False
    if (began := _began_with_split(inputs)) is not None:
        if began and world_size() > 1:
            raise InputError(
                f"{inputs.config.out}: its state has split master weights, which work with one process only; start one"
            )
        return began
    if world_size() > 1 or not torch.cuda.is_available():
        return False
    dtype = getattr(torch, memory.dtype or "bfloat16")
    return plan_in(inputs, inputs.config, "cuda", dtype, free_memory()).memory.is_split


def plan_together(inputs: TrainingInputs, ranks: Ranks) -> Plan:
    """How the run is laid out, the same on every rank. Raises InputError where it cannot fit. Collective."""
    _check_day(inputs, ranks)
    device, free = ranks.device.type, int(-ranks.all_reduce_max(-free_memory()))
    found = _fitting(inputs, device, ranks.dtype, free, is_split=ranks.splits_masters)
    ranks.share(found.memory.n_shards)
    return found


def plan_alone(inputs: TrainingInputs) -> Plan:
    """How one process would lay the run out here; nobody is asked. Raises InputError where it cannot fit."""
    device, is_split = "cuda" if torch.cuda.is_available() else "cpu", splits_masters(inputs)
    asked = inputs.config.memory.dtype or ("bfloat16" if device == "cuda" or is_split else "float32")
    return _fitting(inputs, device, getattr(torch, asked), free_memory(), is_split=is_split)


def plan_side_by_side(inputs: TrainingInputs, n_gpus: int, free: int) -> Plan:
    """How so many GPUs, each with so many free bytes, would lay the run out together; nobody is asked. Raises
    InputError where it cannot fit.
    """
    dtype = getattr(torch, inputs.config.memory.dtype or "bfloat16")
    return _fitting(inputs, "cuda", dtype, free, is_split=False, n_ranks=n_gpus)


def plan_in(
    inputs: TrainingInputs, config: TrainConfig, device: str, dtype: torch.dtype, free: int, n_ranks: int | None = None
) -> Plan:
    """The layout of these rows under such settings in so many free bytes, whether it fits or not. n_ranks: unset, those
    of now.
    """
    asked, n_ranks = config.memory.gpu_memory, n_ranks or world_size()
    return plan_run(
        config,
        inputs.policy.config,
        inputs.modes,
        replace(inputs.statistics, step=inputs.statistics.step * world_size() // n_ranks),
        device=device,
        dtype=dtype,
        n_ranks=n_ranks,
        budget=free if asked is None else min(free, int(asked * 1e9)),
        stored=weights.stored_dtypes(inputs.folder),
        group_share=largest_share(inputs.policy.trained(), inputs.options, optimizer=config.optimizer.name),
        other_reference=inputs.other and inputs.other.config,
        on_base=NO_ADAPTERS if inputs.adapting is None else inputs.adapting.for_plan(),
    )


def _began_with_split(inputs: TrainingInputs) -> bool | None:
    """Whether the run that this one goes on with has split masters; None where it goes on with none."""
    out, past = Path(inputs.config.out), inputs.continued
    began = has_split_masters(out) if inputs.config.checkpoints.resumes else None
    if began is None and past and past.state:
        return has_split_masters(past.run)
    return began


def _fitting(
    inputs: TrainingInputs, device: str, dtype: torch.dtype, free: int, *, is_split: bool, n_ranks: int | None = None
) -> Plan:
    """The layout in so many free bytes. Raises InputError where there is none."""
    config = inputs.config
    asked = config.with_flags(master_weights="split" if is_split else "float32")
    found = plan_in(inputs, asked, device, dtype, free, n_ranks)
    _check_saving(config, found)
    if not found.fits:
        is_new = _began_with_split(inputs) is None
        changes = (ways(config, n_ranks or world_size()), adapters_instead(config)) if is_new else ([], [])

        def plan_with(way: dict[str, Any]) -> Plan:
            return plan_in(inputs, config.with_flags(**way), device, dtype, free, n_ranks)

        raise InputError(refusal(found, *(tried(some, plan_with) for some in changes)))
    return found


def _check_day(inputs: TrainingInputs, ranks: Ranks) -> None:
    """Raises InputError where ranks began on two days, and have rendered two texts. Collective."""
    chat = inputs.chat
    day = 0 if chat is None or chat.template.day is None else chat.template.day.toordinal()
    if ranks.all_reduce_max(day) != -ranks.all_reduce_max(-day):
        raise InputError(
            "the chat template writes the date, and the ranks started on two days; start again, or give --template-date"
        )


def _check_saving(config: TrainConfig, plan: Plan) -> None:
    """Raises InputError where --save-rounding does not go with the folders' dtype, before any weights are read."""
    try:
        Cast(dtype=plan.saves, rounding=config.checkpoints.save_rounding)
    except InputError as fault:
        raise InputError(f"--save-rounding: checkpoint folders are in {name_of(plan.saves)}: {fault}") from None
