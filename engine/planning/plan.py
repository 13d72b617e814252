"""How a run is laid out before it starts: what fits into memory, how long it takes, and the flags that would help."""

import contextlib
import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch

from engine.config import TrainConfig
from engine.model import ModelConfig, StoredDtypes, name_of
from engine.planning import cost, memory
from engine.planning.adapted import Adapted, OnBase
from engine.planning.cost import TokenStatistics
from engine.planning.memory import MemoryInputs
from system import InputError

Mode = Literal["none", "fused", "precompute"]
"""Where the reference's log-probs come from (engine/step/reference.py)."""
IN_BFLOAT16 = StoredDtypes(torch.bfloat16)
NO_ADAPTERS = OnBase()
QUANTISED: tuple[dict[str, Any], ...] = ({"base_dtype": "int8"}, {"base_dtype": "nf4"})
# What lets a large model into little memory, what changes the least first.
WAYS: tuple[dict[str, Any], ...] = (
    {"master_weights": "split"},
    {"master_weights": "split", "square_avg": "bfloat16"},
    {"master_weights": "split", "max_grad_norm": 0.0},
    {"master_weights": "split", "square_avg": "bfloat16", "max_grad_norm": 0.0},
)
ADAPTERS: tuple[dict[str, Any], ...] = tuple({"lora_rank": 16} | held for held in ({}, *QUANTISED))
"""What else can be done where all weights do not fit."""


@dataclass(frozen=True, kw_only=True)
class Plan:
    """How a run is laid out."""

    memory: MemoryInputs
    reference: Mode
    statistics: TokenStatistics
    """Of the rows."""
    budget: int
    """Bytes that a rank may take."""
    saves: torch.dtype
    """Of the weights in checkpoint folders."""
    saves_otherwise: StoredDtypes | None = None
    """Where --save-dtype source keeps a folder's several dtypes: these."""

    @property
    def carried_bytes(self) -> int:
        """Of a checkpoint folder's tensors that do not train, and are written as they were read."""
        return self.memory.carried_bytes

    @property
    def fits(self) -> bool:
        """Whether it does."""
        return memory.total(self.memory) <= self.budget

    @property
    def other_dtypes(self) -> Mapping[str, torch.dtype]:
        """Of the tensors that checkpoint folders hold in another dtype, by their names in the folder."""
        return self.saves_otherwise.others if self.saves_otherwise else {}

    @property
    def saved_in(self) -> str:
        """The dtypes of checkpoint folders in words."""
        return str(self.saves_otherwise or name_of(self.saves))

    @property
    def checkpoint_bytes(self) -> int:
        """Of one checkpoint folder: an adapter's has nothing of the base."""
        if self.memory.adapted is not None:
            return cost.adapter_bytes(self.memory)
        extra = self.saves_otherwise.extra_bytes if self.saves_otherwise else 0
        return cost.checkpoint_bytes(self.memory.shape, self.saves) + extra + self.carried_bytes

    @property
    def can_save_narrower(self) -> bool:
        """Whether --save-dtype can make checkpoint folders smaller."""
        return self.saves.itemsize > 2 and self.memory.adapted is None

    @property
    def state_bytes(self) -> int:
        """Of one state."""
        return cost.state_bytes(self.memory)

    def facts(self) -> dict[str, Any]:
        """What was decided, and the bytes that it is expected to take."""
        s = self.memory
        return {
            "master": "split" if s.is_split else "whole",
            "reference": self.reference,
            "micro_tokens": s.micro_tokens,
            "pass_tokens": s.pass_tokens,
            "recompute_blocks": s.n_recomputed,
            "reshard": s.reshards,
            **({} if s.adapted is None else {"shard_size": s.n_shards}),
            "compile": s.is_compiled,
            "save_dtype": self.saved_in,
            "bytes": memory.needs(s),
            "budget": self.budget,
        }

    def hours(self, config: TrainConfig, n_gpus: int, speed: cost.Speed | None = None) -> float:
        """Of the whole run. speed: of a GPU; without it, what this machine's GPU or CPU reaches is timed."""
        s = self.memory
        speed = speed or cost.speed_here(s.device, s.dtype)
        has_reference = self.reference != "none"
        flops = cost.run_flops(s, self.statistics, self.n_epochs(config), has_reference=has_reference)
        if s.device == "cpu":
            return flops / (n_gpus * speed.computing) / 3600
        batch = config.schedule.batch_size
        computing, communicating = cost.step_seconds(s, self.statistics, batch, n_gpus, speed)
        slower = max(computing, communicating) / computing * (cost.IMBALANCE if n_gpus > 1 else 1.0)
        return flops / (n_gpus * speed.computing) * slower / 3600

    def n_epochs(self, config: TrainConfig) -> float:
        """Passes over the rows until the run ends."""
        return config.schedule.n_epochs(self._per_epoch(config))

    def disk_bytes(self, config: TrainConfig, times: float = 1.0) -> tuple[int, int]:
        """(checkpoints that are kept, states with what is carried from the model's folder beside them). times: as in
        `n_folders`.
        """
        states = self.n_states(config, times) * self.state_bytes + self.carried_bytes  # state/model has them too
        return self.n_folders(config, times) * self.checkpoint_bytes, states

    def n_folders(self, config: TrainConfig, times: float = 1.0) -> int:
        """Checkpoint folders that the run leaves, at most. times: how many times as many rows there will be."""
        per_epoch = self._per_epoch(config, times)
        return config.checkpoints.n_folders(config.schedule.n_steps(per_epoch), per_epoch)

    def n_states(self, config: TrainConfig, times: float = 1.0) -> int:
        """States that the run keeps, at most. times: as in `n_folders`."""
        return min(config.checkpoints.keep_state, self._n_saved(config, times))

    def spare_bytes(self, config: TrainConfig, times: float = 1.0) -> int:
        """What saving takes beside `disk_bytes` for a while: a new state is whole before the oldest goes."""
        return self.state_bytes * (self._n_saved(config, times) > config.checkpoints.keep_state)

    def _n_saved(self, config: TrainConfig, times: float) -> int:
        per_epoch = self._per_epoch(config, times)
        return config.checkpoints.n_states(config.schedule.n_steps(per_epoch), per_epoch)

    def _per_epoch(self, config: TrainConfig, times: float = 1.0) -> int:
        return -(-math.ceil(times * self.statistics.n) // config.schedule.batch_size)

    def sentence(self, config: TrainConfig, n_gpus: int, speed: cost.Speed | None = None) -> str:
        """The sum of it. speed: as `hours` takes it."""
        checkpoints, states = self.disk_bytes(config)
        needed = memory.total(self.memory)
        return (
            f"needs {size(needed)} of {size(self.budget)} memory{' a GPU' * (self.memory.device == 'cuda')}, about "
            f"{_time(self.hours(config, n_gpus, speed))}, {size(checkpoints + states)} on disk"
        )


def plan_run(
    config: TrainConfig,
    shape: ModelConfig,
    modes: Sequence[Mode],
    statistics: TokenStatistics,
    *,
    device: str,
    dtype: torch.dtype,
    n_ranks: int,
    budget: int,
    stored: StoredDtypes = IN_BFLOAT16,
    group_share: float = 1.0,
    other_reference: ModelConfig | None = None,
    on_base: OnBase = NO_ADAPTERS,
) -> Plan:
    """The first layout that fits without computing blocks again, else the first that fits, else the smallest.

    What is preferred: float32 masters that are whole; a reference beside the policy; a frozen base on fewer ranks;
    weights that stay gathered. stored: the dtypes of the checkpoint that the run starts from. group_share,
    other_reference: see MemoryInputs. on_base: the adapters of an adapter's run. Raises InputError, of a flag, where
    the shape cannot have the adapter that is asked for.
    """
    moves = config.reference.update != "none"
    adapted = Adapted.of(shape, config.adapters, dtype, on_base, moves=moves) if config.adapters.is_used else None
    fitting: list[Plan] = []
    plan: Plan | None = None
    for is_split, mode, n_shards, gives_back in itertools.product(
        _masters(config, n_ranks, device), modes, _shard_sizes(config, n_ranks), _reshards(config, device)
    ):
        inputs = MemoryInputs(
            shape=shape,
            device=device,
            dtype=torch.bfloat16 if is_split else dtype,
            adapted=adapted,
            n_ranks=n_ranks,
            n_shards=n_shards,
            is_split=is_split,
            square_avg_bytes=2 if is_split and config.memory.square_avg == "bfloat16" else 4,
            optimizer=config.optimizer.name,
            group_share=group_share,
            holds_gradients=not is_split or config.optimizer.max_grad_norm > 0,
            holds_reference=mode == "fused",
            moves_reference=moves,
            other_reference=None if adapted is not None and on_base.shares_base else other_reference,
            reshards=gives_back,
            is_compiled=config.memory.compiles(device),
            n_distributions=statistics.n_distributions,
            most_scores=statistics.most_scores,
            carried_bytes=stored.carried_bytes,
        )
        inputs = memory.fit(
            inputs,
            budget,
            micro_tokens=config.memory.micro_tokens,
            n_recomputed=config.memory.recompute_blocks,
            longest=statistics.longest,
            step_tokens=statistics.step,
        )
        asked = config.checkpoints.save_dtype
        plan = Plan(
            memory=inputs,
            reference=mode,
            statistics=statistics,
            budget=budget,
            saves=torch.float32 if adapted is not None else saved_dtype(asked, inputs.dtype, stored.main),
            saves_otherwise=stored if asked == "source" and stored.others else None,
        )
        fitting += [plan] if plan.fits else []
        if plan.fits and not plan.memory.n_recomputed:
            return plan
    assert plan is not None  # there is one mode at least
    return fitting[0] if fitting else plan


def _masters(config: TrainConfig, n_ranks: int, device: str) -> Sequence[bool]:
    """Whether float32 masters may be split, what is preferred first."""
    if config.memory.master_weights != "auto":
        return (config.memory.master_weights == "split",)
    can_split = n_ranks == 1 and device == "cuda" and not config.adapters.is_used and config.can_split
    return (False, True) if can_split else (False,)


def _reshards(config: TrainConfig, device: str) -> Sequence[bool]:
    """Whether a block's gathered weights may be given back after its forward pass, what is preferred first."""
    if config.distributed.reshard != "auto":
        return (config.distributed.reshard == "yes",)
    return (False,) if device == "cpu" else (False, True)  # there, gathering again costs more than the memory is worth


def saved_dtype(asked: str, computed: torch.dtype, stored: torch.dtype) -> torch.dtype:
    """What --save-dtype comes to, where a run computes in one dtype and starts from a checkpoint stored in another."""
    named = {"auto": computed, "source": stored}
    return named[asked] if asked in named else getattr(torch, asked)


def _shard_sizes(config: TrainConfig, n_ranks: int) -> list[int]:
    """How many ranks may share a copy, what is preferred first: all weights that train lie on all ranks; a pass that
    gathers a frozen base does so for the sake of few gradients, and it lies whole on every rank where it can.
    """
    if config.distributed.shard_size is not None:
        return [config.distributed.shard_size]
    return [n for n in range(1, n_ranks + 1) if n_ranks % n == 0] if config.adapters.is_used else [n_ranks]


def ways(config: TrainConfig, n_ranks: int) -> list[dict[str, Any]]:
    """Changes of a configuration that may let it fit, what changes the least first."""
    if config.adapters.is_used:
        known = [None, *(way["base_dtype"] for way in QUANTISED)]
        held = config.adapters.base_dtype
        return list(QUANTISED[known.index(held) if held in known else 0 :])
    if n_ranks > 1 or not config.can_split:
        return []
    flat = config.flat()
    return [way for way in WAYS if any(flat[name] != value for name, value in way.items())]


def adapters_instead(config: TrainConfig) -> list[dict[str, Any]]:
    """Changes that let an adapter train in the place of all weights, where everything else goes with one."""
    if config.adapters.is_used:
        return []
    try:
        config.with_flags(**ADAPTERS[0])
    except InputError:
        return []
    return list(ADAPTERS)


def tried(
    changes: Sequence[dict[str, Any]], plan_with: Callable[[dict[str, Any]], Plan]
) -> list[tuple[dict[str, Any], Plan]]:
    """Changes of a configuration, and what comes of each; without an adapter that the model cannot have."""
    made = []
    for way in changes:
        with contextlib.suppress(InputError):
            made.append((way, plan_with(way)))
    return made


def flags(way: dict[str, Any]) -> str:
    """A change as it is typed."""
    return " ".join(f"--{name.replace('_', '-')} {value:g}" if isinstance(value, float) else
                    f"--{name.replace('_', '-')} {value}" for name, value in way.items())  # fmt: skip


def refusal(
    found: Plan,
    others: Sequence[tuple[dict[str, Any], Plan]],
    instead: Sequence[tuple[dict[str, Any], Plan]] = (),
) -> str:
    """Why a layout cannot be, and the first change that would let it. others: changes and what comes of them. instead:
    the same of other runs, the first of which that fits is named too.
    """
    whole, free = sizes_apart(memory.total(found.memory), found.budget)
    needed = f"the run needs {whole} of memory, and {free} are free"
    fits = next(((way, plan) for way, plan in instead if plan.fits), None)
    end = "" if fits is None else f", or train an adapter: {_said(*fits)}"
    for way, plan in others:
        if plan.fits:
            return f"{needed}; add {flags(way)}: {sizes_apart(memory.total(plan.memory), found.budget)[0]}{end}"
    least = min(others, key=lambda other: memory.total(other[1].memory), default=None)
    if least is not None and memory.total(least[1].memory) < memory.total(found.memory):
        needed += f" ({sizes_apart(memory.total(least[1].memory), found.budget)[0]} with {flags(least[0])})"
    again = "" if found.memory.n_recomputed else ", recompute blocks (--recompute-blocks)"
    lower = "lower --micro-tokens, --max-prompt-tokens and --max-response-tokens"
    return f"{needed}; {lower}{again}, or take more GPUs{end}"


def _said(way: dict[str, Any], plan: Plan) -> str:
    return f"{flags(way)} ({memory.total(plan.memory) / 1e9:,.1f} GB)"


def size(n_bytes: float) -> str:
    """A number of bytes in GB of 10^9, as it is said."""
    return f"{n_bytes / 1e9:,.0f} GB" if n_bytes >= 1e10 else f"{max(n_bytes / 1e9, 0.1):.1f} GB"


def sizes_apart(a: int, b: int) -> tuple[str, str]:
    """Two numbers of bytes as `size` says them, with as many digits as it takes to tell them apart."""
    said, digits = (size(a), size(b)), 1
    while said[0] == said[1] and a != b and digits < 10:
        said, digits = (f"{a / 1e9:,.{digits}f} GB", f"{b / 1e9:,.{digits}f} GB"), digits + 1
    return said


def _time(hours: float) -> str:
    if hours >= 1:
        return f"{hours:.1f} h" if hours < 100 else f"{hours / 24:.0f} days"
    return f"{max(1, round(60 * hours))} min"
