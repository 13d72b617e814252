"""What a model is: its sizes and the options in which families differ, each named as the field names it.

A page of engine/model/families/ makes one of these from a config.json; the blocks (engine/model/transformer.py) know
nothing else.
"""

from dataclasses import dataclass, field
from typing import Any, Literal

from engine.model.names import LLAMA_NAMES, Place, TensorNames
from engine.model.rope import Dynamic, Rope

Norms = Literal["before", "behind", "both"]
QKNorm = Literal["none", "each_head", "all_heads"]
Activation = Literal["silu", "gelu_tanh", "xielu"]


@dataclass(frozen=True, kw_only=True)
class Layer:
    """What may differ from layer to layer."""

    window: int | None = None
    """How many keys a query sees, its own included; None: all before it."""
    rope: Rope | None = None
    """None: queries and keys do not turn."""


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """The shape of a model."""

    model_type: str
    """The family, by transformers' name of it."""
    vocab_size: int
    hidden_size: int
    intermediate_size: int
    n_layers: int
    n_heads: int
    n_kv_heads: int
    head_size: int
    rms_norm_eps: float
    layers: tuple[Layer, ...]
    tied: bool
    """Whether the embedding is the head's weight too."""
    context: int | None
    """Most positions, where the file says so."""
    raw: dict[str, Any]
    """config.json as it was read, to be written back."""
    norms: Norms = "before"
    """Where they stand: before attention and MLP, behind each, or both."""
    norm_adds_one: bool = False
    """Whether a norm multiplies with 1 + w, not with w."""
    norm_rounds_late: bool = False
    """Whether it multiplies in float32 and rounds then; else it rounds and multiplies then."""
    qk_norm: QKNorm = "none"
    """Of queries and keys, before they turn: each head's own numbers, or those of all heads together."""
    qkv_bias: bool = False
    o_bias: bool = False
    mlp_bias: bool = False
    attention_scale: float | None = None
    """What query-key products are multiplied with; None: head_size^-1/2."""
    attention_cap: float | None = None
    """cap tanh(score / cap) of each of them."""
    logit_cap: float | None = None
    activation: Activation = "silu"
    has_gate: bool = True
    """Whether the MLP multiplies act(gate x) with up x; else it is act(up x)."""
    embed_factor: float = 1.0
    """Rounded to the weights' dtype first, as in Gemma, where `embed_factor_rounds`."""
    embed_factor_rounds: bool = False
    residual_factor: float = 1.0
    """Of what attention and MLP add to the stream."""
    logit_divisor: float = 1.0
    names: TensorNames = field(default=LLAMA_NAMES)
    """What a checkpoint calls the weights."""

    @property
    def ropes(self) -> tuple[Rope, ...]:
        """The different ropes of its layers."""
        return tuple(dict.fromkeys(layer.rope for layer in self.layers if layer.rope is not None))

    @property
    def originals(self) -> tuple[int, ...]:
        """Lengths beyond which a whole sequence turns otherwise (LongRoPE)."""
        return tuple(sorted({rope.original for rope in self.ropes if rope.original is not None}))

    @property
    def longest(self) -> int | None:
        """Tokens of the longest sequence that is computed at all: with dynamic RoPE every length beyond the context has
        frequencies of its own. None: no limit.
        """
        return min((r.scaling.context for r in self.ropes if isinstance(r.scaling, Dynamic)), default=None)

    @property
    def n_parameters(self) -> int:
        """Parameters of the model, tied weights counted once."""
        return self.n_layers * self.n_block_parameters + self.hidden_size + self.n_end_parameters

    @property
    def n_end_parameters(self) -> int:
        """Those of embedding and head."""
        return (2 - self.tied) * self.vocab_size * self.hidden_size

    @property
    def n_matrix_parameters(self) -> int:
        """Those of a block that tokens are multiplied with."""
        attention = 2 * self.hidden_size * self.head_size * (self.n_heads + self.n_kv_heads)
        return attention + (2 + self.has_gate) * self.hidden_size * self.intermediate_size

    @property
    def n_block_parameters(self) -> int:
        """Those of one block."""
        d, i = self.hidden_size, self.intermediate_size
        q, kv = self.n_heads * self.head_size, self.n_kv_heads * self.head_size
        norms = (4 if self.norms == "both" else 2) * d
        norms += {"none": 0, "each_head": 2 * self.head_size, "all_heads": q + kv}[self.qk_norm]
        biases = self.qkv_bias * (q + 2 * kv) + self.o_bias * d + self.mlp_bias * ((1 + self.has_gate) * i + d)
        return self.n_matrix_parameters + norms + biases + 2 * (self.activation == "xielu")

    def place(self, name: str) -> Place:
        """Where in a checkpoint a parameter or buffer stands, by our name of it."""
        q, kv, i = self.n_heads * self.head_size, self.n_kv_heads * self.head_size, self.intermediate_size
        rows = {"attention.q": q, "attention.k": kv, "attention.v": kv, "mlp.gate": i, "mlp.up": i}
        return self.names.place(name, rows)
