"""python -m engine.bench_generation: tokens a second of engine.generate beside transformers' generate."""

from engine.bench import bench_generation
from system import cli

if __name__ == "__main__":
    cli.run(bench_generation)
