"""What fp8 products would cost: the error of log-probs and log-ratios, and a run of 200 steps, beside products in bf16.

    python -m examples.fp8 runs/real/run-.../clair.jsonl        # after ./launch.sh demo and ./launch.sh demo --real

The linear layers of the blocks compute as fp8 hardware would: both factors of each product are rounded to fp8 with a
scale, and summed in float32. `fp8 by tensor` has a scale per tensor, and gradients in e5m2; `fp8 by row` a scale per
row of each factor, and e4m3 throughout. Everything else, the head too, is float32, so that the error is that of the
products alone. The same products compute policy and reference, so that a run's first log-ratio is exactly 0.

First part: SmolLM2-135M-Instruct after 8 and 48 steps of DPO at three rates (those of examples.real.rounding, whose
folders are used and made). Second part: the miniature's run of 200 steps from the demo's model and pairs, with each
kind of product, and with float32 in another order of rows, as a yardstick. What is found is in docs/records/fp8.json.
"""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
import tyro
from torch import Tensor
from torch.overrides import TorchFunctionMode

from data.rows import load_rows
from engine import train
from engine.config import TrainConfig
from examples.miniature import model, score
from examples.real import checkpoint, rounding
from system import InputError, cli, files
from system.flags import PathText

EXAMPLE = "python -m examples.fp8 runs/real/run-.../clair.jsonl"
N_FOLDERS = 2
"""Of each rate: after 8 steps and after 48."""
RUN: dict[str, Any] = {
    "optimizer": "adamw", "lr": 1e-3, "warmup_steps": 10, "beta": 0.5, "eval_pairs": 64, "epochs": 6, "max_steps": 200,
    "state_every": 0, "keep_checkpoints": 1, "dtype": "float32",
}  # fmt: skip
"""The miniature's 200 steps, as ./launch.sh gpu-checks trajectories takes them."""


@dataclass(frozen=True, kw_only=True)
class Fp8Config:
    """Estimate how fp8 matrix multiplication would change log-probs, log-ratios and training, by rounding its
    inputs."""

    data: tyro.conf.Positional[PathText]
    """Pairs for the real model, as examples.real.rounding takes them: clair.jsonl of a run of ./launch.sh demo
    --real."""
    demo: PathText = "runs/demo"
    """Folder of a finished ./launch.sh demo, whose model and pairs are used for a training run of 200 steps."""
    rounding: PathText = "runs/real/rounding"
    """Folder for the trained checkpoints. Checkpoints that examples.real.rounding left there are reused."""
    out: PathText = "runs/fp8"
    """Folder for the training runs of 200 steps. Existing results in it are reused."""
    model: PathText | None = None
    """Checkpoint folder or hub id. Unset: SmolLM2-135M-Instruct, downloaded into runs/real."""
    record: PathText = "docs/records/fp8.json"
    """JSON file for the results."""


def main(argv: Sequence[str]) -> None:
    """The command."""
    config = cli.parse(Fp8Config, argv, command="python -m examples.fp8", example=EXAMPLE)
    demo, root, out = Path(config.demo), Path(config.rounding), Path(config.out)
    start, pairs = next(demo.glob("base-*/model"), None), demo / "round-1/pairs/clair.jsonl"
    if start is None or not pairs.exists():
        raise InputError(f"{config.demo}: holds no finished demo; run ./launch.sh demo first")
    root.mkdir(parents=True, exist_ok=True)
    out.mkdir(parents=True, exist_ok=True)
    base = Path(config.model or checkpoint.fetch(Path("runs/real")))
    record, found = Path(config.record), {"torch": torch.__version__, "run": RUN, "runs": [], "logps": []}
    for found["runs"] in trajectories(start, pairs, out):
        files.write_json(record, found)
    for found["logps"] in ratios(base, Path(config.data), root):
        files.write_json(record, found)
    print(said(found))


# --- products of rounded factors -----------------------------------------------------------------------------------


Round = Callable[[Tensor], Tensor]


def to_bfloat16(x: Tensor) -> Tensor:
    """x in its own dtype, rounded to what bfloat16 can hold."""
    return x.to(torch.bfloat16).to(x.dtype)


def to_fp8(dtype: torch.dtype, *, by_row: bool) -> Round:
    """Rounds [..., k], scaled so that the largest number of each row, or of the tensor, is the largest of the dtype."""

    def rounded(x: Tensor) -> Tensor:
        most = x.abs().amax(-1, keepdim=True) if by_row else x.abs().amax()
        scale = most.clamp(min=1e-12) / torch.finfo(dtype).max
        return (x / scale).to(dtype).to(x.dtype) * scale

    return rounded


E4M3, E5M2 = torch.float8_e4m3fn, torch.float8_e5m2
KINDS: Mapping[str, tuple[Round, Round]] = {
    "bf16": (to_bfloat16, to_bfloat16),
    "fp8 by tensor": (to_fp8(E4M3, by_row=False), to_fp8(E5M2, by_row=False)),
    "fp8 by row": (to_fp8(E4M3, by_row=True), to_fp8(E4M3, by_row=True)),
}
"""How activations and weights are rounded, and how gradients."""


class Products(TorchFunctionMode):
    """Within it, linear layers multiply rounded factors, forward and backward. Sums and results are float32, and
    results are rounded to bf16, in which they would be stored.
    """

    def __init__(self, kind: str) -> None:
        super().__init__()
        self._rounds = KINDS[kind]

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func is not F.linear:
            return func(*args, **(kwargs or {}))
        x, weight, *bias = args
        y = _Product.apply(x, weight, *self._rounds)
        return y + bias[0] if bias and bias[0] is not None else y


def products(kind: str) -> AbstractContextManager[object]:
    """Within it, products are of a kind; of a name that is none of KINDS, in float32."""
    return Products(kind) if kind in KINDS else nullcontext()


class _Product(torch.autograd.Function):
    """x [..., k] times weight [n, k] transposed, of rounded factors. A scale runs along the dimension that is summed,
    so that each of the three products rounds its own.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, rounded: Round, of_gradient: Round) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.rounds = rounded, of_gradient
        return to_bfloat16(rounded(x) @ rounded(weight).T)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, None, None]:  # type: ignore[override]
        x, weight = ctx.saved_tensors
        rounded, of_gradient = ctx.rounds
        rows, inputs = grad.flatten(0, -2), x.flatten(0, -2)
        to_x = to_weight = None
        if ctx.needs_input_grad[0]:
            to_x = to_bfloat16(of_gradient(rows) @ rounded(weight.T).T).view_as(x)
        if ctx.needs_input_grad[1]:
            to_weight = to_bfloat16(of_gradient(rows.T) @ rounded(inputs.T).T)
        return to_x, to_weight, None, None


# --- what is measured ----------------------------------------------------------------------------------------------


def ratios(base: Path, data: Path, root: Path) -> Iterator[list[dict[str, Any]]]:
    """Of each trained folder: the size of its held-out log-ratios in float32, and the error of each kind of product."""
    trained, heldout = rounding.draw(data, root)
    examples = rounding.read(base, heldout)
    rounding.check_study(base, examples, root / "study.json")
    lengths = torch.tensor([e.lengths for e in examples], dtype=torch.float64)
    before = _by_kind(base, examples, root / "base-fp8.json")
    rows = [
        {"lr": 0.0, "step": 0, "kind": kind, "nats_a_token": _spread((before[kind] - before["float32"]) / lengths)}
        for kind in KINDS
    ]
    yield rows
    for rate in rounding.RATES:
        for epoch, folder in islice(rounding.folders(base, trained, root, rate), N_FOLDERS):  # one more would train on
            after = _by_kind(folder, examples, folder.parent / f"{folder.name}-fp8.json")
            true = after["float32"] - before["float32"]
            margin = true[:, 0] - true[:, 1]
            for kind in KINDS:
                error = after[kind] - before[kind] - true
                in_margin = error[:, 0] - error[:, 1]
                right = ((margin + in_margin) * margin > 0).double().mean().item()
                rows.append({
                    "lr": rate, "step": epoch * rounding.N_TRAINED // rounding.BATCH, "kind": kind,
                    "logratio": _spread(true), "logratio_error": _spread(error), "margin": margin.mean().item(),
                    "margin_error": _spread(in_margin), "margin_bias": in_margin.mean().item(), "same_sign": right,
                })  # fmt: skip
            yield rows


def _by_kind(folder: Path, examples: Sequence[Any], kept: Path) -> dict[str, Tensor]:
    """Log-probs of the pairs' responses in float32 and with each kind of product, [n, 2] nats."""
    found = json.loads(kept.read_text()) if kept.exists() else {}
    for kind in ("float32", *KINDS):
        if kind not in found:
            with products(kind):
                found[kind] = rounding.scores(folder, examples).tolist()
            files.write_json(kept, found)
    return {kind: torch.tensor(values, dtype=torch.float64) for kind, values in found.items()}


def _spread(x: Tensor) -> float:
    """Root of the mean square."""
    return x.square().mean().sqrt().item()


def trajectories(start: Path, pairs: Path, out: Path) -> Iterator[list[dict[str, Any]]]:
    """The run of 200 steps in float32, then of each kind, then in float32 in another order: how far each is from the
    first, and its answers.
    """
    cases = {"float32": 0, **dict.fromkeys(KINDS, 0), "float32, another order": 1}
    first: list[dict[str, Any]] = []
    rows: list[dict[str, Any]] = []
    _, _, test = model.split_questions()
    for name, seed in cases.items():
        run = out / name.replace(",", "").replace(" ", "-")
        config = TrainConfig(model=str(start), data=(str(pairs),), out=str(run), seed=seed, resume=True, **RUN)
        with products(name):
            train.run(config)
        lines = load_rows(run / "metrics.jsonl")
        first = first or lines
        end = score.measure(sorted(run.glob("epoch-*"))[-1], test, temperature=1.0)
        row: dict[str, Any] = {"kind": name, "exact": end.exact, "interval": list(end.interval)}
        for value in ("loss", "rewards/chosen", "rewards/rejected"):
            row[value] = max(abs(a[value] - b[value]) for a, b in zip(lines, first, strict=True))
            row[f"{value} most"] = max(abs(line[value]) for line in first)
        row["rewards/margins"] = [line["eval_rewards/margins"] for line in lines if "eval_rewards/margins" in line][-1]
        rows.append(row)
        yield rows


def said(found: Mapping[str, Any]) -> str:
    """Both parts as Markdown tables."""
    lines = [
        "| products | loss | reward, chosen | rejected | held-out margin | right answers |",
        "|---|---|---|---|---|---|",
    ]
    for row in found["runs"]:
        far = [f"{row[v]:.3f}" for v in ("loss", "rewards/chosen", "rewards/rejected")]
        low, high = row["interval"]
        right = f"{row['exact']:.1%} ({low:.1%} to {high:.1%})"
        lines.append(f"| {' | '.join([row['kind'], *far, format(row['rewards/margins'], '.2f'), right])} |")
    lines += [
        "",
        "| lr | steps | products | log-ratio | its error | margin | its error | same sign |",
        "|" + "---|" * 8,
    ]
    for row in found["logps"]:
        if row["step"]:
            cells = [f"{row['lr']:g}", str(row["step"]), row["kind"]]
            cells += [f"{row[v]:.3f}" for v in ("logratio", "logratio_error", "margin", "margin_error")]
            lines.append(f"| {' | '.join([*cells, format(row['same_sign'], '.0%')])} |")
    errors = (f"{row['nats_a_token']:.4f} ({row['kind']})" for row in found["logps"] if not row["step"])
    return "\n".join([*lines, "", f"Log-prob of a response, error in nats a token: {', '.join(errors)}."])


if __name__ == "__main__":
    cli.run(main)
