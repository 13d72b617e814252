"""A lock between hosts that see one file and not each other's locks: only its text tells them of one another."""

import json
import os
import socket
import subprocess
import sys
import time

import pytest

from system import locks
from system.errors import InputError
from system.locks import hold

HOLDER = """
import sys, time
from pathlib import Path
from system import locks
locks.BEAT = 0.05
locks.fcntl.flock = lambda *_: None  # a mount without common locks
locks.socket.gethostname = lambda: "elsewhere"
with locks.hold(Path(sys.argv[1]), Path("runs/a"), does="is writing here", otherwise="give another"):
    print("held", flush=True)
    time.sleep(float(sys.argv[2]))
"""


@pytest.fixture
def quick(monkeypatch):
    monkeypatch.setattr(locks, "BEAT", 0.05)
    monkeypatch.setattr(locks, "WATCH", 1.0)


def holder(lock, seconds):
    """A process that holds the lock on another host, as far as anybody can see."""
    running = subprocess.Popen([sys.executable, "-c", HOLDER, str(lock), str(seconds)], stdout=subprocess.PIPE)
    running.stdout.readline()
    return running


def take(lock, tmp_path, **more):
    with hold(lock, tmp_path, does="is writing here", otherwise="give another", **more):
        return json.loads(lock.read_text())


def test_a_holder_that_lives_elsewhere_is_named_and_never_taken_over(quick, tmp_path):
    lock = tmp_path / "run.lock"
    running = holder(lock, 60)
    for flag in ("--take-over", None):
        with pytest.raises(InputError, match=f"process {running.pid} on elsewhere .* is writing here; wait for it"):
            take(lock, tmp_path, takes_over=flag)
    running.kill()
    running.communicate()


def test_one_that_was_killed_elsewhere_is_taken_over_where_the_user_says_so(quick, tmp_path):
    lock = tmp_path / "run.lock"
    running = holder(lock, 60)
    running.kill()
    running.communicate()
    with pytest.raises(InputError, match=r"has given no sign of life for 1 s; make sure .* add --take-over"):
        take(lock, tmp_path, takes_over="--take-over")
    assert take(lock, tmp_path)["host"] == socket.gethostname()


def test_one_that_let_go_is_not_waited_for(quick, tmp_path):
    lock = tmp_path / "run.lock"
    running = holder(lock, 0)
    running.communicate()
    start = time.monotonic()
    assert take(lock, tmp_path, takes_over="--take-over")["pid"] == os.getpid()
    assert time.monotonic() - start < locks.WATCH
    assert lock.read_text() == ""
