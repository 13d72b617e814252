"""Things to run and to read: the embedded world, recipes for real runs."""

import runpy
from pathlib import Path

runpy.run_path(str(Path(__file__).parents[1] / "system/neighbours.py"))["refuse"]()
runpy.run_path(str(Path(__file__).parents[1] / "system/malloc.py"))["begin_again"]()
