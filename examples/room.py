"""Whether runs that are told together have room: memory for those side by side, disk for all.

What each of them takes is its own plan (engine.layout); a run checks the same again when it begins.
"""

import multiprocessing
import shutil
import signal
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import ParamSpec, TypeVar

import torch

from engine.inputs import TrainingInputs
from engine.layout import plan_alone, plan_side_by_side
from engine.planning import Plan, size
from system import InputError
from system.session import end_with_parent

Told = ParamSpec("Told")
Found = TypeVar("Found")


def memory_of(plan: Plan) -> int:
    """Bytes that a run takes on each of its devices."""
    return sum(plan.facts()["bytes"].values())


class Room:
    """What runs take together, added up as each is looked at."""

    def __init__(self, out: Path, at_once: int, gpus: int) -> None:
        """out: the folder that all of them are in. at_once: how many run at the same time. gpus: of each."""
        self.gpus = gpus
        self._out, self._at_once = out, at_once
        self._disk = self._there = 0

    def layout(self, inputs: TrainingInputs) -> Plan:
        """How a run is laid out here. Raises InputError where it does not fit, or as many as share a device do not fit
        beside each other.
        """
        if self.gpus == 1:
            plan = plan_alone(inputs)
        elif inputs.config.memory.master_weights == "split":
            raise InputError(
                f"master_weights split: works with one GPU, and gpus is {self.gpus}; leave one of the two out"
            )
        else:
            plan = plan_side_by_side(inputs, self.gpus, torch.cuda.mem_get_info(0)[0])
        together = -(-self._at_once // max(1, torch.cuda.device_count() // self.gpus))
        if (needed := together * memory_of(plan)) > plan.budget:
            raise InputError(
                f"at_once {self._at_once}: {together} such runs beside each other take {size(needed)} of memory, and "
                f"{size(plan.budget)} are free; lower at_once, or what a run takes (micro_tokens, gpu_memory)"
            )
        return plan

    def add(self, inputs: TrainingInputs, folders: Sequence[Path]) -> None:
        """Counts runs of the same settings, whose folders are these. Raises InputError as `layout` does."""
        self._disk += len(folders) * sum(self.layout(inputs).disk_bytes(inputs.config))
        self._there += sum(map(bytes_in, folders))

    def check(self) -> None:
        """Raises InputError where the disk has no room for all of them."""
        check_disk(self._out, self._disk, self._there)


def check_disk(out: Path, needed: int, there: int) -> None:
    """Raises InputError where so many bytes have no room on a folder's disk. there: those of them that runs of an
    earlier start have written.
    """
    free = free_on(out)
    if needed > free + there:
        raise InputError(
            f"{out}: all runs take {size(needed)} of disk at most, and {size(free)} are free"
            f"{f' beside {size(there)} of theirs' * bool(there)}; make room, or keep fewer or smaller checkpoints "
            "(keep_checkpoints, save_dtype)"
        )


def free_on(out: Path) -> int:
    """Bytes free on the disk of a folder that may not be there yet."""
    return shutil.disk_usage(next(p for p in [out, *out.absolute().parents] if p.exists())).free


def bytes_in(folder: Path) -> int:
    """Bytes of all files in a folder."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def looked_at_apart(look: Callable[Told, Found], *args: Told.args, **flags: Told.kwargs) -> Found:
    """What `look` gives. Where there is a GPU a process of its own looks: what a plan times there is gone with it, and
    all of the GPU is left to the runs.
    """
    if not torch.cuda.device_count():
        return look(*args, **flags)
    fresh = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, fresh, end_with_parent, (signal.SIGKILL,)) as pool:
        return pool.submit(look, *args, **flags).result()
