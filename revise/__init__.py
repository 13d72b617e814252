"""Preference data from language models over HTTP: CLAIR, judges, stronger-preferred."""

import runpy
from pathlib import Path

runpy.run_path(str(Path(__file__).parents[1] / "system/neighbours.py"))["refuse"]()
