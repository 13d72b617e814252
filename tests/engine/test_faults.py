"""Training under faults: whatever ends it, what was whole stays whole, and --resume continues bit for bit.

The fast tests hold each fault once; the slow ones enumerate. docs/reliability.md has the figures.
"""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests import tiny
from tests.engine.test_train import id_rows

ROOT = Path(__file__).parents[2]
FLAGS = ("--lr", "1e-4", "--batch-size", "8", "--epochs", "2")


@pytest.fixture
def folder(tmp_path):
    """A tiny model and its rows."""
    tiny.write_model(tmp_path / "model", vocab_size=101)
    tiny.write_rows(tmp_path / "rows.jsonl", id_rows(22))
    return tmp_path


def kills(folder, *jobs, timeout=300):
    """What came of each job (tests/engine/kills.py)."""
    env = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "tests.engine.kills", str(folder), *jobs]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=env, timeout=timeout, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return [json.loads(line) for line in done.stdout.splitlines()]


def assert_survived(found, *, killed=True):
    """Nothing damaged, nothing left over after the next run, and the same numbers and weights in the end."""
    assert found["same"] and not found["damaged"] and not found["left"], found
    assert not killed or -signal.SIGKILL in found["ended"], found


def test_a_killed_run_goes_on_bit_for_bit(folder):
    """In each part of a step, in each kind of operation on a file, and at a time of nobody's choosing."""
    places = ["forward:4", "backward:5", "gradient:2", "optimizer:6", "write:60", "fsync:9", "rename:4", "remove:1"]
    for found in kills(folder, *places, "after:1.1"):
        assert_survived(found)


def test_a_rank_that_is_killed_loses_nothing(folder):
    for found in kills(folder, "2/backward:4:KILL:1", "2/any:40:KILL:0", "2/write:20:KILL:1"):
        assert_survived(found)


@pytest.mark.parametrize("fault", ["ENOSPC", "EDQUOT", "EIO"])
def test_a_failing_disk_ends_a_run_in_one_sentence(folder, fault):
    """Each kind of operation fails once: state, export, metrics, config, reference cache."""
    jobs = ["write:2", "write:4", "write:30", "write:102", "write:125", "fsync:6", "fsync:12", "rename:5", "rename:8"]
    for found in kills(folder, *(f"{job}:{fault}" for job in jobs)):
        assert_survived(found, killed=False)
        assert found["ended"] == [3] and not found["leftover"], found
        said = found["said"].splitlines()[-1]
        assert os.strerror(getattr(__import__("errno"), fault)) in said and str(folder) in said, said


def test_no_loss_of_power_leaves_a_state_that_is_not_whole(folder):
    (found,) = kills(folder, "power")
    assert found["bad"] == 0 and found["states"] > 500, found


def launch(folder, fault, *flags, ranks=2):
    """./launch.sh train with a fault: its exit code, what it said, and how long it took."""
    env = os.environ | {"FAULT": fault, "OMP_NUM_THREADS": "1"}
    command = ["./launch.sh", "train", "--nproc", str(ranks), "--model", str(folder / "model"), *FLAGS]
    command += ["--data", str(folder / "rows.jsonl"), "--out", str(folder / "run"), *flags]
    start = time.monotonic()
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=env, timeout=120, check=False)
    said = [s for s in done.stderr.splitlines() if not s.startswith(("+ ", "FAULT=")) and ": 22 rows," not in s]
    return done.returncode, said, time.monotonic() - start


@pytest.mark.parametrize(
    ("fault", "said"),
    [
        ("backward:3:KILL:0", "error: rank 0 (last seen in step 3, backward) did not answer: killed, "),
        ("forward:3:STOP:1", "error: rank 1 (last seen in step 3, forward) did not answer: killed, "),
        ("gradient:2:RAISE:1", "error: rank 1 failed in step 2, gradient (RuntimeError: a fault that was asked for)"),
    ],
)
def test_the_rank_that_was_lost_is_named_once_and_none_is_left(folder, fault, said):
    code, lines, seconds = launch(folder, fault, "--hang-timeout", "5")
    assert code == 1 and len(lines) == 1 and lines[0].startswith(said), lines
    assert seconds < 60  # torch's own patience is half an hour
    assert str(folder / "run") not in _command_lines()
    if "RAISE" in fault:
        assert "a fault that was asked for" in (folder / "run/rank-1.traceback.txt").read_text()


def _command_lines():
    found = (p.read_bytes() for p in Path("/proc").glob("[0-9]*/cmdline") if p.parent.is_dir())
    return b" ".join(found).decode(errors="replace")


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_to_the_launcher_saves_the_step_on_every_rank(folder, number, code):
    command = ["./launch.sh", "train", "--nproc", "2", "--model", str(folder / "model"), "--lr", "1e-4"]
    command += ["--data", str(folder / "rows.jsonl"), "--out", str(folder / "run"), "--epochs", "4000"]
    env = os.environ | {"OMP_NUM_THREADS": "1"}
    running = subprocess.Popen(command, cwd=ROOT, env=env, stderr=subprocess.PIPE, text=True, start_new_session=True)
    metrics = folder / "run/metrics.jsonl"
    deadline = time.monotonic() + 60
    while not (metrics.exists() and metrics.read_text().count("\n") > 2) and time.monotonic() < deadline:
        time.sleep(0.1)
    running.send_signal(number)
    _, said = running.communicate(timeout=60)
    assert running.returncode == code, said
    n = json.loads(metrics.read_text().splitlines()[-1])["step"]
    assert f"stopped after step {n} of 8000; its state is saved" in said and "Traceback" not in said
    assert (folder / f"run/state/step-{n:06d}/manifest.json").exists()


def test_torchrun_that_is_killed_takes_its_ranks_along(folder):
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", "-m"]
    command += ["engine.train", "--model", str(folder / "model"), "--data", str(folder / "rows.jsonl")]
    command += ["--out", str(folder / "run"), "--epochs", "4000"]
    env = os.environ | {"OMP_NUM_THREADS": "1"}
    running = subprocess.Popen(command, cwd=ROOT, env=env, stderr=subprocess.DEVNULL, start_new_session=True)
    deadline = time.monotonic() + 60
    while not (folder / "run/metrics.jsonl").exists() and time.monotonic() < deadline:
        time.sleep(0.1)
    running.kill()
    running.wait()
    deadline = time.monotonic() + 5
    while (left := str(folder / "run") in _command_lines()) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not left


def test_torchrun_goes_on_by_itself(folder):
    """--max-restarts: the first attempt kills a rank at its fifth step, the second goes on and finishes."""
    script = folder / "first.py"
    script.write_text(
        "import os, runpy, sys\n"
        "if os.environ['TORCHELASTIC_RESTART_COUNT'] == '0':\n    os.environ['FAULT'] = 'forward:5:KILL:1'\n"
        "sys.argv[0] = 'engine.train'\nrunpy.run_module('engine.train', run_name='__main__')\n"
    )
    flags = ["--model", str(folder / "model"), "--data", str(folder / "rows.jsonl"), *FLAGS, "--state-every", "1"]
    for name, more in (("whole", []), ("run", ["--max-restarts", "2"])):
        program = [str(script)] if more else ["-m", "engine.train"]
        command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", *more]
        env = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
        done = subprocess.run([*command, *program, *flags, "--out", str(folder / name)], cwd=ROOT, env=env,
                              capture_output=True, text=True, timeout=120, check=False)  # fmt: skip
        assert done.returncode == 0, done.stderr[-3000:]
    from tests.engine.kills import outcome

    assert outcome(folder / "run") == outcome(folder / "whole")


@pytest.mark.slow
def test_every_operation_is_a_place_to_die(folder):
    """Every operation on a file of a run that saves and exports, until a run gets through; every loop place too."""
    n = 0
    for first in range(1, 10000, 40):
        found = kills(folder, *(f"any:{i}" for i in range(first, first + 40)), timeout=900)
        for job in found:
            if job["ended"] != [0]:
                n += 1
                assert_survived(job)
        if found[-1]["ended"] == [0]:
            break
    assert n >= 200


@pytest.mark.slow
def test_random_moments_and_both_ranks(folder):
    times = [f"after:{0.3 + i * 0.11:.2f}" for i in range(25)]
    ranks = [f"2/any:{i}:KILL:{i % 2}" for i in range(1, 120, 7)]
    for found in kills(folder, *times, *ranks, timeout=900):
        assert_survived(found, killed=False)
