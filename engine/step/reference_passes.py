"""What is done with the reference between steps: its log-probs computed ahead, its memory freed, its weights moved."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor
from tqdm import tqdm

from data.rows import Example
from engine import weights
from engine.config import ReferenceConfig
from engine.distributed import Ranks
from engine.model import FusedForward, Transformer, adapters
from engine.optim import copy_rounded
from engine.planning import Plan
from engine.step.objective import Objective
from engine.step.passes import compute_batch, compute_examples, own_values
from engine.step.reference import ReferenceLogps
from engine.step.steps import MicroBatching, Step, Steps
from engine.step.training import Training


def fill_reference(training: Training, steps: Steps, before_each: Callable[[], None]) -> None:
    """Fills the table with the log-probs of the weights that the policy has now, for the rows that the run will reach.

    before_each: called before every step's rows are scored; what it raises ends the filling. Collective.
    """
    t = training
    _fill(t.reference, t.model, steps, t.objective, t.ranks, t.micro_batching, before_each)
    release_reference(training)


def _fill(
    reference: ReferenceLogps,
    model: FusedForward,
    steps: Steps,
    objective: Objective,
    ranks: Ranks,
    micro_batching: MicroBatching,
    before_each: Callable[[], None],
) -> None:
    total = min(len(steps), steps.per_epoch)
    quiet = None if ranks.is_rank0 else True
    for step in tqdm(steps.first_epoch(), "reference", total, unit="step", disable=quiet):
        before_each()  # and not after the last: what is whole is written
        values = own_values(objective.token_values)
        found = compute_batch(model, step.batch, ranks, micro_batching, token_values=values)
        reference.remember(step, found.as_reference())


def score_alone(
    open_model: Callable[[], tuple[Transformer, Path]],
    reference: ReferenceLogps,
    objective: Objective,
    *,
    steps: Steps,
    heldout: Sequence[Example],
    plan: Plan,
    ranks: Ranks,
    micro_batching: MicroBatching,
    before_each: Callable[[], None],
) -> None:
    """Takes from another model, the reference's, what is wanted of it where it does not walk beside the policy: the
    table's numbers with --reference precompute, and those of the held-out rows.

    It is read, asked and freed before the policy is read: one of the two is in memory at a time. open_model: gives it
    on the meta device, and the folder of its weights. before_each: as `fill_reference`'s. Raises InputError for weights
    that cannot be used. Collective.
    """
    walks = plan.reference == "fused" and not reference.is_final
    fills = not walks and not reference.is_complete
    if walks or not (fills or heldout):
        return
    with _alone(open_model, plan, ranks) as model:
        if fills:
            _fill(reference, model, steps, objective, ranks, micro_batching, before_each)
        if heldout:
            values = own_values(objective.token_values)
            found = compute_examples(model, heldout, ranks, micro_batching, token_values=values)
            reference.heldout = found.as_reference()


@contextmanager
def _alone(open_model: Callable[[], tuple[Transformer, Path]], plan: Plan, ranks: Ranks) -> Iterator[FusedForward]:
    """A model, as a reference beside the policy would lie and compute; freed afterwards. Collective."""
    model, folder = open_model()
    if plan.memory.is_compiled:
        model.compile_blocks()
    placed = ranks.place(FusedForward(model), reshards=plan.memory.reshards)
    with ranks.together():
        weights.fill(model, folder, ranks.local, copy_rounded if ranks.splits_masters else Tensor.copy_)
    try:
        yield placed
    finally:
        ranks.release(model)


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
        if isinstance(released, Transformer):
            ranks.release(released)
    ranks.wait()


def follow_reference(training: Training, step: Step, config: ReferenceConfig) -> dict[str, float]:
    """After an optimizer step: moves the reference where an update is due, from the float32 masters.

    What it gives is for the log: how often the reference has moved, by which rewards jump towards 0.

    ref <- alpha policy + (1 - alpha) ref, alpha 1 where it is hard: TR-DPO, arXiv 2404.09656. Shards of both models lie
    alike, so nothing is communicated, but for an adapter's, which is gathered.
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
        if model.reference.shares_base:  # an adapter's, whole on every rank, and always hard
            trained = dict(model.policy.trained())
            for name, theirs in adapters.own_parameters(model.reference).items():
                theirs.copy_(ranks.full_tensor(trained[name]))
        else:
            for ours, theirs in zip(model.policy.parameters(), model.reference.parameters(), strict=True):
                ranks.local(theirs)[0].lerp_(ranks.local(ours)[0], alpha)
    training.reference.forget()
    return done
