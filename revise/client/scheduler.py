"""A run of requests: which are sent, how often, how many at once, and when an answer counts.

A fixed number of workers take requests from one iterator. Each waits for a slot at an endpoint, sends, and waits until
the answer is on the disk; answers that come in while the disk is busy share one commit. An attempt that fails is
repeated after a random wait that grows; what it is no use to repeat is stored as refused, what has failed too often as
failed. When a run ends before its time is in run_limits.py, what its first answers say of the rest in trial.py;
whatever the reason, what is in flight comes home first.
"""

import asyncio
import contextlib
import random
import signal
import sys
import time
from collections.abc import AsyncIterator, Iterable, Iterator
from typing import NamedTuple, Protocol

from tqdm import tqdm

from revise.client import reading, wire
from revise.client.config import ClientConfig
from revise.client.disk import Disk, answer_row, without_answer
from revise.client.endpoints import Endpoint, Pace, Pool
from revise.client.look import Look
from revise.client.reading import Completion, Unreadable
from revise.client.roles import SERVED, Role
from revise.client.run_limits import RunLimits
from revise.client.store import Row, State, Store
from revise.client.wire import Request
from system import RunError, Stopped, cli
from system.signals import heard

LIMIT_SHARE = 1 / 8  # of an attempt: "later" says nothing against the request
LONGEST_BACKOFF = 30.0  # seconds
LONGEST_LIMIT_BACKOFF = 4.0  # where a server only asked for less
TOLD_JITTER = 0.5  # behind a rest that it asked for
FIRST_TOKENS_OUT = 256  # expected of an answer before there was any


class Later(Exception):
    """An attempt that failed and may succeed when it is repeated. is_limit: the server only asked for less; is_told: it
    said for how long, so that its endpoint rests; is_reached: there was a server. is_timeout: it may have been paid;
    is_queued: requests wait in a line there. is_free: it is asked again at once, under other names.
    """

    def __init__(
        self,
        why: str,
        *,
        is_limit: bool = False,
        is_told: bool = False,
        is_reached: bool = True,
        is_timeout: bool = False,
        is_queued: bool = False,
        is_free: bool = False,
    ) -> None:
        super().__init__(why)
        self.is_limit, self.is_told, self.is_reached = is_limit, is_told, is_reached
        self.is_timeout, self.is_queued, self.is_free = is_timeout, is_queued, is_free


class Refused(Exception):
    """A request that it is no use to repeat. state: how it is stored; n_tokens: of an answer that came all the same.
    is_own: for what stands in this row; words: what such refusals have in common; mend: what is known to mend it;
    is_settings: it is not the row, for sure.
    """

    def __init__(
        self,
        why: str,
        *,
        state: State = "refused",
        n_tokens: int = 0,
        is_own: bool = False,
        words: str = "",
        mend: str = "",
        is_settings: bool = False,
    ) -> None:
        super().__init__(why)
        self.state: State = state
        self.n_tokens = n_tokens
        self.is_own, self.words, self.mend, self.is_settings = is_own, words, mend, is_settings


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

    def __init__(
        self,
        store: Store,
        config: ClientConfig,
        pool: Pool,
        transport: Transport,
        purpose: str,
        role: Role = SERVED,
    ) -> None:
        self.store, self.config, self.pool, self.transport, self.purpose = store, config, pool, transport, purpose
        self.tally = Tally()
        self.limits = RunLimits(config, store.dollars())
        self._look = Look(pool, role, goes_on=config.go_on, accepted=config.accept_finish_reason)
        self._seen: set[bytes] = set()
        self._n_answers, self._n_tokens_out = 0, 0
        self._why: Exception | None = None
        self._stop, self._abort = asyncio.Event(), asyncio.Event()
        self._disk = Disk(store)

    async def run(self, requests: Iterable[Request], n_requests: int | None = None) -> Tally:
        """Has every request answered and stored, equal ones once. n_requests: for the progress bar.

        Raises Stopped or RunError where the run ends early, after what was in flight has been stored.
        """
        todo = self._missing(requests)
        with tqdm(total=n_requests, unit="answer", desc=self.purpose, disable=None, smoothing=0.05) as self._bar:
            async with self._disk.at_work(), self._signals():
                await self._finish([asyncio.create_task(self._work(todo)) for _ in range(self.pool.most)])
                try:
                    await self._keep(self._look.end() if self._why is None else [])
                except RunError as fault:
                    self._end(fault)
        if self._look.useless and not self._disk.is_broken:
            self.store.mark_unusable(self._look.useless)
        if notice := self._look.notice():
            cli.notify(notice)
        if isinstance(self._why, Stopped):
            states = self.store.states()
            n = sum(states.get(key, "failed") != "failed" for key in self._seen)
            raise Stopped(
                f"{self._why}; {n:,} answers are stored, and the same command continues from there", self._why.code
            )
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
                self._look.knows(request, known[key], self.store)
                self._add(n_known=1)
                self._bar.update()

    async def _work(self, todo: Iterator[Request]) -> None:
        """One worker: a request after the other, each until what came of it is on the disk."""
        try:
            while not self._stop.is_set() and (request := next(todo, None)) is not None:
                rows = await self._ask(request)
                if rows is None:  # the run stops
                    return
                await self._keep(rows)
                self._look.check()
        except Exception as fault:
            self._end(fault)

    async def _keep(self, rows: list[Row]) -> None:
        """Returns when they are on the disk."""
        for row in rows:
            await self._disk.put(row)
            self._count(row)

    async def _ask(self, request: Request) -> list[Row] | None:
        """What is to be stored after a request has come home, after as many attempts as it takes: what came of it, and
        refusals that were kept back. None where the run stops before that.
        """
        n_attempts, counted, why, pause, lost = 0, 0.0, "", 0.0, 0.0
        while counted < self.config.max_attempts:
            turn = await self._turn(request)
            if turn is None and not lost:
                return None
            if turn is None:
                break  # it counts as failed, with what it may have cost
            n_attempts += 1
            start = time.monotonic()
            used = turn.tokens
            try:
                raw = await self.transport.send(turn.endpoint, request)
                answer = reading.read_answer(raw, request, self.config.accept_finish_reason)
                used = answer.tokens_in + answer.tokens_out
                seconds = time.monotonic() - start
                row = self._answered(turn.endpoint, request, raw, answer, n_attempts, seconds, lost)
                useless = self._look.why_useless(request, answer)
                if useless is not None:  # --ask-again asks anew
                    row = row._replace(state="unusable")
                return [*self._look.answered(turn.endpoint, request, answer, useless), row]
            except Refused as fault:
                turn.endpoint.answered()
                row = without_answer(request, self.purpose, fault.state, str(fault), n_attempts)
                if fault.state == "unusable":  # it was paid for, and what it took is not known
                    tokens_in, tokens_out = request.tokens[0], max(request.tokens[1], fault.n_tokens)
                    dollars = self.config.dollars(tokens_in, tokens_out)
                    row = row._replace(tokens_in=tokens_in, tokens_out=tokens_out, dollars=dollars, is_counted=False)
                    self.limits.answered(row.dollars)
                    return [*self._look.dropped(turn.endpoint, request, str(fault)), row]
                return self._look.refused(turn.endpoint, row._replace(dollars=lost), fault)
            except (Later, Unreadable) as fault:
                why = turn.endpoint.masked(str(fault))
                self.limits.failed(why, is_reached=not isinstance(fault, Later) or fault.is_reached)
                if isinstance(fault, Unreadable):
                    turn.endpoint.failed(why, is_reached=True)
                if isinstance(fault, Later) and fault.is_timeout:
                    lost += self._lost(request)
                    counted += self.config.max_attempts if self._look.timed_out(turn.endpoint, why) else 0
                counted += _share(fault, self.config.max_attempts)
                pause = _longest_pause(fault, n_attempts)
            finally:
                self.transport.tokens.settle(used - turn.tokens)
                self.limits.release(turn.dollars)
                self.pool.release(turn.endpoint)
            if counted < self.config.max_attempts:
                await self._pause(random.uniform(0, pause))
        return [without_answer(request, self.purpose, "failed", why, n_attempts)._replace(dollars=lost)]

    def _lost(self, request: Request) -> float:
        """What an attempt that timed out may have cost."""
        dollars = self.config.dollars(request.tokens[0], max(request.tokens[1], self._tokens_out(request)))
        self.limits.spend(dollars)
        return dollars

    async def _turn(self, request: Request) -> _Turn | None:
        """A slot for one more attempt, in its turn; None where the run stops. Raises RunError where it has to."""
        tokens = request.tokens[0] + self._tokens_out(request)
        dollars = self.config.dollars(request.tokens[0], self._tokens_out(request))
        while not self._stop.is_set():
            self.limits.check_patience(has_known=self.tally.n_known > 0)
            is_allowed = self.limits.allows(dollars, self.tally.n_sent, self.pool.in_flight)
            endpoint = self.pool.acquire(self._look.room) if is_allowed else None
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
        """Ctrl-C, SIGTERM and a closed terminal stop the run; the second one does not wait."""
        loop = asyncio.get_running_loop()

        def stop(code: int) -> None:
            if self._stop.is_set():
                self._abort.set()
            else:
                self._end(Stopped("stopped", code))
                said = f"stopping: waiting for {self.pool.in_flight} answers (a second signal stops at once)"
                tqdm.write(said, file=sys.stderr)

        before = {number: signal.getsignal(number) for number in heard()}
        for number in before:
            loop.add_signal_handler(number, stop, 128 + number)
        try:
            yield
        finally:
            for number, handler in before.items():
                loop.remove_signal_handler(number)  # which leaves the system's own
                signal.signal(number, handler)

    # --- what came of it -------------------------------------------------------------------------------------------

    def _answered(
        self,
        endpoint: Endpoint,
        request: Request,
        raw: bytes,
        answer: Completion,
        n_attempts: int,
        seconds: float,
        lost: float,
    ) -> Row:
        endpoint.answered()
        row = answer_row(request, self.purpose, raw, answer, self.config, n_attempts=n_attempts, seconds=seconds)
        self.limits.answered(row.dollars)
        row = row._replace(dollars=row.dollars + lost)
        if endpoint.renamed:
            row = row._replace(request=wire.canonical(endpoint.sent(request.body)))
        self._n_answers += 1
        self._n_tokens_out += answer.tokens_out
        return row

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


def _share(fault: Later | Unreadable, most: int) -> float:
    """How much of an attempt a failure is: where there was no server, nothing; where it only asked for less, little;
    where it timed out and may have been paid, half of all.
    """
    if isinstance(fault, Unreadable):
        return 1.0
    if not fault.is_reached or fault.is_free:
        return 0.0
    if fault.is_timeout and not fault.is_queued:
        return max(1.0, most / 2)
    return LIMIT_SHARE if fault.is_limit else 1.0


def _longest_pause(fault: Later | Unreadable, n_attempts: int) -> float:
    """Seconds, at most, before a request is repeated: it grows with the attempts. A server that only asked for less has
    its endpoint slowed down already, and one that said for how long lets it rest.
    """
    if isinstance(fault, Later) and fault.is_free:
        return 0.0
    if isinstance(fault, Later) and fault.is_told:
        return min(LONGEST_BACKOFF, TOLD_JITTER)
    if isinstance(fault, Later) and fault.is_limit:
        return min(LONGEST_BACKOFF, LONGEST_LIMIT_BACKOFF, 0.25 * 2.0 ** min(n_attempts, 10))
    return min(LONGEST_BACKOFF, 0.5 * 2.0 ** min(n_attempts, 10))
