"""What training takes, worked out before it starts: memory, operations, hours, disk, and the layout that fits."""

from engine.planning import cost, memory, plan
from engine.planning.adapted import Adapted, OnBase, asked_adapter
from engine.planning.cost import DATASHEET, TokenStatistics
from engine.planning.flops import (
    Documents,
    LowRank,
    capped_flops,
    forward_flops,
    kernel_seconds,
    matmul_peak,
    training_flops,
)
from engine.planning.memory import MemoryInputs, n_moments
from engine.planning.plan import (
    NO_ADAPTERS,
    Mode,
    Plan,
    adapters_instead,
    flags,
    plan_run,
    refusal,
    size,
    sizes_apart,
    tried,
    ways,
)

__all__ = [
    "DATASHEET",
    "NO_ADAPTERS",
    "Adapted",
    "Documents",
    "LowRank",
    "MemoryInputs",
    "Mode",
    "OnBase",
    "Plan",
    "TokenStatistics",
    "adapters_instead",
    "asked_adapter",
    "capped_flops",
    "cost",
    "flags",
    "forward_flops",
    "kernel_seconds",
    "matmul_peak",
    "memory",
    "n_moments",
    "plan",
    "plan_run",
    "refusal",
    "size",
    "sizes_apart",
    "training_flops",
    "tried",
    "ways",
]
