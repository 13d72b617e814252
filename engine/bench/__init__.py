"""Measures the loop from outside, and TRL beside it: python -m engine.bench, python -m engine.bench_generation."""

from engine.bench import generation
from engine.bench.bench import device_name
from engine.bench.measure import resident

__all__ = ["device_name", "generation", "resident"]
