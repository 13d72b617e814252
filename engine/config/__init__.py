"""What a run is asked for: settings by subject, TRL's names for them, and the host's memory allocator."""

from engine.config import host
from engine.config.adapters import MOST_RANK, AdapterConfig, AdapterSettings, BaseDtype, Whole
from engine.config.learning import (
    BASE,
    LORA_RATE,
    DataConfig,
    ObjectiveConfig,
    OptimizerConfig,
    OptimizerName,
    ReferenceConfig,
    ScheduleConfig,
)
from engine.config.running import (
    CheckpointConfig,
    DistributedConfig,
    MasterWeights,
    MeasuringConfig,
    MemoryConfig,
    Reshard,
    Rounding,
    SaveDtype,
    WatchingConfig,
)
from engine.config.trackers import check_trackers
from engine.config.train_config import ALIASES, FLAGS, TrainConfig, world_size
from engine.config.trl import names as trl_names

__all__ = [
    "ALIASES",
    "BASE",
    "FLAGS",
    "LORA_RATE",
    "MOST_RANK",
    "AdapterConfig",
    "AdapterSettings",
    "BaseDtype",
    "CheckpointConfig",
    "DataConfig",
    "DistributedConfig",
    "MasterWeights",
    "MeasuringConfig",
    "MemoryConfig",
    "ObjectiveConfig",
    "OptimizerConfig",
    "OptimizerName",
    "ReferenceConfig",
    "Reshard",
    "Rounding",
    "SaveDtype",
    "ScheduleConfig",
    "TrainConfig",
    "WatchingConfig",
    "Whole",
    "check_trackers",
    "host",
    "trl_names",
    "world_size",
]
