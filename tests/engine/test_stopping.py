"""When a run ends before its last step, and what it says: a signal, --stop-after, a launcher's file, a fault."""

import os
import pty
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from engine.config import CheckpointConfig
from engine.distributed import Ranks, Stop, grace
from engine.run import Stopping
from system import InputError, Stopped
from tests import tiny
from tests.rows import id_rows

OUT = Path("runs/a")


def stopping(n_steps=5, ranks=None, **flags):
    return Stopping(OUT, CheckpointConfig(**flags), n_steps, ranks or Ranks())


def test_a_run_that_nobody_stops_goes_to_its_end_and_says_nothing(capsys):
    with stopping() as end:
        end.raise_if_stopped(0)
        assert not any(end.must_stop(n) for n in range(1, 6))
        end.conclude(5, keeps_states=True)
    assert not capsys.readouterr().err


def test_it_stops_after_the_step_asked_for_and_no_other(capsys):
    end = stopping(stop_after=3)
    assert [end.must_stop(n) for n in range(1, 6)] == [False, False, True, False, False]
    end.conclude(3, keeps_states=True)
    assert capsys.readouterr().err == "runs/a: stopped after step 3, as --stop-after asks; resume with --resume\n"
    assert not stopping(stop_after=5).must_stop(5)  # which is the end


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130), (signal.SIGHUP, 129)])
@pytest.mark.parametrize(
    ("keeps", "said"),
    [
        (True, "its state is saved: resume with --resume"),
        (False, "no state is kept where not every rank sees the folder"),
    ],
)
def test_a_signal_ends_it_with_its_code_and_what_was_saved(number, code, keeps, said):
    with stopping() as end:
        assert not end.must_stop(1)
        os.kill(os.getpid(), number)
        assert end.must_stop(2) and not end.must_stop(5)
        with pytest.raises(Stopped) as ending:
            end.conclude(2, keeps_states=keeps)
    assert ending.value.code == code and str(ending.value) == f"runs/a: stopped after step 2 of 5; {said}"


def test_a_signal_before_the_first_step_says_which_that_was():
    with stopping() as end:
        os.kill(os.getpid(), signal.SIGTERM)
        with pytest.raises(Stopped, match=r"^runs/a: stopped before step 5; start it again with --resume$") as ending:
            end.raise_if_stopped(4)
    assert ending.value.code == 143


def test_a_signal_on_any_rank_stops_this_one():
    other = SimpleNamespace(all_reduce_max=lambda mine: float(max(mine, signal.SIGTERM)))
    assert stopping(ranks=other).must_stop(1)
    with pytest.raises(Stopped):
        stopping(ranks=other).raise_if_stopped(0)


def test_a_fault_that_was_kept_ends_it_though_all_steps_are_done():
    end = stopping()
    end.fault = InputError("too large")
    assert end.must_stop(2) and not end.must_stop(5)
    with pytest.raises(InputError, match="too large"):
        end.conclude(5, keeps_states=True)


# --- the wish ------------------------------------------------------------------------------------------------------


def test_who_listened_before_listens_again():
    before = [signal.getsignal(n) for n in (signal.SIGTERM, signal.SIGINT)]
    with Stop():
        assert [signal.getsignal(n) for n in (signal.SIGTERM, signal.SIGINT)] != before
    assert [signal.getsignal(n) for n in (signal.SIGTERM, signal.SIGINT)] == before


def test_under_nohup_a_closed_terminal_is_no_wish():
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with Stop() as stop:
            os.kill(os.getpid(), signal.SIGHUP)
            assert stop.asked() == 0
    finally:
        signal.signal(signal.SIGHUP, before)


@pytest.mark.slow
def test_a_terminal_that_is_closed_leaves_a_state_though_nothing_can_be_said(tmp_path):
    """A real one: its master side is closed, at which the kernel sends SIGHUP, and every word is an error."""
    model = tiny.write_model(tmp_path / "model", vocab_size=101)
    rows = tiny.write_rows(tmp_path / "rows.jsonl", id_rows(4))
    flags = ["--model", model, "--data", rows, "--out", tmp_path / "run", "--epochs", 9999, "--batch-size", 2]
    child, terminal = pty.fork()
    if not child:
        os.execve(
            sys.executable,
            [sys.executable, "-m", "engine.train", *map(str, flags), "--keep-checkpoints", "1"],
            tiny.environment(),
        )
    while not (tmp_path / "run/epoch-01").exists():
        assert os.waitpid(child, os.WNOHANG) == (0, 0), os.read(terminal, 10_000).decode()
        time.sleep(0.05)
    os.close(terminal)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 129
    n = len((tmp_path / "run/metrics.jsonl").read_bytes().splitlines())
    assert [p.name for p in (tmp_path / "run/state").glob("step-*")] == [f"step-{n:06d}"]


def test_a_launcher_may_ask_by_a_file(tmp_path, monkeypatch):
    monkeypatch.setenv("RUN_STOP_FILE", str(tmp_path / "stop"))
    with Stop() as stop:
        assert stop.asked() == 0
        for text, number in (("", 0), ("15", 15)):
            (tmp_path / "stop").write_text(text)
            assert stop.asked() == number
        (tmp_path / "stop").unlink()
        assert stop.asked() == 15  # once is enough
        (tmp_path / "stop").write_text("2")
        assert stop.asked() == 15  # the first one's code is the run's


def test_a_second_ctrl_c_ends_the_process_at_once_and_a_second_sigterm_does_not():
    script = (
        "import os, signal\nfrom engine.distributed import Stop\n"
        "with Stop() as stop:\n    for n in {}:\n        os.kill(os.getpid(), n)\n    print(stop.asked())\n"
    )
    for numbers, code, shown in (((2, 2), 130, ""), ((15, 15), 0, "15\n")):
        done = subprocess.run(
            [sys.executable, "-c", script.format(numbers)],
            capture_output=True,
            text=True,
            env=tiny.environment(),
            timeout=120,
            check=False,
        )
        assert (done.returncode, done.stdout) == (code, shown)
        assert done.stderr.count("stopping when this step is done and its state is saved") == 1


@pytest.mark.parametrize(
    ("variables", "seconds"),
    [({}, None), ({"TORCHELASTIC_RUN_ID": "x"}, 30.0), ({"TORCHELASTIC_RUN_ID": "x", "RUN_STOP_FILE": "f"}, None)],
)
def test_torchrun_alone_gives_little_time(monkeypatch, variables, seconds):
    for name in ("TORCHELASTIC_RUN_ID", "RUN_STOP_FILE"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert grace() == seconds


def test_outside_of_the_main_thread_nobody_listens():
    """Python lets the main thread alone do so: a run in a thread of somebody's program goes on all the same."""
    before, heard = [signal.getsignal(n) for n in (signal.SIGTERM, signal.SIGINT)], []

    def begin():
        with Stop() as stop:
            heard.append((stop.asked(), [signal.getsignal(n) for n in (signal.SIGTERM, signal.SIGINT)]))

    thread = threading.Thread(target=begin)
    thread.start()
    thread.join()
    assert heard == [(0, before)]
