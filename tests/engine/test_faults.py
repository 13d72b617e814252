"""Training under faults: whatever ends it, what was whole stays whole, and --resume continues bit for bit.

The fast tests hold each fault once; the slow ones enumerate. docs/reliability.md has the figures.
"""

import errno
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from engine.config import TrainConfig
from engine.run.metrics_log import MetricsLog
from engine.train import run
from system import InputError
from tests import faults, tiny
from tests.engine.kills import SETTINGS, outcome
from tests.rows import id_rows

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
    env = tiny.environment()
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
    for found in kills(folder, "backward:5", "optimizer:6", "write:60", "fsync:9", "rename:4", "remove:6"):
        assert_survived(found)


@pytest.mark.slow
def test_a_rank_that_is_killed_loses_nothing(folder):
    for found in kills(folder, "2/backward:4:KILL:1", "2/any:40:KILL:0"):
        assert_survived(found)


@pytest.mark.parametrize("fault", [pytest.param(name, marks=pytest.mark.slow) for name in ("ENOSPC", "EDQUOT", "EIO")])
def test_a_failing_disk_ends_a_run_in_one_sentence(folder, fault):
    """Each kind of operation fails once: lock, config, metrics, state, export, reference cache."""
    jobs = ["write:1", "write:4", "write:102", "fsync:6", "rename:5"]
    if fault != "ENOSPC":
        jobs += ["write:2", "write:30", "write:125", "fsync:12", "rename:8"]
    for found in kills(folder, *(f"{job}:{fault}" for job in jobs)):
        assert_survived(found, killed=False)
        assert found["ended"] == [3] and not found["leftover"], found
        said = found["said"].splitlines()[-1]
        assert os.strerror(getattr(errno, fault)) in said and str(folder) in said, said


@pytest.mark.parametrize(
    "name",
    [
        "new\nline",
        "x" * 255,
        "link",
        *(pytest.param(n, marks=pytest.mark.slow) for n in ("a b", "'\"", "*?[x]", "-dash")),
    ],
)
def test_a_folder_of_any_name_holds_a_run(folder, name):
    (folder / "real").mkdir()
    (folder / "link").symlink_to(folder / "real")
    settings = SETTINGS | {
        "model": str(folder / "model"),
        "data": str(folder / "rows.jsonl"),
        "out": str(folder / name),
    }
    run(TrainConfig(**settings, stop_after=2))
    result = run(TrainConfig(**settings, resume=True))
    assert result.n_steps == 6 and (folder / name / "epoch-02/model.safetensors").is_file()


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("x" * 256, "File name too long; give another --out"),
        ("rows.jsonl", "not a folder; --out has to be one"),
        ("rows.jsonl/run", "Not a directory; give another --out"),
        ("nowhere", "not a folder; --out has to be one"),
    ],
)
def test_what_cannot_be_a_folder_is_refused(folder, name, said):
    (folder / "nowhere").symlink_to(folder / "absent")
    with pytest.raises(InputError, match=said):
        run(TrainConfig(model=str(folder / "model"), data=(str(folder / "rows.jsonl"),), out=str(folder / name)))


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("strace") is None, reason="strace is not installed")
def test_a_kill_by_strace_loses_nothing(folder):
    """The independent check: strace sees the calls that go round the module that writes, too."""
    calls = [("fsync", range(1, 24, 4)), ("rename", range(1, 12, 3)), ("pwrite64", range(1, 120, 24))]
    calls += [("write", range(20, 200, 36)), ("unlink", range(1, 8, 3))]
    jobs = [f"strace:{call}:{number}" for call, numbers in calls for number in numbers]
    found = kills(folder, *jobs, timeout=590)
    for job in found:
        assert_survived(job, killed=False)
    n_killed = sum(-signal.SIGKILL in job["ended"] for job in found)
    print(f"killed by strace: {n_killed} of {len(found)}")
    assert n_killed > len(found) / 2  # the control: injections do strike


@pytest.mark.slow
def test_no_loss_of_power_leaves_a_state_that_is_not_whole(folder):
    (found,) = kills(folder, "power")
    assert found["bad"] == 0 and found["states"] > 500, found


needs_launcher = pytest.mark.skipif(
    not (ROOT / ".venv/.installed").exists(), reason="./launch.sh setup has not been run"
)


def launch(folder, fault, *flags, ranks=2):
    """./launch.sh train with a fault: its exit code, what it said, and how long it took."""
    env = tiny.environment(faults.sitecustomize(folder / "fault", fault))
    command = ["./launch.sh", "train", "--nproc", str(ranks), "--model", str(folder / "model"), *FLAGS]
    command += ["--data", str(folder / "rows.jsonl"), "--out", str(folder / "run"), *flags]
    start = time.monotonic()
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=env, timeout=120, check=False)
    said = [s for s in done.stderr.splitlines() if not s.startswith("+ ") and ": 22 rows," not in s]
    said = [s for s in said if not s.startswith("needs ")]
    return done.returncode, said, time.monotonic() - start


@needs_launcher
@pytest.mark.parametrize(
    ("fault", "said"),
    [
        pytest.param(
            "backward:3:KILL:0",
            "error: rank 0 (last seen in step 3, backward) did not answer: killed, ",
            marks=pytest.mark.slow,
        ),
        pytest.param(
            "forward:3:STOP:1",
            "error: rank 1 (last seen in step 3, forward) did not answer: killed, ",
            marks=pytest.mark.slow,
        ),
        pytest.param(
            "backward:3:SLEEP:1",
            "error: rank 1 (last seen in step 3, backward) did not answer: killed, ",
            marks=pytest.mark.slow,
        ),
        pytest.param(
            "gradient:2:RAISE:1",
            "error: rank 1 failed in step 2, gradient (RuntimeError: a fault that was asked for)",
            marks=pytest.mark.slow,
        ),
    ],
)
def test_the_rank_that_was_lost_is_named_once_and_none_is_left(folder, fault, said):
    code, lines, seconds = launch(folder, fault, "--hang-timeout", "5")
    assert code == 1 and len(lines) == 1 and lines[0].startswith(said), lines
    assert seconds < 60  # torch's own patience is half an hour
    assert str(folder / "run") not in _command_lines()
    if "RAISE" in fault:
        assert "a fault that was asked for" in (folder / "run/rank-1.traceback.txt").read_text()
    else:  # where the others waited
        survivor = 0 if fault.endswith("1") else 1
        assert "engine/train.py" in (folder / f"run/rank-{survivor}.traceback.txt").read_text()
    if "SLEEP" in fault:  # the lost one's own stack
        assert "tests/faults.py" in (folder / "run/rank-1.traceback.txt").read_text()


def _command_lines():
    found = (p.read_bytes() for p in Path("/proc").glob("[0-9]*/cmdline") if p.parent.is_dir())
    return b" ".join(found).decode(errors="replace")


def _processes_of(folder):
    """Processes whose command line names a folder."""
    found = {int(p.parent.name): p.read_bytes() for p in Path("/proc").glob("[0-9]*/cmdline") if p.parent.is_dir()}
    return [number for number, line in found.items() if str(folder).encode() in line]


@needs_launcher
@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGTERM, 143), pytest.param(signal.SIGINT, 130, marks=pytest.mark.slow)]
)
@pytest.mark.slow
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
    try:
        _, said = running.communicate(timeout=60)
    except subprocess.TimeoutExpired:  # else the ranks train on for hours
        for process in _processes_of(folder / "run"):
            os.kill(process, signal.SIGKILL)
        raise
    assert running.returncode == code, said
    n = json.loads(metrics.read_text().splitlines()[-1])["step"]
    assert f"stopped after step {n} of 8000; its state is saved" in said and "Traceback" not in said
    assert (folder / f"run/state/step-{n:06d}/manifest.json").exists()


@pytest.mark.slow
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


@pytest.mark.slow
def test_torchrun_goes_on_by_itself(folder):
    """--max-restarts: the first attempt kills a rank at its fifth step, the second goes on and finishes.

    From the state of step 4, or of 3 where that was still being written.
    """
    script = folder / "first.py"
    script.write_text(
        "import os, runpy, sys\nfrom tests import faults\n"
        "if os.environ['TORCHELASTIC_RESTART_COUNT'] == '0':\n    faults.inject('forward:5:KILL:1')\n"
        "sys.argv[0] = 'engine.train'\nrunpy.run_module('engine.train', run_name='__main__')\n"
    )
    flags = ["--model", str(folder / "model"), "--data", str(folder / "rows.jsonl"), *FLAGS, "--state-every", "1"]
    for name, more in (("whole", []), ("run", ["--max-restarts", "1"])):
        program = [str(script)] if more else ["-m", "engine.train"]
        command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", *more]
        env = tiny.environment()
        done = subprocess.run([*command, *program, *flags, "--out", str(folder / name)], cwd=ROOT, env=env,
                              capture_output=True, text=True, timeout=300, check=False)  # fmt: skip
        assert done.returncode == 0, done.stderr[-3000:]
        assert any(f"resumes after step {n}" in done.stderr for n in (3, 4)) == bool(more)
    assert outcome(folder / "run") == outcome(folder / "whole")


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_every_operation_is_a_place_to_die(folder):
    """Every operation on a file of a run that saves and exports, until a run gets through; every loop place too."""
    n = 0
    for first in range(1, 10000, 40):  # in rounds: a run of its own counts the operations
        found = kills(folder, *(f"any:{i}" for i in range(first, first + 40)), timeout=900)
        for job in found:
            if job["ended"] != [0]:
                n += 1
                assert_survived(job)
        if found[-1]["ended"] == [0]:
            break
    assert n >= 200


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_random_moments_and_both_ranks(folder):
    times = [f"after:{0.3 + i * 0.11:.2f}" for i in range(25)]
    ranks = [f"2/any:{i}:KILL:{i % 2}" for i in range(1, 120, 7)]
    for found in kills(folder, *times, *ranks, timeout=900):
        assert_survived(found, killed=False)


@pytest.fixture
def small_disk(tmp_path):
    """A function that mounts a disk of so many KiB, or makes it that large."""
    disk = tmp_path / "disk"
    disk.mkdir()

    def size(kib):
        how = ["-o", f"remount,size={kib}k"] if os.path.ismount(disk) else ["-t", "tmpfs", "-o", f"size={kib}k"]
        what = [str(disk)] if os.path.ismount(disk) else ["none", str(disk)]
        if subprocess.run(["mount", *how, *what], capture_output=True, check=False).returncode:
            pytest.skip("no disk can be mounted here")
        return disk

    yield size
    subprocess.run(["umount", str(disk)], capture_output=True, check=False)


@pytest.mark.slow
def test_a_disk_that_fills_up_costs_nothing_but_the_wait(folder, small_disk):
    """Too small for a checkpoint and a state: refused at once. Full in the midst: one sentence, and on with more."""

    def go(out):
        command = [sys.executable, "-m", "engine.train", "--model", str(folder / "model"), "--resume", *FLAGS]
        command += ["--data", str(folder / "rows.jsonl"), "--out", str(out), "--epochs", "6"]
        env = os.environ | {"OMP_NUM_THREADS": "1"}
        command = [c for i, c in enumerate(command) if not (c in ("--epochs", "2") and i < command.index("--data"))]
        done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=env, timeout=120, check=False)
        return done.returncode, [s for s in done.stderr.splitlines() if s.startswith("error") or "Traceback" in s]

    assert go(folder / "whole") == (0, [])
    disk = small_disk(300)
    code, said = go(disk / "run")
    assert code == 2 and "GB are free, and a checkpoint and its states take" in said[0] and not any(disk.iterdir())
    full = 0
    for kib in range(900, 9000, 400):
        small_disk(kib)
        code, said = go(disk / "run")
        if code == 0:
            break
        assert code == 1 and len(said) == 1 and "No space left on device" in said[0] and str(disk) in said[0], said
        assert not [p for p in disk.rglob("*.tmp") if p.is_dir()]  # the room that was taken is given back
        full += 1
    assert code == 0 and full >= 2
    assert outcome(disk / "run") == outcome(folder / "whole")


@pytest.mark.slow
def test_a_clock_that_jumps_changes_no_number(folder):
    """Forward a year at each look, then back: the metrics count seconds by another clock."""
    (folder / "sitecustomize.py").write_text(
        "import time\n_real, _n = time.time, [0]\n"
        "def jump():\n    _n[0] += 1\n    return _real() + (3e7 if _n[0] % 2 else -3600)\ntime.time = jump\n"
    )
    found = {}
    for name, path in (("plain", ()), ("jumps", (folder,))):
        command = [sys.executable, "-m", "engine.train", "--model", str(folder / "model"), *FLAGS]
        command += ["--data", str(folder / "rows.jsonl"), "--out", str(folder / name)]
        env = tiny.environment(*path)
        subprocess.run(command, cwd=ROOT, env=env, timeout=120, check=True, capture_output=True)
        rows = [json.loads(line) for line in (folder / name / "metrics.jsonl").read_text().splitlines()]
        assert all(0 < row["perf/step_seconds"] < 60 for row in rows)
        found[name] = [(row["step"], row["loss"], row["grad_norm"]) for row in rows]
    assert found["plain"] == found["jumps"]


class Batch(tuple):
    """One example."""


def test_lines_that_never_find_room_name_their_file_to_the_end(tmp_path):
    """What could not be written is tried again when the file is closed, and that fault is the one that is told."""
    (tmp_path / "metrics.jsonl").symlink_to("/dev/full")
    log = MetricsLog(tmp_path, n_steps=1, per_epoch=1, n_done=0, n_tokens=0, facts={}, writes=True)
    with pytest.raises(OSError, match=r"metrics\.jsonl") as fault, log:
        log.stop_clock()
        log.write(SimpleNamespace(number=1, batch=Batch("a"), n_tokens=3), {"loss": 1.0}, grad_norm=1.0)
    assert fault.value.errno == errno.ENOSPC


@pytest.mark.parametrize("what", ["a read-only disk", "a log that cannot be written", "a screen that is full"])
def test_what_cannot_be_written_ends_in_one_sentence(folder, small_disk, what):
    program = ["tests.faults", "write:6:ENOSPC"] if what == "a log that cannot be written" else []
    command = [sys.executable, "-m", *program, "engine.train", "--model", str(folder / "model"), *FLAGS]
    out = folder / "run"
    if what == "a read-only disk":
        out = small_disk(9000) / "run"
        subprocess.run(["mount", "-o", "remount,ro", str(out.parent)], check=True)
    command += ["--data", str(folder / "rows.jsonl"), "--out", str(out)]
    env = os.environ | {"OMP_NUM_THREADS": "1"}
    screen = open("/dev/full", "w") if what == "a screen that is full" else subprocess.PIPE  # noqa: SIM115
    done = subprocess.run(command, cwd=ROOT, env=env, stderr=subprocess.PIPE, stdout=screen, text=True, timeout=120,
                          check=False)  # fmt: skip
    said = [s for s in done.stderr.splitlines() if not s.startswith("needs ") and ": 22 rows," not in s]
    if what == "a screen that is full":
        screen.close()
        assert (out / "state/finished.json").exists()  # what counts is done
        return
    assert done.returncode == (2 if what == "a read-only disk" else 1)
    assert len(said) == 1 and said[0].startswith("error: ") and str(out) in said[0], said
