"""All distributed code of a forward and backward pass: process group, sharding, sums over ranks.

One process on the CPU in float32 is plain PyTorch: nothing is wrapped and no process group is made. Everything else
is FSDP2: float32 master shards, compute in --dtype, gradients reduced in float32.
"""

import atexit
import ctypes
import os
import signal
import sys
from collections.abc import Callable, Iterable
from datetime import timedelta
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import TypeVar, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch._C._distributed_c10d import HashStore
from torch.distributed import distributed_c10d
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.fsdp._fully_shard._fsdp_param_group import FSDPParamGroup
from torch.distributed.tensor import DTensor
from torch.distributed.tensor._utils import compute_local_shape_and_global_offset

from data import InputError
from engine.heartbeat import Heartbeat
from engine.llama import Llama
from engine.walk import Walk

Value = TypeVar("Value")

PR_SET_PDEATHSIG = 1  # of Linux's sys/prctl.h
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
        gpu_memory: float | None = None,
    ) -> None:
        """Joins the ranks that torchrun started, or is alone.

        dtype: of compute; bf16 on CUDA, else float32. timeout: seconds that a collective waits. shard_size: ranks that
        share one copy of the weights; all where it is None. splits_masters: nothing is wrapped, the weights are bf16
        (engine/split.py). gpu_memory: bytes that the allocator may take. Raises InputError where copies do not come out
        even.
        """
        self.rank = int(os.environ.get("RANK", "0"))
        self.size = world_size()
        has_cuda = torch.cuda.is_available()
        self.device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0"))) if has_cuda else torch.device("cpu")
        self.dtype = dtype or (torch.bfloat16 if has_cuda or splits_masters else torch.float32)
        self.shard_size = shard_size or self.size
        if self.size % self.shard_size:
            raise InputError(f"--shard-size: {self.size} ranks are not groups of {shard_size}; name a divisor")
        self.splits_masters = splits_masters
        self.is_sharded = not splits_masters and (self.size > 1 or has_cuda or self.dtype != torch.float32)
        self.reshards = has_cuda
        """Whether a block's gathered weights are given back after its forward pass."""
        if has_cuda:
            torch.cuda.set_device(self.device)
            if gpu_memory is not None:
                whole = torch.cuda.get_device_properties(self.device).total_memory
                torch.cuda.set_per_process_memory_fraction(min(1.0, gpu_memory / whole), self.device)
        if self.is_sharded:
            backend = "cpu:gloo,cuda:nccl" if has_cuda else "gloo"
            if (
                not dist.is_initialized()
            ):  # one group per process: a second meeting would read the first one's addresses
                if self.size > 1:
                    _die_with_parent()
                    dist.init_process_group(backend, timeout=timedelta(seconds=timeout))
                else:  # alone: no address to meet at
                    dist.init_process_group(backend, store=HashStore(), rank=0, world_size=1)
                atexit.register(dist.destroy_process_group)
        store = distributed_c10d._get_default_store() if self.size > 1 else None
        self.heartbeat = Heartbeat(store, self.rank, self.size)

    @property
    def is_first(self) -> bool:
        """Whether this is rank 0, which writes and speaks."""
        return self.rank == 0

    def place(self, walk: Walk) -> Walk:
        """Gives a walk on the meta device its memory: here whole, or a shard on every rank.

        Every block is an FSDP unit, so that one's all-gather hides behind another's arithmetic; norm and head are
        one, and a tied head shares its unit with the embedding. The walk is the root, so that the units of policy
        and reference can be called in turn. Collective.
        """
        if self.is_sharded:
            for model in (walk.policy, walk.reference):
                if model is not None:
                    self._shard(model, keeps=model is walk.policy)
            fully_shard(walk, mesh=self.mesh)
            for module in walk.modules():
                if isinstance(module, FSDPModule):  # sum, not FSDP's mean: ranks hold different counts
                    module.set_gradient_divide_factor(1.0)
                    module.set_force_sum_reduction_for_comms(True)  # the factor alone fails on gloo
            _order_gathers(walk.policy, walk.reference)
        if self.splits_masters:
            walk.policy.to(self.dtype)
        return walk.to_empty(device=self.device)

    @cached_property
    def mesh(self) -> DeviceMesh:
        """All ranks; in two dimensions, copies and shards of each, where there are several copies. Collective."""
        if self.shard_size == self.size:
            return init_device_mesh(self.device.type, (self.size,))
        shape = (self.size // self.shard_size, self.shard_size)
        return init_device_mesh(self.device.type, shape, mesh_dim_names=("replicate", "shard"))

    def _shard(self, model: Llama, *, keeps: bool) -> None:
        """Makes a model's parts FSDP units.

        keeps: whether the head's unit stays gathered until its backward pass. Anything else is given back after its
        forward pass on the GPU alone: on the CPU gathering it again costs more than the memory is worth.
        """
        # The model casts by itself: FSDP's cast of inputs would round the rotary angles to bf16.
        policy = MixedPrecisionPolicy(param_dtype=self.dtype, reduce_dtype=torch.float32, cast_forward_inputs=False)
        frees = self.reshards
        for block in model.blocks:
            fully_shard(block, mesh=self.mesh, mp_policy=policy, reshard_after_forward=frees)
        ends: list[list[nn.Module]] = (
            [[model.embed, model.norm, model.head]] if model.config.tied else [[model.embed], [model.norm, model.head]]
        )
        for unit in ends:
            fully_shard(unit, mesh=self.mesh, mp_policy=policy, reshard_after_forward=frees and not keeps)

    def local(self, parameter: Tensor) -> tuple[Tensor, int]:
        """The rows of a parameter that this rank holds, and the first one's number."""
        if not isinstance(parameter, DTensor):
            return parameter, 0
        _, offset = compute_local_shape_and_global_offset(parameter.shape, parameter.device_mesh, parameter.placements)
        return parameter.to_local(), offset[0]

    @property
    def holds_first_copy(self) -> bool:
        """Whether this rank's shards are the ones to write: of several copies the first one's."""
        return self.rank < self.shard_size

    def all_see(self, path: Path) -> bool:
        """Whether a file is there for every rank. Collective."""
        self.wait()
        return self.most(not path.exists()) == 0

    def whole(self, parameter: Tensor) -> Tensor:
        """A parameter gathered from all ranks. Collective."""
        return parameter.full_tensor() if isinstance(parameter, DTensor) else parameter

    def sum(self, values: Tensor) -> Tensor:
        """The sum of a CPU tensor over all ranks, the same on each. Collective."""
        if self.is_sharded:
            dist.all_reduce(values)
        return values

    def most(self, value: float) -> float:
        """The largest of all ranks' values. Collective."""
        found = torch.tensor(float(value), dtype=torch.float64)
        if self.is_sharded:
            dist.all_reduce(found, dist.ReduceOp.MAX)
        return found.item()

    def same(self, value: Value) -> Value:
        """The first rank's value, on every rank. Collective."""
        held = [value]
        if self.size > 1:
            dist.broadcast_object_list(held, src=0)
        return held[0]

    def on_first(self, act: Callable[[], Value]) -> Value:
        """What the first rank found, on every rank; so is its InputError. Collective."""
        held: list[Value] = []
        fault = ""
        if self.is_first:
            try:
                held.append(act())
            except InputError as found:
                fault = str(found)
        held, fault = self.same((held, fault))
        if fault:
            raise InputError(fault)
        return held[0]

    def wait(self) -> None:
        """Returns when every rank has come here. Collective."""
        if self.is_sharded:
            dist.barrier()

    def clip_grad_norm(self, parameters: Iterable[nn.Parameter], max_norm: float) -> float:
        """Scales the gradient to a global norm of at most max_norm (0: as it is); gives the norm before. Collective.

        A norm that is not finite scales nothing.
        """
        parameters = list(parameters)
        norm = torch.nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])
        total = self.whole(norm).item()  # sums the shards' squares over all ranks
        if max_norm > 0 and total < float("inf"):
            torch.nn.utils.clip_grads_with_norm_(parameters, max_norm, torch.as_tensor(total, device=self.device))
        return total

    def sums_gradients(self, walk: Walk, is_last: bool) -> None:
        """Whether the backward pass that comes sums its gradient over ranks: in float32 the last of a step alone does.

        The passes before it add up in this rank's memory and keep the weights gathered. In bf16 every pass sums:
        adding up there would round.
        """
        if self.size > 1 and self.dtype == torch.float32:
            for module in walk.policy.modules():
                if isinstance(module, FSDPModule):
                    module.set_requires_gradient_sync(is_last, recurse=False)
                    module.set_reshard_after_backward(is_last, recurse=False)

    def settle(self, walk: Walk) -> None:
        """After a pass without gradient: gives back the weights that a backward pass would have given back.

        Until then a module's parameters are the gathered ones, which neither the optimizer nor a save may see.
        """
        for module in walk.modules():
            if isinstance(module, FSDPModule):
                module.reshard()

    def release(self, model: Llama, policy: Llama) -> None:
        """Frees the memory of a reference that is not called again; FSDP keeps handles to it until the run ends."""
        if self.is_sharded:
            _order_gathers(policy, None)
        for module in model.modules():
            if isinstance(module, FSDPModule):
                module.reshard()
        for parameter in model.parameters():
            held, _ = self.local(parameter)
            held.untyped_storage().resize_(0)


def _order_gathers(policy: Llama, reference: Llama | None) -> None:
    """Which unit is gathered while another one computes.

    Forward: the next of the walk. Backward: the policy's one before; left to itself FSDP would take the one that was
    walked before it, and so gather every block of the reference for nothing.
    """
    walked = [m for pair in zip(policy.blocks, reference.blocks, strict=True) for m in pair] if reference else []
    for unit, following in pairwise(walked or policy.blocks):
        cast(FSDPModule, unit).set_modules_to_forward_prefetch([cast(FSDPModule, following)])
    for unit, before in pairwise([policy.head, *reversed(policy.blocks), policy.embed]):
        cast(FSDPModule, unit).set_modules_to_backward_prefetch([cast(FSDPModule, before)])
    last = walked[-1] if walked else policy.blocks[-1]
    cast(FSDPModule, last).set_modules_to_forward_prefetch([])


def world_size() -> int:
    """Processes of the run."""
    return int(os.environ.get("WORLD_SIZE", "1"))


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
    if sys.platform == "linux" and "TORCHELASTIC_RUN_ID" in os.environ:
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def collectives() -> list[tuple[type, str]]:
    """Where FSDP waits for other ranks, for whoever measures it: (class, method)."""
    names = ("unshard", "wait_for_unshard", "post_backward", "finalize_backward")
    return [(FSDPParamGroup, name) for name in names if hasattr(FSDPParamGroup, name)]
