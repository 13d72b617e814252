"""The door: exit codes and what is printed, through the real script."""

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests import tiny

ROOT = Path(__file__).parents[1]
needs_setup = pytest.mark.skipif(not (ROOT / ".venv/.installed").exists(), reason="./launch.sh setup has not been run")


def launch(*arguments):
    env = {k: v for k, v in os.environ.items() if k not in ("RANK", "WORLD_SIZE")}
    return subprocess.run(
        [ROOT / "launch.sh", *arguments], capture_output=True, text=True, env=env, timeout=300, check=False
    )


@pytest.fixture
def flags(tmp_path):
    model = tiny.write_model(tmp_path / "model", vocab_size=101)
    rows = [{"prompt_ids": [1, 2], "chosen_ids": [3 + i, 4], "rejected_ids": [5]} for i in range(5)]
    data = tiny.write_rows(tmp_path / "rows.jsonl", rows)
    return ["--model", str(model), "--data", str(data), "--out", str(tmp_path / "run"), "--max-steps", "1"]


@needs_setup
def test_setup_does_nothing_when_nothing_has_changed():
    done = launch("setup")
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


@needs_setup
def test_an_unknown_verb_ends_in_2():
    done = launch("trian")
    assert done.returncode == 2 and "error: there is no command ./launch.sh trian" in done.stderr


@needs_setup
def test_train_on_two_processes(flags, tmp_path):
    done = launch("train", "--nproc", "2", *flags)
    assert done.returncode == 0, done.stderr[-2000:]
    assert (tmp_path / "run/epoch-01/config.json").exists()
    assert done.stdout.split() == [str(tmp_path / "run")]


@needs_setup
@pytest.mark.parametrize(
    "n",
    [pytest.param([], id="one process"), pytest.param(["--nproc", "2"], id="two processes", marks=pytest.mark.slow)],
)
def test_bad_input_ends_in_2_with_one_sentence(flags, tmp_path, n):
    (tmp_path / "rows.jsonl").write_text('{"prompt_ids": [1], "chosen_ids": [2], "rejected_ids": [999]}\n')
    done = launch("train", *n, *flags)
    assert done.returncode == 2
    said = [line for line in done.stderr.splitlines() if "error" in line.lower()]
    assert len(said) == 1 and "Traceback" not in done.stderr and "ChildFailed" not in done.stderr
    assert "rows.jsonl:1: token id 999 is outside the model's vocabulary of 101" in done.stderr
    assert not (tmp_path / "run").exists()


@needs_setup
@pytest.mark.slow
def test_a_log_keeps_every_line_whoever_wrote_it(tmp_path):
    """> log 2>&1: the door, torchrun's ranks and the result write to one file, none over another's words."""
    tiny.write_model(tmp_path / "model", vocab_size=101)
    rows = tiny.write_rows(tmp_path / "rows.jsonl", [{"prompt_ids": [2], "chosen_ids": [3], "rejected_ids": [4]}] * 4)
    command = ["./launch.sh", "train", "--nproc", "2", "--model", str(tmp_path / "model"), "--data", str(rows)]
    command += ["--out", str(tmp_path / "run"), "--epochs", "1"]
    with open(tmp_path / "log", "w") as log:
        subprocess.run(command, cwd=ROOT, stdout=log, stderr=log, timeout=120, check=True)
    said = (tmp_path / "log").read_text()
    assert said.startswith("+ ") and "\0" not in said
    assert said.splitlines()[-1] == str(tmp_path / "run") and ": 4 rows, 0 prompts" in said


STUB = """#!/bin/bash
# A Python that makes environments of itself, slowly, and writes down what it is asked for
case "$*" in
  "-m venv "*) echo "venv" >>log; mkdir -p .venv/bin; sleep 0.2; cp "$0" .venv/bin/python ;;
  "-m pip --version") test -f .venv/has-pip ;;
  "-m pip install"*) echo "begin" >>log; sleep 0.2; touch .venv/has-pip; echo "end" >>log ;;
  "- "*) exit 1 ;;
  *) exec {python} "$@" ;;
esac
"""


def test_setups_at_once_wait_for_one(tmp_path):
    for name in ("launch.sh", "setup.cfg", "pyproject.toml", "constraints.txt"):
        shutil.copy(ROOT / name, tmp_path)
    (tmp_path / "stub").write_text(STUB.format(python=sys.executable))
    (tmp_path / "stub").chmod(0o755)
    setups = [
        subprocess.Popen(
            ["./launch.sh", "setup"],
            cwd=tmp_path,
            env=os.environ | {"PYTHON3": str(tmp_path / "stub")},
            stderr=subprocess.PIPE,
            text=True,
        )
        for _ in range(3)
    ]
    said = [setup.communicate(timeout=60)[1] for setup in setups]
    assert [setup.returncode for setup in setups] == [0, 0, 0], said
    assert (tmp_path / "log").read_text().split() == ["venv", "begin", "end", "begin", "end"]  # torch, then the rest
    assert sum("another setup is running in this folder; waiting for it to end" in text for text in said) == 2
    assert (tmp_path / ".venv/.installed").exists()


@pytest.fixture
def running(flags, tmp_path):
    """A function that starts two ranks with many steps before them, and waits for their first epoch."""
    started = []

    def start(*before):
        more = ["--epochs", "2000", "--max-steps", "2000", "--keep-checkpoints", "1", "--lr", "1e-5"]
        command = [*before, "./launch.sh", "train", "--nproc", "2", *flags[:-2], *more]
        one = subprocess.Popen(
            command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
        )
        started.append(one)
        while not (tmp_path / "run/epoch-01").exists() and one.poll() is None:
            time.sleep(0.05)
        return one

    yield start
    for one in started:
        if one.poll() is None:
            os.killpg(one.pid, signal.SIGKILL)
            one.wait()
        for pipe in (one.stdout, one.stderr):
            pipe.close()


def ranks_of(folder):
    """The processes whose command line names a folder."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            found += [int(path.parent.name)] * (str(folder).encode() in path.read_bytes())
        except OSError:  # it has ended
            continue
    return found


def wait_for_end(folder):
    deadline = time.monotonic() + 60
    while ranks_of(folder) and time.monotonic() < deadline:
        time.sleep(0.1)
    return ranks_of(folder)


@needs_setup
@pytest.mark.slow
def test_a_terminal_that_is_closed_saves_a_state(running, tmp_path):
    one = running()
    os.kill(one.pid, signal.SIGHUP)
    _, said = one.communicate(timeout=120)
    assert one.returncode == 129 and "its state is saved: resume with --resume" in said, said
    assert list((tmp_path / "run/state").glob("step-*")) and not wait_for_end(tmp_path / "run")


@needs_setup
@pytest.mark.slow
def test_under_nohup_a_run_goes_on(running, tmp_path):
    one = running("nohup")
    for pid in [one.pid, *ranks_of(tmp_path / "run")]:
        os.kill(pid, signal.SIGHUP)
    n = len((tmp_path / "run/metrics.jsonl").read_bytes().splitlines())
    while one.poll() is None and len((tmp_path / "run/metrics.jsonl").read_bytes().splitlines()) < n + 20:
        time.sleep(0.05)
    assert one.poll() is None  # it trains
    one.send_signal(signal.SIGTERM)
    _, said = one.communicate(timeout=120)
    assert one.returncode == 143 and "its state is saved" in said, said


@needs_setup
@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="where nobody can be asked to end with who started it")
def test_ranks_end_with_a_launcher_that_is_killed(running, tmp_path):
    one = running()
    assert len(ranks_of(tmp_path / "run")) >= 3
    os.kill(one.pid, signal.SIGKILL)
    assert not wait_for_end(tmp_path / "run")
