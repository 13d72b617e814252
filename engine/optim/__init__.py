"""How gradients become steps: clipping, optimizers on float32 masters whole or split in halves, the learning rate of
each step. A new optimizer goes into optimizers.py.
"""

from engine.optim.optimizers import build, clip, state_tensors
from engine.optim.split_master import Masters, SplitRMSprop, put_high

__all__ = ["Masters", "SplitRMSprop", "build", "clip", "put_high", "state_tensors"]
