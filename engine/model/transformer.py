"""A decoder in plain PyTorch, one block for all families: norms, rotary positions, grouped-query attention, an MLP.

What families differ in is an option of engine/model/model_config.py, and a line or two here. The model takes packed
rows of tokens and knows neither batches nor processes nor files. Who attends to whom is a function that it is handed
(engine/model/attention.py), so that training and sampling run the same blocks.
"""

# T packed tokens, D hidden, H heads, K kv heads, E head size, V vocabulary

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from engine.model.activation import ACTIVATIONS, XIELU, gated
from engine.model.head import Head
from engine.model.logits import Squash
from engine.model.model_config import Layer, ModelConfig
from engine.model.rope import Rope, Rotation, rotate, rotation
from system import torch_private

if TYPE_CHECKING:
    from engine.model.adapters import Adapter


class Weighing(NamedTuple):
    """How a layer's queries weigh the keys that they see."""

    window: int | None = None
    """How many keys a query sees at most, its own included: those at positions less than so many behind its own."""
    scale: float | None = None
    """Of query-key products; None: head_size^-1/2."""
    cap: float | None = None
    """cap tanh(score / cap) of them."""


PLAIN = Weighing()
Attend = Callable[[Tensor, Tensor, Tensor, Weighing], Tensor]
"""(q [T, H, E], k [T, K, E], v [T, K, E], how they are weighed) -> [T, H, E]"""
Rotations = dict[Rope | None, Rotation | None]
"""Of each kind of rope, at the positions of a pass."""

ROUNDS_ALIKE: dict[str, Any] = {"emulate_precision_casts": True, "pattern_matcher": False}
"""Options of torch.compile: numbers between fused operations are rounded to their dtype, and a product that something
is added to is no other kernel. Without them, in bf16, a fresh adapter does not start at a log-ratio of 0.
"""


class Transformer(nn.Module):
    """The whole model. A forward pass is: embed, every block, norm, head (engine/model/fused_forward.py)."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.source: Path | None = None
        """The folder that the weights came from: its tokenizer goes into every folder written."""
        self.beside: dict[str, bytes] | None = None
        """What goes into these of that folder, where it has been read already (weights.read_beside)."""
        self.carried: dict[str, Any] | None = None
        """Tensors of that folder that do not train, where they have been read already (weights.read_carried)."""
        self.adapter: Adapter | None = None
        """What trains of it, where that is an adapter beside a frozen base (engine/model/adapters.py)."""
        self.shares_base = False
        """Whether it computes with another model's weights; all but `own_ends` (head, embed)."""
        self.own_ends: set[str] = set()
        self.compute_dtype: torch.dtype | None = None
        """Of a frozen base, whose parts may be held otherwise."""
        self.adapter_folder: Any = None
        """The folder of an adapter that it was built with (engine/weights/adapters.py), and that of its base."""
        self.base_source: Path | None = None
        self.embed = nn.Embedding(config.vocab_size, config.hidden_size)
        self.blocks = nn.ModuleList(Block(config, layer) for layer in config.layers)
        self.norm = _norm(config, config.hidden_size)
        squash = Squash(config.logit_divisor, config.logit_cap)
        self.head = Head(None if config.tied else config.vocab_size, config.hidden_size, squash)

    def embedded(self, tokens: Tensor) -> Tensor:
        """The stream before the first block [T, D]."""
        x = self.embed(tokens)
        x = x if self.compute_dtype is None else x.to(self.compute_dtype)  # of one that trains, in float32
        factor = self.config.embed_factor
        if factor == 1:
            return x
        if self.config.embed_factor_rounds:
            return x * torch.tensor(factor, dtype=x.dtype, device=x.device)
        return x * factor

    def compile_blocks(self) -> None:
        """Compiles what stands before and after attention in every block: two graphs, for all blocks and lengths, and
        a third where some layers do not turn; more where some blocks have adapters and others none.

        A model with adapters and the one that shares its base are different code: what is compiled then rounds wherever
        uncompiled code does (ROUNDS_ALIKE), so that both give the same numbers as long as the adapter adds nothing.

        The compiler is let compute the norms and silu(gate) * up again in the backward pass, where it would keep them
        for the products that follow: a third less is kept for 1 % of the time.
        """
        torch_private.let_compiler_recompute()
        torch_private.allow_graphs()
        options = ROUNDS_ALIKE if self.adapter is not None or self.shares_base else None
        for block in self._blocks():
            block.project = torch.compile(block.project, dynamic=True, options=options)
            block.finish = torch.compile(block.finish, dynamic=True, options=options)

    def recompute(self, n_blocks: int) -> None:
        """Lets so many blocks, the first ones, keep nothing but their input for the backward pass."""
        for i, block in enumerate(self._blocks()):
            block.is_recomputed = i < n_blocks

    def _blocks(self) -> Iterator["Block"]:
        return (block for block in self.blocks if isinstance(block, Block))

    def trained(self) -> Iterator[tuple[str, nn.Parameter]]:
        """The parameters that train, by name: all, or those of an adapter."""
        return ((name, p) for name, p in self.named_parameters() if p.requires_grad)

    def constants(self) -> Iterator[tuple[str, Tensor]]:
        """Its buffers that a checkpoint has as they are, by name."""
        return ((name, b) for name, b in self.named_buffers() if not name.endswith((".codes", ".scales")))

    @property
    def tied(self) -> Tensor | None:
        """The embedding where it serves as the head's weight too, else None."""
        return self.embed.weight if self.config.tied else None


def rotations(ropes: Iterable[Rope], positions: Tensor, spans: Tensor, dtype: torch.dtype = torch.float32) -> Rotations:
    """Every rope's cos and sin for positions [T]. spans [T]: tokens of the whole sequence that each belongs to.

    None is there too: of layers that do not turn.
    """
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    return {None: None} | {rope: rotation(rope, positions, spans, wide) for rope in ropes}


class Block(nn.Module):
    """One layer: attention and MLP, each added to the stream, with a norm before it, behind it, or both."""

    def __init__(self, config: ModelConfig, layer: Layer) -> None:
        super().__init__()
        before, behind = config.norms != "behind", config.norms != "before"
        self.attention_norm = _norm(config, config.hidden_size) if before else None
        self.attention = Attention(config)
        self.attention_out_norm = _norm(config, config.hidden_size) if behind else None
        self.mlp_norm = _norm(config, config.hidden_size) if before else None
        self.mlp = MLP(config)
        self.mlp_out_norm = _norm(config, config.hidden_size) if behind else None
        self.rope = layer.rope
        self.weighing = Weighing(layer.window, config.attention_scale, config.attention_cap)
        self.factor = config.residual_factor
        self.is_recomputed = False
        """Whether the backward pass computes the block's inside again (activation checkpointing)."""

    def forward(self, x: Tensor, turned: Rotations, attend: Attend) -> Tensor:
        """x [T, D] -> [T, D], in x's dtype."""
        rotation = turned[self.rope]
        if self.is_recomputed and torch.is_grad_enabled():
            y: Any = checkpoint(self._inside, x, rotation, attend, use_reentrant=False, preserve_rng_state=False)
            return y  # of any type: torch 2.11 says that it may be None
        return self._inside(x, rotation, attend)

    def _inside(self, x: Tensor, rotation: Rotation | None, attend: Attend) -> Tensor:
        return self.finish(x, attend(*self.project(x, rotation), self.weighing))

    def project(self, x: Tensor, rotation: Rotation | None) -> tuple[Tensor, Tensor, Tensor]:
        """What stands before attention: x [T, D] -> q [T, H, E], k and v [T, K, E]."""
        return self.attention.project(_normed(self.attention_norm, x), rotation)

    def finish(self, x: Tensor, attended: Tensor) -> Tensor:
        """What follows it: x [T, D] and attended [T, H, E] -> [T, D]."""
        x = self._added(x, _normed(self.attention_out_norm, self.attention.o(attended.flatten(1))))
        return self._added(x, _normed(self.mlp_out_norm, self.mlp(_normed(self.mlp_norm, x))))

    def _added(self, x: Tensor, y: Tensor) -> Tensor:
        return x + (y if self.factor == 1 else self.factor * y)


class Attention(nn.Module):
    """The weights of grouped-query attention with rotary positions: who attends to whom is the block's affair."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.head_size = config.head_size
        q, kv = config.n_heads * config.head_size, config.n_kv_heads * config.head_size
        self.q = nn.Linear(config.hidden_size, q, bias=config.qkv_bias)
        self.k = nn.Linear(config.hidden_size, kv, bias=config.qkv_bias)
        self.v = nn.Linear(config.hidden_size, kv, bias=config.qkv_bias)
        self.o = nn.Linear(q, config.hidden_size, bias=config.o_bias)
        each = config.qk_norm == "each_head"
        self.norms_each = each
        self.q_norm = None if config.qk_norm == "none" else _norm(config, config.head_size if each else q)
        self.k_norm = None if config.qk_norm == "none" else _norm(config, config.head_size if each else kv)

    def project(self, x: Tensor, rotation: Rotation | None) -> tuple[Tensor, Tensor, Tensor]:
        """x [T, D] -> q [T, H, E], k and v [T, K, E], the first two turned by their positions."""
        q, k = self._heads(self.q(x), self.q_norm), self._heads(self.k(x), self.k_norm)
        if rotation is not None:
            q, k = (rotate(y, rotation.cos, rotation.sin) for y in (q, k))
            q = q if rotation.growth is None else q * rotation.growth.to(q.dtype)
        return q, k, self.v(x).unflatten(1, (-1, self.head_size))

    def _heads(self, x: Tensor, norm: "RMSNorm | None") -> Tensor:
        """[T, H E] -> [T, H, E], normed over all heads together or each by itself."""
        if not self.norms_each:
            return _normed(norm, x).unflatten(1, (-1, self.head_size))
        return _normed(norm, x.unflatten(1, (-1, self.head_size)))


class MLP(nn.Module):
    """down(act(gate x) * up x), or down(act(up x)) without a gate."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        sizes = config.hidden_size, config.intermediate_size
        self.gate = nn.Linear(*sizes, bias=config.mlp_bias) if config.has_gate else None
        self.up = nn.Linear(*sizes, bias=config.mlp_bias)
        self.down = nn.Linear(*reversed(sizes), bias=config.mlp_bias)
        self.act = XIELU() if config.activation == "xielu" else ACTIVATIONS[config.activation]

    def forward(self, x: Tensor) -> Tensor:
        """x [T, D] -> [T, D]."""
        return self.down(self.act(self.up(x)) if self.gate is None else gated(self.act, self.gate(x), self.up(x)))


class RMSNorm(nn.Module):
    """x / rms(x) * w, or * (1 + w); the mean square in float32 or better, and the product there too if it is late."""

    def __init__(self, size: int, eps: float, *, adds_one: bool = False, rounds_late: bool = False) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(size) if adds_one else torch.ones(size))
        self.eps, self.adds_one, self.rounds_late = eps, adds_one, rounds_late

    def forward(self, x: Tensor) -> Tensor:
        """x [..., D] -> [..., D], in x's dtype."""
        wide = x if x.dtype == torch.float64 else x.float()
        wide = wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + self.eps)
        if self.rounds_late:
            weight = self.weight.to(wide.dtype)
            return ((1 + weight if self.adds_one else weight) * wide).to(x.dtype)
        return self.weight * wide.to(x.dtype)


def _norm(config: ModelConfig, size: int) -> RMSNorm:
    return RMSNorm(size, config.rms_norm_eps, adds_one=config.norm_adds_one, rounds_late=config.norm_rounds_late)


def _normed(norm: RMSNorm | None, x: Tensor) -> Tensor:
    return x if norm is None else norm(x)
