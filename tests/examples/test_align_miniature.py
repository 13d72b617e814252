"""examples/recipes/align-miniature.yaml in a fresh clone: by one command, and once more with two kill -9 in between."""

import contextlib
import json
import os
import re
import sqlite3
import subprocess
import sys
import time

import pytest

from system import run_folder
from tests import tiny

RECIPE = "examples/recipes/align-miniature.yaml"
MINUTES = 20  # with the one thread of a test beside others; five on two cores alone
CLOCK = ("seconds", "time", "took", "stamp")
APART = re.compile(
    r"logs/|stages/|\.sqlite|\.lock$|\.log$|events\.out\.|/state/|environment|report\.html$|tables/table-5"
)
"""Files with nothing but the clock's, the machine's or a page of what other files hold."""
OF_MACHINE = re.compile(rb"^ *(budget|reference_cache): .*$", re.MULTILINE)
"""Lines of a run's config.yaml that say how much memory was free, and whether it was resumed."""


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_it_is_followed_in_a_fresh_clone_and_two_kills_change_nothing(tmp_path):
    calm, hard = cloned(tmp_path / "calm"), cloned(tmp_path / "hard")
    begun = time.monotonic()
    done = subprocess.run(command(), cwd=calm, env=environment(), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    assert time.monotonic() - begun < 60 * MINUTES
    assert (calm / done.stdout.strip().splitlines()[-1]).is_file()

    first = hard / "runs/align-miniature/round-1"
    answers = hard / "runs/align-miniature/answers.sqlite"
    killed(hard, lambda: len(stored(answers)) >= 150)
    before = stored(answers)
    metrics = first / "runs/seed-0/clair/apo_zero/metrics.jsonl"
    killed(hard, lambda: states(metrics.parent))
    pairs = stored(answers)
    assert before.items() <= pairs.items()  # as they were: asked once, at their first time
    newest = max(states(metrics.parent))
    done = subprocess.run(command(), cwd=hard, env=environment(), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stderr.count("taken as it was") >= 3 and pairs.items() <= stored(answers).items()
    said = (hard / "runs/align-miniature/round-1/runs/seed-0/clair/apo_zero.log").read_text()
    resumed = re.findall(r"resumes after step (\d+)", said)
    assert newest >= 10 and len(resumed) == 1 and int(resumed[0]) >= newest, said
    ours, theirs = made(hard), made(calm)
    assert sorted(ours) == sorted(theirs) and len(ours) > 30
    assert [name for name in ours if ours[name] != theirs[name]] == []
    assert ours.keys() > {
        f"round-{n}/{path}"
        for n in (1, 2)
        for path in ("pairs/clair.jsonl", "pairs/clair.contrast.json", "runs/seed-0/clair/apo_zero/eval/samples.jsonl",
                     "runs/seed-0/clair/apo_zero/epoch-02/model.safetensors")
    }  # fmt: skip


def cloned(folder):
    subprocess.run(["git", "clone", "--quiet", str(tiny.ROOT), str(folder)], check=True)
    (folder / ".venv").symlink_to(sys.prefix)
    return folder


def states(run):
    """The steps of a run's whole states."""
    names = [path.name for path in (run / "state").glob("step-*")]
    return [int(found[1]) for name in names if (found := re.fullmatch(r"step-(\d+)", name))]


def command():
    return ["./launch.sh", "align", RECIPE]


def environment():
    """Without this checkout: the clone's own packages are used."""
    return {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "VIRTUAL_ENV")}


def killed(folder, when):
    """The command killed with -9 once `when` says so."""
    with open(folder / "log", "a") as log:
        process = subprocess.Popen(command(), cwd=folder, env=environment(), stdout=log, stderr=log)
        deadline = time.monotonic() + 60 * MINUTES
        while not when() and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.02)
        assert process.poll() is None and time.monotonic() < deadline, (folder / "log").read_text()[-3000:]
        process.kill()
        process.wait()


def stored(store):
    """When each answer of a store was kept, by its key."""
    if not store.is_file():
        return {}
    try:
        with contextlib.closing(sqlite3.connect(f"file:{store}?mode=ro", uri=True, timeout=10)) as reader:
            return dict(reader.execute("SELECT key, time FROM answers").fetchall())
    except sqlite3.OperationalError:  # it is being made
        return {}


def made(folder):
    """The content of every file that was made, without what is the clock's."""
    out, found = folder / "runs/align-miniature", {}
    for path in sorted(p for p in out.rglob("*") if p.is_file()):
        name = str(path.relative_to(out))
        if APART.search(name):
            continue
        if path.suffix == ".jsonl":
            lines = run_folder.lines_of(path.parent) if path.name == "metrics.jsonl" else read(path)
            found[name] = [without_clock(line) for line in lines]
        else:
            found[name] = OF_MACHINE.sub(b"", path.read_bytes()) if path.name == "config.yaml" else path.read_bytes()
    return found


def read(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def without_clock(value):
    """A row without times, wherever they stand in it."""
    if isinstance(value, dict):
        kept = {k: v for k, v in value.items() if not k.startswith("perf/") and not any(w in k for w in CLOCK)}
        return {k: without_clock(v) for k, v in kept.items()}
    return [without_clock(one) for one in value] if isinstance(value, list) else value
