"""What a run leaves and goes on from: its folder and lock, its states, its lines of metrics, its checkpoint folders. A
new thing that a run writes goes here, in a file of its own.
"""

from engine.run.epochs import save_epoch
from engine.run.folder import RunFolder, check_apart, check_folder, day_of, epochs_of, has_split_masters, last_line
from engine.run.identity import DAY, identity
from engine.run.metrics_log import MetricsLog, say
from engine.run.stopping import Stopping

__all__ = [
    "DAY",
    "MetricsLog",
    "RunFolder",
    "Stopping",
    "check_apart",
    "check_folder",
    "day_of",
    "epochs_of",
    "has_split_masters",
    "identity",
    "last_line",
    "save_epoch",
    "say",
]
