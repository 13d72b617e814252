"""The real model's study: its plan, its stand-in for a stronger model, and pairs of a model that has three answers."""

from collections import Counter

import numpy as np
import pytest

from examples.miniature.study_run import pack
from examples.real import stronger, study_page, study_plan, study_sets, study_tables, task
from examples.real.study_plan import SEEDS, START
from examples.real.study_run import GROUPS
from examples.real.study_sets import ARMS, Sets
from examples.real.study_tables import Found
from examples.studies import LADDER, Job
from system import RunError


@pytest.mark.parametrize("topics", [task.TOPICS, task.HELDOUT_TOPICS, task.DEVELOPMENT_TOPICS], ids=len)
def test_the_stronger_model_keeps_every_rule_and_is_not_broken(topics):
    for one in task.tasks(topics, 180, seed=3):
        said = stronger.answer(one)
        assert one.is_kept(said) and not task.is_broken(said), (one, said)
        assert stronger.topic_of(one.prompt).lower() in said.lower()


def test_what_is_no_question_is_said():
    with pytest.raises(ValueError, match="no question in 'Hello'"):
        stronger.topic_of("Hello")


def gained_of(peak):
    """All runs of the study, each when it is wanted; the best rate of an objective is peak(loss, set)."""
    gained = {}
    while job := next(study_plan.wanted(gained), None):
        gained[job] = -abs(LADDER.index(job.lr) - LADDER.index(peak(job.loss, job.set)))
    return gained


@pytest.mark.parametrize("peak", [1e-6, 3e-6, 1e-5, 3e-5, 1e-4])
def test_a_search_has_four_rates_and_a_worse_one_on_either_side_of_the_best(peak):
    gained = gained_of(lambda loss, name: peak)
    rates = sorted(study_plan.searched("dpo", "control", gained))
    assert len(rates) >= 4 and set(START) <= set(rates) and rates[0] < peak < rates[-1]
    assert rates == [*LADDER[LADDER.index(rates[0]) : LADDER.index(rates[-1]) + 1]]  # none is left out between


def test_the_core_comes_first_and_each_arm_has_a_rate_of_its_own():
    best = {("apo_zero", "control"): 3e-5}
    gained = gained_of(lambda loss, name: best.get((loss, name), 1e-5))
    order = [*gained]
    core = [job for job in order if job.set in ARMS and job.loss in study_plan.CORE]
    assert len(core) == len(set(core)) == 2 * 2 * (4 + 3)
    first = [job for job in order if job.loss in ("apo_zero", "sft", "dpo") and job.set in ARMS]
    assert order[: len(first)] == first and list(dict.fromkeys(job.loss for job in first)) == ["apo_zero", "sft", "dpo"]
    assert list(dict.fromkeys(job.set for job in order)) == ["clair", "control", "stronger", "judged", "clair-judged"]
    assert Job("control", "apo_zero", 3e-5, 2) in gained and Job("clair", "apo_zero", 1e-5, 2) in gained
    quality = [job for job in order if job.loss == "sft" and job.seed in SEEDS]
    assert {job.lr for job in quality} == {1e-5} and {job.set for job in quality} == set(ARMS)
    assert {job.seed for job in order if job.loss == "kto_pair"} == {0, 1}


def record(n, kept, broken=0):
    packed = {"kept": pack(np.arange(n) < kept), "broken": pack(np.arange(n) < broken), "characters": [90] * n}
    return {"answers": {"sampled": packed, "greedy": packed}}


def test_the_outcome_is_of_answers_that_keep_the_rule_and_do_not_repeat_themselves():
    n = GROUPS["test"].n["sampled"]
    job, before = Job("clair", "dpo", 1e-5, 1), record(n, 27)
    assert study_plan.gain(job, record(n, 189, broken=54), before) == pytest.approx(100 * (135 - 27) / n)
    assert study_plan.gain(job, {"failed": "it is no number"}, before) == pytest.approx(-100 * 27 / n)


@pytest.fixture
def sets(tmp_path, monkeypatch):
    """Sets of a model that answers by rote: mostly it breaks the rule in a way that has a repair."""
    answers = ["Well, I like it. It is big, and it is old.", "We use it a lot. It is red, and round.", "so it goes"]

    def answer(folder, prompts, temperature, out, *, seed=1, top_p=0.95, dtype=None):
        return [answers[(len(p) + seed) % len(answers)] for p in prompts]

    monkeypatch.setattr(study_sets.measure, "answer", answer)
    return Sets(tmp_path, tmp_path / "sets", tmp_path / "samples", n_prompts=90)


def test_both_arms_have_the_same_prompts_and_losers_and_winners_that_keep_the_rule(sets):
    clair, control = (sets.pairs(name) for name in ARMS)
    assert len(clair) > 20 and [p[0::2] for p in clair] == [p[0::2] for p in control]
    for p in (*clair, *control):
        assert p.task.is_kept(p.chosen) and not p.task.is_kept(p.rejected)
    assert [p.task.repair(p.rejected) for p in clair] == [p.chosen for p in clair]
    assert sum(a.chosen != b.chosen for a, b in zip(clair, control, strict=True)) > len(clair) / 2


def test_the_stronger_models_set_has_the_same_prompts_and_losers(sets):
    arms, better = (sets.pairs(name) for name in ("clair", "stronger"))
    assert [p[0::2] for p in better] == [p[0::2] for p in arms] and all(p.task.is_kept(p.chosen) for p in better)


def test_the_judges_sets_have_as_many_pairs_of_each_kind_and_the_same_losers(sets):
    sets.pairs("clair")
    kinds = ["no commas"] * 3 + ["lower case"] * 2  # of these the three answers differ in how far they keep the rule
    sets._pairs["clair"] = [p._replace(task=p.task._replace(kind=k)) for p, k in zip(sets.pairs("clair"), kinds)]  # noqa: B905
    judged, revised = (sets.pairs(name) for name in ("judged", "clair-judged"))
    assert Counter(p.task.kind for p in judged) == Counter(kinds)
    assert [p[0::2] for p in judged] == [p[0::2] for p in revised]
    assert all(p.task.degree(p.chosen) > p.task.degree(p.rejected) for p in judged)
    assert all(p.task.is_kept(p.chosen) and not p.task.is_kept(p.rejected) for p in revised)


def test_a_kind_of_which_there_are_too_few_is_filled_up_with_others(sets):
    """The three answers are all without quotes."""
    kinds = ["quotes"] * 2 + ["no commas"] * 3
    sets._pairs["clair"] = [p._replace(task=p.task._replace(kind=k)) for p, k in zip(sets.pairs("clair"), kinds)]  # noqa: B905
    assert Counter(p.task.kind for p in sets.pairs("judged")) == {"no commas": 5}


def test_an_empty_answer_makes_no_pair():
    """It may keep a rule that forbids something, and win, or break one that asks for something, and be repaired."""
    for one in task.tasks(task.TOPICS, 90, seed=0):
        assert not study_sets.is_repairable(one, " \n")
        assert study_sets.judge(one, "", "The The The") is None and study_sets.judge(one, "The The The", "") is None
        pair = study_sets.judge(one, stronger.answer(one), "no")
        assert pair is None or pair.chosen.strip()


def test_too_few_judged_pairs_are_an_error(sets):
    sets._pairs["clair"] = [p._replace(task=p.task._replace(kind="quotes")) for p in sets.pairs("clair")]
    with pytest.raises(RunError, match=r"judged pairs: 8 blocks of 90 prompts give 0, not \d+"):
        sets.pairs("judged")


def run_record(job, base):
    """A run's record in a made-up world: the control keeps ten points fewer, and DPO is the same on both arms."""
    n = GROUPS[study_plan.group(job.seed)].n
    share = 0.6 - 0.1 * (job.set == "control" and job.loss == "apo_zero")
    share -= 0.05 * abs(LADDER.index(job.lr) - LADDER.index(1e-5))
    answers = {how: record(n[how], round(share * n[how]))["answers"][how] for how in n}
    ordinary = {what: [x - 0.1 for x in values] for what, values in base["ordinary"].items()}
    return {**job._asdict(), "answers": answers, "ordinary": ordinary, "seconds": {"all": 9.0}}


def as_found(n_runs=None, **winners):
    """A whole study of that world, or its first runs. winners: how those of the control differ from CLAIR's."""
    bases = {
        seed: {
            "answers": {how: record(n, 20)["answers"][how] for how, n in GROUPS[study_plan.group(seed)].n.items()},
            "ordinary": {"samples": [-1.0, -3.0], "texts": [-2.0]}, "tokens": {"samples": [1, 1], "texts": [1]},
        }
        for seed in (0, *SEEDS)
    }  # fmt: skip
    runs, gained = {}, {}
    while (job := next(study_plan.wanted(gained), None)) and len(runs) != n_runs:
        runs[job] = run_record(job, bases[job.seed])
        gained[job] = study_plan.gain(job, runs[job], bases[job.seed])
    like = {"kept": [1] * 50, "broken": [0] * 50, "characters": [80, 90] * 25, "logp": [-1.0, -2.0] * 25}
    more = {"pairs": 50, "kinds": ["a", "b"] * 25, "topics": [f"topic {i // 2}" for i in range(50)]}
    contrast = {"clair": {"jaccard": [0.8] * 50, "levenshtein": [9] * 50},
                "control": {"jaccard": [0.4] * 50, "levenshtein": [90] * 50}}  # fmt: skip
    sets = {
        (0, name): {**more, "contrast": contrast[name], "winners": like | (winners if name == "control" else {})}
        for name in ARMS
    }
    return Found(runs, gained, bases, sets)


def test_the_claim_is_of_contrast_where_winners_are_equally_good():
    said = study_tables.in_words(as_found())
    assert (
        "**apo_zero**, CLAIR minus the control. Both intervals are above 0, and the difference is of interest: +10.0"
        in said
    )
    assert "**dpo**, CLAIR minus the control. A difference of interest, 5 points or more, is excluded: +0.0" in said
    assert said.endswith("The winners of both arms are equally good within the intervals of the table below.")


def test_what_the_winners_differ_in_is_named():
    said = study_tables.in_words(as_found(characters=[60, 70] * 25, logp=[-1.0, -2.1] * 25))
    assert "The arms differ in contrast: Jaccard of tokens, %: +40.0 (+40.0 to +40.0); Levenshtein" in said
    assert "This is contrast, with these differences: characters of winners (+20); log-prob of winners (+0.05)." in said


def test_a_run_that_could_not_go_on_counts_and_keeps_no_rule():
    found = as_found()
    job = found.jobs("apo_zero", "clair")[0]
    whole = study_tables.difference(found, "apo_zero").mean
    found.runs[job] = {**job._asdict(), "failed": "step 3: the loss is not finite"}
    assert study_tables.difference(found, "apo_zero").mean == pytest.approx(whole - 60 / 3, abs=0.1)
    assert study_tables.of_prices(found, "apo_zero", "samples") is None


def test_the_price_is_all_nats_over_all_tokens():
    found = as_found()
    base = found.bases[1]
    base["tokens"]["samples"], base["ordinary"]["samples"] = [10, 30], [-10.0, -60.0]
    job = found.jobs("dpo", "clair")[0]
    found.runs[job]["ordinary"]["samples"] = [-14.0, -60.0]
    assert found.price(job, "samples") == pytest.approx(-4 / 40)


@pytest.mark.slow
def test_the_section_has_every_set_and_the_rates_that_were_tried(tmp_path):
    text = study_page.section(as_found())
    assert "Not complete yet" not in text and "| stronger | dpo | 1e-05 | 3 |" in text
    assert text.count(", taken |") == 2 * 5 + 3 and "| clair | kto\\_pair | 1e-05 | 1 |" in text
    assert "| clair | apo\\_zero | 1e-05, taken | +" in text and "-0.100" in text
    study_page.draw(as_found(), tmp_path / "a.svg")
    study_page.draw(as_found(), tmp_path / "b.svg")
    assert (tmp_path / "a.svg").stat().st_size > 5000


def test_a_study_that_has_begun_has_a_section_with_dashes():
    text = study_page.section(as_found(3))
    assert "**Not complete yet**" in text and "| clair | apo\\_zero | – | 0 | – |" in text
