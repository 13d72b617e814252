"""One pass over the layers of both models: response log-probs under the policy and the frozen reference.

Block i of the policy, block i of the reference, block i + 1 ...: each block is a unit of its own, so that with
sharded weights one's all-gather hides behind the other's arithmetic, and the backward pass never gathers the
reference. Both models see the same tokens through the same kernels: where their weights agree, so do all bits.
"""

import torch
from torch import Tensor, nn

from data.forest import Forest
from engine.model import attention
from engine.model.llama import Llama


class FusedForward(nn.Module):
    """The policy, and the reference while it is needed: their forward passes are fused block by block into one."""

    def __init__(self, policy: Llama, reference: Llama | None = None) -> None:
        super().__init__()
        self.policy = policy
        self.reference = reference
        if reference is not None:
            reference.requires_grad_(False)

    def forward(self, forest: Forest, *, with_reference: bool) -> tuple[Tensor, Tensor | None]:
        """Log-probs of the forest's responses under both models: [S] nats each, float64; the second without gradient.

        with_reference: whether the reference computes too; None in its place otherwise.
        """
        reference = self.reference if with_reference else None
        dtype = next(self.policy.parameters()).dtype
        rope = self.policy.rope(forest.positions, torch.float64 if dtype == torch.float64 else torch.float32)
        x = self.policy.embed(forest.tokens)  # [T, D]
        attend = attention.for_forest(forest, x.dtype)
        with torch.no_grad():
            y = None if reference is None else reference.embed(forest.tokens)
        for i, block in enumerate(self.policy.blocks):
            x = block(x, rope, attend)
            if reference is not None:
                with torch.no_grad():
                    y = reference.blocks[i](y, rope, attend)
        with torch.no_grad():  # the reference's logits are gone before the policy's, which are kept, are made
            ref_logps = None if reference is None or y is None else _sequence_logps(reference, y, forest)
        return _sequence_logps(self.policy, x, forest), ref_logps


def _sequence_logps(model: Llama, hidden: Tensor, forest: Forest) -> Tensor:
    """[T, D] -> [S] nats, float64: a few numbers, whose sums must not depend on how a batch was split."""
    normed = attention.gather(model.norm(hidden), forest.rows)  # [R, D]
    token_logps = model.head(normed, forest.targets, model.tied)  # [R]
    sums = torch.zeros(forest.n_sequences + 1, dtype=torch.float64, device=hidden.device)  # the last: of no response
    return sums.index_add(0, forest.sequences, token_logps.double())[:-1].clone()  # FSDP hooks on no view
