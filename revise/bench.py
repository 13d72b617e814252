"""How many answers a second the client takes in, the store included.

    python -m revise.bench --in-flight 256 --seconds 1

A loopback server on one core answers each request after so many seconds; the client, its store and nothing else have
another core. The ideal is what the server gives: requests in flight over seconds. It is timed from the first answer on,
for which everything waits. Memory is the client's, at its highest after the first tenth of the requests and at the end.
"""

import asyncio
import contextlib
import importlib
import importlib.util
import multiprocessing
import os
import resource
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Literal

from revise.client import (
    ClientConfig,
    Endpoint,
    HttpTransport,
    Pace,
    Pool,
    Request,
    Scheduler,
    endpoints_of,
    open_store,
)
from revise.loopback import Reply, serve
from system import cli
from system.flags import PathText, check_above_zero, check_not_negative

EXAMPLE = "python -m revise.bench --in-flight 256 --seconds 1"


@dataclass(frozen=True, kw_only=True)
class BenchConfig:
    """Measure how many answers a second the client and its store take in, against a server on this machine."""

    in_flight: int = 256
    """Number of requests in flight at once."""
    seconds: float = 1.0
    """Seconds that the server takes to answer a request."""
    requests: int = 0
    """Number of requests to send; 0 sends twenty seconds' worth."""
    characters: int = 1500
    """Length of each prompt and of each answer, in characters."""
    library: tuple[Literal["httpx", "httpx2"], ...] = ()
    """HTTP libraries to compare. Unset: the one that the client uses."""
    config: PathText | None = None
    """YAML file with settings under the names of the flags. Flags on the command line win over it."""

    def __post_init__(self) -> None:
        check_above_zero(self, "in_flight", "characters")
        check_not_negative(self, "seconds", "requests")


def main(argv: Sequence[str]) -> None:
    """The command."""
    config = cli.parse(BenchConfig, argv, command="python -m revise.bench", example=EXAMPLE)
    cores = sorted(os.sched_getaffinity(0))
    for name in config.library or ("httpx2" if importlib.util.find_spec("httpx2") else "httpx",):
        with _server(config, cores[-1]) as base:
            os.sched_setaffinity(0, cores[:1])
            print(_measure(config, base, name), flush=True)
            os.sched_setaffinity(0, cores)


def _measure(config: BenchConfig, base: str, name: str) -> str:
    n = config.requests or int(20 * config.in_flight / max(config.seconds, 0.1))
    memory: list[int] = []

    def requests() -> Iterator[Request]:
        for i in range(n):
            if i == n // 10:
                memory.append(_peak_kb())
            yield Request(
                {"model": "m", "messages": [{"role": "user", "content": f"{i} ".ljust(config.characters, "x")}]}
            )

    with tempfile.TemporaryDirectory() as folder:
        settings = ClientConfig(store=f"{folder}/store.sqlite", endpoint=(base,), concurrency=config.in_flight)
        pool = Pool(endpoints_of(settings.endpoint, settings))
        timed = _Timed()

        async def ask() -> None:
            async with HttpTransport.open(settings, importlib.import_module(name)) as transport:
                timed.take(transport)
                await Scheduler(store, settings, pool, timed, "bench").run(requests(), n)

        with open_store(Path(settings.store)) as store:
            asyncio.run(ask())
            wall, cpu = time.perf_counter() - timed.start, time.process_time() - timed.cpu
    memory.append(_peak_kb())
    rate = (n - 1) / wall
    ideal = f"{rate * config.seconds / config.in_flight:.1%} of the ideal" if config.seconds else "no ideal"
    early, late = (kb / 1024 for kb in memory)
    return (
        f"{name}: {n:,} answers, {config.in_flight} in flight, {config.seconds:g} s each: {rate:,.0f} a second, {ideal}"
        f"; {cpu / wall:.0%} of a core; memory {early:,.0f} MB after a tenth, {late:,.0f} MB at the end"
    )


class _Timed:
    """A transport that notes when the first answer came."""

    requests: Pace
    tokens: Pace

    def __init__(self) -> None:
        self.start = self.cpu = 0.0

    def take(self, transport: HttpTransport) -> None:
        """What it sends by."""
        self._transport, self.requests, self.tokens = transport, transport.requests, transport.tokens

    async def send(self, endpoint: Endpoint, request: Request) -> bytes:
        """See scheduler.Transport."""
        raw = await self._transport.send(endpoint, request)
        if not self.start:
            self.start, self.cpu = time.perf_counter(), time.process_time()
        return raw


def _peak_kb() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


@contextlib.contextmanager
def _server(config: BenchConfig, core: int) -> Iterator[str]:
    """The server's address; it runs in a process of its own, on one core."""
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=_serve, args=(theirs, config.seconds, config.characters, core), daemon=True)
    process.start()
    try:
        yield ours.recv()
    finally:
        process.terminate()
        process.join()


def _serve(pipe: Connection, seconds: float, characters: int, core: int) -> None:
    os.sched_setaffinity(0, {core})
    reply = Reply.chat("y" * characters).after(seconds)
    with serve(lambda seen: reply) as server:
        pipe.send(server.base)
        pipe.recv()


if __name__ == "__main__":
    cli.run(main)
