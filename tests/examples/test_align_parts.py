"""The parts of align: what is kept as done, how much time is left, servers and processes that are begun."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from examples import children as processes
from examples.align.check import Found, Said
from examples.align.journal import Journal, digest_of, fingerprint
from examples.align.progress import Ahead, Clock
from examples.align.served import served
from examples.children import Children, end_left
from system import RunError
from tests import tiny

SERVER = """
import json, sys
from http.server import BaseHTTPRequestHandler, HTTPServer
class Answers(BaseHTTPRequestHandler):
    def do_GET(self):
        body = json.dumps({"data": [{"id": name} for name in sys.argv[2:]]}).encode()
        self.send_response(200 if sys.argv[2:] else 404); self.end_headers(); self.wfile.write(body)
    def log_message(self, *_): pass
HTTPServer(("127.0.0.1", int(sys.argv[1])), Answers).serve_forever()
"""


# --- what is kept --------------------------------------------------------------------------------------------------


def test_a_stage_is_done_while_what_went_in_and_what_came_out_are_the_same(tmp_path):
    kept, rows, out = Journal(tmp_path / "o"), tmp_path / "rows.jsonl", tmp_path / "o/pairs.jsonl"
    rows.write_text("a\n")
    out.parent.mkdir()
    out.write_text("pair\n")
    before = fingerprint({"temperature": "1"}, [rows, "a/hub-id"])
    assert kept.found("pairs", before) is None
    kept.write("pairs", before, [out], time.monotonic())
    assert kept.found("pairs", fingerprint({"temperature": "1"}, [rows, "a/hub-id"])) is not None
    rows.write_text("b\n")
    changed = [
        fingerprint({"temperature": "1"}, [rows, "a/hub-id"]),
        fingerprint({"temperature": "2"}, [rows, "a/hub-id"]),
        fingerprint({"temperature": "1"}, [rows, "another/hub-id"]),
    ]
    assert len({before, *changed}) == 4 and not any(kept.found("pairs", mark) for mark in changed)
    for other in ("riap\n", "another pair\n"):  # as long, and longer
        out.write_text(other)
        assert kept.found("pairs", before) is None
    out.unlink()
    assert kept.found("pairs", before) is None


def test_a_large_file_is_known_by_its_ends_and_a_folder_by_its_files(tmp_path, monkeypatch):
    monkeypatch.setattr("examples.align.journal.WHOLE", 100)
    monkeypatch.setattr("examples.align.journal.END", 10)
    path = tmp_path / "model/weights"
    path.parent.mkdir()
    path.write_bytes(bytes(1000))
    found = [digest_of(path.parent)]
    for place in (2, -2):
        content = bytearray(1000)
        content[place] = 1
        path.write_bytes(content)
        os.utime(path, ns=(0, 0))
        found.append(digest_of(path.parent))
    (path.parent / "config.json").write_text("{}")
    found.append(digest_of(path.parent))
    assert len(set(found)) == 4
    (path.parent / ".lock").write_text("")  # what is hidden is nobody's content
    assert digest_of(path.parent) == found[-1] and digest_of(tmp_path / "none") == ""


# --- how much time is left -----------------------------------------------------------------------------------------


def test_time_left_is_by_a_stages_own_pace_and_by_its_like(capsys, monkeypatch):
    now = [0.0]
    monkeypatch.setattr("examples.align.progress.time.monotonic", lambda: now[0])
    ahead = [
        Ahead("round 1: a", "a"),
        Ahead("round 1: b", "b", 40.0),
        Ahead("round 2: a", "a"),
        Ahead("round 2: b", "b"),
    ]
    clock = Clock(ahead, {})
    with clock.stage("round 1: a"):
        now[0] += 30
    said = capsys.readouterr().err.splitlines()
    assert said[0] == "[0 s, perhaps 70 s left] 1 of 4: round 1: a"  # by guesses: nothing like it was timed
    assert said[1] == "[30 s, perhaps 80 s left] 1 of 4: round 1: a: done in 30 s"  # a second time, and 40 and 10
    with clock.stage("round 1: b", lambda: (5.0, 20.0, "answers")):
        now[0] += 40
    with clock.stage("round 2: a"):
        assert capsys.readouterr().err.splitlines()[-1] == "[70 s, about 70 s left] 3 of 4: round 2: a"
        now[0] += 30
    clock.taken("round 2: b")
    assert capsys.readouterr().err.splitlines()[-1] == "[1.7 min, about 0 s left] 4 of 4: round 2: b: taken as it was"


def test_a_stage_that_works_says_how_far_it_is(capsys, monkeypatch):
    monkeypatch.setattr("examples.align.progress.EVERY", 0.05)
    counts = iter([(0.0, 20.0, "answers"), *[(5.0, 20.0, "answers")] * 100])
    begun = time.monotonic()
    with Clock([Ahead("pairs", "pairs")], {}).stage("pairs", lambda: next(counts)):
        time.sleep(0.4)
    passed = time.monotonic() - begun
    lines = [line for line in capsys.readouterr().err.splitlines() if "(5 of 20 answers)" in line]
    assert lines and passed < 60  # three quarters are left: three times what has passed, which is less than 2 s
    assert all("about 0 s left" in line or "about 1 s left" in line or "about 2 s left" in line for line in lines)


# --- servers -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("names", "asked"), [("policy other", "policy"), ("path/to/model", "path/to/model"), ("", "policy")]
)
def test_a_server_is_waited_for_and_ended(tmp_path, names, asked):
    program = tmp_path / "server.py"
    program.write_text(SERVER)
    command = f"{sys.executable} {program} {{port}} {names}"
    with Children(tmp_path) as running:
        with served(command, {}, running, tmp_path / "log", os.environ) as server:
            assert server.name == asked and server.address.startswith("http://127.0.0.1:")
            (process,) = running._servers
        assert process.poll() is not None


def test_a_server_that_ends_is_told_with_its_last_words(tmp_path):
    program = tmp_path / "server.py"
    program.write_text("import sys\nprint('reading the weights')\nsys.exit('error: the card is full')\n")
    with (
        Children(tmp_path) as running,
        pytest.raises(RunError, match=r"the card is full \(the server ended with code 1"),
        served(f"{sys.executable} {program} {{port}}", {}, running, tmp_path / "log", os.environ),
    ):
        pass


# --- processes -----------------------------------------------------------------------------------------------------

STUBBORN = """
import signal, sys, time
def save(*_):
    time.sleep(float(sys.argv[2]))
    open(sys.argv[1], "w").write("saved")
    sys.exit()
signal.signal(signal.SIGTERM, save)
print("begun", flush=True)
time.sleep(600)
"""


@pytest.mark.parametrize(("takes", "grace", "saves"), [(1.0, 60.0, True), (600.0, 0.5, False)])
def test_what_an_earlier_start_left_is_found_and_ended(tmp_path, takes, grace, saves):
    """Killed with -9, whoever started it; it saves, or where it does not end it is killed. Another folder's is left."""
    program, saved, root = tmp_path / "stubborn.py", tmp_path / "saved", tmp_path / "o"
    program.write_text(STUBBORN)
    root.mkdir()
    starter = (
        "import sys, subprocess, os\nfrom pathlib import Path\nfrom examples.children import MARK\n"
        f"child = subprocess.Popen([sys.executable, {str(program)!r}, {str(saved)!r}, '{takes}'], "
        "env=os.environ | {MARK: sys.argv[1]}, start_new_session=True, stdout=open(sys.argv[2], 'w'))\n"
        "child.wait()\n"
    )
    others = [root.resolve(), tmp_path / "another"]
    logs = [tmp_path / f"log-{i}" for i in range(2)]
    started = [
        subprocess.Popen([sys.executable, "-c", starter, str(mark), str(log)], env=tiny.environment())
        for mark, log in zip(others, logs, strict=True)
    ]
    deadline = time.monotonic() + 60
    while not all(log.is_file() and log.read_text() for log in logs) and time.monotonic() < deadline:
        time.sleep(0.05)
    for one in started:
        one.kill()
        one.wait()
    try:
        assert end_left(root, grace=grace) == 1
        assert saved.is_file() == saves
        time.sleep(0.2)
        assert processes._left(root) == [] and len(processes._left(tmp_path / "another")) == 1
        assert end_left(root) == 0
    finally:
        for left in processes._left(tmp_path / "another"):
            os.kill(left, signal.SIGKILL)


def test_a_child_carries_the_folders_mark(tmp_path):
    with Children(tmp_path) as running:
        running.run(
            [sys.executable, "-c", "import os; print(os.environ['STARTED_BY_RUN_IN'])"], tmp_path / "log", os.environ
        )
    assert Path((tmp_path / "log").read_text().strip()) == tmp_path.resolve()


# --- disk ----------------------------------------------------------------------------------------------------------


def test_what_saving_takes_for_a_while_counts_once_for_rounds_that_follow_each_other():
    rounds = [Said("round 1: training", [], disk=100, spare=30), Said("round 2: training", [], disk=100, spare=20)]
    assert Found([Said("pairs", [], n_requests=3), *rounds]).disk == 230 and Found().disk == 0
