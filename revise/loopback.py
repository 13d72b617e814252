"""A chat completions server on this machine: for the demo, the benchmark, and tests of what servers do wrong.

    with serve(lambda seen: Reply.chat("hello")) as server:
        ... server.base is http://127.0.0.1:PORT/v1

Each request is shown to a function, in the order of arrival; the Reply that it gives says what is sent back, when, and
how the connection breaks. The server runs in a thread of its own.
"""

import asyncio
import contextlib
import json
import socket
import ssl
import struct
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from http import HTTPStatus
from typing import Any, Literal, NamedTuple


class Seen(NamedTuple):
    """A request as it arrived."""

    number: int
    """From 0."""
    path: str
    headers: dict[str, str]
    """Names in lower case."""
    body: dict[str, Any]
    """Its JSON; empty where it has none."""

    @property
    def text(self) -> str:
        """Its last message."""
        return self.body["messages"][-1]["content"]


@dataclass(frozen=True)
class Reply:
    """What is sent back."""

    body: bytes = b""
    status: int = 200
    headers: dict[str, str] = field(default_factory=lambda: {"Content-Type": "application/json"})
    delay: float = 0.0
    """Seconds before anything is sent."""
    drip: float = 0.0
    """Seconds between single bytes of the body."""
    length: int | Literal["chunked"] | None = -1
    """Content-Length: -1 the true one, None none at all."""
    breaks: Literal["no", "before", "head", "body", "close"] = "no"
    """Where the connection is reset; "close": closed in the body, without a reset."""
    raw: bytes | None = None
    """Everything that is sent, in the place of an answer."""

    @staticmethod
    def chat(text: str, *, usage: tuple[int, int] = (10, 10), finish: str = "stop", model: str = "loopback") -> "Reply":
        """A completion."""
        counts = {"prompt_tokens": usage[0], "completion_tokens": usage[1], "total_tokens": sum(usage)}
        choice = {"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": finish}
        return Reply.json({"object": "chat.completion", "model": model, "choices": [choice], "usage": counts})

    @staticmethod
    def json(value: Any, *, status: int = 200, **headers: str) -> "Reply":
        """Any object; headers are named with _ for -."""
        named = {name.replace("_", "-"): text for name, text in headers.items()}
        body = json.dumps(value, ensure_ascii=False).encode()
        return Reply(body, status, {"Content-Type": "application/json"} | named)

    @staticmethod
    def error(status: int, message: str = "", *, code: str | None = None, **headers: str) -> "Reply":
        """An error as OpenAI's servers say it."""
        return Reply.json({"error": {"message": message, "code": code}}, status=status, **headers)

    def after(self, seconds: float) -> "Reply":
        """The same, later."""
        return replace(self, delay=seconds)


@dataclass
class Server:
    """A running server."""

    base: str = ""
    n_seen: int = 0
    """Requests that arrived whole."""
    n_now: int = 0
    """Of them, not answered yet."""
    n_most: int = 0
    """Most of them at one time."""


@contextlib.contextmanager
def serve(reply: Callable[[Seen], Reply], *, port: int = 0, tls: ssl.SSLContext | None = None) -> Iterator[Server]:
    """A server until the block ends. reply is called in the server's thread; port 0: a free one.

    Raises OSError where the port is taken.
    """
    made, ready, loop = Server(), threading.Event(), asyncio.new_event_loop()
    stop = asyncio.Event()

    async def run() -> None:
        server = await asyncio.start_server(
            lambda r, w: _connection(r, w, reply, made), "127.0.0.1", port, backlog=1024, limit=2**24, ssl=tls
        )
        made.base = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/v1"
        ready.set()
        await stop.wait()
        server.close()
        tasks = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def work() -> None:
        try:
            loop.run_until_complete(run())
        except OSError as fault:  # the port is taken
            faults.append(fault)
            ready.set()

    faults: list[OSError] = []
    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    if not ready.wait(10):
        raise RuntimeError("the loopback server did not start")
    if faults:
        loop.close()
        raise faults[0]
    try:
        yield made
    finally:
        loop.call_soon_threadsafe(stop.set)
        thread.join(10)
        loop.close()


async def _connection(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, reply: Callable[[Seen], Reply], server: Server
) -> None:
    with contextlib.suppress(OSError, asyncio.IncompleteReadError, asyncio.CancelledError):
        while (seen := await _request(reader, server)) is not None:
            server.n_seen += 1
            server.n_now += 1
            server.n_most = max(server.n_most, server.n_now)
            try:
                keeps_open = await _send(writer, reply(seen))
            finally:
                server.n_now -= 1
            if not keeps_open:
                break
    writer.close()


async def _request(reader: asyncio.StreamReader, server: Server) -> Seen | None:
    try:
        first, *lines = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
    except asyncio.IncompleteReadError:
        return None
    headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines) if name}
    body = await reader.readexactly(int(headers.get("content-length", 0)))
    return Seen(server.n_seen, first.split(" ")[1], headers, json.loads(body) if body else {})


async def _send(writer: asyncio.StreamWriter, reply: Reply) -> bool:
    """Whether the connection can take another request."""
    await asyncio.sleep(reply.delay)
    if reply.raw is not None:
        writer.write(reply.raw)
        await writer.drain()
        return False
    length = len(reply.body) if reply.length == -1 else reply.length
    framing = {"Transfer-Encoding": "chunked"} if length == "chunked" else {"Content-Length": str(length)}
    lines = [f"HTTP/1.1 {reply.status} {_phrase(reply.status)}"]
    lines += [f"{k}: {v}" for k, v in (reply.headers | (framing if length is not None else {})).items()]
    head = ("\r\n".join(lines) + "\r\n\r\n").encode("latin-1")
    body = f"{len(reply.body):x}\r\n".encode() + reply.body + b"\r\n0\r\n\r\n" if length == "chunked" else reply.body
    if reply.breaks != "no":
        cut = {"before": b"", "head": head[: len(head) // 2]}.get(reply.breaks, head + body[: len(body) // 2])
        writer.write(cut)
        await writer.drain()
        if reply.breaks != "close":
            _reset(writer)
        return False
    if reply.drip:
        writer.write(head)
        for i in range(len(body)):
            writer.write(body[i : i + 1])
            await writer.drain()
            await asyncio.sleep(reply.drip)
    else:
        writer.write(head + body)
    await writer.drain()
    return length is not None


def _phrase(status: int) -> str:
    return HTTPStatus(status).phrase if status in HTTPStatus._value2member_map_ else "Unknown"


def _reset(writer: asyncio.StreamWriter) -> None:
    """Ends a connection by RST, not by FIN."""
    sock = writer.get_extra_info("socket")
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()
