"""Questions to language models over HTTP, each answered and stored exactly once.

    with open_store(Path("answers.sqlite")) as store:
        tally = answer_all(requests, store, config, endpoints_of(config.endpoint, config), purpose="clair")
        found = answered(store, request)

What the store holds already is not sent; how the rest is sent, repeated and stopped is in scheduler.py. Here is the
transport: httpx over kept-alive connections, and what a status, a header or a broken connection means. This is the only
module that imports an HTTP library.
"""

import asyncio
import contextlib
import importlib.util
import json
import logging
import re
import resource
import ssl
import time
import zlib
from collections.abc import AsyncIterator, Callable, Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from revise.client import events, keys, reading, refusals, wire
from revise.client.config import DEFAULT_KEY_ENV, ClientConfig, estimate, parse_extra
from revise.client.endpoints import SAID_CHARACTERS, Endpoint, Pace, Pool, parse_base
from revise.client.reading import Completion, Unreadable
from revise.client.refusals import Error
from revise.client.roles import SERVED, Role
from revise.client.scheduler import Later, Refused, Scheduler, Tally
from revise.client.store import Row, Store, open_store
from revise.client.wire import Request
from system import InputError, RunError, cli

__all__ = [
    "NO_KEY",
    "Answered",
    "ClientConfig",
    "Endpoint",
    "Request",
    "Store",
    "Tally",
    "answer_all",
    "answered",
    "endpoints_of",
    "estimate",
    "is_open",
    "open_store",
    "parse_extra",
    "said",
]

httpx: Any = importlib.import_module("httpx2" if importlib.util.find_spec("httpx2") else "httpx")
"""httpx2 is httpx's maintained successor, with the same API; several times faster at hundreds of connections."""
LIBRARY_LOGGERS = ("httpx", "httpx2", "httpcore", "httpcore2")
NO_KEY = "none"
"""In the place of a variable's name: no key is sent."""
MOST_TOKENS = {"target": "--target-max-tokens", "judge": """--judge-extra '{"max_tokens": ...}'"""}
"""What raises the most tokens of an answer, by what it was asked for."""
CUT_IN_THOUGHTS = f"{reading.TRUNCATED}:"
NO_ANSWER = {"refused": "refused by the server", "failed": "failed"}
STREAM_SHARE = 16  # of --max-answer-mb, for events: a token of text is wrapped in some 200 characters
MOST_RENAMED = 3
CHAT_PATH, RESPONSES_PATH = Request._field_defaults["path"], "responses"
PACKED = {"gzip": 16 + zlib.MAX_WBITS, "x-gzip": 16 + zlib.MAX_WBITS, "deflate": zlib.MAX_WBITS}
"""How answers may be packed that nobody asked to be: gateways do it all the same."""


class Answered(NamedTuple):
    """What the store knows of a request."""

    completion: Completion | None
    """The answer, where it has a text that can be used."""
    fault: str = ""
    """Why there is none: "not asked yet", "failed: ...", "refused ...", "empty" ..."""
    row: Row | None = None
    """As it is stored."""
    unusable: Completion | None = None
    """What came all the same, where it cannot be used."""
    renamed: Mapping[str, str] = {}
    """Parameters that the server wanted under another name, by ours."""

    @property
    def is_cut(self) -> bool:
        """Whether it was cut at the most tokens that it could have."""
        return self.fault.startswith(reading.TRUNCATED)

    @property
    def text(self) -> str:
        """What was said, usable or not; empty where there is nothing."""
        found = self.completion or self.unusable
        return found.text if found else ""

    @property
    def reasoning(self) -> str:
        """The thoughts before it, or those that it ended in."""
        found = self.completion or self.unusable
        return found.reasoning if found else ""


def answered(store: Store, request: Request, accepted: Collection[str] = (), *, goes_on: bool = False) -> Answered:
    """The stored answer to a request, or why there is none that can be used. accepted: see reading.read_answer.
    goes_on: what has a good text is of use, though other questions have got the same.
    """
    row = store.get(request.key)
    if row is None:
        return Answered(None, "not asked yet")
    if row.state in NO_ANSWER:
        return Answered(None, f"{NO_ANSWER[row.state]}: {row.answer.decode('utf-8', 'replace')}", row)
    try:
        found = reading.read_answer(row.answer, request, accepted)
    except reading.Unreadable:  # stored without its body, with the reason in its place
        return Answered(None, row.answer.decode("utf-8", "replace")[:SAID_CHARACTERS], row)
    if found.fault is None and row.why and not goes_on:
        return Answered(None, row.why, row, found)
    if found.fault is None:
        return Answered(found, "", row, renamed=_renamed(row, request))
    more = f"; raise {MOST_TOKENS.get(row.purpose, '--max-tokens')}" if found.fault.startswith(CUT_IN_THOUGHTS) else ""
    return Answered(None, found.fault + more, row, found)


def _renamed(row: Row, request: Request) -> dict[str, str]:
    """What was sent under another name than was asked for."""
    if row.request == wire.canonical(request.body):
        return {}
    sent = json.loads(row.request)
    old, new = (sorted(a.keys() - b.keys()) for a, b in ((request.body, sent), (sent, request.body)))
    return dict(zip(old, new, strict=False))


def said(found: Answered) -> str | None:
    """What a model said, "" where it said nothing: no pair is made of that, but it counts where one measures."""
    if found.completion is not None:
        return found.completion.text
    return "" if found.fault == reading.EMPTY else None


def is_open(found: Answered) -> bool:
    """Whether the same command asks for it again: not asked yet, or failed. What was refused is not."""
    return found.row is None or found.row.state == "failed"


def endpoints_of(bases: Sequence[str], config: ClientConfig, *, flag: str = "--endpoint") -> list[Endpoint]:
    """Endpoints with their keys. flag: what they were given by. Raises InputError where they do not match."""
    _certificates(config.ca_file)
    by = flag.replace("endpoint", "key-env")
    names = config.key_env if len(config.key_env) == len(bases) else config.key_env * len(bases)
    if len(names) != len(bases):
        raise InputError(f"{by}: {len(config.key_env)} variables for {len(bases)} endpoints; give one, or one for each")
    if config.key_file is not None:
        found = [keys.from_file(Path(config.key_file))] * len(bases)
    else:
        found = [_key_in(name, by) for name in names]
    headers = keys.parse_headers(config.header, flag.replace("endpoint", "header"))
    made = [
        Endpoint(parse_base(b, flag), key, config.concurrency, headers) for b, key in zip(bases, found, strict=True)
    ]
    is_one_for_all = config.key_file is not None or len(config.key_env) == 1
    n_origins = len({e.origin for e in made})
    if is_one_for_all and n_origins > 1 and any(found):
        raise InputError(
            f"{by}: {len(made)} servers would get the same key; give one variable for each, with the word none where "
            "no key is needed"
        )
    if headers.has_secrets and n_origins > 1:
        raise InputError(
            f"{flag.replace('endpoint', 'header')}: {len(made)} servers would get a secret that is for one; ask one at "
            "a time"
        )
    return made


def _key_in(name: str, by: str) -> keys.Key | None:
    """The key in a variable. The usual one may be missing: servers of one's own ask for none."""
    if not re.fullmatch("[A-Za-z_][A-Za-z0-9_]*", name):
        raise InputError(f"{by}: give the name of an environment variable, not a key; export the key under that name")
    if name == NO_KEY:
        return None
    key = keys.from_environment(name)
    if key is None and name != DEFAULT_KEY_ENV:
        raise InputError(f"{by}: the environment variable {name} is not set; export it with the API key in it")
    return key


def _certificates(ca_file: str | None) -> ssl.SSLContext:
    """What is trusted. Raises InputError where --ca-file cannot be read."""
    context = ssl.create_default_context()
    if ca_file is not None:
        try:
            context.load_verify_locations(ca_file)
        except (OSError, ssl.SSLError) as fault:
            raise InputError(f"--ca-file: {ca_file} cannot be read as certificates ({fault})") from None
    return context


def _is_loopback(base: str) -> bool:
    host = httpx.URL(base).host
    return host in ("localhost", "::1") or host.startswith("127.")


def answer_all(
    requests: Iterable[Request],
    store: Store,
    config: ClientConfig,
    endpoints: Sequence[Endpoint],
    *,
    purpose: str,
    role: Role = SERVED,
    n_requests: int | None = None,
) -> Tally:
    """Has every request answered and stored; equal ones once. requests may be long: it is read as slots are free.

    purpose: stands beside the answers in the store and on the progress bar. role: whom they are for, by its flags.
    Raises RunError where going on makes no sense (the key is refused, the model unknown, the account empty, the first
    answers of no use, the disk full), Stopped after a signal or a cap.
    """
    for name in LIBRARY_LOGGERS:  # at INFO they tell whole addresses, at DEBUG headers
        logging.getLogger(name).setLevel(logging.WARNING)
    for endpoint in endpoints:
        has_secret = endpoint.key or endpoint.headers.has_secrets
        if has_secret and endpoint.base.startswith("http:") and not _is_loopback(endpoint.base):
            cli.notify(f"{endpoint.origin}: the key is sent unencrypted; use https unless the network is your own")
    resource.setrlimit(resource.RLIMIT_CORE, (0, resource.getrlimit(resource.RLIMIT_CORE)[1]))  # it would hold the key

    async def ask() -> Tally:
        pool = Pool(endpoints)
        async with HttpTransport.open(config, role=role) as transport:
            return await Scheduler(store, config, pool, transport, purpose, role).run(requests, n_requests)

    return asyncio.run(ask())


class HttpTransport:
    """Sends requests over kept-alive connections (scheduler.Transport).

    One connection has one client of the library: its own pool looks at every connection for every request, which at 256
    in flight took nine tenths of the time.
    """

    def __init__(self, config: ClientConfig, library: Any, new_client: Callable[[], Any], role: Role) -> None:
        self._config, self._library, self._new_client, self._role = config, library, new_client, role
        self._idle: dict[str, list[Any]] = {}  # clients with an open connection to this origin, newest last
        self.requests, self.tokens = Pace(config.rpm), Pace(config.tpm)

    @classmethod
    @contextlib.asynccontextmanager
    async def open(
        cls, config: ClientConfig, library: Any = httpx, *, role: Role = SERVED
    ) -> "AsyncIterator[HttpTransport]":
        """Closes its connections when the block ends."""
        context = _certificates(config.ca_file)
        if config.proxy:
            cli.notify("requests go through the proxy that the environment names, if it names one")
        timeout = library.Timeout(config.read_timeout, connect=config.connect_timeout, pool=None)
        async with contextlib.AsyncExitStack() as clients:

            def new_client() -> Any:
                client = library.AsyncClient(
                    timeout=timeout, verify=context, trust_env=config.proxy, limits=library.Limits(max_connections=1)
                )
                clients.push_async_callback(client.aclose)
                return client

            yield cls(config, library, new_client, role)

    async def send(self, endpoint: Endpoint, request: Request) -> bytes:
        """An answer with status 200, as a chat completion's bytes. Raises Later, Refused, Unreadable or RunError."""
        headers = {"Content-Type": "application/json", "Accept-Encoding": "identity"}
        headers |= endpoint.key.header() if endpoint.key else {}
        headers |= endpoint.headers.fields
        body, path = self._as_sent(endpoint, request)
        payload = wire.canonical(body).encode()
        idle = self._idle.setdefault(endpoint.origin, [])
        client = idle.pop() if idle else self._new_client()
        start = time.monotonic()
        try:
            async with asyncio.timeout(self._config.timeout):  # a drip of bytes never runs into the read time-out
                async with client.stream("POST", endpoint.url(path), content=payload, headers=headers) as got:
                    raw = await self._read(got)
        except TimeoutError:
            raise _timed_out(
                endpoint, f"no whole answer within {self._config.timeout:g} s (--timeout)", start
            ) from None
        except self._library.ReadTimeout:
            why = f"no byte within {self._config.read_timeout:g} s (--read-timeout)"
            raise _timed_out(endpoint, why, start) from None
        except self._library.RequestError as fault:
            if "CERTIFICATE_VERIFY_FAILED" in str(fault):
                raise RunError(
                    f"{endpoint.origin}: its certificate cannot be verified; give that of its authority by --ca-file"
                ) from None
            why = endpoint.masked(f"{type(fault).__name__} {fault}".strip())
            is_reached = not isinstance(fault, (self._library.ConnectError, self._library.ConnectTimeout))
            endpoint.failed(why, is_reached=is_reached)
            raise Later(why, is_reached=is_reached) from None
        finally:
            idle.append(client)
        if got.status_code == 200 and events.is_stream(raw, got.headers.get("content-type", "")):
            raw = events.joined(raw)
        is_answer = got.status_code == 200
        error = refusals.in_answer(raw) if is_answer else refusals.read_error(raw, got.status_code)
        if error is not None:
            raise self._meaning(endpoint, got.headers, error, body)
        self.requests.learn(got.headers.get("x-ratelimit-limit-requests"))
        self.tokens.learn(got.headers.get("x-ratelimit-limit-tokens"))
        holds_key = endpoint.key is not None and endpoint.key.is_in(raw)
        if holds_key or endpoint.headers.is_in(raw):
            what = "the API key" if holds_key else "the secret of a header"
            raise Refused(
                f"an answer that contains {what}, and is not stored; replace the secret, and check the server",
                is_own=True,
            )
        return events.from_response(raw) if path == RESPONSES_PATH else raw

    def _as_sent(self, endpoint: Endpoint, request: Request) -> tuple[dict[str, Any], str]:
        """The body and the path of a request as this server wants them."""
        body, path = endpoint.sent(request.body), request.path
        if path != CHAT_PATH:  # a reward model's
            return body, path
        if self._config.api == "responses":
            body, path = events.as_response_request(body), RESPONSES_PATH
        if self._config.stream:
            body = events.as_stream(body, with_usage=endpoint.has_usage_in_streams)
        return body, path

    async def _read(self, got: Any) -> bytes:
        """A body, unpacked, if it is as long as was asked for. Raises Unreadable or Refused."""
        encoding = got.headers.get("content-encoding", "identity").lower()
        is_plain = encoding in ("identity", "")
        if not is_plain and encoding not in PACKED and got.status_code == 200:
            raise Unreadable(f"an answer packed as {encoding}, which was not asked for")
        unpack = zlib.decompressobj(PACKED[encoding]) if encoding in PACKED else None
        is_stream = got.headers.get("content-type", "").lower().startswith("text/event-stream")
        parts, n, most = [], 0, int(self._config.max_answer_mb * 2**20) * (STREAM_SHARE if is_stream else 1)
        async for part in got.aiter_raw():
            if unpack is not None:
                try:
                    part = unpack.decompress(part, most - n + 1)
                except zlib.error as fault:
                    raise Unreadable(f"an answer packed as {encoding} that cannot be unpacked ({fault})") from None
            n += len(part)
            if n > most and got.status_code != 200:  # its beginning says why
                break
            if n > most:
                n_tokens = n // wire.CHARACTERS_PER_TOKEN
                why = f"an answer of more than {self._config.max_answer_mb:g} MB"
                raise Refused(why, state="unusable", n_tokens=n_tokens)
            parts.append(part)
        if unpack is not None and not unpack.eof and got.status_code == 200:
            raise Unreadable(f"an answer packed as {encoding} that is cut")
        return b"".join(parts)

    def _meaning(
        self, endpoint: Endpoint, headers: Mapping[str, str], error: Error, body: dict[str, Any]
    ) -> Later | Refused | RunError | Unreadable:
        """Of an answer that is an error."""
        status = error.status
        said = endpoint.masked(error.said)
        told = f"{endpoint.origin} answers {status}: {said}"
        if 300 <= status < 400:
            to = endpoint.origin_of(headers.get("location", ""))
            return RunError(f"{endpoint.origin} redirects to {to}; redirects are not followed, give the final address")
        wait = wire.retry_after(headers, time.time())
        if refusals.is_without_money(error):
            if not self._config.retry_quota:
                return RunError(
                    f"{told}; the account is out of credit: top it up, and the same command continues from there"
                )
            status = 429
        elif refusals.is_own(error):
            return Refused(f"{status}: {said}", is_own=True)
        elif self._learns(endpoint, error, body):
            return Later(f"{status}: {said}", is_free=True)
        mend = refusals.mend(error, body, self._role, endpoint.base)
        if refusals.is_no_place(error) or status in (401, 403) or refusals.RESPONSES_ONLY.search(error.said):
            return RunError(f"{told}; {mend}")
        if status == 200:
            return Unreadable(f"an error with status 200: {said}")
        if status not in wire.PASSING_STATUS and status < 500:
            is_settings = bool(mend) and not refusals.is_too_long(error)
            return Refused(f"{status}: {said}", words=f"{status} {error.words}", mend=mend, is_settings=is_settings)
        if status in (429, 503) or wait is not None:
            endpoint.is_busy(wait, self._config.max_wait)
        if status != 429:
            endpoint.failed(f"{status}: {said}", is_reached=True)
        return Later(f"{status}: {said}", is_limit=status == 429, is_told=wait is not None)

    def _learns(self, endpoint: Endpoint, error: Error, body: dict[str, Any]) -> bool:
        """Whether a refusal says how the same is asked under another name, which the next requests do."""
        if "stream_options" in body and refusals.blamed(error, body) == "stream_options":
            endpoint.has_usage_in_streams = False
            cli.notify(f"{endpoint.origin} does not take stream_options: token counts are estimated")
            return True
        found = refusals.renamed(error, body)
        if found is None or self._config.api == "responses" or found[1] in endpoint.renamed:
            return False
        if found[0] not in endpoint.renamed:
            if len(endpoint.renamed) >= MOST_RENAMED:
                return False
            endpoint.renamed[found[0]] = found[1]
            cli.notify(f"{endpoint.origin} wants {found[1]} instead of {found[0]}, and is sent that")
        return True


def _timed_out(endpoint: Endpoint, why: str, since: float) -> Later:
    """An attempt that may have been paid."""
    return Later(why, is_timeout=True, is_queued=endpoint.timed_out(why, since))
