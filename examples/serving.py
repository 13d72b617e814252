"""A command that serves stand-ins for models on this machine, until it is told to end."""

import signal
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass

from system import InputError, cli


@dataclass(frozen=True, kw_only=True)
class ServingConfig:
    """What a command of stand-ins is told; each has a sentence of its own in this place."""

    port: int
    """Port to listen on, on this machine's loopback address; 0 takes a free one."""


def serve_until_ended(
    config: type[ServingConfig], argv: Sequence[str], *, module: str,
    serve: Callable[[int], AbstractContextManager[str]], who: str,
) -> None:  # fmt: skip
    """The command of a module. serve: serves at a port, and gives the address; who: what is said to answer there.

    Raises InputError where the port cannot be listened at.
    """
    command = f"python -m {module}"
    port = cli.parse(config, argv, command=command, example=f"{command} --port 8000").port
    try:
        with serve(port) as address:
            print(f"{who} at {address}; Ctrl-C ends it", flush=True)
            signal.pause()
    except OSError as fault:
        raise InputError(f"--port: cannot listen on port {port} ({fault.strerror}); give another one") from None
