"""metrics.jsonl: a line per step, shown by the progress bar, TensorBoard and other trackers (engine/tracking/) too, and
the clock that times the steps.
"""

import json
import os
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, TextIO

from tqdm import tqdm

from engine.run.tensorboard import Board
from engine.step import Step
from engine.tracking import Followers
from system import cli, naming


def say(sentence: str) -> None:
    """A notice for the user, from the first process, above the progress bar."""
    if os.environ.get("RANK", "0") == "0":
        tqdm.write(cli.printable(sentence), file=sys.stderr)


class MetricsLog:
    """The lines of a run, from `with` on. Rank 0 alone writes and shows them; every rank keeps count."""

    def __init__(
        self, folder: Path, *, n_steps: int, per_epoch: int, n_done: int, n_tokens: int, facts: Mapping[str, Any],
        writes: bool, track: Sequence[str] = ("tensorboard",),
        last_step: Callable[[], int] | None = None,
    ) -> None:  # fmt: skip
        """n_done, n_tokens: of the state that the run goes on from. facts: its whole numbers stand in every line.
        writes: whether this is the rank that does. track: who else is given the lines. last_step: the
        one after which nothing is left to do; unset, the n_steps-th.
        """
        self._path, self._folder, self._writes = folder / "metrics.jsonl", folder, writes
        self._track, self._last_step = track, last_step or (lambda: n_steps)
        self._n_steps, self._per_epoch = n_steps, per_epoch
        self.n_done = n_done
        """Steps that are done: those of the state that the run goes on from, and its own."""
        self.n_tokens = n_tokens
        """Tokens trained on so far: prompts once, responses whole."""
        self.last: dict[str, float] = {}
        """The newest line."""
        self._facts = {f"data/{name}": value for name, value in facts.items() if isinstance(value, int)}
        self._followers: Followers | None = None
        self._stack = ExitStack()
        self._clock = time.perf_counter()
        self.step_seconds = 0.0
        """What the newest step took, with its data and its reference."""

    def __enter__(self) -> "MetricsLog":
        if self._writes:
            if self.n_done:
                self.last = json.loads(self._path.read_bytes().splitlines()[-1])
            self._stack.push(self._end_followers)
            self._lines: TextIO = open(self._path, "a", encoding="utf-8")
            self._stack.callback(self._close)
            others = [name for name in self._track if name not in ("tensorboard", "none")]
            self._followers = Followers(others, self._folder, say)
            self._board = Board(self._folder, self.n_done) if "tensorboard" in self._track else None
            if self._board is not None:
                self._stack.callback(self._board.close)
            # Rate and time left; quiet unless on a terminal.
            self._bar = tqdm(total=self._n_steps, initial=self.n_done, unit="step", disable=None)
            self._stack.callback(self._bar.close)
        return self

    def __exit__(self, *fault: Any) -> None:
        self._stack.__exit__(*fault)

    def _end_followers(self, kind: type[BaseException] | None, *_: Any) -> None:
        if self._followers is not None:
            is_whole = self.n_done == self._last_step()
            self._followers.close("failed" if kind else "finished" if is_whole else "stopped")

    def _close(self) -> None:
        with naming(self._path):  # a line that could not be written is tried again
            self._lines.close()

    def stop_clock(self) -> None:
        """A step's work is done: evaluation and saving do not count into its time."""
        self.step_seconds = time.perf_counter() - self._clock

    def write(self, step: Step, metrics: Mapping[str, float], grad_norm: float) -> None:
        """Writes a step's line: values from before the step, and the learning rates that were used in it."""
        seconds = self.step_seconds
        self.n_tokens += step.n_tokens
        line: dict[str, float] = {"step": step.number, "epoch": step.number / self._per_epoch, **metrics}
        line |= {"grad_norm": grad_norm, "num_tokens": self.n_tokens} | self._facts
        line |= {
            "perf/step_seconds": seconds,
            "perf/pairs_per_second": len(step.batch) / seconds,
            "perf/tokens_per_second": step.n_tokens / seconds,
        }
        self.n_done = step.number
        self._put(line)
        if not self._writes:
            return
        shown = {k: f"{line[k]:.3f}" for k in ("loss", "rewards/chosen", "rewards/rejected") if k in line}
        self._bar.set_postfix(shown, refresh=False)
        self._bar.update()

    def write_start(self, metrics: Mapping[str, float]) -> None:
        """Writes a line of step 0: held-out numbers before the first step."""
        self._put({"step": 0, "epoch": 0.0, **metrics})

    def _put(self, line: dict[str, float]) -> None:
        self.last = line
        self._clock = time.perf_counter()
        if not self._writes:
            return
        with naming(self._path):
            self._lines.write(json.dumps(line) + "\n")
            self._lines.flush()
        if self._board is not None:
            self._board.add(line, int(line["step"]))

    def sync(self) -> None:
        """Has the lines on the disk: a state's own line is there whenever the state is."""
        if self._writes:
            with naming(self._path):
                os.fsync(self._lines.fileno())
