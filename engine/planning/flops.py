"""How many floating-point operations a forest costs, and how long its kernels take when nothing else is done."""

# T tokens, R predicting rows, D hidden, V vocabulary; a product of [m, k] and [k, n] is 2 m k n operations

import time
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from data.forest import Forest
from engine.model import PLAIN, ModelConfig, Transformer, attention


def forward_flops(shape: ModelConfig, forest: Forest) -> tuple[int, int]:
    """Operations of one forward pass over a forest: (of the blocks, of the head). A backward pass costs twice that.

    Attention is counted causally, which is what is needed and not what every kernel does.
    """
    q, k = (np.diff(x.cpu().numpy()).astype(np.int64) for x in (forest.cu_q, forest.cu_k))
    seen = int((q * k - q * (q - 1) // 2).sum())
    blocks, head = counted_flops(shape, forest.n_tokens, seen, forest.rows.numel())
    return int(blocks), int(head)


def counted_flops(shape: ModelConfig, n_tokens: float, seen: float, n_rows: float) -> tuple[float, float]:
    """The same from numbers alone. seen: keys that queries see, summed over all queries."""
    weights = 2 * shape.hidden_size * shape.head_size * (shape.n_heads + shape.n_kv_heads)
    weights += 3 * shape.hidden_size * shape.intermediate_size
    blocks = shape.n_layers * (2 * n_tokens * weights + 4 * seen * shape.n_heads * shape.head_size)
    return blocks, 2 * n_rows * shape.hidden_size * shape.vocab_size


def matmul_peak(dtype: torch.dtype, device: torch.device, size: int = 2048) -> float:
    """Operations per second of a plain square product of random numbers: what the device reaches at best."""
    a, b = (torch.randn(size, size, dtype=dtype, device=device) for _ in range(2))
    return 2 * size**3 / _seconds(lambda: a @ b, device)


def kernel_seconds(model: Transformer, forest: Forest) -> dict[str, float]:
    """Seconds of the matrix products and the attention of a forward and a backward pass, each kernel timed alone.

    {"blocks", "attention", "head"}: no norm, no softmax, no sum, no optimizer. What a step can be measured against.
    """
    shape, device, dtype = model.config, model.embed.weight.device, model.embed.weight.dtype
    block = model.blocks[0]

    def products(weight: Tensor, n_rows: int) -> float:
        """Forward, gradient of the input, gradient of the weight."""
        x = torch.randn(n_rows, weight.shape[1], dtype=dtype, device=device)
        y = torch.randn(n_rows, weight.shape[0], dtype=dtype, device=device)
        steps: list[Callable[[], Tensor]] = [lambda: x @ weight.T, lambda: y @ weight, lambda: y.T @ x]
        return sum(_seconds(step, device) for step in steps)

    with torch.no_grad():
        linear = [m.weight.detach() for m in block.modules() if isinstance(m, torch.nn.Linear)]
        blocks = shape.n_layers * sum(products(weight, forest.n_tokens) for weight in linear)
        head = products(model.head.matrix(model.tied).detach(), forest.rows.numel())
    sizes = (shape.n_heads, shape.n_kv_heads, shape.n_kv_heads)
    q, k, v = (
        torch.randn(forest.n_tokens, n, shape.head_size, dtype=dtype, device=device, requires_grad=True) for n in sizes
    )
    attend = attention.for_forest(forest, dtype)

    def attention_pass() -> None:
        attend(q, k, v, PLAIN).sum().backward()

    return {"blocks": blocks, "attention": shape.n_layers * _seconds(attention_pass, device), "head": head}


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
