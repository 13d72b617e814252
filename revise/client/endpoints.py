"""Where requests go: several servers, each with its health, its rests and as much at once as it can take.

An endpoint that answers 429 or 503 rests for as long as it asks, and is sent half as much at once until it answers
again; one that cannot be reached rests for a while that doubles and is then probed by a single request. Requests go to
the endpoint that is least busy for what it takes. Requests and tokens per minute are shared by all.
"""

import asyncio
import collections
import contextlib
import math
import re
import time
import urllib.parse
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from revise.client.keys import NO_HEADERS, Headers, Key
from revise.client.trial import Trial
from revise.client.wire import REWARD_PATH
from system import InputError, cli

DOWN_AFTER = 8  # failures in a row, over all requests, with no answer between them
LONGEST_PROBE_WAIT = 30.0  # seconds, of a server that cannot be reached
LONGEST_REACHED_WAIT = 2.0  # of one that answers with errors: those may be its requests' fault
SAID_CHARACTERS = 300  # of a server's words in a message
SECRET_NAMES = ("key", "api_key", "api-key", "apikey", "token", "access_token", "sig")


@dataclass(eq=False)
class Endpoint:
    """A server and what is known of it."""

    base: str
    """Its address up to and with /v1."""
    key: Key | None
    most: int
    """Most requests at once."""
    headers: Headers = NO_HEADERS
    """What the user adds to each request."""
    in_flight: int = 0
    limit: float = field(init=False)
    """How many at once it takes now."""
    rests_until: float = 0.0
    """By time.monotonic."""
    n_failures: int = 0
    """In a row."""
    halved_at: float = 0.0
    answered_at: float = 0.0
    """When the last answer came."""
    narrowed_at: float = -math.inf
    """When it was last sent less for good, since its requests queue."""
    n_timeouts: float = 0.0
    """Lately."""
    trial: Trial = field(default_factory=Trial)
    """What its first answers of this stage say."""
    renamed: dict[str, str] = field(default_factory=dict)
    """Parameters that it wants under another name, learnt from what it refused."""
    has_usage_in_streams: bool = True
    """Whether it takes `stream_options`."""

    def __post_init__(self) -> None:
        self.limit = self.most

    @property
    def origin(self) -> str:
        """Scheme, host and port."""
        return self.origin_of(self.base)

    @staticmethod
    def origin_of(address: str) -> str:
        """Of any address; what cannot be read as one says so."""
        try:
            parts = urllib.parse.urlsplit(address)
        except ValueError:
            return "an address that is none"
        return (
            f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}" if parts.netloc else "a place that it does not name"
        )

    def sent(self, body: Mapping[str, Any]) -> dict[str, Any]:
        """A request's body under the names that it wants."""
        return {self.renamed.get(name, name): value for name, value in body.items()}

    @property
    def is_down(self) -> bool:
        """Whether it is probed only."""
        return self.n_failures >= DOWN_AFTER

    def url(self, path: str) -> str:
        """The address of what is asked."""
        address, question, query = self.base.partition("?")
        if path == REWARD_PATH:  # it stands beside /v1, not below
            address = address.removesuffix("/v1")
        return f"{address}/{path}{question}{query}"

    def masked(self, text: str) -> str:
        """A server's words for a message, without the key and the secrets among the headers, and not too many."""
        return self.headers.mask(self.key.mask(text) if self.key else text)[:SAID_CHARACTERS]

    def has_room(self, now: float) -> bool:
        """Whether one more request can go there."""
        most = 1 if self.is_down else max(1, int(self.limit))
        return now >= self.rests_until and self.in_flight < min(most, self.trial.room)

    def answered(self) -> None:
        """It answered: whatever it was, it is well now."""
        self.n_failures, self.answered_at = 0, time.monotonic()
        self.n_timeouts = max(0, self.n_timeouts - 1 / 4)
        self.limit = min(self.most, self.limit + 1)

    def failed(self, why: str, *, is_reached: bool) -> None:
        """It did not answer, or not with an answer. is_reached: there was a server."""
        now = time.monotonic()
        if self.is_down and now < self.rests_until:  # sent before that was known
            return
        self.n_failures += 1
        if self.is_down:
            if self.n_failures == DOWN_AFTER:
                cli.notify(f"{self.origin} does not answer ({why}); it is tried again from time to time")
            longest = LONGEST_PROBE_WAIT if not is_reached else LONGEST_REACHED_WAIT
            wait = min(longest, 0.5 * 2.0 ** min(10, self.n_failures - DOWN_AFTER))
            self.rests_until = max(self.rests_until, now + wait)

    def timed_out(self, why: str, since: float) -> bool:
        """An attempt that began then has timed out. Gives whether requests queue there: where many time out while
        others are answered, it is sent half as many at once from now on.
        """
        if self.answered_at <= since:
            self.failed(why, is_reached=True)
        self.n_timeouts += 1
        if self.n_timeouts >= max(2, self.most / 4) and self.most > 1 and self.answered_at > since:
            self.narrowed_at, self.n_timeouts, self.most = time.monotonic(), 0, max(1, self.most // 2)
            self.limit = min(self.limit, self.most)
            cli.notify(
                f"{self.origin} answers requests one after the other ({why}): it gets {self.most} at once from now on; "
                "lower --concurrency, or raise --read-timeout"
            )
        return self.narrowed_at > since

    def is_busy(self, wait: float | None, cap: float) -> None:
        """It asked for less: seconds to wait, or None where it did not say how long."""
        now = time.monotonic()
        if wait is not None:
            if wait > cap and self.rests_until < now:
                cli.notify(
                    f"{self.origin} asks for a pause of {wait:,.0f} s; it is tried again after {cap:.0f} s (--max-wait)"
                )
            self.rests_until = max(self.rests_until, now + min(wait, cap))
        if now - self.halved_at > 1:
            self.halved_at, self.limit = now, max(1.0, self.limit / 2)


def parse_base(text: str, flag: str) -> str:
    """An endpoint's base address. Raises InputError for what is none, or holds a secret that logs would show."""
    shown = "what is given" if "@" in text else repr(text)
    try:
        parts = urllib.parse.urlsplit(text.strip())
        is_address = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        is_address, parts = False, None
    if parts is None or not is_address:
        raise InputError(f"{flag}: {shown} is not an address; give one such as http://localhost:8000/v1")
    if parts.username or parts.password:
        raise InputError(
            f"{flag}: the address contains a name or password, which logs would show; give the key by --key-env"
        )
    if any(name.lower() in SECRET_NAMES for name, _ in urllib.parse.parse_qsl(parts.query)):
        raise InputError(f"{flag}: the address contains a key, which logs would show; give it by --key-env")
    path = parts.path.rstrip("/").removesuffix("/chat/completions")
    return urllib.parse.urlunsplit((parts.scheme, parts.netloc, path, parts.query, ""))


class Pool:
    """The endpoints of a run. `acquire` takes a slot at the best one, `release` gives it to who waits for one."""

    def __init__(self, endpoints: Sequence[Endpoint]) -> None:
        self.endpoints = endpoints
        for endpoint in endpoints:
            endpoint.trial = Trial()
        self._waiting: collections.deque[asyncio.Future[None]] = collections.deque()

    @property
    def most(self) -> int:
        """Most requests at once, over all of them."""
        return sum(e.most for e in self.endpoints)

    @property
    def in_flight(self) -> int:
        """Requests that are at a server now."""
        return sum(e.in_flight for e in self.endpoints)

    def acquire(self, room: float = math.inf) -> Endpoint | None:
        """A slot at the endpoint that is least busy for what it takes; None where there is none now. room: how many may
        be taken in all.
        """
        if self.in_flight >= room:
            return None
        now = time.monotonic()
        free = [e for e in self.endpoints if e.has_room(now)]
        if not free:
            return None
        best = min(free, key=lambda e: (e.is_down, e.in_flight / e.limit))
        best.in_flight += 1
        return best

    async def wait(self) -> None:
        """Until a slot may be free: some request has left, or a rest may have ended."""
        now = time.monotonic()
        ends = [e.rests_until - now for e in self.endpoints if e.rests_until > now]
        turn = asyncio.get_running_loop().create_future()
        self._waiting.append(turn)
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(turn, min([1.0, *ends]) + 0.001)

    def wake(self) -> None:
        """Lets everybody look who waits: there is more room than before."""
        while self._waiting:
            turn = self._waiting.popleft()
            if not turn.done():
                turn.set_result(None)

    def release(self, endpoint: Endpoint) -> None:
        """Gives a slot back."""
        endpoint.in_flight -= 1
        while self._waiting:
            turn = self._waiting.popleft()
            if not turn.done():
                turn.set_result(None)
                return


class Pace:
    """At most so many (requests, or tokens) a minute, evenly: each takes its turn on one line in time."""

    def __init__(self, per_minute: float | None) -> None:
        self.per_minute = per_minute
        self._next = 0.0

    def delay(self, amount: float) -> float:
        """Takes that much; gives the seconds until it may be used."""
        if self.per_minute is None:
            return 0.0
        now = time.monotonic()
        start = max(now, self._next)
        self._next = start + amount * 60 / self.per_minute
        return start - now

    def settle(self, amount: float) -> None:
        """Corrects what was taken by the difference to what was used."""
        if self.per_minute is not None:
            self._next += amount * 60 / self.per_minute

    def learn(self, text: str | None) -> None:
        """Takes a limit from a server's header, where none was given."""
        if self.per_minute is None and text is not None and re.fullmatch("[1-9][0-9]{0,11}", text):
            self.per_minute = float(text)
