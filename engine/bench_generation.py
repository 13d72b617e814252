"""python -m engine.bench_generation: tokens a second of engine.generate beside transformers' generate."""

from engine.bench import generation
from system import cli

if __name__ == "__main__":
    cli.run(generation.main)
