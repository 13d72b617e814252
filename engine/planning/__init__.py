"""What training takes, worked out before it starts: memory, operations, hours, disk, and the layout that fits."""

from engine.planning import cost, memory, plan
from engine.planning.cost import DATASHEET, Load
from engine.planning.flops import forward_flops, kernel_seconds, matmul_peak
from engine.planning.memory import N_STATES, Setting
from engine.planning.plan import Mode, Plan, flags, lay_out, refusal, size, ways

__all__ = [
    "DATASHEET",
    "N_STATES",
    "Load",
    "Mode",
    "Plan",
    "Setting",
    "cost",
    "flags",
    "forward_flops",
    "kernel_seconds",
    "lay_out",
    "matmul_peak",
    "memory",
    "plan",
    "refusal",
    "size",
    "ways",
]
