"""Where runs that stand side by side run: each on GPUs of its own, or, where there is none, on its share of the cores.

    slots = Slots(at_once=None, gpus=1)
    with slots.take() as environment:      waits for a free one; CUDA_VISIBLE_DEVICES or OMP_NUM_THREADS is set in it

With more runs at once than there are groups of GPUs the groups are shared, as evenly as can be.
"""

import contextlib
import os
import queue
import sys
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

import torch

from system import InputError

Job = TypeVar("Job")
LAUNCHER = Path(__file__).parents[1] / "launch.sh"


class Slots:
    """Places for runs, as many as may run at once."""

    def __init__(self, *, at_once: int | None, gpus: int = 1) -> None:
        """at_once: unset, one for each group of GPUs, or one on the CPU. gpus: of each run.

        Raises InputError where this machine has fewer GPUs than one run takes.
        """
        here = visible_gpus()
        if gpus > 1 and len(here) < gpus:
            found = f"{len(here)} GPUs" if here else "no GPU"
            raise InputError(f"gpus: {gpus} for each run, but this machine has {found}; lower it")
        groups = [here[i : i + gpus] for i in range(0, len(here) - gpus + 1, gpus)]
        self.gpus = gpus
        self.n = at_once or len(groups) or 1
        """How many run at once."""
        threads = str(max(1, (os.cpu_count() or 1) // self.n))
        self._free: queue.SimpleQueue[dict[str, str]] = queue.SimpleQueue()
        for i in range(self.n):
            self._free.put(
                {"CUDA_VISIBLE_DEVICES": ",".join(groups[i % len(groups)])} if groups else {"OMP_NUM_THREADS": threads}
            )

    @classmethod
    def for_small(cls, at_once: int | None = None) -> "Slots":
        """Places for runs that a core is enough for: unset, one for each GPU, or for each core where there is none."""
        return cls(at_once=at_once or (None if visible_gpus() else os.cpu_count()))

    @contextlib.contextmanager
    def take(self) -> Iterator[dict[str, str]]:
        """The environment of a run, once there is a free place; the place is given back when the block ends."""
        where = self._free.get()
        try:
            yield os.environ | where
        finally:
            self._free.put(where)

    @property
    def trainer(self) -> list[str]:
        """The command that trains on what a place has; its flags come behind it."""
        if self.gpus == 1:
            return [sys.executable, "-m", "engine.train"]
        return ["bash", str(LAUNCHER), "train", "--nproc", str(self.gpus)]


def side_by_side(jobs: Iterable[Job], work: Callable[[Job], object], n: int) -> None:
    """Does every job, n at once. Raises what the first that fails raises, once those beside it have ended; no other is
    begun then.
    """
    with ThreadPoolExecutor(n) as pool:
        pending = [pool.submit(work, job) for job in jobs]
        try:
            for one in pending:
                one.result()
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def visible_gpus() -> list[str]:
    """The GPUs that this process may use, as CUDA_VISIBLE_DEVICES names them. They are counted, and not touched."""
    n, named = torch.cuda.device_count(), os.environ.get("CUDA_VISIBLE_DEVICES")
    return [name.strip() for name in named.split(",")][:n] if named else [str(i) for i in range(n)]
