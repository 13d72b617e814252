"""What holding a model's matrices in int8 or nf4 changes: log-probs of real responses, and distributions, against the
same model in float32.

    python -m examples.real.lora_bases runs/real/run-.../clair.jsonl        a few minutes on two cores

Nothing is trained. What was found goes into docs/records/lora-bases.json; `python -m examples.real.lora_page` writes
the table of docs/adapters.md from it.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
import tyro
from torch import Tensor

from data.forest import PackingOptions, pack
from data.rows import Example, Limits, Reading, open_model, read_examples
from engine import weights
from engine.model import FusedForward, Quantisation, Transformer, adapters
from engine.score import shape_of
from eval.tables import to_markdown
from examples.real import checkpoint, lora_demo, lora_page
from system import InputError, cli, files
from system.flags import PathText

EXAMPLE = "python -m examples.real.lora_bases runs/real/run-.../clair.jsonl"
KINDS = ("int8", "nf4")
N_PAIRS = 64


@dataclass(frozen=True, kw_only=True)
class LoraBasesConfig:
    """Measure how much a quantised base model changes the log-probs of responses and the next-token distributions."""

    data: tyro.conf.Positional[PathText]
    """Pairs, as engine.train takes them. The first 64 are measured."""
    model: PathText | None = None
    """Checkpoint folder or hub id. Unset: SmolLM2-135M-Instruct, downloaded into runs/real."""
    record: PathText = "docs/records/lora-bases.json"
    """JSON file for the results."""


def main(argv: Sequence[str]) -> None:
    """The command."""
    config = cli.parse(LoraBasesConfig, argv, command="python -m examples.real.lora_bases", example=EXAMPLE)
    base = Path(config.model or checkpoint.fetch(Path("runs/real")))
    base, chat = open_model(str(base))
    rows = read_examples([config.data], chat, Limits(), Reading(), n_ids=shape_of(base).vocab_size)
    examples = rows.examples[:N_PAIRS]
    if not examples or any(len(e.responses) != 2 for e in examples):
        raise InputError(f"{config.data}: holds no pairs; give those of ./launch.sh demo --real, clair.jsonl")
    plain = weights.load(base).float()
    found = {kind: measure(plain, base, cast(Quantisation, kind), examples) for kind in KINDS}
    n_tokens = sum(len(r) for e in examples for r in e.responses)
    record = {"model": base.name, "n_pairs": len(examples), "n_tokens": n_tokens, "bases": found, **lora_demo.machine()}
    files.write_json(Path(config.record), record)
    print(to_markdown(lora_page.bases_table(record)))


def measure(plain: Transformer, base: Path, kind: Quantisation, examples: Sequence[Example]) -> dict[str, Any]:
    """Of a model whose blocks' matrices are held in a kind, against the same in float32: {"matrix_error", "bytes",
    "float_bytes", "kl", "logps"}: relative error of the matrices, bytes of these and in bfloat16, nats of
    KL(float32 || kind) a response token, and the change of each response's log-prob in nats.
    """
    held = quantised(base, kind)
    fused, kl, change, n_tokens = FusedForward(held, plain).eval(), 0.0, [], 0
    for example in examples:
        with torch.no_grad():
            result = fused(pack([example], PackingOptions()), with_reference=True, token_values=("kl_ref_policy",))
        kl += result.tokens["kl_ref_policy"].sum().item()
        n_tokens += len(result.tokens["kl_ref_policy"])
        assert result.ref_logps is not None  # the reference computes
        change += (result.logps - result.ref_logps).tolist()
    error, size, n_bytes, n_numbers = 0.0, 0.0, 0, 0
    own = dict(plain.named_parameters())
    for name, layer in adapters.quantised_layers(held):
        true = own[f"{name}.weight"].detach()
        error, size = error + _squares(layer.matrix() - true), size + _squares(true)
        n_bytes += sum(x.numel() * x.element_size() for x in layer.buffers())
        n_numbers += true.numel()
    return {
        "matrix_error": (error / size) ** 0.5, "bytes": n_bytes, "float_bytes": 2 * n_numbers, "kl": kl / n_tokens,
        "logps": change,
    }  # fmt: skip


def quantised(base: Path, kind: Quantisation) -> Transformer:
    """A checkpoint's model that computes in float32, its blocks' matrices held in a kind."""
    model = weights.build(base)
    adapters.freeze(model, torch.float32, kind)
    model.to_empty(device="cpu")
    weights.fill(model, base)
    return model


def _squares(x: Tensor) -> float:
    return float(np.square(x.double().numpy()).sum())


if __name__ == "__main__":
    cli.run(main)
