"""What happens to a run of the real command: killed, stopped, out of disk, started twice."""

import collections
import json
import os
import pty
import random
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from revise.loopback import Reply, serve
from tests import tiny
from tests.revise.commands import command, prompts, read_rows, revise, run, start


def undisturbed(folder, n):
    """The bytes of a run that nothing happens to."""
    folder.mkdir()
    prompts(folder / "prompts.jsonl", n)
    with serve(revise) as server:
        done = run(command("clair", folder, server.base))
    assert (done.returncode, "Traceback" in done.stderr) == (0, False)
    return (folder / "pairs.jsonl").read_bytes()


def without_times(pairs):
    """Rows without the moments at which they were answered."""
    rows = [json.loads(line) for line in pairs.splitlines()]
    for row in rows:
        for answer in row["provenance"]["answers"]:
            del answer["time"]
    return rows


def run_killed(folder, n, n_kills, *, seconds, concurrency, delay):
    """A run that is killed so often and restarted each time, to its end; (pairs, requests that arrived, kills)."""
    prompts(folder / "prompts.jsonl", n)
    rng, sent, n_killed = random.Random(0), collections.Counter(), 0

    def reply(seen):
        sent[seen.text] += 1
        return revise(seen).after(delay * rng.random())

    with serve(reply) as server:
        arguments = command("clair", folder, server.base, "--concurrency", concurrency)
        while True:
            running = start(arguments)
            try:
                running.communicate(timeout=seconds * rng.random() if n_killed < n_kills else 120)
            except subprocess.TimeoutExpired:
                os.killpg(running.pid, signal.SIGKILL)
                running.communicate()
                n_killed += 1
                continue
            assert running.returncode == 0
            if n_killed >= n_kills:
                break
            (folder / "pairs.jsonl").unlink(missing_ok=True)  # done before the last kill: what is stored stays
        first = (folder / "pairs.jsonl").read_bytes()
        assert run(arguments).returncode == 0
        assert (folder / "pairs.jsonl").read_bytes() == first  # the same bytes on every export
    return first, sent, n_killed


def check_killed(tmp_path, n, n_kills, *, seconds, concurrency, delay):
    folder = tmp_path / "killed"
    folder.mkdir()
    pairs, sent, n_killed = run_killed(folder, n, n_kills, seconds=seconds, concurrency=concurrency, delay=delay)
    assert without_times(pairs) == without_times(undisturbed(tmp_path / "calm", n))  # every row, once, in order
    assert len(sent) == n and n_killed == n_kills
    assert sum(sent.values()) <= n + n_kills * concurrency  # paid twice: no more than were in flight
    assert not list(folder.glob("*.tmp"))
    print(f"{n_kills} kills: {sum(sent.values())} requests for {n} rows, {sum(sent.values()) / n:.3f} a row")


def test_a_run_that_is_killed_goes_on_and_loses_nothing(tmp_path):
    check_killed(tmp_path, 300, 5, seconds=1.6, concurrency=16, delay=0.1)


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_a_run_that_is_killed_a_hundred_times_loses_nothing(tmp_path):
    check_killed(tmp_path, 2000, 100, seconds=2.0, concurrency=16, delay=1.2)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)])
def test_a_run_that_is_stopped_takes_in_what_was_asked(tmp_path, number, code):
    prompts(tmp_path / "prompts.jsonl", 200)
    with serve(lambda seen: revise(seen).after(0.4)) as server:
        running = start(command("clair", tmp_path, server.base, "--concurrency", 8))
        while server.n_seen < 20:
            time.sleep(0.01)
        os.kill(running.pid, number)
        _, said = running.communicate(timeout=30)
        n_seen = server.n_seen
        assert (
            running.returncode == code and f"stopped; {n_seen} answers are stored" in said and "Traceback" not in said
        )
        assert not (tmp_path / "pairs.jsonl").exists()
        done = run(command("clair", tmp_path, server.base, "--concurrency", 64))
        assert (done.returncode, server.n_seen) == (0, 200)
    assert len(read_rows(tmp_path / "pairs.jsonl")) == 200


@pytest.mark.slow
def test_a_run_whose_terminal_is_closed_takes_in_what_was_asked(tmp_path):
    """What it has to say to the terminal, progress among it, is an error there by then, and stops nothing."""
    prompts(tmp_path / "prompts.jsonl", 200)
    with serve(lambda seen: revise(seen).after(0.4)) as server:
        asked = [*map(str, command("clair", tmp_path, server.base, "--concurrency", 8))]
        child, terminal = pty.fork()
        if not child:
            os.execve(sys.executable, asked, tiny.environment())
        while server.n_seen < 20:
            time.sleep(0.01)
        os.close(terminal)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 129
        n_seen = server.n_seen
        assert n_seen < 200
        done = run(command("clair", tmp_path, server.base, "--concurrency", 64))
        assert (done.returncode, server.n_seen) == (0, 200), n_seen


@pytest.mark.slow
def test_a_second_signal_does_not_wait(tmp_path):
    prompts(tmp_path / "prompts.jsonl", 20)
    with serve(
        lambda seen: revise(seen).after(60 if seen.number > 1 else 0)
    ) as server:  # two that differ are looked at
        running = start(command("clair", tmp_path, server.base))
        while server.n_seen < 20:
            time.sleep(0.01)
        begin = time.monotonic()
        for _ in range(2):
            os.kill(running.pid, signal.SIGINT)
            time.sleep(0.3)
        running.communicate(timeout=30)
    assert running.returncode == 130 and time.monotonic() - begin < 10


def test_a_second_run_on_one_store_says_who_has_it(tmp_path):
    prompts(tmp_path / "prompts.jsonl", 8)
    is_refused = threading.Event()

    def reply(seen):
        is_refused.wait(60)  # however long the second one takes to start
        return revise(seen)

    with serve(reply) as server:
        first = start(command("clair", tmp_path, server.base))
        while server.n_seen < 1:
            time.sleep(0.01)
        second = run(command("clair", tmp_path, server.base, "--out", tmp_path / "other.jsonl"))
        is_refused.set()
        first.communicate(timeout=30)
    assert (
        second.returncode == 2 and f"process {first.pid} on " in second.stderr and len(second.stderr.splitlines()) == 1
    )
    assert (first.returncode, server.n_seen) == (0, 8)


def wordy(seen):
    """A revision of some 6,000 characters."""
    return Reply.chat("{teacher_reasoning}: x\n\n{corrected_student_solution}:\n" + f"{seen.number} herons. " * 500)


@pytest.fixture
def small(tmp_path, request):
    """A file system of a few hundred KB."""
    folder = tmp_path / "small"
    folder.mkdir()
    made = ["mount", "-t", "tmpfs", "-o", f"size={request.param}", "tmpfs", folder]
    if os.geteuid() or subprocess.run(made, check=False).returncode:
        pytest.skip("no small file system can be mounted here")
    yield folder
    subprocess.run(["umount", folder], check=False)


@pytest.mark.parametrize("small", ["600k"], indirect=True)
def test_a_disk_that_fills_stops_the_run_and_it_goes_on_when_there_is_room(small):
    prompts(small / "prompts.jsonl", 150)
    with serve(wordy) as server:
        arguments = command("clair", small, server.base, "--concurrency", 4, "--max-length-ratio", 1e9)
        stopped = run(arguments)
        assert stopped.returncode == 1 and "full" in stopped.stderr and "Traceback" not in stopped.stderr
        n_before = server.n_seen
        subprocess.run(["mount", "-o", "remount,size=20m", small], check=True)
        done = run(arguments)
        assert done.returncode == 0, done.stderr
        assert server.n_seen <= 150 + 2 * 4 and n_before < 150
    assert len(read_rows(small / "pairs.jsonl")) == 150


@pytest.mark.parametrize("small", ["120k"], indirect=True)
def test_a_disk_that_fills_in_the_export_leaves_the_old_files_whole(tmp_path, small):
    prompts(tmp_path / "prompts.jsonl", 200)
    out = small / "pairs.jsonl"
    with serve(revise) as server:
        assert run(command("clair", tmp_path, server.base, "--sample", 50, "--out", out)).returncode == 0
        before = out.read_bytes()
        full = run(command("clair", tmp_path, server.base, "--out", out))
        assert full.returncode == 1 and str(out) in full.stderr and "Traceback" not in full.stderr
    assert out.read_bytes() == before and [p.name for p in small.iterdir() if ".tmp" in p.name] == []


@pytest.mark.parametrize("small", ["300k"], indirect=True)
def test_a_file_system_that_is_read_only_is_said_before_anything_is_sent(tmp_path, small):
    prompts(tmp_path / "prompts.jsonl", 3)
    subprocess.run(["mount", "-o", "remount,ro", small], check=True)
    with serve(revise) as server:
        for more in (["--store", small / "s.sqlite"], ["--out", small / "pairs.jsonl"]):
            done = run(command("clair", tmp_path, server.base, *more))
            assert done.returncode == 2 and str(small) in done.stderr and "Traceback" not in done.stderr
    assert server.n_seen == 0


def test_the_key_is_in_no_file_no_output_and_no_command_line(tmp_path):
    key = "sk-Zq7wXv9Kf3Lm5Np8Rt2Yb4"
    prompts(tmp_path / "prompts.jsonl", 12)

    def reply(seen):
        assert seen.headers["authorization"] == f"Bearer {key}"
        return Reply.error(500, f"you sent {key}") if seen.number % 3 == 0 else revise(seen).after(0.3)

    with serve(reply) as server:
        running = start(command("clair", tmp_path, server.base, "--concurrency", 2), env={"OPENAI_API_KEY": key})
        while server.n_seen < 3:
            time.sleep(0.01)
        shown = b"".join(path.read_bytes() for path in Path("/proc").glob("[0-9]*/cmdline") if path.exists())
        told = "".join(running.communicate(timeout=60))
    assert running.returncode == 0 and len(read_rows(tmp_path / "pairs.jsonl")) == 12
    everything = shown + told.encode() + b"".join(path.read_bytes() for path in tmp_path.iterdir())
    assert not [i for i in range(len(key) - 11) if key[i : i + 12].encode() in everything]


MEASURED = """
import resource, runpy, sys
sys.argv[0] = "revise"
try:
    runpy.run_module("revise", run_name="__main__")
except SystemExit as leaving:
    assert not leaving.code, leaving.code
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_memory_does_not_grow_with_the_rows(tmp_path):
    def peak_mb(n):
        folder = tmp_path / str(n)
        folder.mkdir()
        prompts(folder / "prompts.jsonl", n)
        with serve(revise) as server:
            arguments = command("clair", folder, server.base)
            done = run([arguments[0], "-c", MEASURED, *arguments[3:]], timeout=800)
        assert len(read_rows(folder / "pairs.jsonl")) == n
        return int(done.stdout.splitlines()[-1]) / 1024

    few, many = peak_mb(2000), peak_mb(32_000)
    print(f"2,000 rows: {few:.0f} MB; 32,000 rows: {many:.0f} MB")
    assert many < few + 30  # keys take 0.2 KB a row, twice; the rows themselves, 60 MB, are not kept


CALLS = "pwrite64,write,fdatasync,fsync,rename,renameat2,ftruncate"


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_kill_at_any_write_of_store_or_export_loses_nothing(tmp_path):
    """At each system call that writes to the store, its log or the files of the export, one after the other."""
    if shutil.which("strace") is None:
        pytest.skip("strace is not installed")
    n = 12
    expected = without_times(undisturbed(tmp_path / "calm", n))
    n_kills = 0
    for call in CALLS.split(","):
        for when in range(1, 60):
            folder = tmp_path / f"{call}-{when}"
            folder.mkdir()
            prompts(folder / "prompts.jsonl", n)
            names = ("store.sqlite", "store.sqlite-wal", "store.sqlite.lock", "pairs.jsonl", "pairs.jsonl.tmp")
            paths = [arg for name in (*names, "pairs.rejected.jsonl.tmp") for arg in ("-P", str(folder / name))]
            trace = ["strace", "-f", "-qq", "-o", "/dev/null", *paths, "-e", f"trace={call}"]
            with serve(revise) as server:
                arguments = command("clair", folder, server.base, "--concurrency", 2)
                killed = run([*trace, "-e", f"inject={call}:signal=KILL:when={when}", *arguments])
                if killed.returncode == 0:  # that call is not made so often
                    break
                assert killed.returncode in (-9, 137)
                n_kills += 1
                sent = server.n_seen
                assert run(arguments).returncode == 0, (call, when)
                assert server.n_seen <= n + 2, (call, when, sent)
            assert without_times((folder / "pairs.jsonl").read_bytes()) == expected, (call, when)
            assert not list(folder.glob("*.tmp"))
    print(f"{n_kills} kills")
    assert n_kills >= 20
