"""An objective's trial before weights are read: on every row, and on random log-probs of a few of them.

What a slip in a user's file would do to a run is found here: losses without gradient, a statistic of the examples that
happen to be in a pass, a metric that keeps the graph alive.
"""

# n examples, K responses of each, N predicted tokens of all of these together

import inspect
import math
import traceback
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from data.rows import Example
from engine.model import STATISTICS
from engine.step.loss_inputs import LossInputs, sums_of
from engine.step.objective import Objective, Term, check_shape
from losses import Loss, LossError, Result
from system import InputError, list_faults

N_ROWS = 8  # on random log-probs
N_TOGETHER = 256  # rows of which an objective is given all tokens at once
CLOSE = 1e-6  # of losses of the same rows in other company; a mean over the company moves them by far more
MEND = "check its formula, also for large log-ratios"
NUMBERS = {  # what a row has to have for each need
    "scores": 'a score of each response ("chosen_score" and "rejected_score", "scores", or "score")',
    "own_scores": 'a score of the model\'s own answer ("own_score", or --own-score rejected)',
    "values": '"value", the score that the policy gets on the prompt',
}
TOKEN_WEIGHTS = 'a weight of each token ("chosen_token_weights" and "rejected_token_weights" beside the ids)'


class Slip(LossError):
    """What no row is to blame for."""


def check_objective(objective: Objective, examples: Sequence[Example]) -> None:
    """Raises InputError, naming the row, where one lacks what the objective needs or says what it refuses, and for an
    objective that cannot be trained on: see `try_term`.
    """
    _check_numbers(objective, examples)
    later: LossError | None = None
    for term in objective.terms:
        try:
            try_term(objective, term, examples[:N_ROWS])
        except Slip as found:
            raise InputError(f"--loss: {found}") from None
        except LossError as found:  # which may be of one row
            later = later or found
    size = N_TOGETHER if objective.token_values else len(examples)
    fault = next(
        (found for i in range(0, len(examples), size) if (found := _fault(objective, examples[i : i + size]))), None
    )
    if fault is not None:
        alone = [f"{e.location}: {found}" for e in examples if (found := _fault(objective, [e])) is not None]
        if 0 < len(alone) < len(examples):
            raise list_faults(alone[:10], len(examples), mend="fix or delete them", n_faults=len(alone))
        raise InputError(f"--loss: {fault}")
    if later is not None:
        raise InputError(f"--loss: {later}")


def _check_numbers(objective: Objective, examples: Sequence[Example]) -> None:
    asked = [(name, objective.name, said) for name, said in NUMBERS.items() if name in objective.needs]
    asked += [(f, t.loss.name, f'a finite number under "{f}"') for t in objective.terms for f in t.loss.fields]
    needs_weights = "token_weights" in objective.needs
    for e in examples if asked or needs_weights else ():
        known = e.ratings.numbers()
        lacks = [(who, said) for name, who, said in asked if name not in known]
        lacks += [(objective.name, TOKEN_WEIGHTS)] if needs_weights and e.token_weights is None else []
        for who, said in lacks:
            raise InputError(f"{e.location}: {who} needs {said}; add it, or take another --loss")


def _fault(objective: Objective, examples: Sequence[Example]) -> LossError | None:
    """What the objective refuses of these examples, where policy and reference still agree."""
    try:
        result = objective(trial_inputs(objective, examples, apart=0.0))
    except LossError as fault:
        return fault
    if not result.losses.isfinite().all():
        return LossError(
            f"the loss of {objective.name} is not finite before the first step; look at its hyperparameters"
        )
    return None


def trial_inputs(objective: Objective, examples: Sequence[Example], *, apart: float = 0.3) -> LossInputs:
    """Log-probs and values of tokens that are made up, seeded, with a gradient into each of the policy's. apart: nats
    by which a token's log-prob under the reference differs.
    """
    lengths = torch.tensor([e.lengths for e in examples])
    generator = torch.Generator().manual_seed(0)

    def drawn(mean: float, spread: float, shape: torch.Size | int) -> Tensor:
        return (mean + spread * torch.randn(shape, dtype=torch.float64, generator=generator)).requires_grad_()

    if not objective.token_values:  # a few numbers, however long the responses are
        logps = (lengths * drawn(-2.0, 0.3, lengths.shape)).detach().requires_grad_()
        ref_logps = (logps + drawn(0.0, apart, lengths.shape)).detach() if objective.has_reference else None
        return LossInputs.of(examples, logps, ref_logps)
    n = int(lengths.sum())
    tokens = {"logps": drawn(-2.0, 0.7, n)}
    tokens["ref_logps"] = (tokens["logps"] + drawn(0.0, apart, n)).detach()
    for name in objective.token_values:
        if name not in tokens:
            tokens[name] = drawn(-1.0 if name == "log_sum_squares" else 1.0, 0.2, n)
            tokens[name].requires_grad_(name in STATISTICS)
    logps, ref_logps = (sums_of(tokens[name], lengths) for name in ("logps", "ref_logps"))
    given = {name: tokens[name] for name in objective.token_values}
    return LossInputs.of(examples, logps, ref_logps if objective.has_reference else None, tokens=given)


def try_term(objective: Objective, term: Term, examples: Sequence[Example]) -> None:
    """Raises LossError where what an objective gives on random log-probs is no Result of losses [n] with finite
    gradients and metrics that are scalars without one; or where the losses of all rows together are not those of the
    rows in two parts or one by one, and it does not take the whole step.
    """
    name, whole = term.loss.name, trial_inputs(objective, examples)
    if objective.needs_mismatched:  # of a step, whose they are; an anchor of another height than the rows' own
        others = [e.answered_by(other) for e, other in zip(examples, (*examples[1:], examples[0]), strict=True)]
        whole = whole.with_mismatched(trial_inputs(objective, others).detached())
    result = _check_result(term, _call(objective, term, whole), len(examples))
    leaves = [x for x in (whole.logps, *whole.tokens.values()) if x.requires_grad]
    slopes = torch.autograd.grad(result.losses.sum(), leaves, allow_unused=True)
    if not all(slope.isfinite().all() for slope in slopes if slope is not None):
        raise LossError(f"{name}: its gradient is not finite on random log-probs; {MEND}")
    if term.loss.whole_step:
        return
    half = len(examples) // 2
    for parts in ([slice(0, half), slice(half, None)], [slice(i, i + 1) for i in range(len(examples))]):
        rows = [part for part in parts if examples[part]]
        apart = [_call(objective, term, _of_rows(whole, examples, part)) for part in rows]
        of_parts = [_as_result(term, x, len(examples[part])).losses for x, part in zip(apart, rows, strict=True)]
        furthest = (torch.cat(of_parts) - result.losses).abs().max().item()
        if not furthest <= CLOSE * max(1.0, result.losses.abs().max().item()):
            raise LossError(
                f"{name}: a row's loss changes by up to {furthest:.2g} when other rows share its pass; compute it from "
                "that row alone, or register the objective with whole_step=True"
            )


def _of_rows(inputs: LossInputs, examples: Sequence[Example], rows: slice) -> LossInputs:
    """The same for some of the examples."""
    sizes = [sum(e.lengths) for e in examples]
    start, stop, _ = rows.indices(len(examples))
    of_rows = slice(sum(sizes[:start]), sum(sizes[:stop]))
    made = LossInputs.of(
        examples[rows],
        inputs.logps[rows],
        None if inputs.ref_logps is None else inputs.ref_logps[rows],
        mean_lengths=inputs.mean_lengths,
        tokens={name: x[of_rows] for name, x in inputs.tokens.items()},
    )
    return made.with_mismatched(inputs.mismatched)


def _call(objective: Objective, term: Term, inputs: LossInputs) -> Any:
    try:
        return objective.result(term, inputs)
    except LossError:
        raise
    except Exception as fault:
        raise _slip(term.loss, fault) from fault


def _slip(loss: Loss, fault: Exception) -> Slip:
    """What a function raised, and where: a user's file is theirs to mend."""
    frames = traceback.extract_tb(fault.__traceback__)
    code = getattr(inspect.unwrap(loss.function), "__code__", None)
    own = [f for f in frames if code is not None and f.filename == code.co_filename]
    frame = (own or frames)[-1]  # not torch's, which it called
    where = f"{frame.filename}:{frame.lineno}"
    return Slip(f"{loss.name} raised {type(fault).__name__}: {fault} ({where}); mend the function")


def _as_result(term: Term, given: Any, n: int) -> Result:
    """Raises Slip where what a function gave for n examples is no Result with losses of each."""
    name = term.loss.name
    if not isinstance(given, Result):
        what = "nothing" if given is None else f"a {type(given).__name__}"
        raise Slip(f"{name} gave {what}; return losses.Result(losses, chosen_rewards, rejected_rewards)")
    if not isinstance(given.losses, Tensor):
        raise Slip(f"{name} gave losses that are a {type(given.losses).__name__}; give a tensor, one for each")
    try:
        check_shape(term.loss, given, n)
    except LossError as fault:
        raise Slip(str(fault)) from None
    return given


def _check_result(term: Term, given: Any, n: int) -> Result:
    """Raises Slip where what a function gave for n examples is not what it has to give."""
    name, result = term.loss.name, _as_result(term, given, n)
    if not result.losses.requires_grad:
        raise Slip(f"{name}: its losses have no gradient; compute them from logps without detach() or no_grad()")
    if not result.losses.isfinite().all():
        raise LossError(f"{name}: its losses are not finite on random log-probs; {MEND}")
    for what, rewards in (("chosen_rewards", result.chosen_rewards), ("rejected_rewards", result.rejected_rewards)):
        if not isinstance(rewards, Tensor) or rewards.ndim != 1:
            raise Slip(f"{name}: its {what} are no tensor of one number for each response; give [n]")
    if not isinstance(result.metrics, Mapping):
        raise Slip(f"{name}: its metrics are a {type(result.metrics).__name__}; give a dict of scalars")
    for metric, value in result.metrics.items():
        if isinstance(value, Tensor) and value.requires_grad:
            raise Slip(f"{name}: its metric {metric!r} has a gradient; detach() it, it is for the log")
        if not isinstance(value, (int, float)) and (not isinstance(value, Tensor) or value.numel() != 1):
            raise Slip(f"{name}: its metric {metric!r} is no scalar; give its mean, or leave it out")
    state = result.state or {}
    if not all(isinstance(value, (int, float)) and math.isfinite(value) for value in state.values()):
        raise Slip(f"{name}: its state has to be a dict of finite numbers")
    return result
