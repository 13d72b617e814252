"""Who attends to whom in a token forest: three ways to compute the same thing.

`for_forest` picks what training uses: one kernel call with gathered keys on CUDA; on the CPU one call per document, or,
where documents are short, dense masks over runs of whole examples. Each of the two is the other's oracle.
"""

# T packed tokens, U gathered keys, H heads, K kv heads, E head size

import functools
import inspect
from itertools import pairwise

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention
from torch.utils.checkpoint import checkpoint

from data.forest import Forest
from engine.model.transformer import PLAIN, Attend, Weighing

RUN_TOKENS = 256  # tokens under one dense mask: attention's cost grows with their square
# From that many tokens on a document is worth a call of its own on the CPU. Forward and backward, 8 heads of 32, two
# threads, dense / by_document: 0.28 at 14 tokens a document, 0.79 at 69, 1.06 at 114, 1.36 at 174, 1.73 at 274.
LONG_DOCUMENT = 100
WHOLE = 2  # keys to a query up to which a branch is computed with its prompt's queries, in one causal call
CHUNK = 512  # queries under one mask of a long document: memory grows with its length, not with its square


def for_forest(forest: Forest, dtype: torch.dtype) -> Attend:
    """The attention of training on the forest's device: the kernel on CUDA takes bf16 and fp16 only."""
    has_kernel = forest.tokens.is_cuda and dtype in (torch.bfloat16, torch.float16)
    if has_kernel:
        return varlen(forest)
    n_documents = forest.cu_q.numel() - 1
    return by_document(forest) if forest.n_tokens >= LONG_DOCUMENT * n_documents else dense(forest)


def dense(forest: Forest, run_tokens: int = RUN_TOKENS) -> Attend:
    """Boolean masks from (example, branch, position), one per run of whole examples of at most run_tokens tokens.

    A token sees those of its own example that stand in the trunk or in its own branch, up to its own position, and no
    further back than the window.
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

    @functools.cache  # made once for all layers of a window
    def masks(window: int | None) -> list[Tensor]:
        if window is None:
            return [sees for *_, sees in runs]
        own = (forest.positions[a:b] for a, b, _ in runs)
        pairs = zip(runs, own, strict=True)
        return [sees & (position > position[:, None] - window) for (*_, sees), position in pairs]

    def attend(q: Tensor, k: Tensor, v: Tensor, how: Weighing = PLAIN) -> Tensor:
        parts = zip(runs, masks(how.window), strict=True)
        return torch.cat([masked(q[a:b], k[a:b], v[a:b], mask, how) for (a, b, _), mask in parts])

    return attend


def by_document(forest: Forest) -> Attend:
    """Calls per document with its gathered keys, causal from the bottom right; no mask has more than CHUNK rows.

    A branch's queries are the last of its document. Where they are the half of it or more, all of it is computed, its
    prompt's queries too, whose results are dropped: what a causal call leaves out is more than that.
    """
    cu_q, cu_k = forest.cu_q.tolist(), forest.cu_k.tolist()

    @functools.cache  # of all layers: one for each size
    def explicit(n_queries: int, n_keys: int, window: int) -> Tensor:
        at = torch.arange(n_keys, device=forest.tokens.device)
        distance = at[n_keys - n_queries :, None] - at
        return (distance >= 0) & (distance < window)

    def in_chunks(q: Tensor, k: Tensor, v: Tensor, window: int, how: Weighing) -> Tensor:
        """A document's keys stand in the order of their positions, from 0 on, and its queries are the last of them."""
        before, parts = len(k) - len(q), []
        for a, b in pairwise([*range(0, len(q), CHUNK), len(q)]):
            keys = slice(max(0, before + a - window + 1), before + b)
            mask = explicit(b - a, keys.stop - keys.start, window)
            parts.append(masked(q[a:b], k[keys], v[keys], mask, how))
        return torch.cat(parts)

    def attend(q: Tensor, k: Tensor, v: Tensor, how: Weighing = PLAIN) -> Tensor:
        k, v = gather(k, forest.keys), gather(v, forest.keys)  # [U, K, E]
        parts = []
        for (a, b), (c, d) in zip(pairwise(cu_q), pairwise(cu_k), strict=True):
            n_queries, n_keys = b - a, d - c
            window = n_keys if how.window is None else min(how.window, n_keys)
            if how.cap is not None:
                parts.append(masked(q[a:b], k[c:d], v[c:d], explicit(n_queries, n_keys, window), how))
            elif window < n_keys or n_keys > WHOLE * n_queries:
                parts.append(in_chunks(q[a:b], k[c:d], v[c:d], window, how))
            else:
                whole = q[a:b] if n_queries == n_keys else gather(q, forest.keys[c:d])
                parts.append(causal(whole, k[c:d], v[c:d], how)[n_keys - n_queries :])
        return torch.cat(parts)

    return attend


def varlen(forest: Forest) -> Attend:
    """One CUDA kernel call over all documents, with queries fewer than keys in every branch but the first.

    No kernel caps scores: a layer with a cap goes document by document through plain products, whose scores are
    computed again in the backward pass.
    """
    from torch.nn.attention.varlen import varlen_attn  # not in every CPU build

    # torch 2.13 wants grouped heads announced; 2.11 has no such argument and takes them as they are.
    grouped = {"enable_gqa": True} if "enable_gqa" in inspect.signature(varlen_attn).parameters else {}
    plain = functools.cache(lambda: by_document(forest))

    def attend(q: Tensor, k: Tensor, v: Tensor, how: Weighing = PLAIN) -> Tensor:
        if how.cap is not None:
            return plain()(q, k, v, how)
        k, v = gather(k, forest.keys), gather(v, forest.keys)  # [U, K, E]
        lengths = (forest.cu_q, forest.cu_k, forest.max_q, forest.max_k)
        # A window of (-1, 0) is causal, from the bottom right where lengths differ; the kernel's left end is inclusive,
        # so that W keys with the own one are (W - 1, 0).
        window = (-1 if how.window is None else how.window - 1, 0)
        scaled = {} if how.scale is None else {"scale": how.scale}
        found = varlen_attn(q, k, v, *lengths, window_size=window, **scaled, **grouped)  # pyright: ignore[reportArgumentType]
        assert isinstance(found, Tensor)  # a tuple only where auxiliary results are asked for
        return found

    return attend


def gather(x: Tensor, rows: Tensor) -> Tensor:
    """x[rows], whose backward pass adds up where the rows point instead of sorting them: a third of the time.

    On CUDA it adds in any order: with three readers of a row or more (K > 2 responses) the last bit may vary.
    """
    return x.index_select(0, rows)


def causal(q: Tensor, k: Tensor, v: Tensor, how: Weighing = PLAIN) -> Tensor:
    """q [T, H, E], k and v [T, K, E] of one document -> [T, H, E]; nothing is held of what comes behind a query."""
    q, k, v = (x.transpose(0, 1)[None] for x in (q, k, v))  # [1, H, T, E]
    found = scaled_dot_product_attention(q, k, v, is_causal=True, scale=how.scale, enable_gqa=True)
    return found[0].transpose(0, 1)


def masked(q: Tensor, k: Tensor, v: Tensor, mask: Tensor, how: Weighing = PLAIN) -> Tensor:
    """q [Tq, H, E], k and v [Tk, K, E], mask [Tq, Tk] of what is seen -> [Tq, H, E]."""
    q, k, v = (x.transpose(0, 1)[None] for x in (q, k, v))  # [1, H, T, E]
    if how.cap is not None:
        return capped(q, k, v, mask, how)[0].transpose(0, 1)
    found = scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=how.scale, enable_gqa=True)
    return found[0].transpose(0, 1)


def capped(q: Tensor, k: Tensor, v: Tensor, mask: Tensor, how: Weighing) -> Tensor:
    """Attention whose scores go through cap tanh(score / cap): q [B, H, Tq, E], k and v [B, K, Tk, E] -> as q.

    mask: of what is seen, or what is added to the scores.
    Plain products, since no kernel has it: the scores [B, H, Tq, Tk] of one call are there at once, in float32, and
    nothing of them is kept for the backward pass, which makes them again.
    """
    if not torch.is_grad_enabled():
        return _capped(q, k, v, mask, how)
    found: Tensor = checkpoint(_capped, q, k, v, mask, how, use_reentrant=False, preserve_rng_state=False)  # pyright: ignore[reportAssignmentType]
    return found


def _capped(q: Tensor, k: Tensor, v: Tensor, mask: Tensor, how: Weighing) -> Tensor:
    assert how.cap is not None
    n_groups = q.shape[1] // k.shape[1]
    k, v = (x.repeat_interleave(n_groups, dim=1) for x in (k, v))
    wide = torch.float64 if q.dtype == torch.float64 else torch.float32
    scores = (q @ k.transpose(-1, -2)).to(wide) * (q.shape[-1] ** -0.5 if how.scale is None else how.scale)
    scores = how.cap * (scores / how.cap).tanh()
    scores = scores.masked_fill(~mask, -torch.inf) if mask.dtype == torch.bool else scores + mask
    return scores.softmax(dim=-1).to(v.dtype) @ v
