"""Passes over the layers: a whole step forward and backward, and log-probs without gradient."""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from data.rows import Example
from engine.distributed import Ranks
from engine.model import FusedForward
from engine.step.loss_inputs import LossInputs
from engine.step.objective import gradient
from engine.step.steps import Batch, MicroBatch, MicroBatching, Step
from engine.step.training import Training
from losses import Result


def forward_backward(training: Training, step: Step) -> tuple[LossInputs, Result]:
    """All micro-batches of a step, forward and backward; the gradient is that of the mean loss over its examples.

    Gives what the objective was computed from, for all examples over all ranks, and the result on it. Collective.
    """
    objective, batch, ranks = training.objective, step.batch, training.ranks
    if objective.whole_step:
        return _whole_step(training, step)
    added = torch.zeros((), dtype=torch.float64)
    for micro in batch.micro_batches:
        ranks.set_gradient_sync(training.model, micro is batch.micro_batches[-1])
        part = micro_batch_logps(training, step, micro)
        loss = objective(part).losses.sum()
        if training.hooks.add_to_loss is not None:
            term = training.hooks.add_to_loss(training, micro, part)
            added, loss = added + term.detach().cpu(), loss + term
        report(training, step, "backward")
        (loss / len(batch)).backward()  # over the examples of all ranks: the split changes speed only
        batch.add(micro, part)
    training.hooks.on_phase(step.number, "gather")
    inputs = batch.gather(ranks, with_reference=training.reference.is_used)
    return inputs, _with_added(training, objective(inputs), added, len(batch))


def _whole_step(training: Training, step: Step) -> tuple[LossInputs, Result]:
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
    inputs = batch.gather(ranks, with_reference=training.reference.is_used)
    result, slopes = gradient(training.objective, inputs)
    for micro, part in zip(micro_batches, parts, strict=True):
        ranks.set_gradient_sync(training.model, micro is micro_batches[-1])
        again = part if len(micro_batches) == 1 else micro_batch_logps(training, step, micro, inputs.ref_logps)
        roots, gradients = [again.logps], [slopes[micro.indices].to(again.logps.device)]
        if training.hooks.add_to_loss is not None:
            term = training.hooks.add_to_loss(training, micro, again)
            added = added + term.detach().cpu()
            roots, gradients = [*roots, term], [*gradients, torch.ones_like(term) / len(batch)]
        report(training, step, "backward")
        torch.autograd.backward(roots, gradients)  # pyright: ignore[reportArgumentType]
    return inputs, _with_added(training, result, added, len(batch))


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


def micro_batch_logps(training: Training, step: Step, micro: MicroBatch, known: Tensor | None = None) -> LossInputs:
    """A micro-batch's log-probs: the policy's with gradient, the reference's from the table or computed beside them.

    known: the reference's of the whole step [n, K], where they are there already. Collective.
    """
    reference = training.reference
    known = reference.known(step) if known is None else known
    report(training, step, "forward")
    found, ref_logps = training.model(
        micro.forest.to(training.ranks.device), with_reference=reference.is_used and known is None
    )
    if known is not None:
        ref_logps = known[micro.indices].view(-1)
    return step.batch.loss_inputs(micro, found, ref_logps)


def score_batch(
    model: FusedForward, batch: Batch, ranks: Ranks, micro_batching: MicroBatching, *, of_reference: bool = False
) -> Tensor:
    """The policy's (or the reference's) log-probs of a batch's responses, [n, K] nats, float64, the same on every rank.

    Collective.
    """
    with torch.no_grad():
        for micro in batch.pack(ranks, micro_batching):
            logps, ref_logps = model(micro.forest.to(ranks.device), with_reference=of_reference)
            batch.add(micro, batch.loss_inputs(micro, logps if ref_logps is None else ref_logps, None))
    ranks.reshard(model)
    return batch.gather(ranks, with_reference=False).logps


def score_examples(
    model: FusedForward,
    examples: Sequence[Example],
    ranks: Ranks,
    micro_batching: MicroBatching,
    *,
    of_reference: bool = False,
) -> Iterator[Tensor]:
    """The same for any number of examples with equally many responses: [K] each, in order. Collective."""
    for start in range(0, len(examples), 64):
        yield from score_batch(
            model, Batch(examples[start : start + 64]), ranks, micro_batching, of_reference=of_reference
        )
