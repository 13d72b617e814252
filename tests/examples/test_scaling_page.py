"""docs/scaling.md is what the code says."""

import pytest

from examples import scaling_page


@pytest.mark.slow
def test_the_page_is_the_newest():
    there = (scaling_page.DOCS / "scaling.md").read_text(encoding="utf-8")
    assert there == scaling_page.page(), "run python -m examples.scaling_page"
