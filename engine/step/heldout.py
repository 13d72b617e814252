"""What is measured at some steps: held-out rows under the policy, and what a checkpoint folder loses of it."""

# n examples, K responses of each

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import Tensor

from data.rows import Example, in_form
from engine.model import name_of
from engine.step.loss_inputs import REFERENCE_VALUES, LossInputs, ReferenceValues
from engine.step.metrics import heldout_metrics, logratio_metrics, training_metrics
from engine.step.objective import Objective
from engine.step.passes import compute_examples, own_values
from engine.step.steps import Batch, Step, mismatched
from engine.step.training import Training
from engine.step.trial import N_TOGETHER, trial_inputs
from engine.weights import Cast
from system import InputError

MOST_ROWS = 64  # of which it is measured what a folder loses
WHOLE = 0.9  # share of the margin below which it is said that a folder lost some of it
SMALLEST = 1e-3  # a margin below it says nothing


class HeldOut:
    """Rows that are not trained on. Their reference log-probs come from the policy's own initial weights, or from the
    model that --reference-model names, or, where the reference moves, from where it stands.
    """

    def __init__(self, examples: list[Example], training: Training) -> None:
        self._examples, self._training = examples, training
        self._others = _others_of(examples, training.objective)
        """Their mismatched sequences, where the objective takes such; None where it cannot be computed on them."""
        self._reference: ReferenceValues | None = None
        self._reference_of_others: ReferenceValues | None = None
        self._found: LossInputs | None = None
        self._measured = -1  # the step after which that was found
        self._metrics: dict[str, float] = {}

    def compute(
        self,
        examples: Sequence[Example],
        token_values: Sequence[str],
        step: Step | None = None,
        *,
        with_reference: bool = False,
    ) -> LossInputs:
        """What an objective takes of examples under the policy of now, at the end of a step. Collective.

        with_reference: whether the reference computes beside it.
        """
        t = self._training
        return compute_examples(
            t.model,
            examples,
            t.ranks,
            t.micro_batching,
            with_reference=with_reference,
            token_values=token_values,
            progress=0.0 if step is None else step.progress,
        )

    def score_reference(self) -> None:
        """Takes what the reference gives for the rows: from the weights that the policy has now; where it is another
        model, from what was computed before the policy was read, or else from that model beside it. Collective.
        """
        if self._examples:
            kept = self._training.reference.heldout
            self._reference = self._of_reference(self._examples) if kept is None else kept
        if self._others:  # of objectives whose reference is always beside the policy
            self._reference_of_others = self._of_reference(self._others)

    def _of_reference(self, examples: Sequence[Example]) -> ReferenceValues | None:
        values = self._training.objective.token_values
        if not self._training.reference.is_other:
            return self.compute(examples, own_values(values)).as_reference()
        return self.compute(
            examples, [name for name in REFERENCE_VALUES if name in values], with_reference=True
        ).reference

    def measure(self, step: Step | None = None) -> dict[str, float]:
        """Their loss, rewards, log-ratios and log-probs now, at the end of a step, or before the first; nothing where
        there are none.

        All of them are one step to an objective that takes a statistic of the step. Collective.
        """
        if not self._examples:
            return {}
        t = self._training
        computes = t.model.reference is not None and (t.reference.moves or t.objective.needs_divergence)
        found = self.compute(self._examples, t.objective.token_values, step, with_reference=computes)
        self._reference = found.reference if computes else self._reference
        self._found, self._measured = found.beside(self._reference), 0 if step is None else step.number
        own = self._found.as_form(t.objective.form, t.objective.side)
        if self._others:
            others = self.compute(self._others, t.objective.token_values, step, with_reference=computes)
            self._reference_of_others = others.reference if computes else self._reference_of_others
            own = None if own is None else own.with_mismatched(others.beside(self._reference_of_others))
        if own is not None and not t.reference.is_used:
            own = own.without_reference()  # rewards are what they are in training
        self._metrics = heldout_metrics(t.objective, self._found, None if self._others is None else own)
        return dict(self._metrics)

    def measured_at(self, step: Step) -> dict[str, float]:
        """What was measured at the end of a step; empty where nothing was."""
        return self._metrics if self._measured == step.number else {}

    def sample(self, step: Step, trained: LossInputs) -> "Sample":
        """The rows by which a folder is measured, with their log-probs now. trained: the loss inputs of the step.

        Held-out ones, as `measure` finds them; where there are none, the step's, which are scored anew: their
        log-probs are those of before it. Collective.
        """
        if self._measured != step.number:
            self.measure(step)
        if self._examples and self._found is not None and self._found.ref_logps is not None:
            examples, logps = self._examples[:MOST_ROWS], self._found.logps[:MOST_ROWS]
            return Sample(examples, Batch(examples).all_inputs(logps, self._found.ref_logps[:MOST_ROWS]))
        examples, reference = step.examples[:MOST_ROWS], None
        if trained.ref_logps is not None:
            reference = ReferenceValues(trained.ref_logps[:MOST_ROWS].cpu())
        return Sample(
            examples, self.compute(examples, self.values_of_margin(reference is not None), step).beside(reference)
        )

    def values_of_margin(self, has_reference: bool) -> tuple[str, ...]:
        """What a margin takes of single tokens: without a reference, what the objective's own rewards do."""
        return () if has_reference else self._training.objective.token_values


def heldout_names(objective: Objective, examples: Sequence[Example]) -> list[str]:
    """The names of what is measured of held-out rows, known before weights are read: by log-probs that are made up."""
    rows = examples[:N_TOGETHER] if objective.token_values else examples
    found, others = _made_up(objective, rows), _others_of(rows, objective)
    own = found.as_form(objective.form, objective.side)
    if own is not None and others:
        own = own.with_mismatched(_made_up(objective, others))
    return list(heldout_metrics(objective, found, None if others is None else own))


def _made_up(objective: Objective, examples: Sequence[Example]) -> LossInputs:
    inputs = trial_inputs(objective, examples)
    return inputs.beside(ReferenceValues(inputs.logps.detach()))


class Sample(NamedTuple):
    """Rows by which a folder is measured."""

    examples: Sequence[Example]
    computed: LossInputs
    """As computed; without log-probs of a reference where the run has none."""


def _others_of(examples: Sequence[Example], objective: Objective) -> list[Example] | None:
    if not objective.needs_mismatched:
        return []
    try:
        return mismatched(in_form(examples, objective.form))
    except InputError:  # rows of another form
        return None


def measure_saved(
    training: Training, step: Step, trained: LossInputs, heldout: HeldOut, cast: Cast
) -> dict[str, float]:
    """What the epoch's folder loses, where it is written in fewer bits than computed: nothing where it is not.

    Measured over 64 held-out rows at most, or over the last step's where none are held out. saved/margins is beta times
    what eval_logratios/margins would be under the weights as written, saved/computed_margins the same rows' as
    computed; over a last step without a reference both are the margin of the objective's own rewards.
    saved/logps_difference is the mean over their responses of the absolute difference of log-probs, nats. trained: the
    loss inputs of the step. Raises InputError, on every rank, where a weight is beyond the dtype's range. Collective.
    """
    if cast.keeps(training.ranks.dtype):
        return {}
    sample = heldout.sample(step, trained)
    with as_written(training, cast):
        values = heldout.values_of_margin(sample.computed.ref_logps is not None)
        written = heldout.compute(sample.examples, values, step).beside(sample.computed.reference)
    made = {}
    for name, inputs in (("saved/margins", written), ("saved/computed_margins", sample.computed)):
        margin = _margin(training.objective, inputs)
        made |= {} if margin is None else {name: margin}
    difference = written.logps - sample.computed.logps
    return made | {"saved/logps_difference": difference.abs().mean().item()}


def loss_of(cast: Cast, saved: dict[str, float], computed: torch.dtype) -> str | None:
    """A sentence where less than nine tenths of the margin are left in a folder; None where they are, or none is known.

    saved: what `measure_saved` gave. computed: the dtype that the run computes in.
    """
    margin, left = saved.get("saved/computed_margins", 0.0), saved.get("saved/margins", 0.0)
    if not margin > SMALLEST or left >= WHOLE * margin:
        return None
    remedies = "--save-dtype float32 keeps all of it"
    if cast.rounding == "stochastic" and cast.dtype == computed:
        remedies += ", and so does --save-rounding nearest"
    elif cast.dtype == torch.bfloat16 and cast.rounding == "nearest":
        remedies += ", --save-rounding stochastic almost all of it, with a little noise"
    return (
        f"written in {name_of(cast.dtype)} it keeps {left / margin:.0%} of the margin between chosen and rejected "
        f"responses ({left:.2g} of {margin:.2g}): {remedies}"
    )


@contextmanager
def as_written(training: Training, cast: Cast) -> Iterator[None]:
    """Inside, the policy's weights are those of a folder that `cast` writes; afterwards what they were, bit for bit.

    A copy of them is kept on the device where gradients, which are gone when a step is done, had room there, else on
    the host. Raises InputError, on every rank, where a weight is beyond the dtype's range. Collective.
    """
    ranks, policy = training.ranks, training.policy
    has_room = training.plan.memory.holds_gradients
    ranks.reshard(policy)
    kept: list[tuple[Tensor, Tensor]] = []
    try:
        with ranks.together(), torch.no_grad():
            for name, parameter in policy.named_parameters():
                held, _ = ranks.local(parameter)
                rows, first = training.access.local(parameter)
                kept.append((held, held.to(held.device if has_room else "cpu", copy=True)))
                tensor, offset = policy.config.place(name)
                held.copy_(cast(tensor, rows, offset + first))
        yield
    finally:
        ranks.reshard(policy)
        with torch.no_grad():
            for held, copy in kept:
                held.copy_(copy)


def _margin(objective: Objective, inputs: LossInputs) -> float | None:
    """Beta times the log-ratio of chosen responses above that of rejected ones; None where the rows do not have both.

    Without log-probs of a reference, the same of the objective's own rewards.
    """
    if inputs.ref_logps is not None:
        return logratio_metrics(objective, inputs, times=objective.beta).get("logratios/margins")
    with torch.no_grad():
        return training_metrics(inputs, objective(inputs)).get("rewards/margins")
