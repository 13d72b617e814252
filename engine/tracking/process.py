"""The processes that hand a run's lines to libraries, as the trainer sees them: started, heard, and let go of."""

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path

END_SECONDS = {"finished": 60.0, "stopped": 20.0, "failed": 20.0}
"""That all of them together have once the run has ended: torchrun gives a run that is stopped 30."""
TRUTH = "metrics.jsonl has every line"


class Followers:
    """One process per library. Nothing here raises, and nothing waits before `close`."""

    def __init__(self, libraries: Sequence[str], folder: Path, say: Callable[[str], None]) -> None:
        """folder: the run's. say: how the user is told."""
        self._all = [_Follower(library, folder, say) for library in libraries]

    def close(self, how: str) -> None:
        """Tells them how the run ended (a key of END_SECONDS), and lets them finish for so long in all."""
        for one in self._all:
            one.tell(how)
        deadline = time.monotonic() + END_SECONDS[how]
        for one in self._all:
            one.wait(deadline, END_SECONDS[how])


class _Follower:
    """The process of one library."""

    def __init__(self, library: str, folder: Path, say: Callable[[str], None]) -> None:
        self._library, self._folder, self._say = library, folder, say
        self._has_failed = False
        self._process: subprocess.Popen[str] | None = None
        project, name = names_of(folder)
        try:
            self._process = subprocess.Popen(
                [sys.executable, "-c", "import sys; from engine.tracking import follow; follow(*sys.argv[1:])",
                 library, str(folder.absolute()), project, name, str(os.getpid())],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                text=True,
                env=os.environ | {"PYTHONPATH": os.pathsep.join(path or os.getcwd() for path in sys.path)},
                start_new_session=True,  # Ctrl-C is for the trainer
            )  # fmt: skip
        except OSError as fault:
            self._fail(str(fault))
            return
        self._reader = threading.Thread(target=self._hear, args=(self._process,), daemon=True)
        self._reader.start()

    def _hear(self, process: "subprocess.Popen[str]") -> None:
        assert process.stdout is not None
        with process.stdout:
            for line in process.stdout:
                said = json.loads(line)
                if "where" in said:
                    self._say(f"{self._library}: {said['where']}")
                else:
                    self._fail(said["fault"])
        if code := process.wait():
            self._fail(f"its process ended with {code}")

    def _fail(self, why: str) -> None:
        """Says it once."""
        if not self._has_failed:
            self._has_failed = True
            log = self._folder / "state" / f"{self._library}.log"
            self._say(f"{self._library}: gets no more lines ({why}); {TRUTH}, {log} what it printed")

    def tell(self, how: str) -> None:
        """How the run ended."""
        if self._process is not None and self._process.stdin is not None:
            try:
                self._process.stdin.write(f"{how}\n")
                self._process.stdin.close()
            except OSError:
                pass  # it is gone, which is told where it is heard

    def wait(self, deadline: float, seconds: float) -> None:
        """Until it has finished; what has not by then is ended. seconds: that it was given, for the message."""
        if self._process is None:
            return
        try:
            self._process.wait(max(0.0, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            self._fail(f"it did not finish within {seconds:.0f} s of the run's end")
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)  # a library's own helpers too
        self._process.wait()
        self._reader.join(1)


def names_of(folder: Path) -> tuple[str, str]:
    """What a run's project and the run are called: runs/first is first in runs, runs/first/stage-02 first-stage-02."""
    path = folder.resolve()
    name, project = path.name, path.parent
    if re.fullmatch(r"stage-\d+", name):
        name, project = f"{project.name}-{name}", project.parent
    return re.sub(r"[^\w.-]+", "-", project.name) or "runs", name
