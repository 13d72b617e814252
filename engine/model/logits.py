"""Logits of rows, a chunk at a time: float32 or better, and no more of them at once than a chunk holds."""

# R rows, C rows of a chunk, D hidden, V vocabulary

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

CHUNK_BYTES = {"cpu": 256 * 2**20, "cuda": 2 * 2**30}
# Rows whose softmax is taken at once on the CPU: what fits into a core's cache is read from memory once.
CACHE_BYTES = 2 * 2**20
# Logits that are made by one product on the CPU. Fewer rows make it slower; blocks of one size are used again.
PIECE_BYTES = 64 * 2**20


def rows_of(n_bytes: int, weight: Tensor) -> int:
    """How many rows of float32 logits are n_bytes, one at least."""
    return max(1, n_bytes // (len(weight) * 4))


def slices(n: int, size: int) -> Iterator[slice]:
    """The rows 0 to n in pieces of `size`, one at least."""
    return (slice(start, min(start + size, n)) for start in range(0, n, max(1, size)))


def wide(dtype: torch.dtype) -> torch.dtype:
    """What logits of a model of that dtype are computed in: float32 or better."""
    return torch.float64 if dtype == torch.float64 else torch.float32


class Squash(NamedTuple):
    """What becomes of a head's products z: z / divisor, and cap tanh of that / cap where there is a cap."""

    divisor: float = 1.0
    cap: float | None = None

    def __call__(self, logits: Tensor) -> Tensor:
        """Of products [C, V], in their place."""
        if self.divisor != 1:
            logits /= self.divisor
        return logits if self.cap is None else logits.div_(self.cap).tanh_().mul_(self.cap)

    def slope(self, logits: Tensor) -> Tensor | float:
        """d logits / d z at logits [C, V] that it has made."""
        if self.cap is None:
            return 1 / self.divisor
        return (logits / self.cap).square_().neg_().add_(1).div_(self.divisor)  # one more [C, V], not three


AS_THEY_ARE = Squash()


def wide_logits(rows: Tensor, weight: Tensor) -> Tensor:
    """rows [C, D] x weight [V, D] -> [C, V], float32 or better: bf16 logits would add 0.2 to 0.4 nats of noise."""
    if rows.dtype == wide(rows.dtype):
        return torch.mm(rows, weight.T)
    if rows.is_cuda:  # no float32 copy of the weight
        return torch.mm(rows, weight.T, out_dtype=torch.float32)
    return torch.mm(rows.float(), weight.T.float())


def logits_by_token(rows: Tensor, weight: Tensor) -> Tensor:
    """As wide_logits, for few rows on the CPU: up to twice as fast. Rows are laid out one number behind the other
    (strides 1 and C).
    """
    if rows.is_cuda:
        return wide_logits(rows, weight)
    wider = wide(rows.dtype)
    return torch.mm(weight.to(wider), rows.to(wider).T.contiguous()).T


def add_product(total: Tensor | None, left: Tensor, right: Tensor) -> Tensor:
    """total + left.T @ right, float32 or better; in place where there is a total."""
    wider = wide(left.dtype)
    if left.dtype == wider:
        return left.T @ right if total is None else total.addmm_(left.T, right)
    made = torch.mm(left.T, right, out_dtype=wider) if left.is_cuda else left.T.to(wider) @ right.to(wider)
    return made if total is None else total.add_(made)
