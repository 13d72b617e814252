"""The sequence of optimizer steps: which examples, in which epoch, split over ranks and micro-batches.

Every rank works out the whole plan by itself from lengths and the seed; only its own forests are packed.
"""

# n examples of a step, K responses of each

import functools
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from data import batching as plan
from data.forest import Forest, PackingOptions, n_tokens, pack
from data.rows import Example
from engine.config import TrainConfig, packing_of
from engine.distributed import Ranks
from engine.step.loss_inputs import LossInputs
from engine.step.objective import Objective
from system import cli


@dataclass(frozen=True, kw_only=True)
class MicroBatching:
    """How a step is cut into forests. It changes the speed, and nothing else."""

    micro_tokens: int
    """Most tokens of a forest; one example at least."""
    layout: PackingOptions = field(default_factory=PackingOptions)
    is_balanced: bool = True
    """Whether ranks get about the same number of tokens: 1.08 times the mean for the slowest instead of 1.33."""

    @staticmethod
    def of(config: TrainConfig, micro_tokens: int) -> "MicroBatching":
        """As the configuration says."""
        balanced = "balance" not in config.without
        return MicroBatching(micro_tokens=micro_tokens, layout=packing_of(config), is_balanced=balanced)


@dataclass(frozen=True)
class Batch:
    """One forward pass of this rank: some of a step's examples."""

    places: list[int]
    """Their places in the step."""
    forest: Forest


class Step:
    """The examples of one optimizer step, and what has been found out about them."""

    def __init__(self, number: int, epoch: int, ends_epoch: bool, ids: np.ndarray, examples: list[Example]) -> None:
        self.number = number
        """From 1."""
        self.epoch = epoch
        """From 1."""
        self.ends_epoch = ends_epoch
        """Whether it is the last of its epoch, or of the run."""
        self.ids = ids
        """[n] places of its examples in the data."""
        self.examples = examples
        self.n_branches = len(examples[0].responses)
        self.n_response_tokens = sum(len(r) for e in examples for r in e.responses)
        lengths = ([len(e.responses[k]) for e in examples] for k in range(self.n_branches))
        self._mean_lengths = tuple(sum(column) / len(examples) for column in lengths)
        self.batches: list[Batch] = []
        """This rank's micro-batches, once they are packed."""
        self._found: list[tuple[Batch, LossInputs]] = []

    @property
    def n_examples(self) -> int:
        """n, over all ranks."""
        return len(self.examples)

    @cached_property
    def n_tokens(self) -> int:
        """Tokens of the step over all ranks: prompts once, responses whole."""
        return sum(len(e.prompt) for e in self.examples) + self.n_response_tokens

    def pack(self, ranks: Ranks, split: MicroBatching) -> list[Batch]:
        """This rank's micro-batches: as many on every rank, empty ones included, so that collectives pair up.

        Packed once, and kept in `batches`.
        """
        sizes = [n_tokens(e, split.layout) for e in self.examples]
        balanced = plan.split_ranks(sizes, ranks.size)
        shares = balanced if split.is_balanced else plan.split_ranks_in_order(len(sizes), ranks.size)
        micro = [plan.split_micro(places, sizes, split.micro_tokens) for places in shares]
        mine = micro[ranks.rank] + [[]] * (max(map(len, micro)) - len(micro[ranks.rank]))
        forests = [pack([self.examples[i] for i in places], split.layout) for places in mine]
        if ranks.device.type == "cuda":  # what is copied from there does not hold up the host
            forests = [forest.pin() for forest in forests]
        self.batches = [Batch(places, forest) for places, forest in zip(mine, forests, strict=True)]
        return self.batches

    def columns(self, batch: Batch, logps: Tensor, ref_logps: Tensor | None) -> LossInputs:
        """What an objective takes, for the examples of a batch: logps [S] of the policy and the reference."""
        shape = (-1, self.n_branches)
        ref_logps = None if ref_logps is None else ref_logps.view(shape)
        examples = [self.examples[i] for i in batch.places]
        made = LossInputs.of(examples, logps.view(shape), ref_logps, mean_lengths=self._mean_lengths)
        return made.on(logps.device)

    def add(self, batch: Batch, columns: LossInputs) -> None:
        """Keeps what was found for a batch, where it is: it is read when the step's work has been handed out."""
        self._found.append((batch, replace(columns, logps=columns.logps.detach())))

    def gather(self, ranks: Ranks, *, with_reference: bool) -> LossInputs:
        """The columns of the whole step, the same on every rank. Collective."""
        found = torch.zeros(2, len(self.examples), self.n_branches, dtype=torch.float64)  # policy and reference
        for batch, columns in self._found:
            for row, values in enumerate((columns.logps, columns.ref_logps)):
                if values is not None:
                    found[row, batch.places] = values.cpu()
        found = ranks.all_reduce_sum(found)  # every place was filled by one rank; zero elsewhere
        return self.all_columns(found[0], found[1] if with_reference else None)

    def all_columns(self, logps: Tensor, ref_logps: Tensor | None) -> LossInputs:
        """What an objective takes, for every example: logps [n, K] of the policy and the reference."""
        return LossInputs.of(self.examples, logps, ref_logps, mean_lengths=self._mean_lengths)


class Steps:
    """All steps of a run, in order."""

    def __init__(self, examples: Sequence[Example], config: TrainConfig, objective: Objective) -> None:
        self._examples = examples
        self._config = config
        self._objective = objective
        self.per_epoch = -(-len(examples) // config.batch_size)  # the last step of an epoch takes what is left
        self.n_branches = len(examples[0].responses) + objective.needs_mismatched
        """Responses per example in its forests."""
        self._n_steps = min(self.per_epoch * config.epochs, config.max_steps or self.per_epoch * config.epochs)

    def __len__(self) -> int:
        return self._n_steps

    def packed(self, ranks: Ranks, split: MicroBatching, *, done: int = 0) -> Iterator[Step]:
        """Every step in order, but the first `done`, packed by a thread while the one before it is computed."""
        if done >= len(self):
            return
        with ThreadPoolExecutor(1) as pool:
            waiting = pool.submit(self._pack, done + 1, ranks, split)
            for number in range(done + 2, len(self) + 2):
                step = waiting.result()
                if number <= len(self):
                    waiting = pool.submit(self._pack, number, ranks, split)
                yield step

    def _pack(self, number: int, ranks: Ranks, split: MicroBatching) -> Step:
        step = self.step(number)
        step.pack(ranks, split)
        return step

    def first_epoch(self) -> Iterator[Step]:
        """The steps of epoch 1 that the run will reach: between them, every row that it will use."""
        return (self.step(number) for number in range(1, min(len(self), self.per_epoch) + 1))

    def step(self, number: int) -> Step:
        """The step of that number, from 1."""
        c = self._config
        epoch, place = divmod(number - 1, self.per_epoch)
        order = plan.epoch_order(len(self._examples), seed=c.seed, epoch=epoch + 1, shuffle=c.shuffle)
        ids = order[place * c.batch_size : (place + 1) * c.batch_size]
        examples = [self._examples[i] for i in ids]
        if self._objective.needs_mismatched:
            examples = _with_mismatched(examples)
        return Step(number, epoch + 1, place + 1 == self.per_epoch or number == len(self), ids, examples)


def _with_mismatched(examples: list[Example]) -> list[Example]:
    """Each example with a second response: that of the next example of the step whose prompt differs."""
    partners = plan.mismatched([e.prompt.tobytes() for e in examples])
    if None in partners:  # then all prompts are the same
        _say_once(f"{examples[0].place}: a step of one prompt alone has no mismatched sequences: its kl is taken as 0")
        return examples
    return [
        e._replace(responses=(*e.responses, examples[j].responses[0]))
        for e, j in zip(examples, partners, strict=True)
        if j is not None
    ]


@functools.cache
def _say_once(sentence: str) -> None:
    cli.notify(sentence)
