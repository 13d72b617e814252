"""docs/commands.md is what the commands say of themselves now."""

import pytest

from examples import commands_page


@pytest.mark.slow
def test_the_page_is_the_newest():
    assert (commands_page.DOCS / "commands.md").read_text(encoding="utf-8") == commands_page.page()
