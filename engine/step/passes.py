"""Passes over the layers: a whole step forward and backward, and log-probs without gradient."""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from data.rows import Example
from engine.config import host
from engine.distributed import Ranks
from engine.model import DIVERGENCES, FusedForward
from engine.planning import memory
from engine.step.loss_inputs import REFERENCE_VALUES, LossInputs, ReferenceValues
from engine.step.objective import Slopes, gradient
from engine.step.steps import Batch, MicroBatch, MicroBatching, Step
from engine.step.training import Training
from losses import Result

BATCH = 64  # examples that are scored together
KEPT = 0.93
"""Of what was planned, the share up to which free pages are kept between two passes; holes come on top of it."""


def forward_backward(training: Training, step: Step) -> tuple[LossInputs, Result]:
    """All micro-batches of a step, forward and backward; the gradient is that of the mean loss over its examples.

    Gives what the objective was computed from, for all examples over all ranks, and the result on it. Collective.
    """
    objective, batch, ranks = training.objective, step.batch, training.ranks
    mismatched = _mismatched_of(training, step)
    if objective.whole_step:
        return _whole_step(training, step, mismatched)
    added = torch.zeros((), dtype=torch.float64)
    for micro in batch.micro_batches:
        ranks.set_gradient_sync(training.model, micro is batch.micro_batches[-1])
        added = added + _one_pass(training, step, micro, mismatched)
        host.give_back(int(KEPT * memory.total(training.plan.memory)))
    training.hooks.on_phase(step.number, "gather")
    inputs = batch.gather(ranks, with_reference=training.reference.is_used, token_values=objective.token_values)
    inputs = inputs.with_mismatched(mismatched)
    return inputs, _with_added(training, objective(inputs), added, len(batch))


def _one_pass(training: Training, step: Step, micro: MicroBatch, mismatched: LossInputs | None) -> Tensor:
    """A micro-batch forward and backward; its gradient is added up, and what the hook adds to its losses is given.

    Nothing of its graph is left then: the nodes would lie between the blocks of memory that the next pass wants.
    """
    part, added = micro_batch_logps(training, step, micro), torch.zeros((), dtype=torch.float64)
    loss = training.objective(part.with_mismatched(mismatched)).losses.sum()
    if training.hooks.add_to_loss is not None:
        term = training.hooks.add_to_loss(training, micro, part)
        added, loss = added + term.detach().cpu(), loss + term
    report(training, step, "backward")
    (loss / len(step.batch)).backward()  # over the examples of all ranks: the split changes speed only
    training.ranks.take_gradients()
    step.batch.add(micro, part)
    return added


def _mismatched_of(training: Training, step: Step) -> LossInputs | None:
    """What both models give for a step's mismatched sequences, the same on every rank: an anchor takes no gradient, and
    once it is known each example's loss is its own. None where there are none. Collective.
    """
    if step.mismatched is None:
        return None
    report(training, step, "forward")
    return compute_batch(
        training.model,
        step.mismatched,
        training.ranks,
        training.micro_batching,
        with_reference=training.reference.is_used,
        token_values=training.objective.token_values,
    )


def _whole_step(training: Training, step: Step, mismatched: LossInputs | None) -> tuple[LossInputs, Result]:
    """Backward pass of an objective that takes a statistic of the step: exact for any split into micro-batches.

    The log-probs of the whole step are gathered first and the objective gives its gradient for each; every micro-batch
    then goes back with its slice. With several of them a rank computes each twice, without and with gradient.
    """
    batch, ranks = step.batch, training.ranks
    micro_batches = batch.micro_batches
    added = torch.zeros((), dtype=torch.float64)
    with torch.set_grad_enabled(len(micro_batches) == 1):
        parts = [micro_batch_logps(training, step, micro) for micro in micro_batches]
    for micro, part in zip(micro_batches, parts, strict=True):
        batch.add(micro, part)
    training.hooks.on_phase(step.number, "gather")
    token_values = training.objective.token_values
    inputs = batch.gather(ranks, with_reference=training.reference.is_used, token_values=token_values)
    inputs = inputs.with_mismatched(mismatched)
    result, slopes = gradient(training.objective, inputs)
    for micro, part in zip(micro_batches, parts, strict=True):
        ranks.set_gradient_sync(training.model, micro is micro_batches[-1])
        known = part if len(micro_batches) == 1 else None
        added = added + _one_pass_back(training, step, micro, slopes, inputs.reference, known)
        host.give_back(int(KEPT * memory.total(training.plan.memory)))
    return inputs, _with_added(training, result, added, len(batch))


def _one_pass_back(
    training: Training, step: Step, micro: MicroBatch, slopes: Slopes, reference: ReferenceValues | None,
    known: LossInputs | None,
) -> Tensor:  # fmt: skip
    """The same of an objective of a whole step, whose gradient is known. known: the log-probs with their graph, where
    they are there already.
    """
    batch, added = step.batch, torch.zeros((), dtype=torch.float64)
    part = known or micro_batch_logps(training, step, micro, reference)
    device, rows = part.logps.device, batch.token_rows(micro.indices)
    roots, gradients = [part.logps], [slopes.logps[micro.indices].to(device)]
    roots += [part.tokens[name] for name in slopes.tokens]
    gradients += [slope[rows].to(device) for slope in slopes.tokens.values()]
    if training.hooks.add_to_loss is not None:
        term = training.hooks.add_to_loss(training, micro, part)
        added = added + term.detach().cpu()
        roots, gradients = [*roots, term], [*gradients, torch.ones_like(term) / len(batch)]
    report(training, step, "backward")
    torch.autograd.backward(roots, gradients)  # pyright: ignore[reportArgumentType]
    training.ranks.take_gradients()
    return added


def _with_added(training: Training, result: Result, added: Tensor, n: int) -> Result:
    """The result with the hook's term in its losses, and named for the log. Collective where there is one."""
    if training.hooks.add_to_loss is None:
        return result
    mean = training.ranks.all_reduce_sum(added) / n
    return result._replace(losses=result.losses + mean, metrics={**result.metrics, "loss/added": mean})


def report(training: Training, step: Step, phase: str) -> None:
    """Says where this rank is: to the others, for when it is lost, and to whoever watches."""
    training.ranks.heartbeat.report_phase(step.number, phase)
    training.hooks.on_phase(step.number, phase)


def micro_batch_logps(
    training: Training, step: Step, micro: MicroBatch, known: ReferenceValues | None = None
) -> LossInputs:
    """A micro-batch's log-probs: the policy's with gradient, the reference's from the table or computed beside them.

    known: the reference's of the whole step, where they are there already. Collective.
    """
    reference, batch = training.reference, step.batch
    known = reference.known(step) if known is None else known
    if training.objective.needs_divergence:
        known = None  # the reference's whole distributions are computed beside the policy's
    report(training, step, "forward")
    found, ref_logps, tokens = training.model(
        micro.forest.to(training.ranks.device),
        with_reference=reference.is_used and known is None,
        token_values=training.objective.token_values,
    )
    if known is not None:
        ref_logps = known.logps[micro.indices].view(-1)
        rows = batch.token_rows(micro.indices) if known.tokens else None
        tokens = {**tokens, **{name: values[rows] for name, values in known.tokens.items()}}
    return batch.loss_inputs(micro, found, ref_logps, tokens)


def compute_batch(
    model: FusedForward,
    batch: Batch,
    ranks: Ranks,
    micro_batching: MicroBatching,
    *,
    with_reference: bool = False,
    token_values: Sequence[str] = (),
) -> LossInputs:
    """What an objective takes of a batch's examples, without gradient, the same on every rank.

    with_reference: whether the model's reference computes too. token_values: what is wanted of single tokens; what is
    the reference's stays away where it does not compute. Collective.
    """
    names = tuple(name for name in token_values if with_reference or name not in (*REFERENCE_VALUES, *DIVERGENCES))
    with torch.no_grad():
        for micro in batch.micro_batches or batch.pack(ranks, micro_batching):
            forest = micro.forest.to(ranks.device)
            found = model(forest, with_reference=with_reference, token_values=names)
            batch.add(micro, batch.loss_inputs(micro, *found))
    ranks.reshard(model)
    return batch.gather(ranks, with_reference=with_reference, token_values=names)


def compute_examples(
    model: FusedForward,
    examples: Sequence[Example],
    ranks: Ranks,
    micro_batching: MicroBatching,
    *,
    with_reference: bool = False,
    token_values: Sequence[str] = (),
    progress: float = 0.0,
) -> LossInputs:
    """The same of any number of examples with equally many responses. progress: the share of the run's steps that are
    done. Collective.
    """
    found = [
        compute_batch(
            model,
            Batch(examples[i : i + BATCH]),
            ranks,
            micro_batching,
            with_reference=with_reference,
            token_values=token_values,
        )
        for i in range(0, len(examples), BATCH)
    ]
    tokens = {name: torch.cat([one.tokens[name] for one in found]) for name in found[0].tokens}
    references = [one.ref_logps for one in found if one.ref_logps is not None]
    logps = torch.cat([one.logps for one in found])
    return Batch(examples, progress=progress).all_inputs(logps, torch.cat(references) if references else None, tokens)


def own_values(token_values: Sequence[str]) -> tuple[str, ...]:
    """What a model that is taken for the reference has to give of single tokens, where an objective takes these."""
    return tuple(name.removeprefix("ref_") for name in REFERENCE_VALUES if name in token_values)


def score_examples(
    model: FusedForward, examples: Sequence[Example], ranks: Ranks, micro_batching: MicroBatching
) -> Iterator[Tensor]:
    """The policy's log-probs of any number of examples: [K] nats each, float64, in order, K the example's own.

    Collective.
    """
    for start in range(0, len(examples), BATCH):
        several = examples[start : start + BATCH]
        found: dict[int, Tensor] = {}
        for k in dict.fromkeys(len(e.responses) for e in several):  # a batch is of equally many responses
            indices = [i for i, e in enumerate(several) if len(e.responses) == k]
            batch = Batch([several[i] for i in indices])
            found |= dict(zip(indices, compute_batch(model, batch, ranks, micro_batching).logps, strict=True))
        yield from (found[i] for i in range(len(several)))
