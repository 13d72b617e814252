"""One measured run: the real training, in a process of its own, watched through its hooks.

The training code holds no timing but that of its steps; the loop says when a part of a step begins. Gathers and sums
of sharded weights are hidden behind forward and backward passes, and counted there. Started by engine/bench/bench.py,
one process or many:

    python -c "from engine.bench.measure import main; main()" job.json
"""

import json
import os
import resource
import sys
import time
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
import yaml
from torch import Tensor, nn

from data.forest import Forest, PackingOptions, pack
from engine.config import TrainConfig, world_size
from engine.inputs import TrainingInputs
from engine.layout import plan_together
from engine.model import DIVERGENCES, STATISTICS, FusedForward, Head, Transformer, adapters
from engine.planning import (
    Documents,
    LowRank,
    capped_flops,
    forward_flops,
    kernel_seconds,
    matmul_peak,
    training_flops,
)
from engine.step import Hooks, MicroBatching, Step, Training
from engine.train import join, train
from system import cli

PHASES = {
    "forward": "forward",
    "backward": "backward",
    "gather": "communication",
    "gradient": "optimizer",
    "optimizer": "optimizer",
    "done": "idle",
}
"""Of the loop's phases, which part of a step they are."""
PARTS = ("data", "forward", "head", "backward", "optimizer", "communication", "idle")


class Stopwatch:
    """Seconds by what was being done: each belongs to one part, so that the parts add up to the whole."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = defaultdict(float)
        self._part, self._around = "idle", "idle"
        self._since = time.perf_counter()

    def turn(self, part: str) -> None:
        """Ends the part that runs, and begins another."""
        now = time.perf_counter()
        self.seconds[self._part] += now - self._since
        self._part, self._since = part, now

    def enter(self, part: str) -> None:
        """Begins a part inside the one that runs."""
        self._around = self._part
        self.turn(part)

    def leave(self) -> None:
        """Goes back to the one around it."""
        self.turn(self._around)

    def take(self) -> dict[str, float]:
        """What was measured since the last call; the part that runs goes on."""
        self.turn(self._part)
        found, self.seconds = dict(self.seconds), defaultdict(float)
        return found


def watch_head(head: Head, stopwatch: Stopwatch) -> None:
    """Counts the head's forward and backward pass as a part of its own."""

    def after(_: Any, given: tuple[Tensor, ...], logps: Tensor) -> None:
        stopwatch.leave()
        if logps.requires_grad:  # the gradient reaches the log-probs first, and the hidden states last
            logps.register_hook(lambda _: stopwatch.enter("head"))
            given[0].register_hook(lambda _: stopwatch.leave())

    head.register_forward_pre_hook(lambda *_: stopwatch.enter("head"))
    head.register_forward_hook(after)


class Counter:
    """Operations executed, by what the models are handed: looked at between steps, so that no GPU is waited for."""

    def __init__(self) -> None:
        self._passed: list[tuple[FusedForward, Forest, bool, bool, int]] = []

    def note(self, model: nn.Module, given: tuple[Forest], named: dict[str, Any], _: Any) -> None:
        """A forward pass of policy and reference (a forward hook's arguments)."""
        assert isinstance(model, FusedForward)
        both = named["with_reference"] and model.reference is not None
        asked = set(named.get("token_values", ()))
        n_distributions = 2 if asked & set(DIVERGENCES) else int(bool(asked & set(STATISTICS)))
        self._passed.append((model, given[0], torch.is_grad_enabled(), both, n_distributions))

    def take(self) -> int:
        """Of the passes since the last call."""
        found = sum(_executed(*passed) for passed in self._passed)
        self._passed.clear()
        return found


class Passes(NamedTuple):
    """Operations of a policy's forward and backward pass over a forest, and those of the forward pass's parts."""

    forward: int
    backward: int
    blocks: int
    rows: int


def passes_of(policy: Transformer, forest: Forest) -> Passes:
    """What has to be computed: of a frozen matrix no gradient is (a product of three), of an adapter's two all are."""
    made = policy.adapter
    low_rank = None if made is None else LowRank(adapters.n_multiplied(policy), "lm_head" in made.whole)
    counted = training_flops(policy.config, low_rank, forest.n_tokens, Documents.of(forest), forest.rows.numel())
    forward, both = map(int, counted)
    _, rows = forward_flops(policy.config, forest)
    return Passes(forward, both - forward, forward - rows, rows)


def _executed(
    fused: FusedForward, forest: Forest, has_backward: bool, has_reference: bool, n_distributions: int
) -> int:
    policy, shape = fused.policy, fused.policy.config
    forward, backward, blocks, rows = passes_of(policy, forest)
    is_one = forest.rows.numel() <= policy.head.chunk_rows(shape.vocab_size, forest.tokens.device)
    keeps = is_one and policy.head.keeps_logits and shape.logit_cap is None
    again = 0 if keeps and not n_distributions else rows
    again += int(capped_flops(shape, Documents.of(forest)))
    again += blocks * sum(bool(block.is_recomputed) for block in policy.blocks) // shape.n_layers
    beside = rows * (1 + has_backward) if n_distributions == 2 else 0  # the reference's logits, for a divergence
    reference = sum(forward_flops(shape, forest)) if has_reference else 0
    return forward + (backward + again if has_backward else 0) + reference + beside


class KernelTable:
    """What the kernels of the last step take on a GPU, into a file."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._profiler = torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA])

    def follow(self, step: int, n_steps: int) -> None:
        """After each step."""
        if step == n_steps - 1:
            self._profiler.start()
        if step == n_steps:
            self._profiler.stop()
            averages = self._profiler.key_averages()
            self._path.write_text(averages.table(sort_by="self_device_time_total", row_limit=45))


def measure(config: TrainConfig, *, kernels: bool = False, profile: str | None = None) -> dict[str, Any]:
    """Trains, and gives what it took: a list of epochs with {"pairs", "seconds", "tokens", "flops", parts ...}.

    On a GPU the parts are left out: to time them the host would have to wait for each. profile: a file for what the
    kernels of the last step take instead.

    tokens: prompts once, responses whole. flops: what this rank executes times the ranks; useful_flops: what the
    step needs without padding, with each prompt once, response rows only, and the reference once.

    The first step of every epoch is a warm-up and not counted. kernels: time the kernels of a step alone, too.
    """
    before = resident()
    watched = Watched(config, Path(profile) if profile else None)
    inputs = TrainingInputs(config)
    ranks = join(inputs)
    watched.n_steps = len(inputs.steps)
    result = train(inputs, ranks, watched.hooks())
    has_cuda = torch.cuda.is_available()
    peak = torch.cuda.max_memory_reserved() if has_cuda else resident(peak=True) - before
    made: dict[str, Any] = {
        "epochs": [watched.epochs[e] for e in sorted(watched.epochs)],
        "peak_bytes": peak,
        "allocated_bytes": torch.cuda.max_memory_allocated() if has_cuda else peak,
        "loss": result.metrics["loss"],
        "plan": yaml.safe_load((result.out / "config.yaml").read_text())[cli.FACTS]["layout"],
    }
    if has_cuda:
        torch.cuda.empty_cache()
        made["matmul_peak"] = matmul_peak(torch.bfloat16, torch.device("cuda"), 8192)
    elif kernels:
        made |= _alone(config)
    return made


class Watched:
    """A run seen through its hooks."""

    def __init__(self, config: TrainConfig, profile: Path | None) -> None:
        """profile: a file for what the kernels of the last step take on a GPU."""
        self._config = config
        self._stopwatch, self._counter = Stopwatch(), Counter()
        self._kernels = KernelTable(profile) if profile else None
        self._parts: dict[str, float] = {}
        self.n_steps = 0
        """Steps of the run."""
        self.epochs: dict[int, dict[str, Any]] = {}
        """What each epoch took, but for its first step, which is a warm-up."""

    def hooks(self) -> Hooks:
        """What the loop is given."""
        return Hooks(begin=self._begin, on_phase=self._on_phase, after_log=self._after_log)

    def _begin(self, training: Training) -> None:
        self._policy = training.policy
        training.model.register_forward_hook(self._counter.note, with_kwargs=True)
        if not torch.cuda.is_available():  # there the host would have to wait for each part
            watch_head(training.policy.head, self._stopwatch)

    def _on_phase(self, _: int, phase: str) -> None:
        self._stopwatch.turn(PHASES[phase])
        if phase == "done":
            self._parts = self._stopwatch.take()

    def _after_log(self, step: Step, line: Mapping[str, float]) -> None:
        executed, seconds = self._counter.take(), line["perf/step_seconds"]
        if step.epoch in self.epochs:
            config = self._config
            found = self.epochs[step.epoch]
            forest = pack(step.examples, self._packing)
            needed = passes_of(self._policy, forest)
            has_reference = step.epoch == 1 and config.reference.mode != "precompute"
            of_reference = sum(forward_flops(self._policy.config, forest)) if has_reference else 0
            known = {
                "pairs": len(step.batch),
                "tokens": step.n_tokens,
                "seconds": seconds,
                "flops": executed * world_size(),
                "useful_flops": needed.forward + needed.backward + of_reference,
            }
            parts = {} if torch.cuda.is_available() else {p: self._parts[p] for p in PARTS[:-1] if p in self._parts}
            parts |= {"idle": seconds - sum(parts.values())} if parts else {}  # the line before is written in it
            for name, value in (known | parts).items():
                found[name] += value
            found["step_seconds"] = [*found.get("step_seconds", []), seconds]
        self.epochs.setdefault(step.epoch, defaultdict(float))
        if self._kernels is not None:
            self._kernels.follow(step.number, self.n_steps)
        self._stopwatch.take()
        self._stopwatch.turn("data")

    @property
    def _packing(self) -> PackingOptions:
        """What a pass needs at least: every prompt once, where the model lets it be shared."""
        return PackingOptions(divides_at=self._policy.config.originals)


def _alone(config: TrainConfig) -> dict[str, Any]:
    """What the device reaches on a plain product, and how long the kernels of the first step's batches take alone."""
    inputs = TrainingInputs(config.with_flags(out=config.out + "-kernels"))
    ranks = join(inputs)
    micro_batching = MicroBatching.of(
        config.measuring, plan_together(inputs, ranks).memory.micro_tokens, inputs.originals
    )
    model = inputs.policy.to_empty(device=ranks.device).to(ranks.dtype)
    batch = inputs.steps.step(1).batch
    seconds: dict[str, float] = defaultdict(float)
    for micro in batch.pack(ranks, micro_batching):
        for part, value in kernel_seconds(model, micro.forest.to(ranks.device)).items():
            seconds[part] += value
    peak = matmul_peak(ranks.dtype, ranks.device) * ranks.size
    return {"matmul_peak": peak, "kernels": {part: value / len(batch) for part, value in seconds.items()}}


def resident(*, peak: bool = False) -> int:
    """Bytes of memory that this process holds, or held at most; always the latter where there is no /proc."""
    if not Path("/proc/self/status").exists():
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # in bytes on macOS
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(status["VmHWM" if peak else "VmRSS"].split()[0]) * 1024


def arguments(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Settings as they come from JSON, as TrainConfig takes them."""
    return {name: tuple(value) if isinstance(value, list) else value for name, value in settings.items()}


def main() -> None:
    """The process: measures the job in the file that is named, writes the result beside it."""
    job = json.loads(Path(sys.argv[1]).read_text())
    if job["threads"]:
        torch.set_num_threads(job["threads"])
    made = measure(TrainConfig(**arguments(job["config"])), kernels=job["kernels"], profile=job.get("profile"))
    if os.environ.get("RANK", "0") == "0":
        Path(job["result"]).write_text(json.dumps(made))
