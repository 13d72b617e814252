"""What a real model does on a GPU: the paper's Figure 4, and the study's runs. Both go on where a call ended."""

import contextlib
import json
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

from examples.studies import GOES_ON
from tests.gpu.slices import Clock, Row

Run = Callable[..., str]
"""Of tests/gpu/checks.py: runs a command of Python's until it ends, or its time does."""
N_HELD_OUT, N_EPOCHS = 100, 18


class Asked(Protocol):
    """What of the configuration is read here."""

    @property
    def logs(self) -> str: ...
    @property
    def records(self) -> str: ...
    @property
    def real_model(self) -> str | None: ...
    @property
    def pairs(self) -> str | None: ...


def figure4(config: Asked, clock: Clock, run: Run) -> list[Row]:
    """Five objectives side by side, as docs/results.md has it. Raises ValueError where there are no pairs."""
    if config.pairs is None:
        raise ValueError("--pairs names no pairs for figure4")
    n = len(Path(config.pairs).read_text(encoding="utf-8").splitlines()) - N_HELD_OUT
    out = Path(config.logs) / "figure4"
    command = ["-m", "examples.real.figure4", config.pairs, "--out", str(out), "--n", str(n), "--heldout"]
    command += [str(N_HELD_OUT), "--epochs", str(N_EPOCHS), "--batch-size", "16", "--max-response-tokens", "512"]
    command += ["--at-once", "5", *_model(config)]
    with contextlib.suppress(subprocess.TimeoutExpired):  # the next call goes on
        run(Path(config.logs) / "figure4.txt", command, limit=clock.left(200))
    run(Path(config.logs) / "figure4-so-far.txt", [*command, "--as-it-stands"], limit=clock.left(25))
    text = (out / "figure4.md").read_text()
    claims = [line for line in text.splitlines() if line.startswith("| ") and line.endswith(("holds |", "hold |"))]
    is_whole = "was stopped after epoch" not in text
    rows = [
        Row("Figure 4: all five objectives to their end", "yes" if is_whole else "the next call goes on", "", is_whole)
    ]
    return rows + [Row(*(cell.strip() for cell in line.strip("| ").split("|"))) for line in claims]


def study(config: Asked, clock: Clock, run: Run) -> list[Row]:
    """As many runs as fit. Holds once none is left."""
    seconds = clock.left(200)
    command = ["-m", "examples.real.study", "--minutes", f"{seconds / 60:.2f}", "--records", config.records]
    command += ["--out", str(Path(config.logs) / "real-study"), *_model(config)]
    before, left = _n_runs(config), "none is left"
    try:
        run(Path(config.logs) / "real-study.txt", command, limit=seconds + 20)
    except subprocess.TimeoutExpired:
        left = "the next call goes on"
    except ValueError as fault:
        if GOES_ON not in str(fault):
            raise
        left = "the next call goes on"
    n = _n_runs(config)
    said = f"{n} on record, {n - before} of them new; {left}"
    return [Row("the real model's study: runs", said, "none is left", left == "none is left")]


def _model(config: Asked) -> list[str]:
    return [] if config.real_model is None else ["--model", config.real_model]


def _n_runs(config: Asked) -> int:
    lines = [line for path in Path(config.records).glob("seed-*.jsonl") for line in path.read_text().splitlines()]
    return sum(json.loads(line)["kind"] == "run" for line in lines)
