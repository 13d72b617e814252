"""The states of a run on disk: what --resume goes on from, bit for bit.

state/step-000012/     a whole state: every tensor in torch.distributed.checkpoint's files, a shard per rank, which any
                       number of ranks can read; run.json, the numbers beside them; manifest.json, size and SHA-256 of
                       every file
state/step-000012.tmp  one that is being written; what was left of one is removed at the next start

A state is copied to the host's memory first and written by a thread while training goes on. Files are synced before
the folder gets its name: what bears a name without .tmp is whole, after a loss of power too.
"""

import io
import json
import pickle
import shutil
import time
import warnings
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import Future
from contextlib import contextmanager
from enum import Enum
from pathlib import Path
from typing import Any, cast

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.filesystem import FileSystem, FileSystemReader, FileSystemWriter
from torch.distributed.checkpoint.metadata import Metadata, StorageMeta
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import async_save

from engine.config import CheckpointConfig
from engine.distributed import Ranks, grace
from engine.run.metrics_log import MetricsLog, say
from engine.step import ReferenceLogps, Step, Training
from system import (
    OLD,
    TEMPORARY,
    InputError,
    RunError,
    cli,
    digests,
    numbered,
    remove_folder,
    remove_leftovers,
    seal,
    sync,
    temporary_of,
    torch_private,
    write_json,
)

MANIFEST, FACTS = "manifest.json", "run.json"
PREFIX = "step-"

State = Mapping[str, Tensor]
"""Tensors by name; of a sharded one, this rank's part."""


class States:
    """The states in a folder, all but the newest --keep-state of which are removed."""

    def __init__(
        self, folder: Path, ranks: Ranks, config: CheckpointConfig, group: dist.ProcessGroup | None = None
    ) -> None:
        """group: for a thread's own collectives, where there are several ranks. See `open`."""
        self._folder, self._ranks, self._config, self._group = folder, ranks, config, group
        self._pending: tuple[int, Future[Any]] | None = None
        self._is_told = False
        self.step = 0
        """The newest step whose state is known to be whole; 0 where there is none."""
        self.facts: dict[str, Any] = {}
        """The numbers in that state."""
        self.is_shared = True
        """Whether every rank sees the folder; no state is saved where not."""

    @classmethod
    def open(cls, folder: Path, ranks: Ranks, config: CheckpointConfig) -> "States":
        """The states in a folder. Removes what was left half written. Collective."""
        made = dist.new_group(backend="gloo") if ranks.size > 1 else None
        warnings.filterwarnings("ignore", message="torch.distributed is disabled")  # one process needs no group
        if ranks.is_rank0:
            remove_leftovers(folder, PREFIX, TEMPORARY, OLD)
        ranks.wait()
        return cls(folder, ranks, config, cast(dist.ProcessGroup | None, made))

    def find_newest(self) -> None:
        """Looks for the newest whole state, for `step` and `facts`. Collective.

        A damaged one is set aside as step-N.damaged, and said so. Raises InputError where all are.
        """
        found: tuple[int, dict[str, Any]] | str | None = None
        if self._ranks.is_rank0:
            found = self._find()
        found = self._ranks.broadcast(found)
        if isinstance(found, str):
            raise InputError(found)
        if found is not None:
            self.step, self.facts = found

    @property
    def steps(self) -> list[int]:
        """Of the states that are there, or are being written: from any of them the run may go on."""
        pending = [] if self._pending is None else [self._pending[0]]
        return [*(step for step, _ in numbered(self._folder, PREFIX)), *pending]

    def read_reference(self, reference: ReferenceLogps) -> str | None:
        """Fills the table as the newest state has it; what was done, None where there is no state. Collective."""
        if not self.step:
            return None
        if reference.is_kept and self._holds(reference.values):
            self.load(self.step, reference.values)
        return f"as in the state of step {self.step}"

    def _holds(self, names: Iterable[str]) -> bool:
        """Whether the newest state has tensors of these names: of KTO's table, release 0.1 kept none."""
        held = _Reader(_path(self._folder, self.step)).read_metadata().state_dict_metadata
        return all(name in held for name in names)

    def resume(self, training: Training) -> None:
        """Brings models, optimizer, schedule, objective, hooks' tensors and random numbers to where the newest state
        has them; nothing to do where there is none. Collective.
        """
        if not self.step:
            return
        self.load(self.step, training.tensors())
        training.schedule.load_state_dict(self.facts["schedule"])
        for group, rate in zip(training.optimizer.param_groups, training.schedule.get_last_lr(), strict=True):
            group["lr"] = rate
        training.objective.state = self.facts["objective"]
        if self.facts["ranks"] == self._ranks.size:
            name = f"random.{self._ranks.rank}"
            random = torch.get_rng_state()
            self.load(self.step, {name: random})
            torch.set_rng_state(random)
        say(f"{self._folder.parent}: resumes after step {self.step}")

    def is_due(self, step: Step, last_step: int) -> bool:
        """Whether --state-every asks for a state after this step; --resume needs none of the run's last."""
        if step.number == last_step:
            return self._config.keep_final_state
        every = self._config.state_every
        return step.ends_epoch if every is None else bool(every) and step.number % every == 0

    def save(self, training: Training, log: MetricsLog) -> None:
        """Saves a state, while training goes on; nothing where hosts do not share the folder. Collective."""
        if not self.is_shared:
            return
        log.sync()
        facts = {
            "step": log.n_done,
            "n_tokens": log.n_tokens,
            "objective": training.objective.state,
            "schedule": training.schedule.state_dict(),
            "ranks": self._ranks.size,
        }
        tensors = training.tensors() | {f"random.{self._ranks.rank}": torch.get_rng_state()}
        tensors |= training.reference.values if training.reference.is_kept else {}
        self.write(log.n_done, tensors, facts)

    def _find(self) -> tuple[int, dict[str, Any]] | str | None:
        states = numbered(self._folder, PREFIX)
        for step, path in reversed(states):
            if (fault := damage(path)) is None:
                return step, self.facts_in(path)
            aside = path.with_name(f"{path.name}.damaged")
            shutil.rmtree(aside, ignore_errors=True)
            path.rename(aside)
            cli.notify(f"{fault}; set aside as {aside.name}")
        if states or any(self._folder.glob("step-*.damaged")):
            return f"{self._folder}: every state is damaged; start again with another --out, or from an epoch folder"
        return None

    def load(self, step: int, tensors: State) -> None:
        """Reads a state's tensors into these, whatever number of ranks wrote it. Collective."""
        self.read(_path(self._folder, step), tensors)

    def read(self, path: Path, tensors: State) -> None:
        """The same of a state anywhere. Collective."""
        reader = _Reader(path)
        reader.read_metadata()  # torch 2.11 would say nothing of why it cannot be read
        try:
            load(
                dict(tensors),
                storage_reader=reader,
                process_group=self._group,
                no_dist=self._group is None,
            )
        except CheckpointException as fault:
            raise InputError(f"{path}: {_cause(fault)}") from None

    @staticmethod
    def names_in(path: Path) -> set[str]:
        """The names of the tensors of a state anywhere."""
        return set(_Reader(path).read_metadata().state_dict_metadata)

    @staticmethod
    def facts_in(path: Path) -> dict[str, Any]:
        """The numbers in a state anywhere."""
        return json.loads((path / FACTS).read_text(encoding="utf-8"))

    def write(self, step: int, tensors: State, facts: Mapping[str, Any]) -> None:
        """Copies the tensors, and writes them while training goes on. Raises RunError where the save before failed.

        Collective; so is `wait`.
        """
        self.wait()
        start = time.monotonic()
        writer = _Writer(_path(self._folder, step), facts, self._config.keep_state)
        found = async_save(dict(tensors), storage_writer=writer, process_group=self._group, no_dist=self._group is None)
        future = cast(Future[Any], found)
        future.add_done_callback(lambda _: self._tell_slow(step, time.monotonic() - start))
        self._pending = step, future

    def _tell_slow(self, step: int, seconds: float) -> None:
        """Warns once where a save takes longer than torchrun gives its ranks between a signal and their end."""
        given = grace()
        if given is not None and seconds > given and self._ranks.is_rank0 and not self._is_told:
            self._is_told = True
            cli.notify(
                f"the state of step {step} took {seconds:.0f} s to write, and torchrun ends its ranks {given:.0f} s "
                "after a signal: give it --shutdown-timeout, or a stopped run resumes from an older state"
            )

    def finish_pending(self) -> None:
        """After a failure: lets what is being written become whole, as far as that does not take long."""
        if self._pending is None:
            return
        (step, future), self._pending = self._pending, None
        try:
            future.result(timeout=10)
        except (Exception, CheckpointException):  # that failure is told, not this one; the latter is a BaseException
            if self._ranks.is_rank0:
                shutil.rmtree(temporary_of(_path(self._folder, step)), ignore_errors=True)

    def wait(self) -> None:
        """Returns when the state that is being written is whole. Raises RunError where it could not be written."""
        if self._pending is None:
            return
        (step, future), self._pending = self._pending, None
        try:
            future.result()
        except (CheckpointException, OSError) as fault:
            temporary = temporary_of(_path(self._folder, step))
            free = shutil.disk_usage(self._folder).free
            if self._ranks.is_rank0:
                shutil.rmtree(temporary, ignore_errors=True)  # the room that it took comes back
            raise RunError(
                f"{temporary}: the state of step {step} could not be written ({_cause(fault)}; {free:,} bytes free); "
                "make room and resume with --resume: the states before it are whole"
            ) from None


def damage(path: Path) -> str | None:
    """What is wrong with a state, named by file; None where it is whole."""
    try:
        manifest = json.loads((path / MANIFEST).read_text(encoding="utf-8"))
        sizes = {str(name): (int(size), str(digest)) for name, (size, digest) in manifest.items()}
    except (OSError, ValueError, TypeError, AttributeError):
        return f"{path / MANIFEST}: missing or damaged"
    files = {p.name for p in path.iterdir()} - {MANIFEST}
    if files != sizes.keys():
        name = min(files ^ sizes.keys())
        return f"{path / name}: {'missing' if name in sizes else 'not of this state'}"
    for name, (size, _) in sizes.items():
        if not (path / name).is_file() or (path / name).stat().st_size != size:
            return f"{path / name}: not the {size:,} bytes that were written"
    for (name, (_, digest)), found in zip(sizes.items(), digests([path / name for name in sizes]), strict=True):
        if found.hex() != digest:
            return f"{path / name}: damaged (its SHA-256 is another)"
    return None


def _path(folder: Path, step: int) -> Path:
    return folder / f"{PREFIX}{step:06d}"


def _cause(fault: BaseException) -> str:
    """What went wrong in whichever rank, in one line."""
    failures = getattr(fault, "failures", {})
    inner = next((error for error, _ in failures.values()), fault)
    return str(getattr(inner, "strerror", None) or inner or type(inner).__name__).splitlines()[0]


class _Writer(FileSystemWriter):
    """Writes a state under its temporary name; when every rank has, the first makes it whole."""

    def __init__(self, path: Path, facts: Mapping[str, Any], keep: int) -> None:
        super().__init__(temporary_of(path), sync_files=False, thread_count=1, overwrite=False)  # _Files sync
        self.fs = _Files()
        self._final, self._facts, self._keep = path, facts, keep

    def storage_meta(self) -> StorageMeta:
        return StorageMeta()  # no path: the reader takes no class but those that describe tensors

    def finish(self, metadata: Metadata, results: Any) -> None:
        super().finish(metadata, results)
        temporary = temporary_of(self._final)
        write_json(temporary / FACTS, self._facts)
        files = sorted(temporary.iterdir())
        sizes = {p.name: (p.stat().st_size, digest.hex()) for p, digest in zip(files, digests(files), strict=True)}
        write_json(temporary / MANIFEST, sizes)
        seal(temporary)
        temporary.rename(self._final)
        sync(self._final.parent)
        for _, old in numbered(self._final.parent, PREFIX)[: -self._keep]:
            remove_folder(old)


class _Reader(FileSystemReader):
    """Reads a state without running what a stranger may have put into its metadata, which is a pickle."""

    def read_metadata(self, *args: Any, **kwargs: Any) -> Metadata:
        with open(Path(self.path) / ".metadata", "rb") as file:
            metadata = _Unpickler(file).load()
        metadata.storage_meta = StorageMeta(load_id=self.load_id)
        return metadata


class _Unpickler(pickle.Unpickler):
    """Knows what describes tensors, and nothing else: entries of raw bytes are pickles of their own."""

    def find_class(self, module_name: str, global_name: str) -> Any:
        if (module_name, global_name) == ("builtins", "getattr"):
            return _member
        known = (
            module_name.startswith("torch.distributed.checkpoint.") and global_name in torch_private.DESCRIBES_STATES
        )
        known = known or (module_name, global_name) in (("torch", "Size"), torch_private.DESCRIBES_LAYOUTS)
        known = known or (module_name == "torch" and isinstance(getattr(torch, global_name, None), torch.dtype))
        known = known or (module_name == "torch" and isinstance(getattr(torch, global_name, None), torch.layout))
        if not known:
            raise InputError(f"its metadata names {module_name}.{global_name}: not a state that this program wrote")
        return super().find_class(module_name, global_name)


def _member(kind: type[Enum], name: str) -> Enum:
    """A member of an enum, which Python 3.11.2 pickles as getattr(kind, name)."""
    if not (isinstance(kind, type) and issubclass(kind, Enum)) or name not in kind.__members__:
        raise InputError(f"its metadata asks for {name} of {kind}: not a state that this program wrote")
    return kind[name]


class _Files(FileSystem):
    """Files that are on the disk once they are closed: torch would sync one before what is buffered is in it."""

    @contextmanager
    def create_stream(self, path: Any, mode: str) -> Iterator[io.IOBase]:
        with open(path, mode, buffering=2**20) as stream:
            yield cast(io.IOBase, stream)
        sync(path)
