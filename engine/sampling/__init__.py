"""How answers grow: the choice of a token, and the decoding of many prompts at once."""

from engine.sampling.decoding import Answer, generate
from engine.sampling.sampling import Sampling

__all__ = ["Answer", "Sampling", "generate"]
