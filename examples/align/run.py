"""A recipe from its file to its report."""

import multiprocessing
import signal
import sys
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import torch

from examples.align import check, flags, probe, recipe
from examples.align.check import Found
from examples.align.road import Road
from examples.align.stages import Survey, left_of
from examples.children import only_in
from examples.slots import Slots
from system.session import end_with_parent


def run(path: Path, out: Path | None = None, *, only_tells: bool = False) -> Path | None:
    """Does what a recipe says, and goes on where it was stopped. The report's path.

    out: another folder than the recipe names. only_tells: print what it takes, ask no server and do no stage; None is
    given then. Raises InputError before anything is spent, RunError where a stage fails, Stopped after a signal.
    """
    return follow(recipe.read(path, None if out is None else str(out)), only_tells=only_tells)


def follow(asked: recipe.Recipe, *, only_tells: bool = False) -> Path | None:
    """The same for a recipe that was made here."""
    with only_in(asked.out, does="aligns in it") as children:
        slots = Slots(at_once=asked.at_once, gpus=asked.gpus)
        flags.check(asked)
        road = Road(asked, children, slots)
        road.prepare()
        done = road.stages.survey()
        found = look_apart(asked, slots.gpus, done)
        print(check.tell(asked, found), file=sys.stdout if only_tells else sys.stderr, flush=True)
        if only_tells:
            return None
        probe.ask_all(left_of(asked, done), children, asks_model=done.asks_model)
        return road.go(found)


def look_apart(asked: recipe.Recipe, gpus: int, done: Survey) -> Found:
    """What check.look says. Where there is a GPU a process of its own looks: what a plan times there is gone with it,
    and all of the GPU is left to the runs.
    """
    if not torch.cuda.device_count():
        return check.look(asked, gpus, done)
    fresh = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, fresh, end_with_parent, (signal.SIGKILL,)) as pool:
        return pool.submit(check.look, asked, gpus, done).result()
