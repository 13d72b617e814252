"""python -m engine.bench: how fast the real training path is here (engine/bench/bench.py)."""

from engine.bench.bench import main
from system import cli

if __name__ == "__main__":
    cli.run(main)
