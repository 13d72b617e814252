"""What a model has become: measures of checkpoints, and what to train with."""

import runpy
from pathlib import Path

runpy.run_path(str(Path(__file__).parents[1] / "system/neighbours.py"))["refuse"]()
