"""One measured run: the real training, in a process of its own, with a stopwatch put on it from outside.

The training code holds no timing but that of its steps. Here its functions are wrapped: each span of time goes to the
innermost one, so that the parts add up to the whole. Started by engine/bench.py, one process or many:

    python -c "from engine.measure import main; main()" job.json
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

from data.forest import pack
from engine import head, parallel, train
from engine.config import TrainConfig
from engine.flops import forward_flops, kernel_seconds, matmul_peak
from engine.head import Head
from engine.llama import LlamaConfig
from engine.parallel import Ranks
from engine.run import Run
from engine.steps import Step, Steps
from engine.walk import Walk

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
    stopwatch.wrap(Walk, "forward", "forward")
    stopwatch.wrap(Head, "forward", "head")
    stopwatch.wrap(head.TargetLogps, "backward", "head")
    stopwatch.wrap(torch.Tensor, "backward", "backward")
    for optimizer in (torch.optim.RMSprop, torch.optim.AdamW):
        stopwatch.wrap(optimizer, "step", "optimizer")
    stopwatch.wrap(Ranks, "clip_grad_norm", "optimizer")
    for owner, name in [(Ranks, "sum"), *parallel.collectives()]:
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
    """Operations executed, by what the walk is handed."""

    def __init__(self) -> None:
        self.flops = 0
        self.shape: LlamaConfig
        walk = Walk.forward

        @functools.wraps(walk)
        def counted(model: Walk, forest: Any, *, with_reference: bool) -> Any:
            self.shape = model.policy.config
            blocks, rows = forward_flops(self.shape, forest)
            n_chunks = -(-forest.rows.numel() * model.policy.config.vocab_size * 4 // model.policy.head.chunk_bytes)
            recomputed = rows if n_chunks > 1 or not model.policy.head.keeps_logits else 0
            self.flops += 3 * (blocks + rows) + recomputed if torch.is_grad_enabled() else blocks + rows
            self.flops += blocks + rows if with_reference and model.reference is not None else 0
            return walk(model, forest, with_reference=with_reference)

        Walk.forward = counted  # pyright: ignore[reportAttributeAccessIssue]


def measure(config: TrainConfig, *, kernels: bool = False) -> dict[str, Any]:
    """Trains, and gives what it took: a list of epochs with {"pairs", "seconds", "tokens", "flops", parts ...}.

    tokens: prompts once, responses whole. flops: what this rank executes times the ranks; useful_flops: what the
    step needs without padding, with each prompt once, response rows only, and the reference once.

    The first step of every epoch is a warm-up and not counted. kernels: time the kernels of a step alone, too.
    """
    before = resident()
    stopwatch, counter = Stopwatch(), Counter()
    watch(stopwatch)
    n_ranks = int(os.environ.get("WORLD_SIZE", "1"))
    epochs: dict[int, dict[str, Any]] = {}
    spans: dict[str, float] = {}
    log, stop_clock = Run.log, Run.stop_clock

    def count(run: Run, step: Step, *arguments: Any, **more: Any) -> None:
        if step.epoch in epochs:
            found = epochs[step.epoch]
            blocks, rows = forward_flops(counter.shape, pack(step.examples))
            known = {
                "pairs": step.n_examples,
                "tokens": step.n_tokens,
                "seconds": run.step_seconds,
                "flops": counter.flops * n_ranks,
                "useful_flops": (4 if step.epoch == 1 else 3) * (blocks + rows),  # the reference is worth one pass
            }
            for name, value in (known | spans).items():
                found[name] += value
        epochs.setdefault(step.epoch, defaultdict(float))
        counter.flops = 0
        stopwatch.restart()  # before the line is written: that counts into the next step
        log(run, step, *arguments, **more)

    def keep(run: Run) -> None:
        stop_clock(run)
        stopwatch.turn("idle")
        stopwatch.turn(None)
        spans.clear()
        spans.update(stopwatch.seconds)

    Run.log = count  # pyright: ignore[reportAttributeAccessIssue]
    Run.stop_clock = keep  # pyright: ignore[reportAttributeAccessIssue]
    result = train.run(config)
    peak = torch.cuda.max_memory_allocated() if torch.cuda.is_available() else resident(peak=True) - before
    made: dict[str, Any] = {
        "epochs": [epochs[e] for e in sorted(epochs)],
        "peak_bytes": peak,
        "loss": result.metrics["loss"],
    }
    if kernels:
        made |= _alone(config)
    return made


def _alone(config: TrainConfig) -> dict[str, Any]:
    """What the device reaches on a plain product, and how long the kernels of the first step's batches take alone."""
    job = train.Job(replace(config, out=config.out + "-kernels"))
    ranks = train.ranks_of(config)
    model = job.policy.to_empty(device=ranks.device).to(ranks.dtype)
    step = job.steps.step(1)
    seconds: dict[str, float] = defaultdict(float)
    for batch in step.pack(ranks, job.split):
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
    made = measure(TrainConfig(**settings), kernels=job["kernels"])
    if os.environ.get("RANK", "0") == "0":
        Path(job["result"]).write_text(json.dumps(made))
