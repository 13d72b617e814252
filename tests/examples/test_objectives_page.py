"""docs/objectives.md is what the code says, and its picture can be drawn."""

import pytest
import torch

import losses
from examples import objectives_page
from tests.losses.samples import call


def test_the_page_is_the_newest():
    there = (objectives_page.DOCS / "objectives.md").read_text(encoding="utf-8")
    assert there == objectives_page.page(), "run python -m examples.objectives_page"


def test_every_objective_has_its_formula_its_use_and_its_source():
    text = objectives_page.page()
    for name in losses.names():
        if losses.get(name).function.__module__.startswith("losses."):
            entry = text.split(f"### {name}\n")[1].split("\n##")[0]
            assert "loss = " in entry or "desirable: " in entry, name
            assert "When: " in entry and ("Source: " in entry or "arXiv" in entry), name


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


def test_the_picture_can_be_drawn(tmp_path):
    pytest.importorskip("matplotlib")
    objectives_page.plot(tmp_path / "picture.png")
    assert (tmp_path / "picture.png").read_bytes().startswith(b"\x89PNG")
