"""Writes docs/scaling.md: what 8, 70 and 405 billion parameters take on 1 to 1,024 GPUs, and what models of other
families take on one, from stated assumptions.

    python -m examples.scaling_page

A test compares the page with what this would write.
"""

from pathlib import Path
from typing import Any

import torch

from data.forest import PackingOptions
from engine.config import TrainConfig
from engine.model import SHAPES, Shape, raw_config, read_config
from engine.planning import Plan, TokenStatistics, cost, memory, plan

DOCS = Path(__file__).resolve().parents[1] / "docs"
MEMORY = 80 * 10**9
LLAMAS: tuple[Shape, ...] = ("llama3-8b", "llama3-70b", "llama3-405b")
BATCHES = {8: 16, 64: 128, 256: 512, 1024: 2048}  # GPUs -> examples of a step: two each, as on the paper's eight
HEAD = f"""# Scaling

Expected memory, time and disk, from 1 to 1,024 GPUs. `python -m examples.scaling_page` writes this page with the
functions that `engine.train` uses to choose its layout. For a run of your own, ask before it starts:

```
python -m engine.plan --shape llama3-8b --gpus 1 --gpu-memory 80
python -m engine.plan --shape llama3-70b --gpus 64 --gpu-memory 80 --json
```

`engine.train` prints the same plan in its first lines, with the hours for the GPU that it runs on. It refuses what
cannot fit and names the first change that would help. On this page all parameters train; what a LoRA adapter takes is
in [adapters](adapters.md#what-fits).

## Assumptions

- **Memory** is the sum of what each operation keeps (engine/planning/memory.py). For 8 billion parameters on one GPU
  with split masters it is 3.3 % above the measured peak
  ([performance](performance.md#eight-billion-parameters-on-one-card)); on the CPU it is within a tenth, for all
  parameters and for an adapter (`./launch.sh test --all -k expected_peak`), and for a pair of 16,384 tokens. For whole
  (unsplit) masters on one GPU, with eight layers, the estimate was 3.0 % too low, so the plan now adds a reserve of
  that size. Memory was not measured on several GPUs.
- **Compute**: a GPU reaches {cost.REACHED:.0%} of {cost.DATASHEET / 1e12:.0f} TFLOP/s, the datasheet of an H100 or
  H200; 54 % was measured on one (`--tflops` plans for another card). The slowest of several takes {cost.IMBALANCE}
  times the mean.
- **Communication**: collectives move {cost.IN_NODE / 1e9:.0f} GB/s per GPU inside a node of {cost.GPUS_PER_NODE}
  (NVLink 4) and {cost.BETWEEN_NODES / 1e9:.0f} between nodes (eight adapters of 400 Gb/s). We have not measured this.
- **Passes**: every pass gathers the weights in bf16, twice if they are released in between, and sums gradients in
  float32. The copies of a hybrid layout add up their shards' gradients. At best computing and communicating overlap and
  a step takes the longer of the two; at worst it takes their sum.
- **The run**: 29,000 pairs x 18 epochs, 857 tokens per pair. A step has the paper's 16 pairs on one GPU (unless the
  layout says otherwise), and two pairs per GPU on several, which on 8 GPUs are 16 again. Larger steps are a different
  training, whose learning rate has to be found.

"""
DISK = """GB for the paper's 18 epoch folders, by `--save-dtype`, and for a state with whole masters and RMSProp.
`--keep-checkpoints 3` keeps three folders, a sixth of that. `--state-every 0` keeps a state only when the run is
stopped.
"""
ADAMW = """\
The same with `--optimizer adamw`, which keeps two averages per parameter; `--square-avg bfloat16` applies to both.
Without clipping a step is one pass, so smaller steps take less memory. Muon (`--optimizer muon`) cannot be combined
with split masters. It needs whole ones: one GPU with 141 GB, or two with 80 GB each.
"""
OTHERS = """\
The first layout that fits one GPU of 80 GB, for the paper's run with its token lengths. The lengths are those of
Llama's tokenizer; another tokenizer gives a few per cent more or fewer. Only Llama was measured; the others are
calculated in the same way ([models](models.md)). The hours are the GPU's own: of the smallest models Python and the
driver take longer to start a step's kernels than the GPU to compute them. A step of smollm2-135m took 0.47 s on an
H200, which is 4.3 hours for such a run; a single process has had less to start since, which has not been measured.
"""
LONG = """\
A prompt of 4,096 tokens and two responses of 6,144: `python -m engine.plan --shape qwen3-8b --lengths 4096 6144 6144
--batch-size 1`; the run needs `--max-prompt-tokens 4096 --max-response-tokens 6144` besides. All parameters fit only
with one pair a step, the square average in bfloat16 and no clipping, so that no gradients are held beside the pass; an
adapter's steps may have any number of pairs. Not measured on a GPU; on a CPU the peak of such a pair through a tiny
model is within a tenth of the plan (`./launch.sh test --all -k 16384`).
"""
TAIL = """
## Limits of this design

FSDP sends every weight to every GPU in every pass, and sums every gradient. With two pairs per GPU this takes as long
as computing for 8 billion parameters inside a node, and two to three times as long for 70 and 405 billion. Sharding
only inside a node helps a little at 8 billion; otherwise only more pairs per step help.

From about 70 billion parameters on, the gathered blocks are large compared with what a GPU keeps; at 405 billion the
embedding and the head alone are. Other designs keep the weights in place: tensor parallelism, in which each GPU
computes a part of every product, and pipelines. Context parallelism is for sequences of tens of thousands of tokens,
whose attention no longer fits. None of these is implemented here. For such models use torchtitan, NeMo RL or
Megatron-Bridge, with the objectives of `losses/`, which need only log-probs.

The layout for one GPU (`--master-weights split`) is for a single process. Eight independent runs on eight GPUs do not
communicate: for a sweep over objectives that is the faster way to use a node.
"""


PASS = """The column "pass" has the tokens of one forward and backward pass, and how many blocks are recomputed in it
(activation checkpointing).
"""


def main() -> None:
    """The command."""
    (DOCS / "scaling.md").write_text(page(), encoding="utf-8")


def page() -> str:
    """The page's text."""
    header = ["| model | layout | GB | pass | hours |", "|---|---|---|---|---|"]
    lines = ["## One GPU", "", PASS, *header]
    lines += [_one_gpu(way) for way in ({"master_weights": "float32"}, *plan.WAYS)]
    adamw: dict[str, Any] = {"optimizer": "adamw"}
    lines += ["", ADAMW, *header]
    ways = ({"master_weights": "float32"}, *plan.WAYS, plan.WAYS[-1] | {"batch_size": 14})
    lines += [_one_gpu(way | adamw) for way in ways]
    lines += ["", "## Other families on one GPU", "", OTHERS]
    lines += ["| model | 10^9 parameters | layout | GB | pass | hours |", "|" + "---|" * 6]
    lines += [_other(name) for name in SHAPES if not name.startswith(("llama", "tiny"))]
    lines += ["", "## Pairs of 16,384 tokens on one GPU of 80 GB", "", LONG, *header]
    lines += [_long(way | {"batch_size": 1}) for way in plan.WAYS]
    lines += [_long({"lora_rank": 16})]
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


def _plan(
    name: Shape, config: TrainConfig, n_gpus: int, budget: int, statistics: TokenStatistics | None = None
) -> Plan:
    """statistics: of other rows than the paper's."""
    shape = read_config(raw_config(name), name)
    statistics = statistics or TokenStatistics.of_the_paper(config.schedule.batch_size, n_gpus)
    return plan.plan_run(
        config, shape, ["fused"] if config.adapters.is_used else ["fused", "precompute"], statistics,
        device="cuda", dtype=torch.bfloat16, n_ranks=n_gpus, budget=budget,
    )  # fmt: skip


def _one_gpu(way: dict) -> str:
    config = TrainConfig(model="", data=("",), out="", **way)
    layout = {name: value for name, value in way.items() if name != "optimizer"}
    return _row("llama3-8b", layout, config, _plan("llama3-8b", config, 1, MEMORY))


def _long(way: dict) -> str:
    """A row of pairs that are twenty times as long as the paper's."""
    config = TrainConfig(model="", data=("",), out="", **way)
    rows = TokenStatistics.of_lengths((4096, 6144, 6144), PackingOptions(), config.schedule.batch_size)
    return _row("qwen3-8b", way, config, _plan("qwen3-8b", config, 1, MEMORY, rows))


def _row(name: Shape, way: dict, config: TrainConfig, found: Plan) -> str:
    s, size = found.memory, memory.total(found.memory) / 1e9
    said = "float32 masters, whole" if way.get("master_weights") == "float32" else plan.flags(way)
    if not found.fits:
        return f"| {name} | `{said}` | {size:.0f}: too much | | |"
    again = f", {s.n_recomputed} blocks recomputed" if s.n_recomputed else ""
    hours = found.hours(config, 1, cost.Speed())
    return f"| {name} | `{said}` | {size:.0f} | {s.pass_tokens:,} tokens{again} | {hours:,.1f} |"


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
    again = f", {s.n_recomputed} blocks recomputed" if s.n_recomputed else ""
    return f"{row} | {s.pass_tokens:,} tokens{again} | {found.hours(config, 1, cost.Speed()):.1f} |"


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
    computing, communicating = cost.step_seconds(found.memory, found.statistics, batch, n_gpus, cost.Speed())
    steps = -(-found.statistics.n // batch) * config.schedule.epochs
    best, worst = (steps * seconds / 3600 for seconds in (max(computing, communicating), computing + communicating))
    seconds = f"{computing:.2f}, {communicating:.2f}"
    return f"| {name} | {n_gpus:,} | {said} | {batch:,} | {size:.0f} | {seconds} | {best:.2f} to {worst:.2f} |"


if __name__ == "__main__":
    main()
