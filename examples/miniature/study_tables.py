"""Tables of docs/paper.md, of the study's records alone; what is not on record yet is a dash, and said to be left.

Sentences that compare are made of numbers and their intervals, and change when they do.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from statistics import fmean
from typing import Any

import numpy as np

from eval.tables import Table, number
from examples import findings, intervals, studies
from examples.findings import Trajectory
from examples.intervals import Estimate
from examples.miniature import study_plan, study_sets
from examples.miniature.study_plan import OBJECTIVES, SEEDS, SHARED_RATES, called
from examples.miniature.study_run import unpack
from examples.miniature.study_sets import LINES, POINTS, STRENGTHS, TABLE, TUNING_SEED
from examples.studies import Job

ARMS = ("clair", "another-sample")


@dataclass(frozen=True)
class Found:
    """What is on record."""

    runs: Mapping[Job, Mapping[str, Any]]
    bases: Mapping[int, Mapping[str, Any]]
    """Of the model before training, by seed."""
    sets: Mapping[tuple[int, str], Mapping[str, Any]]

    @cached_property
    def gained(self) -> studies.Gained:
        """The primary outcome of each run."""
        return {job: study_plan.gain(job, run, self.bases[job.seed]) for job, run in self.runs.items()}

    def gains(self, job: Job) -> np.ndarray:
        """Of each checkpoint and question, [checkpoints, questions]."""
        return study_plan.gains(job, self.runs[job], self.bases[job.seed])

    def values(self, name: str, loss: str, lr: float | None, seeds: Iterable[int] = SEEDS) -> np.ndarray | None:
        """Gain of each seed and question, mean over checkpoints, [seeds, questions]; None where one is not there."""
        jobs = [Job(called(name), loss, lr, seed) for seed in seeds] if lr is not None else []
        if not jobs or any(job not in self.runs for job in jobs):
            return None
        return np.stack([self.gains(job).mean(0) for job in jobs])

    def estimate(self, name: str, loss: str, lr: float | None) -> Estimate | None:
        """The primary outcome, over seeds."""
        values = self.values(name, loss, lr)
        return None if values is None else intervals.estimate(values)

    def best_checkpoint(self, name: str, loss: str, lr: float) -> float:
        """Points of the best checkpoint, mean over seeds."""
        every = (self.gains(Job(called(name), loss, lr, seed)) for seed in SEEDS)
        return fmean(100 * float(gains.mean(1).max()) for gains in every)

    def searched(self, loss: str, name: str) -> dict[float, float]:
        """Gain in the search by rate."""
        return study_plan.searched(loss, name, self.gained)

    def rate(self, loss: str, name: str, names: Sequence[str] = TABLE, *, own: bool = True) -> float | None:
        """The rate chosen on this set alone, or (own=False) on all of `names`; None as long as the search goes on."""
        if study_plan.missing_rates(loss, names, self.gained):
            return None
        return study_plan.rates_of(loss, name, names, self.gained)[own]

    def of_sets(self, name: str, what: str, seeds: Iterable[int] = SEEDS) -> float | None:
        """A number of a set's record, mean over seeds; "right.own" for one inside."""
        records: list[Any] = [self.sets.get((seed, called(name))) for seed in seeds]
        for key in what.split("."):
            records = [record and record[key] for record in records]
        return None if any(record is None for record in records) else fmean(records)

    @property
    def n_left(self) -> int:
        """Runs that are known to be left."""
        return len([*study_plan.wanted(self.gained)])


def cell(value: object) -> str:
    """For a table: a dash where there is nothing."""
    return number(None) if value is None else str(value)


def difference(found: Found, loss: str, arms: tuple[str, str], rates: tuple[float | None, float | None]) -> Any:
    """Gain on the first set minus that on the second, over seeds; None where a run is not there."""
    first, second = (found.values(name, loss, lr) for name, lr in zip(arms, rates, strict=True))
    return None if first is None or second is None else intervals.estimate(first - second)


WORDS = {
    "for": "The interval is above 0, and the difference is of interest",
    "against": f"A difference of interest, {intervals.OF_INTEREST:g} points or more, is excluded",
    "undecided": "Undecided: the interval excludes neither 0 nor a difference of interest",
}


def said(estimate: Estimate) -> str:
    """A difference in words."""
    return f"{WORDS[intervals.verdict(estimate)]}: {estimate} points"


# --- the control ---------------------------------------------------------------------------------------------------


def control(found: Found) -> Table:
    """CLAIR against the repair of another sample."""
    rows = []
    for loss in OBJECTIVES:
        rates = tuple(found.rate(loss, name) for name in ARMS)
        gained = [found.estimate(name, loss, rate) for name, rate in zip(ARMS, rates, strict=True)]
        differs = difference(found, loss, ARMS, (rates[0], rates[1]))
        verdict = cell(None) if differs is None else intervals.verdict(differs)
        rows.append(
            (loss, *(f"{rate:g}" if rate else cell(None) for rate in rates), *map(cell, gained), cell(differs), verdict)
        )
    same = found.of_sets("another-sample", "same_as_clair")
    exact = found.of_sets("another-sample", "exact_winners")
    notes = []
    if same is not None and exact is not None:
        notes.append(
            f"Of the control's pairs {100 * same:.0f} % are CLAIR's, since B has A's phrasing; {100 * exact:.0f} % of "
            "its winners are exact."
        )
    header = ("objective", "rate, clair", "rate, another-sample", *ARMS, "difference", "minimal contrast helps")
    return Table("control", "The repair of the loser, and the repair of another sample", header, rows, 1, notes)


# --- the grid ------------------------------------------------------------------------------------------------------


def grid(found: Found) -> Table:
    """Every objective on every set, at the rate of the objective and at that of the set."""
    rows = []
    for name in TABLE:
        for loss in OBJECTIVES:
            shared, own = (found.rate(loss, name, own=own) for own in (False, True))
            estimates = [found.estimate(name, loss, rate) for rate in (shared, own)]
            top = None if estimates[1] is None or own is None else found.best_checkpoint(name, loss, own)
            rows.append((
                name, loss, f"{shared:g}" if shared else cell(None), cell(estimates[0]),
                f"{own:g}" if own else cell(None), cell(estimates[1]), number(top, 1, sign=True),
            ))  # fmt: skip
    header = ("data", "objective", "its rate", "mean Δ", "rate on this set", "mean Δ", "best checkpoint Δ")
    notes = [
        f"Points over the model before training, mean over checkpoints, {len(SEEDS)} seeds, with the bootstrap's 95 % "
        "interval over seeds and questions and half the t interval over seeds. The first rate is the objective's, one "
        "for all sets; the second is this set's own. The best checkpoint is chosen on the same questions, and on noise."
    ]
    return Table("grid", "Gain over the base model (Table 2)", header, rows, 2, notes)


def rates(found: Found) -> Table:
    """The curve over rates of each search."""
    rows = []
    for loss, names in (*((x, TABLE) for x in OBJECTIVES), *((x, study_plan.REVISED_SETS) for x in study_plan.REVISED)):
        means = study_plan.means(loss, names, found.gained)
        by_set = {name: found.searched(loss, name) for name in names}
        for rate in sorted(set().union(*by_set.values())):
            gained = [number(by_set.get(name, {}).get(rate), 1, sign=True) for name in TABLE]
            taken = ", taken" if rate == found.rate(loss, names[0], names, own=False) else ""
            rows.append((loss, f"{rate:g}{taken}", number(means.get(rate), 1, sign=True), *gained))
    notes = [
        "Points over the model before training, mean over checkpoints, one seed, on prompts and questions that no "
        "other table uses."
    ]
    return Table("rates", "Gain by learning rate, in the search", ("objective", "rate", "mean", *TABLE), rows, 2, notes)


# --- claims --------------------------------------------------------------------------------------------------------


def claims(found: Found) -> Table | None:
    """The paper's claims on tables, at each objective's rate; None where runs of them are left."""
    counts: dict[str, list[tuple[str, bool]]] = {}
    chosen = {loss: found.rate(loss, TABLE[0], own=False) for loss in OBJECTIVES}
    for seed in SEEDS:
        gained = dict[tuple[str, str], float]()
        for name in TABLE:
            for loss, rate in chosen.items():
                values = found.values(name, loss, rate, [seed])
                if values is None:
                    return None
                if name != "another-sample":  # the paper has no such set
                    gained[name, loss] = 100 * float(values.mean())
        measures = [
            {name: float(found.sets[seed, called(name)][what]) for name in TABLE if name != "another-sample"}
            for what in ("jaccard", "levenshtein")
        ]
        for claim, is_so in (findings.of_contrast(*measures) | findings.of_gains(gained)).items():
            counts.setdefault(claim, []).append(("", is_so))
    return findings.table(counts, over="seeds, each objective at its rate for all sets")


def trajectories(found: Found) -> Table | None:
    """Figure 4's claims at each of the rates that are the same for all objectives; None where none is there."""
    rows, by_claim = [], dict[str, list[list[str]]]()
    for rate in SHARED_RATES:
        for name in TABLE:
            three = [
                found.runs.get(Job(called(name), loss, rate, TUNING_SEED)) for loss in ("apo_zero", "apo_down", "dpo")
            ]
            if any(run is None or "failed" in run for run in three):
                continue
            for claim, is_so in findings.of_trajectories(*(trajectory(run) for run in three if run)).items():
                held = by_claim.setdefault(claim, [[] for _ in range(2 * len(SHARED_RATES))])
                held[2 * SHARED_RATES.index(rate) + (not is_so)].append(name)
    if not by_claim:
        return None
    for claim, held in by_claim.items():
        cells = []
        for yes, no in zip(held[::2], held[1::2], strict=True):
            cells.append(f"{len(yes)} of {len(yes) + len(no)}" + (f" (not {', '.join(no)})" if yes and no else ""))
        rows.append((claim + (", by construction" if claim in findings.BY_CONSTRUCTION else ""), *cells))
    header = ("claim of section 5.4", *(f"all at {rate:g}" for rate in SHARED_RATES))
    notes = ["In how many of the sets, one seed; rates were fixed before, and are the same for all objectives."]
    return Table("trajectories", "How far rewards move, at one rate for all (Figure 4)", header, rows, 1, notes)


def trajectory(run: Mapping[str, Any]) -> Trajectory:
    """A record's held-out lines."""
    held = run["heldout"]
    return Trajectory(held["logps"], held["rewards"], held["epoch"])


# --- the curve -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Point:
    """A point of the curve: a set, and APO-zero minus APO-down on it."""

    name: str
    x: float
    """Share of pairs in which the model's own answer is better than the winner, mean over seeds."""
    values: np.ndarray
    """[seeds, questions]"""
    rates: tuple[float, float]
    gained: tuple[Estimate, Estimate]

    @property
    def difference(self) -> Estimate:
        """APO-zero minus APO-down."""
        return intervals.estimate(self.values)


def point(found: Found, name: str) -> Point | None:
    """None where a run of it is left."""
    chosen = [study_plan.curve_rate(loss, called(name), found.gained) for loss in ("apo_zero", "apo_down")]
    both = [found.values(name, loss, rate) for loss, rate in zip(("apo_zero", "apo_down"), chosen, strict=True)]
    x = found.of_sets(name, "own_better")
    if x is None or both[0] is None or both[1] is None or chosen[0] is None or chosen[1] is None:
        return None
    gained = intervals.estimate(both[0]), intervals.estimate(both[1])
    return Point(name, x, both[0] - both[1], (chosen[0], chosen[1]), gained)


def lines(found: Found) -> dict[str, list[Point]]:
    """The points that are there, by line."""
    made = {line: [point(found, f"{line}-{share}") for share in POINTS] for line in LINES}
    return {line: [p for p in points if p] for line, points in made.items()}


def curve(found: Found) -> Table:
    """Every point."""
    rows = []
    for name in study_plan.points():
        p = point(found, name)
        if p is None:
            rows.append((name, *[cell(None)] * 7))
            continue
        rows.append((
            name, number(100 * p.x, 0), f"{p.rates[0]:g}", str(p.gained[0]), f"{p.rates[1]:g}", str(p.gained[1]),
            str(p.difference), intervals.verdict(p.difference),
        ))  # fmt: skip
    header = (
        "data",
        "own better, %",
        "rate",
        "apo_zero",
        "rate",
        "apo_down",
        "apo_zero - apo_down",
        "apo_zero is better",
    )
    return Table("curve", "When is APO-down right?", header, rows, 1, [*crossings(found)])


def crossings(found: Found) -> list[str]:
    """Where each line that is whole changes its sign, in words."""
    made = []
    for line, points in lines(found).items():
        if len(points) < len(POINTS):
            continue
        at, missed = intervals.crossing([p.x for p in points], [p.values for p in points])
        if at is None:
            signs = ", ".join(f"{p.difference.mean:+.1f}" for p in points)
            made.append(f"{line}: no crossing ({100 * missed:.0f} % of draws have none; differences {signs}).")
        else:
            made.append(
                f"{line}: APO-down is better from a share of {at.at:.2f} on ({at.low:.2f} to {at.high:.2f}; "
                f"{100 * missed:.0f} % of draws do not cross)."
            )
    return made


# --- side questions ------------------------------------------------------------------------------------------------


def habit(found: Found) -> Table:
    """The second world."""
    rows = []
    for loss in study_plan.OF_HABIT:
        names = ("clair", "stronger-preferred", study_plan.HABIT)
        chosen = [found.rate(loss, name, TABLE if name in TABLE else (name,)) for name in names]
        gained = [found.estimate(name, loss, rate) for name, rate in zip(names, chosen, strict=True)]
        hurts = cell(None)
        if gained[0] and gained[2]:
            hurts = "yes" if gained[0].low > 0 > gained[2].high else "no"
        rows.append((loss, *map(cell, gained), hurts))
    header = ("objective", "clair", "stronger-preferred", "stronger-habit", "gains on clair and loses on the habit")
    right = found.of_sets(study_plan.HABIT, "exact_winners")
    notes = [] if right is None else [f"{100 * right:.0f} % of the habit's winners are in the order asked."]
    return Table("habit", "Imitation with a price", header, rows, 1, notes)


def revised(found: Found) -> Table:
    """Objectives of revisions beside the plain ones."""
    rows = []
    for plain in study_plan.REVISED:
        for loss in (plain.removesuffix("_revised"), plain):
            names = study_plan.REVISED_SETS
            asked = names if loss == plain else TABLE
            chosen = [found.rate(loss, name, asked) for name in names]
            gained = [found.estimate(name, loss, rate) for name, rate in zip(names, chosen, strict=True)]
            shown = [f"{rate:g}" if rate else cell(None) for rate in chosen]
            rows.append((loss, shown[0], cell(gained[0]), shown[1], cell(gained[1])))
    header = ("objective", "rate", "clair", "rate", "stronger-preferred")
    return Table("revised", "Objectives of revisions", header, rows, 1)


def strengths(found: Found) -> Table:
    """How much a revision changes, and what it teaches."""
    rows = []
    for name in ("clair-light", "clair", "clair-strong"):
        rate = found.rate("apo_zero", name, TABLE if name == "clair" else (name,))
        measured = [found.of_sets(name, what) for what in ("right.chosen", "jaccard", "levenshtein")]
        rows.append((
            STRENGTHS.get(name, "standard"), number(measured[0] and 100 * measured[0], 0),
            number(measured[1] and 100 * measured[1], 1), number(measured[2], 1),
            f"{rate:g}" if rate else cell(None), cell(found.estimate(name, "apo_zero", rate)),
        ))  # fmt: skip
    header = ("strength", "facts right in winners, %", "Jaccard of tokens, %", "Levenshtein", "rate", "mean Δ")
    return Table("strengths", "Strength of revision, APO-zero", header, rows, 1)


def unpaired(found: Found) -> Table:
    """Table 5: KTO and APO-zero on labelled responses."""
    rows = []
    for loss, like in study_plan.UNPAIRED.items():
        rate = found.rate(like, "clair", own=False)
        gained = found.estimate("clair", loss, rate)
        seconds = None
        if gained is not None and rate is not None:
            runs = [found.runs[Job("clair", loss, rate, seed)] for seed in SEEDS]
            seconds = None if any("failed" in run for run in runs) else fmean(r["seconds"]["steps"] for r in runs)
        rows.append((loss, f"{rate:g}" if rate else cell(None), number(seconds, 0), cell(gained)))
    header = ("objective", "rate", "seconds of steps", "mean Δ")
    return Table("table-5", "KTO and APO-zero unpaired (Table 5)", header, rows, 1)


def sets(found: Found) -> Table:
    """What each set is like (Table 1, and who is better)."""
    names = [*TABLE, study_sets.SAME_AS["judge-off-policy"], study_plan.EARLIER_SET, study_plan.HABIT, *STRENGTHS]
    rows = []
    for name in dict.fromkeys(names):
        shares = [found.of_sets(name, f"right.{who}") for who in ("chosen", "rejected", "own")]
        better = [found.of_sets(name, what) for what in ("winner_better", "own_better")]
        rows.append((
            name, number(found.of_sets(name, "pairs"), 0), *(number(x and 100 * x, 0) for x in (*shares, *better)),
            number((j := found.of_sets(name, "jaccard")) and 100 * j, 1), number(found.of_sets(name, "levenshtein"), 1),
        ))  # fmt: skip
    header = ("data", "pairs", "winner right, %", "loser right, %", "own right, %", "winner better, %", "own better, %",
              "Jaccard of tokens, %", "Levenshtein, characters")  # fmt: skip
    notes = ["Means over seeds. Own better: half of the pairs in which both have as many facts right are counted."]
    return Table("sets", "The pairs (Table 1)", header, rows, 1, notes)


def before(found: Found) -> list[str]:
    """Exact answers before training, %, of each seed that is there."""
    made = []
    for seed in (*SEEDS, TUNING_SEED):
        if seed in found.bases:
            n = study_plan.questions(seed).n
            made.append(f"{100 * unpack(found.bases[seed]['exact'], n).mean():.1f} (seed {seed})")
    return made
