"""Commands of ours in a second process that does not spend seconds on imports.

    done = forks.run([sys.executable, "-m", "engine.train", ...])      as subprocess.run, text captured; or "-c", CODE

One process of the tests' own has torch and the packages imported and has done nothing with them; it forks for each
command, and the child becomes that command: its arguments, environment, folder, screen and exit code are its own, and
what it does to its process (signals, locks, a kill) ends with it. A test of what importing does, or of a launcher,
takes subprocess itself.
"""

import atexit
import contextlib
import gc
import importlib
import json
import os
import runpy
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import traceback
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import NoReturn

from tests import tiny

PACKAGES = (
    "torch", "torch.distributed", "torch.distributed.fsdp", "torch.utils.tensorboard", "tyro", "yaml", "jinja2",
    "httpx", "tokenizers", "engine.inputs", "engine.step", "engine.optim", "engine.run", "engine.weights",
    "engine.distributed", "engine.planning", "engine.sampling", "data.rows", "data.text", "data.contrast", "losses",
    "revise.recipes", "eval.runs",
)  # fmt: skip
"""What commands import; what one needs beside it imports itself."""
LONGEST = 1 << 20


def run(
    command: Sequence[object], *, env: Mapping[str, str] | None = None, cwd: Path | None = None, timeout: float = 120
) -> subprocess.CompletedProcess[str]:
    """The finished command, [sys.executable, "-m", MODULE, ...]. Raises TimeoutExpired, after a kill."""
    told = list(map(str, command))
    assert told[0] == sys.executable and told[1] in ("-m", "-c"), told
    given = dict(os.environ if env is None else env)
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        code = _server().ask(told[1:], given, str(cwd or Path.cwd()), (out.fileno(), err.fileno()), timeout)
        texts = []
        for file in (out, err):
            file.seek(0)
            texts.append(file.read().decode("utf-8", "replace"))
    if code is None:
        raise subprocess.TimeoutExpired(told, timeout, *texts)
    return subprocess.CompletedProcess(told, code, *texts)


class Server:
    """The process that forks, as the tests see it."""

    def __init__(self) -> None:
        self._mine, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        for end in (self._mine, theirs):
            end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, LONGEST)
        code = f"from tests import forks; forks.serve({theirs.fileno()})"
        self._process = subprocess.Popen(
            [sys.executable, "-c", code], pass_fds=[theirs.fileno()], env=tiny.environment(), cwd=tiny.ROOT
        )
        theirs.close()
        atexit.register(self._end)

    def _end(self) -> None:
        self._mine.close()  # at which it ends
        self._process.wait()

    def ask(
        self, told: list[str], env: dict[str, str], cwd: str, screens: tuple[int, int], timeout: float
    ) -> int | None:
        """The exit code, as subprocess has it; None where the time was over."""
        self._mine.settimeout(None)
        asked = json.dumps({"told": told, "env": env, "cwd": cwd}).encode()
        assert len(asked) < LONGEST, "the environment and the arguments are too long"
        socket.send_fds(self._mine, [asked], screens)
        pid = json.loads(self._mine.recv(64))
        self._mine.settimeout(timeout)
        try:
            return json.loads(self._mine.recv(64))
        except TimeoutError:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
            self._mine.settimeout(None)
            self._mine.recv(64)
            return None


@cache
def _server() -> Server:
    return Server()


# --- the process that forks ----------------------------------------------------------------------------------------


def serve(number: int) -> None:
    """Forks for each command that is asked for, until the tests are over. number: of the socket."""
    for name in PACKAGES:
        importlib.import_module(name)
    gc.freeze()
    asking = socket.socket(fileno=number)
    while True:
        asked, screens, *_ = socket.recv_fds(asking, LONGEST, 2)
        if not asked:
            return
        pid = os.fork()
        if not pid:
            asking.close()
            end(become, json.loads(asked), screens)
        for screen in screens:
            os.close(screen)
        asking.send(json.dumps(pid).encode())
        _, status = os.waitpid(pid, 0)
        asking.send(json.dumps(os.waitstatus_to_exitcode(status)).encode())


def end(work: Callable[..., None], *given: object) -> NoReturn:
    """Does the work and ends this process as Python would, but for taking its modules apart, which takes seconds."""
    code: object = 1
    try:
        work(*given)
        code = 0
    except SystemExit as leaving:
        code = leaving.code or 0
        if not isinstance(code, int):
            print(code, file=sys.stderr)
            code = 1
    except BaseException:
        traceback.print_exc()
    threading._shutdown()  # pyright: ignore[reportAttributeAccessIssue]
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code if isinstance(code, int) else 1)


def become(asked: dict, screens: Sequence[int]) -> None:
    """Turns this process into the command. Raises what it raises."""
    for screen, usual in zip(screens, (1, 2), strict=True):
        os.dup2(screen, usual)
        os.close(screen)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.environ.clear()
    os.environ.update(asked["env"])
    os.chdir(asked["cwd"])
    how, module, *arguments = asked["told"]
    sys.argv = [module if how == "-m" else how, *arguments]
    sys.path[0] = ""
    if how == "-c":
        exec(module, sys.modules["__main__"].__dict__)
        return
    known = sys.modules.get(module)
    if known is not None and not hasattr(known, "__path__"):
        del sys.modules[module]  # it is run, and not imported, as python -m does
    runpy.run_module(module, run_name="__main__", alter_sys=True)
