"""What is known of a run before any weights are read: the shape, the rows, the objective, the steps, how it fits."""

import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from data.rows import Example, find_cut, hold_out, in_form, open_model, read_examples
from data.show import show
from data.text import stop_ids
from engine import weights
from engine.config import TrainConfig, packing_of, world_size
from engine.distributed import Ranks, free_memory
from engine.model import name_of
from engine.planning import Plan, TokenStatistics, plan_run, refusal, ways
from engine.run import RunFolder, check_folder, identity
from engine.step import Objective, Steps, reference
from engine.weights import Cast
from system import InputError


class TrainingInputs:
    """What is known before any weights are read: the shape, the rows, the objective. The same on every rank."""

    def __init__(self, config: TrainConfig, part: int = 0) -> None:
        """part: which of --stages parts of the rows, from 0; all of them are checked."""
        check_folder(Path(config.out), resumes=config.resumes)
        self.config = config
        self.objective = Objective(config.loss, config.beta, config.hyperparameters)
        self.reading = replace(config.reading, ranked=self.objective.form == "ranked")
        if config.own_score != "row" and "own_scores" not in self.objective.needs:
            raise InputError(f"--own-score {config.own_score}: {self.objective.name} asks for none; leave it out")
        self.folder, chat = open_model(config.model)
        self.policy = weights.build(self.folder)
        self.policy.head.keeps_logits = "kept-logits" not in config.without
        weights.check(self.folder, self.policy)
        self.stop_ids = stop_ids(self.folder, chat)
        self.chat = chat
        rows, self.facts = self._read(config.data, config.data_weights)
        self.heldout: list[Example] = []
        if config.eval_data:
            self.heldout, facts = self._read((config.eval_data,))
            self.facts |= {f"eval_{name}": value for name, value in facts.items()}
        elif config.eval_pairs:
            rows, self.heldout = hold_out(rows, config.eval_pairs, config.seed)
        if len({(len(e.responses), e.label is None) for e in self.heldout}) > 1:
            raise InputError(f"{config.eval_data or ', '.join(config.data)}: held-out rows have to be of one kind")
        self.objective.check(self._in_form(rows))
        self.examples = self._in_form(_part(rows, part, config.stages))
        if config.stages > 1:
            self.facts["stage"] = f"{part + 1} of {config.stages}"
        if self.heldout and self._has_form(self.heldout[0]):
            self.objective.check(self._in_form(self.heldout))
        reference.check_shared(config.reference_cache)
        self.steps = Steps(self.examples, config, self.objective)
        self.modes = reference.modes(config, self.objective)
        self.load = TokenStatistics.of(
            self.examples, packing_of(config), config.batch_size, world_size(),
            is_mismatched=self.objective.needs_mismatched, whole_step=self.objective.whole_step,
        )  # fmt: skip
        self.first_example = self._show_first() if os.environ.get("RANK", "0") == "0" else ""

    def _read(self, sources: tuple[str, ...], shares: tuple[float, ...] = ()) -> tuple[list[Example], dict[str, Any]]:
        c = self.config
        rows = read_examples(
            sources,
            self.chat,
            c.limits,
            self.reading,
            n_ids=self.policy.config.vocab_size,
            skip_bad_rows=c.skip_bad_rows,
            weights=shares,
            seed=c.seed,
        )
        examples = rows.examples
        if c.own_score == "rejected":
            examples = [e._replace(ratings=e.ratings._replace(own=(e.ratings.scores or [None])[-1])) for e in examples]
        return examples, rows.facts()

    def _in_form(self, rows: list[Example]) -> list[Example]:
        return in_form(rows, self.objective.form, side=self.objective.side)

    def _has_form(self, row: Example) -> bool:
        """Whether the objective can be computed on rows of that kind; other held-out rows show their rewards alone."""
        try:
            return bool(self._in_form([row]))
        except InputError:
            return False

    def splits_masters(self) -> bool:
        """Whether float32 masters are split in halves: where it is asked for, or one GPU cannot hold them whole.

        A run that goes on keeps what it began with. Raises InputError where that cannot be.
        """
        if self.config.master != "auto":
            return self.config.master == "split"
        if (began := self._began()) is not None:
            if began == "split" and world_size() > 1:
                raise InputError(
                    f"{self.config.out}: its state has split masters, which are for one process; start one"
                )
            return began == "split"
        if world_size() > 1 or not torch.cuda.is_available():
            return False
        dtype = getattr(torch, self.config.dtype or "bfloat16")
        return self._plan_run(self.config, "cuda", dtype, free_memory()).setting.is_split

    def _began(self) -> str | None:
        """How the masters of the run lie that this one goes on with."""
        return RunFolder(Path(self.config.out)).master() if self.config.resumes else None

    def plan_run(self, ranks: Ranks) -> Plan:
        """How the run is laid out, the same on every rank. Raises InputError where it cannot fit. Collective."""
        device, free = ranks.device.type, int(-ranks.all_reduce_max(-free_memory()))
        decided = replace(self.config, master="split" if ranks.splits_masters else "whole")
        found = self._plan_run(decided, device, ranks.dtype, free)
        self._check_saving(found)
        if not found.fits:
            found_ways = ways(self.config, ranks.size) if self._began() is None else []
            plans = [self._plan_run(replace(self.config, **way), device, ranks.dtype, free) for way in found_ways]
            raise InputError(refusal(found, list(zip(found_ways, plans, strict=True))))
        return found

    def _check_saving(self, laid_out: Plan) -> None:
        """Raises InputError where --save-rounding does not go with the folders' dtype, before any weights are read."""
        try:
            Cast(dtype=laid_out.saves, rounding=self.config.save_rounding)
        except InputError as fault:
            raise InputError(f"--save-rounding, and folders in {name_of(laid_out.saves)}: {fault}") from None

    def _plan_run(self, config: TrainConfig, device: str, dtype: torch.dtype, free: int) -> Plan:
        budget = free if config.gpu_memory is None else min(free, int(config.gpu_memory * 1e9))
        return plan_run(
            config, self.policy.config, self.modes, self.load,
            device=device, dtype=dtype, n_ranks=world_size(), budget=budget,
            stored=weights.stored_dtype(self.folder),
        )  # fmt: skip

    @property
    def report(self) -> str:
        """What was read, in a sentence."""
        return "; ".join(self.facts[name] for name in ("report", "eval_report") if name in self.facts)

    def identity(self, ranks: Ranks) -> dict[str, Any]:
        """What has to be the same for a run to go on with this one."""
        made = identity(
            self.config, self.objective.settings, self.folder, self.examples, self.heldout,
            dtype=ranks.dtype, is_split=ranks.splits_masters,
        )  # fmt: skip
        made |= self.objective.digests
        return made | ({"stage": self.facts["stage"]} if "stage" in self.facts else {})

    def _show_first(self) -> str:
        """The first row that the run trains on, as the trainer sees it; looked up again for what was cut of it."""
        first, c = self.steps.step(1).examples[0], self.config
        cut = find_cut(first.place, c.data, self.chat, c.limits, self.reading, n_ids=self.policy.config.vocab_size)
        if not np.array_equal(cut.example.prompt, first.prompt):
            raise InputError(f"{first.place}: the file was changed while it was read; start again")
        return show(cut, self.chat)


def _part(rows: list[Example], part: int, n_parts: int) -> list[Example]:
    """One of n parts of the rows, of about one size, in order."""
    if n_parts > len(rows):
        raise InputError(f"--stages: {n_parts} parts of {len(rows)} rows; lower it")
    ends = np.linspace(0, len(rows), n_parts + 1).round().astype(int)
    return rows[ends[part] : ends[part + 1]]
