"""examples/train.slurm as SLURM would run it: two nodes on this machine, a torchrun agent each, that meet over gloo.

srun and scontrol are stand-ins: the one starts the command once for each node, and brings a node back that was killed;
the other names the first node, and keeps what it is asked to requeue. What of a real cluster stays untested: several
hosts, their network and shared disk, GPUs, and SLURM's own signals and limits.
"""

import json
import os
import signal
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests import tiny
from tests.rows import id_rows

SCRIPT = tiny.ROOT / "examples/train.slurm"
SRUN = """#!{python}
import json, os, socket, subprocess, sys, time
folder = {folder!r}
def start(node):
    with open(f"{{folder}}/node-{{node}}.log", "a") as log:
        return subprocess.Popen(sys.argv[1:], stdout=log, stderr=log, env=os.environ | {{"OMP_NUM_THREADS": "1"}})
def tell():
    with open(f"{{folder}}/nodes.tmp", "w") as file:
        json.dump([node.pid for node in nodes], file)
    os.rename(f"{{folder}}/nodes.tmp", f"{{folder}}/nodes.json")
nodes = [start(0)]
while True:  # the first node holds the rendezvous, as where they are told its name
    try:
        socket.create_connection(("127.0.0.1", 29400), 1).close()
        break
    except OSError:
        time.sleep(0.2)
nodes.append(start(1))
tell()
while any(node.poll() is None for node in nodes):
    for i, node in enumerate(nodes):
        if node.poll() == -9:
            time.sleep(2)
            nodes[i] = start(i)
            tell()
    time.sleep(0.1)
sys.exit(max(abs(node.returncode) for node in nodes))
"""
SCONTROL = """#!/bin/sh
if [ "$1" = show ]; then echo localhost; echo localhost; else echo "$@" >>{folder}/requeued; fi
"""
FLAGS = ["--loss", "dpo", "--epochs", "2", "--batch-size", "2", "--lr", "1e-3", "--state-every", "1", "--seed", "3"]
STEPS = 16


@pytest.fixture
def cluster(tmp_path):
    """A folder that holds what a job needs, with the stand-ins' own."""
    (tmp_path / ".venv/bin").mkdir(parents=True)
    python = tmp_path / ".venv/bin/python"
    python.write_text(f'#!/bin/sh\nexec "{sys.executable}" "$@"\n')
    python.chmod(0o755)
    tiny.write_model(tmp_path / "m", vocab_size=101)
    tiny.write_rows(tmp_path / "rows.jsonl", id_rows(16))
    (tmp_path / "bin").mkdir()
    for name, text in (("srun", SRUN), ("scontrol", SCONTROL)):
        path = tmp_path / "bin" / name
        path.write_text(text.format(python=sys.executable, folder=str(tmp_path)))
        path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return tmp_path


def submitted(cluster, *more):
    """The job, begun."""
    env = tiny.environment() | {
        "SLURM_SUBMIT_DIR": str(cluster), "SLURM_JOB_ID": "7", "SLURM_JOB_NODELIST": "node[1-2]", "SLURM_NNODES": "2",
        "SLURM_GPUS_ON_NODE": "1", "PATH": f"{cluster / 'bin'}:{os.environ['PATH']}",
    }  # fmt: skip
    given = ["--model", "m", "--data", "rows.jsonl", "--out", "o", *FLAGS, *more]
    return subprocess.Popen(["bash", str(SCRIPT), *given], env=env, stderr=subprocess.DEVNULL)


def steps(out):
    """Loss and log-probs by step."""
    path = out / "metrics.jsonl"
    lines = [json.loads(line) for line in path.read_text().splitlines()] if path.is_file() else []
    return [(line["step"], line["loss"], line["logps/chosen"]) for line in lines]


def wait_for(job, seen, cluster):
    deadline = time.monotonic() + 240
    while not seen():
        said = "".join(path.read_text()[-3000:] for path in Path(cluster).glob("node-*.log"))
        assert job.poll() is None and time.monotonic() < deadline, said
        time.sleep(0.05)


def check_same(cluster):
    """What the job has trained is, bit for bit, what two processes train that nobody disturbs."""
    start = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", "-m"]
    given = ["--model", "m", "--data", "rows.jsonl", "--out", "calm", "--shard-size", "1", *FLAGS]
    command = [*start, "engine.train", *given]
    subprocess.run(command, cwd=cluster, env=tiny.environment(), check=True, capture_output=True)
    assert [step for step, *_ in steps(cluster / "o")] == list(range(1, STEPS + 1))
    assert steps(cluster / "o") == steps(cluster / "calm")
    for epoch in ("epoch-01", "epoch-02"):
        ours, calm = (cluster / folder / epoch / "model.safetensors" for folder in ("o", "calm"))
        assert ours.read_bytes() == calm.read_bytes()


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_node_that_is_killed_is_brought_back_and_the_run_is_the_same(cluster):
    job = submitted(cluster)
    wait_for(job, lambda: len(steps(cluster / "o")) >= 4, cluster)
    (_, second) = json.loads((cluster / "nodes.json").read_text())
    os.kill(second, signal.SIGKILL)
    code = job.wait(600)
    said = "".join(path.read_text()[-3000:] for path in cluster.glob("node-*.log"))
    assert code == 0, said
    assert json.loads((cluster / "nodes.json").read_text())[1] != second  # it was brought back
    check_same(cluster)
    assert not (cluster / "requeued").exists()


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_job_that_runs_out_of_time_saves_and_is_queued_again(cluster):
    job = submitted(cluster)
    wait_for(job, lambda: len(steps(cluster / "o")) >= 4, cluster)
    job.send_signal(signal.SIGTERM)
    job.wait(300)
    assert (cluster / "requeued").read_text() == "requeue 7\n"
    done = len(steps(cluster / "o"))
    assert 4 <= done < STEPS and not list(cluster.glob(".stop-*"))
    assert submitted(cluster).wait(600) == 0
    check_same(cluster)
