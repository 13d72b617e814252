"""How many floating-point operations a forest costs, and how long its kernels take when nothing else is done."""

# T tokens, R predicting rows, D hidden, V vocabulary; a product of [m, k] and [k, n] is 2 m k n operations

import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from data.forest import Forest
from engine.model import Block, FrozenLinear, ModelConfig, Transformer, Weighing, attention
from engine.planning.adapted import Adapted


@dataclass(frozen=True, eq=False, kw_only=True)
class Documents:
    """Whose keys are seen: of each document of a forest (data/forest.py) how many queries and keys it has, causal from
    the bottom right, where no two keys have one position.
    """

    queries: np.ndarray
    """[M] int64."""
    keys: np.ndarray
    """[M] int64, no fewer than queries."""
    n_examples: int = 1
    """What the mean is of."""

    @staticmethod
    def of(forest: Forest) -> "Documents":
        """Those of a forest."""
        queries, keys = (np.diff(x.cpu().numpy()).astype(np.int64) for x in (forest.cu_q, forest.cu_k))
        return Documents(queries=queries, keys=keys)

    def seen(self, window: int | None) -> float:
        """Keys that queries see, summed over all queries, of a mean example: all before them and their own, the last
        `window` of these at most.
        """
        q, k = self.queries, self.keys
        seen = q * k - q * (q - 1) // 2  # the last query sees k, the one before k - 1 ...
        if window is not None:
            cut = np.clip(k - window, 0, q)  # queries beyond it: k - window keys too many for the last, then one less
            seen -= cut * (k - window) - cut * (cut - 1) // 2
        return int(seen.sum()) / self.n_examples

    @property
    def most_scores(self) -> int:
        """Queries times keys of the largest one."""
        return int((self.queries * self.keys).max(initial=0))


def forward_flops(shape: ModelConfig, forest: Forest) -> tuple[int, int]:
    """Operations of one forward pass over a forest: (of the blocks, of the head). A backward pass costs twice that.

    Attention is counted causally and within windows, which is what is needed and not what every kernel does.
    """
    blocks, head = counted_flops(shape, forest.n_tokens, Documents.of(forest), forest.rows.numel())
    return int(blocks), int(head)


def counted_flops(shape: ModelConfig, n_tokens: float, documents: Documents, n_rows: float) -> tuple[float, float]:
    """The same from numbers alone."""
    products, attention, head = parts_of_flops(shape, n_tokens, documents, n_rows)
    return products + attention, head


def parts_of_flops(
    shape: ModelConfig, n_tokens: float, documents: Documents, n_rows: float
) -> tuple[float, float, float]:
    """The same of the blocks' matrices, of attention and of the head."""
    products = 2 * n_tokens * shape.n_matrix_parameters * shape.n_layers
    return products, attention_flops(shape, documents), 2 * n_rows * shape.hidden_size * shape.vocab_size


def attention_flops(shape: ModelConfig, documents: Documents) -> float:
    """Operations of a forward pass's attention, of all layers."""
    windows = Counter(layer.window for layer in shape.layers)
    return sum(n * 4 * documents.seen(window) * shape.n_heads * shape.head_size for window, n in windows.items())


class LowRank(NamedTuple):
    """What of an adapter says how many operations it costs."""

    n_multiplied: int
    """Numbers of A and B that a token is multiplied with."""
    trains_head: bool


def training_flops(
    shape: ModelConfig, adapted: Adapted | LowRank | None, n_tokens: float, documents: Documents, n_rows: float
) -> tuple[float, float]:
    """Operations of (a forward pass, a forward and a backward pass) of what trains.

    A product takes two more of its size in the backward pass, one for the gradient of what it multiplies and one for
    that of its weight; the latter is not computed of a frozen matrix.
    """
    products, attention, head = parts_of_flops(shape, n_tokens, documents, n_rows)
    if adapted is None:
        return products + attention + head, 3 * (products + attention + head)
    low_rank = 2 * n_tokens * adapted.n_multiplied
    once = products + attention + head + low_rank
    return once, 2 * products + 3 * (attention + low_rank) + (3 if adapted.trains_head else 2) * head


def capped_flops(shape: ModelConfig, documents: Documents) -> float:
    """Operations of attention that a backward pass does again: where scores are capped, nothing is kept of them."""
    if shape.attention_cap is None:
        return 0
    return attention_flops(shape, documents)


def matmul_peak(dtype: torch.dtype, device: torch.device, size: int = 2048) -> float:
    """Operations per second of a plain square product of random numbers: what the device reaches at best."""
    a, b = (torch.randn(size, size, dtype=dtype, device=device) for _ in range(2))
    return 2 * size**3 / _seconds(lambda: a @ b, device)


def kernel_seconds(model: Transformer, forest: Forest) -> dict[str, float]:
    """Seconds of the matrix products and the attention of a forward and a backward pass, each kernel timed alone.

    {"blocks", "attention", "head"}: no norm, no softmax, no sum, no optimizer. What a step can be measured against.
    Beside an adapter, whose own products count, matrices are frozen: they have no gradient.
    """
    shape, device, dtype = model.config, model.embed.weight.device, model.embed.weight.dtype
    block = model.blocks[0]

    def products(weight: Tensor, n_rows: int, *, trains: bool = True) -> float:
        """Forward, gradient of the input, gradient of the weight where it has one."""
        x = torch.randn(n_rows, weight.shape[1], dtype=dtype, device=device)
        y = torch.randn(n_rows, weight.shape[0], dtype=dtype, device=device)
        steps: list[Callable[[], Tensor]] = [lambda: x @ weight.T, lambda: y @ weight, lambda: y.T @ x]
        return sum(_seconds(step, device) for step in (steps if trains else steps[:2]))

    with torch.no_grad():
        matrices = [(m.weight, m.weight.requires_grad) for m in block.modules() if isinstance(m, torch.nn.Linear)]
        matrices += [(m.matrix().to(dtype), False) for m in block.modules() if isinstance(m, FrozenLinear)]
        matrices += [(p, True) for n, p in block.named_parameters() if n.endswith(("lora_A", "lora_B"))]
        blocks = shape.n_layers * sum(products(w.detach(), forest.n_tokens, trains=t) for w, t in matrices)
        weight = model.head.matrix(model.tied)
        head = products(weight.detach(), forest.rows.numel(), trains=weight.requires_grad)
    sizes = (shape.n_heads, shape.n_kv_heads, shape.n_kv_heads)
    q, k, v = (
        torch.randn(forest.n_tokens, n, shape.head_size, dtype=dtype, device=device, requires_grad=True) for n in sizes
    )
    attend = attention.for_forest(forest, dtype)

    def attention_seconds(how: Weighing) -> float:
        return _seconds(lambda: attend(q, k, v, how).sum().backward(), device)

    kinds = Counter(block.weighing for block in model.blocks if isinstance(block, Block))
    attended = sum(n * attention_seconds(how) for how, n in kinds.items())
    return {"blocks": blocks, "attention": attended, "head": head}


def _seconds(call: Callable[[], object], device: torch.device, n: int = 3) -> float:
    """The fastest of n calls after a first one."""
    best = float("inf")
    for i in range(n + 1):
        start = time.perf_counter()
        call()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        best = min(best, time.perf_counter() - start) if i else best
    return best
