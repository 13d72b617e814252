"""docs/models.md is what the code says."""

from engine.model import FAMILIES
from examples import models_page


def test_the_page_is_the_newest():
    there = (models_page.DOCS / "models.md").read_text(encoding="utf-8")
    assert there == models_page.page(), "run python -m examples.models_page"


def test_every_family_and_every_refusal_has_a_line():
    said = models_page.page()
    assert all(f"| `{family.model_type}` | `{family.architecture}` |" in said for family in FAMILIES)
    assert said.count("| a mixture of experts | ") == 1 and "is a mixture of experts, which is not supported" in said
    assert all(f"| {what} | " in said for what in models_page.REFUSED)
