"""Whom a command asks: the flags by which one can be asked in another way, for sentences that name them."""

from typing import NamedTuple


class Role(NamedTuple):
    """A model behind a server, as a command's flags call it."""

    endpoint: str = "--endpoint"
    model: str = "--model"
    key: str = "--key-env"
    header: str = "--header"
    extra: str = "--extra"
    api: str = "--api"
    max_tokens: str = "--max-tokens"
    temperature: str = ""
    """Empty where it has no flag but `extra`."""
    no_system: str = ""
    """Leaves out the empty system message; empty where none is sent."""
    makes_responses: bool = False
    """Whether its answers become responses that somebody trains on: then they differ from question to question."""
    is_checked: bool = False
    """Whether a stage of it of which nothing is of use ends the run, however few its answers are."""


SERVED = Role(max_tokens="""--extra '{"max_tokens": ...}'""")
"""A model that answers in the place of a checkpoint."""
REVISER = Role(temperature="--temperature", no_system="--no-empty-system", makes_responses=True, is_checked=True)
"""Whose answers are, or hold, what is preferred."""
PAIR_JUDGE = REVISER._replace(makes_responses=False)
SCORER = Role(temperature="--temperature")
TARGET = Role(
    "--target-endpoint", "--target-name", "--target-key-env", "--target-header", "--target-extra", "--target-api",
    "--target-max-tokens", "--target-temperature", makes_responses=True,
)  # fmt: skip
"""The model that is to be aligned."""
JUDGE = Role(
    "--judge-endpoint", "--judge", "--judge-key-env", "--judge-header", "--judge-extra", "--judge-api",
    """--judge-extra '{"max_tokens": ...}'""",
)  # fmt: skip
"""Of a benchmark."""
