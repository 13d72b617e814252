"""How many bytes a run takes on each rank, and how to cut its passes so that they fit.

    weights, optimizer and gradients       what stays, from the number of parameters; with an adapter the frozen base
                                           as it is held, and float32 of what trains alone
    kept for the backward pass             grows with the tokens of a pass, less with every block that is recomputed
    head                                   float32 logits of a chunk of rows, the gradient of a weight that trains
    passing                                blocks gathered from other ranks, a block's own gradient, the optimizer's own

Pure functions of `MemoryInputs`; docs/scaling.md has the table for larger models. 1 GB is 10^9 bytes.
"""

# T tokens of a pass, D hidden, I intermediate, V vocabulary

import itertools
import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch

from engine.config import OptimizerName
from engine.model import BUFFERS, BUFFERS_OF_TWO, CHUNK_BYTES, PIECE_BYTES, ModelConfig
from engine.planning.adapted import Adapted
from system import malloc

ROWS = 0.85  # share of a forest's tokens that predict: the responses', 0.82 on UltraFeedback's lengths
# Keys that attention gathers, per token: the prompt's are there once for each branch.
KEYS = 1.17
MOST_TOKENS = 8000  # of a pass: more make a GPU no faster, and torch 2.11 compiles anew for 8,192 and more
WHOLE_STEP = sys.maxsize  # of an optimizer that steps inside the backward pass: there may be one of these a step
FEWEST_TOKENS = 1024  # fewer make it slower than computing a block's inside again does
OWN_BYTES = {"cuda": 100 * 10**6, "cpu": 160 * 10**6}
"""What the libraries take by themselves: cuBLAS's workspace and the like; on the CPU, pages of threads and of pools."""
FRAGMENTS = {"cuda": 0.02, "cpu": 0.05}
"""What the allocator cannot use, as a share."""
FRAGMENTS_WITH_CACHES = 0.16
"""The same on the CPU where the allocator has caches of small blocks (system/malloc.py)."""
GATHERING = 0.03
"""As much more on a GPU where weights are gathered: eight layers of an 8B model took 64.9 GB there instead of 63.0."""

OF_SCORE = 17
"""Bytes of a capped score at the peak of its backward pass: four times in float32 or near it."""

ON_ONE_MATRIX = 12
"""Bytes a number that Muon takes of the matrix that it works on: the update in float32, and four of it in bf16."""


@dataclass(frozen=True, kw_only=True)
class MemoryInputs:
    """What the memory of a run depends on."""

    shape: ModelConfig
    device: str
    """cuda or cpu."""
    dtype: torch.dtype
    """Of compute."""
    adapted: Adapted | None = None
    """A frozen base and the adapter that trains; None: all weights train."""
    n_ranks: int = 1
    n_shards: int = 1
    """Ranks that share one copy of the weights."""
    is_split: bool = False
    """Whether masters are split in halves (engine/optim/split_master.py); then there is one rank."""
    square_avg_bytes: int = 4
    optimizer: OptimizerName = "rmsprop"
    group_share: float = 1.0
    """Of the parameters, those of the optimizer's largest group: torch's optimizers step a group at once."""
    holds_gradients: bool = True
    """False: the optimizer steps inside the backward pass."""
    holds_reference: bool = False
    moves_reference: bool = False
    """Whether the reference follows the policy, by steps that only float32 can hold."""
    other_reference: ModelConfig | None = None
    """The reference's shape where it is another model than the start; None: the policy's own, or no reference."""
    micro_tokens: int = FEWEST_TOKENS
    """Most tokens of a pass, one example at least."""
    pass_tokens: int = FEWEST_TOKENS
    """Tokens of the largest pass that is to be expected."""
    has_several_passes: bool = True
    """Whether a step may take more than one pass."""
    n_recomputed: int = 0
    """Blocks whose inside is computed again in the backward pass."""
    reshards: bool = True
    """Whether a block's gathered weights are given back after its forward pass."""
    is_compiled: bool = False
    n_distributions: int = 0
    """Models of whose whole next-token distributions something is computed (engine/model/distribution.py)."""
    most_scores: int = 0
    """Queries times keys of the largest document, which are there at once where scores are capped."""
    carried_bytes: int = 0
    """Of tensors that go from the model's folder into every one that is written (engine/weights/carried.py)."""

    @property
    def reference_shape(self) -> ModelConfig:
        """The reference's shape."""
        return self.other_reference or self.shape

    @property
    def is_plain(self) -> bool:
        """Whether nothing is wrapped: one process on the CPU in float32, with an adapter, or split masters."""
        is_alone = self.n_ranks == 1 and self.n_shards == 1
        is_wide = self.device == "cpu" and self.dtype == torch.float32
        return self.is_split or (is_alone and (is_wide or self.adapted is not None))

    @property
    def casts_copies(self) -> bool:
        """Whether one process computes with copies of its masters, all there at once (engine/distributed/copies.py)."""
        is_alone = self.n_ranks == 1 and self.n_shards == 1
        return is_alone and self.adapted is None and not self.is_plain and not self.reshards

    @property
    def n_trained(self) -> int:
        """Numbers that train."""
        return self.shape.n_parameters if self.adapted is None else self.adapted.n_trained

    @property
    def trains_head(self) -> bool:
        """Whether the head's weight has a gradient."""
        return self.adapted is None or self.adapted.trains_head

    @property
    def reference_bytes(self) -> int:
        """Of a reference beside the policy, on one rank. One that computes with the policy's base has its adapter,
        whole on every rank, and a copy of what the policy trains whole.
        """
        size = self.dtype.itemsize
        if self.adapted is not None and self.adapted.shares_base:
            return 4 * self.adapted.n_of_reference + size * self.adapted.n_whole
        is_whole = self.moves_reference or (self.is_plain and not self.is_split and self.adapted is None)
        return (4 if is_whole else size) * self.reference_shape.n_parameters // self.n_shards

    @property
    def n_moments(self) -> float:
        """Numbers that the optimizer keeps per parameter."""
        return n_moments(self.optimizer, self.shape)

    @property
    def steps_in_one_pass(self) -> bool:
        """Whether RMSProp or AdamW needs no memory of its own: on split masters, or on a GPU."""
        return self.is_split or self.device == "cuda"


def n_moments(optimizer: OptimizerName, shape: ModelConfig) -> float:
    """Numbers that an optimizer keeps per parameter, in the mean: Muon one of a matrix, and AdamW's two of the ends."""
    if optimizer == "muon":
        return 1 + shape.n_end_parameters / shape.n_parameters
    return {"rmsprop": 1, "adamw": 2}[optimizer]


def kept_bytes(s: MemoryInputs) -> int:
    """Bytes that one block keeps for its backward pass, per token, by what its operations save.

    Of a frozen layer the inputs are kept for its A; where not every layer has an adapter, less than this is.
    """
    c, size = s.shape, s.dtype.itemsize
    between = 0 if s.adapted is None else size * s.adapted.n_between // c.n_layers
    heads, kv = c.n_heads * c.head_size, c.n_kv_heads * c.head_size
    attention = 2 * heads + 2 * KEYS * kv  # queries and what attention gives, gathered keys and values
    normed = 0 if c.qk_norm == "none" else heads + kv
    roots = 4 * (c.n_heads + c.n_kv_heads) if c.qk_norm == "each_head" else 0  # one of each head, in float32
    if s.is_compiled:
        # The stream twice, and what the norms behind are of; on both sides the stream in the middle is made again.
        stream = {"before": 2, "both": 3, "behind": 4}[c.norms] * c.hidden_size
        inside = (1 + c.has_gate) * c.intermediate_size  # gate and up
        return int(size * (stream + attention + normed + inside) + roots) + between
    # Twice what the products are of: norms' results, or the stream. Gate, up and the product that comes of them;
    # without a gate xIELU's square, exponential and difference, what it is of and what it gives, and which are above 0.
    inside = 3 * size * c.intermediate_size if c.has_gate else (5 * size + 1) * c.intermediate_size
    of_norm = 4 + (4 if c.norm_rounds_late else size)  # what it is of, in float32, and what it multiplies
    if s.adapted is not None:
        of_norm = 4  # its weight has no gradient
    n_norms = 4 if c.norms == "both" else 2
    norms = of_norm * (n_norms * c.hidden_size + normed)
    return int(size * (2 * c.hidden_size + attention) + inside + norms + roots) + between


def needs(s: MemoryInputs) -> dict[str, int]:
    """Bytes that a rank takes at most, by what takes them; their sum is the peak."""
    moments = [_in_backward(s), _inside_a_block(s), _at_its_end(s), _in_step(s)]
    moments += [_in_capped_attention(s)] if s.shape.attention_cap is not None else []
    moments += [_in_a_product(s)] if s.adapted is not None else []
    if s.other_reference is not None:
        moments.append(_in_its_block(s) if s.holds_reference else _with_reference_alone(s))
    found = max(moments, key=lambda moment: sum(moment.values()))
    found = {name: value for name, value in found.items() if value}
    gathers = s.device == "cuda" and not s.is_plain and not s.casts_copies
    is_cached = s.device == "cpu" and malloc.has_caches()
    share = FRAGMENTS_WITH_CACHES if is_cached else FRAGMENTS[s.device] + (GATHERING if gathers else 0.0)
    return found | {"libraries": OWN_BYTES[s.device] + int(share * sum(found.values()))}


def _staying(s: MemoryInputs) -> dict[str, int]:
    a = s.adapted
    held = 4 * s.shape.n_parameters // s.n_shards if a is None else a.frozen_bytes // s.n_shards + a.code_bytes
    return {
        "weights": held,
        "adapter": 0 if a is None else 4 * a.n_trained // s.n_shards,
        "optimizer": int(s.square_avg_bytes * s.n_moments * (s.n_trained // s.n_shards)),
        "reference": s.reference_bytes if s.holds_reference else 0,
        "carried": s.carried_bytes if s.device == "cpu" else 0,  # beside a GPU they stay in the host's memory
    }


def _gradients(s: MemoryInputs) -> int:
    size = s.dtype.itemsize if s.is_split else 4
    found = size * s.n_trained // s.n_shards if s.holds_gradients else 0
    adds_up_whole = s.adapted is not None and not s.is_plain and s.has_several_passes  # Ranks.set_gradient_sync
    return found + (size * s.n_trained if adds_up_whole else 0)


def _in_backward(s: MemoryInputs) -> dict[str, int]:
    """When the backward pass begins: everything is kept; gradients are there from the passes before, if any."""
    return _staying(s) | {
        "gradients": _gradients(s) if s.has_several_passes else 0,
        "gathered": _gathered(s),
        "kept for the backward pass": _kept(s),
        "head": _head(s, int(ROWS * s.pass_tokens)),
    }


def _inside_a_block(s: MemoryInputs) -> dict[str, int]:
    """While the last block's MLP goes backward: the gradients of its product and of both factors, beside what is still
    kept; the head has let go of its rows, and the MLP of its product. More than the head takes where passes are long
    and the vocabulary is small.
    """
    product = 0 if s.is_compiled else s.shape.intermediate_size  # which compiled blocks do not keep
    freed = int(ROWS * s.shape.hidden_size) + product
    return _staying(s) | {
        "gradients": _gradients(s) if s.has_several_passes else 0,
        "gathered": _gathered(s),
        "kept for the backward pass": _kept(s) - s.dtype.itemsize * freed * s.pass_tokens,
        "gradients inside a block": 3 * s.dtype.itemsize * s.shape.intermediate_size * s.pass_tokens,
    }


def _kept(s: MemoryInputs) -> int:
    c, size = s.shape, s.dtype.itemsize
    kept = (c.n_layers - s.n_recomputed) * kept_bytes(s) + s.n_recomputed * size * c.hidden_size
    kept += kept_bytes(s) if s.n_recomputed else 0  # the one that is being recomputed
    kept += int((2 + ROWS) * size * c.hidden_size)  # embedded tokens, the last norm's, its rows
    return s.pass_tokens * kept + (0 if s.adapted is None else size * s.adapted.n_cast)


def _in_capped_attention(s: MemoryInputs) -> dict[str, int]:
    """While the scores of the largest document are made again, in the last block at worst."""
    return _staying(s) | {
        "gradients": _gradients(s) if s.has_several_passes else 0,
        "gathered": _gathered(s),
        "kept for the backward pass": _kept(s),
        "scores": OF_SCORE * s.shape.n_heads * s.most_scores,
        "masks": len({layer.window for layer in s.shape.layers}) * s.pass_tokens * math.isqrt(s.most_scores),
    }


def _in_a_product(s: MemoryInputs) -> dict[str, int]:
    """While a frozen matrix is there in the dtype that computes, and so is the one before, in the last block at worst.

    A reference on the same base computes its block before the policy's is kept, and takes no more than that one.
    """
    assert s.adapted is not None
    return _staying(s) | {
        "gradients": _gradients(s) if s.has_several_passes else 0,
        "gathered": _gathered(s),
        "kept for the backward pass": _kept(s),
        "a frozen matrix": 2 * s.dtype.itemsize * s.adapted.largest,
    }


def _in_its_block(s: MemoryInputs) -> dict[str, int]:
    """While a block of another model computes, the last one at worst, beside all that the policy keeps."""
    return _staying(s) | {
        "gradients": _gradients(s) if s.has_several_passes else 0,
        "gathered": _gathered(s),
        "kept for the backward pass": _kept(s),
        "the reference's block": s.pass_tokens * kept_bytes(replace(s, shape=s.reference_shape)),
    }


def _with_reference_alone(s: MemoryInputs) -> dict[str, int]:
    """While another model's log-probs are computed before the policy is read: a block's inside, or logits."""
    c, size = s.reference_shape, s.dtype.itemsize
    logits = min(4 * int(ROWS * s.pass_tokens) * c.vocab_size, CHUNK_BYTES[s.device])
    kept = kept_bytes(replace(s, shape=c)) + 2 * size * c.hidden_size
    return {
        "reference": size * c.n_parameters // s.n_shards,
        "gathered": _copies(s, c),
        "the reference's block": s.pass_tokens * kept,
        "head": logits + logits * size // 4,
    }


def _at_its_end(s: MemoryInputs) -> dict[str, int]:
    """The embedding's gradient on its way to the others, which are all there."""
    trains = s.adapted is None or s.adapted.trains_embedding
    ends = s.shape.vocab_size * s.shape.hidden_size if trains else 0
    size = s.dtype.itemsize if s.adapted is None else 4  # beside a frozen base it is float32 itself
    moving = size * s.n_trained if s.casts_copies else (size + (0 if s.is_plain else 8)) * ends
    return _staying(s) | {"gradients": _gradients(s), "gathered": _gathered(s), "a gradient on its way": moving}


def _in_step(s: MemoryInputs) -> dict[str, int]:
    """The optimizer: a number per parameter of its own, where torch's works on all tensors of a group at once; Muon's
    gathers a matrix.
    """
    own = 0 if s.steps_in_one_pass else int(4 * s.group_share * s.n_trained) // s.n_shards
    if s.optimizer == "muon":
        widest = max(s.shape.intermediate_size, s.shape.n_heads * s.shape.head_size)
        own = max(own, ON_ONE_MATRIX * s.shape.hidden_size * widest)
    return _staying(s) | {"gradients": _gradients(s), "gathered": _gathered(s), "the optimizer's own": own}


def _head(s: MemoryInputs, rows: int) -> int:
    """Float32 logits, kept where they are one chunk, and what the backward pass makes of them. With a cap none are
    kept, and beside those of a piece is the cap's slope.
    """
    c, size = s.shape, s.dtype.itemsize
    if s.n_distributions:
        return _head_of_distributions(s, rows)
    logits = min(4 * rows * c.vocab_size, CHUNK_BYTES[s.device])
    is_one = logits < CHUNK_BYTES[s.device]
    weight = c.vocab_size * c.hidden_size if s.trains_head else 0
    widened = 4 * weight if s.adapted is not None and size < 4 else 0  # the gradient of a float32 head, cast for it
    if c.logit_cap is not None:
        piece = logits if s.device == "cuda" else min(logits, PIECE_BYTES)
        gradient = (size if is_one else 4 + 4 + size) if s.device == "cuda" else 4
        return 2 * piece + gradient * weight + widened
    if s.device == "cpu":
        narrow = 0 if size == 4 else min(logits, PIECE_BYTES) * size // 4
        return logits + narrow + 4 * weight + widened
    return logits + logits * size // 4 + (size if is_one else 4 + 4 + size) * weight + widened


def _head_of_distributions(s: MemoryInputs, rows: int) -> int:
    """Log-probs of a piece of rows and what is made of them, of both models for a divergence; nothing is kept of them,
    but the reference's last hidden rows, and its head's weight is gathered again.
    """
    c, size, both = s.shape, s.dtype.itemsize, s.n_distributions == 2
    weight = c.vocab_size * c.hidden_size
    n = BUFFERS_OF_TWO if both else BUFFERS
    their_weight = c.vocab_size * s.reference_shape.hidden_size
    piece = CHUNK_BYTES[s.device] // n
    logits = min(4 * rows * c.vocab_size, piece if s.device == "cuda" else min(piece, PIECE_BYTES))
    held = logits * (n if s.device == "cuda" else s.n_distributions) + logits * size // 4
    gradient = (4 + 4 + size if s.device == "cuda" else 4) * weight if s.trains_head else 0
    is_there = s.is_plain or s.casts_copies
    return (
        held
        + gradient
        + both * (size * rows * s.reference_shape.hidden_size + (0 if is_there else size * their_weight))
    )


def _gathered(s: MemoryInputs) -> int:
    """Copies of weights to compute with, and a block's gradient while it is summed over ranks."""
    c, size, a = s.shape, s.dtype.itemsize, s.adapted
    if s.is_plain:
        return 0
    if s.casts_copies:
        of_reference = s.reference_shape.n_parameters if s.holds_reference and s.moves_reference else 0
        return size * (c.n_parameters + of_reference)
    gathered = _copies(s, c)
    if s.holds_reference and not (a is not None and a.shares_base):
        gathered += 2 * size * _parts(s.reference_shape)[1]
    return gathered + (4 * a.n_low_rank // c.n_layers if a is not None else (size + 4) * _parts(c)[1])


def _copies(s: MemoryInputs, shape: ModelConfig) -> int:
    """What of a model is gathered at once: embedding and head, and the blocks that compute, or all of them."""
    if s.is_plain or (s.casts_copies and shape is not s.shape):  # the reference alone is there in bf16
        return 0
    n_blocks = 2 if s.reshards else shape.n_layers
    if s.adapted is not None and shape is s.shape:
        return n_blocks * s.adapted.block_bytes + s.adapted.end_bytes
    ends, block = _parts(shape)
    return s.dtype.itemsize * (n_blocks * block + ends)


def _parts(shape: ModelConfig) -> tuple[int, int]:
    """Parameters of embedding and head, and of one block."""
    ends = shape.n_end_parameters
    return ends, (shape.n_parameters - ends) // shape.n_layers


def total(s: MemoryInputs) -> int:
    """Bytes that a rank takes at most."""
    return sum(needs(s).values())


def fit(
    s: MemoryInputs, budget: int, *, micro_tokens: int | None, n_recomputed: int | None, longest: int, step_tokens: int
) -> MemoryInputs:
    """The inputs with the passes that fit `budget` bytes: as many tokens as do, and blocks recomputed where few would.

    micro_tokens, n_recomputed: as they are wanted; None: to be found. longest: tokens of the longest example, which is
    never cut. step_tokens: most of a step on one rank. Gives the smallest where none fits.
    """
    if not s.holds_gradients:
        sizes: Sequence[int] = [WHOLE_STEP]
    elif micro_tokens is not None:
        sizes = [micro_tokens]
    elif s.device == "cpu":
        sizes = [FEWEST_TOKENS]
    else:
        sizes = range(min(MOST_TOKENS, max(FEWEST_TOKENS, step_tokens)), FEWEST_TOKENS - 1, -64)
    most_blocks = 0 if s.device == "cpu" else s.shape.n_layers
    blocks = range(most_blocks + 1) if n_recomputed is None else [min(n_recomputed, s.shape.n_layers)]
    found = s
    for n, size in itertools.product(blocks, sizes):
        expected = max(longest, min(size, step_tokens))
        several = size < step_tokens
        found = replace(s, micro_tokens=size, pass_tokens=expected, n_recomputed=n, has_several_passes=several)
        if total(found) <= budget:
            break
    return found
