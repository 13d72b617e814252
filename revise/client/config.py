"""How a server is asked: the flags that every command of this package has, and what a run of it can cost."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, NamedTuple, Self

from data.rows import parse_row
from revise.client.endpoints import parse_base
from revise.client.keys import parse_headers
from revise.client.store import State
from revise.client.wire import REWARD_PATH, Request
from system import InputError
from system.flags import PathText

DEFAULT_KEY_ENV = "OPENAI_API_KEY"


@dataclass(frozen=True, kw_only=True)
class ClientConfig:
    """How a server is asked."""

    store: PathText
    """SQLite file that holds every answer; a rerun sends only what is missing in it."""
    endpoint: tuple[str, ...] = ()
    """Address of an OpenAI-compatible server, such as http://localhost:8000/v1; several share the work."""
    model: str = ""
    """The model's name there."""
    key_env: tuple[str, ...] = (DEFAULT_KEY_ENV,)
    """Environment variable that holds the API key: one for all endpoints, or one for each."""
    key_file: PathText | None = None
    """File that holds the API key, in the place of a variable."""
    header: tuple[str, ...] = ()
    """'NAME: VALUE' of a header that --endpoint is sent besides; $VARIABLE in it is read from the environment, and
    masked as a key is."""
    api: Literal["chat", "responses"] = "chat"
    """How --endpoint is asked: POST ENDPOINT/chat/completions, or OpenAI's Responses API."""
    stream: bool = False
    """Have every server stream its answers, as some do alone."""
    concurrency: int = 64
    """Most requests at once, for each endpoint."""
    rpm: float | None = None
    """Most requests a minute, all endpoints together. Unset: what the server's headers say, if they do."""
    tpm: float | None = None
    """Most tokens a minute, of requests and answers."""
    max_attempts: int = 8
    """Of a request that meets errors or resets; then it is marked failed, for the next run to try. Time-outs count as
    half of them each: what timed out may have been paid."""
    patience: float = 900.0
    """Seconds without any answer from any endpoint after which the run stops; 60 at most while none was reached."""
    max_wait: float = 120.0
    """Most seconds that a server's wish to be left alone is obeyed at a time."""
    connect_timeout: float = 10.0
    """Seconds for a connection."""
    read_timeout: float = 300.0
    """Seconds without a byte. Raise it where a model thinks long, or a server answers one after the other."""
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
    """Dollars, of everything in the store, at which no more is sent; an attempt that timed out counts as the most that
    it can have cost."""
    max_requests: int | None = None
    """Requests, repeated ones included, after which this run sends no more."""
    ask_again: bool = False
    """Send again what was answered without a usable text, or refused by the server."""
    go_on: bool = False
    """Go on although the first answers are of no use or all the same, or the server refuses one request after the
    other."""
    accept_finish_reason: tuple[str, ...] = ()
    """Finish reasons of answers that are taken as whole, besides stop, end_turn, eos, stop_sequence and none."""
    retry_quota: bool = False
    """Take an empty account for a passing fault: some relays say so by mistake."""
    proxy: bool = False
    """Use the proxy that the environment names."""
    ca_file: PathText | None = None
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
        parse_headers(self.header)

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


def parse_extra(text: str | None, flag: str = "--extra") -> dict[str, Any]:
    """The object that a flag merges into each request. Raises InputError."""
    try:
        found = parse_row(text.encode(), flag) if text else {}
    except (InputError, UnicodeEncodeError) as fault:
        said = str(fault).replace("mend or delete the line", 'give an object such as {"top_k": 20}')
        raise InputError(said) from None
    if fixed := {"messages", "stream", "n", "model"} & found.keys():
        raise InputError(f"{flag}: {sorted(fixed)[0]!r} cannot be changed there")
    for name in ("max_tokens", "max_completion_tokens"):
        if found.get(name) is not None and (type(found[name]) is not int or found[name] < 1):
            raise InputError(f"{flag}: {name!r} has to be a number of tokens, or null")
    return found


class Estimate(NamedTuple):
    """What a stage would send."""

    said: str
    """In a line."""
    dollars: float
    """The most that it can cost; where nothing bounds an answer, the least."""
    n_requests: int


def estimate(what: str, requests: Iterable[Request], known: Mapping[bytes, State], config: ClientConfig) -> Estimate:
    """What is missing among requests, and the most that it can cost."""
    seen: set[str] = set()
    n_in = n_out = 0
    has_bound = True
    for request in requests:
        if request.key not in seen and known.get(bytes.fromhex(request.key), "failed") in config.again:
            n_in, n_out = n_in + request.tokens[0], n_out + request.tokens[1]
            has_bound = has_bound and (request.tokens[1] > 0 or request.path == REWARD_PATH)
            seen.add(request.key)
    dollars = config.dollars(n_in, n_out)
    said = f"{what}: {len(seen):,} requests, about {n_in:,} tokens to send"
    if not has_bound:
        return Estimate(f"{said}, and no bound on what comes back: at least ${dollars:,.2f}", dollars, len(seen))
    return Estimate(f"{said}, at most {n_out:,} to receive: at most ${dollars:,.2f}", dollars, len(seen))


def told(stages: Sequence[Estimate], config: ClientConfig) -> str:
    """Estimates as --dry-run prints them."""
    return "\n".join([*(stage.said for stage in stages), _total(sum(stage.dollars for stage in stages), config)])


def _total(dollars: float, config: ClientConfig) -> str:
    """The last line of an estimate."""
    if config.price_in or config.price_out:
        return f"in all at most ${dollars:,.2f}; nothing was sent"
    return "prices are not known (--price-in and --price-out, dollars for a million tokens); nothing was sent"
