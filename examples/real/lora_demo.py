"""The real instruction model learns to keep rules by LoRA: an adapter of rank 16 trains, and the model itself stays.

    ./launch.sh demo --real --lora      half an hour on two cores

The pairs, the tasks and the model before training are those of ./launch.sh demo --real, and its folder is used. First
steps with an adapter and steps of all parameters are measured in turn, each run in a process of its own, on the same
pairs at the same --micro-tokens: how fast they are, and what memory they take. Then the adapter is trained and asked.
It ends in a table, and in lora.json beside the pairs; `python -m examples.real.lora_page` writes docs/adapters.md.
"""

import json
import os
import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import safe_open

from data.forest import PackingOptions, pack
from data.rows import Example, Limits, Reading, load_rows, open_model, read_examples
from engine import train
from engine.config import TrainConfig
from engine.model import ModelConfig
from engine.planning import forward_flops
from engine.score import shape_of
from eval.tables import to_markdown
from examples.real import apart, checkpoint, demo, lora_page, measure, task
from system import RunError, cli, files
from system.flags import PathText

ADAPTER: dict[str, Any] = {"lora_rank": 16, "lr": 1e-4}
"""Ten times the rate at which the demo trains all parameters: docs/adapters.md."""
N_TIMED = 48
"""Pairs of the steps that are timed, for two epochs: in the first the reference computes, in the second it is known."""
ROUNDS = 2
MICRO_TOKENS = 1024


@dataclass(frozen=True, kw_only=True)
class LoraDemoConfig:
    """Download a small instruction model, train an adapter (LoRA) on revisions of its own answers, and compare speed
    and memory with training all parameters."""

    out: PathText = "runs/real"
    """Folder for everything that is made. What ./launch.sh demo --real has left in it is used."""


def main(argv: Sequence[str]) -> None:
    """The command."""
    config = cli.parse(
        LoraDemoConfig,
        argv or ["--out", LoraDemoConfig.out],
        command="./launch.sh demo --real --lora",
        example="./launch.sh demo --real --lora",
    )
    base = checkpoint.fetch(Path(config.out))
    root = Path(config.out) / f"run-{demo.fingerprint()}"
    root.mkdir(parents=True, exist_ok=True)
    parts = [("clair", "pairs"), ("base", "base"), ("ordinary", "ordinary"), ("timed", "timed")]
    clock = demo.Clock([*parts, ("run lora", "run"), ("model lora", "model")], root / "lora-seconds.json")
    test = task.tasks(task.HELDOUT_TOPICS, demo.N_TEST, seed=1)
    with clock.part("clair", "the model answers; a reviser, asked over HTTP, repairs what breaks a rule"):
        demo.make_pairs(base, root, "clair")
    with clock.part("base", f"the model before training answers {len(test)} tasks on other topics"):
        before = demo.measured(base, "base", test, root)
    with clock.part("ordinary", "it answers ordinary questions, to see later whether it still would"):
        ordinary = measure.ordinary(base, root / "answers/ordinary.jsonl")
        likely_before = demo.likelihood(base, "base", ordinary, root)
    with clock.part("timed", "some steps of all parameters, some with an adapter, and both again"):
        found = timed(base, root)
    with clock.part("run lora", f"an adapter of rank {ADAPTER['lora_rank']} trains on {root / 'clair'}.jsonl"):
        aligned = train_adapter(base, root)
    with clock.part("model lora", "the model with its adapter answers the same tasks"):
        after = demo.measured(aligned, "lora", test, root)
        change = np.array(demo.likelihood(aligned, "lora", ordinary, root)) - np.array(likely_before)
    demo.write_scores(root / "lora", aligned.name, before, after)
    record = found | {
        "model": base.name, "loss": demo.OBJECTIVES[0], **demo.TRAINING, **ADAPTER,
        "n_pairs": len(load_rows(root / "clair.jsonl")), "n_trained": n_numbers(aligned),
        "n_parameters": shape_of(base).n_parameters,
        "scores": {name: measure.counts(scores) for name, scores in (("base", before), ("lora", after))},
        "ordinary": measure.mean_and_error(change), **machine(),
    }  # fmt: skip
    record["by_operations"] = by_operations(shape_of(base), timed_examples(base, root), record["n_trained"])
    files.write_json(root / "lora.json", record)
    print(to_markdown(lora_page.demo_table(record)))
    print(lora_page.demo_in_words(record))
    if after["sampled"].kept.interval[0] <= before["sampled"].kept.interval[1]:
        raise RunError("the adapter did not improve on the base: their intervals at temperature 0.7 overlap")


def timed(base: Path, root: Path) -> dict[str, Any]:
    """What steps of all parameters and of an adapter take, in turn: {"all": [a round ...], "lora": [...]} and what
    both are of. Rounds that were measured are read.
    """
    pairs = root / "timed.jsonl"
    files.write_rows(pairs, load_rows(root / "clair.jsonl")[:N_TIMED])
    shared = {
        "model": str(base), "data": [str(pairs)], "loss": demo.OBJECTIVES[0], "epochs": 2, "state_every": 0,
        "beta": demo.TRAINING["beta"], "batch_size": demo.TRAINING["batch_size"], "keep_checkpoints": 1,
        "micro_tokens": MICRO_TOKENS, "track": ["none"],
    }  # fmt: skip
    runs = {"all": shared | {"lr": demo.TRAINING["lr"]}, "lora": shared | ADAPTER}
    rounds: dict[str, list[dict[str, Any]]] = {name: [] for name in runs}
    for number in range(ROUNDS):
        for name, flags in runs.items():
            kept = root / f"timed/{name}-{number}-spent.json"
            if not kept.exists():
                out = root / f"timed/{name}-{number}"
                spent = apart.train(out, flags)
                took = {"seconds": [spent.mean_seconds(epoch) for epoch in (1, 2)], "peak_bytes": spent.peak_bytes}
                files.write_json(kept, took | {"expected_bytes": spent.expected_bytes})
                files.remove_folder(out)
            rounds[name].append(json.loads(kept.read_text()))
    return {"micro_tokens": MICRO_TOKENS, "n_timed": N_TIMED, "rounds": rounds}


def train_adapter(base: Path, root: Path) -> Path:
    """The adapter's folder."""
    run = train.run(TrainConfig(
        model=str(base), data=(str(root / "clair.jsonl"),), loss=demo.OBJECTIVES[0], out=str(root / "lora"),
        resume=True, keep_checkpoints=1, keep_state=1, reference_cache=str(root / "reference"),
        **(demo.TRAINING | ADAPTER),
    ))  # fmt: skip
    return run.checkpoints[-1]


def n_numbers(adapter: Path) -> int:
    """Numbers of an adapter's folder."""
    with safe_open(adapter / "adapter_model.safetensors", framework="pt") as file:
        return sum(file.get_tensor(name).numel() for name in file.keys())  # noqa: SIM118


def timed_examples(base: Path, root: Path) -> list[Example]:
    """The pairs that are timed, as token ids."""
    _, chat = open_model(str(base))
    return read_examples(
        [str(root / "timed.jsonl")], chat, Limits(), Reading(), n_ids=shape_of(base).vocab_size
    ).examples


def by_operations(shape: ModelConfig, examples: Sequence[Example], n_trained: int) -> list[float]:
    """How many times the operations of an adapter's step those of all parameters' are, with the reference computed and
    with its log-probs known.

    Forward and backward are three products of each matrix, two where it is frozen; attention is the same in both.
    """
    forest = pack(examples, PackingOptions())
    blocks, head = forward_flops(shape, forest)
    frozen = 2 * forest.n_tokens * shape.n_layers * shape.n_matrix_parameters + head
    reference = blocks + head
    whole = 3 * (blocks + head)
    adapter = whole - frozen + 3 * 2 * forest.n_tokens * n_trained
    return [(whole + reference) / (adapter + reference), whole / adapter]


def machine() -> Mapping[str, Any]:
    """Where it was measured."""
    return {"machine": f"{os.cpu_count()} {platform.machine()} cores", "torch": torch.__version__}


if __name__ == "__main__":
    cli.run(main)
