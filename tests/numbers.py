"""Whether two checkouts compute the same numbers: their runs on the same rows, compared to the last bit.

    python -m tests.numbers OUT --checkout DIR        runs DIR's trainer, and writes OUT/numbers.json
    python -m tests.numbers --compare OUT OTHER       what differs; exit code 1 where something does

The runs: both of the demo; 20 steps of six objectives in float32 on one and on two ranks; and two runs that are
stopped and gone on with. What is compared: every number of metrics.jsonl but the clock's, and every epoch's weights.
"""

import argparse
import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path

OBJECTIVES = ("dpo", "apo_zero", "apo_down", "kto", "sft", "bco")
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
    "--warmup-steps",
    "3",
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
    """Digests of a run's metrics, but for the clock's, and of its epochs' weights."""
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    kept = [{name: value for name, value in line.items() if not name.startswith("perf/")} for line in lines]
    made = {"metrics.jsonl": hashlib.sha256(json.dumps(kept, sort_keys=True).encode()).hexdigest()}
    for path in sorted(out.glob("epoch-*/*.safetensors")):
        made[f"{path.parent.name}/{path.name}"] = hashlib.sha256(path.read_bytes()).hexdigest()
    return made


def measure(checkout: Path, out: Path) -> dict[str, dict[str, str]]:
    """The numbers of every run, by name."""
    run(checkout, sys.executable, "-m", "examples.miniature.demo", "--out", out / "demo")
    made = {f"demo/{loss}": numbers(out / "demo" / loss) for loss in ("apo_zero", "dpo")}
    (model,), pairs = (out / "demo").glob("base-*/model"), out / "demo" / "pairs.jsonl"
    for ranks in (1, 2):
        for loss in OBJECTIVES:
            name = f"{loss}-{ranks}"
            train(checkout, model, pairs, out / name, loss, ranks=ranks)
            made[name] = numbers(out / name)
    for loss in STOPPED:
        name = f"{loss}-stopped"
        train(checkout, model, pairs, out / name, loss, "--stop-after", "8")
        train(checkout, model, pairs, out / name, loss, "--resume")
        made[name] = numbers(out / name)
    return made


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
        made = measure(asked.checkout.absolute(), out)
        (out / "numbers.json").write_text(json.dumps(made, indent=1))
        return 0
    ours, theirs = (json.loads((path / "numbers.json").read_text()) for path in (asked.out, asked.other))
    different = [
        f"{name}: {part}"
        for name in sorted(ours | theirs)
        for part in sorted(ours.get(name, {}) | theirs.get(name, {}))
        if ours.get(name, {}).get(part) != theirs.get(name, {}).get(part)
    ]
    print(f"{len(ours)} runs, {sum(map(len, ours.values()))} files: ", end="")
    print("\n".join([f"{len(different)} differ", *different]) if different else "all are equal to the last bit")
    return int(bool(different))


if __name__ == "__main__":
    sys.exit(main())
