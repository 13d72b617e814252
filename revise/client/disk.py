"""What came of requests, as rows on their way into the store: those that come in during a commit share the next one."""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor

from revise.client import wire
from revise.client.config import ClientConfig
from revise.client.reading import Completion
from revise.client.store import Row, State, Store
from revise.client.wire import Request
from system import RunError


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
        dollars=config.dollars(answer.tokens_in, answer.tokens_out) * price if answer.cost is None else answer.cost,
        time=time.time(),
    )


def without_answer(request: Request, purpose: str, state: State, why: str, n_attempts: int) -> Row:
    """A request to which no answer came, and why."""
    return Row(
        key=request.key,
        purpose=purpose,
        state=state,
        request=wire.canonical(request.body),
        answer=why.encode("utf-8", "replace"),
        attempts=n_attempts,
        time=time.time(),
    )


class Disk:
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
