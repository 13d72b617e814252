"""Where a run is watched beside its own files: wandb, trackio and MLflow, each in a process of its own that reads
metrics.jsonl, so that none of them can stop or slow the training.
"""

from engine.tracking.following import follow
from engine.tracking.libraries import LIBRARIES
from engine.tracking.process import Followers

__all__ = ["LIBRARIES", "Followers", "follow"]
