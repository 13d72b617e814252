"""What rounding a trained model to bfloat16 leaves of its training: one DPO run a learning rate, rounded after 1, 6 and
25 epochs of 8 steps, to the nearest and stochastically.

    python -m examples.real.rounding runs/real/run-.../clair.jsonl --out runs/real/rounding

    python -m examples.real.rounding --run runs/real/run-...     the same of the models that demo --real has aligned

The runs compute in float32 and write float32 folders, which engine.convert rounds and engine.score scores on held-out
pairs. Only the folders that are rounded are kept. A run that was stopped goes on; each epoch's numbers go into
docs/records/rounding.json as soon as they are there, and examples.real.results_page writes the table.
"""

import hashlib
import json
import platform
import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import tyro
from torch import Tensor

from data.rows import Example, Limits, Reading, digest, hold_out, load_rows, open_model, read_examples
from engine import convert, train
from engine.config import TrainConfig
from engine.score import score_under, shape_of
from engine.weights import Cast
from eval.tables import Table, number
from examples.real import checkpoint, demo, task
from examples.real import measure as measuring
from system import InputError, cli, files
from system.flags import PathText

EXAMPLE = "python -m examples.real.rounding runs/real/run-.../clair.jsonl --out runs/real/rounding"
RATES = (2e-7, 1e-6, 1e-5)
EPOCHS = (1, 6, 25)
N_TRAINED, N_HELDOUT, BATCH = 32, 64, 4
BETA = 0.1
SEEDS = (1, 2, 3)
"""Of stochastic rounding."""


@dataclass(frozen=True, kw_only=True)
class RoundingConfig:
    """Measure how much of what a run has learnt survives rounding its weights to bfloat16, by learning rate and number
    of steps."""

    data: tyro.conf.Positional[PathText | None] = None
    """Pairs, as engine.train takes them: 32 are trained on and 64 held out, drawn by a fixed seed. Give this or
    --run."""
    out: PathText = "runs/real/rounding"
    """Folder for the runs and the rounded checkpoints. Existing results in it are reused."""
    run: PathText | None = None
    """Folder of a finished ./launch.sh demo --real, such as runs/real/run-...: the last checkpoint of every objective
    in it is rounded, and nothing is trained."""
    model: PathText | None = None
    """Checkpoint folder or hub id. Unset: SmolLM2-135M-Instruct, downloaded into runs/real."""
    record: PathText = "docs/records/rounding.json"
    """JSON file for the results. Results of the other mode (pairs or --run) that are already in it are kept."""

    def __post_init__(self) -> None:
        if (self.data is None) == (self.run is None):
            raise InputError("FILE and --run: give a file of pairs to train on, or a run of the demo")


def main(argv: Sequence[str]) -> None:
    """The command."""
    config = cli.parse(RoundingConfig, argv, command="python -m examples.real.rounding", example=EXAMPLE)
    root = Path(config.out)
    root.mkdir(parents=True, exist_ok=True)
    base = Path(config.model or checkpoint.fetch(Path("runs/real")))
    record = Path(config.record)
    known = json.loads(record.read_text()) if record.exists() else {}
    if config.run is not None:
        files.write_json(record, known | {"demo": measure_demo(base, Path(config.run), root)})
    else:
        study(base, Path(str(config.data)), root, record, known)
    print(config.record)


def study(base: Path, data: Path, root: Path, record: Path, known: dict[str, Any]) -> None:
    """Trains at each rate, rounds and scores; the record is written after each epoch."""
    trained, heldout = draw(data, root)
    examples = read(base, heldout)
    check_study(base, examples, root / "study.json")
    before = scores(base, examples, root / "base.json")
    found: dict[str, Any] = known | {
        "model": base.name, "pairs": data.name, "beta": BETA, "batch_size": BATCH,
        "trained_on": N_TRAINED, "held_out": N_HELDOUT, "held_out_sha256": digest(examples).hexdigest()[:16],
        "dtype": "float32", "torch": torch.__version__, "machine": f"{platform.machine()} CPU", "rows": [],
    }  # fmt: skip
    for rate in RATES:
        for epoch, folder in folders(base, trained, root, rate):
            found["rows"] += measure(base, folder, rate, epoch, examples, before)
            files.write_json(record, found)


def check_study(base: Path, examples: Sequence[Example], path: Path) -> None:
    """Notes what the folder's runs are of. Raises InputError where it holds those of another model or other pairs."""
    model = hashlib.sha256(b"".join(files.digests(sorted(base.glob("*.safetensors"))))).hexdigest()[:16]
    asked = {"model": model, "held_out": digest(examples).hexdigest()[:16], "trained_on": N_TRAINED, "beta": BETA}
    if path.exists() and json.loads(path.read_text()) != asked:
        raise InputError(f"{path.parent}: holds the runs of another model or other pairs; give another --out")
    files.write_json(path, asked)


def draw(data: Path, root: Path) -> tuple[Path, Path]:
    """Files of the pairs to train on and of those that are held out."""
    paths = root / "train.jsonl", root / "heldout.jsonl"
    rows = load_rows(data)
    if len(rows) < N_TRAINED + N_HELDOUT:
        raise InputError(f"{data}: holds {len(rows)} rows, and {N_TRAINED + N_HELDOUT} are needed; give more")
    drawn = np.random.default_rng(0).permutation(len(rows)).tolist()
    for path, places in zip(paths, (drawn[:N_TRAINED], drawn[N_TRAINED : N_TRAINED + N_HELDOUT]), strict=True):
        files.write_rows(path, (rows[i] for i in places))
    return paths


def read(base: Path, heldout: Path) -> list[Example]:
    """The held-out pairs as token ids."""
    _, chat = open_model(str(base))
    return read_examples([str(heldout)], chat, Limits(), Reading(), n_ids=shape_of(base).vocab_size).examples


def folders(base: Path, trained: Path, root: Path, rate: float) -> Iterator[tuple[int, Path]]:
    """Trains with one rate, and gives the float32 folder of each epoch in EPOCHS as soon as it is there."""
    run, kept = root / f"lr-{rate:g}", root / f"kept-{rate:g}"
    for epoch in EPOCHS:
        folder = kept / f"epoch-{epoch:02d}"
        if not folder.exists():
            steps = epoch * (N_TRAINED // BATCH)
            train.run(TrainConfig(
                model=str(base), data=(str(trained),), loss="dpo", beta=BETA, lr=rate, batch_size=BATCH,
                epochs=EPOCHS[-1], out=str(run), save_dtype="float32", keep_checkpoints=1,
                state_every=3 * N_TRAINED // BATCH, stop_after=steps, resume=True,
                reference_cache=str(root / "reference"),
            ))  # fmt: skip
            kept.mkdir(exist_ok=True)
            (run / folder.name).rename(folder)
        yield epoch, folder


def measure(
    base: Path, folder: Path, rate: float, epoch: int, examples: Sequence[Example], before: Tensor
) -> list[dict[str, Any]]:
    """What each rounding leaves of one epoch's folder; read again where it was measured before."""
    path = folder.with_suffix(".json")
    if path.exists():
        return json.loads(path.read_text())
    whole = scores(folder, examples)
    rows = [{"rounding": "float32", **rewards(whole, before), "noise": 0.0}]
    casts = [Cast(dtype=torch.bfloat16), *(Cast(dtype=torch.bfloat16, rounding="stochastic", seed=s) for s in SEEDS)]
    for cast in casts:
        rounded = folder.with_name(f"{folder.name}-{cast.rounding}")
        if rounded.exists():
            files.remove_folder(rounded)
        convert.convert(folder, rounded, cast)
        found = scores(rounded, examples)
        difference = found - whole
        row = {"rounding": cast.rounding, "seed": cast.seed, **rewards(found, before)}
        row |= {"noise": difference.std().item(), "logps_difference": difference.abs().mean().item()}
        kept = convert.survival(base, folder, rounded)
        assert kept is not None  # it has been trained
        rows.append(row | {f"weights_{name}": value for name, value in kept._asdict().items()})
        files.remove_folder(rounded)
    rows = [{"lr": rate, "epoch": epoch, "step": epoch * (N_TRAINED // BATCH), **row} for row in rows]
    files.write_json(path, rows)
    return rows


def measure_demo(base: Path, run: Path, root: Path) -> list[dict[str, Any]]:
    """Of each objective of a run of the demo: what is left in bfloat16 of the margin of its held-out pairs, and of the
    rules that APO-zero's answers keep.
    """
    found = []
    for name in demo.OBJECTIVES:
        lines = run / name / "metrics.jsonl"
        if not lines.exists():
            continue
        folder, last = sorted((run / name).glob("epoch-*"))[-1], load_rows(lines)[-1]
        examples = hold_out(read(base, run / "clair.jsonl"), demo.TRAINING["eval_pairs"], seed=0)[1]
        before, whole = scores(base, examples, root / f"demo-{run.name}-base.json"), scores(folder, examples)
        rounded = root / f"demo-{run.name}-{name}-bfloat16"
        if not rounded.exists():
            convert.convert(folder, rounded, Cast(dtype=torch.bfloat16))
        left = scores(rounded, examples)
        row = {"objective": name, "steps": last["step"], "lr": demo.TRAINING["lr"], "held_out": len(examples)}
        row |= {"run_margin": margin_of(last), "margin": rewards(whole, before)["margin"]}
        row |= {"margin_bfloat16": rewards(left, before)["margin"], "noise": (left - whole).std().item()}
        if name == "apo_zero":
            tasks = task.tasks(task.HELDOUT_TOPICS, demo.N_TEST, seed=1)
            for how, heat in measuring.TEMPERATURES.items():
                kept = run / f"answers/{name}-{how}.jsonl", root / f"demo-{run.name}-{name}-{how}.jsonl"
                for key, model, path in zip(("rules", "rules_bfloat16"), (folder, rounded), kept, strict=True):
                    answers = measuring.answer(model, [t.prompt for t in tasks], heat, path)
                    row[f"{key}_{how}"] = list(measuring.score(tasks, answers).kept)
        found.append(row)
    if not found:
        raise InputError(f"{run}: holds no run of the demo; run ./launch.sh demo --real first")
    return found


def margin_of(line: Mapping[str, float]) -> float:
    """Beta times the held-out margin of log-ratios of a line of metrics, which runs before called their reward's."""
    measured = line.get("eval_logratios/margins")
    return line["eval_rewards/margins"] if measured is None else BETA * measured


def rewards(logps: Tensor, before: Tensor) -> dict[str, float]:
    """Mean rewards of winners and losers, and their difference. logps, before: [n, 2] nats."""
    chosen, rejected = (BETA * (logps - before)).mean(dim=0).tolist()
    return {"reward_chosen": chosen, "reward_rejected": rejected, "margin": chosen - rejected}


def scores(folder: Path, examples: Sequence[Example], kept: Path | None = None) -> Tensor:
    """Log-probs of the pairs' responses, [n, 2] nats, float64; kept in a file where one is named."""
    if kept is not None and kept.exists():
        return torch.tensor(json.loads(kept.read_text()), dtype=torch.float64)
    found = torch.stack(list(score_under(folder, examples, dtype="float32", micro_tokens=1024)))
    if kept is not None:
        files.write_json(kept, found.tolist())
    return found


def grouped(record: dict[str, Any]) -> dict[tuple[float, int, str], list[dict[str, Any]]]:
    """The record's rows by rate, steps and rounding; several are the seeds of one."""
    groups: dict[tuple[float, int, str], list[dict[str, Any]]] = {}
    for row in record["rows"]:
        groups.setdefault((row["lr"], row["step"], row["rounding"]), []).append(row)
    return groups


def table(record: dict[str, Any]) -> Table:
    """What is left, by rate, steps and rounding; the means over the seeds of stochastic rounding."""
    rows = []
    groups = grouped(record)
    for (rate, step, rounding), found in groups.items():
        whole = groups[rate, step, "float32"][0]

        def left(name: str, found: list[dict[str, Any]] = found, whole: dict[str, Any] = whole) -> str:
            shares = [100 * row[name] / whole[name] for row in found]
            spread = f" ({min(shares):.0f} to {max(shares):.0f})" if len(shares) > 1 else ""
            return f"{statistics.mean(shares):.0f} %{spread}"

        mean = {name: statistics.mean(row[name] for row in found) for name in ("margin", "noise")}
        moved = [100 * row["weights_moved"] for row in found if "weights_moved" in row]
        rows.append((
            f"{rate:g}", str(step), rounding, number(mean["margin"], 4), left("margin"), left("reward_chosen"),
            left("reward_rejected"), number(mean["noise"], 3), f"{statistics.mean(moved):.1f} %" if moved else "–",
        ))  # fmt: skip
    n = len(SEEDS)
    notes = [
        f"{record['model']}, DPO on {record['trained_on']} pairs in batches of {record['batch_size']}, beta "
        f"{record['beta']:g}; {record['held_out']} held-out pairs, scored in float32. Noise: standard deviation over "
        f"responses of the log-prob's difference from the float32 folder's, nats. Stochastic: mean (smallest to "
        f"largest) of {n} seeds. Weights: how many differ from the model before training."
    ]
    header = ("lr", "steps", "written as", "margin", "margin left", "chosen reward left", "rejected reward left",
              "noise, nats", "weights moved")  # fmt: skip
    return Table("rounding", "What is left after rounding to bfloat16", header, rows, 3, notes)


def in_words(record: dict[str, Any]) -> str:
    """The table in two sentences, and what is left of the demo's models."""
    groups = grouped(record)

    def left(rounding: str) -> str:
        """By rate, from the least to the most of its numbers of steps."""
        shares: dict[float, list[float]] = {}
        for (rate, step, how), found in groups.items():
            if how == rounding:
                margin = statistics.mean(row["margin"] for row in found)
                shares.setdefault(rate, []).append(100 * margin / groups[rate, step, "float32"][0]["margin"])
        spans = {rate: sorted({f"{min(found):.0f}", f"{max(found):.0f}"}, key=float) for rate, found in shares.items()}
        return ", ".join(f"{' to '.join(span)} % at {rate:g}" for rate, span in spans.items())

    noise = [row["noise"] for row in record["rows"] if row["rounding"] == "stochastic"]
    said = (
        f"Share of the held-out margin that is left, by learning rate: rounded to nearest, {left('nearest')}; rounded "
        f"stochastically, {left('stochastic')} (means of {len(SEEDS)} draws). Stochastic rounding moves each log-prob "
        f"by {min(noise):.2f} to {max(noise):.2f} nats (standard deviation)."
    )
    return said + (demo_in_words(record["demo"]) if "demo" in record else "")


def demo_in_words(rows: Sequence[dict[str, Any]]) -> str:
    """What the demo's models are, and would be in bfloat16."""
    shares = ", ".join(f"{100 * r['margin_bfloat16'] / r['margin']:.1f} % of {r['objective']}'s" for r in rows)
    furthest = max(abs(r["run_margin"] - r["margin"]) for r in rows)
    said = (
        f" For the models above ({rows[0]['steps']} steps at {rows[0]['lr']:g}) the float32 folders have the margins "
        f"of the runs' last lines (within {furthest:.0e}); bfloat16 would keep {shares} margin."
    )
    zero = next((r for r in rows if "rules_sampled" in r), None)
    if zero is None:
        return said
    kept = [zero[f"rules{kind}_{how}"][0] for kind in ("", "_bfloat16") for how in ("sampled", "greedy")]
    return said + (
        f" Of {zero['rules_sampled'][1]} rules APO-zero keeps {kept[0]} sampled and {kept[1]} greedily in float32, "
        f"{kept[2]} and {kept[3]} in bfloat16."
    )


if __name__ == "__main__":
    cli.run(main)
