"""The sequence of optimizer steps: which examples, in which epoch, split over ranks and micro-batches.

Every rank works out the whole plan by itself from lengths and the seed; only its own forests are packed.
"""

# n examples of a batch, K responses of each, N predicted tokens of all of these together

from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from data import batching
from data.forest import Forest, PackingOptions, n_tokens, pack
from data.rows import Example
from engine.config import DataConfig, MeasuringConfig, ScheduleConfig
from engine.distributed import Ranks
from engine.step.loss_inputs import LossInputs
from engine.step.objective import Objective
from system import InputError


@dataclass(frozen=True, kw_only=True)
class MicroBatching:
    """How a batch is cut into forests. It changes the speed, and nothing else."""

    micro_tokens: int
    """Most tokens of a forest; one example at least."""
    packing: PackingOptions = field(default_factory=PackingOptions)
    is_balanced: bool = True
    """Whether ranks get about the same number of tokens: 1.08 times the mean for the slowest instead of 1.33."""

    @staticmethod
    def of(measuring: MeasuringConfig, micro_tokens: int, originals: tuple[int, ...]) -> "MicroBatching":
        """As the configuration says. originals: lengths at which the models divide sequences (LongRoPE)."""
        balanced = "balance" not in measuring.disable
        return MicroBatching(micro_tokens=micro_tokens, packing=measuring.packing(originals), is_balanced=balanced)


@dataclass(frozen=True)
class MicroBatch:
    """One forward pass of this rank: some of a batch's examples."""

    indices: list[int]
    """Which of the batch's examples."""
    forest: Forest


class Batch:
    """Examples that are computed together over all ranks, and what has been found out about them."""

    def __init__(self, examples: Sequence[Example], *, progress: float = 0.0) -> None:
        """examples: one at least, with equally many responses. progress: the share of the run's steps that are done."""
        self._progress = progress
        self.examples = list(examples)
        self.n_responses = len(self.examples[0].responses)
        """K, of each example."""
        columns = zip(*(e.lengths for e in self.examples), strict=True)
        self._mean_lengths = tuple(sum(column) / len(self.examples) for column in columns)
        self.micro_batches: list[MicroBatch] = []
        """This rank's, once they are packed."""
        self._found: list[tuple[MicroBatch, LossInputs]] = []

    def __len__(self) -> int:
        """n, over all ranks."""
        return len(self.examples)

    @cached_property
    def n_predicted(self) -> int:
        """N."""
        return int(self._token_bounds[-1])

    @cached_property
    def _token_bounds(self) -> np.ndarray:
        """[n + 1] where each example's predicted tokens begin, and N."""
        return np.cumsum([0, *(sum(e.lengths) for e in self.examples)])

    def token_rows(self, indices: Sequence[int]) -> Tensor:
        """Which of the batch's N predicted tokens are of these examples, one after the other: int64."""
        bounds = self._token_bounds
        return torch.from_numpy(np.concatenate([np.arange(0), *(np.arange(*bounds[i : i + 2]) for i in indices)]))

    @cached_property
    def n_tokens(self) -> int:
        """Tokens over all ranks: prompts once, responses whole."""
        return sum(len(e.prompt) + sum(map(len, e.responses)) for e in self.examples)

    def pack(self, ranks: Ranks, micro_batching: MicroBatching) -> list[MicroBatch]:
        """This rank's micro-batches: as many on every rank, empty ones included, so that collectives pair up.

        Packed once, and kept in `micro_batches`.
        """
        sizes = [n_tokens(e, micro_batching.packing) for e in self.examples]
        balanced = batching.split_ranks(sizes, ranks.size)
        shares = balanced if micro_batching.is_balanced else batching.split_ranks_in_order(len(sizes), ranks.size)
        micro = [batching.split_micro(indices, sizes, micro_batching.micro_tokens) for indices in shares]
        mine = micro[ranks.rank] + [[]] * (max(map(len, micro)) - len(micro[ranks.rank]))
        forests = [pack([self.examples[i] for i in indices], micro_batching.packing) for indices in mine]
        if ranks.device.type == "cuda":  # what is copied from there does not hold up the host
            forests = [forest.pin() for forest in forests]
        self.micro_batches = [MicroBatch(indices, forest) for indices, forest in zip(mine, forests, strict=True)]
        return self.micro_batches

    def loss_inputs(
        self,
        micro: MicroBatch,
        logps: Tensor,
        ref_logps: Tensor | None,
        tokens: Mapping[str, Tensor] | None = None,
    ) -> LossInputs:
        """What an objective takes, for a micro-batch's examples: logps [S] of the policy and the reference, and values
        of single tokens, which may be followed by those of tokens that are no response's.
        """
        shape = (-1, self.n_responses)
        ref_logps = None if ref_logps is None else ref_logps.view(shape)
        examples = [self.examples[i] for i in micro.indices]
        n = sum(sum(e.lengths) for e in examples) if tokens else 0
        tokens = {name: values[:n] for name, values in (tokens or {}).items()}
        return self._inputs(examples, logps.view(shape), ref_logps, tokens).on(logps.device)

    def _inputs(
        self, examples: Sequence[Example], logps: Tensor, ref_logps: Tensor | None, tokens: Mapping[str, Tensor] | None
    ) -> LossInputs:
        return LossInputs.of(
            examples, logps, ref_logps, mean_lengths=self._mean_lengths, tokens=tokens, progress=self._progress
        )

    def add(self, micro: MicroBatch, inputs: LossInputs) -> None:
        """Keeps what was found for a micro-batch, where it is: it is read when the work has been handed out."""
        self._found.append((micro, inputs.detached()))

    def gather(self, ranks: Ranks, *, with_reference: bool, token_values: Sequence[str] = ()) -> LossInputs:
        """What was found for all examples, the same on every rank. token_values: what is gathered of single tokens, by
        name. Collective.
        """
        found = torch.zeros(2, len(self.examples), self.n_responses, dtype=torch.float64)  # policy and reference
        tokens = torch.zeros(len(token_values), self.n_predicted if token_values else 0, dtype=torch.float64)
        for micro, inputs in self._found:
            for row, values in enumerate((inputs.logps, inputs.ref_logps)):
                if values is not None:
                    found[row, micro.indices] = values.cpu()
            for row, name in enumerate(token_values if micro.indices else ()):
                tokens[row, self.token_rows(micro.indices)] = inputs.tokens[name].cpu()
        found = ranks.all_reduce_sum(found)  # every example was filled by one rank; zero elsewhere
        tokens = ranks.all_reduce_sum(tokens) if token_values else tokens
        by_name = dict(zip(token_values, tokens, strict=True))
        return self.all_inputs(found[0], found[1] if with_reference else None, by_name)

    def all_inputs(
        self, logps: Tensor, ref_logps: Tensor | None, tokens: Mapping[str, Tensor] | None = None
    ) -> LossInputs:
        """What an objective takes, for every example: logps [n, K] of the policy and the reference, and values [N] of
        single tokens.
        """
        return self._inputs(self.examples, logps, ref_logps, tokens)


@dataclass(frozen=True, kw_only=True)
class Step:
    """One optimizer step, and its batch."""

    number: int
    """From 1."""
    epoch: int
    """From 1."""
    ends_epoch: bool
    """Whether it is the last of its epoch, or of the run."""
    progress: float
    """The share of all steps that are done when it begins."""
    ids: np.ndarray
    """[n] which of the run's examples it takes."""
    batch: Batch
    mismatched: Batch | None = None
    """Each example's prompt with another one's response, for objectives that take such; None where all prompts agree.
    """

    @property
    def examples(self) -> list[Example]:
        """Those of its batch."""
        return self.batch.examples

    @property
    def n_tokens(self) -> int:
        """Tokens over all ranks: prompts once, responses whole, those of mismatched sequences with them."""
        others = self.mismatched.examples if self.mismatched is not None else []
        return self.batch.n_tokens + sum(len(r) for e in others for r in e.responses)


class Steps:
    """All steps of a run, in order."""

    def __init__(
        self,
        examples: Sequence[Example],
        data: DataConfig,
        schedule: ScheduleConfig,
        objective: Objective,
        *,
        n_past: int = 0,
    ) -> None:
        """n_past: epochs of runs that this one goes on with; it takes the rows in orders that these have not had."""
        self._n_past = n_past
        self._examples, self._data, self._schedule, self._objective = examples, data, schedule, objective
        self.per_epoch = -(-len(examples) // schedule.batch_size)  # the last step of an epoch takes what is left
        self.n_responses = len(examples[0].responses)
        """Responses per example in its forests."""
        self._n_steps = schedule.n_steps(self.per_epoch)

    def __len__(self) -> int:
        return self._n_steps

    def packed(
        self, ranks: Ranks, micro_batching: MicroBatching, *, done: int = 0, last: int | None = None
    ) -> Iterator[Step]:
        """Every step in order, but the first `done` and those after `last`, packed by a thread while the one before it
        is computed.
        """
        n = len(self) if last is None else last
        if done >= n:
            return
        with ThreadPoolExecutor(1) as pool:
            waiting = pool.submit(self._pack, done + 1, ranks, micro_batching)
            for number in range(done + 2, n + 2):
                step = waiting.result()
                if number <= n:
                    waiting = pool.submit(self._pack, number, ranks, micro_batching)
                yield step

    def _pack(self, number: int, ranks: Ranks, micro_batching: MicroBatching) -> Step:
        step = self.step(number)
        step.batch.pack(ranks, micro_batching)
        if step.mismatched is not None:
            step.mismatched.pack(ranks, micro_batching)
        return step

    def first_epoch(self) -> Iterator[Step]:
        """The steps of epoch 1 that the run will reach: between them, every row that it will use."""
        return (self.step(number) for number in range(1, min(len(self), self.per_epoch) + 1))

    def n_of_one_prompt(self) -> int:
        """How many steps have examples of one prompt alone."""
        known: dict[bytes, int] = {}
        prompts = np.array([known.setdefault(e.prompt.tobytes(), len(known)) for e in self._examples])
        starts, n = np.arange(0, len(prompts), self._schedule.batch_size), 0
        for done in range(0, len(self), self.per_epoch):
            order = prompts[self._order(done // self.per_epoch + 1)]
            is_one = np.minimum.reduceat(order, starts) == np.maximum.reduceat(order, starts)
            n += int(is_one[: len(self) - done].sum())
        return n

    def _order(self, epoch: int) -> np.ndarray:
        return batching.epoch_order(
            len(self._examples), seed=self._data.seed, epoch=self._n_past + epoch, shuffle=self._data.shuffle
        )

    def step(self, number: int) -> Step:
        """The step of that number, from 1."""
        size = self._schedule.batch_size
        epoch, index = divmod(number - 1, self.per_epoch)
        ids = self._order(epoch + 1)[index * size : (index + 1) * size]
        examples = [self._examples[i] for i in ids]
        others = mismatched(examples) if self._objective.needs_mismatched else []
        ends_epoch = index + 1 == self.per_epoch or number == len(self)
        progress = (number - 1) / len(self)
        return Step(
            number=number,
            epoch=epoch + 1,
            ends_epoch=ends_epoch,
            progress=progress,
            ids=ids,
            batch=Batch(examples, progress=progress),
            mismatched=Batch(others, progress=progress) if others else None,
        )


def mismatched(examples: Sequence[Example]) -> list[Example]:
    """Each example's prompt with the response of the next one whose prompt differs; none where all prompts agree."""
    partners = batching.mismatched([e.prompt.tobytes() for e in examples])
    return [e.answered_by(examples[j]) for e, j in zip(examples, partners, strict=True) if j is not None]


def check_mismatched(examples: Sequence[Example], longest: int | None) -> None:
    """Raises InputError where a prompt with another example's response may have more tokens than can be computed."""
    prompt = max(examples, key=lambda e: len(e.prompt))
    other = max(examples, key=lambda e: max(map(len, e.responses)))
    n = len(prompt.prompt) + max(map(len, other.responses))
    if longest is not None and n > longest:
        raise InputError(
            f"{prompt.location}: KTO may pair this prompt with the response of {other.location} (a mismatched "
            f"sequence): {n:,} tokens, above max_position_embeddings ({longest:,}), the limit with dynamic RoPE; lower "
            "--max-prompt-tokens or --max-response-tokens"
        )
