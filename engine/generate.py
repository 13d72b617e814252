"""Answers sampled from a checkpoint.

    python -m engine.generate --model DIR --prompts FILE --out FILE

A fixed number of slots, each with room in a key/value cache. Prompts are prefilled packed, without padding, into the
slots that are free; every turn of the loop adds one token to each sequence. Each sample has its own random numbers,
drawn from (seed, prompt, sample), so that its text does not depend on what it was batched with.
"""

# B slots, T packed tokens, H heads, K kv heads, E head size, L cache length, V vocabulary

import sys
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention
from tqdm import tqdm

from data import InputError, cli, files
from data.chat import Chat, stop_ids
from data.dataset import open_model
from data.examples import Example
from data.forest import pack
from data.records import ROLES, Message, read_prompts
from engine import attention, weights
from engine.head import wide_logits
from engine.llama import Attend, Llama, Rope

EXAMPLE = "python -m engine.generate --model path/to/llama --prompts prompts.jsonl --out answers.jsonl"


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """How the next token is chosen, and when to stop."""

    max_new_tokens: int = 512
    """Most tokens per answer."""
    temperature: float = 1.0
    """0: always the likeliest token."""
    top_p: float = 1.0
    """Sample among the likeliest tokens that together have this probability."""
    n: int = 1
    """Answers per prompt."""
    seed: int = 0
    """The same seed gives the same answers, whatever they are batched with."""
    batch_size: int = 64
    """Sequences that grow together."""

    def __post_init__(self) -> None:
        if self.max_new_tokens < 1 or self.n < 1 or self.batch_size < 1:
            raise InputError("--max-new-tokens, --n and --batch-size have to be above 0")
        if not 0 <= self.temperature < float("inf"):
            raise InputError(f"--temperature: {self.temperature} is not 0 or above")
        if not 0 < self.top_p <= 1:
            raise InputError(f"--top-p: {self.top_p} is not above 0 and at most 1")


@dataclass(frozen=True, kw_only=True)
class GenerateConfig(Sampling):
    """Sample answers to prompts; a JSON line each, in the order of the prompts."""

    model: str
    """Checkpoint folder (Hugging Face layout, safetensors) or hub id."""
    prompts: str
    """Rows (.jsonl, .json, .csv, .parquet) with "prompt" (text or messages) or "prompt_ids"; the rest is ignored."""
    out: str
    """File for the answers: prompt, response, why it ended."""
    config: str | None = None
    """YAML file of settings, named as the flags are; flags win over it."""
    dtype: Literal["float32", "bfloat16"] | None = None
    """Unset: bfloat16 on CUDA, float32 on the CPU."""


@dataclass
class Answer:
    """One sample: its ids without the stop id, and why it ended."""

    prompt: int
    """Which prompt it answers."""
    sample: int
    """Which of the prompt's n samples it is."""
    ids: list[int] = field(default_factory=list)
    finish: Literal["stop", "length"] | None = None


@torch.no_grad()
def generate(
    model: Llama,
    prompts: Sequence[Sequence[int]],
    sampling: Sampling,
    stop: Sequence[int],
    on_finish: Callable[[Answer], object] = lambda answer: None,
    numbers: Sequence[int] | None = None,
) -> list[Answer]:
    """n answers to each prompt of token ids, prompt by prompt. stop: ids that end an answer and are not part of it.

    on_finish is called with each answer when it ends. numbers: what each prompt's random numbers are drawn from,
    besides seed and sample; its place in the list where there are none. Float32 sampling from float32 logits.
    """
    numbers = range(len(prompts)) if numbers is None else numbers
    answers = [Answer(p, s) for p in range(len(prompts)) for s in range(sampling.n)]
    queue = iter(answers)
    n_slots = min(sampling.batch_size, len(answers))
    slots: list[Answer | None] = [None] * n_slots
    cache = Cache(model, n_slots, max(map(len, prompts), default=1) + sampling.max_new_tokens)
    draws = np.zeros((n_slots, sampling.max_new_tokens))
    last = torch.zeros(n_slots, dtype=torch.int64, device=cache.device)  # [B] the newest token of each slot

    def take(slot_ids: list[int], logits: Tensor) -> None:
        """Adds the next token to each of these slots."""
        turns = [len(answer.ids) for s in slot_ids if (answer := slots[s])]
        chosen = choose(logits, sampling, draws[slot_ids, turns])
        last[slot_ids] = chosen
        for s, token in zip(slot_ids, chosen.tolist(), strict=True):
            answer = slots[s]
            assert answer is not None  # only filled slots are asked
            if token in stop:
                answer.finish = "stop"
            else:
                answer.ids.append(token)
                if len(answer.ids) == sampling.max_new_tokens:
                    answer.finish = "length"
            if answer.finish:
                slots[s] = None
                on_finish(answer)

    while True:
        free = [s for s in range(n_slots) if slots[s] is None]
        filled = [(s, answer) for s, answer in zip(free, queue, strict=False)] if len(free) * 4 >= n_slots else []
        for s, answer in filled:
            slots[s] = answer
            draws[s] = np.random.default_rng((sampling.seed, numbers[answer.prompt], answer.sample)).random(
                sampling.max_new_tokens
            )
        if filled:
            take([s for s, _ in filled], cache.prefill([s for s, _ in filled], [prompts[a.prompt] for _, a in filled]))
        active = [s for s in range(n_slots) if slots[s] is not None]
        if not active and not filled:
            return answers
        if active:
            take(active, cache.decode(last, active))


class Cache:
    """Keys and values of every layer and slot, and the passes that fill them."""

    def __init__(self, model: Llama, n_slots: int, length: int) -> None:
        """length: most tokens of a sequence, prompt and answer."""
        c = model.config
        weight = model.embed.weight
        self.model, self.device = model, weight.device
        shape = (c.n_layers, n_slots, c.n_kv_heads, length, c.head_size)
        self._keys = torch.zeros(shape, dtype=weight.dtype, device=self.device)
        self._values = torch.zeros(shape, dtype=weight.dtype, device=self.device)
        self._lengths = torch.zeros(n_slots, dtype=torch.int64, device=self.device)  # [B] tokens held

    def prefill(self, slots: list[int], prompts: Sequence[Sequence[int]]) -> Tensor:
        """Runs prompts into slots, packed; logits after each prompt's last token [len(slots), V]."""
        nothing = np.zeros(1, dtype=np.int32)  # a response of one token adds no input: the forest is all trunks
        trunks = [Example("", np.asarray(p, dtype=np.int32), (nothing,)) for p in prompts]
        forest = pack(trunks).to(self.device)
        slot = torch.tensor(slots, device=self.device)[forest.example]  # [T]
        inner = attention.for_forest(forest, self._keys.dtype)

        def attend(layer: int) -> Attend:
            def fill(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
                self._keys[layer, slot, :, forest.positions] = k
                self._values[layer, slot, :, forest.positions] = v
                return inner(q, k, v)

            return fill

        self._lengths[slots] = torch.tensor([len(p) for p in prompts], device=self.device)
        x = self._walk(forest.tokens, self.model.rope(forest.positions), attend)
        return self._logits(x[forest.rows])

    def decode(self, tokens: Tensor, active: list[int]) -> Tensor:
        """Runs the newest token [B] of every slot; logits of the active ones [len(active), V]."""
        positions = self._lengths.clamp(max=self._keys.shape[3] - 1)  # [B]; what a resting slot holds is not read
        longest = int(positions[active].max()) + 1
        sees = torch.arange(longest, device=self.device) <= positions[:, None]  # [B, L]
        every = torch.arange(len(tokens), device=self.device)

        def attend(layer: int) -> Attend:
            def step(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
                keys, values = self._keys[layer], self._values[layer]  # [B, K, L, E]
                keys[every, :, positions] = k
                values[every, :, positions] = v
                found = scaled_dot_product_attention(
                    q[:, :, None],
                    keys[:, :, :longest],
                    values[:, :, :longest],
                    attn_mask=sees[:, None, None],
                    enable_gqa=True,
                )
                return found[:, :, 0]  # [B, H, E]

            return step

        x = self._walk(tokens, self.model.rope(positions), attend)
        self._lengths[active] += 1
        return self._logits(x[active])

    def _walk(self, tokens: Tensor, rope: Rope, attend: Callable[[int], Attend]) -> Tensor:
        x = self.model.embed(tokens)
        for layer, block in enumerate(self.model.blocks):
            x = block(x, rope, attend(layer))
        return x

    def _logits(self, x: Tensor) -> Tensor:
        return wide_logits(self.model.norm(x), self.model.head.matrix(self.model.tied))


def choose(logits: Tensor, sampling: Sampling, draws: np.ndarray) -> Tensor:
    """The next token [B] from logits [B, V] and one uniform number in [0, 1) each."""
    if sampling.temperature == 0:
        return logits.argmax(dim=1)
    probabilities = torch.softmax(logits.double() / sampling.temperature, dim=1)
    if sampling.top_p < 1:
        ranked, order = probabilities.sort(dim=1, descending=True)
        ranked[ranked.cumsum(dim=1) - ranked >= sampling.top_p] = 0  # the first token that reaches top_p is in
        probabilities = torch.zeros_like(probabilities).scatter(1, order, ranked)
    cumulative = probabilities.cumsum(dim=1)
    wanted = torch.from_numpy(draws).to(logits.device)[:, None] * cumulative[:, -1:]
    return torch.searchsorted(cumulative, wanted, right=True).squeeze(1).clamp(max=logits.shape[1] - 1)


class Answerer:
    """A checkpoint and its tokenizer, ready to answer."""

    def __init__(self, folder: Path, chat: Chat | None, dtype: Literal["float32", "bfloat16"] | None) -> None:
        """Raises InputError where the folder cannot be used. The weights are read by the first `answer`."""
        self.folder, self.chat, self._shape = folder, chat, weights.build(folder)
        weights.check(folder, self._shape)
        self._device = "cuda" if torch.cuda.is_available() else "cpu"
        self._dtype = getattr(torch, dtype or ("bfloat16" if self._device == "cuda" else "float32"))
        self._model: Llama | None = None

    @classmethod
    def open(cls, model: str, dtype: Literal["float32", "bfloat16"] | None = None) -> "Answerer":
        """model: a checkpoint folder or hub id. dtype: bfloat16 on CUDA, float32 on the CPU where it is None."""
        return cls(*open_model(model), dtype)

    @property
    def roles(self) -> Collection[str]:
        """Those that a prompt may have."""
        return self.chat.roles if self.chat else ROLES

    def prompt_ids(self, place: str, prompt: Sequence[Message | int]) -> list[int]:
        """A prompt as token ids. Raises InputError, located, where it cannot be one."""
        messages = [m for m in prompt if isinstance(m, Message)]
        ids = [i for i in prompt if isinstance(i, int)]
        if messages and self.chat is None:
            raise InputError(f'{place}: text, and {self.folder} has no tokenizer; give "prompt_ids"')
        if messages and self.chat is not None:
            try:
                ids = self.chat.prompt_ids(messages)
            except InputError as fault:
                raise InputError(f"{place}: {fault}") from None
        if max(ids) >= (size := self._shape.config.vocab_size):
            raise InputError(f"{place}: token id {max(ids)} is outside the model's vocabulary of {size}")
        return ids

    def answer(
        self,
        prompts: Sequence[Sequence[int]],
        sampling: Sampling,
        on_finish: Callable[[Answer], object] = lambda answer: None,
        numbers: Sequence[int] | None = None,
    ) -> list[Answer]:
        """See generate."""
        if self._model is None:
            self._model = weights.load(self.folder, self._dtype, self._device).eval()
        return generate(self._model, prompts, sampling, stop_ids(self.folder, self.chat), on_finish, numbers)

    def text(self, answer: Answer) -> str:
        """What an answer says."""
        assert self.chat is not None  # without a tokenizer there is none
        return self.chat.tokenizer.decode(answer.ids)


def _row(prompt: Sequence[Message | int], answer: Answer, answerer: Answerer) -> dict[str, Any]:
    shown = [m._asdict() if isinstance(m, Message) else m for m in prompt]
    row: dict[str, Any] = {"prompt" if isinstance(prompt[0], Message) else "prompt_ids": shown}
    row |= {"response": answerer.text(answer)} if answerer.chat else {"response_ids": answer.ids}
    return row | {"sample": answer.sample, "finish": answer.finish}


def main(argv: Sequence[str]) -> None:
    """The command."""
    config = cli.parse(GenerateConfig, argv, command="python -m engine.generate", example=EXAMPLE)
    files.check_new_file(Path(config.out))
    answerer = Answerer.open(config.model, config.dtype)
    prompts = read_prompts(config.prompts, roles=answerer.roles)
    ids = [answerer.prompt_ids(p.place, p.prompt) for p in prompts]
    with tqdm(total=len(ids) * config.n, unit="answer", disable=None) as bar:
        answers = answerer.answer(ids, config, lambda answer: bar.update())
    files.write_rows(Path(config.out), (_row(prompts[a.prompt].prompt, a, answerer) for a in answers))
    print(f"{len(answers)} answers to {len(ids)} prompts: {config.out}", file=sys.stderr)


if __name__ == "__main__":
    cli.run(main)
