"""The report's tables: 1, 2, 4 and 5 of arXiv 2408.06266, lengths and advice, from what runs have written down."""

from collections.abc import Mapping, Sequence

import numpy as np

from eval import scores
from eval.alpacaeval import warnings
from eval.runs import RUNAWAY, Headline, Run, deltas, headlines, of, scored
from eval.scores import BASE, Line
from eval.tables import DASH, Table, number

ALPACA = "alpacaeval-2"
LENGTHS = {(ALPACA, "avg_length"): "AlpacaEval 2", ("samples", "characters"): "sampled answers"}


JUDGED_HOW = {"judge_temperature": "temperature", "judge_extra": "asked with", "preset": "answers by the preset"}


def all_tables(runs: Sequence[Run]) -> list[Table]:
    """Every table, in the order of the page; those without rows are not shown."""
    breakdowns = [breakdown(runs, h, i) for i, h in enumerate(headlines(runs), 1)]
    return [table_2(runs), *breakdowns, table_1(runs), table_5(runs), lengths(runs), advice(runs)]


def table_2(runs: Sequence[Run]) -> Table:
    """Maximum, mean and deviation over a run's checkpoints of what it gains over the base model."""
    named = headlines(runs)
    kinds = ("base", "max Δ", "mean Δ", "± sd")
    header = ("data", "objective", *kinds * len(named))
    groups = ("", "", *(f"{h.benchmark} {h.version}" for h in named for _ in kinds)) if named else ()
    rows, notes = [], []
    for run in runs:
        cells: list[str] = []
        for h in named:
            found, why = deltas(run, h)
            values, base = list(found.values()), scored(run, h).get(BASE)
            spread = float(np.std(values, ddof=1)) if len(values) > 1 else None
            cells.append(marked(number(h.scale * base["value"]), base) if base else DASH)
            cells.append(_greatest(found, run, h))
            cells += [number(float(np.mean(values)), sign=True) if values else DASH, number(spread)]
            notes += [why] if why else []
            for fact, words in (
                ("n_fallbacks", "have no judgment that can be read"),
                ("n_blocked", "were refused"),
                ("n_unanswered", "have no answer of the model"),
            ):
                most = max((int(x.get(fact) or 0) for x in scored(run, h).values()), default=0)
                notes += [f"{run.name}: on {h.benchmark} {h.version} up to {most} queries {words}."] if most else []
        if any(cell != DASH for cell in cells):
            rows.append((run.data, run.loss, *cells))
    n = sorted({len(deltas(run, h)[0]) for run in runs for h in named} - {0})
    counted = f"over {' to '.join(map(str, dict.fromkeys((n[0], n[-1]))))} checkpoints of each run" if n else ""
    notes.insert(
        0, f"Points against the base model {counted}; sd with n - 1. A maximum over checkpoints is biased upward."
    )
    by_judge: dict[str, list[str]] = {}
    for h in named:
        by_judge.setdefault(judged_by(runs, h), []).append(f"{h.benchmark} {h.version}")
    notes += [f"{', '.join(names)}: {who}" for who, names in by_judge.items() if who]
    return Table("table-2", "Gain over the base model (Table 2)", header, rows, 2, notes, groups)


def marked(cell: str, line: Line) -> str:
    """A number's cell, with how much of it was not judged where it would look whole without."""
    return f"{cell} ({said})" if (said := scores.mark(line)) else cell


def _greatest(gained: Mapping[str, float], run: Run, h: Headline) -> str:
    """The greatest gain; and how many checkpoints are left out of it, or how much there was not judged."""
    found = scored(run, h)
    without = [name for name in run.checkpoints if name in found and name not in gained and scores.mark(found[name])]
    best = max(gained, key=lambda name: gained[name], default=None)
    if best is None:
        return marked(DASH, found[without[-1]]) if without else DASH
    cell = marked(number(gained[best], sign=True), found[best])
    return f"{cell} ({len(without)} not judged whole)" if without else cell


def judged_by(runs: Sequence[Run], h: Headline) -> str:
    """By whom a benchmark was judged, and how; empty where no line says."""
    lines = [line for run in runs for line in scored(run, h).values()]
    said = dict.fromkeys(_judge(line) for line in lines if line.get("judge"))
    return f"judged by {' and by '.join(said)}." if said else ""


def _judge(line: Line) -> str:
    name, served = str(line["judge"]), line.get("judge_model")
    told = [f"answering as {served}"] if served and served != name else []
    told += [f"{words} {line[fact]}" for fact, words in JUDGED_HOW.items() if line.get(fact) is not None]
    return f"{name} ({', '.join(told)})" if told else name


def breakdown(runs: Sequence[Run], h: Headline, index: int) -> Table:
    """The headline's parts, for the base and each run's best checkpoint."""
    prefix = h.metric.rpartition("/")[0]
    columns: list[tuple[str, dict[str, Line]]] = []
    shown_base: Line | None = None
    for run in runs:
        found = scored(run, h)
        names = [name for name in run.checkpoints if name in found]
        names = [name for name in names if scores.is_whole(found[name])] or names
        best = max(names, key=lambda name: found[name]["value"], default=None)
        for name in (BASE, best):
            if name not in found or (name == BASE and shown_base and not scores.differences(found[BASE], shown_base)):
                continue
            if name == BASE:
                shown_base = found[BASE]
            parts = scores.pick(run.lines, checkpoint=name, benchmark=h.benchmark, version=h.version)
            same = {x["metric"]: x for x in parts if not scores.differences(x, found[name])}
            columns.append((BASE if name == BASE else f"{run.name}, {name}", same))
    sides = [lines for _, lines in columns]
    metrics = dict.fromkeys(m for lines in sides for m in lines if not m.startswith("delta/"))
    rows = [
        (_part_name(m, prefix), *(marked(number(h.scale * x[m]["value"]), x[m]) if m in x else DASH for x in sides))
        for m in sorted(metrics, key=lambda m: m.rpartition("/")[0] != prefix)
    ]
    unit = f"{h.scale:g} times the fraction" if h.scale != 1 else "as the benchmark gives it"
    notes = [f"Each run's best checkpoint; {unit}.", *([f"It was {who}"] if (who := judged_by(runs, h)) else [])]
    if prefix == "table4_compat":
        notes.append(
            "As in the paper's time a benchmark that is in both splits counts with its multiple-choice score alone: "
            "988 queries; the overall score has all 1,000. merged: both splits of a benchmark, weighted."
        )
    title = f"{h.benchmark} {h.version} in parts (Table 4)"
    return Table(f"table-4-{index}", title, ("part", *(c for c, _ in columns)), rows if len(rows) > 1 else [], 1, notes)


def _part_name(metric: str, prefix: str) -> str:
    before, _, name = metric.rpartition("/")
    return name if before == prefix else f"{name} ({before})" if before else name


def table_1(runs: Sequence[Run]) -> Table:
    """How minimal the contrast of each data set is."""
    found: dict[str, dict[str, float]] = {}
    for run in runs:
        for line in scores.pick(run.lines, benchmark="contrast"):
            found.setdefault(line["version"], {})[line["metric"]] = line["value"]
    metrics = dict.fromkeys(m for table in found.values() for m in table)
    rows = [
        (name, *(number(v := table.get(m), 0 if v is not None and v == int(v) else 2) for m in metrics))
        for name, table in found.items()
    ]
    notes = [
        "A large Jaccard and a small Levenshtein distance say that a pair differs in little (Table 1 of the paper)."
    ]
    return Table("table-1", "Contrast of the preference pairs (Table 1)", ("data", *metrics), rows, 1, notes)


def table_5(runs: Sequence[Run]) -> Table:
    """What training took."""
    rows = []
    for run in runs:
        lines = [x for x in run.metrics if {"epoch", "perf/step_seconds", "perf/pairs_per_second"} <= x.keys()]
        seconds = [line["perf/step_seconds"] for line in lines]
        if seconds:
            pairs = sum(line["perf/step_seconds"] * line["perf/pairs_per_second"] for line in lines)
            hours = sum(seconds) / 3600
            took = f"{hours:.1f} h" if hours >= 1 else f"{60 * hours:.1f} min"
            values = (
                number(len(seconds), 0),
                number(lines[-1]["epoch"], 1),
                took,
                number(pairs / sum(seconds), 1),
            )
            rows.append((run.data, run.loss, *values))
    header = ("data", "objective", "steps", "epochs", "training time", "examples a second")
    notes = ["Sum of the steps' own times, with their data and reference; without evaluation and saving."]
    return Table("table-5", "Training times (Table 5)", header, rows, 2, notes)


def lengths(runs: Sequence[Run]) -> Table:
    """How long answers are, and what that is against the base's; and what makes length control doubtful."""
    rows, notes = [], []
    for run in runs:
        for (benchmark, metric), name in LENGTHS.items():
            found = of(run, benchmark=benchmark, metric=metric)
            names = [n for n in run.checkpoints if n in found]
            names = names[-1:] if benchmark == "samples" else names  # of AlpacaEval's the mean, as in the paper
            before = float(found[BASE]["value"]) if BASE in found else None
            if not names:
                continue
            value = float(np.mean([found[n]["value"] for n in names]))
            change = value - before if before is not None else None
            rows.append((run.data, run.loss, name, ", ".join(names), number(before, 0), number(value, 0),
                         number(change, 0, sign=True)))  # fmt: skip
            if before and value > RUNAWAY * before:
                notes.append(f"{run.name}: answers are {value / before:.1f} times as long as the base's: look at them.")
        for checkpoint in run.checkpoints:
            table = {x["metric"]: x["value"] for x in scores.pick(run.lines, checkpoint=checkpoint, benchmark=ALPACA)}
            notes += [f"{run.name}, {checkpoint}: {said}." for said in warnings(table)] if table else []
    header = ("data", "objective", "of", "checkpoint", "base", "characters", "Δ")
    return Table("lengths", "Lengths of answers", header, rows, 4, notes)


def advice(runs: Sequence[Run]) -> Table:
    """Which variant of APO fits (section 5.3.2), by held-out judgments."""
    found = {
        (run.data, x["version"]): x
        for run in runs
        for x in scores.pick(run.lines, benchmark="advice", metric="own_better")
    }
    rows = [
        (
            data,
            f"{100 * x['value']:.1f} %",
            number(x.get("n"), 0),
            str(x.get("objective", DASH)),
            str(x.get("judge", DASH)),
        )
        for (data, _), x in found.items()
    ]
    header = ("data", "model's own answer is better", "pairs", "advice", "judge")
    return Table("advice", "Which variant of APO fits (section 5.3.2)", header, rows, 1)
