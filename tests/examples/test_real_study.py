"""The real model's study: its plan, its stand-in for a stronger model, and pairs of a model that has three answers."""

import numpy as np
import pytest

from examples.miniature.study_plan import LADDER
from examples.miniature.study_run import pack
from examples.real import stronger, study_plan, study_sets, task
from examples.real.study_plan import SEEDS, START
from examples.real.study_run import GROUPS
from examples.real.study_sets import ARMS, Sets
from examples.studies import Job


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
    assert order[: len(core)] == core and len(core) == len(set(core)) == 2 * 2 * (4 + 3)
    assert Job("control", "apo_zero", 3e-5, 2) in gained and Job("clair", "apo_zero", 1e-5, 2) in gained
    quality = [job for job in order if job.loss == "sft" and job.seed in SEEDS]
    assert {job.lr for job in quality} == {1e-5} and {job.set for job in quality} == set(ARMS)
    assert {job.seed for job in order if job.loss == "kto_pair"} == {0, 1}


def record(n, kept, broken=0):
    packed = {"kept": pack(np.arange(n) < kept), "broken": pack(np.arange(n) < broken)}
    return {"answers": {"sampled": packed, "greedy": packed}}


def test_the_outcome_is_of_answers_that_keep_the_rule_and_do_not_repeat_themselves():
    n = GROUPS["test"][1]
    job, before = Job("clair", "dpo", 1e-5, 1), record(n, 27)
    assert study_plan.gain(job, record(n, 189, broken=54), before) == pytest.approx(100 * (135 - 27) / n)
    assert study_plan.gain(job, {"failed": "it is no number"}, before) == pytest.approx(-100 * 27 / n)


@pytest.fixture
def sets(tmp_path, monkeypatch):
    """Sets of a model that answers by rote: mostly it breaks the rule in a way that has a repair."""
    answers = ["Well, I like it. It is big, and it is old.", "We use it a lot. It is red, and round.", "so it goes"]

    def answer(folder, prompts, temperature, out, *, seed=1, top_p=0.95):
        return [answers[(len(p) + seed) % len(answers)] for p in prompts]

    monkeypatch.setattr(study_sets.measure, "answer", answer)
    return Sets(tmp_path, tmp_path / "sets", n_prompts=90)


def test_both_arms_have_the_same_prompts_and_losers_and_winners_that_keep_the_rule(sets):
    clair, control = (sets.pairs(name) for name in ARMS)
    assert len(clair) > 20 and [p[0::2] for p in clair] == [p[0::2] for p in control]
    for p in (*clair, *control):
        assert p.task.is_kept(p.chosen) and not p.task.is_kept(p.rejected)
    assert [p.task.repair(p.rejected) for p in clair] == [p.chosen for p in clair]
    assert sum(a.chosen != b.chosen for a, b in zip(clair, control, strict=True)) > len(clair) / 2


def test_the_other_sets_have_the_same_kinds_as_far_as_there_are_so_many(sets):
    arms, judged, revised, better = (sets.pairs(name) for name in ("clair", "judged", "clair-judged", "stronger"))
    assert [p[0::2] for p in better] == [p[0::2] for p in arms] and all(p.task.is_kept(p.chosen) for p in better)
    kinds = [p.task.kind for p in arms]
    assert judged and all(
        kinds.count(kind) >= sum(p.task.kind == kind for p in judged) for kind in {p.task.kind for p in judged}
    )
    assert all(p.task.degree(p.chosen) > p.task.degree(p.rejected) for p in judged)
    losers = {p.task.prompt: p.rejected for p in judged}
    assert revised and all(losers[p.task.prompt] == p.rejected for p in revised)
