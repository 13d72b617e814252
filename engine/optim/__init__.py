"""How gradients become steps: clipping, optimizers on float32 masters whole or split in halves, the learning rate of
each step. A new optimizer goes into optimizers.py.
"""

from engine.optim.optimizers import build, clip, schedule, state_tensors
from engine.optim.split_master import SplitMasterWeights, SplitRMSprop, copy_rounded

__all__ = ["SplitMasterWeights", "SplitRMSprop", "build", "clip", "copy_rounded", "schedule", "state_tensors"]
