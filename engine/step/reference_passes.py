"""What is done with the reference between steps: its log-probs computed ahead, its memory freed, its weights moved."""

from collections.abc import Callable

import torch
from tqdm import tqdm

from engine.config import ReferenceConfig
from engine.model import Llama
from engine.step.passes import compute_batch, own_values
from engine.step.steps import Step, Steps
from engine.step.training import Training


def fill_reference(training: Training, steps: Steps, before_each: Callable[[], None]) -> None:
    """Fills the table with the log-probs of the weights that the policy has now, for the rows that the run will reach.

    before_each: called before every step's rows are scored; what it raises ends the filling. Collective.
    """
    total = min(len(steps), steps.per_epoch)
    quiet = None if training.ranks.is_rank0 else True
    for step in tqdm(steps.first_epoch(), "reference", total, unit="step", disable=quiet):
        before_each()  # and not after the last: what is whole is written
        values = own_values(training.objective.token_values)
        found = compute_batch(training.model, step.batch, training.ranks, training.micro_batching, token_values=values)
        training.reference.remember(step, found.as_reference())
    release_reference(training)


def release_reference(training: Training) -> None:
    """Once the table is complete: writes it, and frees the reference's memory where that has served. Collective."""
    reference, model, ranks = training.reference, training.model, training.ranks
    if not reference.is_complete or reference.moves or reference.is_written:
        return
    reference.is_written = True
    if ranks.is_rank0:
        reference.write()
    if reference.is_final:
        released, model.reference = model.reference, None
        if isinstance(released, Llama):
            ranks.release(released)
    ranks.wait()


def follow_reference(training: Training, step: Step, config: ReferenceConfig) -> dict[str, float]:
    """After an optimizer step: moves the reference where an update is due, from the float32 masters.

    What it gives is for the log: how often the reference has moved, by which rewards jump towards 0.

    ref <- alpha policy + (1 - alpha) ref, alpha 1 where it is hard: TR-DPO, arXiv 2404.09656. Shards of both models lie
    alike, so nothing is communicated.
    """
    model, ranks = training.model, training.ranks
    if model.reference is None or not training.reference.moves:
        return {}
    done = {"reference/updates": float(step.number // config.update_steps)}
    if step.number % config.update_steps:
        return done
    ranks.reshard(model)
    alpha = 1.0 if config.update == "hard" else config.update_alpha
    with torch.no_grad():
        for ours, theirs in zip(model.policy.parameters(), model.reference.parameters(), strict=True):
            ranks.local(theirs)[0].lerp_(ranks.local(ours)[0], alpha)
    training.reference.forget()
    return done
