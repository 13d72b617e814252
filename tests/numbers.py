"""Whether two checkouts compute the same numbers: their runs on the same rows, compared to the last bit.

    python -m tests.numbers OUT --checkout DIR        runs DIR's trainer in OUT
    python -m tests.numbers --compare OUT OTHER       what differs; exit code 1 where something does

The runs: both of the demo; 20 steps of six objectives in float32 on one and on two ranks; and two runs that are
stopped and gone on with. What is compared: every number of metrics.jsonl but the clock's, and every epoch's weights.
A name of metrics.jsonl that only one of the two writes is told, and is no difference.
"""

import argparse
import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path

OBJECTIVES = ("dpo", "apo_zero", "apo_down", "kto", "sft", "bco")
PAIRS = ("round-1/pairs/clair.jsonl", "pairs.jsonl")  # of the demo, now and in release 0.1
BELOW = "round-1/runs/seed-0/clair/"
STOPPED = ("apo_zero", "bco")  # the second carries a state from step to step
FLAGS = [
    "--max-steps",
    "20",
    "--epochs",
    "2",
    "--batch-size",
    "16",
    "--lr",
    "1e-4",
    "--eval-pairs",
    "32",
    "--dtype",
    "float32",
    "--micro-tokens",
    "512",
    "--state-every",
    "5",
]


def train(checkout: Path, model: Path, pairs: Path, out: Path, loss: str, *more: str, ranks: int = 1) -> None:
    """One run of a checkout's trainer."""
    start = [sys.executable]
    if ranks > 1:
        start += ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(ranks)]
    run(checkout, *start, "-m", "engine.train", "--model", model, "--data", pairs, "--loss", loss, "--out", out,
        *FLAGS, *more)  # fmt: skip


def run(checkout: Path, *command: object) -> None:
    """A command in a checkout, on one thread: the order of sums depends on their number."""
    print(*command, file=sys.stderr)
    subprocess.run([str(part) for part in command], cwd=checkout, check=True, env=os.environ | {"OMP_NUM_THREADS": "1"})


def numbers(out: Path) -> dict[str, str]:
    """Digests of a run: each name's values in metrics.jsonl, by step and epoch, and each file of weights."""
    values: dict[str, list[object]] = {}
    for line in map(json.loads, (out / "metrics.jsonl").read_text().splitlines()):
        for name in line:
            if not name.startswith("perf/"):
                values.setdefault(name, []).append([line.get("step"), line.get("epoch"), line[name]])
    made = {f"metrics.jsonl {name}": digest(json.dumps(found).encode()) for name, found in values.items()}
    for path in sorted(out.glob("epoch-*/*.safetensors")):
        made[f"{path.parent.name}/{path.name}"] = digest(path.read_bytes())
    return made


def digest(text: bytes) -> str:
    """SHA-256 in hexadecimal."""
    return hashlib.sha256(text).hexdigest()


def measure(checkout: Path, out: Path) -> None:
    """Every run, in a folder each."""
    run(checkout, sys.executable, "-m", "examples.miniature.demo", "--out", out / "demo")
    (model,) = (out / "demo").glob("base-*/model")
    pairs = next(path for name in PAIRS if (path := out / "demo" / name).exists())
    for ranks in (1, 2):
        for loss in OBJECTIVES:
            train(checkout, model, pairs, out / f"{loss}-{ranks}", loss, ranks=ranks)
    for loss in STOPPED:
        train(checkout, model, pairs, out / f"{loss}-stopped", loss, "--stop-after", "8")
        train(checkout, model, pairs, out / f"{loss}-stopped", loss, "--resume")


def compare(ours: Path, theirs: Path) -> list[str]:
    """What differs between two folders of runs; prints what only one of them has."""
    runs, others = (
        {
            path.parent.relative_to(out).as_posix().replace(BELOW, ""): numbers(path.parent)
            for path in sorted(out.rglob("metrics.jsonl"))
        }
        for out in (ours, theirs)
    )
    shared = [(name, part) for name in runs if name in others for part in runs[name] if part in others[name]]
    alone = {part for name in runs if name in others for part in runs[name].keys() ^ others[name].keys()}
    different = [f"{name}: {part}" for name, part in shared if runs[name][part] != others[name][part]]
    different += [f"{name}: only one side has this run" for name in sorted(runs.keys() ^ others.keys())]
    different += [f"{part}: only one side has these weights" for part in sorted(alone) if "metrics.jsonl" not in part]
    print("only one side writes:", ", ".join(sorted(alone)) or "nothing")
    print(f"{len(runs)} runs, {len(shared)} columns of metrics.jsonl and files of weights: ", end="")
    print("\n".join([f"{len(different)} differ", *different]) if different else "all are equal to the last bit")
    return different


def main() -> int:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("other", type=Path, nargs="?")
    parser.add_argument("--checkout", type=Path)
    parser.add_argument("--compare", action="store_true")
    asked = parser.parse_args()
    if not asked.compare:
        out = asked.out.absolute()
        out.mkdir(parents=True)
        measure(asked.checkout.absolute(), out)
        return 0
    return int(bool(compare(asked.out, asked.other)))


if __name__ == "__main__":
    sys.exit(main())
