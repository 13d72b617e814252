"""When a file for TRL measures, saves and publishes, what it keeps, and where a run is watched."""

from engine.config.trackers import not_tracked, tracked
from engine.config.trl.draft import Draft, as_truth, shown
from engine.config.trl.rows import is_evaluated


def translate_keeping(draft: Draft) -> None:
    """--eval-every, --save-every, --keep-checkpoints, --keep-best and --track."""
    _measuring(draft)
    _saving(draft)
    _best(draft)
    _watching(draft)
    if draft.truth("push_to_hub"):
        draft.leave("push_to_hub", "nothing is uploaded here; python -m engine.publish RUN/EPOCH --repo ORG/NAME does")


def _measuring(draft: Draft) -> None:
    strategy, name = draft.take("eval_strategy", "evaluation_strategy"), "eval_strategy"
    name = name if draft.has(name) else "evaluation_strategy"
    steps = draft.take("eval_steps")
    if strategy == "steps" and is_evaluated(draft):
        every = draft.look("logging_steps") or "10" if steps is None else steps
        said = f"{draft.named(name)} and eval_steps {shown(every)}"
        draft.put("eval_every", str(every), said)
    elif strategy not in (None, "steps", "epoch") and as_truth(strategy) is not False:
        draft.refuse(name, "is not supported here; use one of no, steps, epoch")


def _saving(draft: Draft) -> None:
    strategy, steps = draft.take("save_strategy"), draft.take("save_steps")
    if (total := draft.take("save_total_limit")) is not None:
        draft.put("keep_checkpoints", total, draft.named("save_total_limit"))
    if strategy is not None and as_truth(strategy) is False:
        draft.leave("save_strategy", "a folder is written after every epoch here; --keep-checkpoints 1 keeps the last")
    elif strategy == "best":
        _keep_best(draft, "save_strategy")
    elif strategy not in (None, "steps", "epoch"):
        draft.refuse("save_strategy", "is not supported here; use one of no, steps, epoch, best")
    elif strategy == "steps" or steps is not None:
        every = "500" if steps is None else str(steps)
        given = ["save_strategy: steps"] * (strategy is not None) + [f"save_steps: {every}"] * (steps is not None)
        draft.put("save_every", every, " and ".join(given).replace(" and save_steps:", " and save_steps"))


def _best(draft: Draft) -> None:
    if draft.truth("load_best_model_at_end"):
        _keep_best(draft, "load_best_model_at_end")
    draft.take("metric_for_best_model", "greater_is_better")  # of weight beside that alone


def _keep_best(draft: Draft, name: str) -> None:
    """--keep-best, whose direction follows from the metric's kind, as there where it is not named."""
    metric = str(draft.take("metric_for_best_model") or "eval_loss")
    metric = metric if metric.startswith("eval_") else f"eval_{metric}"
    is_greater = draft.truth("greater_is_better")
    if is_greater is not None and is_greater == metric.endswith("loss"):
        draft.refuse("greater_is_better", f"is not the direction in which --keep-best {metric} improves; remove it")
    draft.put("keep_best", metric, draft.named(name))


def _watching(draft: Draft) -> None:
    given = draft.take("report_to")
    if given is None:
        return
    draft.said += not_tracked(given)
    if found := tracked(given):
        draft.put("track", found, draft.named("report_to"))
