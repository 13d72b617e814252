"""Whether a run's disk has room for what it will write."""

from pathlib import Path

from engine.config import CheckpointConfig
from engine.planning import Plan, sizes_apart
from engine.run.metrics_log import say
from engine.step import Steps
from system import InputError, files


def check(
    folder: Path,
    asked: CheckpointConfig,
    plan: Plan,
    steps: Steps,
    *,
    n_done: int,
    n_checkpoints: int,
) -> None:
    """Raises InputError where a checkpoint and the states would not find room on the disk of --out.

    Says so where all that will come would not. folder: the run's. n_done: steps that are done. n_checkpoints:
    folders that are there.
    """
    checkpoint = plan.checkpoint_bytes
    n_folders = asked.n_folders(len(steps), steps.per_epoch)
    n_due = max(asked.n_states(len(steps), steps.per_epoch), asked.stop_after is not None)
    n_states = min(n_due, 1 if n_done else asked.keep_state + 1)  # a new one is whole before the oldest goes
    states = n_states * plan.state_bytes
    states += 0 if n_done else plan.carried_bytes  # in state/model, once
    free = files.free_on(folder)
    if free < checkpoint + states:
        narrower = "save in a narrower dtype (--save-dtype), " if plan.can_save_narrower else ""
        has, takes = sizes_apart(free, checkpoint + states)
        raise InputError(
            f"{folder}: {has} are free, and a checkpoint and its states take {takes}; make room, {narrower}or keep no "
            "states (--state-every 0)"
        )
    n_left = n_folders - n_checkpoints
    if free < n_left * checkpoint + states:
        has, takes = sizes_apart(free, n_left * checkpoint + states)
        say(
            f"{folder}: {has} are free, and {n_left} checkpoints and states will take {takes}: keep fewer "
            "(--keep-checkpoints), or prune them while they are scored"
        )
