"""How gradients become steps: clipping, optimizers on float32 masters whole or split in halves, the learning rate of
each step. A new optimizer goes into optimizers.py.
"""

from engine.optim.groups import Options, describe, largest_share
from engine.optim.optimizers import build, clip, learning_rates, state_tensors
from engine.optim.schedules import schedule
from engine.optim.split_master import SplitMasterWeights, SplitOptimizer, copy_rounded

__all__ = [
    "Options",
    "SplitMasterWeights",
    "SplitOptimizer",
    "build",
    "clip",
    "copy_rounded",
    "describe",
    "largest_share",
    "learning_rates",
    "schedule",
    "state_tensors",
]
