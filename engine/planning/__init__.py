"""What training takes, worked out before it starts: memory, operations, hours, disk, and the layout that fits."""

from engine.planning import cost, memory, plan
from engine.planning.cost import DATASHEET, TokenStatistics
from engine.planning.flops import Documents, capped_flops, forward_flops, kernel_seconds, matmul_peak
from engine.planning.memory import MemoryInputs, n_moments
from engine.planning.plan import Mode, Plan, flags, plan_run, refusal, size, ways

__all__ = [
    "DATASHEET",
    "Documents",
    "MemoryInputs",
    "Mode",
    "Plan",
    "TokenStatistics",
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
    "ways",
]
