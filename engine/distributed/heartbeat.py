"""Who is lost when a collective fails: torch says that a connection closed or a wait took too long, and not whose.

Every rank writes into the run's store where it is. One whose collective fails says so there; whoever has not said so
a few seconds later is the one that the others waited for. Where each rank stood, by its stack, is left in the run's
folder as rank-N.traceback.txt: the lost one's too, where it still answers a signal.
"""

import contextlib
import faulthandler
import os
import re
import signal
import socket
import tempfile
import time
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Protocol

from system import InputError, RunError

GRACE = 5.0
"""Seconds in which ranks that wait for the same one notice it."""
_OF_PEERS = re.compile(r"gloo|nccl|connection (closed|reset|refused)|timed out|broken pipe", re.IGNORECASE)
_OUT_OF_MEMORY = re.compile(r"MemoryError|OutOfMemory|can't allocate memory|out of memory", re.IGNORECASE)


class Store(Protocol):
    """What all ranks can read and write."""

    def set(self, key: str, value: str) -> None:
        """Writes."""
        ...

    def get(self, key: str) -> bytes:
        """Reads; waits where there is nothing yet."""
        ...

    def check(self, keys: list[str]) -> bool:
        """Whether there is something."""
        ...


def is_out_of_memory(fault: Exception) -> bool:
    """Whether it is the memory that ended something."""
    return bool(_OUT_OF_MEMORY.search(f"{type(fault).__name__}: {fault}"))


class Heartbeat:
    """This rank's notes, and what the others' say."""

    def __init__(self, store: Store | None, rank: int, size: int) -> None:
        """store: None where the rank is alone."""
        self._store, self._rank, self._size = store, rank, size
        self._phase, self._since = "before the first step", time.monotonic()
        self.folder: Path | None = None
        """A folder for the traceback of a rank that fails."""
        if store is not None:
            self._stack = tempfile.NamedTemporaryFile("w", prefix=f"rank-{rank}-", suffix=".stack")  # noqa: SIM115
            faulthandler.register(signal.SIGUSR2, self._stack)  # works in a rank that hangs in a call of C, too
            store.set(f"process/{rank}", f"{socket.gethostname()} {os.getpid()} {self._stack.name}")

    def report_phase(self, step: int, phase: str) -> None:
        """This rank is there now."""
        self._phase, self._since = f"step {step}, {phase}", time.monotonic()
        if self._store is not None:
            self._store.set(f"phase/{self._rank}", self._phase)  # does not wait for an answer

    @contextlib.contextmanager
    def watch(self) -> Iterator[None]:
        """Turns what ends this rank, alone or because of another, into one sentence of one rank.

        Raises RunError; only one rank's has `speaks`.
        """
        try:
            yield
        except Exception as fault:
            if isinstance(fault, (InputError, RunError, OSError)):  # it has a sentence of its own
                self._note_failure()
                raise
            if is_out_of_memory(fault):
                raise self._out_of_memory(fault) from None
            if self._store is None:
                raise
            if _OF_PEERS.search(str(fault)) or "Dist" in type(fault).__name__:
                self._keep_traceback(self._rank, traceback.format_exc())
                raise self._lost(self._store) from None
            raise self._failed(fault) from None

    def _note_failure(self) -> None:
        """Tells the others that what they will notice is this rank's, and told by it."""
        if self._store is not None:
            self._store.set(f"failed/{self._rank}", "1")

    def _out_of_memory(self, fault: Exception) -> RunError:
        """What was asked for, and what to lower."""
        self._note_failure()
        wanted = re.search(r"tried to allocate ([\d.]+ \w+)", str(fault), re.IGNORECASE)
        asked = f" when it asked for {wanted[1]}" if wanted else ""
        made = RunError(
            f"rank {self._rank} is out of memory in {self._phase}{asked}; lower --micro-tokens, take more ranks, or "
            "have the reference computed first (--reference precompute)"
        )
        made.speaks = True
        return made

    def _failed(self, fault: Exception) -> RunError:
        """This rank's own fault: it speaks, and its traceback is kept."""
        self._note_failure()
        path = self._keep_traceback(self._rank, "".join(traceback.format_exception(fault)))
        where = f"; its traceback is in {path}" if path else ""
        made = RunError(f"rank {self._rank} failed in {self._phase} ({type(fault).__name__}: {fault}){where}")
        made.speaks = True
        return made

    def _keep_traceback(self, rank: int, text: str) -> Path | None:
        """Where a rank stood, beside the run's metrics; the file, where it could be written."""
        if self.folder is None or not self.folder.is_dir() or not text:
            return None
        path = self.folder / f"rank-{rank}.traceback.txt"
        try:
            path.write_text(text, encoding="utf-8")
        except OSError:
            return None
        return path

    def _lost(self, store: Store) -> RunError:
        """Another's fault: the lowest of those that waited for it speaks."""
        waited = time.monotonic() - self._since
        store.set(f"waited/{self._rank}", "1")
        deadline = time.monotonic() + GRACE
        while True:
            others = [r for r in range(self._size) if not store.check([f"waited/{r}"])]
            own_fault = any(store.check([f"failed/{r}"]) for r in others)
            if own_fault or time.monotonic() > deadline:
                break
            time.sleep(0.1)
        places = [f"rank {r} (last seen in {self._read(store, r)})" for r in others]
        made = RunError(
            f"{' and '.join(places) or 'a connection'} did not answer: killed, out of memory, or hanging; "
            f"the others waited {waited:.0f} s in {self._phase}; resume with --resume"
            if not own_fault
            else "another rank failed"
        )
        made.speaks = not own_fault and self._rank == min(set(range(self._size)) - set(others))
        if not own_fault:
            self._end(store, others)
        return made

    def _end(self, store: Store, ranks: list[int]) -> None:
        """Ends those of the lost ranks that hang on this host: torchrun's signal would not reach one that stands."""
        for rank in ranks:
            if store.check([f"process/{rank}"]):
                host, pid, stack = store.get(f"process/{rank}").decode().split(maxsplit=2)
                if host == socket.gethostname():
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(int(pid), signal.SIGUSR2)
                        time.sleep(0.5)
                        os.kill(int(pid), signal.SIGKILL)
                    with contextlib.suppress(OSError):
                        self._keep_traceback(rank, Path(stack).read_text(encoding="utf-8"))
                        Path(stack).unlink()

    def _read(self, store: Store, rank: int) -> str:
        return store.get(f"phase/{rank}").decode() if store.check([f"phase/{rank}"]) else "nothing"
