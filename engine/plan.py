"""What a run needs before it starts, and how it is laid out: memory per rank, hours, disk, and the flags that fit.

    python -m engine.plan --shape llama3-8b --gpus 1 --gpu-memory 80
    python -m engine.plan --shape llama3-8b --gpus 1 --gpu-memory 24 --lora-rank 16 --base-dtype nf4
    python -m engine.plan --model DIR --data pairs.jsonl --gpus 8 --gpu-memory 80 --json
    python -m engine.plan --measure
    python -m engine.plan --versions

engine.train lays itself out by the same functions, says the sum before it starts, and refuses what cannot fit.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, Literal, NamedTuple

import torch

import engine
from data.forest import PackingOptions
from data.rows import RowSettings, find_folder, in_form, open_folder, read_examples
from engine import weights
from engine.config import ALIASES, BaseDtype, OptimizerName, TrainConfig, Whole
from engine.distributed import bus_bandwidth
from engine.model import ModelConfig, Shape, StoredDtypes, raw_config, read_config
from engine.planning import (
    DATASHEET,
    NO_ADAPTERS,
    MemoryInputs,
    OnBase,
    Plan,
    TokenStatistics,
    adapters_instead,
    cost,
    flags,
    memory,
    plan_run,
    refusal,
    size,
    tried,
    ways,
)
from engine.run import Adapting, open_chat
from engine.step import Objective, modes
from system import InputError, cli, versions
from system.flags import PathText, check_not_negative

EXAMPLE = "python -m engine.plan --shape llama3-8b --gpus 1 --gpu-memory 80"


@dataclass(frozen=True, kw_only=True)
class PlanConfig(RowSettings):
    """Print the memory, time and disk space that a training run needs, and the engine.train flags that make it fit."""

    model: PathText | None = None
    """Model to plan for: checkpoint folder or hub id. Only its configuration and weight headers are used. Give either
    this or --shape."""
    shape: Shape | None = None
    """Plan for a well-known model size; nothing is downloaded. Give either this or --model."""
    reference_model: PathText | None = None
    """As in engine.train: another reference model, which needs memory and time of its own. "base", or an adapter on the
    same base, needs hardly any extra memory."""
    gpus: int = 1
    """Number of GPUs to plan for. 0 plans a run on this machine's CPU; give its memory by --gpu-memory."""
    gpu_memory: float = 80.0
    """Memory of each GPU in GB (10^9 bytes). With --gpus 0: memory of the host, which is not detected, so that 80 GB
    are assumed if it is left out."""
    data: PathText | None = None
    """Training rows, for their number and lengths in tokens; needs --model. Unset: 29,000 pairs of UltraFeedback's
    lengths, as in the paper."""
    lengths: tuple[int, ...] = ()
    """Plan for 29,000 pairs of fixed lengths instead of --data: three numbers, the tokens of prompt, chosen and
    rejected response, such as 4096 6144 6144. The plan uses these lengths as given. In engine.train, raise
    --max-prompt-tokens and --max-response-tokens (512 each by default) to train at them."""
    loss: PathText = "apo_zero"
    """As in engine.train: the objective. Some need more memory and time than others."""
    lora_rank: int | None = None
    """As in engine.train: rank of a LoRA adapter to train instead of all weights."""
    lora_targets: tuple[str, ...] = ()
    """As in engine.train: the linear layers that get an adapter. Unset: every linear layer of every block."""
    train_also: tuple[Whole, ...] = ()
    """As in engine.train: train the output head or the token embedding in full as well."""
    adapter: PathText | None = None
    """As in engine.train: an adapter whose training is continued; needs --model."""
    base_dtype: BaseDtype | None = None
    """As in engine.train: how the frozen matrices are stored in memory."""
    epochs: int | float = 18
    """As in engine.train: passes over the rows."""
    batch_size: int = 16
    """As in engine.train: examples per optimizer step."""
    optimizer: OptimizerName = "rmsprop"
    """As in engine.train: the optimizer. AdamW needs memory for one more number per parameter than RMSProp."""
    max_grad_norm: float = 1.0
    """As in engine.train: gradient clipping. With split master weights, 0 saves the memory of the gradients."""
    shard_size: int | None = None
    """As in engine.train: number of ranks that share one copy of the weights."""
    save_dtype: Literal["auto", "float32", "bfloat16", "float16", "source"] = "auto"
    """As in engine.train: dtype of the checkpoint folders, which decides their size. source needs --model."""
    save_every: int | float | None = None
    """As in engine.train: number of steps between additional checkpoint folders."""
    keep_checkpoints: int | None = None
    """As in engine.train: number of checkpoint folders to keep on disk."""
    keep_best: str | None = None
    """As in engine.train: also keep the best checkpoint, which takes the disk space of one more."""
    state_every: int | None = None
    """As in engine.train: number of steps between saved states. 0 plans no disk space for states, although a run that
    is stopped still writes one."""
    keep_state: int = 1
    """As in engine.train: number of states to keep on disk."""
    keep_final_state: bool = False
    """As in engine.train: keep a state of the last step, also with --state-every 0."""
    tflops: float = DATASHEET / 1e12
    """Dense bf16 TFLOP/s of each GPU according to its datasheet, such as 312 for an A100 or 165 for an RTX 4090. The
    estimate of the hours assumes that half of it is reached. The default is an H100's."""
    bandwidth: float | None = None
    """Bandwidth of collectives between the GPUs of a node, in GB/s per GPU, as printed by --measure; the estimated
    hours depend on it. Unset: 300, an assumption for NVLink 4."""
    measure: bool = False
    """Instead of planning, measure the speed of collectives between the GPUs of this machine (--bandwidth); takes a
    minute."""
    json: bool = False
    """Print the result as JSON instead of text."""
    versions: bool = False
    """Instead of planning, print package versions and hardware, to be added to a bug report."""
    config: PathText | None = None
    """YAML file of settings with the names of these flags. Flags on the command line win over the file."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for flag in ("versions", "measure"):
            if getattr(self, flag):
                self._check_alone(flag)
                return
        if self.bandwidth is not None and not self.bandwidth > 0:
            raise InputError(f"--bandwidth: {self.bandwidth:g} has to be above 0")
        if not self.tflops > 0:
            raise InputError(f"--tflops: {self.tflops:g} has to be above 0")
        if (self.model is None) == (self.shape is None):
            raise InputError("--model and --shape: give one of the two")
        if self.data and not self.model:
            raise InputError("--data: needs --model, whose tokenizer counts the tokens; name it instead of --shape")
        if self.lengths and (self.data or len(self.lengths) != 3 or min(self.lengths) < 1):
            raise InputError(
                f"--lengths: {' '.join(map(str, self.lengths))}: give three numbers above 0, of prompt, chosen and "
                "rejected response, and no --data"
            )
        if self.adapter and not self.model:
            raise InputError("--adapter: needs --model, its base; name it instead of --shape")
        if not self.data and (named := [f.name for f in fields(RowSettings) if getattr(self, f.name) != f.default]):
            flag = f"--{named[0].replace('_', '-')}"
            raise InputError(f"{flag}: needs --data, whose rows it reads; add it, or leave this flag out")
        if self.save_dtype == "source" and not self.model:
            raise InputError("--save-dtype source: a named shape has no stored weights; give --model instead")
        check_not_negative(self, "gpus")
        if not self.gpu_memory > 0:
            raise InputError(f"--gpu-memory: {self.gpu_memory:g} has to be above 0; it is in GB of 10^9 bytes")

    @property
    def in_node(self) -> float:
        """Bytes a second of a collective inside a node."""
        return cost.IN_NODE if self.bandwidth is None else self.bandwidth * 1e9

    @property
    def speed(self) -> cost.Speed | None:
        """Of a GPU, as it is assumed or given; None where this machine's CPU is asked, which is timed."""
        if not self.gpus:
            return None
        return cost.Speed(computing=cost.REACHED * self.tflops * 1e12, in_node=self.in_node)

    def _check_alone(self, flag: str) -> None:
        given = [f.name for f in fields(self) if getattr(self, f.name) != f.default]
        if others := [name.replace("_", "-") for name in given if name not in (flag, "json")]:
            raise InputError(f"--{flag}: does not plan, and so does not use --{others[0]}; leave that out")


def main(argv: Sequence[str]) -> None:
    """The command."""
    config = cli.parse(PlanConfig, argv, command="python -m engine.plan", example=EXAMPLE, aliases=ALIASES)
    if config.versions:
        found = versions.report(engine.__version__)
        print(json.dumps(found, indent=1) if config.json else versions.table(found))
        return
    if config.measure:
        print(_measured(config))
        return
    laid_out = lay_out(config)
    if config.json:
        print(json.dumps(_facts(config, laid_out), indent=1))
    else:
        print(_text(config, laid_out))
    laid_out.fitting()


def _measured(config: PlanConfig) -> str:
    """What the GPUs of this machine reach. Raises InputError where there are not two."""
    n = torch.cuda.device_count()
    if n < 2:
        raise InputError(
            f"--measure: needs two GPUs or more, and here {'is one' if n else 'are none'}; leave it out to plan with "
            f"the default bandwidth, or set --bandwidth"
        )
    found = bus_bandwidth(n) / 1e9
    if config.json:
        return json.dumps({"gpus": n, "bandwidth": found})
    return f"{n} GPUs: a collective moves {found:.0f} GB a second at each; plan with --bandwidth {found:.0f}"


class LaidOut(NamedTuple):
    """The layouts that were looked at."""

    base: TrainConfig
    known: "Known"
    layouts: list[tuple[dict[str, Any], Plan]]
    """Flags and plan of each, the one without flags first."""
    instead: list[tuple[dict[str, Any], Plan]]
    """Adapters in the place of all weights, where nothing else fits."""

    @property
    def chosen(self) -> tuple[dict[str, Any], Plan] | None:
        """The first that fits."""
        return next(((way, plan) for way, plan in self.layouts if plan.fits), None)

    def fitting(self) -> Plan:
        """Its plan. Raises InputError, which says what else could be done, where none fits."""
        if self.chosen is None:
            raise InputError(refusal(self.layouts[0][1], self.layouts[1:], self.instead))
        return self.chosen[1]


def lay_out(config: PlanConfig) -> LaidOut:
    """Every layout of a run that is planned for. Raises InputError for what cannot be read."""
    base = TrainConfig(
        model=config.model or "", data=("",), out="", lora_rank=config.lora_rank, lora_targets=config.lora_targets,
        train_also=config.train_also, adapter=config.adapter, base_dtype=config.base_dtype,
        reference_model=config.reference_model,
        epochs=config.epochs, batch_size=config.batch_size, optimizer=config.optimizer,
        max_grad_norm=config.max_grad_norm, shard_size=config.shard_size, save_dtype=config.save_dtype,
        keep_checkpoints=config.keep_checkpoints, keep_state=config.keep_state, save_every=config.save_every,
        keep_best=config.keep_best, state_every=config.state_every, keep_final_state=config.keep_final_state,
        eval_pairs=int(config.keep_best is not None),
    )  # fmt: skip
    known = _what(config, base)
    n_ranks = max(1, config.gpus)
    layouts = [(way, _of(config, base, way, known)) for way in ({}, *ways(base, n_ranks))]
    if any(plan.fits for _, plan in layouts):
        return LaidOut(base, known, layouts, [])
    return LaidOut(base, known, layouts, tried(adapters_instead(base), lambda way: _of(config, base, way, known)))


class Known(NamedTuple):
    """What is planned for."""

    shape: ModelConfig
    statistics: TokenStatistics
    """What rows ask for."""
    stored: StoredDtypes
    """The dtypes that the checkpoint is stored in."""
    reference: ModelConfig | None
    """The reference's shape, where it is another model."""
    on_base: OnBase
    """The adapters of an adapter's run."""


def _what(config: PlanConfig, base: TrainConfig) -> Known:
    n_ranks, objective = max(1, config.gpus), Objective(config.loss)
    if config.shape:
        shape, stored = read_config(raw_config(config.shape), config.shape), StoredDtypes(torch.bfloat16)
        chat, other = None, None if base.reference.is_base else config.reference_model
        on_base = OnBase(shares_base=other is None)
    else:
        folder = find_folder(str(config.model))
        adapting = Adapting.of(base, folder)
        chat = open_chat(folder, adapting, config)
        model = weights.build(folder)
        weights.check(folder, model)
        if adapting is not None:
            adapting.attach(model)
        shape, stored = model.config, weights.stored_dtypes(folder)
        on_base = NO_ADAPTERS if adapting is None else adapting.for_plan()
        other = None if adapting is not None and adapting.shares_base else config.reference_model
    reference = None if other is None else weights.build(open_folder(other)[0]).config
    if not config.data:
        return Known(shape, _without_rows(config, objective, shape, reference), stored, reference, on_base)
    limits = config.limits_in(shape.context, shape.longest)
    rows = read_examples([config.data], chat, limits, config.reading, n_ids=shape.vocab_size)
    found = TokenStatistics.of(
        in_form(rows.examples, objective.form, side=objective.side),
        _packing(shape, reference),
        config.batch_size,
        n_ranks,
        is_mismatched=objective.needs_mismatched,
    )
    return Known(shape, _of_loss(found, objective), stored, reference, on_base)


def _of_loss(statistics: TokenStatistics, objective: Objective) -> TokenStatistics:
    return replace(
        statistics,
        is_mismatched=objective.needs_mismatched,
        whole_step=objective.whole_step,
        n_distributions=objective.n_distributions,
    )


def _packing(shape: ModelConfig, reference: ModelConfig | None) -> PackingOptions:
    return PackingOptions(divides_at=(*(() if reference is None else reference.originals), *shape.originals))


def _without_rows(
    config: PlanConfig, objective: Objective, shape: ModelConfig, reference: ModelConfig | None
) -> TokenStatistics:
    """Of pairs of given lengths, or of the paper's. Raises InputError for those that the model has no positions for."""
    n, n_ranks, form, side = config.batch_size, max(1, config.gpus), objective.form, objective.side
    if not config.lengths:
        return _of_loss(TokenStatistics.of_the_paper(n, n_ranks, form=form, side=side), objective)
    prompt, chosen, rejected = config.lengths
    longest = prompt + max(chosen, rejected)
    if shape.context is not None and longest > shape.context:
        raise InputError(
            f"--lengths: a prompt and a response have {longest:,} tokens, above the model's {shape.context:,} "
            "(max_position_embeddings); lower them"
        )
    packing = _packing(shape, reference)
    found = TokenStatistics.of_lengths((prompt, chosen, rejected), packing, n, n_ranks, form=form, side=side)
    return _of_loss(found, objective)


def _of(
    config: PlanConfig,
    base: TrainConfig,
    way: dict[str, Any],
    known: Known,
) -> Plan:
    train = base.with_flags(**({} if base.adapters.is_used else {"master_weights": "float32"}) | way)
    device, dtype = ("cuda", torch.bfloat16) if config.gpus else ("cpu", torch.float32)
    return plan_run(
        train, known.shape, modes(base.reference, Objective(config.loss)),
        known.statistics,
        device=device, dtype=dtype, n_ranks=max(1, config.gpus), budget=int(config.gpu_memory * 1e9),
        stored=known.stored, other_reference=known.reference, on_base=known.on_base,
    )  # fmt: skip


def _facts(config: PlanConfig, laid_out: LaidOut) -> Any:
    base, layouts, chosen = laid_out.base, laid_out.layouts, laid_out.chosen
    made: dict[str, Any] = {
        "layouts": [{"flags": flags(way), "fits": plan.fits, **plan.facts()} for way, plan in layouts],
        "chosen": None,
    }
    if chosen is not None:
        way, plan = chosen
        checkpoints, states = plan.disk_bytes(base)
        made["chosen"] = {
            "flags": _all_flags(way, plan),
            "memory_bytes": memory.total(plan.memory),
            "hours": plan.hours(base, max(1, config.gpus), config.speed),
            "bandwidth": config.in_node if config.gpus > 1 else None,
            "tflops": config.tflops if config.gpus else None,
            "flops": cost.run_flops(plan.memory, plan.statistics, base.schedule.epochs, has_reference=True),
            "checkpoint_bytes": checkpoints,
            "state_bytes": states,
        }
    return made


def _all_flags(way: dict[str, Any], plan: Plan) -> str:
    s = plan.memory
    found = [flags(way)] if way else []
    found += [f"--reference {plan.reference}"]
    found += [f"--micro-tokens {s.micro_tokens}"] if s.micro_tokens != memory.WHOLE_STEP else []
    found += [f"--recompute-blocks {s.n_recomputed}"] if s.n_recomputed else []
    found += [f"--shard-size {s.n_shards}"] if s.adapted is not None and s.n_ranks > 1 else []
    return " ".join(found)


def _text(config: PlanConfig, laid_out: LaidOut) -> str:
    base, known, layouts, chosen = laid_out.base, laid_out.known, laid_out.layouts, laid_out.chosen
    n_ranks, shape, statistics = max(1, config.gpus), known.shape, known.statistics
    first = layouts[0][1].memory
    other, batch = first.other_reference, base.schedule.batch_size
    per_step = batch * cost.training_of_example(first, statistics)[1]
    of_reference = batch * cost.reference_of_example(first, statistics)
    where = f"{config.gpus} GPU{'s' * (config.gpus > 1)} of {config.gpu_memory:g} GB" if config.gpus else "this CPU"
    lines = [
        f"{shape.n_parameters / 1e9:.2f} billion parameters{_trained(first)} on {where}; {statistics.n:,} examples x "
        f"{base.schedule.epochs} epochs in steps of {base.schedule.batch_size}, {statistics.tokens:,.0f} tokens an "
        f"example, {statistics.longest:,} at most",
        *([] if other is None else [f"{other.n_parameters / 1e9:.2f} billion parameters in --reference-model"]),
        f"{per_step / 1e12:,.1f} TFLOP a step, {(per_step + of_reference) / 1e12:,.1f} while the reference is computed",
        *(
            []
            if statistics.is_reference_kept and not statistics.is_mismatched
            else [f"--loss {config.loss}: the reference is computed in every step"]
        ),
        "",
        "GB a rank, at most:",
    ]
    names = list(dict.fromkeys(name for _, plan in layouts for name in memory.needs(plan.memory)))
    lines += [f"  {'':34} {'total':>7}  " + "  ".join(names)]
    for way, plan in layouts:
        found = memory.needs(plan.memory)
        cells = "  ".join(f"{found.get(name, 0) / 1e9:{len(name)}.1f}" for name in names)
        said = flags(way) or (_held(base) if base.adapters.is_used else "float32 masters, whole")
        lines += [f"  {said:34} {sum(found.values()) / 1e9:7.1f}  {cells}  {'fits' if plan.fits else 'too much'}"]
    if chosen is None:
        return "\n".join(lines)
    way, plan = chosen
    checkpoints, states = plan.disk_bytes(base)
    folders = _count(plan.n_folders(base), "checkpoint")
    return "\n".join(
        [
            *lines,
            "",
            plan.sentence(base, n_ranks, config.speed) + f": {size(checkpoints)} for {folders} "
            f"in {plan.saved_in}, {size(states)} for {_count(plan.n_states(base), 'state')}",
            f"flags: {_all_flags(way, plan)}",
            *([_computing(config)] if config.gpus else []),
            *([] if n_ranks == 1 else [_bandwidth(config)]),
        ]
    )


def _computing(config: PlanConfig) -> str:
    named = " (an H100's; --tflops sets another card's)" if config.tflops == PlanConfig.tflops else ""
    return f"hours: at {cost.REACHED:.0%} of {config.tflops:g} TFLOP/s a GPU{named}"


def _bandwidth(config: PlanConfig) -> str:
    said = f"{config.in_node / 1e9:.0f} GB/s a GPU inside a node"
    if config.bandwidth is not None:
        return f"collectives: {said}, as given"
    return f"collectives: {said}, assumed (--measure on such a machine finds its own, --bandwidth gives it)"


def _trained(s: MemoryInputs) -> str:
    return "" if s.adapted is None else f" frozen, {s.adapted.n_trained / 1e6:,.1f} million train,"


def _held(base: TrainConfig) -> str:
    return f"the base in {base.adapters.base_dtype or 'the dtype that computes'}"


def _count(n: int, what: str) -> str:
    return f"{n} {what}{'s' * (n != 1)}"


if __name__ == "__main__":
    cli.run(main)
