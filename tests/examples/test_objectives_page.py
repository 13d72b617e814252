"""docs/objectives.md is what the code says, and its picture can be drawn."""

import json
import re

import pytest
import torch
from torch.nn.functional import logsigmoid

import losses
from examples import objectives_page
from losses import Responses, registry
from tests.losses.ragged import columns
from tests.losses.samples import call


@pytest.fixture(autouse=True)
def registered(monkeypatch):
    """What the page's example registers is gone after its test."""
    for name in ("_losses", "_aliases", "_files"):
        monkeypatch.setattr(registry, name, dict(getattr(registry, name)))


def test_the_page_is_the_newest():
    there = (objectives_page.DOCS / "objectives.md").read_text(encoding="utf-8")
    assert there == objectives_page.page(), "run python -m examples.objectives_page"


def test_every_objective_has_its_formula_its_use_and_its_source():
    text = objectives_page.page()
    for name in losses.names():
        if losses.get(name).function.__module__.startswith("losses."):
            entry = text.split(f"### {name}\n")[1].split("\n##")[0]
            assert "loss = " in entry or "desirable: " in entry, name
            assert "\n\nUse it " in entry and ("Source: " in entry or "arXiv" in entry), name


@pytest.mark.parametrize("name", ["dpo", "apo_zero", "apo_down", "simpo"])
def test_the_picture_shows_the_gradient(name):
    r = torch.tensor([[0.5, -1.0], [2.0, 0.3]], dtype=torch.float64)
    loss = losses.get(name)
    g_w, g_l = objectives_page.slopes(loss, *r)
    if name == "simpo":  # drawn from -50 nats of 50 tokens each: equal lengths, equal slopes
        assert torch.allclose(g_w, -g_l) and (g_w < 0).all()
    else:
        torch.testing.assert_close(torch.stack([g_w, g_l]), call(name, r / 0.1).gradient(), rtol=1e-9, atol=1e-12)


def test_labelled_and_single_and_ranked_responses_are_drawn_too():
    r = torch.tensor([[0.5, -1.0], [2.0, 0.3]], dtype=torch.float64)
    pairs = torch.stack(objectives_page.slopes(losses.get("apo_zero"), *r))
    torch.testing.assert_close(torch.stack(objectives_page.slopes(losses.get("apo_zero_unpaired"), *r)), pairs)
    g_w, g_l = objectives_page.slopes(losses.get("npo"), *r)
    assert not g_w.any() and (g_l > 0).all()
    ranked = torch.stack(objectives_page.slopes(losses.get("infonca"), *r))
    dpo = torch.stack(objectives_page.slopes(losses.get("dpo"), *r))  # at beta 0.1; infonca's is 0.01
    torch.testing.assert_close(ranked, dpo / 10)


def test_objectives_that_see_tokens_are_drawn_as_responses_of_one():
    r = torch.tensor([[0.5, -1.0], [2.0, 0.3]], dtype=torch.float64)
    dpo = torch.stack(objectives_page.slopes(losses.get("dpo"), *r))
    for name in ("ld_dpo", "tdpo1", "tdpo2", "wpo", "dpo_revised"):
        torch.testing.assert_close(torch.stack(objectives_page.slopes(losses.get(name), *r)), dpo)
    g_w, g_l = objectives_page.slopes(losses.get("pmpo"), *r)
    assert (g_w == -1).all() and (g_l == 1).all()


def test_the_pages_example_of_tokens_is_dpo_where_it_sees_all_of_them(tmp_path):
    page = (objectives_page.DOCS / "objectives.md").read_text(encoding="utf-8")
    (code,) = re.findall(r"```python\n(.*?)```", page, re.S)
    assert len(code.splitlines()) <= 10
    (tmp_path / "mine.py").write_text(code)
    winners, losers = columns()
    early = losses.get(f"{tmp_path}/mine.py:early_dpo")
    assert early.level == "token" and dict(early.defaults) == {"beta": 0.1, "first": 32}
    found = early(winners.given, losers.given)  # rows of at most 12 tokens
    sums = [Responses(*(c.given.per_sequence(v) for v in c.given[:2])) for c in (winners, losers)]
    torch.testing.assert_close(found.losses, losses.get("dpo")(*sums).losses, rtol=1e-11, atol=1e-11)
    first = early(winners.given, losers.given, first=1).losses
    x_w, x_l = (torch.tensor([row.lp[0] - row.ref[0] for row in c.rows]).double() for c in (winners, losers))
    torch.testing.assert_close(first, -logsigmoid(0.1 * (x_w - x_l)), rtol=1e-5, atol=1e-5)


@pytest.mark.slow
def test_the_picture_can_be_drawn(tmp_path):
    pytest.importorskip("matplotlib")
    objectives_page.plot(tmp_path / "picture.png")
    assert (tmp_path / "picture.png").read_bytes().startswith(b"\x89PNG")


def test_what_revisions_are_worth_is_read_from_the_record(tmp_path):
    """Differences are taken draw by draw, so that a draw that is good for all does not count."""
    record = tmp_path / "revisions.json"
    assert "not measured yet" in objectives_page.worth(record)
    names = [x for pair in objectives_page.PLAIN.items() for x in pair]
    gains = [
        {"data": "clair", "loss": loss, "seed": seed, "mean": mean + 10.0 * seed + (loss == "dpo" and seed)}
        for loss, mean in zip(names, (5, 3, 2, 2, 4, 6), strict=True)
        for seed in (0, 1)
    ]
    rates = dict.fromkeys(names, 1e-4)
    record.write_text(json.dumps({"epochs": 18, "rates": rates, "gains": gains}))
    text = objectives_page.worth(record)
    zero = "| clair | apo_zero_revised | 0.0001 | +10.0 ± 7.1 | apo_zero | 0.0001 | +8.0 ± 7.1 | +2.0 ± 0.0 | 2 of 2 |"
    assert zero in text
    assert "| +11.5 ± 7.8 | -2.5 ± 0.7 | 0 of 2 |" in text
    assert (
        "Of 3 comparisons the objective of revisions is ahead in every draw in 1, and behind in every draw in 1."
        in text
    )
