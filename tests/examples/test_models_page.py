"""docs/models.md and docs/own-family.md are what the code says."""

from engine.model import FAMILIES
from examples import models_page


def test_the_pages_are_the_newest():
    for name, text in models_page.pages().items():
        assert (models_page.DOCS / name).read_text(encoding="utf-8") == text, "run python -m examples.models_page"


def test_every_family_and_every_refusal_has_a_line():
    said = models_page.pages()["models.md"]
    assert all(f"| `{family.model_type}` | `{family.architecture}` |" in said for family in FAMILIES)
    assert said.count("| a mixture of experts | ") == 1 and "is a mixture of experts, which is not supported" in said
    assert all(f"| {what} | " in said for what in models_page.REFUSED)
