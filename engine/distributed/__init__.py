"""The processes of a run: what they tell one another, how a model is sharded over them, how one that is lost is named,
and how a signal ends them all at the same step. Nothing else speaks to other processes but run/states.py.
"""

from engine.distributed.bandwidth import bus_bandwidth
from engine.distributed.heartbeat import is_out_of_memory
from engine.distributed.ranks import Ranks, free_memory
from engine.distributed.stop import Stop, grace

__all__ = ["Ranks", "Stop", "bus_bandwidth", "free_memory", "grace", "is_out_of_memory"]
