"""The day that templates are told: transformers has no flag for it, so that its clock is stopped."""

from datetime import datetime

import pytest
from transformers.utils import chat_template_utils


class Day(datetime):
    """A clock that stands still."""

    @classmethod
    def now(cls, tz=None):
        """26 July 2024, at midnight."""
        return datetime(2024, 7, 26)


def stop(monkeypatch: pytest.MonkeyPatch) -> None:
    """transformers' templates render on that day."""
    monkeypatch.setattr(chat_template_utils, "datetime", Day)
