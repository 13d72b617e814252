"""What an objective raises for what it cannot be computed from."""


class LossError(ValueError):
    """An objective, or what was asked of one, that cannot be used. The text is one sentence with the mend."""
