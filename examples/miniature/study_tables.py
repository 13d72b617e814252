"""Tables of docs/paper.md, of the study's records alone; what is not on record yet is a dash, and said to be left.

Sentences that compare are made of numbers and their intervals, and change when they do.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from statistics import fmean
from typing import Any

import numpy as np

from eval.tables import Table, number
from examples import findings, intervals
from examples.findings import Trajectory
from examples.intervals import Estimate
from examples.miniature import study_plan
from examples.miniature.study_found import Found, apart_by_rate, cell, difference, of_control, of_rate, verdict
from examples.miniature.study_plan import ARMS, CORE, CORE_SEEDS, OBJECTIVES, SEEDS, SHARED_RATES, called
from examples.miniature.study_run import unpack
from examples.miniature.study_sets import LINES, POINTS, STRENGTHS, TABLE, TUNING_SEED
from examples.studies import Job

# --- the control ---------------------------------------------------------------------------------------------------


def control(found: Found) -> Table:
    """CLAIR against the repair of another sample."""
    rows = []
    for loss in OBJECTIVES:
        rates = tuple(found.rate(loss, name) for name in ARMS)
        gained = [found.estimate(name, loss, rate) for name, rate in zip(ARMS, rates, strict=True)]
        differs = of_control(found, loss)
        rows.append((loss, *map(of_rate, rates), *map(cell, gained), cell(differs), verdict(differs)))
    same, exact = (found.of_sets("another-sample", what, CORE_SEEDS) for what in ("same_as_clair", "exact_winners"))
    notes = []
    if same is not None and exact is not None:
        notes.append(
            f"{100 * same:.0f} % of the control's pairs equal CLAIR's, because the second sample happened to have the "
            f"first one's phrasing; {100 * exact:.0f} % of its winners are exact."
        )
    for loss in CORE:
        if apart := apart_by_rate(*(found.searched(loss, name) for name in ARMS)):
            notes.append(f"{loss}, in the search (one seed), the difference at one rate for both: {apart}.")
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
        f"Points over the model before training, mean over checkpoints, {len(SEEDS)} seeds, {len(CORE_SEEDS)} of "
        f"{' and '.join(CORE)} on {' and '.join(ARMS)}, with the bootstrap's 95 % interval over seeds and questions "
        "and half the t interval over seeds. The first rate is the objective's, one for all sets; the second is this "
        "set's own. The best checkpoint is chosen on the same questions, and on noise."
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
        "Points over the model before training, mean over checkpoints, one seed, on prompts and questions of the "
        "search's own."
    ]
    return Table("rates", "Gain by learning rate, in the search", ("objective", "rate", "mean", *TABLE), rows, 2, notes)


def side_rates(found: Found) -> Table:
    """The same of the side questions: strengths, and the points of the curve."""
    asked = [(name, "apo_zero") for name in STRENGTHS]
    asked += [(name, loss) for name in study_plan.points() for loss in study_plan.CURVE_RATES]
    rows = []
    for name, loss in asked:
        on_curve = name in study_plan.points()
        taken = study_plan.curve_rate(loss, name, found.gained) if on_curve else found.rate(loss, name, (name,))
        for lr, gained in found.searched(loss, name).items():
            rows.append((name, loss, f"{lr:g}{', taken' * (lr == taken)}", number(gained, 1, sign=True)))
    return Table("side-rates", "The same for the side questions", ("data", "objective", "rate", "mean Δ"), rows, 2)


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
    ordinary: float
    """The same of its ordinary answer A, which may have any number of facts right."""
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
    x, ordinary = (found.of_sets(name, what) for what in ("own_better", "ordinary_better"))
    if x is None or ordinary is None or both[0] is None or both[1] is None or chosen[0] is None or chosen[1] is None:
        return None
    gained = intervals.estimate(both[0]), intervals.estimate(both[1])
    return Point(name, x, ordinary, both[0] - both[1], (chosen[0], chosen[1]), gained)


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
            rows.append((name, *[cell(None)] * 8))
            continue
        rows.append((
            name, number(100 * p.x, 0), number(100 * p.ordinary, 0),
            f"{p.rates[0]:g}", str(p.gained[0]), f"{p.rates[1]:g}", str(p.gained[1]),
            str(p.difference), intervals.verdict(p.difference),
        ))  # fmt: skip
    header = (
        "data",
        "own better, %",
        "ordinary answer better, %",
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
        of_ordinary, _ = intervals.crossing([p.ordinary for p in points], [p.values for p in points])
        if at is None or of_ordinary is None:
            signs = ", ".join(f"{p.difference.mean:+.1f}" for p in points)
            made.append(f"{line}: no crossing ({100 * missed:.0f} % of draws have none; differences {signs}).")
        else:
            made.append(
                f"{line}: APO-down is better from a share of {at.at:.2f} on ({at.low:.2f} to {at.high:.2f}), which is "
                f"{of_ordinary.at:.2f} ({of_ordinary.low:.2f} to {of_ordinary.high:.2f}) by the model's ordinary "
                f"answers; {100 * missed:.0f} % of draws do not cross."
            )
    return made


# --- side questions ------------------------------------------------------------------------------------------------


def habit(found: Found) -> Table:
    """The second world."""
    rows = []
    for loss in study_plan.OF_HABIT:
        names = ("clair", "stronger-preferred", study_plan.HABIT)
        chosen = (*(found.rate(loss, name) for name in names[:2]), study_plan.habit_rate(loss, found.gained))
        compared = [(name, loss, rate) for name, rate in zip(names, chosen, strict=True)]
        gained = [found.estimate(*one) for one in compared]
        prices = [difference(found, compared[0], one) for one in compared[1:]]
        rows.append((loss, *map(cell, gained), *map(cell, prices), hurts(gained[0], gained[2])))
    header = ("objective", "clair", "stronger-preferred", "stronger-habit", "clair - stronger-preferred",
              "clair - stronger-habit", "gains on clair and loses on the habit")  # fmt: skip
    notes = []
    if (exact := found.of_sets(study_plan.HABIT, "exact_winners")) is not None:
        before = [100 * unpack(found.bases[s]["exact"], study_plan.questions(s).n).mean() for s in SEEDS]
        notes = [
            f"{100 * exact:.0f} % of the habit's winners are exact: a model that does nothing but imitate them ends "
            f"{100 * exact - fmean(before):+.1f} points from where it began; one that learns their facts and not their "
            f"order can gain {100 - fmean(before):.1f}."
        ]
    return Table("habit", "Imitation with a price", header, rows, 1, notes)


def hurts(on_clair: Estimate | None, on_habit: Estimate | None) -> str:
    """Whether an objective gains on the first and loses on the second: by both intervals each, or not by one."""
    if on_clair is None or on_habit is None:
        return cell(None)
    if intervals.is_above(on_clair) and intervals.is_below(on_habit):
        return "yes"
    return "no" if intervals.ends(on_clair)[1] <= 0 or intervals.ends(on_habit)[0] >= 0 else "undecided"


def revised(found: Found) -> Table:
    """Objectives of revisions minus the plain ones, each at its own rate."""
    rows = []
    for loss in study_plan.REVISED:
        plain = loss.removesuffix("_revised")
        for name in study_plan.REVISED_SETS:
            compared = [
                (name, loss, found.rate(loss, name, study_plan.REVISED_SETS)),
                (name, plain, found.rate(plain, name)),
            ]
            gained = [found.estimate(*one) for one in compared]
            apart = difference(found, compared[0], compared[1])
            shown = [x for (_, _, rate), g in zip(compared, gained, strict=True) for x in (of_rate(rate), cell(g))]
            rows.append((loss, name, *shown, cell(apart), verdict(apart)))
    header = (
        "objective",
        "data",
        "rate",
        "mean Δ",
        "rate of the plain one",
        "its mean Δ",
        "difference",
        "revised is better",
    )
    return Table("revised", "Objectives of revisions", header, rows, 2)


def strengths(found: Found) -> Table:
    """How much a revision changes, and what it teaches."""
    rows = []
    for name in ("clair-light", "clair", "clair-strong"):
        rate = found.rate("apo_zero", name, TABLE if name == "clair" else (name,))
        measured = [found.of_sets(name, what) for what in ("right.chosen", "jaccard", "levenshtein")]
        rows.append((
            STRENGTHS.get(name, "standard"), number(measured[0] and 100 * measured[0], 0),
            number(measured[1] and 100 * measured[1], 1), number(measured[2], 1),
            of_rate(rate), cell(found.estimate(name, "apo_zero", rate)),
            "" if name == "clair" else cell(difference(
                found, (name, "apo_zero", rate), ("clair", "apo_zero", found.rate("apo_zero", "clair"))
            )),
        ))  # fmt: skip
    header = ("strength", "facts right in winners, %", "Jaccard of tokens, %", "Levenshtein", "rate", "mean Δ",
              "minus standard")  # fmt: skip
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
    notes = ["Seconds are those of runs beside others, on machines that may differ."]
    return Table("table-5", "KTO and APO-zero unpaired (Table 5)", header, rows, 1, notes)


def sets(found: Found) -> Table:
    """What each set is like (Table 1, and who is better)."""
    names = [*TABLE, study_plan.HABIT, *STRENGTHS, *study_plan.points()]
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
    for seed in (*CORE_SEEDS, TUNING_SEED):
        if seed in found.bases:
            n = study_plan.questions(seed).n
            made.append(f"{100 * unpack(found.bases[seed]['exact'], n).mean():.1f} (seed {seed})")
    return made
