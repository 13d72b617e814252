"""What training takes, worked out before it starts: memory, operations, hours, disk, and the layout that fits."""

from engine.planning import cost, memory, plan
from engine.planning.cost import DATASHEET, TokenStatistics
from engine.planning.flops import forward_flops, kernel_seconds, matmul_peak
from engine.planning.memory import N_STATES, MemoryInputs
from engine.planning.plan import Mode, Plan, flags, plan_run, refusal, size, ways

__all__ = [
    "DATASHEET",
    "N_STATES",
    "MemoryInputs",
    "Mode",
    "Plan",
    "TokenStatistics",
    "cost",
    "flags",
    "forward_flops",
    "kernel_seconds",
    "matmul_peak",
    "memory",
    "plan",
    "plan_run",
    "refusal",
    "size",
    "ways",
]
