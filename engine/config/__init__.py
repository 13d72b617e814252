"""What a run is asked for: settings by subject, TRL's names for them, and the host's memory allocator."""

from engine.config import host, trl_names
from engine.config.train_config import Rounding, TrainConfig, packing_of, world_size

__all__ = ["Rounding", "TrainConfig", "host", "packing_of", "trl_names", "world_size"]
