"""Answers grown token by token, many at once.

Every slot of a key/value cache holds one answer. A turn runs, packed in one row without padding, the newest token of
each answer that grows and the next piece of each prompt that is still read; whoever has no token left to run gets the
next one. A slot that is free takes the next prompt at once, the longest first, so that neighbours are about as long;
further samples of a prompt copy its keys and values. Where no prompt waits, the slots in use close ranks.

The cache holds every layer's keys, turned; masks leave out what is beyond a layer's window. Where a whole sequence
turns otherwise beyond some length (LongRoPE), an answer that grows past it is read anew, with its prompt.

Each sample has its own random numbers, drawn from (seed, prompt, sample): its text does not depend on what it was
batched with.
"""

# T packed tokens, B slots, H heads, K kv heads, G heads of a kv head, E head size, L cache length, V vocabulary

import sys
from collections import deque
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from engine.model import Attend, Transformer, Weighing, attention, logits_by_token, rotations
from engine.sampling.sampling import Sampling, choose, noise_size

# Neighbouring slots share an attention call, which is padded to the longest of them. On the CPU they do so while the
# padding is at most so many numbers of keys: the time of a call of their own.
CALL_SIZE = 2**14


@dataclass
class Answer:
    """One sample: its ids without the stop id, and why it ended."""

    prompt: int
    """Which prompt it answers."""
    sample: int
    """Which of the prompt's n samples it is."""
    ids: list[int] = field(default_factory=list)
    finish: Literal["stop", "length"] | None = None
    stop_id: int | None = None
    """The token that ended it, where one did."""


@torch.no_grad()
def generate(
    model: Transformer,
    prompts: Sequence[Sequence[int]],
    sampling: Sampling,
    stop: Collection[int],
    on_finish: Callable[[Answer], object] = lambda answer: None,
    *,
    numbers: Sequence[int] | None = None,
    ends: Callable[[Answer], bool] | None = None,
    wanted: Callable[[int, int], bool] = lambda prompt, sample: True,
    never: Collection[int] = (),
) -> list[Answer]:
    """n answers to each prompt of token ids, prompt by prompt. stop: ids that end an answer and are not part of it.

    on_finish is called with each answer when it ends, in whatever order they do. numbers: what each prompt's random
    numbers are drawn from, besides seed and sample; its place in the list where there are none. ends: says after each
    token whether the answer ends there. wanted: which (prompt, sample) to answer at all. never: ids that are not
    sampled, unless they end an answer. Float32 logits.
    """
    numbers = range(len(prompts)) if numbers is None else numbers
    answers = [Answer(p, s) for p in range(len(prompts)) for s in range(sampling.n) if wanted(p, s)]
    queue = deque(sorted(answers, key=lambda a: (-len(prompts[a.prompt]), a.prompt, a.sample)))
    stop = frozenset(stop) | frozenset(sampling.stop_ids)
    longest = max((len(prompts[a.prompt]) for a in answers), default=0) + sampling.max_new_tokens
    context = model.config.context
    slots = Slots(model, min(sampling.batch_size, len(answers)), min(longest, context or longest))

    n_random = noise_size(model.config.vocab_size) if sampling.temperature else 0
    excluded = torch.tensor(sorted(frozenset(never) - stop), dtype=torch.int64, device=model.embed.weight.device)

    while queue or slots.running:
        while queue and slots.has_room and not slots.is_read(queue[0].prompt):
            answer = queue.popleft()
            seed = (sampling.seed, numbers[answer.prompt], answer.sample)
            slots.add(Running(answer, prompts[answer.prompt], np.random.default_rng(seed)))
        slots.close_ranks()
        due, logits = slots.step(sampling.prefill_tokens)
        if not due:
            continue
        logits[:, excluded] = -torch.inf
        noise = np.stack([r.random.standard_exponential(n_random) for r in due])
        chosen = choose(logits, sampling, noise).tolist()
        for running, token in zip(due, chosen, strict=True):
            answer = running.answer
            if token in stop:
                answer.finish, answer.stop_id = "stop", token
            else:
                answer.ids.append(token)
                slots.grow(running, token)
                if ends is not None and ends(answer):
                    answer.finish = "stop"
                elif len(answer.ids) == sampling.max_new_tokens or running.n_tokens >= slots.length:
                    answer.finish = "length"
            if answer.finish:
                slots.remove(running)
                on_finish(answer)
    return answers


class Running:
    """An answer that grows in a slot."""

    def __init__(self, answer: Answer, prompt: Sequence[int], random: np.random.Generator) -> None:
        self.answer, self.prompt, self.random = answer, prompt, random
        self.todo = list(prompt)
        """Tokens that are not in the cache yet."""
        self.n_held = 0
        """Tokens that are."""

    @property
    def n_tokens(self) -> int:
        """Of the prompt and the answer so far."""
        return len(self.prompt) + len(self.answer.ids)


class Piece(NamedTuple):
    """Tokens of one slot that a turn runs: rows [start, end) of the packed row, at positions from `first` on."""

    running: Running
    slot: int
    start: int
    end: int
    first: int

    @property
    def size(self) -> int:
        """How many tokens."""
        return self.end - self.start


Masks = dict[int | None, Tensor | None]
"""By window, what is added where rows see keys; None: a plain causal mask"""
Group = tuple[Sequence[Tensor], Sequence[Tensor], Masks]
"""Keys and values of B slots by layer [B, K, L, E], and what is added where their rows see them [B, 1, 1, L]"""


class Slots:
    """Keys and values of every layer and slot, who is in which slot, and the pass that runs them."""

    def __init__(self, model: Transformer, n_slots: int, length: int) -> None:
        """length: most tokens of a sequence, prompt and answer."""
        c, weight = model.config, model.embed.weight
        dtype = model.compute_dtype or weight.dtype  # an embedding that trains beside a frozen base is float32
        self._model, self._device, self.length = model, weight.device, length
        self._capacity = n_slots
        shape = (c.n_layers, n_slots, c.n_kv_heads, length, c.head_size)
        self._keys = torch.zeros(shape, dtype=dtype, device=self._device)
        self._values = torch.zeros(shape, dtype=dtype, device=self._device)
        self._slots: list[Running | None] = []
        self._windows = list(dict.fromkeys(layer.window for layer in c.layers))
        self._has_cap = c.attention_cap is not None

    @property
    def running(self) -> list[Running]:
        """Whoever is in a slot."""
        return [r for r in self._slots if r]

    @property
    def has_room(self) -> bool:
        """Whether a slot is free."""
        return len(self._slots) < self._capacity or None in self._slots

    def is_read(self, prompt: int) -> bool:
        """Whether a prompt is being read right now, by an answer to come: its next sample waits, and copies."""
        reading = (r for r in self.running if not r.answer.ids and r.n_held < len(r.prompt) - 1)
        return any(r.answer.prompt == prompt for r in reading)

    def add(self, new: Running) -> None:
        """Puts an answer into a free slot; what another sample has read of the same prompt is copied."""
        if None not in self._slots:
            self._slots.append(None)
        slot = self._slots.index(None)
        n = len(new.prompt) - 1  # the last token is run: its logits are wanted
        same = [(i, r) for i, r in enumerate(self._slots) if r and r.answer.prompt == new.answer.prompt]
        known = (i for i, r in same if r.n_held >= n and self._n_passed(r) == self._n_passed(new))
        if n and (source := next(known, None)) is not None:
            self._copy(source, slot, n)
            new.n_held, new.todo = n, list(new.prompt[n:])
        self._slots[slot] = new

    def _n_passed(self, running: Running) -> int:
        """How many of the lengths beyond which a whole sequence turns otherwise (LongRoPE) it has passed."""
        return sum(running.n_tokens > n for n in self._model.config.originals)

    def grow(self, running: Running, token: int) -> None:
        """Its next token, which it has been given, is to be run; so is all before it where the keys turn otherwise."""
        running.todo = [token]
        if running.n_tokens - 1 in self._model.config.originals:
            running.n_held, running.todo = 0, [*running.prompt, *running.answer.ids]

    def remove(self, running: Running) -> None:
        """Frees its slot."""
        self._slots[self._slots.index(running)] = None

    def close_ranks(self) -> None:
        """Moves answers from the last slots into free ones: no pass touches an empty slot."""
        while None in self._slots:
            last = self._slots.pop()
            if last is not None:
                slot = self._slots.index(None)
                self._copy(len(self._slots), slot, last.n_held)
                self._slots[slot] = last

    def _copy(self, source: int, slot: int, n: int) -> None:
        for held in (self._keys, self._values):
            held[:, slot, :, :n] = held[:, source, :, :n]

    def step(self, prefill_tokens: int) -> tuple[list[Running], Tensor]:
        """Runs what is to be run; whose next token is due, and the logits for it [len(due), V], float32."""
        pieces, tokens = self._next_pieces(prefill_tokens)
        positions = [p.first + i for p in pieces for i in range(p.size)]
        rows = [(p.slot, p.running.n_tokens) for p in pieces for _ in range(p.size)]
        position, (slot, span) = self._tensor(positions), self._tensor(rows).T  # [T] each
        in_layer = self._attention(pieces, slot, position)
        x = self._model.embedded(self._tensor(tokens))  # [T, D]
        turned = rotations(self._model.config.ropes, position, span, x.dtype)
        for layer, block in enumerate(self._model.blocks):
            x = block(x, turned, in_layer(layer))
        for p in pieces:
            p.running.n_held += p.size
            p.running.todo = p.running.todo[p.size :]
        due = [p for p in pieces if not p.running.todo]
        normed = self._model.norm(x[[p.end - 1 for p in due]])
        logits = self._model.head.squash(logits_by_token(normed, self._model.head.matrix(self._model.tied)))
        return [p.running for p in due], logits

    def _tensor(self, numbers: Sequence[int] | Sequence[tuple[int, int]]) -> Tensor:
        return torch.tensor(numbers, device=self._device)

    def _next_pieces(self, prefill_tokens: int) -> tuple[list[Piece], list[int]]:
        """What each slot runs: single tokens first, in the order of slots, then pieces of prompts while they fit."""
        pieces: list[Piece] = []
        tokens: list[int] = []
        left = prefill_tokens
        takes: list[tuple[int, int, Running]] = []
        for slot, r in enumerate(self._slots):
            if r:
                n = len(r.todo) if len(r.todo) == 1 else min(len(r.todo), left)
                left -= n if len(r.todo) > 1 else 0
                takes.append((n, slot, r))
        for n, slot, r in sorted(takes, key=lambda take: take[0] > 1):
            if n:
                pieces.append(Piece(r, slot, len(tokens), len(tokens) + n, r.n_held))
                tokens += r.todo[:n]
        return pieces, tokens

    def _attention(self, pieces: Sequence[Piece], slot: Tensor, position: Tensor) -> Callable[[int], Attend]:
        """Attention of a turn, by layer: writes the new keys and values, and lets each row see what its slot holds.

        What all layers share is made once: views of the cache, and masks that are added (a boolean one is turned into
        that by every call).
        """
        groups = list(self._groups([p for p in pieces if p.size == 1]))
        longer = [self._longer(p) for p in pieces if p.size > 1]
        sizes = [len(keys[0]) for keys, *_ in groups] + [p.size for p in pieces if p.size > 1]

        def in_layer(layer: int) -> Attend:
            def attend(q: Tensor, k: Tensor, v: Tensor, how: Weighing) -> Tensor:  # [T, H, E], [T, K, E]
                self._keys[layer, slot, :, position] = k
                self._values[layer, slot, :, position] = v
                by_kv_head = q.unflatten(1, (k.shape[1], -1)).split(sizes)  # [B, K, G, E]: G see the same
                found = [
                    _attended(rows, keys[layer], values[layer], sees[how.window], how)
                    for rows, (keys, values, sees) in zip(by_kv_head, groups, strict=False)
                ]
                for rows, (keys, values, sees) in zip(by_kv_head[len(groups) :], longer, strict=True):
                    row = rows.flatten(1, 2).transpose(0, 1)[None]  # [1, H, T, E]
                    part = _attended(row, keys[layer], values[layer], sees[how.window], how)
                    found.append(part[0].transpose(0, 1).unflatten(1, (k.shape[1], -1)))
                return torch.cat(found).flatten(1, 2)

            return attend

        return in_layer

    def _held(self, slots: slice, n: int) -> tuple[Sequence[Tensor], Sequence[Tensor]]:
        """By layer, views of the first n keys and values of neighbouring slots [B, K, n, E]."""
        return self._keys[:, slots, :, :n].unbind(), self._values[:, slots, :, :n].unbind()

    def _longer(self, p: Piece) -> Group:
        """What a piece of a prompt sees: all of its slot up to each row, or a window of it."""
        end = p.first + p.size
        distance = torch.arange(p.first, end)[:, None] - torch.arange(end)  # [T, L] how far each key lies behind
        plain = [w for w in self._windows if p.first == 0 and not self._has_cap and (w is None or w >= end)]
        sees: Masks = {w: None if w in plain else self._added(distance, w) for w in self._windows}
        return *self._held(slice(p.slot, p.slot + 1), end), sees

    def _added(self, distance: Tensor, window: int | None) -> Tensor:
        """What is added to scores where keys lie so far behind: nothing, or -inf where they are not seen."""
        hidden = distance < 0 if window is None else (distance < 0) | (distance >= window)
        return torch.zeros(distance.shape, dtype=self._keys.dtype).masked_fill(hidden, -torch.inf).to(self._device)

    def _groups(self, single: Sequence[Piece]) -> Iterator[Group]:
        """Runs of neighbouring slots that share a call, in the order of the rows."""
        spare = sys.maxsize if self._device.type == "cuda" else CALL_SIZE // (self._keys.shape[2] * self._keys.shape[4])
        group: list[Piece] = []
        longest = total = 0
        for p in single:
            longest, total = max(longest, p.first), total + p.first
            padding = longest * (len(group) + 1) - total
            if group and (p.slot != group[-1].slot + 1 or padding > spare):
                yield self._group(group)
                group, longest, total = [], p.first, p.first
            group.append(p)
        if group:
            yield self._group(group)

    def _group(self, group: Sequence[Piece]) -> Group:
        lengths = torch.tensor([p.first + 1 for p in group])
        longest = int(lengths.max())
        distance = lengths[:, None] - 1 - torch.arange(longest)  # [B, L] how far each key lies behind
        held = self._held(slice(group[0].slot, group[-1].slot + 1), longest)
        sees: Masks = {w: self._added(distance, w)[:, None, None] for w in self._windows}
        return *held, sees


def _attended(q: Tensor, k: Tensor, v: Tensor, sees: Tensor | None, how: Weighing) -> Tensor:
    """q [B, H, T, E], k and v [B, K, L, E] -> as q. sees: what is added to the scores; None: causally."""
    if how.cap is not None:
        assert sees is not None  # made for every model that caps
        return attention.capped(q, k, v, sees, how)
    gqa = q.shape[1] != k.shape[1]
    return scaled_dot_product_attention(
        q, k, v, attn_mask=sees, is_causal=sees is None, scale=how.scale, enable_gqa=gqa
    )
