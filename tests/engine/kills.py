"""Runs trainings in forked processes that die, fail or run out of disk where they are told to, and compares what is
gone on with to a run that was never disturbed.

    python -m tests.engine.kills FOLDER JOB...      a line of JSON per job: what was injected, and how it ended

A process that has torch imported and has done nothing with it yet forks in milliseconds; importing takes seconds.
JOB is a fault as tests/faults.py reads it, a number of ranks before it ("2/any:17:KILL:1"), "after:0.12" for a kill
after that many seconds, "strace:fsync:3" for a kill by strace at the third such call, whoever makes it, "stop:3" for
--stop-after 3, or "power" for a loss of power after every operation. FOLDER has the model and rows.jsonl, and may have
settings.json: of all its runs.
"""

import hashlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
import traceback
from pathlib import Path

from engine import train
from engine.config import TrainConfig
from engine.run import states as checkpoint
from engine.run.folder import cut_metrics
from system.files import numbered
from tests import faults

TIMES = ("perf/step_seconds", "perf/pairs_per_second", "perf/tokens_per_second")
SETTINGS = {"lr": 1e-4, "batch_size": 8, "epochs": 2, "state_every": 2, "keep_state": 1, "loss": "apo_zero"}


def outcome(out):
    """What a run leaves that the clock does not change: metrics, digests of every folder's weights, the best one."""
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    kept = [{k: v for k, v in line.items() if k not in TIMES} for line in lines]
    folders = sorted([*out.glob("epoch-*"), *out.glob("step-*")])
    found = [(p.name, hashlib.sha256((p / "model.safetensors").read_bytes()).hexdigest()) for p in folders]
    best = out / "best"
    return kept, found + ([("best", os.readlink(best))] if best.is_symlink() else [])


def child(settings, fault, rank, log):
    """What a forked process does: one training."""
    if fault.startswith("strace:"):
        os.kill(os.getpid(), signal.SIGSTOP)  # until strace has attached
    elif fault:
        faults.inject(fault)
    screen = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(screen, 1)
    os.dup2(screen, 2)
    os.environ["RANK"] = str(rank)
    try:
        train.run(TrainConfig(**settings))
        os._exit(0)
    except BaseException as ending:
        print(f"{type(ending).__name__}: {ending}", flush=True)
        if type(ending).__name__ not in ("InputError", "RunError", "OSError", "Stopped"):
            traceback.print_exc()
        os._exit(3)


def run(settings, fault, ranks, log, after=None):
    """How the ranks ended: exit codes, negative for signals. The others of a rank that ended badly are ended."""
    log.unlink(missing_ok=True)
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    place = {"WORLD_SIZE": str(ranks), "LOCAL_WORLD_SIZE": str(ranks), "MASTER_ADDR": "localhost"}
    os.environ.update(place | {"MASTER_PORT": str(port)})
    pids = {}
    for rank in range(ranks):
        pid = os.fork()
        if pid == 0:
            child(settings, fault, rank, log)
        pids[pid] = rank
    if fault.startswith("strace:"):
        trace(next(iter(pids)), *fault.split(":")[1:])
    codes = {}
    if after is not None:
        time.sleep(after)
        for pid in pids:
            os.kill(pid, signal.SIGKILL)
    while pids:
        pid, status = os.wait()
        if pid not in pids:  # strace
            continue
        codes[pids.pop(pid)] = os.waitstatus_to_exitcode(status)
        if codes and any(codes.values()):
            for other in pids:
                os.kill(other, signal.SIGKILL)
    return [codes[rank] for rank in sorted(codes)]


def trace(pid, call, number):
    """Has strace kill a stopped process at its number-th call of a kind, and lets it go on."""
    os.waitpid(pid, os.WUNTRACED)
    what = ["-e", f"trace={call}", "-e", f"inject={call}:signal=KILL:when={number}"]
    subprocess.Popen(["strace", "-f", "-qq", "-o", "/dev/null", "-p", str(pid), *what])
    while "TracerPid:\t0" in Path(f"/proc/{pid}/status").read_text():
        time.sleep(0.02)
    os.kill(pid, signal.SIGCONT)


class Power:
    """Rebuilds, before each operation, what a disk may hold after a loss of power, and looks whether it is good.

    A file's content is sure once it was synced, a name once its folder was; before that a file may be empty, and a
    name may be the old or the new one.
    """

    def __init__(self, root, image):
        self.root, self.image = root, image
        self.sure, self.names = {}, {}
        self.pending, self.lock = None, threading.Lock()
        self.states = self.bad = 0
        self.faults, self.first = [], False

    def note(self, operation, path):
        if self.root not in Path(path).parents:
            return  # on another disk
        with self.lock:  # a state is written by a thread beside the training
            self._note(operation, path)

    def _note(self, operation, path):
        if self.pending is not None and self.pending.exists():
            self._sync(self.pending)
        self.pending = Path(path) if operation == "fsync" else None
        for is_new in (False, True):
            self._check(is_new)

    def _sync(self, path):
        if path.is_dir():
            self.names[path.stat().st_ino] = {p.name: p.stat().st_ino for p in path.iterdir()}
            # what a synced name leads to keeps its own names
        else:
            s = path.stat()
            self.sure[s.st_ino] = path.read_bytes()

    def _copy(self, folder, to, is_new):
        to.mkdir(parents=True, exist_ok=True)
        now = {p.stat().st_ino: p for p in folder.iterdir()}
        known = self.names.get(folder.stat().st_ino)
        listing = {p.name: inode for inode, p in now.items()} if is_new or known is None else known
        for name, inode in listing.items():
            path = self.where.get(inode)
            if path is None:
                continue  # removed since: its blocks are gone in either case
            if path.is_dir():
                self._copy(path, to / name, is_new)
            else:
                (to / name).write_bytes(self.sure.get(inode, b""))

    def _check(self, is_new):
        self.where = {p.stat().st_ino: p for p in self.root.rglob("*")}
        shutil.rmtree(self.image, ignore_errors=True)
        try:
            self._copy(self.root, self.image, is_new)
        except FileNotFoundError:
            return  # the other thread has renamed it meanwhile; the next look sees it
        self.states += 1
        found = [p for _, p in numbered(self.image / "run/state", checkpoint.PREFIX)]
        damaged = [said for p in found if (said := checkpoint.damage(p))]
        for p in reversed(found):  # the lines of an older state are fewer
            try:
                cut_metrics(self.image / "run", int(p.name.removeprefix("step-")))
            except ValueError as fault:
                damaged.append(str(fault))
        for epoch in (self.image / "run").glob("epoch-*"):
            if epoch.name[6:].isdigit() and not all(p.stat().st_size for p in epoch.iterdir()):
                damaged.append(f"{epoch}: empty files")
        if self.first and not found:
            damaged.append("no state is left")
        self.first = self.first or bool(found and not is_new)
        self.bad += bool(damaged)
        self.faults += damaged[:1]


def power(settings, folder, log):
    """Every operation of a run, as a loss of power."""
    os.environ |= {"WORLD_SIZE": "1", "RANK": "0"}
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        (folder / "disk").mkdir()
        watcher = Power(folder / "disk", folder / "image")
        faults.watch(watcher.note)
        try:
            train.run(TrainConfig(**settings | {"out": str(folder / "disk/run")}))
        except BaseException as ending:  # the run's own, or a look's: neither is to be
            traceback.print_exc()
            watcher.bad += 1
            watcher.faults.insert(0, f"{type(ending).__name__}: {ending}")
        finally:
            os.write(writer, json.dumps([watcher.states, watcher.bad, watcher.faults[:3]]).encode())
            os._exit(0)
    os.close(writer)
    os.waitpid(pid, 0)
    states, bad, said = json.loads(os.read(reader, 10000))
    os.close(reader)
    return {"states": states, "bad": bad, "said": said}


def main(folder, jobs):
    settings = SETTINGS | {"model": str(folder / "model"), "data": str(folder / "rows.jsonl")}
    if (folder / "settings.json").exists():
        settings |= json.loads((folder / "settings.json").read_text())
    whole = {}
    for number, job in enumerate(jobs):
        ranks, fault = (int(job.partition("/")[0]), job.partition("/")[2]) if "/" in job else (1, job)
        out, log = folder / f"run-{number}", folder / f"log-{number}"
        if fault == "power":
            print(json.dumps({"job": job} | power(settings, folder, log)), flush=True)
            continue
        if ranks not in whole:
            kept = folder / f"whole-{ranks}"  # an earlier call may have left it
            if not kept.exists():
                assert run(settings | {"out": str(kept)}, "", ranks, log) == [0] * ranks, log.read_text()
            whole[ranks] = outcome(kept)
        after = float(fault.removeprefix("after:")) if fault.startswith("after:") else None
        stops = {"stop_after": int(fault.removeprefix("stop:"))} if fault.startswith("stop:") else {}
        ended = run(settings | {"out": str(out)} | stops, "" if after or stops else fault, ranks, log, after)
        said = log.read_text() if log.exists() else ""
        states = [p for _, p in numbered(out / "state", checkpoint.PREFIX)]
        damaged = [found for p in states if (found := checkpoint.damage(p))]
        leftover = [p.name for p in out.rglob("*.tmp")] if out.exists() else []
        again = run(settings | {"out": str(out), "resume": True}, "", ranks, log)
        is_same = again == [0] * ranks and outcome(out) == whole[ranks]
        left = [p.name for p in out.rglob("*.tmp")]
        found = {"job": job, "ended": ended, "said": said[-600:], "damaged": damaged, "leftover": leftover}
        print(json.dumps(found | {"again": again, "same": is_same, "left": left,
                                  "said_again": "" if is_same else log.read_text()[-2000:]}), flush=True)  # fmt: skip
        if is_same:
            shutil.rmtree(out)


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])
