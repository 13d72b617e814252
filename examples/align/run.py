"""A recipe from its file to its report."""

import contextlib
import sys
from collections.abc import Iterator
from pathlib import Path

from examples.align import check, flags, probe, recipe
from examples.align.road import Road
from examples.align.stages import left_of
from examples.children import only_in
from examples.room import Room, looked_at_apart
from examples.slots import Slots


def run(path: Path, out: Path | None = None, *, only_tells: bool = False) -> Path | None:
    """Does what a recipe says, and goes on where it was stopped. The report's path.

    out: another folder than the recipe names. only_tells: print what it takes, ask no server and do no stage; None is
    given then. Raises InputError before anything is spent, RunError where a stage fails, Stopped after a signal.
    """
    return follow(recipe.read(path, None if out is None else str(out)), only_tells=only_tells)


def follow(asked: recipe.Recipe, *, only_tells: bool = False) -> Path | None:
    """The same for a recipe that was made here."""
    with _looked_at(asked, only_tells=only_tells) as (road, found):
        return None if only_tells else road.go(found)


def make_pairs(asked: recipe.Recipe) -> dict[str, Path]:
    """The stages up to the pairs, of the first round. The files of pairs, graded where the recipe grades, by name."""
    with _looked_at(asked, only_pairs=True) as (road, found):
        return road.make_pairs(found)


@contextlib.contextmanager
def _looked_at(
    asked: recipe.Recipe, *, only_tells: bool = False, only_pairs: bool = False
) -> Iterator[tuple[Road, check.Found]]:
    """A recipe of which all was checked and told, and its servers were asked a question unless it only tells."""
    with only_in(asked.out, does="aligns in it") as children:
        slots = Slots(at_once=asked.at_once, gpus=asked.gpus)
        flags.check(asked)
        road = Road(asked, children, slots)
        road.prepare()
        done = road.stages.survey()
        found = looked_at_apart(check.look, asked, Room(slots.n, slots.gpus), done, only_pairs=only_pairs)
        print(check.tell(asked, found), file=sys.stdout if only_tells else sys.stderr, flush=True)
        if not only_tells:
            probe.ask_all(left_of(asked, done), children, asks_model=done.asks_model)
        yield road, found
