"""LoRA on one card: a model of any shape made there of random numbers, its steps, and what they take.

    python -m tests.gpu.lora --shape llama3-8b --base-dtype nf4 --gpu-memory 16 --out found.json

No file is read or written but the one that is named: matrices are drawn where they are to lie, a piece of rows at a
time, and quantised there. Layout, optimizer, clipping and passes are the engine's own. It runs on the CPU too, with a
shape for it (tests/gpu/test_lora_here.py).
"""

import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, cast

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from data.forest import PackingOptions
from data.rows import Example
from engine import optim, weights
from engine.bench.measure import resident
from engine.config import BaseDtype, TrainConfig
from engine.distributed import Ranks, free_memory
from engine.model import (
    Adapter,
    FrozenLinear,
    FusedForward,
    ModelConfig,
    Quantisation,
    Shape,
    Transformer,
    adapters,
    raw_config,
    read_config,
)
from engine.model.quantisation import dequantise, product, quantise
from engine.planning import TokenStatistics, memory, plan_run
from engine.step import Batch, MicroBatching
from system import cli, files
from system.flags import PathText
from tests.gpu.slices import Row

RANK = 16
BETA = 0.1
LONGEST, USUAL = (512, 512, 512), (162, 348, 349)
"""Prompt and responses: one pair of 1,534 tokens, and the means of UltraFeedback's."""
PIECE = 2**24
"""Numbers that are drawn at once."""


@dataclass(frozen=True, kw_only=True)
class Case:
    """Train an adapter on a base of random weights, in a card's memory, and say what it takes."""

    shape: Shape = "llama3-8b"
    """As engine.plan's."""
    layers: int | None = None
    """So many instead of the shape's."""
    base_dtype: BaseDtype | None = None
    """As engine.train's."""
    gpu_memory: float | None = None
    """GB that the run may take."""
    pairs: int = 16
    """Of a step: the first has 1,534 tokens, the others 859."""
    steps: int = 3
    """That are timed, after a first one, with the reference beside them; and as many with its log-probs known."""
    out: PathText
    """File for what was found."""


def random_model(
    config: ModelConfig,
    ranks: Ranks,
    held: torch.dtype | Quantisation,
    *,
    b: float = 0.0,
    n_recomputed: int = 0,
    is_compiled: bool = False,
) -> FusedForward:
    """A policy with an adapter on every linear layer, and the reference that it starts from, on the ranks' device.

    b: size of B's numbers; of a fresh adapter 0, and the reference is the base; else the reference has the same one.
    """
    with torch.device("meta"):
        policy = Transformer(config)
    adapters.freeze(policy, ranks.dtype, held)
    modules = adapters.select(adapters.layers_of(policy), ())
    adapters.attach(policy, Adapter(rank=RANK, alpha=2 * RANK, modules=modules))
    view = adapters.reference_of(policy, policy.adapter if b else None, ranks.device)
    policy.recompute(n_recomputed)
    if is_compiled:
        for model in (policy, view):
            model.compile_blocks()
    fused = ranks.place(FusedForward(policy, view))
    _draw(policy, b)
    own = adapters.own_parameters(policy)
    with torch.no_grad():
        for name, parameter in adapters.own_parameters(view).items():
            parameter.copy_(own[name])
    return fused


def _draw(policy: Transformer, b: float) -> None:
    """Random numbers for all that there is: of matrices as before training, of norms ones."""
    device = policy.embed.weight.device
    generator = torch.Generator(device).manual_seed(0)
    with torch.no_grad():
        for name, parameter in adapters.base_parameters(policy):
            if "norm" in name:
                parameter.fill_(1)
            else:
                parameter.normal_(std=0.02, generator=generator)
        for _, layer in adapters.quantised_layers(policy):
            n = max(1, PIECE // layer.in_features)
            for first in range(0, layer.out_features, n):
                size = (min(n, layer.out_features - first), layer.in_features)
                layer.quantise(0.02 * torch.randn(size, device=device, generator=generator), first)
        weights.draw_adapter(policy, 0)
        for name, parameter in policy.named_parameters():
            if b and name.endswith("lora_B"):
                parameter.normal_(std=b, generator=generator)


def frozen_layers(policy: Transformer) -> list[FrozenLinear]:
    """All of its blocks'."""
    return [module for module in policy.modules() if isinstance(module, FrozenLinear)]


def random_pairs(n: int, n_ids: int) -> list[Example]:
    """One of the longest, and others of usual length."""
    random = np.random.default_rng(0)
    lengths = [LONGEST, *[USUAL] * (n - 1)]
    ids = [[random.integers(0, n_ids, k).astype(np.int32) for k in each] for each in lengths]
    return [Example("", prompt, (chosen, rejected)) for prompt, chosen, rejected in ids]


def ratios(fused: FusedForward, batch: Batch, device: torch.device) -> Tensor:
    """Log-ratios of policy and reference, [S] nats."""
    found = [fused(micro.forest.to(device), with_reference=True) for micro in batch.micro_batches]
    return torch.cat([one.logps - one.ref_logps for one in found]).detach()


class Compiled(NamedTuple):
    """A quantised layer's product, compiled, against the same uncompiled."""

    same_matrix: bool
    """Whether the matrix that its codes stand for has the same bits."""
    forward: float
    """Relative error of what it gives."""
    backward: float
    """And of its input's gradient."""


def compiled_product(kind: Quantisation, ranks: Ranks, n_tokens: int, n_in: int, n_out: int) -> Compiled:
    """Of random numbers in the ranks' dtype."""
    generator = torch.Generator(ranks.device).manual_seed(0)

    def drawn(*size: int) -> Tensor:
        return torch.randn(size, device=ranks.device, generator=generator)

    codes, scales = quantise(0.02 * drawn(n_out, n_in), kind)
    x, slope = drawn(n_tokens, n_in).to(ranks.dtype), drawn(n_tokens, n_out).to(ranks.dtype)
    found = []
    for wrap in (lambda call: call, torch.compile):
        leaf = x.clone().requires_grad_()
        y = wrap(product)(leaf, codes, scales, kind, n_in)
        y.backward(slope)
        found.append((wrap(dequantise)(codes, scales, kind, n_in, ranks.dtype), y.detach(), leaf.grad))
    (matrix, *plain), (other, *compiled) = found
    errors = [((a - b).double().norm() / a.double().norm()).item() for a, b in zip(plain, compiled, strict=True)]
    return Compiled(torch.equal(matrix, other), *errors)


class Steps:
    """Steps of DPO on one batch."""

    def __init__(self, fused: FusedForward, batch: Batch, ranks: Ranks, config: TrainConfig) -> None:
        self._fused, self._batch, self._ranks = fused, batch, ranks
        self._optimizer = optim.build(fused.policy.trained(), config.optimizer)
        self._known: list[Tensor] = []

    def take(self, *, with_reference: bool) -> tuple[float, float, float]:
        """(largest reward, gradient norm, seconds) of a step; the reference's log-probs computed in it, or known."""
        start = time.perf_counter()
        largest = torch.zeros((), device=self._ranks.device, dtype=torch.float64)
        for i, micro in enumerate(self._batch.micro_batches):
            found = self._fused(micro.forest.to(self._ranks.device), with_reference=with_reference)
            if with_reference:
                self._known = [*self._known[:i], found.ref_logps, *self._known[i + 1 :]]
            rewards = BETA * (found.logps - self._known[i])
            largest = torch.maximum(largest, rewards.detach().abs().max())
            chosen, rejected = rewards.view(-1, 2).T
            (-logsigmoid(chosen - rejected).sum() / len(self._batch)).backward()
        norm = optim.clip(self._optimizer, self._ranks, 1.0)
        self._optimizer.step()
        self._optimizer.zero_grad()
        return largest.item(), norm, time.perf_counter() - start  # which waits for the device


def config_of(**changes: Any) -> TrainConfig:
    """A run's; nothing is read by it."""
    return TrainConfig(model="", data=("",), out="", **{"lora_rank": RANK, **changes})


def measure(case: Case) -> dict[str, Any]:
    """Trains a few steps, and gives what they took beside what was planned."""
    limit = None if case.gpu_memory is None else case.gpu_memory * 1e9
    config = config_of(base_dtype=case.base_dtype, batch_size=case.pairs, gpu_memory=case.gpu_memory)
    before = resident()
    ranks = Ranks.join(has_adapter=True, gpu_memory=limit)
    shape = read_config(raw_config(cast(Shape, case.shape), case.layers), "config.json")
    examples = random_pairs(case.pairs, shape.vocab_size)
    plan = plan_run(
        config,
        shape,
        ("fused",),
        TokenStatistics.of(examples, PackingOptions(), case.pairs),
        device=ranks.device.type,
        dtype=ranks.dtype,
        n_ranks=1,
        budget=int(min(free_memory(), limit or float("inf"))),
    )
    s, start = plan.memory, time.perf_counter()
    held = adapters.held_as(case.base_dtype, ranks.dtype)
    fused = random_model(shape, ranks, held, n_recomputed=s.n_recomputed, is_compiled=s.is_compiled)
    batch = Batch(examples)
    batch.pack(ranks, MicroBatching(micro_tokens=s.micro_tokens))
    steps = Steps(fused, batch, ranks, config)
    made = {
        "drawing_seconds": time.perf_counter() - start,
        "n_trained": sum(p.numel() for _, p in fused.policy.trained()),
    }
    largest, norm, seconds = steps.take(with_reference=True)
    made |= {"largest_reward": largest, "grad_norm": norm, "first_seconds": seconds}
    for name, with_reference in (("fused", True), ("known", False)):
        made[name] = [steps.take(with_reference=with_reference)[2] for _ in range(case.steps)]
    has_cuda = ranks.device.type == "cuda"
    return made | {
        "peak_bytes": torch.cuda.max_memory_reserved() if has_cuda else resident(peak=True) - before,
        "used_bytes": torch.cuda.max_memory_allocated() if has_cuda else 0,
        "planned_bytes": memory.total(s),
        "passes": len(batch.micro_batches),
        "pass_tokens": s.pass_tokens,
        "recomputed": s.n_recomputed,
        "fits": plan.fits,
        "pairs": case.pairs,
    }


def rows_of(name: str, gpu_memory: float, found: dict[str, Any]) -> list[Row]:
    """What was measured, for the table of checks."""
    peak, planned = found["peak_bytes"], found["planned_bytes"]
    share = planned / peak - 1
    said = f"{planned / 1e9:.1f} GB expected, {peak / 1e9:.1f} reserved, {found['used_bytes'] / 1e9:.1f} used"
    layout = f"{found['passes']} of {found['pass_tokens']} tokens at most, {found['recomputed']} blocks recomputed"
    rows = [
        Row(f"{name}: peak memory", f"{peak / 1e9:.1f} GB", f"{gpu_memory:g}", peak <= gpu_memory * 1e9),
        Row(f"{name}: memory, expected against measured", f"{said}: {share:+.1%}", "10 %", abs(share) <= 0.1),
        Row(f"{name}: rewards of step 1", f"{found['largest_reward']:.1e} at most", "0", found["largest_reward"] == 0),
        Row(f"{name}: gradient norm of step 1", f"{found['grad_norm']:.2e}", "above 0", found["grad_norm"] > 0),
        Row(f"{name}: passes of a step", layout),
    ]
    for kind, what in (("fused", "with the reference beside it"), ("known", "with its log-probs known")):
        if found[kind]:
            best = min(found[kind])
            said = f"{1 / best:.2f} steps/s, {found['pairs'] / best:.1f} pairs/s"
            each = ", ".join(f"{seconds:.2f}" for seconds in found[kind])
            rows.append(Row(f"{name}: {what}", f"{said} (steps: {each} s)"))
    return rows


def main(argv: Sequence[str]) -> None:
    """The command."""
    case = cli.parse(Case, argv, command="python -m tests.gpu.lora", example="")
    found = measure(case)
    files.write_json(Path(case.out), found)
    print(found, file=sys.stderr)


if __name__ == "__main__":
    cli.run(main)
