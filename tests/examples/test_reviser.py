"""The miniature's reviser: what it repairs, and the three strengths ordered by how much they change."""

import json

import numpy as np
import pytest

from data.contrast import contrast
from examples.miniature import reviser, world
from revise import clair, recipe_runner
from revise.recipes import ClairConfig, clair_recipe
from system.errors import InputError
from tests.revise.commands import read_rows


def noisy(n, seed=3):
    """Questions and answers of the corpus's kind, three facts in ten wrong."""
    rng = np.random.default_rng(seed)
    return [(q, world.noisy_answer(q, rng)) for q in world.questions(n, seed)]


def test_a_prompt_is_understood():
    questions = world.questions(5000, 1)
    assert len(questions) > 3000 and [world.asked(q.prompt) for q in questions] == questions


def test_a_light_revision_mends_one_fact_and_the_others_all():
    for question, own in noisy(200):
        light, standard, strong = (reviser.revise(question, own, strength) for strength in clair.STRENGTHS)
        n = world.n_right(question, own)
        assert world.is_exact(question, standard) and world.is_exact(question, strong)
        assert world.n_right(question, light) in (n + 1, len(question.facts))


def test_its_answers_are_in_the_form_asked_for_but_for_a_few():
    formless = 0
    for question, own in noisy(500):
        text = reviser.answer(question, own)
        try:
            assert clair.parse(text)[1].startswith(world.revise(question, own))
        except ValueError as reason:
            assert str(reason) == "no marker"
            formless += 1
    assert 2 <= formless <= 25  # 2 % of 500: outside once in 10,000


def test_a_port_that_is_taken_is_said():
    with reviser.serve_reviser() as address:
        port = int(address.split(":")[2].removesuffix("/v1"))
        with pytest.raises(InputError, match=f"--port: cannot listen on port {port}"):
            reviser.main(["--port", str(port)])


@pytest.fixture(scope="module")
def measured(tmp_path_factory):
    """The contrast of pairs made with each strength, by the recipe, over HTTP."""
    folder = tmp_path_factory.mktemp("strengths")
    rows = [{"prompt": q.prompt, "response": own} for q, own in noisy(300)]
    (folder / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    found = {}
    with reviser.serve_reviser() as address:
        for strength in clair.STRENGTHS:
            out = folder / f"{strength}.jsonl"
            config = ClairConfig(
                prompts=str(folder / "prompts.jsonl"), out=str(out), store=str(folder / "s.sqlite"),
                endpoint=(address,), model="m", strength=strength,
            )  # fmt: skip
            recipe_runner.make(clair_recipe(config))
            texts = [(row["chosen"][1]["content"], row["rejected"][1]["content"]) for row in read_rows(out)]
            found[strength] = contrast(texts)
    return found


@pytest.mark.slow
def test_stronger_revisions_share_less_with_the_answer(measured):
    light, standard, strong = (measured[strength] for strength in clair.STRENGTHS)
    assert min(len(c.copied) for c in (light, standard, strong)) > 150
    for measure in ("jaccard_words", "copied"):
        means = [getattr(c, measure).mean() for c in (light, standard, strong)]
        assert means[0] > means[1] + 0.03 and means[1] > means[2] + 0.03, measure
    assert light.levenshtein.mean() < standard.levenshtein.mean() < strong.levenshtein.mean()
    print({name: (len(c.copied), c.jaccard_words.mean(), c.levenshtein.mean()) for name, c in measured.items()})
