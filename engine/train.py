"""Align a checkpoint on preferences.

python -m engine.train --model DIR --data pairs.jsonl --loss apo_zero --out runs/first
torchrun --nproc_per_node 8 -m engine.train ...                      the same on eight GPUs
"""

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor
from tqdm import tqdm

from engine import optim, weights
from engine.config import TrainConfig, host, trl_names
from engine.distributed import Ranks
from engine.inputs import TrainingInputs
from engine.model import FusedForward, Llama
from engine.optim import SplitMasterWeights, copy_rounded
from engine.planning import MemoryInputs, Plan
from engine.run import Run, check_folder
from engine.step import (
    Batch,
    Cache,
    HeldOut,
    LossInputs,
    MicroBatching,
    Objective,
    ReferenceLogps,
    Step,
    Steps,
    describe_all,
    gradient,
    loss_of,
    measure_saved,
    reference,
    score_step,
    training_metrics,
)
from engine.weights import Cast
from losses import Result
from system import InputError, cli

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
    job = TrainingInputs(config)
    return _train(job, ranks_of(job))


def ranks_of(job: TrainingInputs) -> Ranks:
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
        job = TrainingInputs(replace(config, model=model, out=folder), part)
        ranks = ranks_of(job)
        result = _train(job, ranks)
        ranks.wait()  # the first rank writes what all go on from
        if result.n_steps < len(job.steps):
            return result
    assert result is not None  # there is at least one stage
    return result


def _train(job: TrainingInputs, ranks: Ranks) -> RunResult:
    config, objective, steps, at = job.config, job.objective, job.steps, ranks.heartbeat.report_phase
    with Run(config, steps, objective, ranks) as log, ranks.heartbeat.watch():
        if log.find_state(lambda: job.identity(ranks)):
            log.say(f"{log.folder}: is finished, all {len(steps)} steps of it; nothing is left to do")
            return RunResult(log.folder, len(steps), log.place.epochs(), log.place.last_line())
        laid_out = job.plan_run(ranks)
        mode, split = laid_out.reference, MicroBatching.of(config, laid_out.setting.micro_tokens)
        table = ReferenceLogps(mode, (len(job.examples), steps.n_branches), objective, config)
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
                    ranks.set_gradient_sync(walk, batch is step.batches[-1])
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
    job: TrainingInputs, table: ReferenceLogps, ranks: Ranks, setting: MemoryInputs, saves: torch.dtype
) -> tuple[FusedForward, SplitMasterWeights | None]:
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
    walk = ranks.place(FusedForward(job.policy, reference), reshards=setting.reshards)
    masters = SplitMasterWeights(walk.policy) if setting.is_split else None
    put = masters.put if masters else Tensor.copy_
    with ranks.together():
        weights.fill(walk.policy, job.folder, ranks.local, put, within=saves)
        if walk.reference is not None:
            weights.fill(walk.reference, job.folder, ranks.local, put=copy_rounded if masters else Tensor.copy_)
    return walk, masters


def logps(
    walk: FusedForward, table: ReferenceLogps, step: Step, batch: Batch, ranks: Ranks, known: Tensor | None = None
) -> LossInputs:
    """A batch's log-probs: the policy's with gradient; the reference's from the table, or from the walk beside it.

    known: the reference's of the whole step [n, K], where they have been walked already.
    """
    known = table.known(step) if known is None else known
    ranks.heartbeat.report_phase(step.number, "forward")
    found, ref_logps = walk(batch.forest.to(ranks.device), with_reference=table.is_used and known is None)
    if known is not None:
        ref_logps = known[batch.places].view(-1)
    return step.columns(batch, found, ref_logps)


def whole_step(
    objective: Objective, walk: FusedForward, table: ReferenceLogps, step: Step, ranks: Ranks
) -> tuple[LossInputs, Result]:
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
        ranks.set_gradient_sync(walk, batch is batches[-1])
        again = part if len(batches) == 1 else logps(walk, table, step, batch, ranks, columns.ref_logps)
        ranks.heartbeat.report_phase(step.number, "backward")
        again.logps.backward(gradient=slopes[batch.places].to(again.logps.device))
    return columns, result


def save_epoch(
    job: TrainingInputs,
    step: Step,
    trained: LossInputs,
    heldout: HeldOut,
    walk: FusedForward,
    masters: SplitMasterWeights | None,
    ranks: Ranks,
    laid_out: Plan,
    log: Run,
) -> None:
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
    table: ReferenceLogps, cache: Cache, walk: FusedForward, steps: Steps, ranks: Ranks, split: MicroBatching, log: Run
) -> None:
    """Fills the table with the policy's own initial weights, for the rows that the run will reach, and writes it."""
    total = min(len(steps), steps.per_epoch)
    for step in tqdm(steps.first_epoch(), "reference", total, unit="step", disable=None if ranks.is_rank0 else True):
        log.raise_if_stopped()  # before a step and not after the last: what is whole is written
        table.remember(step, score_step(walk, step, ranks, split))
    leave(table, cache, walk, ranks)


def leave(table: ReferenceLogps, cache: Cache, walk: FusedForward, ranks: Ranks) -> None:
    """Once the table is complete: writes it, and frees the reference's memory."""
    if not table.is_final or table.is_written:
        return
    table.is_written = True
    if ranks.is_rank0:
        cache.write(table)
    model, walk.reference = walk.reference, None
    if isinstance(model, Llama):
        ranks.release(model)
    ranks.wait()


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
