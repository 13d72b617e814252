"""FSDP2 over policy and reference: what is a unit, what is gathered while another computes, and who holds which rows.

Imported where something is sharded (engine/distributed/ranks.py): it brings a second of imports that --help, and one
process on a CPU, do without.
"""

import functools
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor

from engine.model import FusedForward, Transformer, in_turn


def mesh_of(device: torch.device, size: int, shard_size: int) -> DeviceMesh:
    """All ranks; in two dimensions, copies and shards of each, where there are several copies. Collective."""
    if shard_size == size:
        return init_device_mesh(device.type, (size,))
    return init_device_mesh(device.type, (size // shard_size, shard_size), mesh_dim_names=("replicate", "shard"))


def shard(fused: FusedForward, mesh: DeviceMesh, dtype: torch.dtype, *, reshards: bool) -> None:
    """Makes both models' parts FSDP units: float32 shards, compute in dtype, gradients summed in float32. Collective.

    Of an adapter's frozen base the shards are in the dtype that they are held in.

    Every block is a unit; norm and head are one, and a tied head shares its unit with the embedding. Both
    models together are the root, so that their units can be called in turn. reshards: whether a block's gathered
    weights are given back after its forward pass; the policy's ends stay until their backward pass.
    """
    for model in (fused.policy, fused.reference):
        if model is None or model.shares_base:
            continue
        # The model casts by itself: FSDP's cast of inputs would round the rotary angles to bf16. So does a frozen base
        # with its adapter, whose float32 gradients then add up over passes as they are.
        compute = dtype if model.compute_dtype is None else None
        policy = MixedPrecisionPolicy(param_dtype=compute, reduce_dtype=torch.float32, cast_forward_inputs=False)
        for block in model.blocks:
            fully_shard(block, mesh=mesh, mp_policy=policy, reshard_after_forward=reshards)
        ends: list[list[nn.Module]] = (
            [[model.embed, model.norm, model.head]] if model.config.tied else [[model.embed], [model.norm, model.head]]
        )
        for unit in ends:
            fully_shard(unit, mesh=mesh, mp_policy=policy, reshard_after_forward=reshards and model is fused.reference)
    fully_shard(fused, mesh=mesh)
    fused.hold_head = functools.partial(_hold_head, reshards=reshards)
    fused.hold_block = _hold_block
    for unit in units(fused):  # sum, not FSDP's mean: ranks hold different counts
        unit.set_gradient_divide_factor(1.0)
        unit.set_force_sum_reduction_for_comms(True)  # the factor alone fails on gloo
    # Backward, the policy's one before is gathered while a unit computes; left to itself FSDP would take the one that
    # computed before it, and so gather every block of the reference for nothing.
    for unit, before in pairwise([fused.policy.head, *reversed(fused.policy.blocks), fused.policy.embed]):
        cast(FSDPModule, unit).set_modules_to_backward_prefetch([cast(FSDPModule, before)])
    fused.register_forward_pre_hook(_order_gathers, with_kwargs=True)


@contextmanager
def _hold_head(model: Transformer, *, reshards: bool) -> Iterator[Tensor]:
    """Gathers a model's head outside of its own forward pass. Collective. That of a reference on the policy's base is
    the policy's, which is still wanted, or one of its own, which is whole on every rank.
    """
    if not isinstance(model.head, FSDPModule):
        yield model.head.matrix(model.tied)
        return
    model.head.unshard()
    yield model.head.matrix(model.tied)
    if reshards and not model.shares_base:
        model.head.reshard()


def _hold_block(block: nn.Module | None) -> None:
    """Gathers a block before its own forward pass, which gives it back. Collective where there is one."""
    if block is not None:
        cast(FSDPModule, block).unshard()


def _order_gathers(fused: nn.Module, _: Any, asked: dict[str, Any]) -> None:
    """Before a pass: while a unit computes, the next one in turn is gathered, and no other."""
    assert isinstance(fused, FusedForward)
    reference = fused.reference if asked["with_reference"] else None
    reference = None if reference is None or reference.shares_base else reference  # it computes with the policy's
    blocks = [block for _, block in in_turn(fused.policy, reference)]
    for unit, following in pairwise([*blocks, None]):
        ahead = [] if following is None else [cast(FSDPModule, following)]
        cast(FSDPModule, unit).set_modules_to_forward_prefetch(ahead)


def units(module: nn.Module) -> Iterator[FSDPModule]:
    """The units in a module."""
    return (m for m in module.modules() if isinstance(m, FSDPModule))


def local(parameter: Tensor) -> tuple[Tensor, int]:
    """The rows of a parameter that this rank holds, and the first one's number."""
    if not isinstance(parameter, DTensor):
        return parameter, 0
    n_rows, mesh = parameter.shape[0], parameter.device_mesh
    sharded = next(i for i, placement in enumerate(parameter.placements) if placement.is_shard())
    per_rank = -(-n_rows // mesh.size(sharded))  # as torch.chunk: the last ranks may hold fewer rows, or none
    return parameter.to_local(), min(n_rows, mesh.get_local_rank(sharded) * per_rank)


def full_tensor(parameter: Tensor) -> Tensor:
    """A parameter gathered from all ranks. Collective."""
    return parameter.full_tensor() if isinstance(parameter, DTensor) else parameter
