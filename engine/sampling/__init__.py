"""How answers grow: the choice of a token, and the decoding of many prompts at once."""

from engine.sampling.decoding import Answer, generate
from engine.sampling.partial import Partial, prompt_fields
from engine.sampling.sampling import Sampling
from engine.sampling.stops import check_stops, ids_of_stops, says_stop

__all__ = ["Answer", "Partial", "Sampling", "check_stops", "generate", "ids_of_stops", "prompt_fields", "says_stop"]
