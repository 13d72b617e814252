"""Runs as the report reads them: what evaluators and training have written into their folders."""

import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from data.rows import parse_row
from eval import checkpoints, scores
from eval.scores import BASE, Line
from eval.tables import DASH
from system import run_folder

HEADLINES = {"mixeval-hard": ("table4_compat/overall", 100.0), "alpacaeval-2": ("length_controlled_winrate", 1.0)}
"""The metric that stands for a benchmark, and what makes points of it. Of others it is "overall", times 100."""
NO_BENCHMARKS = ("heldout", "samples", "contrast", "advice")
UNTOLD = {
    "config", "data", "facts", "hang_timeout", "keep_checkpoints", "keep_state", "loss", "out", "reference_cache",
    "save_every", "keep_best", "keep_final_state", "eval_every", "state_every", "stop_after", "take_over",
}  # fmt: skip
"""Settings of a run that its name says already, or that change nothing of what comes out."""
FORMER = {"keep": "keep_checkpoints", "master": "master_weights", "without": "disable"}
"""Settings of runs of release 0.1, by their names now."""
MOST_TOLD = 3
RUNAWAY = 1.5  # times the base's length, from which on answers are warned of


class Run(NamedTuple):
    """What is known of a run."""

    name: str
    """Objective and data, or the folder's name where there is neither."""
    loss: str
    """The objective; of one on the same data also the settings that differ, or the folder where these are many."""
    data: str
    lines: list[Line]
    metrics: list[dict[str, Any]]
    samples: list[dict[str, Any]]
    settings: dict[str, Any]
    folder: Path = Path()
    """Where it is, as it was named."""

    @property
    def checkpoints(self) -> list[str]:
        """Names of checkpoints with scores, in the order of their steps, without the base."""
        names = dict.fromkeys(line["checkpoint"] for line in self.lines if re.search(r"\d", line["checkpoint"]))
        return sorted((n for n in names if n != BASE), key=lambda name: (self.place(name), name))

    def place(self, name: str) -> float:
        """Where a checkpoint stands, in epochs."""
        return run_folder.place_of(name, run_folder.steps_per_epoch(self.metrics))


def read_runs(folders: Sequence[Path]) -> list[Run]:
    """Runs with names that tell them apart."""
    runs = [_read_run(folder) for folder in folders]
    made: list[Run] = []
    for run, folder in zip(runs, folders, strict=True):
        alike = [other for other in runs if other.name == run.name]
        told = _told(run, alike)
        if told in [_told(other, alike) for other in alike if other is not run]:
            told = f"({folder})"
        loss = f"{run.loss} {told}".strip()
        name = f"{loss} on {run.data}" if run.data != DASH else f"{run.name} {told}".strip()
        made.append(run._replace(loss=loss, name=name))
    return made


def _told(run: Run, alike: Sequence[Run]) -> str:
    """What a run was asked for that others of its name were not; empty where nothing differs, or too much."""
    named = dict.fromkeys(name for other in alike for name in other.settings if name not in UNTOLD)
    differ = [name for name in named if len({_short(other.settings.get(name)) for other in alike}) > 1]
    told = [f"{name}={_short(run.settings[name])}" for name in differ if name in run.settings]
    return " ".join(told) if len(differ) <= MOST_TOLD else ""


def _short(value: Any) -> str:
    try:
        return f"{float(value):g}"
    except (TypeError, ValueError):
        return str(value)


def _read_run(folder: Path) -> Run:
    settings = {FORMER.get(name, name): value for name, value in checkpoints.settings(folder).items()}
    data = settings.get("data") or []
    data = " + ".join(Path(str(d)).name.removesuffix(".jsonl") for d in ([data] if isinstance(data, str) else data))
    loss = str(settings.get("loss", "")) or folder.name
    return Run(
        name=f"{loss} on {data}" if data else folder.name,
        loss=loss,
        data=data or DASH,
        lines=scores.read(folder / "eval" / scores.NAME),
        metrics=_rows(folder / "metrics.jsonl"),
        samples=_rows(folder / "eval/samples.jsonl"),
        settings=settings,
        folder=folder,
    )


def _rows(path: Path) -> list[dict[str, Any]]:
    """Rows of a file that may still grow: a last line without its end is left out."""
    if not path.is_file():
        return []
    lines = path.read_bytes().split(b"\n")[:-1]
    return [parse_row(line, f"{path}:{i}") for i, line in enumerate(lines, 1) if line.strip()]


class Headline(NamedTuple):
    """A benchmark's number, by checkpoint."""

    benchmark: str
    version: str
    metric: str
    scale: float


def headlines(runs: Iterable[Run]) -> list[Headline]:
    """Every benchmark and version that a run has scores of, in the order in which they were written."""
    found: dict[Headline, None] = {}
    for line in (line for run in runs for line in run.lines):
        name, version = line["benchmark"], line["version"]
        metric, scale = HEADLINES.get(name, ("overall", 100.0))
        if name not in NO_BENCHMARKS and line["metric"] == metric:
            found[Headline(name, version, metric, scale)] = None
    return list(found)


def of(run: Run, **wanted: str) -> dict[str, Line]:
    """The run's lines of a benchmark, version or metric, by checkpoint: the newest that compare with each other."""
    return {line["checkpoint"]: line for line in scores.newest(scores.pick(run.lines, **wanted))}


def scored(run: Run, h: Headline) -> dict[str, Line]:
    """The run's lines of a headline, by checkpoint."""
    return of(run, benchmark=h.benchmark, version=h.version, metric=h.metric)


def deltas(run: Run, h: Headline) -> tuple[dict[str, float], str]:
    """What each checkpoint gains over the base, in points; and why not, where that cannot be said."""
    found = scored(run, h)
    names = [name for name in run.checkpoints if name in found]
    if BASE in found and names:
        apart = {name: why for name in names if (why := scores.judged_otherwise(found[name], found[BASE]))}
        gained = {name: h.scale * scores.delta(found[name], found[BASE]) for name in names if name not in apart}
        why = next(iter(apart.values()), "")
        more = f", and so on for {len(apart) - 1} more" if len(apart) > 1 else ""
        return gained, f"{run.name}: no delta on {h.benchmark} {h.version}: {why}{more}" if why else ""
    lines = scores.pick(run.lines, benchmark=h.benchmark, version=h.version, metric=h.metric)
    bases, others = ([x for x in lines if (x["checkpoint"] == BASE) == is_base] for is_base in (True, False))
    if not bases or not others:
        return (
            {},
            f"{run.name}: no score of {'a checkpoint' if bases else 'the base model'} on {h.benchmark} {h.version}",
        )
    (why, *_) = [*scores.differences(others[-1], bases[-1]), "not scored in one way"]
    return {}, f"{run.name}: no delta on {h.benchmark} {h.version}: {why}"


def heldout(run: Run, metric: str, *, over_beta: bool = False) -> list[tuple[float, float]]:
    """A held-out number over epochs: an evaluator's, else what training has measured, inside them too. over_beta:
    divided by the beta that an evaluator's line names, or the run's own.
    """
    beta = beta_of(run.settings)

    def scaled(value: Any, of_line: Any = None) -> float:
        return float(value) / float(of_line or beta) if over_beta else float(value)

    if found := of(run, benchmark="heldout", metric=metric):
        by_name = {name: scaled(line["value"], line.get("beta")) for name, line in found.items()}
        points = [(run.place(n), by_name[n]) for n in run.checkpoints if n in by_name]
        return ([(0.0, by_name[BASE])] if BASE in by_name else []) + points
    name = f"eval_{metric}"
    return [(x["epoch"], scaled(x[name])) for x in run.metrics if {"epoch", name} <= x.keys()]


def heldout_logratios(run: Run, side: str) -> list[tuple[float, float]]:
    """The held-out log-ratio of "chosen" or "rejected" by epoch, nats.

    Runs and evaluators that wrote none were before there was such a name: what they called a held-out reward was beta
    times the log-ratio, whatever the objective, and is divided by it.
    """
    measured = ("logratios", False), ("rewards", True)
    is_evaluated = any(of(run, benchmark="heldout", metric=f"{what}/{side}") for what, _ in measured)
    for what, is_reward in measured:
        is_asked = not is_evaluated or of(run, benchmark="heldout", metric=f"{what}/{side}")
        if is_asked and (found := heldout(run, f"{what}/{side}", over_beta=is_reward)):
            return found
    return []


def heldout_rewards(run: Run, side: str) -> list[tuple[float, float]]:
    """Beta times the held-out log-ratio by epoch: the reward of Figure 4 of arXiv 2408.06266, whatever an objective's
    own is.
    """
    beta = beta_of(run.settings)
    return [(epoch, beta * x) for epoch, x in heldout_logratios(run, side)]


def beta_of(settings: Mapping[str, Any]) -> float:
    """A run's beta: the one of all its objectives, or of the first of them; 0.1 where that has none."""
    first = re.split(r"[:,]", str(settings.get("loss", "")))[0]
    said = next((settings[name] for name in ("beta", f"{first}.beta") if name in settings), None)
    return float(said) if said not in (None, "", "null") else 0.1
