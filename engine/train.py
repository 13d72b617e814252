"""Align a checkpoint on preferences.

python -m engine.train --model DIR --data pairs.jsonl --loss apo_zero --out runs/first
torchrun --nproc_per_node 8 -m engine.train ...                      the same on eight GPUs
"""

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from data import InputError, cli
from data.chat import stop_ids
from data.dataset import find_cut, hold_out, open_model, read_examples
from data.examples import Example, in_form
from data.show import show
from engine import host, optim, plan, reference, trl_names, weights
from engine.columns import Columns
from engine.config import TrainConfig, world_size
from engine.cost import Load
from engine.heldout import HeldOut, loss_of, measure_saved
from engine.llama import Llama
from engine.memory import Setting
from engine.metrics import training_metrics
from engine.objective import Objective, describe_all, gradient
from engine.parallel import Ranks, free_memory
from engine.plan import Plan
from engine.reference import Cache, Reference
from engine.resume import Place, identity
from engine.rounding import Cast, name_of
from engine.run import Run, check_folder
from engine.score import score_step
from engine.split import Masters, put_high
from engine.steps import Batch, Split, Step, Steps, layout_of
from engine.walk import Walk
from losses import Result

EXAMPLE = (
    "python -m engine.train --model path/to/Llama-3-8B-Instruct --data pairs.jsonl --loss apo_zero --out runs/first"
)


@dataclass(frozen=True)
class RunResult:
    """What a run leaves."""

    out: Path
    """The run's folder."""
    n_steps: int
    """Steps that are done."""
    checkpoints: list[Path]
    """The epoch folders, oldest first."""
    metrics: dict[str, float]
    """The last line of metrics.jsonl."""


def run(config: TrainConfig) -> RunResult:
    """Align a policy on preferences. Everything a user gives is checked before a process group or a model is made.

    Raises InputError for what the user gave, RunError where a loss or a gradient is not finite.
    """
    if config.stages > 1:
        return _run_stages(config)
    job = Job(config)
    return _train(job, ranks_of(job))


def ranks_of(job: "Job") -> Ranks:
    """The processes of a run."""
    config = job.config
    if "used-pages" not in config.without:
        host.keep_pages()
    return Ranks(
        dtype=getattr(torch, config.dtype) if config.dtype else None,
        timeout=config.hang_timeout,
        shard_size=config.shard_size,
        splits_masters=job.splits_masters(),
        gpu_memory=None if config.gpu_memory is None else config.gpu_memory * 1e9,
    )


def _run_stages(config: TrainConfig) -> RunResult:
    """One run after the other on parts of the rows; each starts from, and is measured against, where the last ended."""
    folders = [f"{config.out}/stage-{number:02d}" for number in range(1, config.stages + 1)]
    for folder in (config.out, *folders):
        check_folder(Path(folder), resumes=config.resumes)
    result: RunResult | None = None
    for part, folder in enumerate(folders):
        model = config.model if result is None else str(result.checkpoints[-1])
        job = Job(replace(config, model=model, out=folder), part)
        ranks = ranks_of(job)
        result = _train(job, ranks)
        ranks.wait()  # the first rank writes what all go on from
        if result.n_steps < len(job.steps):
            return result
    assert result is not None  # there is at least one stage
    return result


class Job:
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
        self.load = Load.of(
            self.examples, layout_of(config), config.batch_size, world_size(),
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
        return self._lay_out(self.config, "cuda", dtype, free_memory()).setting.is_split

    def _began(self) -> str | None:
        """How the masters of the run lie that this one goes on with."""
        return Place(Path(self.config.out)).master() if self.config.resumes else None

    def lay_out(self, ranks: Ranks) -> Plan:
        """How the run is laid out, the same on every rank. Raises InputError where it cannot fit. Collective."""
        device, free = ranks.device.type, int(-ranks.most(-free_memory()))
        decided = replace(self.config, master="split" if ranks.splits_masters else "whole")
        found = self._lay_out(decided, device, ranks.dtype, free)
        self._check_saving(found)
        if not found.fits:
            ways = plan.ways(self.config, ranks.size) if self._began() is None else []
            plans = [self._lay_out(replace(self.config, **way), device, ranks.dtype, free) for way in ways]
            raise InputError(plan.refusal(found, list(zip(ways, plans, strict=True))))
        return found

    def _check_saving(self, laid_out: Plan) -> None:
        """Raises InputError where --save-rounding does not go with the folders' dtype, before any weights are read."""
        try:
            Cast(dtype=laid_out.saves, rounding=self.config.save_rounding)
        except InputError as fault:
            raise InputError(f"--save-rounding, and folders in {name_of(laid_out.saves)}: {fault}") from None

    def _lay_out(self, config: TrainConfig, device: str, dtype: torch.dtype, free: int) -> Plan:
        budget = free if config.gpu_memory is None else min(free, int(config.gpu_memory * 1e9))
        return plan.lay_out(
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


def _train(job: Job, ranks: Ranks) -> RunResult:
    config, objective, steps, at = job.config, job.objective, job.steps, ranks.heartbeat.at
    with Run(config, steps, objective, ranks) as log, ranks.heartbeat.watch():
        if log.look_back(lambda: job.identity(ranks)):
            log.say(f"{log.folder}: is finished, all {len(steps)} steps of it; nothing is left to do")
            return RunResult(log.folder, len(steps), log.place.epochs(), log.place.last_line())
        laid_out = job.lay_out(ranks)
        mode, split = laid_out.reference, Split.of(config, laid_out.setting.micro_tokens)
        table = Reference(mode, (len(job.examples), steps.n_branches), objective, config)
        cache = Cache.of(config, lambda: reference.fingerprint(job.folder, job.examples, ranks.dtype))
        job.facts |= {"reference": mode, "reference_cache": log.restore_table(table) or table.take(cache, ranks)}
        job.facts["layout"] = laid_out.facts()
        walk, masters = place_models(job, table, ranks, laid_out.setting, laid_out.saves)
        optimizer, schedule = optim.build(walk.policy.parameters(), config, len(steps), masters)
        log.begin(job.facts, lambda: job.identity(ranks), walk.policy, laid_out.saves)
        log.say(f"{job.report}; {len(steps)} steps; reference: {mode}, {job.facts['reference_cache']}")
        log.say(laid_out.sentence(config, ranks.size))
        log.write("first_example.txt", job.first_example)
        heldout = HeldOut(job.heldout, walk, ranks, split, moves=table.moves)
        if mode == "precompute" and not table.is_complete:
            precompute(table, cache, walk, steps, ranks, split, log)
        log.restore(walk, optimizer, schedule, table)  # the policy's own initial weights are needed no more

        for step in steps.packed(ranks, split, done=log.n_done):
            if objective.whole_step:
                columns, result = whole_step(objective, walk, table, step, ranks)
            else:
                for batch in step.batches:
                    ranks.sums_gradients(walk, batch is step.batches[-1])
                    part = logps(walk, table, step, batch, ranks)
                    loss = objective(part).losses.sum() / step.n_examples  # of all ranks: the split changes speed only
                    at(step.number, "backward")
                    loss.backward()
                    step.add(batch, part)
                columns = step.gather(ranks, with_reference=table.is_used)
                result = objective(columns)
            at(step.number, "gradient")
            grad_norm = optim.clip(optimizer, ranks, config.max_grad_norm)
            log.check_finite(step, columns, result, grad_norm, is_before_step=laid_out.setting.holds_gradients)
            learning_rate = float(schedule.get_last_lr()[0])
            at(step.number, "optimizer")
            optimizer.step()
            schedule.step()
            optimizer.zero_grad()
            log.stop_clock()
            objective.keep(result)
            table.remember(step, columns.ref_logps)
            log.add(reference.follow(config, step, walk, table, ranks))
            if step.ends_epoch:
                log.add(heldout.measure(objective))
                save_epoch(job, step, columns, heldout, walk, masters, ranks, laid_out, log)
                leave(table, cache, walk, ranks)
            log.log(step, training_metrics(columns, result), learning_rate=learning_rate, grad_norm=grad_norm)
            must_stop = log.must_stop()
            if must_stop or log.state_due(step):
                log.save_state(walk, optimizer, schedule, table)
            if must_stop:
                break
        log.end()
        return RunResult(log.folder, log.n_done, log.place.epochs(), log.last)


def place_models(
    job: Job, table: Reference, ranks: Ranks, setting: Setting, saves: torch.dtype
) -> tuple[Walk, Masters | None]:
    """The policy, and the reference where the run needs it in memory, each rank's part read from the checkpoint.

    Beside them the other halves of the policy's weights, where masters are split. saves: the dtype that the policy will
    be written in. Raises InputError where its weights do not fit into that.
    """
    needs_model = table.mode == "fused" and not table.is_final
    frozen = torch.float32 if table.moves else ranks.dtype  # what moves a little does so in float32
    reference = weights.build(job.folder, frozen) if needs_model else None
    job.policy.recompute(setting.n_recomputed)
    for model in filter(None, (job.policy, reference)):
        if setting.is_compiled:
            model.compile_blocks()
    walk = ranks.place(Walk(job.policy, reference), reshards=setting.reshards)
    masters = Masters(walk.policy) if setting.is_split else None
    put = masters.put if masters else Tensor.copy_
    with ranks.together():
        weights.fill(walk.policy, job.folder, ranks.local, put, within=saves)
        if walk.reference is not None:
            weights.fill(walk.reference, job.folder, ranks.local, put=put_high if masters else Tensor.copy_)
    return walk, masters


def logps(walk: Walk, table: Reference, step: Step, batch: Batch, ranks: Ranks, known: Tensor | None = None) -> Columns:
    """A batch's log-probs: the policy's with gradient; the reference's from the table, or from the walk beside it.

    known: the reference's of the whole step [n, K], where they have been walked already.
    """
    known = table.known(step) if known is None else known
    ranks.heartbeat.at(step.number, "forward")
    found, ref_logps = walk(batch.forest.to(ranks.device), with_reference=table.is_used and known is None)
    if known is not None:
        ref_logps = known[batch.places].view(-1)
    return step.columns(batch, found, ref_logps)


def whole_step(objective: Objective, walk: Walk, table: Reference, step: Step, ranks: Ranks) -> tuple[Columns, Result]:
    """Backward pass of an objective that takes a statistic of the step: exact for any split into micro-batches.

    The log-probs of the whole step are gathered first and the objective gives its gradient for each; every batch
    then goes back with its slice. With several batches a rank walks each twice, without and with gradient.
    """
    batches = step.batches
    with torch.set_grad_enabled(len(batches) == 1):
        parts = [logps(walk, table, step, batch, ranks) for batch in batches]
    for batch, part in zip(batches, parts, strict=True):
        step.add(batch, part)
    columns = step.gather(ranks, with_reference=table.is_used)
    result, slopes = gradient(objective, columns)
    for batch, part in zip(batches, parts, strict=True):
        ranks.sums_gradients(walk, batch is batches[-1])
        again = part if len(batches) == 1 else logps(walk, table, step, batch, ranks, columns.ref_logps)
        ranks.heartbeat.at(step.number, "backward")
        again.logps.backward(gradient=slopes[batch.places].to(again.logps.device))
    return columns, result


def save_epoch(
    job: Job, step: Step, trained: Columns, heldout: HeldOut, walk: Walk, masters: Masters | None, ranks: Ranks,
    laid_out: Plan, log: Run,
) -> None:  # fmt: skip
    """Writes the epoch's checkpoint folder, and measures what it loses where it has fewer bits than the run computes
    with. trained: the columns of the epoch's last step. Collective.

    A weight that has grown beyond the dtype's range ends the run, with the folder in float32 in its place: nothing that
    was trained is lost.
    """

    def write(cast: Cast) -> Path:
        return log.save_epoch(step, walk.policy, job.stop_ids, job.chat, masters or ranks, cast)

    cast = Cast(dtype=laid_out.saves, rounding=job.config.save_rounding, seed=step.number, is_split=masters is not None)
    has_room = laid_out.setting.holds_gradients
    try:
        saved = measure_saved(step, trained, heldout, job.objective, walk, ranks, cast, masters, has_room=has_room)
    except InputError as fault:
        folder = write(Cast(dtype=torch.float32))
        log.fault = InputError(f"{folder}: is written in float32: {fault}; go on with --resume --save-dtype float32")
        return
    log.add(saved)
    folder = write(cast)
    if lost := loss_of(cast, saved, ranks.dtype):
        log.say(f"{folder}: {lost}")


def precompute(
    table: Reference, cache: Cache, walk: Walk, steps: Steps, ranks: Ranks, split: Split, log: Run
) -> None:  # fmt: skip
    """Fills the table with the policy's own initial weights, for the rows that the run will reach, and writes it."""
    total = min(len(steps), steps.per_epoch)
    for step in tqdm(steps.first_epoch(), "reference", total, unit="step", disable=None if ranks.is_first else True):
        log.heed()  # before a step and not after the last: what is whole is written
        table.remember(step, score_step(walk, step, ranks, split))
    leave(table, cache, walk, ranks)


def leave(table: Reference, cache: Cache, walk: Walk, ranks: Ranks) -> None:
    """Once the table is complete: writes it, and frees the reference's memory."""
    if not table.is_final or table.is_written:
        return
    table.is_written = True
    if ranks.is_first:
        cache.write(table)
    model, walk.reference = walk.reference, None
    if isinstance(model, Llama):
        ranks.release(model)
    ranks.wait()


def _part(rows: list[Example], part: int, n_parts: int) -> list[Example]:
    """One of n parts of the rows, of about one size, in order."""
    if n_parts > len(rows):
        raise InputError(f"--stages: {n_parts} parts of {len(rows)} rows; lower it")
    ends = np.linspace(0, len(rows), n_parts + 1).round().astype(int)
    return rows[ends[part] : ends[part + 1]]


def main(argv: Sequence[str]) -> None:
    """The command."""
    config = cli.parse(
        TrainConfig, argv, command="python -m engine.train", example=EXAMPLE, help_text=describe_all, peer=trl_names
    )
    result = run(config)
    if os.environ.get("RANK", "0") == "0":
        print(result.out)


if __name__ == "__main__":
    cli.run(main)
