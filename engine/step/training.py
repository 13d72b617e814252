"""What the steps of a run work on (models, reference log-probs, optimizer, learning rate), and the hooks on them."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from engine import optim, weights
from engine.distributed import Ranks
from engine.model import FusedForward, Transformer, adapters
from engine.optim import Options, SplitMasterWeights
from engine.planning import Plan
from engine.step.loss_inputs import LossInputs
from engine.step.objective import Objective
from engine.step.reference import ReferenceLogps
from engine.step.steps import MicroBatch, MicroBatching, Step
from engine.weights import Cast, ShardAccess


def _nothing(*_: object) -> None:
    """What a hook that is not given does."""


@dataclass(frozen=True, kw_only=True)
class Hooks:
    """Functions that the loop calls, each on every rank. None of them is needed.

    What a caller adds to a run, or watches in it, without touching the loop: docs/python.md has an example of each.
    """

    parameter_options: Options | None = None
    """Parameter's name -> its own "lr" or "weight_decay" (AdamW's and Muon's), or {}: parameters with the same options
    are a group of the optimizer. A rate goes up and down over the run as --lr does."""
    begin: "Callable[[Training], None]" = _nothing
    """Once everything is built, with the weights that the run starts from."""
    add_to_loss: "Callable[[Training, MicroBatch, LossInputs], Tensor] | None" = None
    """A term of a micro-batch's loss, a sum over its examples with gradient, []. The step's loss gets the sum of all of
    them over the number of its examples."""
    after_step: "Callable[[Training, Step], None]" = _nothing
    """After the optimizer's step, before anything is measured or saved."""
    save_epoch: "Callable[[Training, Path], None]" = _nothing
    """After a checkpoint folder was written, which is given: an epoch's, or one inside an epoch."""
    tensors: Callable[[], Mapping[str, Tensor]] = dict
    """What a state keeps beside the run's own tensors, by name. A run that goes on writes into these, so that they have
    to be there, of their shape, when `begin` has returned; every rank gives the same names. A tensor that differs
    between ranks has to be a DTensor, as the parameters of a sharded model are."""
    on_phase: Callable[[int, str], None] = _nothing
    """When a part of a step begins: its number, and "forward", "backward", "gather" (its numbers, from all ranks),
    "gradient", "optimizer" or "done"; between "done" and the next step's "forward" it is measured, saved and packed."""
    after_log: Callable[[Step, Mapping[str, float]], None] = _nothing
    """After a step's line of metrics was written, which is given."""


NO_HOOKS = Hooks()


@dataclass(kw_only=True)
class Training:
    """Everything that a step works on, as it lies on this rank."""

    ranks: Ranks
    objective: Objective
    plan: Plan
    model: FusedForward
    """The policy, and the reference while it is needed."""
    masters: SplitMasterWeights | None
    """The other halves of the policy's weights, where masters are split."""
    reference: ReferenceLogps
    optimizer: Optimizer
    schedule: LRScheduler
    micro_batching: MicroBatching
    hooks: Hooks = NO_HOOKS
    stop_ids: tuple[int, ...] = ()
    """Every id that ends an answer, for the folders that are written."""
    beside: Mapping[str, str] | None = None
    """Text files that the folders need and the checkpoint lacks, by name."""
    card: Callable[[str, Step, Mapping[str, float], torch.dtype], str] | None = None
    """Gives the model card of a run's folder, README.md: of its name, the step, what was measured of held-out rows at
    that step, and the dtype of its weights."""

    save_adapter: Callable[[str | Path, Mapping[str, Tensor] | None, str | None, bool], None] | None = None
    """Writes an adapter's folder, where that trains; takes what `save` does."""

    @property
    def policy(self) -> Transformer:
        """The model that is trained."""
        return self.model.policy

    @property
    def access(self) -> ShardAccess:
        """Who holds which rows of the policy's float32 masters."""
        return self.masters or self.ranks

    @property
    def learning_rates(self) -> dict[str, float]:
        """Those of the step that comes: "learning_rate", and of further groups "learning_rate/group_2" ..."""
        first, *others = optim.learning_rates(self.optimizer)
        return {"learning_rate": first} | {f"learning_rate/group_{i}": rate for i, rate in enumerate(others, start=2)}

    def master_weights(self) -> dict[str, Tensor]:
        """The policy's float32 weights by name, as this rank holds them: DTensors where they are sharded.

        Not to be written into: where masters are split these are copies.
        """
        self.ranks.reshard(self.model)
        masters = self.masters
        named = self.policy.trained()
        return {name: p.detach() if masters is None else masters.full_tensor(p) for name, p in named}

    def save(self, folder: str | Path, held: Mapping[str, Tensor] | None = None, *, cast: Cast | None = None,
             replaces: bool = True, card: str | None = None) -> None:  # fmt: skip
        """Writes a checkpoint folder as the run's are: of the policy, or of other weights. Collective.

        held: weights by the policy's names, shaped and sharded as `master_weights` gives them. cast: another dtype or
        rounding than the run's folders have. replaces: whether a folder that is there is replaced. card: its
        README.md. Raises InputError where it is there and is not, and where a number is beyond the dtype's range.
        """
        if self.save_adapter is not None:
            self.save_adapter(folder, held, card, replaces)
            return
        access = self.access if held is None else _Held(self.ranks, self.policy, held)
        weights.save(
            self.policy,
            folder,
            cast=cast or Cast(dtype=self.plan.saves, others=self.plan.other_dtypes),
            stop_ids=self.stop_ids,
            beside={**(self.beside or {}), **({} if card is None else {"README.md": card})},
            parts=access,
            replaces=replaces,
        )

    def clip(self, max_norm: float) -> float:
        """Scales the gradient to a global norm of at most max_norm (0: as it is); gives the norm before. Collective."""
        return optim.clip(self.optimizer, self.ranks, max_norm)

    def update(self) -> None:
        """The optimizer's step and the schedule's; drops the gradient."""
        self.optimizer.step()
        self.schedule.step()
        self.optimizer.zero_grad()

    def tensors(self) -> dict[str, Tensor]:
        """What a state holds of models, optimizer and hooks, by name; a run that goes on writes into these."""
        self.ranks.reshard(self.model)
        named = list(self.policy.trained())
        made = {f"policy.{name}": parameter.detach() for name, parameter in named}
        made |= {f"optimizer.{name}": value for name, value in optim.state_tensors(self.optimizer, named).items()}
        if self.reference.moves and self.model.reference is not None:
            reference = self.model.reference
            own = adapters.own_parameters(reference) if reference.shares_base else dict(reference.named_parameters())
            made |= {f"reference.{name}": p.detach() for name, p in own.items()}
        return made | {f"hooks.{name}": value for name, value in self.hooks.tensors().items()}


class _Held:
    """Other weights than the parameters' own, lying as these do."""

    def __init__(self, ranks: Ranks, policy: torch.nn.Module, held: Mapping[str, Tensor]) -> None:
        self._ranks = ranks
        self._held: dict[Tensor, Tensor] = {p: held[name] for name, p in policy.named_parameters()}
        self.is_rank0, self.holds_first_copy = ranks.is_rank0, ranks.holds_first_copy
        self.all_see, self.wait = ranks.all_see, ranks.wait

    def local(self, parameter: Tensor) -> tuple[Tensor, int]:
        """The rows that are held here, and the first one's number."""
        return self._ranks.local(self._held[parameter])

    def full_tensor(self, parameter: Tensor) -> Tensor:
        """Gathered from all ranks. Collective."""
        return self._ranks.full_tensor(self._held[parameter])
