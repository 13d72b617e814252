"""What a step's line in metrics.jsonl says, under TRL's names."""

import math
from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor

from engine.step.loss_inputs import LossInputs
from engine.step.objective import Objective
from engine.step.steps import Step
from engine.step.training import Training
from losses import Result
from system import NotFinite


def training_metrics(inputs: LossInputs, result: Result) -> dict[str, float]:
    """Loss, rewards, log-probs and, where there is a reference, log-ratios of a step; a class without examples is left
    out, never NaN.

    Rewards are the objective's own; of several ranked responses the first is chosen and the last rejected.
    """
    made = {"loss": result.losses.mean().item()}
    made |= _compared("rewards", inputs, {"chosen": result.chosen_rewards, "rejected": result.rejected_rewards})
    is_rejected = not len(result.chosen_rewards)
    made |= _means("logps", _sides(inputs, is_rejected=is_rejected))
    made |= _logratios(inputs, is_rejected=is_rejected)
    return made | {k: float(v) for k, v in result.metrics.items()}


def heldout_metrics(objective: Objective, inputs: LossInputs, own: LossInputs | None) -> dict[str, float]:
    """The same of held-out rows, eval_ before each name: eval_X is what X would be of a step of them.

    inputs: the rows with the log-probs of a reference, be it the run's initial weights; their log-probs and log-ratios
    are of both responses of a pair whatever the objective takes of it. own: what the objective is computed from, as in
    training; None where it cannot be, and then there are these alone.
    """
    made: dict[str, float] = {}
    if own is not None:
        with torch.no_grad():
            made = training_metrics(own, objective(own))
    return {f"eval_{name}": value for name, value in (made | logratio_metrics(objective, inputs)).items()}


def logratio_metrics(objective: Objective, inputs: LossInputs, *, times: float = 1.0) -> dict[str, float]:
    """Log-probs and log-ratios, nats. times: by what the latter are multiplied."""
    is_rejected = objective.side == "rejected"
    made = _logratios(inputs, is_rejected=is_rejected, times=times)
    return _means("logps", _sides(inputs, is_rejected=is_rejected)) | made


def _logratios(inputs: LossInputs, *, is_rejected: bool, times: float = 1.0) -> dict[str, float]:
    """Means of log p(response) - log p_reference(response), nats; nothing without a reference."""
    if inputs.ref_logps is None:
        return {}
    made = replace(inputs, logps=times * (inputs.logps.detach() - inputs.ref_logps))
    return _compared("logratios", inputs, _sides(made, is_rejected=is_rejected))


def _compared(prefix: str, inputs: LossInputs, sides: Mapping[str, Tensor]) -> dict[str, float]:
    """Means of both sides, how far one is above the other, and, of pairs, how often."""
    made = _means(prefix, sides)
    if len(made) == 2:
        made[f"{prefix}/margins"] = made[f"{prefix}/chosen"] - made[f"{prefix}/rejected"]
        chosen, rejected = sides["chosen"], sides["rejected"]
        if inputs.labels is None and len(chosen) == len(rejected):
            made[f"{prefix}/accuracies"] = (chosen > rejected).double().mean().item()
    return made


def _sides(inputs: LossInputs, *, is_rejected: bool) -> dict[str, Tensor]:
    """Log-probs of the chosen and the rejected responses. is_rejected: what single ones are."""
    logps = inputs.logps
    if inputs.labels is not None:
        return {"chosen": logps[inputs.labels, 0], "rejected": logps[~inputs.labels, 0]}
    if logps.shape[1] == 1:
        return {"rejected" if is_rejected else "chosen": logps[:, 0]}
    return {"chosen": logps[:, 0], "rejected": logps[:, -1]}


def _means(prefix: str, sides: Mapping[str, Tensor]) -> dict[str, float]:
    return {f"{prefix}/{name}": values.mean().item() for name, values in sides.items() if len(values)}


def check_finite(training: Training, step: Step, inputs: LossInputs, result: Result, grad_norm: float) -> None:
    """Raises NotFinite, on every rank, where a loss or the gradient of a step is not finite."""
    bad = (~result.losses.isfinite()) | (~inputs.logps.isfinite().all(dim=1))
    if not bad.any() and math.isfinite(grad_norm):
        return
    what = "the loss of" if bad.any() else f"the gradient ({grad_norm}) of a step with"
    rows = [e.location for e, is_bad in zip(step.examples, bad.tolist(), strict=True) if is_bad or not bad.any()]
    more = f" and {len(rows) - 10} more" if len(rows) > 10 else ""
    left = f"the weights are as step {step.number - 1} left them"
    if not training.plan.memory.holds_gradients:  # the optimizer has stepped inside the backward pass
        left = "the weights in memory are lost; states and checkpoints are whole"
    raise NotFinite(
        f"step {step.number}: {what} {', '.join(rows[:10])}{more} is not finite; {left}; look at these rows, or lower "
        "--lr"
    )
