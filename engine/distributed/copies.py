"""One process that computes in bf16 with float32 masters: copies of the weights, cast before a pass, stand in the
modules while it computes.

What FSDP does on a single rank, bit for bit, without its hooks around every block: these take the host a millisecond or
two a block, which is most of a small model's step on a GPU. The copies of all weights are there at once, and so are
their gradients; a model that has no room for these is wrapped (engine/distributed/fsdp.py).
"""

import torch
from torch import nn

from engine.model import FusedForward, Transformer


class ComputeCopies:
    """Copies of a policy's float32 parameters, and of a reference's where they are float32, in another dtype."""

    def __init__(self, fused: FusedForward, dtype: torch.dtype) -> None:
        """fused: on its device. From now on a pass of it takes the copies, until `leave`."""
        self._is_inside = False
        self._places: list[tuple[nn.Module, str, nn.Parameter, nn.Parameter]] = []
        for module in fused.modules():
            for name, master in module.named_parameters(recurse=False):
                if master.dtype != dtype:
                    copy = nn.Parameter(torch.empty_like(master, dtype=dtype), requires_grad=master.requires_grad)
                    self._places.append((module, name, master, copy))
        fused.register_forward_pre_hook(lambda *_: self._enter())

    @torch.no_grad()
    def _enter(self) -> None:
        """Casts the masters and puts the copies into the modules, where they are not there already."""
        if self._is_inside:
            return
        self._is_inside = True
        for module, name, master, copy in self._places:
            copy.copy_(master)
            setattr(module, name, copy)

    def leave(self) -> None:
        """Puts the masters back: they are what the optimizer and a save have to see."""
        if self._is_inside:
            self._is_inside = False
            for module, name, master, _ in self._places:
                setattr(module, name, master)

    def take_gradients(self) -> None:
        """After a backward pass: puts the masters back, and adds the copies' gradients to theirs, in float32."""
        self.leave()
        for *_, master, copy in self._places:
            if copy.grad is None:
                continue
            if master.grad is None:
                master.grad = copy.grad.to(master.dtype)
            else:
                master.grad.add_(copy.grad)
            copy.grad = None

    def release(self, model: Transformer) -> None:
        """Forgets the copies of a model that is not called again."""
        self.leave()
        own = set(model.modules())
        self._places = [place for place in self._places if place[0] not in own]
