"""The process that hands a run's lines to one library: it follows metrics.jsonl, which stays the truth.

state/wandb.json    the run's id in the library and the last step that was handed over: a run that goes on is the same
                    run there, and a line that --resume computes again is not logged again
state/wandb.log     what the library printed

What was not handed over when a run was killed is handed over when it goes on. stdin tells how the run ended; where it
closes without a word, the trainer is gone. stdout has a line of JSON for each thing that the user has to know.
"""

import fcntl
import json
import os
import signal
import sys
import threading
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from engine.tracking.libraries import LIBRARIES, Asked

LOOK_SECONDS = 0.5
"""Between two looks at metrics.jsonl."""
LAST_SECONDS = 90.0
"""That a library has once the run has ended, whatever it hangs in."""


def follow(library: str, folder: str, project: str, name: str, pid: str) -> None:
    """Hands what is in a run's metrics.jsonl, and what comes, to a library, until the run ends."""
    told = os.fdopen(os.dup(1), "w", buffering=1)
    path = Path(folder) / "state" / library
    printed = os.open(path.with_suffix(".log"), os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
    os.dup2(printed, 1)
    os.dup2(printed, 2)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # a job's end: what was logged goes out first
    ending = _Ending()
    try:
        with open(path.with_suffix(".lock"), "w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)  # of the process of a run that was killed, which is on its way out
            _follow(library, Path(folder), project, name, int(pid), ending, lambda said: print(said, file=told))
    except BaseException as fault:
        traceback.print_exc()
        print(json.dumps({"fault": f"{type(fault).__name__}: {str(fault).strip().partition(chr(10))[0]}"}), file=told)
    told.flush()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)  # libraries wait for their servers when an interpreter ends


def _follow(library: str, folder: Path, project: str, name: str, pid: int, ending: "_Ending", tell: Any) -> None:
    state = folder / "state" / f"{library}.json"
    known = json.loads(state.read_text(encoding="utf-8")) if state.exists() else {}
    settings = yaml.safe_load((folder / "config.yaml").read_text(encoding="utf-8"))
    began = LIBRARIES[library](Asked(folder, project, name, known.get("id"), settings, pid))
    tell(json.dumps({"where": began.where}))
    known = {"id": began.id, "step": known.get("step", -1)}
    _write(state, known)
    lines = _Lines(folder / "metrics.jsonl")
    while True:
        is_last = ending.how is not None  # looked at before the lines are: none comes after it
        for line in lines.new():
            step = int(line.pop("step"))
            if step > known["step"]:
                began.log(line, step)
                known["step"] = step
                _write(state, known)
        if is_last:
            break
        ending.wait(LOOK_SECONDS)
    began.finish(ending.how or "failed")


class _Ending:
    """How the run ends, heard on stdin; from then on the process has LAST_SECONDS."""

    def __init__(self) -> None:
        self.how: str | None = None
        self._heard = threading.Event()
        threading.Thread(target=self._hear, daemon=True).start()

    def _hear(self) -> None:
        self.how = sys.stdin.readline().strip() or "failed"
        self._heard.set()
        threading.Event().wait(LAST_SECONDS)
        os.killpg(0, signal.SIGKILL)

    def wait(self, seconds: float) -> None:
        """Until it is heard, or so long."""
        self._heard.wait(seconds)


class _Lines:
    """The lines of a file that grows."""

    def __init__(self, path: Path) -> None:
        self._path, self._offset = path, 0

    def new(self) -> Iterator[dict[str, float]]:
        """Those that were not given yet, once they are whole."""
        with open(self._path, "rb") as file:
            file.seek(self._offset)
            for line in file:
                if not line.endswith(b"\n"):
                    return
                self._offset += len(line)
                yield json.loads(line)


def _write(path: Path, value: dict[str, Any]) -> None:
    temporary = path.with_name(f"{path.name}.tmp")
    temporary.write_text(json.dumps(value) + "\n", encoding="utf-8")
    os.replace(temporary, path)
