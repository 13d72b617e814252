"""What a run leaves and goes on from: its folder and lock, its states, its lines of metrics, its checkpoint folders. A
new thing that a run writes goes here, in a file of its own.
"""

from engine.run.adapter_card import AdapterCard
from engine.run.adapting import Adapting, open_chat, say_if_far
from engine.run.best import check_name
from engine.run.card import CARD, Card, front_of
from engine.run.continued import Continued
from engine.run.folder import KEPT_MODEL, RunFolder, check_apart, check_folder, day_of, has_split_masters, last_line
from engine.run.identity import DAY, identity
from engine.run.metrics_log import MetricsLog, say
from engine.run.milestones import Milestones
from engine.run.stopping import Stopping

__all__ = [
    "CARD",
    "DAY",
    "KEPT_MODEL",
    "AdapterCard",
    "Adapting",
    "Card",
    "Continued",
    "MetricsLog",
    "Milestones",
    "RunFolder",
    "Stopping",
    "check_apart",
    "check_folder",
    "check_name",
    "day_of",
    "front_of",
    "has_split_masters",
    "identity",
    "last_line",
    "open_chat",
    "say",
    "say_if_far",
]
