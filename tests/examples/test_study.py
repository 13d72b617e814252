"""The miniature's study: which runs are wanted in which order, what its records say, and the page that they make."""

import numpy as np
import pytest

from examples.miniature import study, study_page, study_plan, study_tables
from examples.miniature.study_plan import OBJECTIVES, SEEDS, SHARED_RATES
from examples.miniature.study_run import pack, unpack
from examples.miniature.study_sets import TABLE, TUNING_SEED
from examples.miniature.study_tables import Found
from examples.studies import LADDER, Job, best

BEST = {"apo_zero": 1e-4, "dpo": 1e-5, "apo_down": 3e-6, "kto_pair": 3e-5, "sft": 3e-4}


def share(job):
    """Exact answers of a made-up world: best at an objective's rate, a half-decade off costs five points; CLAIR is
    worth ten points more under APO-zero.
    """
    steps = abs(LADDER.index(job.lr) - LADDER.index(BEST.get(job.loss.removesuffix("_revised"), 1e-4)))
    return 0.6 - 0.05 * steps + 0.1 * (job.set == "clair" and job.loss == "apo_zero")


def found(job):
    """A record of a run in that world: the first answers are exact."""
    n = study_plan.questions(job.seed).n
    exact = pack(np.arange(n) < round(n * share(job)))
    held = {side: [0.0, sign] for side, sign in (("chosen", 1.0), ("rejected", -1.0))}
    return {
        **job._asdict(), "epochs": [{"exact": exact, "right": 0.9}] * 2, "seconds": {"steps": 9.0},
        "heldout": {"epoch": [0.0, 1.0], "logps": held, "rewards": held},
    }  # fmt: skip


def base(seed):
    n = study_plan.questions(seed).n
    return {"kind": "base", "seed": seed, "exact": pack(np.arange(n) < n // 10), "right": 0.6}


def done(until=lambda runs, job: False):
    """All runs of the study in that world, each when it is wanted; until: ends it."""
    bases, runs, gained = {seed: base(seed) for seed in (*SEEDS, TUNING_SEED)}, {}, {}
    while (job := next(study_plan.wanted(gained), None)) and not until(runs, job):
        runs[job] = found(job)
        gained[job] = study_plan.gain(job, runs[job], bases[job.seed])
    return runs, bases, gained


@pytest.fixture(scope="module")
def whole():
    return done()


def test_verdicts_are_packed_and_unpacked():
    verdicts = np.random.default_rng(0).integers(0, 2, 203).astype(bool)
    assert (unpack(pack(verdicts), 203) == verdicts).all() and len(pack(verdicts)) == 36


def test_a_gain_is_over_the_model_before_training_question_by_question():
    job = Job("clair", "apo_zero", 1e-4, 0)
    assert study_plan.gain(job, found(job), base(0)) == pytest.approx(60)
    assert study_plan.gain(job, {"failed": "the loss is no number"}, base(0)) == pytest.approx(
        -10
    )  # all that it could is lost


def test_a_search_has_two_rates_on_either_side_of_the_best(whole):
    for loss in OBJECTIVES:
        for name in TABLE:
            by_rate = study_plan.searched(loss, name, whole[2])
            assert best(by_rate) == BEST[loss]
            at = LADDER.index(BEST[loss])
            assert by_rate.keys() >= {*SHARED_RATES, *LADDER[at - 2 : at + 3]}


def test_a_search_ends_where_the_ladder_does(monkeypatch):
    monkeypatch.setitem(BEST, "dpo", LADDER[0])
    _, _, gained = done(lambda runs, job: job.loss not in ("apo_zero", "dpo"))
    assert min(study_plan.searched("dpo", "clair", gained)) == LADDER[0]
    assert study_plan.missing_rates("dpo", TABLE, gained) == []


def test_what_is_never_cut_comes_first_and_searches_before_what_they_choose(whole):
    order = [*whole[2]]
    first = order.index(next(job for job in order if job.seed in SEEDS))
    assert {job.loss for job in order[:first]} == set(OBJECTIVES)
    assert list(dict.fromkeys(job.loss for job in order[:first])) == list(OBJECTIVES)
    assert order[0][:2] == ("clair", "apo_zero")
    curve = [i for i, job in enumerate(order) if job.set.startswith("mix")]
    assert min(curve) > max(i for i, job in enumerate(order) if job.loss == "sft" and job.set in TABLE)


def test_nothing_is_run_twice_and_seeds_take_the_rates_of_the_search(whole):
    order = [*whole[2]]
    compared = {job for job in order if job.seed == 1 and job.loss == "apo_down" and job.set == "clair"}
    assert compared == {Job("clair", "apo_down", 3e-6, 1)}
    assert "judge-off-policy" not in {job.set for job in order}  # it is a point of the curve


def as_found(whole):
    runs, bases, _ = whole
    like = {"pairs": 250, "own_better": 0.5, "winner_better": 0.4, "exact_winners": 1.0, "same_as_clair": 0.3,
            "jaccard": 0.5, "levenshtein": 30.0, "right": {"chosen": 0.9, "rejected": 0.5, "own": 0.6}}  # fmt: skip
    sets = {(job.seed, job.set): dict(like) for job in runs}
    for (_, name), one in sets.items():
        if name == "clair":
            one |= {"jaccard": 0.8, "levenshtein": 9.0}
        line, _, at = name.rpartition("-")
        if line in study_plan.LINES:
            one["own_better"] = float(at)
    return Found(runs, bases, sets)


def test_the_control_is_a_difference_with_its_intervals(whole):
    table = study_tables.control(as_found(whole))
    rows = {row[0]: row[1:] for row in table.rows}
    assert rows["apo_zero"][0:2] == ("0.0001", "0.0001")
    assert rows["apo_zero"][4].startswith("+10.0 (") and rows["apo_zero"][5] == "for"
    assert rows["dpo"][4].startswith("+0.0 (+0.0 to +0.0") and rows["dpo"][5] == "against"
    assert "30 % are CLAIR's" in table.notes[0]


@pytest.mark.slow
def test_sentences_follow_the_numbers(whole, monkeypatch):
    text = study_page.page(as_found(whole))
    assert "**apo_zero**, CLAIR minus the control. The interval is above 0, and the difference is of interest" in text
    assert "**dpo**, CLAIR minus the control. A difference of interest, 5 points or more, is excluded" in text
    assert "Not complete yet" not in text and "no crossing" in text


def test_claims_are_counted_and_those_that_could_not_fail_are_marked(whole):
    rows = {row[0]: row[1:] for row in study_tables.claims(as_found(whole)).rows}
    assert rows["CLAIR with APO-zero has the best mean of all cells"][:2] == ("holds here", "3 of 3")
    contrast = next(row for claim, row in rows.items() if claim.startswith("CLAIR has the best contrast"))
    assert contrast[0] == "holds here, by construction"


def test_a_study_that_has_begun_has_a_page_with_dashes():
    runs, bases, _ = done(lambda runs, job: len(runs) == 7)
    text = study_page.page(Found(runs, bases, {}))
    assert "**Not complete yet**: 7 runs are on record" in text and "| clair | apo\\_zero | – | – |" in text
    assert "Its runs are not all on record yet." in text
    assert "Nothing" not in study_page.page(Found({}, {}, {}))


def test_records_are_read_again(tmp_path):
    job = Job("clair", "apo_zero", 1e-4, 1000)
    records = study.read(tmp_path)
    records.add("base", base(1000))
    records.add("set", {"seed": 1000, "set": "clair", "pairs": 3})
    records.add("run", found(job))
    again = study.read(tmp_path)
    assert (again.runs, again.bases, again.sets) == (records.runs, records.bases, records.sets)
    assert again.gained == {job: pytest.approx(60.0)}
    assert again.runs[job]["seconds"] == {"steps": 9.0} and len(again.sets) == 1
    assert len((tmp_path / "seed-1000.jsonl").read_text().splitlines()) == 3
