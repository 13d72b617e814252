"""The real model's tasks: what keeps a rule, what a repair changes, and pairs made of them over HTTP."""

import json
import re

import pytest
from rapidfuzz.distance import Levenshtein

from examples.real import reviser, task
from revise import recipe_runner
from revise.recipes import ClairConfig, JudgeConfig, Positions, clair_recipe, judge_recipe

ANSWERS = (
    "Bread is a staple food, and it's made of flour, water and yeast. People like it because it smells good.",
    '1. Honey is sweet.\n2. It is made by bees, in 1890 as today.\n3. "Raw" honey keeps for years.',
    "Umbrellas keep us dry. They were known in 1890. Why not buy one? Yes!",
    '"Certainly, the sea is wide." She said so, twice.',
    "I like owls (they are quiet).",
)


def tasks_of_each_kind():
    found = {}
    for asked in task.tasks(task.TOPICS, 45, seed=3):
        found.setdefault(asked.kind, asked)
    return list(found.values())


@pytest.mark.parametrize("asked", tasks_of_each_kind(), ids=lambda t: t.kind)
def test_a_repair_keeps_the_rule_and_most_of_the_answer(asked):
    for answer in ANSWERS:
        repaired = asked.repair(answer)
        assert repaired is not None and asked.is_kept(repaired)
        assert asked.repair(repaired) == repaired
        assert asked.is_kept(answer) == (repaired == answer)
        before, after = (re.sub(r"\W", "", text.lower()) for text in (answer, repaired))
        if asked.kind == "one sentence":
            assert after in before  # cut
        elif asked.kind in ("ending", "twice", "beginning"):
            assert after.startswith(before) or after.endswith(before)  # added to
        else:
            assert Levenshtein.normalized_similarity(before, after) > 0.75


def degree(kind, answer, value=""):
    return task.Task("", kind, value).degree(answer)


def test_what_keeps_a_rule_and_what_does_not():
    assert degree("lower case", "all of it, 12 times") == 1 and degree("lower case", "Bad") == pytest.approx(2 / 3)
    assert degree("no commas", "none; of them") == 1 and degree("no commas", "a, b, c") == pytest.approx(1 / 3)
    assert degree("ending", "It is so. That is all.", "That is all.") == 1
    assert degree("ending", "That is all. It is so.", "That is all.") == 0.5
    assert degree("beginning", "Well, it is.", "Well") == 1 and degree("beginning", "Wellness is.", "Well") == 0.5
    assert degree("quotes", '"It is."') == 1 and degree("quotes", '"It" is "so"') < 1 and degree("quotes", '"It') == 0.5
    assert degree("one sentence", "It is so.") == 1 and degree("one sentence", "It is. So it is.") == 0.5
    assert degree("one sentence", "It is so and it") == 0  # breaks off
    assert degree("twice", "Good, goods, GOOD.", "good") == 1 and degree("twice", "Good, goods.", "good") == 0.5
    assert degree("exclamation", "It is! So it is!") == 1 and degree("exclamation", "It is. So it is!") == 0.5
    assert degree("exclamation", "1. It is!\n2. In 1890!") == 1 and degree("exclamation", "Since 1890.") == 0
    assert degree("list", "- a\n\n- b") == 1 and degree("list", "a\n- b") == 0.5
    assert all(degree(kind, " 12 ") == 0 for kind in task.KINDS)  # says nothing


def test_an_answer_that_breaks_off_or_repeats_itself_is_not_repaired():
    asked = task.Task("", "no commas", "")
    assert asked.repair("It is big, and it") is None and asked.repair("") is None and asked.repair("12, 13.") is None
    assert asked.repair("It is, it is very good. " * 3) is None


def test_sentences_are_counted_in_lists_and_quotes():
    assert task.sentences('1. One.\n2. "Two." And three?') == ["1. One.", '2. "Two."', "And three?"]


def test_broken_answers_are_empty_or_repeat_themselves():
    assert task.is_broken("  ...") and task.is_broken("it is very good and " * 3)
    assert not task.is_broken("it is very good and it is very good, or so they say")


GROUPS = {"training": task.TOPICS, "development": task.DEVELOPMENT_TOPICS, "test": task.HELDOUT_TOPICS}


def test_a_topic_is_of_one_group_and_stands_in_no_prompt_of_another():
    """In none of all the prompts that a group can give: as a word, in its singular or its plural."""
    prompts = {
        name: {q.format(topic) for topic in topics for q in task.QUESTIONS}
        | {t.prompt for t in task.tasks(topics, 90 * len(task.KINDS), seed=0)}
        for name, topics in GROUPS.items()
    }
    assert sum(map(len, GROUPS.values())) == len({topic for topics in GROUPS.values() for topic in topics})
    assert all(len(topics) >= 24 for topics in GROUPS.values())
    for name, topics in GROUPS.items():
        for other in GROUPS.keys() - {name}:
            for topic in topics:
                word = topic.removeprefix("the ").removesuffix("s")
                stems = re.compile(rf"\b{word}s?\b", re.IGNORECASE)
                assert not [p for p in prompts[other] if stems.search(p)], (name, topic, other)


def test_tasks_are_of_each_kind_as_many_and_never_on_a_held_out_topic():
    made = task.tasks(task.TOPICS, 90, seed=0)
    assert len({t.prompt for t in made}) == 90 and made == task.tasks(task.TOPICS, 90, seed=0)
    assert {kind: sum(t.kind == kind for t in made) for kind in task.KINDS} == dict.fromkeys(task.KINDS, 10)
    assert all(task.asked(t.prompt) == t for t in made)
    assert not {w for topic in task.HELDOUT_TOPICS for w in [topic]} & set(task.TOPICS)
    assert not any(re.search(rf"\b{topic}\b", t.prompt) for t in made for topic in task.HELDOUT_TOPICS)


def make(tmp_path, rows, config, recipe_of):
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text("".join(json.dumps(row) + "\n" for row in rows))
    with reviser.serve_both() as address:
        shared = {"prompts": str(prompts), "out": str(tmp_path / "pairs.jsonl"), "endpoint": (address,)}
        recipe_runner.make(recipe_of(config(store=str(tmp_path / "s.sqlite"), **shared)))
    rows = [json.loads(line) for line in (tmp_path / "pairs.jsonl").read_text().splitlines()]
    return [(row["prompt"], row["chosen"][-1]["content"], row["rejected"][-1]["content"]) for row in rows]


def test_the_reviser_is_asked_over_http_and_its_repairs_arrive_as_they_are(tmp_path):
    asked = [t for t in tasks_of_each_kind() for _ in ANSWERS]
    answers = list(ANSWERS) * len(task.KINDS)
    rows = [{"prompt": t.prompt, "response": a} for t, a in zip(asked, answers, strict=True)]
    found = make(tmp_path, rows, lambda **k: ClairConfig(model="reviser", min_length_ratio=0.1, **k), clair_recipe)
    wanted = [(t.prompt, t.repair(a), a) for t, a in zip(asked, answers, strict=True) if not t.is_kept(a)]
    assert len(wanted) > 30
    assert found == wanted


def test_the_judge_prefers_what_keeps_more_and_does_not_choose_between_equals(tmp_path):
    prompt = "What is special about bread? Do not use any commas."
    both = [["One, two, three.", "One, two."], ["One two.", "One, two."], ["One, two.", "A, b."], ["One.", "Two."]]
    rows = [{"prompt": prompt, "responses": pair} for pair in both]

    def judged(config):
        return judge_recipe(config, Positions())

    found = make(tmp_path, rows, lambda **k: JudgeConfig(model="judge", both_orders=1.0, **k), judged)
    assert found == [(prompt, "One, two.", "One, two, three."), (prompt, *both[1])]
