"""What a run needs before it starts, and how it is laid out: memory per rank, hours, disk, and the flags that fit.

    python -m engine.plan --shape llama3-8b --gpus 1 --gpu-memory 80
    python -m engine.plan --model DIR --data pairs.jsonl --gpus 8 --gpu-memory 80 --json

engine.train lays itself out by the same functions, says the sum before it starts, and refuses what cannot fit.
"""

import functools
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch

from data import InputError, cli
from data.dataset import open_model, read_examples
from data.examples import Limits
from data.sources import Reading
from engine import cost, memory, weights
from engine.config import TrainConfig
from engine.cost import Load
from engine.flops import matmul_peak
from engine.llama import LlamaConfig
from engine.memory import Setting
from engine.optim import N_STATES
from engine.reference import Mode
from engine.rounding import name_of
from engine.shapes import raw_config
from engine.steps import layout_of

EXAMPLE = "python -m engine.plan --shape llama3-8b --gpus 1 --gpu-memory 80"
# What lets a large model into little memory, what changes the least first.
WAYS: tuple[dict[str, Any], ...] = (
    {"master": "split"},
    {"master": "split", "square_avg": "bfloat16"},
    {"master": "split", "max_grad_norm": 0.0},
    {"master": "split", "square_avg": "bfloat16", "max_grad_norm": 0.0},
)


@dataclass(frozen=True, kw_only=True)
class Plan:
    """How a run is laid out."""

    setting: Setting
    reference: Mode
    load: Load
    budget: int
    """Bytes that a rank may take."""
    saves: torch.dtype
    """Of the weights in checkpoint folders."""

    @property
    def fits(self) -> bool:
        """Whether it does."""
        return memory.total(self.setting) <= self.budget

    def facts(self) -> dict[str, Any]:
        """What was decided, and the bytes that it is expected to take."""
        s = self.setting
        return {
            "master": "split" if s.is_split else "whole",
            "reference": self.reference,
            "micro_tokens": s.micro_tokens,
            "pass_tokens": s.pass_tokens,
            "recompute_blocks": s.n_recomputed,
            "reshard": s.reshards,
            "compile": s.is_compiled,
            "save_dtype": name_of(self.saves),
            "bytes": memory.needs(s),
            "budget": self.budget,
        }

    def hours(self, config: TrainConfig, n_gpus: int) -> float:
        """Of the whole run: measured shares of a GPU's datasheet, or of a product timed now on the CPU."""
        s = self.setting
        has_reference = self.reference != "none"
        flops = cost.run_flops(s, self.load, config.epochs, has_reference=has_reference)
        if s.device == "cpu":
            return flops / (n_gpus * _cpu_peak(s.dtype) * cost.REACHED["cpu"]) / 3600
        computing, communicating = cost.step_seconds(s, self.load, config.batch_size, n_gpus)
        slower = max(computing, communicating) / computing * (cost.IMBALANCE if n_gpus > 1 else 1.0)
        return flops / (n_gpus * cost.DATASHEET * cost.REACHED["cuda"]) * slower / 3600

    def disk_bytes(self, config: TrainConfig) -> tuple[int, int]:
        """(checkpoints that are kept, states)."""
        n = min(config.epochs, config.keep or config.epochs)
        states = 0 if config.state_every == 0 else config.keep_state * cost.state_bytes(self.setting)
        return n * cost.checkpoint_bytes(self.setting.shape, self.saves), states

    def sentence(self, config: TrainConfig, n_gpus: int) -> str:
        """The sum of it."""
        checkpoints, states = self.disk_bytes(config)
        needed = memory.total(self.setting)
        return (
            f"needs {_size(needed)} of {_size(self.budget)} memory{' a GPU' * (self.setting.device == 'cuda')}, about "
            f"{_time(self.hours(config, n_gpus))}, {_size(checkpoints + states)} on disk"
        )


@functools.cache
def _cpu_peak(dtype: torch.dtype) -> float:
    """Operations per second of a plain product, timed once in some milliseconds."""
    return matmul_peak(dtype, torch.device("cpu"), 512)


def lay_out(
    config: TrainConfig, shape: LlamaConfig, modes: Sequence[Mode], load: Load, *, device: str, dtype: torch.dtype,
    n_ranks: int, budget: int, stored: torch.dtype = torch.bfloat16,
) -> Plan:  # fmt: skip
    """The first layout that fits without computing blocks again, else the first that fits, else the smallest.

    What is preferred: float32 masters that are whole; a reference that walks along; weights that stay gathered.
    stored: the dtype of the checkpoint that the run starts from.
    """
    masters: Sequence[bool] = {"auto": (False, True), "whole": (False,), "split": (True,)}[config.master]
    if config.master == "auto" and (n_ranks > 1 or device == "cpu" or not config.can_split):
        masters = (False,)
    reshards: Sequence[bool] = {"auto": (False, True), "yes": (True,), "no": (False,)}[config.reshard]
    if device == "cpu" and config.reshard == "auto":
        reshards = (False,)  # there, gathering again costs more than the memory is worth
    fitting: list[Plan] = []
    plan: Plan | None = None
    layouts: list[tuple[bool, Mode, bool]] = [(a, b, c) for a in masters for b in modes for c in reshards]
    for is_split, mode, gives_back in layouts:
        setting = Setting(
            shape=shape,
            device=device,
            dtype=torch.bfloat16 if is_split else dtype,
            n_shards=config.shard_size or n_ranks,
            is_split=is_split,
            square_avg_bytes=2 if is_split and config.square_avg == "bfloat16" else 4,
            n_states=N_STATES[config.optimizer],
            holds_gradients=not is_split or config.max_grad_norm > 0,
            holds_reference=mode == "fused",
            moves_reference=config.reference_update != "none",
            reshards=gives_back,
            is_compiled=compiles(config, device),
        )
        setting = memory.fit(
            setting,
            budget,
            micro_tokens=config.micro_tokens,
            n_recomputed=config.recompute_blocks,
            longest=load.longest,
            step_tokens=load.step,
        )
        saves = saved_dtype(config, setting.dtype, stored)
        plan = Plan(setting=setting, reference=mode, load=load, budget=budget, saves=saves)
        fitting += [plan] if plan.fits else []
    assert plan is not None  # there is one mode at least
    return next((p for p in fitting if not p.setting.n_recomputed), fitting[0] if fitting else plan)


def saved_dtype(config: TrainConfig, computed: torch.dtype, stored: torch.dtype) -> torch.dtype:
    """What --save-dtype comes to, where a run computes in one dtype and starts from a checkpoint stored in another."""
    named = {"auto": computed, "source": stored}
    return named[config.save_dtype] if config.save_dtype in named else getattr(torch, config.save_dtype)


def compiles(config: TrainConfig, device: str) -> bool:
    """Whether blocks are compiled."""
    return config.compile == "yes" or (config.compile == "auto" and device == "cuda")


def ways(config: TrainConfig, n_ranks: int) -> list[dict[str, Any]]:
    """Changes of a configuration that may let it fit, what changes the least first."""
    if n_ranks > 1 or not config.can_split:
        return []
    return [way for way in WAYS if any(getattr(config, name) != value for name, value in way.items())]


def flags(way: dict[str, Any]) -> str:
    """A change as it is typed."""
    return " ".join(f"--{name.replace('_', '-')} {value:g}" if isinstance(value, float) else
                    f"--{name.replace('_', '-')} {value}" for name, value in way.items())  # fmt: skip


def refusal(found: Plan, others: Sequence[tuple[dict[str, Any], Plan]]) -> str:
    """Why a layout cannot be, and the first change that would let it. others: changes and what comes of them."""
    needed = f"needs {_size(memory.total(found.setting))} of memory, and {_size(found.budget)} are free"
    for way, plan in others:
        if plan.fits:
            return f"{needed}; add {flags(way)}: {_size(memory.total(plan.setting))}"
    least = min((memory.total(plan.setting) for _, plan in others), default=memory.total(found.setting))
    also = f" ({_size(least)} with {flags(WAYS[-1])})" if least < memory.total(found.setting) else ""
    return f"{needed}{also}; lower --micro-tokens, --max-prompt-tokens and --max-response-tokens, or take more GPUs"


def _size(n_bytes: float) -> str:
    return f"{n_bytes / 1e9:,.0f} GB" if n_bytes >= 1e10 else f"{max(n_bytes / 1e9, 0.1):.1f} GB"


def _count(n: int, what: str) -> str:
    return f"{n} {what}{'s' * (n != 1)}"


def _time(hours: float) -> str:
    if hours >= 1:
        return f"{hours:.1f} h" if hours < 100 else f"{hours / 24:.0f} days"
    return f"{max(1, round(60 * hours))} min"


# --- the command ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class PlanConfig:
    """What fits: memory per rank by layout, operations, hours, disk, and the flags to give to engine.train."""

    model: str | None = None
    """Checkpoint folder or hub id, for its shape."""
    shape: Literal["tiny", "llama3-8b", "llama3-70b", "llama3-405b"] | None = None
    """A known shape instead."""
    gpus: int = 1
    """GPUs; 0: this machine's CPU."""
    gpu_memory: float = 80.0
    """GB (10^9 bytes) of each, or of the host."""
    data: str | None = None
    """Rows, for their number and lengths; needs --model. Unset: the paper's 29,000 pairs of UltraFeedback's lengths."""
    epochs: int = 18
    """As engine.train's."""
    batch_size: int = 16
    """As engine.train's."""
    optimizer: Literal["rmsprop", "adamw"] = "rmsprop"
    """As engine.train's."""
    max_grad_norm: float = 1.0
    """As engine.train's."""
    shard_size: int | None = None
    """As engine.train's."""
    save_dtype: Literal["auto", "float32", "bfloat16", "float16", "source"] = "auto"
    """As engine.train's: the size of the checkpoint folders. source needs --model."""
    keep: int | None = None
    """As engine.train's: how many checkpoint folders stay on disk."""
    keep_state: int = 1
    """As engine.train's: how many states stay on disk."""
    json: bool = False
    """Print JSON."""
    config: str | None = None
    """YAML file of settings, named as the flags are; flags win over it."""

    def __post_init__(self) -> None:
        if (self.model is None) == (self.shape is None):
            raise InputError("--model and --shape: give one of the two")
        if self.data and not self.model:
            raise InputError("--data: goes with --model, whose tokenizer counts its tokens")
        if self.save_dtype == "source" and not self.model:
            raise InputError("--save-dtype source: a named shape has no weights to take it from; give --model")
        if self.gpus < 0 or not self.gpu_memory > 0:
            raise InputError("--gpus and --gpu-memory cannot be negative")


def main(argv: Sequence[str]) -> None:
    """The command."""
    config = cli.parse(PlanConfig, argv, command="python -m engine.plan", example=EXAMPLE)
    shape, load, stored = _what(config)
    base = TrainConfig(
        model="", data=("",), out="", epochs=config.epochs, batch_size=config.batch_size, optimizer=config.optimizer,
        max_grad_norm=config.max_grad_norm, shard_size=config.shard_size, save_dtype=config.save_dtype,
        keep=config.keep, keep_state=config.keep_state,
    )  # fmt: skip
    n_ranks = max(1, config.gpus)
    tried = [(way, _of(config, base, way, shape, load, stored)) for way in ({}, *ways(base, n_ranks))]
    chosen = next(((way, plan) for way, plan in tried if plan.fits), None)
    if config.json:
        print(json.dumps(_facts(config, base, tried, chosen), indent=1))
    else:
        print(_text(config, base, shape, load, tried, chosen))
    if chosen is None:
        raise InputError(refusal(tried[0][1], tried[1:]))


def _what(config: PlanConfig) -> tuple[LlamaConfig, Load, torch.dtype]:
    """The shape, what rows ask for, and the dtype that the checkpoint is stored in."""
    n_ranks = max(1, config.gpus)
    if config.shape:
        shape = LlamaConfig.parse(raw_config(config.shape), config.shape)
        return shape, Load.of_the_paper(config.batch_size, n_ranks), torch.bfloat16
    folder, chat = open_model(str(config.model))
    shape, stored = weights.build(folder).config, weights.stored_dtype(folder)
    if not config.data:
        return shape, Load.of_the_paper(config.batch_size, n_ranks), stored
    rows = read_examples([config.data], chat, Limits(), Reading(), n_ids=shape.vocab_size)
    layout = layout_of(TrainConfig(model="", data=("",), out=""))
    return shape, Load.of(rows.examples, layout, config.batch_size, n_ranks), stored


def _of(
    config: PlanConfig, base: TrainConfig, way: dict[str, Any], shape: LlamaConfig, load: Load, stored: torch.dtype
) -> Plan:
    train = replace(base, **({"master": "whole"} | way))
    device, dtype = ("cuda", torch.bfloat16) if config.gpus else ("cpu", torch.float32)
    return lay_out(
        train, shape, ["fused", "precompute"], load,
        device=device, dtype=dtype, n_ranks=max(1, config.gpus), budget=int(config.gpu_memory * 1e9), stored=stored,
    )  # fmt: skip


def _facts(config: PlanConfig, base: TrainConfig, tried: Sequence[tuple[dict[str, Any], Plan]], chosen: Any) -> Any:
    made: dict[str, Any] = {
        "layouts": [{"flags": flags(way), "fits": plan.fits, **plan.facts()} for way, plan in tried],
        "chosen": None,
    }
    if chosen is not None:
        way, plan = chosen
        checkpoints, states = plan.disk_bytes(base)
        made["chosen"] = {
            "flags": _all_flags(way, plan),
            "memory_bytes": memory.total(plan.setting),
            "hours": plan.hours(base, max(1, config.gpus)),
            "flops": cost.run_flops(plan.setting, plan.load, base.epochs, has_reference=True),
            "checkpoint_bytes": checkpoints,
            "state_bytes": states,
        }
    return made


def _all_flags(way: dict[str, Any], plan: Plan) -> str:
    s = plan.setting
    found = [flags(way)] if way else []
    found += [f"--reference {plan.reference}"]
    found += [f"--micro-tokens {s.micro_tokens}"] if s.micro_tokens != memory.WHOLE_STEP else []
    found += [f"--recompute-blocks {s.n_recomputed}"] if s.n_recomputed else []
    return " ".join(found)


def _text(
    config: PlanConfig, base: TrainConfig, shape: LlamaConfig, load: Load, tried: Sequence[tuple[dict[str, Any], Plan]],
    chosen: Any,
) -> str:  # fmt: skip
    n_ranks = max(1, config.gpus)
    per_step = base.batch_size * cost.forward_of_example(shape, load)
    where = f"{config.gpus} GPU{'s' * (config.gpus > 1)} of {config.gpu_memory:g} GB" if config.gpus else "this CPU"
    lines = [
        f"{shape.n_parameters / 1e9:.2f} billion parameters on {where}; {load.n:,} examples x {base.epochs} epochs in "
        f"steps of {base.batch_size}, {load.tokens:,.0f} tokens an example, {load.longest:,} at most",
        f"{3 * per_step / 1e12:,.1f} TFLOP a step, {4 * per_step / 1e12:,.1f} while the reference is computed",
        "",
        "GB a rank, at most:",
    ]
    names = list(dict.fromkeys(name for _, plan in tried for name in memory.needs(plan.setting)))
    lines += [f"  {'':34} {'total':>7}  " + "  ".join(names)]
    for way, plan in tried:
        found = memory.needs(plan.setting)
        cells = "  ".join(f"{found.get(name, 0) / 1e9:{len(name)}.1f}" for name in names)
        said = flags(way) or "float32 masters, whole"
        lines += [f"  {said:34} {sum(found.values()) / 1e9:7.1f}  {cells}  {'fits' if plan.fits else 'too much'}"]
    if chosen is None:
        return "\n".join(lines)
    way, plan = chosen
    checkpoints, states = plan.disk_bytes(base)
    folders = _count(min(base.keep or base.epochs, base.epochs), "checkpoint")
    return "\n".join(
        [
            *lines,
            "",
            plan.sentence(base, n_ranks) + f": {_size(checkpoints)} for {folders} "
            f"in {name_of(plan.saves)}, {_size(states)} for {_count(base.keep_state, 'state')}",
            f"flags: {_all_flags(way, plan)}",
        ]
    )


if __name__ == "__main__":
    cli.run(main)
