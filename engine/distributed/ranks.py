"""The processes of a run: their group, what they add up and tell one another, and when their shards are gathered.

One process on the CPU in float32, with split masters or with an adapter, is plain PyTorch: nothing is wrapped and no
process group is made. Where it computes in bf16 it casts copies of its float32 masters (engine/distributed/copies.py).
Everything else is FSDP2 (engine/distributed/fsdp.py): float32 master shards, compute in --dtype, gradients summed in
float32; so is one process whose memory has no room for these copies.
"""

import atexit
import os
import secrets
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.rendezvous import rendezvous

from engine.config import world_size
from engine.distributed.copies import ComputeCopies
from engine.distributed.heartbeat import Heartbeat
from engine.model import FusedForward, Transformer
from system import InputError, launcher, torch_private
from system.session import end_with_parent

if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh

Value = TypeVar("Value")

LATE = 10.0  # seconds after which it is said that other ranks are waited for
LOOK = 5.0  # seconds in which a network's file system shows what another host has made
# Lengths differ from pass to pass: without it the allocator is left with pieces that nothing fits.
os.environ.setdefault("PYTORCH_CUDA_ALLOC_CONF", "expandable_segments:True")


class Ranks:
    """The processes of a run, and this one's place among them."""

    def __init__(
        self,
        *,
        dtype: torch.dtype | None = None,
        timeout: float = 600.0,
        shard_size: int | None = None,
        splits_masters: bool = False,
        has_adapter: bool = False,
        gpu_memory: float | None = None,
    ) -> None:
        """See `join`, by which they are made: here nothing is communicated yet."""
        self._timeout, self._gpu_memory = timeout, gpu_memory
        self.rank = int(os.environ.get("RANK", "0"))
        self.size = world_size()
        has_cuda = torch.cuda.is_available()
        self.device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0"))) if has_cuda else torch.device("cpu")
        self.dtype = dtype or (torch.bfloat16 if has_cuda or splits_masters else torch.float32)
        self.shard_size = shard_size or self.size
        if self.size % self.shard_size:
            raise InputError(
                f"--shard-size: {self.size} ranks cannot form groups of {shard_size}; give a divisor of {self.size}"
            )
        self.splits_masters = splits_masters
        self.is_sharded = not splits_masters and self.size > 1
        """Whether parameters are DTensors; of one process, once models are placed that have no room for copies."""
        self._casts = not splits_masters and not has_adapter and self.dtype != torch.float32
        self._copies: list[ComputeCopies] = []
        self.has_adapter = has_adapter
        self._reshards = False
        self.heartbeat = Heartbeat(None, self.rank, self.size)

    @classmethod
    def join(
        cls,
        *,
        dtype: torch.dtype | None = None,
        timeout: float = 600.0,
        shard_size: int | None = None,
        splits_masters: bool = False,
        has_adapter: bool = False,
        gpu_memory: float | None = None,
    ) -> "Ranks":
        """Joins the ranks that torchrun started, or is alone. Collective.

        dtype: of compute; bf16 on CUDA, else float32. timeout: seconds that a collective waits. shard_size: ranks that
        share one copy of the weights; all where it is None. splits_masters: nothing is wrapped, the weights are bf16
        (engine/optim/split_master.py). has_adapter: whether the policy is a frozen base, with an adapter as a rule: one
        process wraps nothing then. gpu_memory: bytes that the allocator may take. Raises InputError where copies do
        not come out even.
        """
        ranks = cls(
            dtype=dtype,
            timeout=timeout,
            shard_size=shard_size,
            splits_masters=splits_masters,
            has_adapter=has_adapter,
            gpu_memory=gpu_memory,
        )
        ranks._take_device()
        ranks._meet()
        return ranks

    def _take_device(self) -> None:
        if self.device.type != "cuda":
            return
        torch.cuda.set_device(self.device)
        if self._gpu_memory is not None:
            whole = torch.cuda.get_device_properties(self.device).total_memory
            torch.cuda.set_per_process_memory_fraction(min(1.0, self._gpu_memory / whole), self.device)

    def _meet(self) -> None:
        """Makes the process group, and the notes that ranks leave for one another."""
        if self.size > 1:
            self._make_group()
        launcher.meeting.is_over = True
        if self.size > 1:
            self.heartbeat = Heartbeat(torch_private.default_store(), self.rank, self.size)

    def _make_group(self) -> None:
        if dist.is_initialized():  # one group a process: a second meeting would read the first's addresses
            return
        backend = "cpu:gloo,cuda:nccl" if self.device.type == "cuda" else "gloo"
        if self.size > 1:
            _die_with_parent()
            with self._awaiting():
                self._meet_others(backend)
        else:  # alone: no address to meet at
            store = dist.HashStore()  # pyright: ignore[reportPrivateImportUsage]  # its documentation has it
            dist.init_process_group(backend, store=store, rank=0, world_size=1)
        atexit.register(dist.destroy_process_group)

    @contextmanager
    def _awaiting(self) -> Iterator[None]:
        """Says what is waited for where the other ranks are late. Raises InputError where they do not come."""
        notice = threading.Timer(
            LATE, lambda: print(f"waiting for the other ranks: {launcher.shown()}", file=sys.stderr)
        )
        notice.daemon = True
        notice.start()
        try:
            yield
        except dist.DistError as fault:  # pyright: ignore[reportPrivateImportUsage]  # its documentation has it
            said = str(fault).splitlines()[0]
            raise InputError(
                f"{launcher.shown()}: the other ranks cannot be reached ({said}); start all of them, or, if these "
                f"variables are left over from a launcher, unset {' '.join(launcher.VARIABLES)}"
            ) from None
        finally:
            notice.cancel()

    def _meet_others(self, backend: str) -> None:
        """Makes the process group of several ranks.

        Where torchrun starts the ranks of one host again, its store still holds the addresses of those that died: each
        attempt has keys of its own. Several hosts count their attempts apart, and so share the plain ones.
        """
        timeout = timedelta(seconds=self._timeout)
        attempt = launcher.n_restarts()
        if "TORCHELASTIC_RESTART_COUNT" not in os.environ or int(os.environ.get("LOCAL_WORLD_SIZE", "0")) != self.size:
            dist.init_process_group(backend, timeout=timeout)
            return
        store, rank, size = next(rendezvous("env://", timeout=timeout))
        store.set_timeout(timeout)
        own = dist.PrefixStore(f"attempt {attempt}", store)  # pyright: ignore[reportPrivateImportUsage]  # documented
        dist.init_process_group(backend, store=own, rank=rank, world_size=size, timeout=timeout)

    def share(self, shard_size: int) -> None:
        """Says how many ranks share one copy of the weights, where that was left open: before models are placed."""
        assert "mesh" not in self.__dict__ or shard_size == self.shard_size
        self.shard_size = shard_size

    @property
    def is_rank0(self) -> bool:
        """Whether this is rank 0, which writes and speaks."""
        return self.rank == 0

    def place(self, fused: FusedForward, *, reshards: bool | None = None) -> FusedForward:
        """Gives models on the meta device their memory: whole here, or a shard on every rank. Collective.

        reshards: whether a block's gathered weights are given back after its forward pass; None: on a GPU. One process
        that does not has no need to gather: it casts copies.
        """
        self._reshards = self.device.type == "cuda" if reshards is None else reshards
        if self._casts and self.size == 1 and self._reshards and not self.is_sharded:
            self._make_group()
            self.is_sharded = True
        if self.is_sharded:
            from engine.distributed import fsdp

            fsdp.shard(fused, self.mesh, self.dtype, reshards=self._reshards)
        if self.splits_masters:
            fused.policy.to(self.dtype)
        fused.to_empty(device=self.device)
        if self._casts and not self.is_sharded:
            self._copies.append(ComputeCopies(fused, self.dtype))
        return fused

    @cached_property
    def mesh(self) -> "DeviceMesh":
        """How the ranks lie. Collective."""
        from engine.distributed import fsdp

        return fsdp.mesh_of(self.device, self.size, self.shard_size)

    def local(self, parameter: Tensor) -> tuple[Tensor, int]:
        """The rows of a parameter that this rank holds, and the first one's number."""
        if not self.is_sharded:
            return parameter, 0
        from engine.distributed import fsdp

        return fsdp.local(parameter)

    @property
    def holds_first_copy(self) -> bool:
        """Whether this rank's shards are the ones to write: of several copies the first one's."""
        return self.rank < self.shard_size

    def all_see(self, folder: Path) -> bool:
        """Whether a folder of the first rank's is the same one for every rank, and not another disk's. Collective.

        A file that nobody has looked for before is put into it: a network's file system may take seconds to show a new
        folder, and another host may have left one of that name.
        """
        if self.size == 1:
            return True
        mark = folder / self.broadcast(f".seen-{secrets.token_hex(8)}")
        if self.is_rank0:
            mark.touch()
        self.wait()
        deadline = time.monotonic() + min(LOOK, self._timeout / 2)  # the others wait meanwhile
        while not (sees := mark.exists()) and time.monotonic() < deadline:
            time.sleep(0.1)
        everybody = self.all_reduce_max(not sees) == 0
        if self.is_rank0:
            mark.unlink()
        return everybody

    def full_tensor(self, parameter: Tensor) -> Tensor:
        """A parameter gathered from all ranks. Collective."""
        if not self.is_sharded:
            return parameter
        from engine.distributed import fsdp

        return fsdp.full_tensor(parameter)

    def all_reduce_sum(self, values: Tensor) -> Tensor:
        """The sum of a CPU tensor over all ranks, the same on each. Collective."""
        if self.size > 1:
            dist.all_reduce(values)
        return values

    def all_reduce_max(self, value: float) -> float:
        """The largest of all ranks' values. Collective."""
        found = torch.tensor(float(value), dtype=torch.float64)
        if self.size > 1:
            dist.all_reduce(found, dist.ReduceOp.MAX)
        return found.item()

    def broadcast(self, value: Value) -> Value:
        """The first rank's value, on every rank. Collective."""
        held = [value]
        if self.size > 1:
            dist.broadcast_object_list(held, src=0)
        return held[0]

    def on_rank0(self, act: Callable[[], Value]) -> Value:
        """What the first rank found, on every rank; so is its InputError. Collective."""
        held: list[Value] = []
        fault = ""
        if self.is_rank0:
            try:
                held.append(act())
            except InputError as found:
                fault = str(found)
        held, fault = self.broadcast((held, fault))
        if fault:
            raise InputError(fault)
        return held[0]

    @contextmanager
    def together(self) -> Iterator[None]:
        """Inside, each rank does its own part; where any raises an InputError, all raise the first's. Collective."""
        fault = ""
        try:
            yield
        except InputError as found:
            fault = str(found)
        faults = [fault]
        if self.size > 1:
            faults *= self.size
            dist.all_gather_object(faults, fault)
        if any(faults):
            raise InputError(next(filter(None, faults)))

    def wait(self) -> None:
        """Returns when every rank has come here. Collective."""
        if self.size > 1:
            dist.barrier()

    def grad_norm(self, parameters: Iterable[nn.Parameter]) -> Tensor:
        """The global norm of the gradients, [] float32: the shards' squares summed over all ranks. Collective."""
        return self.full_tensor(torch.nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None]))

    def set_gradient_sync(self, fused: FusedForward, is_last: bool) -> None:
        """Whether the backward pass that comes sums its gradient over ranks: in float32 the last of a step alone does.

        The passes before it add up in this rank's memory and keep the weights gathered. In bf16 every pass sums:
        adding up there would round, but for an adapter, whose gradients are float32. Its base is given back where
        memory is needed.
        """
        if self.size > 1 and (self.dtype == torch.float32 or self.has_adapter):
            from engine.distributed import fsdp

            for unit in fsdp.units(fused.policy):
                unit.set_requires_gradient_sync(is_last, recurse=False)
                unit.set_reshard_after_backward(is_last or (self.has_adapter and self._reshards), recurse=False)

    def take_gradients(self) -> None:
        """After a backward pass: what its gradients are is with the masters, where that is not done already."""
        for copies in self._copies:
            copies.take_gradients()

    def reshard(self, model: nn.Module) -> None:
        """After a pass without gradient: gives back the weights that a backward pass would have given back.

        Until then a module's parameters are the gathered ones, or copies, which neither the optimizer nor a save may
        see.
        """
        for copies in self._copies:
            copies.leave()
        if self.is_sharded:
            from engine.distributed import fsdp

            for unit in fsdp.units(model):
                unit.reshard()

    def release(self, reference: Transformer) -> None:
        """Frees the memory of a reference that is not called again; FSDP keeps handles to it until the run ends."""
        if reference.shares_base:  # the policy's
            return
        self.reshard(reference)
        for copies in self._copies:
            copies.release(reference)
        for parameter in reference.parameters():
            held, _ = self.local(parameter)
            held.untyped_storage().resize_(0)


def free_memory() -> int:
    """Bytes that this rank can still take: of its GPU, or its share of the host."""
    if torch.cuda.is_available():
        return torch.cuda.mem_get_info(int(os.environ.get("LOCAL_RANK", "0")))[0]
    lines = Path("/proc/meminfo").read_text().splitlines() if Path("/proc/meminfo").exists() else []
    found = next((int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable")), None)
    free = found or os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return free // int(os.environ.get("LOCAL_WORLD_SIZE", "1"))


def _die_with_parent() -> None:
    """Where torchrun is killed its ranks would live on, and hold the run's folder."""
    if "TORCHELASTIC_RUN_ID" in os.environ:
        end_with_parent(signal.SIGKILL)
