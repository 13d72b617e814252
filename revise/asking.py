"""A run of requests: which are sent, how often, how many at once, when it stops, and when an answer counts.

A fixed number of workers take requests from one iterator. Each finds a place at an endpoint, sends, and waits until the
answer is on the disk; answers that come in while the disk is busy share one commit. An attempt that fails is repeated
after a random wait that grows; what it is no use to repeat is stored as refused, what has failed too often as failed.
"""

import asyncio
import contextlib
import random
import signal
import sys
import time
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple, Protocol

from tqdm import tqdm

from data.errors import RunError, Stopped
from revise import wire
from revise.config import ClientConfig
from revise.endpoints import Endpoint, Pace, Pool
from revise.store import Row, State, Store
from revise.wire import Completion, Request, Unreadable

LIMIT_SHARE = 1 / 8  # of an attempt: "later" says nothing against the request
LONGEST_BACKOFF = 30.0  # seconds
FIRST_REFUSALS = 8  # and no answer: then the settings are wrong, not the rows


class Later(Exception):
    """An attempt that failed and may succeed when it is repeated. is_limit: the server only asked for less."""

    def __init__(self, why: str, *, is_limit: bool = False) -> None:
        super().__init__(why)
        self.is_limit = is_limit


class Refused(Exception):
    """A request that it is no use to repeat. state: how it is stored."""

    def __init__(self, why: str, *, state: State = "refused") -> None:
        super().__init__(why)
        self.state: State = state


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


class Asking:
    """One run of requests over a pool of endpoints."""

    def __init__(self, store: Store, config: ClientConfig, pool: Pool, transport: Transport, purpose: str) -> None:
        self.store, self.config, self.pool, self.transport, self.purpose = store, config, pool, transport, purpose
        self.tally = Tally()
        self._money = _Money(config, store.dollars())
        self._seen: set[bytes] = set()
        self._failing_since: float | None = None
        self._last_failure = ""
        self._n_refused = 0
        self._why: RunError | None = None
        self._stop, self._abort = asyncio.Event(), asyncio.Event()
        self._disk = _Disk(store)

    async def through(self, requests: Iterable[Request], n_requests: int | None = None) -> Tally:
        """Has every request answered and stored, equal ones once. n_requests: for the progress bar.

        Raises Stopped or RunError where the run ends early, after what was in flight has been stored.
        """
        todo = self._missing(requests)
        with tqdm(total=n_requests, unit="answer", desc=self.purpose, disable=None, smoothing=0.05) as self._bar:
            async with self._disk.at_work(), self._signals():
                await self._finish([asyncio.create_task(self._work(todo)) for _ in range(self.pool.most)])
        if self._why is not None:
            raise self._why
        return self.tally

    async def _finish(self, workers: list[asyncio.Task[None]]) -> None:
        """Waits for the workers; once the run is to stop, for no longer than the grace time."""
        everyone = asyncio.create_task(asyncio.wait(workers, return_when=asyncio.FIRST_EXCEPTION))
        stop, abort = (asyncio.create_task(event.wait()) for event in (self._stop, self._abort))
        first = asyncio.FIRST_COMPLETED
        try:
            await asyncio.wait({everyone, stop}, return_when=first)
            if not everyone.done():
                await asyncio.wait({everyone, abort}, timeout=self.config.grace, return_when=first)
        finally:
            tasks = (everyone, stop, abort, *workers)
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
        for worker in workers:
            if not worker.cancelled():
                worker.result()  # a fault of this program keeps its traceback

    def _missing(self, requests: Iterable[Request]) -> Iterator[Request]:
        """Those that have to be sent: neither stored nor seen in this run."""
        known = self.store.states()
        again: tuple[State, ...] = ("failed", "refused", "unusable") if self.config.ask_again else ("failed",)
        for request in requests:
            key = bytes.fromhex(request.key)
            if key in self._seen:
                continue
            self._seen.add(key)
            if known.get(key, "failed") in again:
                yield request
            else:
                self.tally = self.tally._replace(n_known=self.tally.n_known + 1)
                self._bar.update()

    async def _work(self, todo: Iterator[Request]) -> None:
        """One worker: a request after the other, each until what came of it is on the disk."""
        for request in todo:
            try:
                row = await self._ask(request)
                if row is None:  # the run stops
                    return
                await self._disk.put(row)
                self._count(row)
            except RunError as fault:
                self.stop(fault)
                return

    async def _ask(self, request: Request) -> Row | None:
        """What came of a request, after as many attempts as it takes; None where the run stops before that."""
        n_attempts, counted = 0, 0.0
        while counted < self.config.max_attempts:
            endpoint = await self._place(request)
            if endpoint is None:
                return None
            n_attempts += 1
            start, was_down = time.monotonic(), endpoint.is_down
            expected = self._money.reserve(request)
            try:
                raw = await self.transport.send(endpoint, request)
                answer = wire.read_answer(raw, request)
                endpoint.answered()
                self._failing_since = None
                row = self._row(request, raw, answer, n_attempts, time.monotonic() - start)
                self._money.spend(row)
                return row
            except Refused as fault:
                endpoint.answered()
                self._check_refusals(fault)
                return _without_answer(request, self.purpose, fault.state, str(fault), n_attempts)
            except (Later, Unreadable) as fault:
                self._last_failure = str(fault)
                self._failing_since = self._failing_since or start
                is_limit = isinstance(fault, Later) and fault.is_limit
                counted += 0 if was_down else LIMIT_SHARE if is_limit else 1
            finally:
                self._money.release(expected)
                self.pool.leave(endpoint)
            await self._pause(random.uniform(0, min(LONGEST_BACKOFF, 0.5 * 2.0 ** min(n_attempts, 10))))
            if self._stop.is_set():
                return None
        return _without_answer(request, self.purpose, "failed", self._last_failure, n_attempts)

    async def _place(self, request: Request) -> Endpoint | None:
        """A place for one more attempt, in its turn; None where the run stops. Raises RunError where it has to."""
        await self._pause(self.transport.requests.delay(1))
        await self._pause(self.transport.tokens.delay(request.tokens[0] + self._money.tokens_out(request)))
        while not self._stop.is_set():
            self._check_patience()
            if (endpoint := self.pool.place()) is not None:
                if (cap := self._reached_cap(request)) is not None:
                    self.pool.leave(endpoint)
                    raise Stopped(f"{cap}; {self._so_far()}", 1)
                self.tally = self.tally._replace(n_sent=self.tally.n_sent + 1)
                return endpoint
            await self.pool.wait()
        return None

    async def _pause(self, seconds: float) -> None:
        """Sleeps, unless the run stops meanwhile."""
        if seconds > 0:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._stop.wait(), seconds)

    # --- what ends a run -------------------------------------------------------------------------------------------

    def stop(self, why: RunError) -> None:
        """Ends the run: nothing more is sent, what is in flight comes home; where the disk is full, nothing can."""
        self._why = self._why or why
        self._stop.set()
        if self._disk.is_broken:
            self._abort.set()

    @contextlib.asynccontextmanager
    async def _signals(self):
        """Ctrl-C and SIGTERM stop the run; the second one does not wait."""
        loop = asyncio.get_running_loop()

        def stop(code: int) -> None:
            if self._stop.is_set():
                self._abort.set()
            else:
                self.stop(Stopped("stopped", code))
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
            if isinstance(self._why, Stopped) and str(self._why) == "stopped":
                self._why = Stopped(f"stopped; {self._so_far()}", self._why.code)

    def _so_far(self) -> str:
        n = self.tally.n_known + self.tally.n_stored
        return f"{n:,} answers are stored, and the same command goes on from there"

    def _check_patience(self) -> None:
        """Raises RunError where nothing has been answered for too long."""
        if self._failing_since is not None and time.monotonic() - self._failing_since > self.config.patience:
            raise RunError(
                f"no answer for {self.config.patience:g} s (the last attempt: {self._last_failure}); {self._so_far()}"
            )

    def _check_refusals(self, fault: Refused) -> None:
        """Raises RunError where the server refuses all that it is asked: nothing of it is stored."""
        self._n_refused += fault.state == "refused"
        if self._n_refused >= FIRST_REFUSALS and not self.tally.n_stored - self.tally.n_unusable:
            raise RunError(f"the first {FIRST_REFUSALS} requests were all refused ({fault}); mend the settings")

    def _reached_cap(self, request: Request) -> str | None:
        if self.config.max_requests is not None and self.tally.n_sent >= self.config.max_requests:
            return f"--max-requests: {self.config.max_requests:,} requests have been sent"
        if self.config.max_cost is not None and not self._money.is_enough_for(request):
            return f"--max-cost: ${self._money.spent:,.4f} of ${self.config.max_cost:,.4f} are spent"
        return None

    # --- what came of it -------------------------------------------------------------------------------------------

    def _row(self, request: Request, raw: bytes, answer: Completion, n_attempts: int, seconds: float) -> Row:
        sent = request.tokens[0] + self._money.tokens_out(request)
        self.transport.tokens.settle(answer.tokens_in + answer.tokens_out - sent)
        state: State = "answered" if answer.fault is None else "unusable"
        return Row(
            *(request.key, self.purpose, state, wire.canonical(request.body), raw, answer.id, n_attempts, seconds),
            *(answer.tokens_in, answer.tokens_out, answer.is_counted),
            *(self.config.dollars(answer.tokens_in, answer.tokens_out), time.time()),
        )

    def _count(self, row: Row) -> None:
        t = self.tally
        self.tally = t._replace(
            n_stored=t.n_stored + (row.state != "failed"),
            n_unusable=t.n_unusable + (row.state in ("unusable", "refused")),
            n_failed=t.n_failed + (row.state == "failed"),
            n_tokens=t.n_tokens + row.tokens_in + row.tokens_out,
            dollars=t.dollars + row.dollars,
        )
        self._bar.update()
        t = self.tally
        self._bar.set_postfix_str(
            f"{self.pool.in_flight} in flight, {t.n_failed + t.n_unusable} bad, "
            f"{t.n_tokens / 1e6:,.2f}M tokens, ${t.dollars:,.2f}",
            refresh=False,
        )


def _without_answer(request: Request, purpose: str, state: State, why: str, n_attempts: int) -> Row:
    body = wire.canonical(request.body)
    return Row(request.key, purpose, state, body, why.encode(), None, n_attempts, time=time.time())


class _Money:
    """What has been spent, and what the requests in flight are expected to cost."""

    def __init__(self, config: ClientConfig, spent: float) -> None:
        self._config, self.spent = config, spent
        self._reserved = 0.0
        self._n_answers, self._tokens_out = 0, 0

    def tokens_out(self, request: Request) -> int:
        """How long its answer may be: as the answers so far, or the most that is allowed before there are any."""
        return self._tokens_out // self._n_answers if self._n_answers else request.tokens[1]

    def expected(self, request: Request) -> float:
        return self._config.dollars(request.tokens[0], self.tokens_out(request))

    def is_enough_for(self, request: Request) -> bool:
        most = self._config.max_cost
        return most is None or self.spent + self._reserved + self.expected(request) <= most

    def reserve(self, request: Request) -> float:
        expected = self.expected(request)
        self._reserved += expected
        return expected

    def release(self, dollars: float) -> None:
        self._reserved -= dollars

    def spend(self, row: Row) -> None:
        self.spent += row.dollars
        self._n_answers += row.tokens_out > 0
        self._tokens_out += row.tokens_out


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
    async def at_work(self):
        """Writes while the block runs, in a thread of its own."""
        with ThreadPoolExecutor(1) as thread:
            writing = asyncio.create_task(self._write(thread))
            try:
                yield
            finally:
                writing.cancel()
                await asyncio.gather(writing, return_exceptions=True)

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
