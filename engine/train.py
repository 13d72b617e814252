"""Align a checkpoint on preferences. `train` is the loop; what it calls opens a room of its own.

python -m engine.train --model DIR --data pairs.jsonl --loss apo_zero --out runs/first
torchrun --nproc_per_node 8 -m engine.train ...                      the same on eight GPUs
"""

import functools
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from engine import optim, weights
from engine.config import ALIASES, TrainConfig, host, trl_names
from engine.distributed import Ranks
from engine.inputs import TrainingInputs
from engine.layout import plan_together, splits_masters
from engine.model import FusedForward, Transformer
from engine.optim import SplitMasterWeights, copy_rounded
from engine.planning import Plan
from engine.run import Card, MetricsLog, Milestones, RunFolder, Stopping, check_folder, last_line, say, say_if_far
from engine.step import (
    NO_HOOKS,
    Cache,
    HeldOut,
    Hooks,
    MicroBatching,
    ReferenceLogps,
    Training,
    check_finite,
    describe_all,
    fill_reference,
    fingerprint,
    follow_reference,
    forward_backward,
    release_reference,
    report,
    score_alone,
    training_metrics,
)
from engine.weights import Cast
from system import InputError, cli
from system.run_folder import checkpoints_of

__all__ = ["Hooks", "RunResult", "TrainConfig", "join", "run", "train"]

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
    """The checkpoint folders, of epochs and of steps inside them, in the order of their steps."""
    metrics: dict[str, float]
    """The last line of metrics.jsonl."""
    is_finished: bool = True
    """Whether nothing is left to do: all steps are done, or --early-stop has ended it."""


def run(config: TrainConfig, hooks: Hooks = NO_HOOKS) -> RunResult:
    """Align a policy on preferences. Everything a user gives is checked before a process group or a model is made.

    hooks: what a caller adds to the run, or watches in it (docs/python.md). Raises InputError for what the user gave,
    NotFinite, a RunError, where a loss or a gradient is not finite.
    """
    if config.schedule.stages > 1:
        return _run_stages(config, hooks)
    inputs = TrainingInputs(config, options=hooks.parameter_options)
    return train(inputs, join(inputs), hooks)


def join(inputs: TrainingInputs) -> Ranks:
    """The processes of a run: those that torchrun started, or this one. Collective."""
    config = inputs.config
    if "used-pages" not in config.measuring.disable:
        host.keep_pages()
    memory = config.memory
    return Ranks.join(
        dtype=getattr(torch, memory.dtype) if memory.dtype else None,
        timeout=config.distributed.hang_timeout,
        shard_size=config.distributed.shard_size,
        splits_masters=splits_masters(inputs),
        has_adapter=inputs.adapting is not None,
        gpu_memory=None if memory.gpu_memory is None else memory.gpu_memory * 1e9,
    )


def _run_stages(config: TrainConfig, hooks: Hooks) -> RunResult:
    """One run after the other on parts of the rows; each starts from, and is measured against, where the last ended."""
    folders = [f"{config.out}/stage-{number:02d}" for number in range(1, config.schedule.stages + 1)]
    for folder in (config.out, *folders):
        check_folder(Path(folder), resumes=config.checkpoints.resumes)
    result: RunResult | None = None
    for part, folder in enumerate(folders):
        start = {} if result is None else _from(config, str(result.checkpoints[-1]))
        inputs = TrainingInputs(config.with_flags(out=folder, **start), part, options=hooks.parameter_options)
        ranks = join(inputs)
        result = train(inputs, ranks, hooks)
        ranks.wait()  # the first rank writes what all go on from
        if not result.is_finished:
            return result
    assert result is not None  # there is at least one stage
    return result


def _from(config: TrainConfig, checkpoint: str) -> dict[str, Any]:
    """The flags by which a stage starts from what the one before has left: a model, or an adapter on the same one."""
    if not config.adapters.is_used:
        return {"model": checkpoint}
    own = {"lora_rank": None, "lora_alpha": None, "lora_rslora": False, "lora_targets": (), "train_also": ()}
    return {"adapter": checkpoint, **own}


def train(inputs: TrainingInputs, ranks: Ranks, hooks: Hooks = NO_HOOKS) -> RunResult:
    """The loop: one turn is one optimizer step over all ranks. Collective.

    inputs, ranks: what is trained on, and by which processes (`join`). hooks: what a caller adds to the loop; its
    parameter_options have to be those that `inputs` was given. Raises InputError where --out holds another run or
    memory and disk cannot hold this one, NotFinite where a loss or a gradient is not finite, Stopped where a signal
    ended the run.
    """
    config, steps, out = inputs.config, inputs.steps, Path(inputs.config.out)
    with (
        Stopping(out, config.checkpoints, len(steps), ranks) as stopping,
        RunFolder(config, ranks) as folder,
        ranks.heartbeat.watch(),
    ):
        if folder.find_state(lambda: inputs.identity(ranks)):
            say(f"{out}: is finished, {folder.ending}; nothing is left to do")
            return RunResult(out, folder.end.get("steps", len(steps)), checkpoints_of(out), last_line(out))
        training = build(inputs, ranks, hooks, folder, stopping)
        heldout = score_initial_weights(inputs, training, folder, stopping)
        go_on(inputs, training, folder)
        milestones = Milestones(config, steps, heldout, folder, stopping)
        with open_log(inputs, ranks, folder, stopping) as log:
            milestones.begin(training, log)
            for step in steps.packed(ranks, training.micro_batching, done=log.n_done, last=stopping.last_step):
                loss_inputs, result = forward_backward(training, step)
                report(training, step, "gradient")
                grad_norm = training.clip(config.optimizer.max_grad_norm)
                check_finite(training, step, loss_inputs, result, grad_norm)
                learning_rates = training.learning_rates
                report(training, step, "optimizer")
                training.update()
                log.stop_clock()
                hooks.on_phase(step.number, "done")  # no phase of a rank that is lost: the heartbeat is not told
                training.objective.keep(result)
                training.reference.remember(step, loss_inputs.reference)
                metrics = training_metrics(loss_inputs, result)
                say_if_far(inputs.adapting, step, metrics)
                metrics |= follow_reference(training, step, config.reference)
                hooks.after_step(training, step)
                metrics |= milestones.measure(step)
                metrics |= milestones.save(training, step, loss_inputs)
                if step.ends_epoch:
                    release_reference(training)
                log.write(step, metrics | learning_rates, grad_norm)
                hooks.after_log(step, log.last)
                must_stop = stopping.must_stop(log.n_done)
                if must_stop or folder.states.is_due(step, stopping.last_step):
                    folder.states.save(training, log)
                if must_stop or log.n_done == stopping.last_step:
                    break
        folder.finish(log.n_done, stopping.last_step, why=stopping.why, past_epochs=inputs.past_epochs)
        milestones.conclude(training, log.n_done)
        stopping.conclude(log.n_done, keeps_states=folder.states.is_shared)
        return RunResult(out, log.n_done, checkpoints_of(out), log.last, log.n_done == stopping.last_step)


def build(inputs: TrainingInputs, ranks: Ranks, hooks: Hooks, folder: RunFolder, stopping: Stopping) -> Training:
    """Lays the run out, reads the models, makes the optimizer, and begins the run's folder. Collective.

    Raises InputError where memory or disk cannot hold the run, and for weights that cannot be used; Stopped where a
    signal ends it while another model is asked for the reference's log-probs.
    """
    if hooks.parameter_options is not inputs.options:
        raise InputError("Hooks(parameter_options=...): TrainingInputs(config, options=...) has to be given the same")
    config, steps = inputs.config, inputs.steps
    if (continued := inputs.continued) is not None:
        ranks.on_rank0(lambda: continued.check(inputs.identity(ranks)))
    plan = plan_together(inputs, ranks)
    micro_batching = MicroBatching.of(config.measuring, plan.memory.micro_tokens, inputs.originals)
    reference, said = read_reference(inputs, plan, ranks, folder)
    if inputs.other is not None:
        score_alone(
            lambda: inputs.build_reference(ranks.dtype),
            reference,
            inputs.objective,
            steps=steps,
            heldout=inputs.heldout,
            plan=plan,
            ranks=ranks,
            micro_batching=micro_batching,
            before_each=lambda: stopping.raise_if_stopped(folder.n_done),
        )
    facts = inputs.facts | {"reference": plan.reference, "reference_cache": said, "layout": plan.facts()}
    inputs.check_has_weights(plan, reference, folder.n_done)
    model, masters = build_models(inputs, plan, reference, ranks)
    optimizer = optim.build(
        model.policy.trained(),
        config.optimizer,
        masters,
        square_avg=getattr(torch, config.memory.square_avg),
        options=inputs.options,
        access=ranks,
    )
    schedule = optim.schedule(optimizer, len(steps), config.schedule)
    folder.begin(lambda: inputs.identity(ranks), plan=plan, steps=steps, settings=inputs.settings, facts=facts)
    ranks.on_rank0(inputs.keep_model)
    of = "" if inputs.other is None else f" of {inputs.other.folder}"
    say(f"{inputs.report}; {len(steps)} steps; reference: {plan.reference}{of}, {said}")
    say(plan.sentence(config, ranks.size))
    if inputs.adapting is not None:
        say(inputs.adapting.sentence(model.policy, config.optimizer.rate))
    folder.write("first_example.txt", inputs.first_example)
    texts = inputs.chat.files if inputs.chat else {}
    training = Training(
        ranks=ranks,
        objective=inputs.objective,
        plan=plan,
        model=model,
        masters=masters,
        reference=reference,
        optimizer=optimizer,
        schedule=schedule,
        micro_batching=micro_batching,
        hooks=hooks,
        stop_ids=inputs.stop_ids,
        beside=texts,
        save_adapter=inputs.adapting
        and functools.partial(inputs.adapting.save, model.policy, ranks, config.model, texts),
        card=card_of(inputs, model.policy, ranks, facts).text,
    )
    hooks.begin(training)
    return training


def card_of(inputs: TrainingInputs, policy: Transformer, ranks: Ranks, facts: Mapping[str, Any]) -> Card:
    """The model card of the run's folders."""
    return Card(
        config=inputs.config,
        objective=inputs.objective,
        settings=inputs.settings,
        facts=facts,
        n_steps=len(inputs.steps),
        n_ranks=ranks.size,
        adapter=inputs.adapting and inputs.adapting.card(policy),
    )


def read_reference(inputs: TrainingInputs, plan: Plan, ranks: Ranks, folder: RunFolder) -> tuple[ReferenceLogps, str]:
    """The table of the reference's log-probs, as a state or another run has it, and what was found. Collective."""
    config = inputs.config
    out, made_of = (
        Path(config.out),
        lambda: fingerprint(inputs.reference_folder, inputs.examples, ranks.dtype, inputs.reference_digests),
    )
    reference = ReferenceLogps(
        plan.reference,
        inputs.examples,
        inputs.steps.n_responses,
        inputs.objective,
        Cache.of(out, config.reference.cache, made_of, before=inputs.continued and inputs.continued.run),
        moves=config.reference.update != "none",
        keeps=config.measuring.keeps_reference,
        is_other=inputs.other is not None,
    )
    return reference, folder.read_reference(reference) or reference.read(ranks)


def build_models(
    inputs: TrainingInputs, plan: Plan, reference: ReferenceLogps, ranks: Ranks
) -> tuple[FusedForward, SplitMasterWeights | None]:
    """The policy, and the reference where the run needs it in memory, each rank's part read from the checkpoint.

    Where the model's folder is gone a state will bring them. Beside them the other halves of the policy's weights,
    where masters are split. Raises InputError where the weights
    do not fit into the dtype that they will be written in. Collective.
    """
    policy, second = inputs.policy, None
    if plan.reference == "fused" and not reference.is_final:
        if inputs.adapting is not None and inputs.adapting.shares_base:
            second = inputs.adapting.share(policy, ranks)
        else:
            second, _ = inputs.build_reference(torch.float32 if reference.moves else ranks.dtype)  # small moves
    policy.recompute(plan.memory.n_recomputed)
    if plan.memory.is_compiled:
        for one in filter(None, (policy, second)):
            one.compile_blocks()
    model = ranks.place(FusedForward(policy, second), reshards=plan.memory.reshards)
    masters = SplitMasterWeights(policy) if plan.memory.is_split else None
    with ranks.together():
        if inputs.adapting is not None:
            inputs.adapting.fill(policy, ranks)
            if second is not None and second.shares_base:
                inputs.adapting.fill_shared(second)
            elif second is not None:
                weights.fill(second, inputs.reference_folder, ranks.local)
            return model, None
        copy = masters.copy_into if masters else Tensor.copy_
        written = Cast(dtype=plan.saves, others=plan.other_dtypes)
        if weights.is_kept(inputs.folder):
            weights.blank(policy, inputs.folder, ranks.local, copy)
        else:
            weights.fill(policy, inputs.folder, ranks.local, copy, within=written)
        if second is not None and weights.is_kept(inputs.reference_folder):
            weights.blank(second, inputs.reference_folder, ranks.local)
        elif second is not None:
            weights.fill(second, inputs.reference_folder, ranks.local, copy_rounded if masters else Tensor.copy_)
    return model, masters


def score_initial_weights(inputs: TrainingInputs, training: Training, folder: RunFolder, stopping: Stopping) -> HeldOut:
    """The held-out rows, and with --reference precompute all rows, scored by the weights that the policy starts with.

    They are the reference's, unless --reference-model names others; what these gave is written. Collective.
    """
    heldout = HeldOut(inputs.heldout, training)
    heldout.score_reference()
    if training.reference.mode == "precompute" and not training.reference.is_complete:
        n_done = folder.states.step
        fill_reference(training, inputs.steps, before_each=lambda: stopping.raise_if_stopped(n_done))
    if inputs.other is not None:
        release_reference(training)
    return heldout


def go_on(inputs: TrainingInputs, training: Training, folder: RunFolder) -> None:
    """Brings the run to where its newest state has it; where it has none, to where the run of --continue-from ended.
    Collective.
    """
    if inputs.continued and not folder.states.step:
        inputs.continued.load(training, folder, inputs.config)
    folder.states.resume(training)


def open_log(inputs: TrainingInputs, ranks: Ranks, folder: RunFolder, stopping: Stopping) -> MetricsLog:
    """The run's lines of metrics, behind those of the state that it goes on from."""
    return MetricsLog(
        folder.path,
        n_steps=len(inputs.steps),
        per_epoch=inputs.steps.per_epoch,
        n_done=folder.states.step,
        n_tokens=folder.states.facts.get("n_tokens", 0),
        facts=inputs.facts,
        writes=ranks.is_rank0,
        track=inputs.config.watching.track,
        last_step=lambda: stopping.last_step,
    )


def main(argv: Sequence[str]) -> None:
    """The command."""
    config = cli.parse(
        TrainConfig,
        argv,
        command="python -m engine.train",
        example=EXAMPLE,
        help_text=describe_all,
        peer=trl_names,
        aliases=ALIASES,
    )
    result = run(config)
    if os.environ.get("RANK", "0") == "0":
        print(result.out)


if __name__ == "__main__":
    cli.run(main, is_distributed=True)
