"""A Llama in plain PyTorch: RMSNorm, rotary positions, grouped-query attention, SwiGLU.

The model takes packed rows of tokens and knows neither batches nor processes nor files. Who attends to whom is a
function that it is handed (engine/model/attention.py), so that training and sampling run the same blocks.
"""

# T packed tokens, D hidden, H heads, K kv heads, E head size, V vocabulary

import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import silu
from torch.utils.checkpoint import checkpoint

from engine.model.head import Head
from engine.model.llama_config import LlamaConfig
from system import torch_private

Attend = Callable[[Tensor, Tensor, Tensor], Tensor]
"""(q [T, H, E], k [T, K, E], v [T, K, E]) -> [T, H, E]"""
Rope = tuple[Tensor, Tensor]
"""cos and sin of every position, [T, 1, E] float32 or better"""


class Llama(nn.Module):
    """The whole model. A forward pass is: embed, every block, norm, head (engine/model/fused_forward.py)."""

    def __init__(self, config: LlamaConfig) -> None:
        super().__init__()
        self.config = config
        self.source: Path | None = None
        """The folder that the weights came from: its tokenizer goes into every folder written."""
        self.beside: dict[str, bytes] | None = None
        """What goes into these of that folder, where it has been read already (weights.read_beside)."""
        self.embed = nn.Embedding(config.vocab_size, config.hidden_size)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.n_layers))
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.head = Head(None if config.tied else config.vocab_size, config.hidden_size)

    def compile_blocks(self) -> None:
        """Compiles what stands before and after attention in every block: two graphs, for all blocks and lengths.

        The compiler is let compute the norms and silu(gate) * up again in the backward pass, where it would keep them
        for the products that follow: a third less is kept for 1 % of the time.
        """
        torch_private.let_compiler_recompute()
        for block in self._blocks():
            block.project = torch.compile(block.project, dynamic=True)
            block.finish = torch.compile(block.finish, dynamic=True)

    def recompute(self, n_blocks: int) -> None:
        """Lets so many blocks, the first ones, keep nothing but their input for the backward pass."""
        for i, block in enumerate(self._blocks()):
            block.is_recomputed = i < n_blocks

    def _blocks(self) -> Iterator["Block"]:
        return (block for block in self.blocks if isinstance(block, Block))

    @property
    def tied(self) -> Tensor | None:
        """The embedding where it serves as the head's weight too, else None."""
        return self.embed.weight if self.config.tied else None

    def rope(self, positions: Tensor, dtype: torch.dtype = torch.float32) -> Rope:
        """cos and sin for positions [T], each [T, 1, E]."""
        frequencies = rope_frequencies(self.config).to(positions.device)
        angles = torch.outer(positions.to(torch.float32), frequencies).repeat(1, 2)[:, None]  # [T, 1, E]
        return angles.cos().to(dtype), angles.sin().to(dtype)


class Block(nn.Module):
    """One layer: attention and MLP, each behind a norm and added to the stream."""

    def __init__(self, config: LlamaConfig) -> None:
        super().__init__()
        self.attention_norm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.attention = Attention(config)
        self.mlp_norm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.mlp = MLP(config)
        self.is_recomputed = False
        """Whether the backward pass computes the block's inside again (activation checkpointing)."""

    def forward(self, x: Tensor, rope: Rope, attend: Attend) -> Tensor:
        """x [T, D] -> [T, D], in x's dtype."""
        if self.is_recomputed and torch.is_grad_enabled():
            y: Any = checkpoint(self._inside, x, rope, attend, use_reentrant=False, preserve_rng_state=False)
            return y  # of any type: torch 2.11 says that it may be None
        return self._inside(x, rope, attend)

    def _inside(self, x: Tensor, rope: Rope, attend: Attend) -> Tensor:
        return self.finish(x, attend(*self.project(x, rope)))

    def project(self, x: Tensor, rope: Rope) -> tuple[Tensor, Tensor, Tensor]:
        """What stands before attention: x [T, D] -> q [T, H, E], k and v [T, K, E]."""
        return self.attention.project(self.attention_norm(x), rope)

    def finish(self, x: Tensor, attended: Tensor) -> Tensor:
        """What follows it: x [T, D] and attended [T, H, E] -> [T, D]."""
        x = x + self.attention.o(attended.flatten(1))
        return x + self.mlp(self.mlp_norm(x))


class Attention(nn.Module):
    """The weights of grouped-query attention with rotary positions: who attends to whom is the block's affair."""

    def __init__(self, config: LlamaConfig) -> None:
        super().__init__()
        self.head_size = config.head_size
        q, kv = config.n_heads * config.head_size, config.n_kv_heads * config.head_size
        self.q = nn.Linear(config.hidden_size, q, bias=False)
        self.k = nn.Linear(config.hidden_size, kv, bias=False)
        self.v = nn.Linear(config.hidden_size, kv, bias=False)
        self.o = nn.Linear(q, config.hidden_size, bias=False)

    def project(self, x: Tensor, rope: Rope) -> tuple[Tensor, Tensor, Tensor]:
        """x [T, D] -> q [T, H, E], k and v [T, K, E], the first two turned by their positions."""
        heads = (-1, self.head_size)
        q = rotate(self.q(x).unflatten(1, heads), rope)
        k = rotate(self.k(x).unflatten(1, heads), rope)
        return q, k, self.v(x).unflatten(1, heads)


class MLP(nn.Module):
    """SwiGLU."""

    def __init__(self, config: LlamaConfig) -> None:
        super().__init__()
        self.gate = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.up = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.down = nn.Linear(config.intermediate_size, config.hidden_size, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """x [T, D] -> [T, D]."""
        return self.down(silu(self.gate(x)) * self.up(x))


class RMSNorm(nn.Module):
    """x / rms(x) * weight; the mean square in float32 or better."""

    def __init__(self, size: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        """x [..., D] -> [..., D], in x's dtype."""
        wide = x if x.dtype == torch.float64 else x.float()
        wide = wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + self.eps)
        return self.weight * wide.to(x.dtype)


def rotate(x: Tensor, rope: Rope) -> Tensor:
    """x [T, H, E] turned by its positions' angles; halves of a head are the two coordinates, as in Hugging Face's
    layout of the weights. Computed in the angles' dtype, given back in x's.
    """
    cos, sin = rope
    a, b = x.chunk(2, dim=-1)
    return (x * cos + torch.cat((-b, a), dim=-1) * sin).to(x.dtype)


def rope_frequencies(config: LlamaConfig) -> Tensor:
    """[E / 2] float32, radians per position.

    With `scaling`, as Llama-3.1: wavelengths above original / low_freq_factor are stretched by `factor`, those below
    original / high_freq_factor stay, and between the two the frequency is a linear blend in original / wavelength.
    """
    exponents = torch.arange(0, config.head_size, 2, dtype=torch.float32, device="cpu") / config.head_size
    frequencies = 1.0 / config.rope_theta**exponents
    if (s := config.scaling) is None:
        return frequencies
    turns = s.original_max_position_embeddings * frequencies / (2 * math.pi)  # over the original context
    share = ((turns - s.low_freq_factor) / (s.high_freq_factor - s.low_freq_factor)).clamp(0, 1)
    return share * frequencies + (1 - share) * frequencies / s.factor
