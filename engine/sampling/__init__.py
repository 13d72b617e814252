"""How answers grow: the choice of a token, and the decoding of many prompts at once."""

from engine.sampling.decoding import Answer, generate
from engine.sampling.sampling import Sampling
from engine.sampling.stops import check_stops, ids_of_stops, says_stop

__all__ = ["Answer", "Sampling", "check_stops", "generate", "ids_of_stops", "says_stop"]
