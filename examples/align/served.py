"""Servers that are started for what they answer: the model by `serve:`, who revises and judges by `teacher:`.

    with served(command, {"checkpoint": "runs/first/epoch-01"}, children, log, env) as server:
        ... server.address is http://127.0.0.1:PORT/v1, server.name what the model is asked by

A server is waited for until it lists its models, and ended when the block ends.
"""

import contextlib
import json
import socket
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

from examples.align.recipe import words_of
from examples.children import Children, last_words
from system import RunError

PATIENCE = 1800.0
"""Seconds that a server has until it answers: one that compiles kernels for a large model takes minutes."""
NAME = "policy"


class Server(NamedTuple):
    """One that answers."""

    address: str
    name: str
    """What its model is asked by."""


@contextlib.contextmanager
def served(
    command: str, values: Mapping[str, str], children: Children, log: Path, env: Mapping[str, str]
) -> Iterator[Server]:
    """A server until the block ends. values: what stands in braces in its command, beside {port} and {name}.

    Raises RunError where it ends, or does not answer, Stopped after a signal.
    """
    port = _free_port()
    words = words_of(command, {"name": NAME, **values, "port": str(port)})
    with children.serving(words, log, env) as process:
        address, begun = f"http://127.0.0.1:{port}/v1", time.monotonic()
        while (names := _models(address)) is None:
            children.raise_if_stopped()
            if process.poll() is not None:
                raise RunError(f"{log}: {last_words(log)} (the server ended with code {process.returncode})")
            if time.monotonic() - begun > PATIENCE:
                raise RunError(f"{log}: the server does not list its models at {address}/models after half an hour")
            time.sleep(0.2)
        yield Server(address, NAME if NAME in names or not names else names[0])


def _models(address: str) -> list[str] | None:
    """The names that a server gives of its models; None while it does not answer."""
    straight = urllib.request.build_opener(urllib.request.ProxyHandler({}))  # on this machine no proxy is asked
    try:
        with straight.open(f"{address}/models", timeout=5) as answer:
            found = json.load(answer)
        return [str(one["id"]) for one in found["data"]]
    except urllib.error.HTTPError as fault:
        return [] if fault.code < 500 else None  # it answers, and has no such list
    except (OSError, ValueError, LookupError, TypeError):
        return None


def _free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]
