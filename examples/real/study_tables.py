"""Tables on the real model's study, of its records alone; what is not on record yet is a dash.

Sentences that compare are made of numbers and their intervals, and change when they do: tasks are resampled by topic
within their kind, and seeds apart from them.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

import numpy as np

from eval.tables import Table, number
from examples import intervals
from examples.intervals import Estimate
from examples.miniature.study_found import apart_by_rate, cell, of_rate, said, verdict
from examples.real import demo, measure, stronger, study_plan, study_run
from examples.real.study_plan import CORE, ONE_SEED, SEARCH_SEED, SEEDS
from examples.real.study_sets import ARMS, NAMES
from examples.studies import Job

OBJECTIVES = (*CORE, "sft", *ONE_SEED)
QUALITIES = {
    "kept": "rules kept by winners, %", "broken": "winners that repeat themselves, %",
    "characters": "characters of winners", "logp": "log-prob of winners, nats a token",
}  # fmt: skip


CONTRASTS = {"jaccard": "Jaccard of tokens, %", "levenshtein": "Levenshtein, characters"}


@dataclass(frozen=True)
class Found:
    """What is on record."""

    runs: Mapping[Job, Mapping[str, Any]]
    gained: Mapping[Job, float]
    bases: Mapping[int, Mapping[str, Any]]
    sets: Mapping[tuple[int, str], Mapping[str, Any]]

    def questions(self, how: str = "sampled") -> np.ndarray:
        """Weights of the test's tasks in draws, by topic within kind. how: answers are drawn."""
        tasks = study_run.tasks_of("test", how)
        return intervals.clustered(tuple(t.kind for t in tasks), tuple(stronger.topic_of(t.prompt) for t in tasks))

    def rate(self, loss: str, name: str) -> float | None:
        """The rate that is compared; None as long as it is searched for. SFT has that of CLAIR on both arms."""
        return study_plan.rate(loss, ARMS[0] if loss == "sft" else name, self.gained)

    def jobs(self, loss: str, name: str) -> list[Job]:
        """The runs that are compared, as far as they are there."""
        lr = self.rate(loss, name)
        every = [] if lr is None else [Job(name, loss, lr, seed) for seed in SEEDS]
        return [job for job in every if job in self.runs]

    def values(self, loss: str, name: str, what: str, how: str = "sampled") -> np.ndarray | None:
        """Verdicts ("kept", "broken", "sound") or "characters" of the runs that are compared, [seeds, tasks]. Of a run
        that could not go on, every answer is broken, and keeps nothing.
        """
        found = [answers_of(self.runs[job], job.seed, what, how) for job in self.jobs(loss, name)]
        return np.stack(found) if found else None

    def share(self, loss: str, name: str, what: str, how: str = "sampled") -> str:
        """A share in %, with its interval."""
        values = self.values(loss, name, what, how)
        return cell(None) if values is None else plain(intervals.estimate(values, self.questions(how)))

    def before(self, what: str, how: str = "sampled") -> str:
        """The same of the model before training."""
        if SEEDS[0] not in self.bases:
            return cell(None)
        values = answers_of(self.bases[SEEDS[0]], SEEDS[0], what, how)[None]
        return plain(intervals.estimate(values, self.questions(how)))

    def changes(self, job: Job, what: str) -> np.ndarray | None:
        """Of each of the "samples" or "texts" the change of its log-likelihood, nats, over the mean of their tokens:
        the mean of these is all nats over all tokens. None of a run that could not go on.
        """
        if job not in self.runs or "failed" in self.runs[job]:
            return None
        base = self.bases[job.seed]
        change = np.array(self.runs[job]["ordinary"][what]) - np.array(base["ordinary"][what])
        return change / fmean(base["tokens"][what])

    def price(self, job: Job, what: str) -> float | None:
        """Change of log-likelihood, nats a token: of "samples", or of "texts"."""
        changes = self.changes(job, what)
        return None if changes is None else float(changes.mean())

    def prices(self, loss: str, name: str, what: str) -> np.ndarray | None:
        """`changes` of the runs that are compared, [seeds, samples or texts]; None where a seed has none."""
        found = [x for job in self.jobs(loss, name) if (x := self.changes(job, what)) is not None]
        return np.stack(found) if len(found) == len(SEEDS) else None

    @property
    def n_left(self) -> int:
        """Runs that are known to be left."""
        return len([*study_plan.wanted(self.gained)])


def plain(estimate: Estimate) -> str:
    """A share and its interval, no difference."""
    return f"{estimate.mean:.1f} ({estimate.low:.1f} to {estimate.high:.1f})"


def answers_of(record: Mapping[str, Any], seed: int, what: str, how: str) -> np.ndarray:
    """Of each answer of a record whether it is `what`, or its characters, float [tasks]."""
    if "failed" in record:
        return np.full(len(study_run.tasks_of(study_plan.group(seed), how)), float(what == "broken"))
    if what == "characters":
        return np.array(record["answers"][how][what], float) / 100  # intervals are of percents
    return study_plan.verdicts(record, seed, how)[what].astype(float)


def difference(
    found: Found, loss: str, arms: Sequence[str] = ARMS, what: str = "sound", how: str = "sampled"
) -> Estimate | None:
    """The first set minus the second, each at its own rate, paired by task and seed; None where a seed is not there."""
    first, second = (found.values(loss, name, what, how) for name in arms)
    if first is None or second is None or not len(first) == len(second) == len(SEEDS):
        return None
    return intervals.estimate(first - second, found.questions(how))


def of_prices(found: Found, loss: str, what: str, arms: Sequence[str] = ARMS) -> Estimate | None:
    """The same of a price, hundredths of a nat a token."""
    first, second = (found.prices(loss, name, what) for name in arms)
    return None if first is None or second is None else intervals.estimate(first - second)


# --- the control ---------------------------------------------------------------------------------------------------


def control(found: Found) -> Table:
    """The primary outcome on both arms."""
    rows = []
    for loss in (*CORE, "sft"):
        rates = [found.rate(loss, name) for name in ARMS]
        differs = difference(found, loss)
        shares = [found.share(loss, name, "sound") for name in ARMS]
        rows.append((loss, *map(of_rate, rates), *shares, cell(differs), verdict(differs)))
    header = ("objective", "rate, clair", "rate, control", *ARMS, "difference, points", "minimal contrast helps")
    notes = [
        f"Answers at T {measure.TEMPERATURES['sampled']} that keep their rule and do not repeat themselves, %, mean "
        f"over {len(SEEDS)} seeds; before training: {found.before('sound')}. 95 % intervals: tasks resampled by topic "
        "within kind, seeds apart; beside it half the t interval over seeds. SFT has the rate that is best on CLAIR's "
        "winners on both arms. All seeds share the pairs: no interval covers another draw of A and B."
    ]
    for loss in CORE:
        if apart := apart_by_rate(*(study_plan.searched(loss, name, found.gained) for name in ARMS)):
            notes.append(f"{loss}, in the search (one seed, development topics), at one rate for both arms: {apart}.")
    return Table("control", "The repair of the loser, and the repair of another sample", header, rows, 1, notes)


def differences(found: Found) -> Table:
    """CLAIR minus the control in everything that is measured."""
    rows = []
    for loss in (*CORE, "sft"):
        answers = [difference(found, loss, what=what) for what in ("sound", "kept", "broken")]
        greedy = difference(found, loss, how="greedy")
        length = difference(found, loss, what="characters")
        prices = [of_prices(found, loss, what) for what in ("samples", "texts")]
        rows.append((loss, *map(cell, answers), cell(greedy), cell(length), *map(cell, prices)))
    header = ("objective", "kept and not repeating", "rules kept", "empty or repeating",
              "kept and not repeating, greedy", "characters", "price on samples", "price on texts")  # fmt: skip
    notes = ["Points; characters; and hundredths of a nat a token."]
    return Table("differences", "CLAIR minus the control", header, rows, 1, notes)


def quality(found: Found) -> Table:
    """Are the winners of both arms equally good?"""
    rows = []
    for what, title in (CONTRASTS | QUALITIES).items():
        means, differs = qualities(found, what)
        digits = 3 if what == "logp" else 1
        shown = cell(None) if differs is None else in_digits(differs, digits)
        rows.append((title, *(number(x, digits) for x in means), shown))
    sft = difference(found, "sft")
    rows.append(
        (
            "rules kept without repeating after SFT on winners, %",
            *(found.share("sft", name, "sound") for name in ARMS),
            cell(sft),
        )
    )
    header = ("", *ARMS, "difference")
    return Table("quality", "Are the winners equally good?", header, rows, 1)


Interval = tuple[float, float, float]
"""A mean and the ends of its 95 % interval."""


def in_digits(found: Interval, digits: int) -> str:
    """A difference in a table."""
    mean, low, high = (f"{x:+.{digits}f}" for x in found)
    return f"{mean} ({low} to {high})"


def qualities(found: Found, what: str) -> tuple[list[float | None], Interval | None]:
    """(the means of both arms' pairs, their difference with its 95 % bootstrap interval: pairs are resampled by topic
    within kind).
    """
    records = [found.sets.get((0, name)) for name in ARMS]
    if records[0] is None or records[1] is None:
        return [None, None], None
    factor = 100.0 if what in ("kept", "broken", "jaccard") else 1.0
    part = "contrast" if what in CONTRASTS else "winners"
    both = [factor * np.array(record[part][what], float) for record in records if record]
    apart = both[0] - both[1]  # the same prompts in the same order
    drawn = intervals.clustered(tuple(records[0]["kinds"]), tuple(records[0]["topics"])) @ apart
    low, high = np.quantile(drawn, (0.025, 0.975))
    mean, low, high = (round(float(x), intervals.DIGITS) for x in (apart.mean(), low, high))
    return [float(x.mean()) for x in both], (mean, low, high)


def differing(found: Found) -> list[str] | None:
    """What the winners of both arms differ in, by intervals that exclude 0; None where it is not known yet."""
    made = []
    for what, title in QUALITIES.items():
        _, differs = qualities(found, what)
        if differs is None:
            return None
        if differs[1] > 0 or differs[2] < 0:
            made.append(f"{title.partition(',')[0]} ({differs[0]:+.3g})")
    sft = difference(found, "sft")
    if sft is None:
        return None
    if sft.low > 0 or sft.high < 0:
        made.append(f"what SFT on them teaches ({sft})")
    return made


def in_words(found: Found) -> str:
    """The primary outcome in a sentence, and what it can be said of."""
    made = []
    for loss in CORE:
        differs = difference(found, loss)
        if differs is not None:
            made.append(f"**{loss}**, CLAIR minus the control. {said(differs)}.")
    if made and (apart := differing(found)) is not None:
        contrast = "; ".join(
            f"{CONTRASTS[what]}: {in_digits(d, 1)}" for what in CONTRASTS if (d := qualities(found, what)[1])
        )
        made.append(f"The arms differ in contrast: {contrast}.")
        made.append(
            f"This is contrast, with these differences: {'; '.join(apart)}."
            if apart
            else "The winners of both arms are equally good within the intervals of the table below."
        )
    return " ".join(made)


# --- everything else -----------------------------------------------------------------------------------------------


def results(found: Found) -> Table:
    """Every set and objective at its rate."""
    rows: list[tuple[str, ...]] = [(
        "before", "", "", "", found.before("kept"), found.before("sound"), found.before("sound", "greedy"),
        found.before("broken"), found.before("characters"), "", "",
    )]  # fmt: skip
    for name in NAMES:
        for loss in OBJECTIVES:
            jobs = found.jobs(loss, name)
            if not jobs and loss not in CORE:
                continue
            prices = [[p for job in jobs if (p := found.price(job, what)) is not None] for what in ("samples", "texts")]
            lr = found.rate(loss, name)
            rows.append((
                name, loss, of_rate(lr), str(len(jobs)), found.share(loss, name, "kept"),
                found.share(loss, name, "sound"), found.share(loss, name, "sound", "greedy"),
                found.share(loss, name, "broken"), found.share(loss, name, "characters"),
                *(number(fmean(p) if p else None, 3, sign=True) for p in prices),
            ))  # fmt: skip
    header = ("data", "objective", "rate", "seeds", "rules kept, %", "kept and not repeating, %", "the same, greedy, %",
              "empty or repeating, %", "characters", "price on samples, nats a token", "price on texts")  # fmt: skip
    notes = [
        "Means over seeds on topics that no pair has, with 95 % intervals. Prices are changes of log-likelihood: of "
        "samples of the model before training at temperature 1 without nucleus, which estimates minus KL(before || "
        "after) a token, and of texts that no model here wrote. Characters are means, of answers of 64 tokens at most."
    ]
    sizes = {name: found.sets[0, name]["pairs"] for name in NAMES if (0, name) in found.sets}
    if sizes:
        each = ", ".join(f"{name} {n}" for name, n in sizes.items())
        notes.append(f"Pairs, of which {demo.TRAINING['eval_pairs']} are held out: {each}.")
    return Table("results", "Every set and objective", header, rows, 2, notes)


def sides(found: Found) -> Table:
    """Differences between sets, the judge's and the stronger model's."""
    rows = []
    for first, second in (("clair-judged", "judged"), ("clair", "stronger")):
        for loss in CORE:
            apart = difference(found, loss, (first, second))
            rows.append((f"{first} - {second}", loss, cell(apart), verdict(apart)))
    header = ("data", "objective", "kept and not repeating, points", "the first is better")
    return Table("sides", "Other winners for the same losers", header, rows, 2)


def rates(found: Found) -> Table:
    """The curve over rates of each search."""
    rows = []
    for name in NAMES:
        for loss in OBJECTIVES:
            by_rate = study_plan.searched(loss, name, found.gained)
            taken = study_plan.rate(loss, name, found.gained)
            for lr, gained in by_rate.items():
                job = Job(name, loss, lr, SEARCH_SEED)
                prices = (number(found.price(job, what), 3, sign=True) for what in ("samples", "texts"))
                mark = ", taken" if lr == taken else ""
                rows.append((name, loss, f"{lr:g}{mark}", number(gained, 1, sign=True), *prices))
    header = (
        "data",
        "objective",
        "rate",
        "kept and not repeating, points over before",
        "price on samples",
        "price on texts",
    )
    notes = ["One seed, on development topics, which are in no pair and in no test."]
    return Table("rates", "Gain by learning rate, in the search", header, rows, 2, notes)


def fronts(found: Found, names: Iterable[str] = ARMS) -> dict[str, list[tuple[float, float, float]]]:
    """Points (price on samples, gain, rate) of each search, by "objective on set", the smallest rate first."""
    made: dict[str, list[tuple[float, float, float]]] = {}
    for name in names:
        for loss in OBJECTIVES:
            for lr, gained in study_plan.searched(loss, name, found.gained).items():
                price = found.price(Job(name, loss, lr, SEARCH_SEED), "samples")
                if price is not None:
                    made.setdefault(f"{loss} on {name}", []).append((price, gained, lr))
    return made
