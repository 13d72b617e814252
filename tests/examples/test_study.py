"""The miniature's study: which runs are wanted in which order, what its records say, and the page that they make."""

import numpy as np
import pytest

from eval.tables import DASH, Table
from examples import intervals
from examples.miniature import model, score, sets, study, study_page, study_plan, study_sets, study_tables, world
from examples.miniature.study_found import Found
from examples.miniature.study_plan import ARMS, CORE, CORE_SEEDS, OBJECTIVES, SEEDS, SHARED_RATES
from examples.miniature.study_run import pack, unpack
from examples.miniature.study_sets import LINES, TABLE, TUNING_SEED
from examples.studies import LADDER, Job, best, digest
from system import InputError, RunError

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
    bases, runs, gained = {seed: base(seed) for seed in (*CORE_SEEDS, TUNING_SEED)}, {}, {}
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
    assert list(dict.fromkeys(job.loss for job in order[:first])) == list(CORE)
    core = [job for job in order if job.loss in CORE and job.set in ARMS and job.seed != TUNING_SEED]
    assert order[first : first + len(core)] == core and {job.seed for job in core} == set(CORE_SEEDS)
    assert {job.seed for job in order if job not in core} == {*SEEDS, TUNING_SEED}
    assert max(i for i, job in enumerate(order) if job.loss in CORE and job.set in TABLE) < order.index(
        next(job for job in order if job.loss not in CORE)
    )
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
    like = {"pairs": 250, "own_better": 0.5, "ordinary_better": 0.4, "winner_better": 0.4,
            "exact_winners": 1.0, "same_as_clair": 0.3, "jaccard": 0.5, "levenshtein": 30.0,
            "right": {"chosen": 0.9, "rejected": 0.5, "own": 0.6}}  # fmt: skip
    made = {(job.seed, job.set): dict(like) for job in runs}
    for (_, name), one in made.items():
        if name == "clair":
            one |= {"jaccard": 0.8, "levenshtein": 9.0}
        line, _, at = name.rpartition("-")
        if line in study_plan.LINES:
            one["own_better"] = float(at)
    return Found(runs, bases, made)


def test_the_control_is_a_difference_with_its_intervals(whole):
    table = study_tables.control(as_found(whole))
    rows = {row[0]: row[1:] for row in table.rows}
    assert rows["apo_zero"][0:2] == ("0.0001", "0.0001")
    assert rows["apo_zero"][4].startswith("+10.0 (") and rows["apo_zero"][5] == "for"
    assert rows["dpo"][4].startswith("+0.0 (+0.0 to +0.0") and rows["dpo"][5] == "against"
    assert "30 % of the control's pairs equal CLAIR's" in table.notes[0]
    assert table.notes[1].startswith(
        "apo_zero, in the search (one seed), the difference at one rate for both: 1e-05 +10"
    )


def test_a_point_of_the_curve_is_searched_until_its_best_rate_has_one_on_either_side():
    job = Job("shift-near-0.1", "apo_zero", 1e-4, TUNING_SEED)
    gained = {job._replace(lr=lr): float(i) for i, lr in enumerate(study_plan.CURVE_RATES["apo_zero"])}
    assert study_plan.missing_curve_rates("apo_zero", job.set, gained) == [3e-4]
    assert study_plan.curve_rate("apo_zero", job.set, gained) is None
    assert study_plan.curve_rate("apo_zero", job.set, gained | {job._replace(lr=3e-4): 1.5}) == 1e-4


@pytest.mark.parametrize(
    ("clair", "habit", "said"),
    [((3, 9), (-9, -3), "yes"), ((3, 9), (-8, 2), "undecided"), ((3, 9), (1, 9), "no"), ((-9, -3), (-9, -3), "no")],
)
def test_whether_imitation_hurts_may_be_undecided(clair, habit, said):
    made = [intervals.Estimate(sum(ends) / 2, *ends, None, ()) for ends in (clair, habit)]
    assert study_tables.hurts(*made) == said


def test_a_stronger_model_with_a_habit_is_right_and_never_in_the_order_asked():
    for question in world.questions(200, 0):
        said = sets.stronger_with_a_habit(question.prompt)
        assert world.n_right(question, said) == 4 and not world.is_exact(question, said)


@pytest.mark.slow
def test_sentences_follow_the_numbers(whole, monkeypatch):
    text = study_page.page(as_found(whole))
    assert (
        "**apo_zero**, CLAIR minus the control. Both intervals are above 0, and the difference is of interest" in text
    )
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
    assert "**Not complete yet**: 7 runs are on record" in text and "| clair | apo\\_zero | – | – |" not in text
    assert "Not all of these runs are finished." in text
    assert "Nothing" not in study_page.page(Found({}, {}, {}))


@pytest.fixture
def seed(tmp_path, monkeypatch):
    """A seed whose model answers as its corpus does."""

    def answer(folder, questions, *, temperature, seed):
        rng = np.random.default_rng(seed)
        return [world.noisy_answer(q, rng) for q in questions]

    monkeypatch.setattr(study_sets, "answer", answer)
    monkeypatch.setattr(study_sets.Seed, "base", tmp_path)
    monkeypatch.setattr(study_sets, "N_SIMULATED", 400)
    return study_sets.Seed(0, tmp_path / "out", tmp_path / "records", n=200)


def test_the_control_is_the_repair_of_another_sample_over_the_same_losers(seed):
    clair, control = seed.pairs("clair"), seed.pairs("another-sample")
    assert len(clair) == len(control) == 200 and [p[0::2] for p in clair] == [p[0::2] for p in control]
    for pairs in (clair, control):
        assert all(world.is_exact(p.question, p.chosen) and not world.is_exact(p.question, p.rejected) for p in pairs)
    assert all(p.chosen == world.revise(p.question, p.rejected) for p in clair)
    assert 0.2 < np.mean([a.chosen == b.chosen for a, b in zip(clair, control, strict=True)]) < 0.5


@pytest.mark.parametrize("line", LINES)
@pytest.mark.parametrize("share", [0.1, 0.9])
def test_a_point_of_the_curve_has_winners_of_its_quality_and_losers_below_them(seed, line, share):
    pairs = seed.pairs(f"{line}-{share}")
    right = [[world.n_right(p.question, text) for text in (p.own, p.chosen, p.rejected)] for p in pairs]
    own, won, lost = np.array(right).T
    assert len(pairs) == 200 and (own == 3).all() and (won >= 2).all() and (lost < won).all()
    assert np.mean([p.own_is_better for p in pairs]) == pytest.approx(share, abs=0.08)
    if line.endswith("near"):
        assert (won - lost == 1).all()
    else:
        assert lost.mean() < 0.5


def test_too_few_prompts_are_an_error(seed):
    seed.n = 449
    with pytest.raises(RunError, match=r"clair, seed 0: the prompts give \d+ pairs, not 449"):
        seed.pairs("clair")


def test_rows_of_which_nothing_is_known_are_counted_and_not_shown():
    rows = [("a", "b", "1", ""), ("a", "c", DASH, ""), ("b", "c", DASH, DASH)]
    table = Table("t", "T", ("", "", "", ""), rows, 2, ["a note"])
    shown = study_page.with_what_is_known(table)
    assert shown.rows == rows[:1]
    assert shown.notes == ["a note", "2 rows are omitted because some of their runs are not finished."]
    assert study_page.with_what_is_known(Table("t", "T", ("", "", "", ""), rows[1:], 2)) is None


@pytest.mark.slow
def test_the_page_is_what_its_records_give():
    records = study.read(study_page.DOCS.parent / study.RECORDS)
    made = study_page.page(Found(records.runs, records.bases, records.sets))
    assert (study_page.DOCS / "paper.md").read_text() == made, "run python -m examples.miniature.study_page"


def test_an_empty_sample_makes_no_pair(seed, monkeypatch):
    drawn = study_sets.answer

    def answer(folder, questions, **asked):
        made = drawn(folder, questions, **asked)
        return made if asked["seed"] == 1000 + seed.number else ["" if i % 2 else text for i, text in enumerate(made)]

    monkeypatch.setattr(study_sets, "answer", answer)
    seed.n = 100
    empty = {q.prompt for q, text in zip(seed.questions, seed.samples(1), strict=True) if not text}
    for name in ("judge-on-policy", "another-sample"):
        pairs = seed.pairs(name)
        assert len(pairs) == 100 and not any(p.question.prompt in empty for p in pairs)
    assert len(empty) == 225


def test_samples_are_on_record_and_pairs_are_made_of_them_anew(seed, tmp_path, monkeypatch):
    first = seed.file("another-sample").read_bytes()
    again = study_sets.Seed(0, tmp_path / "elsewhere", tmp_path / "records", n=200)
    monkeypatch.setattr(study_sets, "answer", None)  # nobody is asked
    assert again.file("another-sample").read_bytes() == first
    records = study.read(tmp_path / "records")
    records.add("set", {"seed": 0, "set": "another-sample", "sha256": digest(seed.file("another-sample"))})
    records.check(0, "another-sample", again.file("another-sample"))
    stale = again.file("another-sample")
    stale.write_text("{}\n")
    with pytest.raises(InputError, match="holds other pairs"):
        records.check(0, "another-sample", stale)
    assert again.file("another-sample").read_bytes() == first  # it is made of what is on record


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


@pytest.mark.slow
def test_a_base_is_trained_once_and_kept_in_bfloat16(tmp_path, monkeypatch):
    monkeypatch.setattr(model, "STEPS", 2)
    first = study_sets.Seed(5, tmp_path / "out", tmp_path / "records")
    held = {path.name: path.read_bytes() for path in first.base.iterdir()}
    assert set(held) == set(study_sets.OF_MODEL) and "bfloat16" in held["config.json"].decode()
    monkeypatch.setattr(study_sets.model, "base_model", None)  # it is on record
    again = study_sets.Seed(5, tmp_path / "elsewhere", tmp_path / "records")
    assert {path.name: path.read_bytes() for path in again.base.iterdir()} == held
    assert len(score.answer(again.base, again.questions[:3], temperature=1.0, seed=1)) == 3
