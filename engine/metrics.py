"""What a step's line in metrics.jsonl says, under TRL's names."""

from collections.abc import Mapping

import torch
from torch import Tensor

from engine.objective import Columns, Objective
from losses import Result


def training_metrics(columns: Columns, result: Result) -> dict[str, float]:
    """Loss, rewards and log-probs of a step; a class without examples is left out, never NaN."""
    rewards = {"chosen": result.chosen_rewards, "rejected": result.rejected_rewards}
    is_paired = columns.labels is None and len(rewards["rejected"]) > 0
    if is_paired:
        logps = {"chosen": columns.logps[:, 0], "rejected": columns.logps[:, 1]}
    elif columns.labels is not None:
        logps = {"chosen": columns.logps[columns.labels, 0], "rejected": columns.logps[~columns.labels, 0]}
    else:
        logps = {"chosen": columns.logps[:, 0]}
    made = {"loss": result.losses.mean().item()}
    made |= _means("rewards", rewards)
    if "rewards/chosen" in made and "rewards/rejected" in made:
        made["rewards/margins"] = made["rewards/chosen"] - made["rewards/rejected"]
    if is_paired:
        made["rewards/accuracies"] = (rewards["chosen"] > rewards["rejected"]).double().mean().item()
    return made | _means("logps", logps) | {k: float(v) for k, v in result.metrics.items()}


def heldout_metrics(objective: Objective, columns: Columns) -> dict[str, float]:
    """The same of held-out rows, eval_ before each name. Rewards are beta * log-ratio whatever the objective is."""
    beta = objective.arguments.get("beta", 0.1)
    logratios = (
        columns.logps - columns.ref_logps
        if columns.ref_logps is not None
        else torch.full_like(columns.logps, torch.nan)
    )
    pairs = columns.logps.shape[1] == 2
    with torch.no_grad():
        chosen = beta * (logratios[:, 0] if columns.labels is None else logratios[columns.labels, 0])
        rejected = beta * (
            logratios[:, 1] if pairs else logratios[:0, 0] if columns.labels is None else logratios[~columns.labels, 0]
        )
        made = training_metrics(columns, Result(torch.zeros(1), chosen, rejected))
        del made["loss"]
        if not objective.needs_mismatched and (form := _in_form(columns, objective.loss.data)) is not None:
            made["loss"] = objective(form).losses.mean().item()
    return {f"eval_{name}": value for name, value in made.items()}


def _means(prefix: str, columns: Mapping[str, Tensor]) -> dict[str, float]:
    return {f"{prefix}/{name}": values.mean().item() for name, values in columns.items() if len(values)}


def _in_form(columns: Columns, form: str) -> Columns | None:
    """Columns of rows as an objective of that form takes them; None where it cannot."""
    kind = "pairs" if columns.logps.shape[1] == 2 else "single" if columns.labels is None else "unpaired"
    if kind == form:
        return columns
    if kind != "pairs":
        return None
    ref = columns.ref_logps
    if form == "single":
        return Columns(
            columns.logps[:, :1], None if ref is None else ref[:, :1], columns.lengths[:, :1], None, columns.mean_length
        )
    labels = torch.tensor([True, False]).repeat(len(columns.logps))
    flat = [None if x is None else x.reshape(-1, 1) for x in (columns.logps, ref, columns.lengths)]
    logps, ref_logps, lengths = flat
    assert logps is not None and lengths is not None  # only the reference may be absent
    return Columns(logps, ref_logps, lengths, labels, lengths.double().mean().item())
