"""How a server is asked: the flags that every command of this package has."""

from dataclasses import dataclass, replace
from typing import Self

from data.errors import InputError
from revise.endpoints import parse_base
from revise.store import State

DEFAULT_KEY_ENV = "OPENAI_API_KEY"


@dataclass(frozen=True, kw_only=True)
class ClientConfig:
    """How a server is asked."""

    store: str
    """SQLite file that holds every answer; a rerun sends only what is missing in it."""
    endpoint: tuple[str, ...] = ()
    """Address of an OpenAI-compatible server, such as http://localhost:8000/v1; several share the work."""
    model: str = ""
    """The model's name there."""
    key_env: tuple[str, ...] = (DEFAULT_KEY_ENV,)
    """Environment variable that holds the API key: one for all endpoints, or one for each."""
    key_file: str | None = None
    """File that holds the API key, in the place of a variable."""
    concurrency: int = 64
    """Most requests at once, for each endpoint."""
    rpm: float | None = None
    """Most requests a minute, all endpoints together. Unset: what the server's headers say, if they do."""
    tpm: float | None = None
    """Most tokens a minute, of requests and answers."""
    max_attempts: int = 8
    """Of a request that meets errors, time-outs or resets; then it is marked failed, for the next run to try."""
    patience: float = 900.0
    """Seconds without any answer from any endpoint after which the run stops."""
    max_wait: float = 120.0
    """Most seconds that a server's wish to be left alone is obeyed at a time."""
    connect_timeout: float = 10.0
    """Seconds for a connection."""
    read_timeout: float = 300.0
    """Seconds without a byte."""
    timeout: float = 600.0
    """Seconds for an attempt as a whole: a server that drips never times out otherwise."""
    grace: float = 60.0
    """Seconds that requests in flight get when the run is stopped."""
    max_answer_mb: float = 8.0
    """An answer above that is refused while it is read."""
    price_in: float = 0.0
    """Dollars for a million tokens sent."""
    price_out: float = 0.0
    """Dollars for a million tokens received."""
    max_cost: float | None = None
    """Dollars, of everything in the store, at which no more is sent."""
    max_requests: int | None = None
    """Requests, repeated ones included, after which this run sends no more."""
    ask_again: bool = False
    """Send again what was answered without a usable text, or refused by the server."""
    retry_quota: bool = False
    """Take an empty account for a passing fault: some relays say so by mistake."""
    proxy: bool = False
    """Use the proxy that the environment names."""
    ca_file: str | None = None
    """Certificates to trust besides the usual ones."""
    dry_run: bool = False
    """Say what would be sent, and the most that it can cost; send nothing."""

    def __post_init__(self) -> None:
        positive = ("concurrency", "max_attempts", "patience", "max_wait", "connect_timeout", "read_timeout", "timeout")
        for name in (*positive, "max_answer_mb"):
            if not getattr(self, name) > 0:
                raise InputError(f"--{name.replace('_', '-')}: {getattr(self, name)} is not above 0")
        for name in ("rpm", "tpm"):
            if getattr(self, name) is not None and not getattr(self, name) > 0:
                raise InputError(f"--{name.replace('_', '-')}: {getattr(self, name)} is not above 0")
        for name in ("price_in", "price_out", "max_cost", "max_requests", "grace"):
            if getattr(self, name) is not None and not getattr(self, name) >= 0:
                raise InputError(f"--{name.replace('_', '-')}: {getattr(self, name)} is not 0 or above")
        if self.max_cost is not None and not (self.price_in or self.price_out):
            raise InputError("--max-cost needs prices: --price-in and --price-out, dollars for a million tokens")
        for base in self.endpoint:
            parse_base(base, "--endpoint")

    @property
    def again(self) -> tuple[State, ...]:
        """Of what the store knows of a request, what does not keep it from being sent."""
        return ("failed", "refused", "unusable") if self.ask_again else ("failed",)

    def after(self, n_sent: int) -> Self:
        """For what comes after so many requests of the same run: what is left of --max-requests."""
        return self if self.max_requests is None else replace(self, max_requests=max(0, self.max_requests - n_sent))

    def dollars(self, tokens_in: float, tokens_out: float) -> float:
        """What so many tokens cost."""
        return (tokens_in * self.price_in + tokens_out * self.price_out) / 1e6
