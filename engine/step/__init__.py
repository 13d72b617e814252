"""From examples to a loss: which examples a step takes, what an objective is computed from, the objective itself, where
the reference's log-probs come from, and what is measured.
"""

from engine.step import reference
from engine.step.heldout import HeldOut, loss_of, measure_saved
from engine.step.loss_inputs import LossInputs
from engine.step.metrics import training_metrics
from engine.step.objective import Objective, describe_all, gradient
from engine.step.passes import score_examples, score_step
from engine.step.reference import Cache, ReferenceLogps
from engine.step.steps import Batch, MicroBatching, Step, Steps

__all__ = [
    "Batch",
    "Cache",
    "HeldOut",
    "LossInputs",
    "MicroBatching",
    "Objective",
    "ReferenceLogps",
    "Step",
    "Steps",
    "describe_all",
    "gradient",
    "loss_of",
    "measure_saved",
    "reference",
    "score_examples",
    "score_step",
    "training_metrics",
]
