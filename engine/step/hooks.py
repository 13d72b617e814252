"""What a caller adds to a run, or watches in it, without touching the loop: docs/python.md has an example of each."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from torch import Tensor

from engine.optim import Options

if TYPE_CHECKING:
    from engine.step.loss_inputs import LossInputs
    from engine.step.steps import MicroBatch, Step
    from engine.step.training import Training


def _nothing(*_: object) -> None:
    """What a hook that is not given does."""


@dataclass(frozen=True, kw_only=True)
class Hooks:
    """Functions that the loop calls, each on every rank, in the order of the fields. None of them is needed."""

    parameter_options: Options | None = None
    """Parameter's name -> its own "lr" or "weight_decay" (AdamW's), or {}: parameters with the same options are a group
    of the optimizer. A rate goes up and down over the run as --lr does."""
    begin: "Callable[[Training], None]" = _nothing
    """Once everything is built, with the weights that the run starts from."""
    add_to_loss: "Callable[[Training, MicroBatch, LossInputs], Tensor] | None" = None
    """A term of a micro-batch's loss, a sum over its examples with gradient, []. The step's loss gets the sum of all of
    them over the number of its examples."""
    after_step: "Callable[[Training, Step], None]" = _nothing
    """After the optimizer's step, before anything is measured or saved."""
    save_epoch: "Callable[[Training, Path], None]" = _nothing
    """After an epoch's checkpoint folder was written, which is given."""
    tensors: Callable[[], Mapping[str, Tensor]] = dict
    """What a state keeps beside the run's own tensors, by name. A run that goes on writes into these, so that they have
    to be there, of their shape, when `begin` has returned; every rank gives the same names. A tensor that differs
    between ranks has to be a DTensor, as the parameters of a sharded model are."""
    on_phase: Callable[[int, str], None] = _nothing
    """When a part of a step begins: its number, and "forward", "backward", "gather" (its numbers, from all ranks),
    "gradient", "optimizer" or "done"; between "done" and the next step's "forward" it is measured, saved and packed."""
    after_log: "Callable[[Step, Mapping[str, float]], None]" = _nothing
    """After a step's line of metrics was written, which is given."""


NO_HOOKS = Hooks()
