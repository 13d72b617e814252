"""The metrics for TensorBoard."""

import threading
from collections.abc import Mapping
from pathlib import Path

from system import cli


class Board:
    """The metrics for TensorBoard: a convenience, without which a run goes on."""

    def __init__(self, folder: Path, n_done: int) -> None:
        from torch.utils.tensorboard import SummaryWriter  # slow to import, and for one rank only

        self._folder = folder
        self._hook = threading.excepthook
        threading.excepthook = self._hear
        self._writer: SummaryWriter | None = SummaryWriter(str(folder), purge_step=n_done + 1 if n_done else None)

    def _hear(self, failure: threading.ExceptHookArgs) -> None:
        """TensorBoard writes in a thread of its own, whose errors come back with the next line: once is enough."""
        if not (isinstance(failure.exc_value, OSError) and "tensorboard" in type(failure.thread).__module__):
            self._hook(failure)

    def add(self, line: Mapping[str, float], step: int) -> None:
        """A step's line."""
        if self._writer is not None:
            try:
                for name, value in line.items():
                    self._writer.add_scalar(name, value, step)
            except OSError as fault:
                self._give_up(fault)

    def close(self) -> None:
        """Writes what is left."""
        threading.excepthook = self._hook
        if self._writer is not None:
            try:
                self._writer.close()
            except OSError as fault:
                self._give_up(fault)

    def _give_up(self, fault: OSError) -> None:
        cli.notify(f"{self._folder}: no more lines for TensorBoard ({fault.strerror}); metrics.jsonl has them")
        self._writer = None
