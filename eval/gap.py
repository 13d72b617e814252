"""How much of the gap between the base model and a stronger one a run closes: the paper's "closing the gap with
GPT-4-turbo by 45 %" is a gain of 7.65 points where 17 lie between them.

    python -m eval mixeval gpt-4-turbo --endpoint URL --model NAME --out runs/first/eval ...      the stronger model
    python -m eval report runs/first                                                            is scored once

Its scores stand beside a run's under a name of their own. AlpacaEval needs none: its reference is GPT-4-turbo, which
wins half of the comparisons with itself.
"""

from collections.abc import Sequence
from typing import NamedTuple

from eval import scores
from eval.report_tables import marked
from eval.runs import Headline, Run, deltas, headlines, scored
from eval.scores import BASE, Line
from eval.tables import DASH, Table, number

STRONGER = "gpt-4-turbo"
"""The name that its scores are looked for under."""
OF_ITSELF = {"alpacaeval-2": 50.0}
"""Benchmarks that compare with a stronger model's answers, and what this one has in points."""


class Apart(NamedTuple):
    """Runs, and the scores of a model that is none of their checkpoints."""

    runs: list[Run]
    lines: list[Line]


def set_apart(runs: Sequence[Run], name: str) -> Apart:
    """Takes what runs have of a model of that name out of them."""
    lines = [line for run in runs for line in scores.pick(run.lines, checkpoint=name)]
    return Apart([run._replace(lines=[x for x in run.lines if x["checkpoint"] != name]) for run in runs], lines)


def closed(gain: float, base: float, stronger: float) -> float | None:
    """The share of the gap that a gain closes; None where there is no gap."""
    return gain / (stronger - base) if stronger > base else None


def table(apart: Apart, name: str) -> Table:
    """The share of the gap that each run's best checkpoint closes, on every benchmark where both ends are known."""
    runs = apart.runs
    named = [h for h in headlines(runs) if h.benchmark in OF_ITSELF or _of_headline(apart.lines, h)]
    kinds = ("base", name, "max Δ", "gap closed, %")
    rows, notes = [], [f"Of the points between the base model and {name}, those that a run's best checkpoint gains."]
    for run in runs:
        cells: list[str] = []
        for h in named:
            gains, base = deltas(run, h)[0], scored(run, h).get(BASE)
            end, why = _end(apart.lines, h, base, name) if gains and base else (None, "")
            notes += [f"{run.name}: {why}."] if why else []
            if end is None or base is None:
                cells += [DASH] * len(kinds)
                continue
            best = max(gains, key=lambda checkpoint: gains[checkpoint])
            start, gain = h.scale * base["value"], gains[best]
            share = closed(gain, start, end.points)
            notes += [] if share is not None else [f"{run.name}: {name} is no better than the base on {h.benchmark}."]
            cells += [
                marked(number(start), base),
                marked(number(end.points), end.line),
                marked(number(gain, sign=True), scored(run, h)[best]),
                number(share and 100 * share, 1),
            ]
        if any(cell != DASH for cell in cells):
            rows.append((run.data, run.loss, *cells))
    if any(h.benchmark in OF_ITSELF for h in named):
        notes.append("AlpacaEval 2's reference is GPT-4-turbo itself, which has 50 by definition.")
    header = ("data", "objective", *kinds * len(named))
    groups = ("", "", *(f"{h.benchmark} {h.version}" for h in named for _ in kinds)) if named else ()
    return Table("gap", f"Gap to {name} closed", header, rows, 2, notes if rows else [], groups)


def _of_headline(lines: Sequence[Line], h: Headline) -> list[Line]:
    return scores.pick(lines, benchmark=h.benchmark, version=h.version, metric=h.metric)


class _End(NamedTuple):
    """What a stronger model has."""

    points: float
    line: Line
    """Its score; empty where the benchmark's own reference is meant."""


def _end(lines: Sequence[Line], h: Headline, base: Line, name: str) -> tuple[_End | None, str]:
    """The stronger model's points, or why none compare with the base's."""
    if h.benchmark in OF_ITSELF:
        return _End(OF_ITSELF[h.benchmark], {}), ""
    found = _of_headline(lines, h)
    if fitting := [line for line in found if _why_apart(line, base) is None]:
        return _End(h.scale * fitting[-1]["value"], fitting[-1]), ""
    why = _why_apart(found[-1], base)
    return None, f"the score of {name} on {h.benchmark} {h.version} does not compare: {why}"


def _why_apart(line: Line, base: Line) -> str | None:
    """Why a score cannot be subtracted from another one; None where it can."""
    return next(filter(None, (*scores.differences(line, base), scores.judged_otherwise(line, base))), None)
