"""From examples to a loss: which examples a step takes, what an objective is computed from, the objective itself, where
the reference's log-probs come from, the passes over the layers, and what is measured.
"""

from engine.step.heldout import HeldOut, heldout_names, loss_of, measure_saved
from engine.step.loss_inputs import LossInputs, ReferenceValues
from engine.step.metrics import check_finite, training_metrics
from engine.step.notices import notices, weights_report
from engine.step.objective import Objective, describe_all
from engine.step.other_reference import OtherReference, open_reference
from engine.step.passes import compute_batch, forward_backward, report, score_examples
from engine.step.reference import Cache, ReferenceLogps, check_shared, fingerprint, modes
from engine.step.reference_passes import fill_reference, follow_reference, release_reference, score_alone
from engine.step.steps import Batch, MicroBatch, MicroBatching, Step, Steps, check_mismatched
from engine.step.training import NO_HOOKS, Hooks, Training
from engine.step.trial import check_objective

__all__ = [
    "NO_HOOKS",
    "Batch",
    "Cache",
    "HeldOut",
    "Hooks",
    "LossInputs",
    "MicroBatch",
    "MicroBatching",
    "Objective",
    "OtherReference",
    "ReferenceLogps",
    "ReferenceValues",
    "Step",
    "Steps",
    "Training",
    "check_finite",
    "check_mismatched",
    "check_objective",
    "check_shared",
    "compute_batch",
    "describe_all",
    "fill_reference",
    "fingerprint",
    "follow_reference",
    "forward_backward",
    "heldout_names",
    "loss_of",
    "measure_saved",
    "modes",
    "notices",
    "open_reference",
    "release_reference",
    "report",
    "score_alone",
    "score_examples",
    "training_metrics",
    "weights_report",
]
