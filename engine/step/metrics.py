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
from system import RunError


def training_metrics(inputs: LossInputs, result: Result) -> dict[str, float]:
    """Loss, rewards and log-probs of a step; a class without examples is left out, never NaN.

    Of several ranked responses the first is chosen and the last rejected.
    """
    made = {"loss": result.losses.mean().item()}
    rewards = {"chosen": result.chosen_rewards, "rejected": result.rejected_rewards}
    made |= _means("rewards", rewards)
    if "rewards/chosen" in made and "rewards/rejected" in made:
        made["rewards/margins"] = made["rewards/chosen"] - made["rewards/rejected"]
        if inputs.labels is None and len(rewards["chosen"]) == len(rewards["rejected"]):
            made["rewards/accuracies"] = (rewards["chosen"] > rewards["rejected"]).double().mean().item()
    made |= _means("logps", _sides(inputs, is_rejected=not len(rewards["chosen"])))
    return made | {k: float(v) for k, v in result.metrics.items()}


def heldout_metrics(objective: Objective, inputs: LossInputs) -> dict[str, float]:
    """The same of held-out rows, eval_ before each name. Rewards are beta * log-ratio whatever the objective is."""
    made = logratio_metrics(objective, inputs)
    form = inputs.as_form(objective.form, objective.side)
    if not objective.needs_mismatched and form is not None:
        with torch.no_grad():
            made["loss"] = objective(form).losses.mean().item()
    return {f"eval_{name}": value for name, value in made.items()}


def logratio_metrics(objective: Objective, inputs: LossInputs) -> dict[str, float]:
    """Rewards, as beta * log-ratio, and log-probs; without a loss."""
    ref = inputs.logps * torch.nan if inputs.ref_logps is None else inputs.ref_logps
    with torch.no_grad():
        logratios = _sides(replace(inputs, logps=inputs.logps - ref), is_rejected=objective.side == "rejected")
        chosen, rejected = (objective.beta * logratios.get(side, torch.zeros(0)) for side in ("chosen", "rejected"))
        made = training_metrics(inputs, Result(torch.zeros(1), chosen, rejected))
    del made["loss"]
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
    """Raises RunError, on every rank, where a loss or the gradient of a step is not finite."""
    bad = (~result.losses.isfinite()) | (~inputs.logps.isfinite().all(dim=1))
    if not bad.any() and math.isfinite(grad_norm):
        return
    what = "the loss of" if bad.any() else f"the gradient ({grad_norm}) of a step with"
    rows = [e.location for e, is_bad in zip(step.examples, bad.tolist(), strict=True) if is_bad or not bad.any()]
    more = f" and {len(rows) - 10} more" if len(rows) > 10 else ""
    left = f"the weights are as step {step.number - 1} left them"
    if not training.plan.memory.holds_gradients:  # the optimizer has stepped inside the backward pass
        left = "the weights in memory are lost; states and checkpoints are whole"
    raise RunError(
        f"step {step.number}: {what} {', '.join(rows[:10])}{more} is not finite; {left}; look at these rows, or lower "
        "--lr"
    )
