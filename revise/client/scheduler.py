"""A run of requests: which are sent, how often, how many at once, and when an answer counts.

A fixed number of workers take requests from one iterator. Each waits for a slot at an endpoint, sends, and waits until
the answer is on the disk; answers that come in while the disk is busy share one commit. An attempt that fails is
repeated after a random wait that grows; what it is no use to repeat is stored as refused, what has failed too often as
failed. When a run ends before its time is in run_limits.py; whatever the reason, what is in flight comes home first.
"""

import asyncio
import contextlib
import random
import signal
import sys
import time
from collections.abc import AsyncIterator, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple, Protocol

from tqdm import tqdm

from revise.client import reading, wire
from revise.client.config import ClientConfig
from revise.client.endpoints import Endpoint, Pace, Pool
from revise.client.reading import Completion, Unreadable
from revise.client.run_limits import RunLimits
from revise.client.store import Row, State, Store
from revise.client.wire import Request
from system import RunError, Stopped

LIMIT_SHARE = 1 / 8  # of an attempt: "later" says nothing against the request
LONGEST_BACKOFF = 30.0  # seconds
LONGEST_LIMIT_BACKOFF = 4.0  # where a server only asked for less
TOLD_JITTER = 0.5  # behind a rest that it asked for
FIRST_TOKENS_OUT = 256  # expected of an answer before there was any


class Later(Exception):
    """An attempt that failed and may succeed when it is repeated. is_limit: the server only asked for less; is_told: it
    said for how long, so that its endpoint rests; is_reached: there was a server.
    """

    def __init__(self, why: str, *, is_limit: bool = False, is_told: bool = False, is_reached: bool = True) -> None:
        super().__init__(why)
        self.is_limit, self.is_told, self.is_reached = is_limit, is_told, is_reached


class Refused(Exception):
    """A request that it is no use to repeat. state: how it is stored; n_tokens: of an answer that came all the same."""

    def __init__(self, why: str, *, state: State = "refused", n_tokens: int = 0) -> None:
        super().__init__(why)
        self.state: State = state
        self.n_tokens = n_tokens


class Transport(Protocol):
    """What carries a request to an endpoint."""

    requests: Pace
    """Of requests."""
    tokens: Pace
    """Of tokens, sent and received."""

    async def send(self, endpoint: Endpoint, request: Request) -> bytes:
        """The bytes of an answer with status 200. Raises Later, Refused or RunError."""
        ...


class Tally(NamedTuple):
    """What a run of requests came to; requests with equal content are one."""

    n_known: int = 0
    """In the store before."""
    n_stored: int = 0
    """Stored by this run, usable or not."""
    n_unusable: int = 0
    """Of those, without a text that can be used."""
    n_failed: int = 0
    """Without an answer after all attempts; the next run tries them again."""
    n_sent: int = 0
    """HTTP requests that were made, repeated ones included."""
    n_tokens: int = 0
    """Sent and received."""
    dollars: float = 0.0
    """What this run has spent."""


class _Turn(NamedTuple):
    """A slot at an endpoint, and what was set aside for the attempt."""

    endpoint: Endpoint
    tokens: int
    dollars: float


class Scheduler:
    """One run of requests over a pool of endpoints."""

    def __init__(self, store: Store, config: ClientConfig, pool: Pool, transport: Transport, purpose: str) -> None:
        self.store, self.config, self.pool, self.transport, self.purpose = store, config, pool, transport, purpose
        self.tally = Tally()
        self.limits = RunLimits(config, store.dollars())
        self._seen: set[bytes] = set()
        self._held: list[Row] = []  # refusals, kept back until something has been answered
        self._n_answers, self._n_tokens_out = 0, 0
        self._why: Exception | None = None
        self._stop, self._abort = asyncio.Event(), asyncio.Event()
        self._disk = _Disk(store)

    async def run(self, requests: Iterable[Request], n_requests: int | None = None) -> Tally:
        """Has every request answered and stored, equal ones once. n_requests: for the progress bar.

        Raises Stopped or RunError where the run ends early, after what was in flight has been stored.
        """
        todo = self._missing(requests)
        with tqdm(total=n_requests, unit="answer", desc=self.purpose, disable=None, smoothing=0.05) as self._bar:
            async with self._disk.at_work(), self._signals():
                await self._finish([asyncio.create_task(self._work(todo)) for _ in range(self.pool.most)])
                try:
                    await self._store_held()
                except RunError as fault:
                    self._end(fault)
        if isinstance(self._why, Stopped):
            states = self.store.states()
            n = sum(states.get(key, "failed") != "failed" for key in self._seen)
            raise Stopped(f"{self._why}; {n:,} answers are stored, the same command goes on from there", self._why.code)
        if self._why is not None:
            raise self._why
        return self.tally

    async def _finish(self, workers: list[asyncio.Task[None]]) -> None:
        """Waits for the workers; once the run is to stop, for no longer than the grace time."""
        everyone = asyncio.create_task(asyncio.wait(workers))
        stop, abort = (asyncio.create_task(event.wait()) for event in (self._stop, self._abort))
        first = asyncio.FIRST_COMPLETED
        await asyncio.wait({everyone, stop}, return_when=first)
        if not everyone.done():
            await asyncio.wait({everyone, abort}, timeout=self.config.grace, return_when=first)
        tasks = (everyone, stop, abort, *workers)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _missing(self, requests: Iterable[Request]) -> Iterator[Request]:
        """Those that have to be sent: neither stored nor seen in this run."""
        known, again = self.store.states(), self.config.again
        for request in requests:
            key = bytes.fromhex(request.key)
            if key in self._seen:
                continue
            self._seen.add(key)
            if known.get(key, "failed") in again:
                yield request
            else:
                self._add(n_known=1)
                self._bar.update()

    async def _work(self, todo: Iterator[Request]) -> None:
        """One worker: a request after the other, each until what came of it is on the disk."""
        try:
            while not self._stop.is_set() and (request := next(todo, None)) is not None:
                row = await self._ask(request)
                if row is None:  # the run stops
                    return
                if row.state == "refused" and not self._n_answers + self.tally.n_known:
                    self._held.append(row)
                    continue
                await self._store_held()
                await self._disk.put(row)
                self._count(row)
        except Exception as fault:
            self._end(fault)

    async def _ask(self, request: Request) -> Row | None:
        """What came of a request, after as many attempts as it takes; None where the run stops before that."""
        n_attempts, counted, why, pause = 0, 0.0, "", 0.0
        while counted < self.config.max_attempts:
            turn = await self._turn(request)
            if turn is None:
                return None
            n_attempts += 1
            start = time.monotonic()
            used = turn.tokens
            try:
                raw = await self.transport.send(turn.endpoint, request)
                answer = reading.read_answer(raw, request, self.config.accept_finish_reason)
                used = answer.tokens_in + answer.tokens_out
                return self._answered(turn.endpoint, request, raw, answer, n_attempts, time.monotonic() - start)
            except Refused as fault:
                turn.endpoint.answered()
                row = _without_answer(request, self.purpose, fault.state, str(fault), n_attempts)
                if fault.state == "unusable":  # it was paid for, and what it took is not known
                    tokens_in, tokens_out = request.tokens[0], max(request.tokens[1], fault.n_tokens)
                    dollars = self.config.dollars(tokens_in, tokens_out)
                    row = row._replace(tokens_in=tokens_in, tokens_out=tokens_out, dollars=dollars, is_counted=False)
                    self.limits.answered(row.dollars)
                return row
            except (Later, Unreadable) as fault:
                why = turn.endpoint.masked(str(fault))
                self.limits.failed(why, is_reached=not isinstance(fault, Later) or fault.is_reached)
                if isinstance(fault, Unreadable):
                    turn.endpoint.failed(why, is_reached=True)
                counted += _share(fault)
                pause = _longest_pause(fault, n_attempts)
            finally:
                self.transport.tokens.settle(used - turn.tokens)
                self.limits.release(turn.dollars)
                self.pool.release(turn.endpoint)
            await self._pause(random.uniform(0, pause))
        return _without_answer(request, self.purpose, "failed", why, n_attempts)

    async def _turn(self, request: Request) -> _Turn | None:
        """A slot for one more attempt, in its turn; None where the run stops. Raises RunError where it has to."""
        tokens = request.tokens[0] + self._tokens_out(request)
        dollars = self.config.dollars(request.tokens[0], self._tokens_out(request))
        while not self._stop.is_set():
            self.limits.check_patience(has_known=self.tally.n_known > 0)
            self.limits.check_refusals(self._held, self.pool.in_flight)
            is_allowed = self.limits.allows(dollars, self.tally.n_sent, len(self._held), self.pool.in_flight)
            endpoint = self.pool.acquire() if is_allowed else None
            if endpoint is None:
                await self.pool.wait()
                continue
            self.limits.reserve(dollars)
            self._add(n_sent=1)
            await self._pause(self.transport.requests.delay(1))
            await self._pause(self.transport.tokens.delay(tokens))
            if not self._stop.is_set() and time.monotonic() >= endpoint.rests_until:
                return _Turn(endpoint, tokens, dollars)
            self.pool.release(endpoint)  # it has begun to rest meanwhile
            self.limits.release(dollars)
            self._add(n_sent=-1)
        return None

    def _tokens_out(self, request: Request) -> int:
        """How long its answer may be: as the answers so far."""
        if self._n_answers:
            return self._n_tokens_out // self._n_answers
        return min(request.tokens[1], FIRST_TOKENS_OUT)

    async def _pause(self, seconds: float) -> None:
        """Sleeps, unless the run stops meanwhile."""
        if seconds > 0:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._stop.wait(), seconds)

    def _end(self, why: Exception) -> None:
        """Ends the run: nothing more is sent, what is in flight comes home; where the disk is full, nothing can."""
        self._why = self._why or why
        self._stop.set()
        if self._disk.is_broken:
            self._abort.set()

    @contextlib.asynccontextmanager
    async def _signals(self) -> AsyncIterator[None]:
        """Ctrl-C and SIGTERM stop the run; the second one does not wait."""
        loop = asyncio.get_running_loop()

        def stop(code: int) -> None:
            if self._stop.is_set():
                self._abort.set()
            else:
                self._end(Stopped("stopped", code))
                said = f"stopping: {self.pool.in_flight} answers are on their way (once more: at once)"
                tqdm.write(said, file=sys.stderr)

        codes = {signal.SIGINT: 130, signal.SIGTERM: 143}
        for number, code in codes.items():
            loop.add_signal_handler(number, stop, code)
        try:
            yield
        finally:
            for number in codes:
                loop.remove_signal_handler(number)

    # --- what came of it -------------------------------------------------------------------------------------------

    def _answered(
        self, endpoint: Endpoint, request: Request, raw: bytes, answer: Completion, n_attempts: int, seconds: float
    ) -> Row:
        endpoint.answered()
        row = answer_row(request, self.purpose, raw, answer, self.config, n_attempts=n_attempts, seconds=seconds)
        self.limits.answered(row.dollars)
        self._n_answers += 1
        self._n_tokens_out += answer.tokens_out
        return row

    async def _store_held(self) -> None:
        """Refusals that were kept back: once something is answered, they are the rows' fault and not the settings'."""
        held, self._held = self._held, []
        if self._why is not None and not self._n_answers:  # the settings' fault: asked again when they are mended
            return
        for row in held:
            await self._disk.put(row)
            self._count(row)

    def _count(self, row: Row) -> None:
        self._add(
            n_stored=row.state != "failed",
            n_unusable=row.state in ("unusable", "refused"),
            n_failed=row.state == "failed",
            n_tokens=row.tokens_in + row.tokens_out,
            dollars=row.dollars,
        )
        self._bar.update()
        t = self.tally
        self._bar.set_postfix_str(
            f"{self.pool.in_flight} in flight, {t.n_failed + t.n_unusable} bad, "
            f"{t.n_tokens / 1e6:,.2f}M tokens, ${t.dollars:,.2f}",
            refresh=False,
        )

    def _add(self, **more: float) -> None:
        self.tally = self.tally._replace(**{name: getattr(self.tally, name) + n for name, n in more.items()})


def _share(fault: Later | Unreadable) -> float:
    """How much of an attempt a failure is: where there was no server, nothing; where it only asked for less, little."""
    if isinstance(fault, Later) and not fault.is_reached:
        return 0.0
    return LIMIT_SHARE if isinstance(fault, Later) and fault.is_limit else 1.0


def _longest_pause(fault: Later | Unreadable, n_attempts: int) -> float:
    """Seconds, at most, before a request is repeated: it grows with the attempts. A server that only asked for less has
    its endpoint slowed down already, and one that said for how long lets it rest.
    """
    if isinstance(fault, Later) and fault.is_told:
        return min(LONGEST_BACKOFF, TOLD_JITTER)
    if isinstance(fault, Later) and fault.is_limit:
        return min(LONGEST_BACKOFF, LONGEST_LIMIT_BACKOFF, 0.25 * 2.0 ** min(n_attempts, 10))
    return min(LONGEST_BACKOFF, 0.5 * 2.0 ** min(n_attempts, 10))


def answer_row(
    request: Request,
    purpose: str,
    raw: bytes,
    answer: Completion,
    config: ClientConfig,
    *,
    n_attempts: int = 1,
    seconds: float = 0.0,
    price: float = 1.0,
) -> Row:
    """An answer as it is stored. price: what part of the configured prices it cost."""
    return Row(
        key=request.key,
        purpose=purpose,
        state="answered" if answer.fault is None else "unusable",
        request=wire.canonical(request.body),
        answer=raw,
        answer_id=answer.id,
        attempts=n_attempts,
        seconds=seconds,
        tokens_in=answer.tokens_in,
        tokens_out=answer.tokens_out,
        is_counted=answer.is_counted,
        dollars=price * config.dollars(answer.tokens_in, answer.tokens_out),
        time=time.time(),
    )


def _without_answer(request: Request, purpose: str, state: State, why: str, n_attempts: int) -> Row:
    return Row(
        key=request.key,
        purpose=purpose,
        state=state,
        request=wire.canonical(request.body),
        answer=why.encode("utf-8", "replace"),
        attempts=n_attempts,
        time=time.time(),
    )


class _Disk:
    """Rows on their way into the store: those that come in during a commit share the next one."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._waiting: list[tuple[Row, asyncio.Future[None]]] = []
        self._wake = asyncio.Event()
        self.is_broken = False

    async def put(self, row: Row) -> None:
        """Returns when the row is on the disk. Raises RunError where it cannot be."""
        done = asyncio.get_running_loop().create_future()
        self._waiting.append((row, done))
        self._wake.set()
        await done

    @contextlib.asynccontextmanager
    async def at_work(self) -> AsyncIterator[None]:
        """Writes while the block runs, in a thread of its own; what is left when it ends is written then."""
        with ThreadPoolExecutor(1) as thread:
            writing = asyncio.create_task(self._write(thread))
            try:
                yield
            finally:
                writing.cancel()
                await asyncio.gather(writing, return_exceptions=True)
        if self._waiting and not self.is_broken:
            self._store.write([row for row, _ in self._waiting])

    async def _write(self, thread: ThreadPoolExecutor) -> None:
        while True:
            await self._wake.wait()
            self._wake.clear()
            batch, self._waiting = self._waiting, []
            try:
                await asyncio.get_running_loop().run_in_executor(thread, self._store.write, [row for row, _ in batch])
            except RunError as fault:
                self.is_broken = True
                for _, done in batch:
                    if not done.done():
                        done.set_exception(fault)
            else:
                for _, done in batch:
                    if not done.done():
                        done.set_result(None)
