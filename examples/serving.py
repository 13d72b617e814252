"""A command that serves stand-ins for models on this machine, until it is told to end."""

import signal
from collections.abc import Callable
from contextlib import AbstractContextManager

from system import InputError


def serve_until_ended(serve: Callable[[int], AbstractContextManager[str]], port: int, who: str) -> None:
    """Serves at a port of the loopback address. who: what is said to answer there.

    Raises InputError where the port cannot be listened at.
    """
    try:
        with serve(port) as address:
            print(f"{who} at {address}; Ctrl-C ends it", flush=True)
            signal.pause()
    except OSError as fault:
        raise InputError(f"--port: {port} cannot be listened at ({fault.strerror}); give another one") from None
