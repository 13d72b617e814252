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
    """SQLite file that keeps every answer. A rerun with the same file sends only requests whose answer is missing."""
    endpoint: tuple[str, ...] = ()
    """Base URL of an OpenAI-compatible server, such as http://localhost:8000/v1. Several URLs share the requests."""
    model: str = ""
    """Name of the model at --endpoint."""
    key_env: tuple[str, ...] = (DEFAULT_KEY_ENV,)
    """Environment variable that holds the API key of --endpoint. Give one name if all URLs have the same host and port,
    otherwise one name per URL; none sends no key. A named variable that is not set is an error, except OPENAI_API_KEY:
    then no key is sent."""
    key_file: PathText | None = None
    """File that holds the API key, instead of an environment variable."""
    header: tuple[str, ...] = ()
    """Extra header for requests to --endpoint, as 'NAME: VALUE'. $VARIABLE in the value is read from the environment
    and masked in messages, like an API key."""
    api: Literal["chat", "responses"] = "chat"
    """API of the server at --endpoint: chat is POST ENDPOINT/chat/completions, responses is OpenAI's Responses API."""
    stream: bool = False
    """Ask every server to stream its answers. Set it for a server that only streams."""
    concurrency: int = 64
    """Maximum number of requests in flight at once, for each endpoint. A server that answers 429 or 503 is sent fewer
    for a while."""
    rpm: float | None = None
    """Maximum number of requests per minute, over all endpoints together. Unset: the limit in the server's headers, if
    they name one."""
    tpm: float | None = None
    """Maximum number of tokens per minute, of requests and answers, over all endpoints together. Unset: the limit in
    the server's headers, if they name one."""
    max_attempts: int = 8
    """Maximum number of failed attempts per request; the request is then marked as failed, and the next run tries it
    again. A 429 counts as one eighth of an attempt, an attempt that reaches no server not at all. Two time-outs usually
    end the request too, since each may have been billed."""
    patience: float = 900.0
    """Stop after this many seconds without an answer from any endpoint; after 60 at the latest if no server has been
    reached yet."""
    max_wait: float = 120.0
    """Longest time, in seconds, to honour a server's Retry-After; then the server is tried again even if it asked for
    longer."""
    connect_timeout: float = 10.0
    """Time-out for opening a connection, in seconds."""
    read_timeout: float = 300.0
    """Time-out for a connection on which nothing arrives, in seconds. Raise it for a model that thinks long, or a
    server that answers one request after the other."""
    timeout: float = 600.0
    """Time limit for one attempt as a whole, in seconds. It also ends an answer that keeps trickling in and therefore
    never reaches --read-timeout."""
    grace: float = 60.0
    """Seconds that requests in flight may still take after the run is told to stop."""
    max_answer_mb: float = 8.0
    """Largest answer to accept, in megabytes. A larger one is not read to its end, and counts as unusable."""
    price_in: float = 0.0
    """Price of a million input tokens, in dollars. 0: unknown or free. --max-cost needs --price-in or --price-out."""
    price_out: float = 0.0
    """Price of a million output tokens, in dollars. 0: unknown or free."""
    max_cost: float | None = None
    """Maximum total cost in dollars of all answers in --store, earlier runs included. No request is sent that is
    expected to exceed it. It needs --price-in or --price-out. An attempt that timed out is counted at its highest
    possible cost. Unset: no limit."""
    max_requests: int | None = None
    """Stop sending after this many requests of this run, retries included. Unset: no limit."""
    ask_again: bool = False
    """Also send again the requests that the server refused or answered without usable text. By default only requests
    that ran out of attempts are sent again."""
    go_on: bool = False
    """Continue even if the first answers are all unusable or all the same, or the server refuses one request after the
    other. By default the run stops then, before more is spent on a wrong setting."""
    accept_finish_reason: tuple[str, ...] = ()
    """Additional finish reasons that mark an answer as complete. stop, end_turn, eos, stop_sequence and no finish
    reason at all always do."""
    retry_quota: bool = False
    """Retry when a server says that the account is out of credit, as some relays do by mistake. By default the run
    stops."""
    proxy: bool = False
    """Use the proxy that the environment names (HTTPS_PROXY, HTTP_PROXY). By default none is used."""
    ca_file: PathText | None = None
    """File of certificates (PEM) to trust besides the usual ones."""
    dry_run: bool = False
    """Print what would be sent and the most that it can cost, and send nothing."""

    def __post_init__(self) -> None:
        positive = ("concurrency", "max_attempts", "patience", "max_wait", "connect_timeout", "read_timeout", "timeout")
        for name in (*positive, "max_answer_mb"):
            if not getattr(self, name) > 0:
                raise InputError(f"--{name.replace('_', '-')}: {getattr(self, name)} has to be above 0")
        for name in ("rpm", "tpm"):
            if getattr(self, name) is not None and not getattr(self, name) > 0:
                raise InputError(f"--{name.replace('_', '-')}: {getattr(self, name)} has to be above 0")
        for name in ("price_in", "price_out", "max_cost", "max_requests", "grace"):
            if getattr(self, name) is not None and not getattr(self, name) >= 0:
                raise InputError(f"--{name.replace('_', '-')}: {getattr(self, name)} has to be at least 0")
        if self.max_cost is not None and not (self.price_in or self.price_out):
            raise InputError("--max-cost needs prices: give --price-in and --price-out, in dollars per million tokens")
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
        said = str(fault).replace("fix or delete the line", 'give an object such as {"top_k": 20}')
        raise InputError(said) from None
    if fixed := {"messages", "stream", "n", "model"} & found.keys():
        raise InputError(f"{flag}: {sorted(fixed)[0]!r} is set by this program; leave it out")
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
    what: str = ""
    """Who is asked."""


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
        return Estimate(f"{said}, and no bound on what comes back: at least ${dollars:,.2f}", dollars, len(seen), what)
    return Estimate(f"{said}, at most {n_out:,} to receive: at most ${dollars:,.2f}", dollars, len(seen), what)


def told(stages: Sequence[Estimate], config: ClientConfig) -> str:
    """Estimates as --dry-run prints them."""
    return "\n".join([*(stage.said for stage in stages), _total(sum(stage.dollars for stage in stages), config)])


def _total(dollars: float, config: ClientConfig) -> str:
    """The last line of an estimate."""
    if config.price_in or config.price_out:
        return f"in all at most ${dollars:,.2f}; nothing was sent"
    return "prices are not known (--price-in and --price-out, in dollars per million tokens); nothing was sent"
