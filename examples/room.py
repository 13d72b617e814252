"""Whether the runs of one command fit: memory for those that run at the same time, disk for all.

What each of them takes is its own plan (engine.layout); a run checks the same again when it begins.
"""

import contextlib
import multiprocessing
import signal
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import ParamSpec, TypeVar

import torch

from engine.distributed import free_memory
from engine.inputs import TrainingInputs
from engine.layout import plan_alone, plan_side_by_side
from engine.planning import Plan, memory, size, sizes_apart
from system import InputError, cli
from system.files import free_on
from system.session import end_with_parent

P = ParamSpec("P")
Result = TypeVar("Result")


@dataclass(frozen=True)
class Room:
    """How many runs there are at the same time, and on how many GPUs each."""

    at_once: int
    gpus: int = 1

    def layout(self, inputs: TrainingInputs, n_runs: int) -> Plan:
        """How a run is laid out here. n_runs: all that are to be done.

        Raises InputError where one does not fit, or as many as share a device do not fit beside each other.
        """
        free = free_memory()
        if self.gpus == 1:
            plan = plan_alone(inputs)
        elif inputs.config.memory.master_weights == "split":
            raise InputError(
                f"master_weights split: works with one GPU, and gpus is {self.gpus}; leave one of the two out"
            )
        else:
            plan = plan_side_by_side(inputs, self.gpus, free)
        n_groups = max(1, torch.cuda.device_count() // self.gpus)
        together = -(-min(self.at_once, n_runs) // n_groups)
        needed = together * memory_of(plan)
        if together > 1 and needed > free:
            asked, there = sizes_apart(needed, free)
            raise InputError(
                f"at_once {self.at_once}: {together} such runs that share their memory take {asked}, and {there} are "
                f"free; lower at_once, or give each run its share (gpu_memory: {free // together // 10**7 / 100:g})"
            )
        return plan


def memory_of(plan: Plan) -> int:
    """Bytes that a run takes on each of its devices."""
    return memory.total(plan.memory)


def check_disk(out: Path, needed: int, there: int, *, only_says: bool = False) -> None:
    """Raises InputError where so many bytes have no room on a folder's disk; only_says: says so instead, as of runs
    whose checkpoints are deleted on the way. there: those of them that runs of an earlier start have written.
    """
    free = free_on(out)
    if needed <= free + there:
        return
    said = (
        f"{out}: all runs take {size(needed)} of disk at most, and {size(free)} are free"
        f"{f' beside {size(there)} of theirs' * bool(there)}; make room, or keep fewer checkpoints (keep_checkpoints)"
    )
    if not only_says:
        raise InputError(said)
    cli.notify(said)


def bytes_in(folder: Path) -> int:
    """Bytes of all files in a folder, in which another program may be deleting some."""
    n = 0
    for path in folder.rglob("*"):
        with contextlib.suppress(FileNotFoundError):
            n += path.stat().st_size if path.is_file() else 0
    return n


def looked_at_apart(look: Callable[P, Result], *args: P.args, **kwargs: P.kwargs) -> Result:
    """What `look` gives. Where there is a GPU a process of its own looks: what a plan times there is gone with it, and
    all of the GPU is left to the runs.
    """
    if not torch.cuda.device_count():
        return look(*args, **kwargs)
    fresh = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, fresh, end_with_parent, (signal.SIGKILL,)) as pool:
        return pool.submit(look, *args, **kwargs).result()
