"""A run's folder: what was asked for, a line per step, a checkpoint per epoch.

config.yaml         every setting, resolved, and the facts found (rows, what was cut)
first_example.txt   the first row of the run as the trainer sees it
metrics.jsonl       a line per optimizer step
epoch-01/ ...       Hugging Face checkpoint folders
state/              what --resume needs (engine/run/states.py)
run.lock            held while a process writes here
events.out...       the metrics for TensorBoard
"""

import json
import os
import shutil
import stat
import sys
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import yaml
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler
from tqdm import tqdm

from data.text import Chat
from engine import optim, weights
from engine.config import TrainConfig
from engine.distributed import Ranks, Stop, grace
from engine.model import FusedForward, Llama, name_of
from engine.planning import N_STATES, cost
from engine.run.folder import RunFolder
from engine.step import LossInputs, Objective, ReferenceLogps, Step, Steps
from engine.weights import Cast, ShardAccess
from losses import Result
from system import (
    OLD,
    TEMPORARY,
    InputError,
    RunError,
    Stopped,
    cli,
    naming,
    point,
    remove_folder,
    remove_leftovers,
    write_text,
)

if TYPE_CHECKING:
    from engine.run.states import States


def check_folder(folder: Path, *, resumes: bool = False) -> None:
    """Raises InputError where the folder holds a run already, unless it is gone on with, or cannot be one."""
    try:
        is_file = not stat.S_ISDIR(folder.stat().st_mode)
    except FileNotFoundError:
        is_file = os.path.lexists(folder)  # a link to nowhere
    except OSError as fault:
        raise InputError(f"{folder}: {fault.strerror}; give another --out") from None
    if is_file:
        raise InputError(f"{folder}: not a folder; --out has to be one")
    if RunFolder(folder).holds_run() and not resumes:
        raise InputError(f"{folder}: holds a run already; go on with --resume, give another --out, or remove it")
    nearest = next(p for p in [folder, *folder.absolute().parents] if p.exists())
    if not _is_writable(nearest):
        raise InputError(f"{folder}: {nearest} cannot be written to; give another --out")


def _is_writable(folder: Path) -> bool:
    probe = folder / ".engine-probe.tmp"
    try:
        probe.touch()
        probe.unlink(missing_ok=True)  # another rank may have been here
    except OSError:
        return False
    return True


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


class Run:
    """Everything a run writes and shows. Rank 0 alone writes and speaks; every rank calls what is called collective."""

    def __init__(self, config: TrainConfig, steps: Steps, objective: Objective, ranks: Ranks) -> None:
        self._config, self.steps, self._objective, self._ranks = config, steps, objective, ranks
        self.folder = Path(config.out)
        self.place = RunFolder(self.folder)
        self.n_done = 0
        """Steps that are done: those of the state that the run goes on from, and its own."""
        self._state: dict[str, Any] = {}
        self._states: States | None = None
        self._keeps_states = True
        self._stop = Stop()
        self._stack = ExitStack()
        self._is_held = False
        self.n_tokens = 0
        """Tokens trained on so far: prompts once, responses whole."""
        self.last: dict[str, float] = {}
        """The newest line of metrics."""
        self._facts: dict[str, int] = {}
        self._pending: dict[str, float] = {}
        self.fault: InputError | None = None
        """What ends the run once its step and state are written; the same on every rank."""
        self._clock = time.perf_counter()
        self.step_seconds = 0.0
        """What the newest step took, with its data and its reference."""

    def __enter__(self) -> "Run":
        self._stack.enter_context(self._stop)
        self._ranks.heartbeat.log = self.folder
        return self

    def __exit__(self, *fault: Any) -> None:
        if self._states is not None:
            self._states.leave()
        self._stack.__exit__(*fault)

    def find_state(self, identity: Callable[[], dict[str, Any]]) -> bool:
        """Finds the state to go on from, where the folder holds a run; whether that run is finished. Collective.

        Raises InputError where it is another run than this one.
        """
        if not self._config.resumes or not self._ranks.on_rank0(self.place.holds_run):
            return False  # a run that began here since the flags were read is found by begin
        self._ranks.on_rank0(self._hold)
        self._ranks.on_rank0(lambda: self.place.compare(identity()))
        if self._ranks.on_rank0(self.place.is_finished):
            return True
        self._states = self._open_states()
        if (found := self._states.newest()) is not None:
            self.n_done, self._state = found
        self.n_tokens = self._state.get("n_tokens", 0)
        return False

    def _hold(self) -> None:
        if not self._is_held:
            self.place.states.mkdir(parents=True, exist_ok=True)
            self._stack.enter_context(self.place.lock(takes_over=self._config.take_over))
            self._is_held = True

    def begin(
        self, facts: dict[str, Any], identity: Callable[[], dict[str, Any]], policy: Llama, saves: torch.dtype
    ) -> None:
        """Makes the folder, or brings it back to the step that the run goes on from. Collective.

        saves: the dtype of its checkpoint folders. Raises InputError where a checkpoint and a state would not find room
        on its disk, or states are asked for and hosts do not share it.
        """
        self._ranks.on_rank0(lambda: self._check_room(policy, saves))
        self._ranks.on_rank0(self._hold)
        self._keeps_states = self._ranks.all_see(self.place.states)
        if not self._keeps_states and (self._config.state_every != 0 or self._config.stop_after is not None):
            raise InputError(
                f"{self.folder}: not every rank sees this folder, and a state of several hosts needs one that all see; "
                "name a shared --out, or do without states (--state-every 0, and no --stop-after)"
            )
        self._facts = {name: value for name, value in facts.items() if isinstance(value, int)}
        self._ranks.on_rank0(lambda: self._begin(facts, identity, saves))
        self._states = self._states or self._open_states()
        if not self._keeps_states:
            self.say(f"{self.folder}: not every rank sees this folder: a run that is stopped keeps no state")
        elif (seconds := grace()) is not None:
            self.say(
                f"SIGTERM and Ctrl-C save a state; torchrun gives {seconds:.0f} s for it, or what its "
                "--shutdown-timeout says"
            )

    def _open_states(self) -> "States":
        from engine.run.states import States  # brings a second of imports that --help does without

        return States(self.place.states, self._ranks, self._config.keep_state)

    def _check_room(self, policy: Llama, saves: torch.dtype) -> None:
        c, n = self._config, policy.config.n_parameters
        checkpoint = cost.checkpoint_bytes(policy.config, saves)
        n_steps, n_epochs = len(self.steps), -(-len(self.steps) // self.steps.per_epoch)
        n_due = n_epochs - 1 if c.state_every is None else (n_steps - 1) // c.state_every if c.state_every else 0
        n_due = max(n_due, c.stop_after is not None)
        n_states = min(n_due, 1 if self.n_done else c.keep_state + 1)  # a new one is whole before the oldest goes
        states = n_states * n * 4 * (1 + N_STATES[c.optimizer])
        nearest = next(p for p in [self.folder, *self.folder.absolute().parents] if p.exists())
        free = shutil.disk_usage(nearest).free
        if free < checkpoint + states:
            narrower = "write narrower folders (--save-dtype), " if saves.itemsize > 2 else ""
            raise InputError(
                f"{self.folder}: {free:,} bytes are free, and a checkpoint and its states take "
                f"{checkpoint + states:,}; make room, {narrower}or keep no states (--state-every 0)"
            )
        n_left = min(c.keep or n_epochs, n_epochs) - len(self.place.epochs())
        if free < n_left * checkpoint + states:
            self.say(
                f"{self.folder}: {free:,} bytes are free, and {n_left} checkpoints and states will take "
                f"{n_left * checkpoint + states:,}: keep fewer (--keep), or prune them while they are scored"
            )

    def _begin(self, facts: dict[str, Any], identity: Callable[[], dict[str, Any]], saves: torch.dtype) -> None:
        check_folder(self.folder, resumes=self._config.resumes)  # another run may have been faster
        if not self.place.holds_run():
            self.place.begin(identity())
        remove_leftovers(self.folder, "epoch-", TEMPORARY, OLD)
        self.last = self.place.cut_metrics(self.n_done)
        resolved = asdict(self._config) | {"dtype": name_of(self._ranks.dtype), cli.FACTS: facts}
        if self._config.save_dtype == "auto":
            resolved["save_dtype"] = name_of(saves)
        for name in ("config", "hyperparameters", "beta", "resume"):
            del resolved[name]
        resolved |= self._objective.settings
        write_text(self.folder / "config.yaml", yaml.safe_dump(resolved, sort_keys=False, allow_unicode=True))
        lines = open(self.folder / "metrics.jsonl", "a", encoding="utf-8")  # noqa: SIM115 (closed with the stack)
        self._lines = self._stack.enter_context(lines)
        self._board = Board(self.folder, self.n_done)
        self._stack.callback(self._board.close)
        # Rate and time left; quiet unless on a terminal.
        self._bar = tqdm(total=len(self.steps), initial=self.n_done, unit="step", disable=None)
        self._stack.callback(self._bar.close)

    def restore_table(self, table: ReferenceLogps) -> str | None:
        """The reference's log-probs as the state has them; what was done, None where there is no state. Collective."""
        if not self.n_done or self._states is None:
            return None
        if table.is_kept:
            self._states.load(self.n_done, {"ref_logps": table.values})
        return f"as in the state of step {self.n_done}"

    def restore(self, walk: FusedForward, optimizer: Optimizer, schedule: LRScheduler, table: ReferenceLogps) -> None:
        """Brings everything to where the state has it; nothing to do where there is none. Collective."""
        if not self.n_done or self._states is None:
            return
        self._states.load(self.n_done, self._tensors(walk, optimizer, table))
        schedule.load_state_dict(self._state["schedule"])
        for group, rate in zip(optimizer.param_groups, schedule.get_last_lr(), strict=True):
            group["lr"] = rate
        self._objective.state = self._state["objective"]
        if self._state["ranks"] == self._ranks.size:
            name = f"random.{self._ranks.rank}"
            random = torch.get_rng_state()
            self._states.load(self.n_done, {name: random})
            torch.set_rng_state(random)
        self.say(f"{self.folder}: goes on after step {self.n_done}")

    def _tensors(self, walk: FusedForward, optimizer: Optimizer, table: ReferenceLogps) -> dict[str, Tensor]:
        """What a state holds of the models and the optimizer."""
        self._ranks.reshard(walk)
        named = list(walk.policy.named_parameters())
        made = {f"policy.{name}": parameter.detach() for name, parameter in named}
        made |= {f"optimizer.{name}": value for name, value in optim.state_tensors(optimizer, named).items()}
        if table.moves and walk.reference is not None:
            made |= {f"reference.{name}": p.detach() for name, p in walk.reference.named_parameters()}
        return made

    def must_stop(self) -> bool:
        """Whether a signal, on any rank, --stop-after or a fault ends the run here. Collective, once per step."""
        self._signal = int(self._ranks.all_reduce_max(self._stop.asked()))
        asked = self._signal > 0 or self.n_done == self._config.stop_after or self.fault is not None
        return asked and self.n_done < len(self.steps)

    def raise_if_stopped(self) -> None:
        """Raises Stopped where a signal, on any rank, ends the run before its first step. Collective."""
        if number := int(self._ranks.all_reduce_max(self._stop.asked())):
            raise Stopped(
                f"{self.folder}: stopped before step {self.n_done + 1}; start it again with --resume", 128 + number
            )

    def state_due(self, step: Step) -> bool:
        """Whether --state-every asks for a state after this step; the last one needs none."""
        every = self._config.state_every
        due = step.ends_epoch if every is None else bool(every) and step.number % every == 0
        return due and step.number < len(self.steps)

    def save_state(
        self, walk: FusedForward, optimizer: Optimizer, schedule: LRScheduler, table: ReferenceLogps
    ) -> None:
        """Saves a state, while training goes on; nothing where hosts do not share the folder. Collective."""
        assert self._states is not None  # made by begin
        if not self._keeps_states:
            return
        if self._ranks.is_rank0:
            point("fsync", self.folder / "metrics.jsonl")
            os.fsync(self._lines.fileno())  # a state's own line is there whenever the state is
        facts = {
            "step": self.n_done,
            "n_tokens": self.n_tokens,
            "objective": self._objective.state,
            "schedule": schedule.state_dict(),
            "ranks": self._ranks.size,
        }
        tensors = self._tensors(walk, optimizer, table) | {f"random.{self._ranks.rank}": torch.get_rng_state()}
        tensors |= {"ref_logps": table.values} if table.is_kept else {}
        self._states.save(self.n_done, tensors, facts)

    def end(self) -> None:
        """Waits for what is still being written. Notes that all is done, or raises Stopped where a signal ended it, or
        the fault that did. Collective.
        """
        assert self._states is not None  # made by begin
        self._states.wait()
        if self.n_done == len(self.steps):
            self._ranks.on_rank0(lambda: self.place.finish(self.n_done))
        if self.fault is not None:
            raise self.fault
        if self.n_done == len(self.steps):
            return
        if self._signal:
            saved = "its state is saved: go on with --resume"
            if not self._keeps_states:
                saved = "no state is kept where not every rank sees the folder"
            raise Stopped(
                f"{self.folder}: stopped after step {self.n_done} of {len(self.steps)}; {saved}", 128 + self._signal
            )
        else:
            self.say(f"{self.folder}: stopped after step {self.n_done}, as --stop-after asks; go on with --resume")

    def check_finite(
        self, step: Step, columns: LossInputs, result: Result, grad_norm: float, *, is_before_step: bool
    ) -> None:
        """Raises RunError, on every rank, where a loss or the gradient is not finite.

        is_before_step: whether the weights are still those of the step before; False where the optimizer steps inside
        the backward pass.
        """
        bad = (~result.losses.isfinite()) | (~columns.logps.isfinite().all(dim=1))
        if not bad.any() and grad_norm == grad_norm and abs(grad_norm) != float("inf"):
            return
        what = "the loss of" if bad.any() else f"the gradient ({grad_norm}) of a step with"
        places = [e.place for e, is_bad in zip(step.examples, bad.tolist(), strict=True) if is_bad or not bad.any()]
        more = f" and {len(places) - 10} more" if len(places) > 10 else ""
        weights_are = (
            f"the weights are as step {step.number - 1} left them"
            if is_before_step
            else "the weights in memory are lost; states and checkpoints are whole"
        )
        raise RunError(
            f"step {step.number}: {what} {', '.join(places[:10])}{more} is not finite; {weights_are}; look at these "
            "rows, or lower --lr"
        )

    def add(self, metrics: dict[str, float]) -> None:
        """More for the line of the present step."""
        self._pending |= metrics

    def log(self, step: Step, metrics: dict[str, float], *, learning_rate: float, grad_norm: float) -> None:
        """Writes a step's line: values from before the step, and the learning rate that was used in it."""
        seconds = self.step_seconds
        self.n_tokens += step.n_tokens
        line = {"step": step.number, "epoch": step.number / self.steps.per_epoch}
        line |= (
            metrics
            | self._pending
            | {"learning_rate": learning_rate, "grad_norm": grad_norm, "num_tokens": self.n_tokens}
        )
        line |= {f"data/{name}": value for name, value in self._facts.items()}
        line |= {
            "perf/step_seconds": seconds,
            "perf/pairs_per_second": step.n_examples / seconds,
            "perf/tokens_per_second": step.n_tokens / seconds,
        }
        self._pending = {}
        self.last, self.n_done = line, step.number
        self._clock = time.perf_counter()
        if not self._ranks.is_rank0:
            return
        point("write", self.folder / "metrics.jsonl")
        with naming(self.folder / "metrics.jsonl"):
            self._lines.write(json.dumps(line) + "\n")
            self._lines.flush()
        self._board.add(line, step.number)
        shown = {k: f"{line[k]:.3f}" for k in ("loss", "rewards/chosen", "rewards/rejected") if k in line}
        self._bar.set_postfix(shown, refresh=False)
        self._bar.update()

    def stop_clock(self) -> None:
        """A step's work is done: evaluation and saving do not count into its time."""
        self.step_seconds = time.perf_counter() - self._clock

    def save_epoch(
        self, step: Step, policy: Llama, stop_ids: tuple[int, ...], chat: Chat | None, parts: ShardAccess, cast: Cast
    ) -> Path:
        """Writes the epoch's checkpoint folder, and removes the oldest beyond --keep. Collective."""
        folder = self.folder / f"epoch-{step.epoch:02d}"
        beside = chat.files if chat else {}
        replaces = self._config.resumes
        weights.save(policy, folder, cast=cast, stop_ids=stop_ids, beside=beside, parts=parts, replaces=replaces)
        if self._ranks.is_rank0 and self._config.keep:
            for old in self.place.epochs()[: -self._config.keep]:
                remove_folder(old)
        self._ranks.wait()
        return folder

    def write(self, name: str, text: str) -> None:
        """A text file into the run's folder."""
        if self._ranks.is_rank0:
            write_text(self.folder / name, text)

    def say(self, sentence: str) -> None:
        """A notice for the user."""
        if self._ranks.is_rank0:
            tqdm.write(cli.printable(sentence), file=sys.stderr)
