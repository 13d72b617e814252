"""Measures the loop from outside, and TRL beside it: python -m engine.bench, python -m engine.bench_generation."""

from engine.bench.bench import device_name
from engine.bench.generation import main as bench_generation

__all__ = ["bench_generation", "device_name"]
