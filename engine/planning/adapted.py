"""What a frozen base and an adapter beside it take: counted on a model of the run's shape without memory."""

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import nn

from engine.config import AdapterConfig
from engine.model import Adapter, FrozenLinear, ModelConfig, Transformer, adapters
from system import InputError


@dataclass(frozen=True, kw_only=True)
class OnBase:
    """The adapters that policy and reference have on the base, where folders say so."""

    policy: Adapter | None = None
    """What --adapter names; None: what --lora-rank and its flags ask for."""
    reference: Adapter | None = None
    shares_base: bool = True
    """Whether the reference computes with the policy's base; else it is a model of its own."""


@dataclass(frozen=True, kw_only=True)
class Adapted:
    """The numbers and bytes of a frozen base with an adapter."""

    frozen_bytes: int
    """Of the base's parameters as they are held; ranks may share them."""
    code_bytes: int
    """Of quantised matrices, codes and scales: whole on every rank."""
    n_low_rank: int
    """Numbers of A and B."""
    n_whole: int
    """Those of a head and an embedding that train whole."""
    n_of_reference: int
    """Numbers of A and B that the reference has on the base: float32, whole on every rank."""
    shares_base: bool
    """Whether the reference computes with the policy's base."""
    trains_head: bool
    trains_embedding: bool
    n_multiplied: int
    """Numbers of A and B that a token is multiplied with: of A that parts of a fused matrix share, once for each."""
    n_between: int
    """Numbers a token between A and B, of all layers: what adapters keep for the backward pass."""
    n_cast: int
    """Numbers of A and B, and of a head that trains, that a pass casts and keeps."""
    largest: int
    """Numbers of the largest frozen matrix that is held otherwise than it computes: it is made anew for each product.
    0: none is.
    """
    block_bytes: int
    """What of a block is gathered where ranks share it: frozen parameters, A and B."""
    end_bytes: int
    """The same of embedding and head."""

    @property
    def n_trained(self) -> int:
        """Numbers that train, each with a gradient and an optimizer's numbers."""
        return self.n_low_rank + self.n_whole

    @staticmethod
    def of(shape: ModelConfig, asked: AdapterConfig, dtype: torch.dtype, on_base: OnBase, *, moves: bool) -> "Adapted":
        """What flags ask for. dtype: of compute. moves: whether the reference follows the policy, and so has what it
        has. Raises InputError, of a flag, where the shape cannot have it.
        """
        with torch.device("meta"):
            model = Transformer(shape)
        held = adapters.held_as(asked.base_dtype, dtype)
        adapters.freeze(model, dtype, held)
        made = on_base.policy or asked_adapter(model, asked)
        adapters.attach(model, made)
        layers = [m for m in model.modules() if isinstance(m, FrozenLinear)]
        adapted = [m for m in layers if m.lora_B is not None]
        own = adapters.own_parameters(model)
        n_low_rank = adapters.n_numbers(model, made)
        b = sum(m.out_features for m in adapted) * made.rank
        a = sum(m.in_features for m in adapted) * made.rank
        head = model.head.weight if "lm_head" in made.whole else None
        is_narrow = dtype.itemsize < 4
        n_of_reference = 0 if on_base.reference is None else adapters.n_numbers(model, on_base.reference)
        return Adapted(
            frozen_bytes=_bytes(p for p in model.parameters() if not p.requires_grad),
            code_bytes=_bytes(x for m in layers for x in (m.codes, m.scales) if x is not None),
            n_low_rank=n_low_rank,
            n_whole=sum(p.numel() for p in own.values()) - n_low_rank,
            n_of_reference=n_low_rank if moves and on_base.reference is None else n_of_reference,
            shares_base=on_base.shares_base,
            trains_head=head is not None,
            trains_embedding="embed_tokens" in made.whole,
            n_multiplied=adapters.n_multiplied(model),
            n_between=made.rank * len(adapted),
            n_cast=b + is_narrow * (a + (0 if head is None else head.numel())),
            largest=0 if held == dtype else max(m.in_features * m.out_features for m in layers),
            block_bytes=max(_bytes(block.parameters()) for block in model.blocks),
            end_bytes=_bytes([*model.embed.parameters(), *model.head.parameters()]),
        )


def asked_adapter(model: Transformer, asked: AdapterConfig) -> Adapter:
    """A fresh adapter as --lora-rank and its flags ask for it. Raises InputError, of a flag, where a model cannot have
    it.
    """
    assert asked.rank is not None
    try:
        modules = adapters.select(adapters.layers_of(model), asked.targets)
    except InputError as fault:
        ends = {one.rpartition(".")[2] for one in asked.targets}
        mend = "; --train-also trains head and embedding in full" if ends & {*adapters.WHOLE} else ""
        raise InputError(f"--lora-targets: {fault}{mend}") from None
    alpha = 2 * asked.rank if asked.alpha is None else asked.alpha
    made = Adapter(rank=asked.rank, alpha=alpha, rslora=asked.rslora, modules=modules, whole=asked.train_also)
    try:
        adapters.check_fits(model, made)
    except InputError as fault:
        raise InputError(f"--{'train-also' if 'tie_word' in str(fault) else 'lora-rank'}: {fault}") from None
    return made


def _bytes(tensors: Iterable[torch.Tensor | nn.Parameter]) -> int:
    return sum(x.numel() * x.element_size() for x in tensors)
