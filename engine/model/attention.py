"""Who attends to whom in a token forest: three ways to compute the same thing.

`for_forest` picks what training uses: one kernel call with gathered keys on CUDA; on the CPU one call per document, or,
where documents are short, dense masks over runs of whole examples. Each of the two is the other's oracle.
"""

# T packed tokens, U gathered keys, H heads, K kv heads, E head size

import inspect
from itertools import pairwise

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from data.forest import Forest
from engine.model.llama import Attend

RUN_TOKENS = 256  # tokens under one dense mask: attention's cost grows with their square
# From that many tokens on a document is worth a call of its own on the CPU. Forward and backward, 8 heads of 32, two
# threads, dense / by_document: 0.28 at 14 tokens a document, 0.79 at 69, 1.06 at 114, 1.36 at 174, 1.73 at 274.
LONG_DOCUMENT = 100


def for_forest(forest: Forest, dtype: torch.dtype) -> Attend:
    """The attention of training on the forest's device: the kernel on CUDA takes bf16 and fp16 only."""
    has_kernel = forest.tokens.is_cuda and dtype in (torch.bfloat16, torch.float16)
    if has_kernel:
        return varlen(forest)
    n_documents = forest.cu_q.numel() - 1
    return by_document(forest) if forest.n_tokens >= LONG_DOCUMENT * n_documents else dense(forest)


def dense(forest: Forest, run_tokens: int = RUN_TOKENS) -> Attend:
    """Boolean masks from (example, branch, position), one per run of whole examples of at most run_tokens tokens.

    A token sees those of its own example that stand in the trunk or in its own branch, up to its own position.
    """
    runs: list[tuple[int, int, Tensor]] = []
    start = 0
    for end, after in zip(forest.bounds[1:], [*forest.bounds[2:], None], strict=True):
        if after is not None and after - start <= run_tokens:
            continue
        example, branch, position = (x[start:end] for x in (forest.example, forest.branch, forest.positions))
        sees = (example[:, None] == example) & (position <= position[:, None])
        runs.append((start, end, sees & ((branch == 0) | (branch == branch[:, None]))))
        start = end

    def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return torch.cat([_sdpa(q[a:b], k[a:b], v[a:b], mask) for a, b, mask in runs])

    return attend


def by_document(forest: Forest) -> Attend:
    """One call per document with its gathered keys, causal from the bottom right."""
    from torch.nn.attention.bias import causal_lower_right  # brings torch's compiler: seconds that --help does without

    cu_q, cu_k = forest.cu_q.tolist(), forest.cu_k.tolist()

    def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        k, v = gather(k, forest.keys), gather(v, forest.keys)  # [U, K, E]
        parts = []
        for (a, b), (c, d) in zip(pairwise(cu_q), pairwise(cu_k), strict=True):
            parts.append(_sdpa(q[a:b], k[c:d], v[c:d], causal_lower_right(b - a, d - c)))
        return torch.cat(parts)

    return attend


def varlen(forest: Forest) -> Attend:
    """One CUDA kernel call over all documents, with queries fewer than keys in every branch but the first."""
    from torch.nn.attention.varlen import varlen_attn  # not in every CPU build

    # torch 2.13 wants grouped heads announced; 2.11 has no such argument and takes them as they are.
    grouped = {"enable_gqa": True} if "enable_gqa" in inspect.signature(varlen_attn).parameters else {}

    def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        k, v = gather(k, forest.keys), gather(v, forest.keys)  # [U, K, E]
        lengths = (forest.cu_q, forest.cu_k, forest.max_q, forest.max_k)
        # A window of (-1, 0) is causal, from the bottom right where lengths differ.
        found = varlen_attn(q, k, v, *lengths, window_size=(-1, 0), **grouped)  # pyright: ignore[reportArgumentType]
        assert isinstance(found, Tensor)  # a tuple only where auxiliary results are asked for
        return found

    return attend


def gather(x: Tensor, rows: Tensor) -> Tensor:
    """x[rows], whose backward pass adds up where the rows point instead of sorting them: a third of the time.

    On CUDA it adds in any order: with three readers of a row or more (K > 2 responses) the last bit may vary.
    """
    return x.index_select(0, rows)


def _sdpa(q: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> Tensor:
    """[Tq, H, E], [Tk, K, E] -> [Tq, H, E]."""
    q, k, v = (x.transpose(0, 1)[None] for x in (q, k, v))  # [1, H, T, E]
    return scaled_dot_product_attention(q, k, v, attn_mask=mask, enable_gqa=True)[0].transpose(0, 1)
