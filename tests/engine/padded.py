"""The slow obvious way to log-probs: one conversation at a time, padded, in a row of its own."""

import torch
from torch.nn.functional import log_softmax, scaled_dot_product_attention

from tests import tiny


def padded_logps(model, examples):
    """Of each response [S], in order."""
    return torch.stack([logps.sum() for logps in padded_token_logps(model, examples)])


def padded_token_logps(model, examples):
    """Of each response's tokens [n], in order: each conversation in a row of its own, padded on the right."""
    rows = [(e.prompt, r) for e in examples for r in e.responses]
    longest = max(len(p) + len(r) for p, r in rows)
    found = []
    for prompt, response in rows:  # one at a time: nothing can leak
        ids = torch.zeros(longest, dtype=torch.int64)
        ids[: len(prompt) + len(response)] = torch.tensor([*prompt.tolist(), *response.tolist()])
        causal = torch.ones(longest, longest, dtype=torch.bool).tril()

        def attend(q, k, v, _, causal=causal):
            q, k, v = (x.transpose(0, 1) for x in (q, k, v))
            k, v = (x.repeat_interleave(len(q) // len(k), dim=0) for x in (k, v))
            return scaled_dot_product_attention(q, k, v, attn_mask=causal).transpose(0, 1)

        x = model.embed(ids)
        turned = tiny.turned(model, longest, torch.float64)
        for block in model.blocks:
            x = block(x, turned, attend)
        weight = model.embed.weight if model.config.tied else model.head.weight
        logps = log_softmax(model.norm(x) @ weight.T, dim=-1)
        at = torch.arange(len(prompt) - 1, len(prompt) + len(response) - 1)
        found.append(logps[at, ids[at + 1]])
    return found
