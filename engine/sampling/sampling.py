"""How the next token is chosen, and when an answer ends."""

# B sequences, V vocabulary

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import pad

from system import InputError
from system.flags import check_above_zero, check_not_negative

BLOCK = 256  # tokens


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """How the next token is chosen, and when an answer ends."""

    max_new_tokens: int = 512
    """Maximum number of tokens per answer. An answer also ends where the model's context is full."""
    temperature: float = 1.0
    """Sampling temperature. 0 always takes the most likely token."""
    top_p: float = 1.0
    """Nucleus sampling: choose among the most likely tokens that together have this probability. 1 turns it off."""
    top_k: int = 0
    """Choose among this number of most likely tokens. 0 turns it off."""
    n: int = 1
    """Number of answers per prompt. A local model computes the prompt once for all of them; a server is sent one
    request for each."""
    stop: tuple[str, ...] = ()
    """Texts that end an answer when it contains one; the text is not part of the answer."""
    stop_ids: tuple[int, ...] = ()
    """Token ids that end an answer, in addition to those of the checkpoint."""
    seed: int = 0
    """Random seed. Each answer has a random stream of its own, so that another --batch-size hardly ever changes it.
    With --endpoint, answer i of a prompt is requested with seed + i, which the server may ignore."""
    batch_size: int = 128
    """Number of answers decoded at the same time. Lower it to save memory, raise it for speed."""
    prefill_tokens: int = 1024
    """Maximum number of prompt tokens per forward pass (chunked prefill). Longer prompts are processed in pieces while
    other answers are decoded."""

    def __post_init__(self) -> None:
        check_above_zero(self, "max_new_tokens", "n", "batch_size", "prefill_tokens")
        check_not_negative(self, "top_k", "seed")
        if not 0 <= self.temperature < float("inf"):
            raise InputError(f"--temperature: {self.temperature} has to be at least 0")
        if not 0 < self.top_p <= 1:
            raise InputError(f"--top-p: {self.top_p} has to be above 0 and at most 1")
        if "" in self.stop:
            raise InputError("--stop: an empty text would end every answer at once; leave it out")


def noise_size(n_tokens: int) -> int:
    """How many random numbers `choose` wants for a token of a vocabulary of n_tokens."""
    return -(-n_tokens // BLOCK) + BLOCK


def choose(logits: Tensor, sampling: Sampling, noise: np.ndarray) -> Tensor:
    """The next token [B] from float32 logits [B, V]. noise: float64 [B, noise_size(V)], exponentially distributed.

    Top-k comes before top-p, as in transformers and vLLM. The token of the greatest p / noise is one drawn by p
    (the Gumbel-max trick): where logits differ in their last digits, as they do from batch to batch, it hardly ever
    changes, while a draw from the running sum of V probabilities often does. So that few random numbers do, first a
    block of tokens is drawn by its sum, then a token of it.
    """
    if sampling.temperature == 0:
        return logits.argmax(dim=1)
    logits = logits if sampling.temperature == 1 else _divided(logits, sampling.temperature)
    if 0 < sampling.top_k < logits.shape[1]:
        least = logits.topk(sampling.top_k, dim=1).values[:, -1:]
        logits = logits.masked_fill(logits < least, -torch.inf)
    if sampling.top_p < 1:
        ranked, order = torch.softmax(logits, dim=1).sort(dim=1, descending=True)
        before = ranked.cumsum(dim=1, dtype=torch.float64) - ranked
        out = torch.zeros_like(ranked, dtype=torch.bool).scatter(1, order, before >= sampling.top_p)
        logits = logits.masked_fill(out, -torch.inf)  # the first token that reaches top_p is in
    if missing := -logits.shape[1] % BLOCK:
        logits = pad(logits, (0, missing), value=-torch.inf)
    blocks = logits.T.unflatten(0, (-1, BLOCK))  # [V / BLOCK, BLOCK, B], as logits_by_token lays them out
    weights = (blocks - blocks.amax(dim=1).amax(dim=0)).exp_()  # p, but for a factor
    drawn = torch.from_numpy(noise).to(logits.device)
    block = (weights.sum(dim=1).T / drawn[:, :-BLOCK]).argmax(dim=1)  # [B]
    inner = weights[block, :, torch.arange(len(block), device=block.device)]  # [B, BLOCK]
    return block * BLOCK + (inner / drawn[:, -BLOCK:]).argmax(dim=1)


def _divided(logits: Tensor, temperature: float) -> Tensor:
    """Logits over a temperature; in rows where that overflows its limit: the likeliest token alone."""
    made = logits / temperature
    overflows = (~made.isfinite() & logits.isfinite()).any(dim=1, keepdim=True)
    greedy = torch.full_like(logits, -torch.inf).scatter(1, logits.argmax(dim=1, keepdim=True), 0.0)
    return torch.where(overflows, greedy, made)
