"""The trainer, floor by floor: a room stands above all that it imports, and is imported through its face.

    bench/  bench_generation.py                        measures the loop from outside, through its hooks; TRL beside it
    train.py  score.py  generate.py  plan.py  convert.py  merge.py  publish.py    the commands; train.py holds the loop
    layout.py               how a run fits into the memory that is free
    inputs.py               what is known before weights are read: shape, rows, objective, steps
    run/                    what a run leaves and goes on from: folder and lock, states, metrics, model cards
    tracking/               who else watches a run: wandb, trackio, MLflow, each in a process of its own
    step/                   from examples to a loss: batches, loss inputs, objective, reference log-probs, held-out rows
    optim/  sampling/       how gradients become steps; how answers grow
    weights/  distributed/  planning/    checkpoint folders; ranks, sharding, failures, signals; memory, cost, layouts
    model/  config/         blocks, attention, head, fused forward pass; settings by subject, TRL's names

docs/how-it-works.md walks through it as one row does.
"""

import runpy
from pathlib import Path

runpy.run_path(str(Path(__file__).parents[1] / "system/neighbours.py"))["refuse"]()
runpy.run_path(str(Path(__file__).parents[1] / "system/malloc.py"))["begin_again"]()

__version__ = "0.2.0"
