"""One measured run: the real training, in a process of its own, with a stopwatch put on it from outside.

The training code holds no timing but that of its steps. Here its functions are wrapped: each span of time goes to the
innermost one, so that the parts add up to the whole. Started by engine/bench/bench.py, one process or many:

    python -c "from engine.bench.measure import main; main()" job.json
"""

import functools
import json
import os
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import yaml

from data.forest import Forest, pack
from engine import optim, train, weights
from engine.config import TrainConfig, world_size
from engine.distributed import Ranks
from engine.inputs import TrainingInputs
from engine.model import FusedForward, Head, head
from engine.optim import SplitRMSprop
from engine.planning import forward_flops, kernel_seconds, matmul_peak
from engine.run import Run
from engine.step import MicroBatching, Step, Steps
from system import cli

PARTS = ("data", "forward", "head", "backward", "optimizer", "communication", "idle")


class Stopwatch:
    """Seconds spent in wrapped functions, each second counted for the innermost."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = defaultdict(float)
        self._open: list[str] = []
        self._since = time.perf_counter()

    def turn(self, label: str | None) -> None:
        """Ends the span that runs and begins another; None goes back to the one around it."""
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        now = time.perf_counter()
        self.seconds[self._open[-1] if self._open else "idle"] += now - self._since
        self._since = now
        if label is None:
            self._open.pop()
        else:
            self._open.append(label)

    def wrap(self, owner: Any, name: str, label: str) -> None:
        """Replaces owner.name by a function that does the same and is timed."""
        static = isinstance(vars(owner).get(name), staticmethod)
        function: Callable[..., Any] = getattr(owner, name)

        @functools.wraps(function)
        def timed(*arguments: Any, **more: Any) -> Any:
            self.turn(label)
            try:
                return function(*arguments, **more)
            finally:
                self.turn(None)

        setattr(owner, name, staticmethod(timed) if static else timed)

    def restart(self) -> None:
        """Forgets what was measured; the spans that are open go on."""
        self.turn("idle")
        self.turn(None)
        self.seconds.clear()


def watch(stopwatch: Stopwatch) -> None:
    """Puts the stopwatch on the training path."""
    from engine.distributed import fsdp  # a second of imports that engine.bench --help does without

    stopwatch.wrap(FusedForward, "forward", "forward")
    stopwatch.wrap(Head, "forward", "head")
    stopwatch.wrap(head.TargetLogps, "backward", "head")
    stopwatch.wrap(torch.Tensor, "backward", "backward")
    for optimizer in (torch.optim.RMSprop, SplitRMSprop, torch.optim.AdamW):
        stopwatch.wrap(optimizer, "step", "optimizer")
    stopwatch.wrap(optim, "clip", "optimizer")
    for owner, name in [(Ranks, "sum"), *fsdp.collectives()]:
        stopwatch.wrap(owner, name, "communication")
    packed = Steps.packed

    def timed(self: Steps, *arguments: Any, **named: Any) -> Iterator[Step]:
        steps = packed(self, *arguments, **named)
        while True:
            stopwatch.turn("data")
            step = next(steps, None)
            stopwatch.turn(None)
            if step is None:
                return
            yield step

    Steps.packed = timed  # pyright: ignore[reportAttributeAccessIssue]


class Counter:
    """Operations executed, by what the walk is handed: looked at between steps, so that no GPU is waited for in one."""

    def __init__(self) -> None:
        self._walked: list[tuple[FusedForward, Forest, bool, bool]] = []
        walk = FusedForward.forward

        @functools.wraps(walk)
        def noted(model: FusedForward, forest: Forest, *, with_reference: bool) -> Any:
            both = with_reference and model.reference is not None
            self._walked.append((model, forest, torch.is_grad_enabled(), both))
            return walk(model, forest, with_reference=with_reference)

        FusedForward.forward = noted  # pyright: ignore[reportAttributeAccessIssue]

    def take(self) -> int:
        """Of the passes since the last call."""
        found = sum(_executed(*passed) for passed in self._walked)
        self._walked.clear()
        return found


def _executed(walk: FusedForward, forest: Forest, has_backward: bool, has_reference: bool) -> int:
    policy, shape = walk.policy, walk.policy.config
    blocks, rows = forward_flops(shape, forest)
    once = blocks + rows
    is_one = forest.rows.numel() <= policy.head.chunk_rows(shape.vocab_size, forest.tokens.device)
    again = 0 if is_one and policy.head.keeps_logits else rows
    again += blocks * sum(bool(block.is_recomputed) for block in policy.blocks) // shape.n_layers
    return (3 * once + again if has_backward else once) + (once if has_reference else 0)


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
    stopwatch, counter = Stopwatch(), Counter()
    if not torch.cuda.is_available():
        watch(stopwatch)
    kernel_table = KernelTable(Path(profile)) if profile else None
    shape = weights.build(Path(config.model)).config
    epochs: dict[int, dict[str, Any]] = {}
    spans: dict[str, float] = {}
    log, stop_clock = Run.log, Run.stop_clock

    def count(run: Run, step: Step, *arguments: Any, **more: Any) -> None:
        executed = counter.take()
        if step.epoch in epochs:
            found = epochs[step.epoch]
            blocks, rows = forward_flops(shape, pack(step.examples))
            known = {
                "pairs": step.n_examples,
                "tokens": step.n_tokens,
                "seconds": run.step_seconds,
                "flops": executed * world_size(),
                # The reference is worth one pass, where it walks.
                "useful_flops": (4 if step.epoch == 1 and config.reference != "precompute" else 3) * (blocks + rows),
            }
            for name, value in (known | spans).items():
                found[name] += value
            found["step_seconds"] = [*found.get("step_seconds", []), run.step_seconds]
        epochs.setdefault(step.epoch, defaultdict(float))
        stopwatch.restart()  # before the line is written: that counts into the next step
        log(run, step, *arguments, **more)
        if kernel_table is not None:
            kernel_table.follow(step.number, len(run.steps))

    def keep(run: Run) -> None:
        stop_clock(run)
        stopwatch.turn("idle")
        stopwatch.turn(None)
        spans.clear()
        spans.update(stopwatch.seconds)

    Run.log = count  # pyright: ignore[reportAttributeAccessIssue]
    Run.stop_clock = keep  # pyright: ignore[reportAttributeAccessIssue]
    result = train.run(config)
    has_cuda = torch.cuda.is_available()
    peak = torch.cuda.max_memory_reserved() if has_cuda else resident(peak=True) - before
    made: dict[str, Any] = {
        "epochs": [epochs[e] for e in sorted(epochs)],
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


def _alone(config: TrainConfig) -> dict[str, Any]:
    """What the device reaches on a plain product, and how long the kernels of the first step's batches take alone."""
    job = TrainingInputs(replace(config, out=config.out + "-kernels"))
    ranks = train.ranks_of(job)
    split = MicroBatching.of(config, job.plan_run(ranks).setting.micro_tokens)
    model = job.policy.to_empty(device=ranks.device).to(ranks.dtype)
    step = job.steps.step(1)
    seconds: dict[str, float] = defaultdict(float)
    for batch in step.pack(ranks, split):
        for part, value in kernel_seconds(model, batch.forest.to(ranks.device)).items():
            seconds[part] += value
    peak = matmul_peak(ranks.dtype, ranks.device) * ranks.size
    return {"matmul_peak": peak, "kernels": {part: value / step.n_examples for part, value in seconds.items()}}


def resident(*, peak: bool = False) -> int:
    """Bytes of memory that this process holds, or held at most."""
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(status["VmHWM" if peak else "VmRSS"].split()[0]) * 1024


def main() -> None:
    """The process: measures the job in the file that is named, writes the result beside it."""
    job = json.loads(Path(sys.argv[1]).read_text())
    if job["threads"]:
        torch.set_num_threads(job["threads"])
    settings: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in job["config"].items()}
    made = measure(TrainConfig(**settings), kernels=job["kernels"], profile=job.get("profile"))
    if os.environ.get("RANK", "0") == "0":
        Path(job["result"]).write_text(json.dumps(made))
