"""The table of what was measured: rates, ratios with the spread of their rounds, and where the time goes."""

import statistics
from collections.abc import Sequence
from typing import Any

from engine.bench.measure import PARTS
from engine.planning import DATASHEET


def table(made: dict[str, Any]) -> str:
    """What was measured, as Markdown: rates and ratios, then where the time of the first row goes."""
    first = made["rows"][0]
    columns = [
        "pairs/s, epoch 1",
        "from epoch 2",
        "ratio, epoch 1",
        "from epoch 2",
        "peak MB",
        "executed GFLOP a pair",
        "useful",
    ]
    lines = [f"{made['device']}; `{made['command']}`", "", _line("", *columns), "|" + "---|" * (len(columns) + 1)]
    for row in made["rows"]:
        rates = [_spread([rate(run, e) for run in row["runs"]]) for e in (0, 1)]
        ratios = [
            _spread([rate(a, e) / rate(b, e) for a, b in zip(first["runs"], row["runs"], strict=False)]) for e in (0, 1)
        ]
        peak = max(run["peak_bytes"] for run in row["runs"]) / 2**20
        epochs = row["runs"][0]["epochs"]
        flops, useful = (
            " / ".join(f"{e[kind] / e['pairs'] / 1e9:.0f}" for e in epochs) if kind in epochs[0] else "-"
            for kind in ("flops", "useful_flops")
        )
        lines.append(_line(row["name"], *rates, *ratios, f"{peak:,.0f}", flops, useful))
    said = ["", "A ratio is that of the first row's pairs/s to the row's own.", *beside_trl(made["rows"]), ""]
    return "\n".join([*lines, *said, *_where(first["runs"][0])])


def beside_trl(rows: Sequence[dict[str, Any]]) -> list[str]:
    """The ratios to TRL at its best: in each round to the fastest that was measured in it; nothing where none was."""
    theirs, said = [row for row in rows if row["name"].startswith("TRL")], []
    n_rounds = min(len(rows[0]["runs"]), max((len(row["runs"]) for row in theirs), default=0))
    for epoch, when in enumerate(("epoch 1", "from epoch 2 on")):
        ratios, names = list[float](), list[str]()
        for turn in range(n_rounds):
            tried = [row for row in theirs if len(row["runs"]) > turn]
            best = max(tried, key=lambda row: rate(row["runs"][turn], epoch))
            ratios.append(rate(rows[0]["runs"][turn], epoch) / rate(best["runs"][turn], epoch))
            names.append(best["name"])
        if ratios:
            said.append(f"{_spread(ratios)} {when} ({'; '.join(dict.fromkeys(names))})")
    return ["", f"To TRL at its best: {', '.join(said)}."] if said else []


def _line(*cells: str) -> str:
    return f"| {' | '.join(cells)} |"


def _where(run: dict[str, Any]) -> list[str]:
    """Where the time of a run goes, and how much of what the device can do that is."""
    parts = [part for part in PARTS if any(part in epoch for epoch in run["epochs"])]
    lines = ["| seconds a pair | whole | " + " | ".join(parts) + " | tokens/s | TFLOP/s | of a plain product |"]
    lines += ["|" + "---|" * (len(parts) + 5)]
    for number, epoch in enumerate(run["epochs"], start=1):
        pairs, speed = epoch["pairs"], epoch["flops"] / epoch["seconds"]
        cells = [
            f"epoch {number}",
            f"{epoch['seconds'] / pairs:.3f}",
            *(f"{epoch.get(p, 0) / pairs:.3f}" for p in parts),
        ]
        cells += [
            f"{epoch['tokens'] / epoch['seconds']:,.0f}",
            f"{speed / 1e12:.3f}",
            f"{speed / run['matmul_peak']:.0%}",
        ]
        lines.append(_line(*cells))
    if "kernels" not in run:
        useful = run["epochs"][-1]["useful_flops"] / run["epochs"][-1]["seconds"]
        return [
            *lines, "",
            f"Useful: {useful / 1e12:,.0f} TFLOP/s, {useful / run['matmul_peak']:.0%} of a plain product's "
            f"{run['matmul_peak'] / 1e12:,.0f}, {useful / DATASHEET:.1%} of the {DATASHEET / 1e12:.0f} of an H100's or "
            f"H200's datasheet; expected to take {sum(run['plan']['bytes'].values()) / 1e9:.1f} GB, took "
            f"{run['peak_bytes'] / 1e9:.1f} ({run['allocated_bytes'] / 1e9:.1f} of them in use).",
        ]  # fmt: skip
    kernels, last = run["kernels"], run["epochs"][-1]
    alone, whole = sum(kernels.values()), last["seconds"] / last["pairs"]
    said = ", ".join(f"{part} {seconds:.3f}" for part, seconds in kernels.items())
    lines += ["", f"Matrix products and attention of a pair, each kernel alone: {alone:.3f} s ({said});"]
    return [
        *lines,
        f"a pair from epoch 2 on takes {whole:.3f} s: {alone / whole:.0%} of its time is spent in them at best.",
    ]


def _spread(values: Sequence[float]) -> str:
    middle = statistics.median(values)
    return f"{middle:.2f}" + (f" ({min(values):.2f} to {max(values):.2f})" if len(values) > 1 else "")


def rate(run: dict[str, Any], epoch: int) -> float:
    """Pairs per second of a run in an epoch, from 0; in its last one where it has fewer."""
    found = run["epochs"][min(epoch, len(run["epochs"]) - 1)]
    return found["pairs"] / found["seconds"]
