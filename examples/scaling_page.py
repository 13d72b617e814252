"""Writes docs/scaling.md: what 8, 70 and 405 billion parameters take on 1 to 1,024 GPUs, and what models of other
families take on one, from stated assumptions.

    python -m examples.scaling_page

A test compares the page with what this would write.
"""

from pathlib import Path
from typing import Any

import torch

from engine.config import TrainConfig
from engine.model import SHAPES, Shape, raw_config, read_config
from engine.planning import Plan, TokenStatistics, cost, memory, plan

DOCS = Path(__file__).resolve().parents[1] / "docs"
MEMORY = 80 * 10**9
LLAMAS: tuple[Shape, ...] = ("llama3-8b", "llama3-70b", "llama3-405b")
BATCHES = {8: 16, 64: 128, 256: 512, 1024: 2048}  # GPUs -> examples of a step: two each, as on the paper's eight
HEAD = f"""# Scaling

Written by `python -m examples.scaling_page` from the functions by which `engine.train` lays itself out. What a run of
yours needs, before it starts:

```
python -m engine.plan --shape llama3-8b --gpus 1 --gpu-memory 80
python -m engine.plan --shape llama3-70b --gpus 64 --gpu-memory 80 --json
```

`engine.train` says the sum in its first lines and refuses what cannot fit, with the first change that would let it.

## Assumed

- Memory is counted from what each operation keeps (engine/planning/memory.py). Against measured peaks: 3.3 % too high
  for 8 billion parameters on one GPU with split masters
  ([performance](performance.md#eight-billion-parameters-on-one-card)), within a tenth on the CPU
  (`./launch.sh test --all -k expected_peak`). For whole (unsplit) masters on one GPU, with eight layers, the estimate
  was 3.0 % too low, so that the plan now adds a reserve of that size. On several GPUs it was not measured.
- A GPU reaches {cost.REACHED["cuda"]:.0%} of {cost.DATASHEET / 1e12:.0f} TFLOP/s; 54 % was measured on one. The slowest
  of several takes {cost.IMBALANCE} times the mean.
- Collectives move {cost.IN_NODE / 1e9:.0f} GB/s a GPU inside a node of {cost.GPUS_PER_NODE} (NVLink 4) and
  {cost.BETWEEN_NODES / 1e9:.0f} between nodes (eight adapters of 400 Gb/s). Nothing of this was measured by us.
- Every pass gathers the weights in bf16, twice where they are given back in between, and sums gradients in float32;
  copies of a hybrid layout add up their shards' gradients. Computing and communicating overlap at best (the step is the
  longer of the two) and at worst not at all (their sum).
- 29,000 pairs x 18 epochs, 857 tokens a pair, two pairs a GPU and step. The paper's 16 pairs a step are the first row:
  larger steps are another run, whose learning rate has to be found.

"""
DISK = """GB of the paper's 18 epoch folders by `--save-dtype`, and of a state with whole masters and RMSProp.
`--keep-checkpoints 3` keeps three folders, a sixth of that; `--state-every 0` keeps no state but that of a run that is
stopped.
"""
ADAMW = """The same with `--optimizer adamw`, which keeps two means of every number; `--square-avg bfloat16` is of both.
Without clipping a step is one pass, so that smaller steps take less. Muon (`--optimizer muon`) does not go with split
masters: it needs whole ones, 141 GB of one GPU or 80 of each of two.
"""
OTHERS = """The first layout that fits one GPU of 80 GB, for the paper's run and in its token lengths, which are those
of Llama's tokenizer: another one gives a few per cent more or fewer. Only Llama was measured; the others are counted
in the same way, from what each operation keeps ([models](models.md)).
"""
TAIL = """
## Where this design stops

FSDP sends every weight to every GPU in every pass, and sums every gradient. With two pairs a GPU that takes as long as
computing for 8 billion parameters inside a node, and two to three times as long for 70 and 405 billion. Sharding inside
a node helps a little at 8 billion; otherwise only more pairs a step do. From some 70 billion parameters on the gathered
blocks, and at 405 billion the vocabulary's ends alone, are large against what a GPU keeps; there tensor parallelism
(each GPU computes a part of every product) and pipelines keep the weights where they are, and context parallelism is
for sequences of tens of thousands of tokens, where attention no longer fits. None of these is here. For such models
take torchtitan, NeMo RL or Megatron-Bridge, with the objectives of `losses/`, which need no more than log-probs.

One GPU's layout (`--master-weights split`) is for one process. Eight independent runs on eight GPUs communicate
nothing: for a sweep over objectives that is the faster way to use a node.
"""


def main() -> None:
    """The command."""
    (DOCS / "scaling.md").write_text(page(), encoding="utf-8")


def page() -> str:
    """The page's text."""
    lines = ["## One GPU", "", "| model | layout | GB | pass | hours |", "|---|---|---|---|---|"]
    lines += [_one_gpu(way) for way in ({"master_weights": "float32"}, *plan.WAYS)]
    adamw: dict[str, Any] = {"optimizer": "adamw"}
    lines += ["", ADAMW, *lines[2:4]]
    ways = ({"master_weights": "float32"}, *plan.WAYS, plan.WAYS[-1] | {"batch_size": 14})
    lines += [_one_gpu(way | adamw) for way in ways]
    lines += ["", "## Other families on one GPU", "", OTHERS]
    lines += ["| model | 10^9 parameters | layout | GB | pass | hours |", "|" + "---|" * 6]
    lines += [_other(name) for name in SHAPES if not name.startswith(("llama", "tiny"))]
    lines += ["", "## Many GPUs of 80 GB", ""]
    lines += ["| model | GPUs | layout | pairs a step | GB | s a step: computing, communicating | hours |"]
    lines += ["|" + "---|" * 7]
    for name in LLAMAS:
        for n_gpus, batch in BATCHES.items():
            lines += [_many(name, n_gpus, batch, shard_size=None)]
            sizes = [size for size in (8, 16, 32, 64, 128, 256, 512) if size < n_gpus]
            rows = (_many(name, n_gpus, batch, shard_size=size) for size in sizes)
            lines += [row for row in rows if "too much" not in row][:1]  # the fewest ranks that hold a copy
    lines += ["", "## Disk", "", DISK, "| model | folders in bfloat16 | in float32 | a state |", "|---|---|---|---|"]
    lines += [_disk(name) for name in LLAMAS]
    return HEAD + "\n".join(lines) + "\n" + TAIL


def _plan(name: Shape, config: TrainConfig, n_gpus: int, budget: int) -> Plan:
    shape = read_config(raw_config(name), name)
    statistics = TokenStatistics.of_the_paper(config.schedule.batch_size, n_gpus)
    return plan.plan_run(
        config, shape, ["fused", "precompute"], statistics,
        device="cuda", dtype=torch.bfloat16, n_ranks=n_gpus, budget=budget,
    )  # fmt: skip


def _one_gpu(way: dict) -> str:
    config = TrainConfig(model="", data=("",), out="", **way)
    found = _plan("llama3-8b", config, 1, MEMORY)
    s, size = found.memory, memory.total(found.memory) / 1e9
    layout = {name: value for name, value in way.items() if name != "optimizer"}
    said = plan.flags(layout) if way["master_weights"] == "split" else "float32 masters, whole"
    if not found.fits:
        return f"| llama3-8b | `{said}` | {size:.0f}: too much | | |"
    again = f", {s.n_recomputed} blocks again" if s.n_recomputed else ""
    return f"| llama3-8b | `{said}` | {size:.0f} | {s.pass_tokens:,} tokens{again} | {found.hours(config, 1):.1f} |"


def _other(name: Shape) -> str:
    """A row of the first layout that fits, else of the smallest."""
    ways: tuple[dict[str, Any], ...] = ({"master_weights": "float32"}, *plan.WAYS)
    configs = [TrainConfig(model="", data=("",), out="", **way) for way in ways]
    tried = [(way, config, _plan(name, config, 1, MEMORY)) for way, config in zip(ways, configs, strict=True)]
    way, config, found = next((one for one in tried if one[2].fits), tried[-1])
    s, size = found.memory, memory.total(found.memory) / 1e9
    said = plan.flags(way) if way["master_weights"] == "split" else "float32 masters, whole"
    row = f"| {name} | {s.shape.n_parameters / 1e9:.2f} | `{said}` | {size:.0f}"
    if not found.fits:
        return f"{row}: too much | | |"
    again = f", {s.n_recomputed} blocks again" if s.n_recomputed else ""
    return f"{row} | {s.pass_tokens:,} tokens{again} | {found.hours(config, 1):.1f} |"


def _disk(name: Shape) -> str:
    sizes = []
    for dtype in ("bfloat16", "float32"):
        config = TrainConfig(model="", data=("",), out="", save_dtype=dtype)
        checkpoints, states = _plan(name, config, 8, MEMORY).disk_bytes(config)
        sizes += [checkpoints / 1e9]
    return f"| {name} | {sizes[0]:,.0f} | {sizes[1]:,.0f} | {states / 1e9:,.0f} |"


def _many(name: Shape, n_gpus: int, batch: int, *, shard_size: int | None) -> str:
    config = TrainConfig(model="", data=("",), out="", batch_size=batch, shard_size=shard_size)
    found = _plan(name, config, n_gpus, MEMORY)
    said = f"hybrid, {shard_size}" if shard_size else "full"
    size = memory.total(found.memory) / 1e9
    if not found.fits:
        return f"| {name} | {n_gpus:,} | {said} | {batch:,} | {size:.0f}: too much | | |"
    computing, communicating = cost.step_seconds(found.memory, found.statistics, batch, n_gpus)
    steps = -(-found.statistics.n // batch) * config.schedule.epochs
    best, worst = (steps * seconds / 3600 for seconds in (max(computing, communicating), computing + communicating))
    seconds = f"{computing:.2f}, {communicating:.2f}"
    return f"| {name} | {n_gpus:,} | {said} | {batch:,} | {size:.0f} | {seconds} | {best:.2f} to {worst:.2f} |"


if __name__ == "__main__":
    main()
