"""What is written at an epoch's end: the checkpoint folder, and what it loses where it has fewer bits than the run."""

from pathlib import Path

import torch

from engine.config import CheckpointConfig
from engine.run.folder import epochs_of
from engine.run.metrics_log import say
from engine.run.stopping import Stopping
from engine.step import HeldOut, LossInputs, Step, Training, loss_of, measure_saved
from engine.weights import Cast
from system import InputError, remove_folder


def save_epoch(
    training: Training,
    step: Step,
    trained: LossInputs,
    heldout: HeldOut,
    folder: Path,
    config: CheckpointConfig,
    stopping: Stopping,
) -> dict[str, float]:
    """Writes the epoch's checkpoint folder, model card included, into the run's; removes the oldest beyond
    --keep-checkpoints.

    Gives what the folder loses where it has fewer bits than the run computes with (`measure_saved`). trained: the loss
    inputs of the epoch's last step. A weight that has grown beyond the dtype's range ends the run, with the folder in
    float32 in its place: nothing that was trained is lost. Collective.
    """
    path = folder / f"epoch-{step.epoch:02d}"
    cast = Cast(
        dtype=training.plan.saves,
        others=training.plan.other_dtypes,
        rounding=config.save_rounding,
        seed=step.number,
        is_split=training.masters is not None,
    )
    lost: dict[str, float] = {}
    try:
        lost = measure_saved(training, step, trained, heldout, cast)
    except InputError as fault:
        cast = Cast(dtype=torch.float32)
        stopping.fault = InputError(f"{path}: is written in float32: {fault}; go on with --resume --save-dtype float32")
    card, found = training.card, heldout.measured_at(step) | lost
    text = None if card is None else training.ranks.on_rank0(lambda: card(path.name, step, found, cast.dtype))
    training.save(path, cast=cast, replaces=config.resumes, card=text)
    training.hooks.save_epoch(training, path)
    if training.ranks.is_rank0 and config.keep_checkpoints:
        for old in epochs_of(folder)[: -config.keep_checkpoints]:
            remove_folder(old)
    training.ranks.wait()
    if stopping.fault is None and (sentence := loss_of(cast, lost, training.ranks.dtype)):
        say(f"{path}: {sentence}")
    return lost
