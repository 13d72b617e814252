"""When a run ends before its last step: a signal on any rank, --stop-after, a fault that was kept for the end, or
--early-stop, after which nothing is left to do.
"""

from pathlib import Path
from typing import Any

from engine.config import CheckpointConfig
from engine.distributed import Ranks, Stop
from engine.run.metrics_log import say
from system import InputError, Stopped


class Stopping:
    """Listens to signals from `with` on."""

    def __init__(self, folder: Path, config: CheckpointConfig, n_steps: int, ranks: Ranks) -> None:
        self._folder, self._config, self._n_steps, self._ranks = folder, config, n_steps, ranks
        self.last_step = n_steps
        """The step after which nothing is left to do."""
        self.why = ""
        """Why that is not the schedule's last; empty where it is."""
        self._stop = Stop()
        self._signal = 0
        self.fault: InputError | None = None
        """What ends the run once its step and state are written; the same on every rank."""

    def __enter__(self) -> "Stopping":
        self._stop.__enter__()
        return self

    def __exit__(self, *fault: Any) -> None:
        self._stop.__exit__(*fault)

    def raise_if_stopped(self, n_done: int) -> None:
        """Raises Stopped where a signal, on any rank, ends the run before its first step. Collective."""
        if number := int(self._ranks.all_reduce_max(self._stop.asked())):
            raise Stopped(
                f"{self._folder}: stopped before step {n_done + 1}; start it again with --resume", 128 + number
            )

    def end_early(self, step: int, why: str) -> None:
        """The run is finished after this step. The same on every rank."""
        if step < self._n_steps:
            self.last_step, self.why = step, why

    def must_stop(self, n_done: int) -> bool:
        """Whether a signal, on any rank, --stop-after or a fault ends the run after n_done steps, unfinished.
        Collective.
        """
        self._signal = int(self._ranks.all_reduce_max(self._stop.asked()))
        asked = self._signal > 0 or n_done == self._config.stop_after or self.fault is not None
        return asked and n_done < self.last_step

    def conclude(self, n_done: int, *, keeps_states: bool) -> None:
        """What is said at a run's end: raises the fault that ended it, or Stopped where a signal did."""
        if self.fault is not None:
            raise self.fault
        if n_done == self.last_step:
            if self.why:
                say(f"{self._folder}: ended after step {n_done} of {self._n_steps} ({self.why})")
            return
        if not self._signal:
            say(f"{self._folder}: stopped after step {n_done}, as --stop-after asks; resume with --resume")
            return
        saved = "its state is saved: resume with --resume"
        if not keeps_states:
            saved = "no state is kept where not every rank sees the folder"
        raise Stopped(f"{self._folder}: stopped after step {n_done} of {self._n_steps}; {saved}", 128 + self._signal)
