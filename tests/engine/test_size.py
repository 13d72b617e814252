"""Loading and saving a model of 1 GB on two ranks: the memory it takes besides the ranks' own shards."""

import json
import subprocess
import sys

import pytest

from tests import tiny

SCRIPT = """
import json, sys, threading, time
from pathlib import Path
import torch
from engine import weights
from engine.distributed.ranks import Ranks
from engine.model.fused_forward import FusedForward

def held():
    lines = dict(line.split(":", 1) for line in open("/proc/self/status"))
    return int(lines["RssAnon"].split()[0]) * 1024

class Peak:
    def __enter__(self):
        self.start, self.most, self.on = held(), 0, True
        self.thread = threading.Thread(target=self.look)
        self.thread.start()
        return self
    def look(self):
        while self.on:
            self.most = max(self.most, held())
            time.sleep(0.002)
    def __exit__(self, *_):
        self.on = False
        self.thread.join()
        self.grown = self.most - self.start

source, out = map(Path, sys.argv[1:])
ranks = Ranks.join()
fused = ranks.place(FusedForward(weights.build(source), None))
with Peak() as load:
    weights.fill(fused.policy, source, ranks.local)
shards = [ranks.local(p)[0] for p in fused.policy.parameters()]
own = sum(s.numel() * 4 for s in shards)
largest = max(p.numel() * 4 for p in fused.policy.parameters())
with Peak() as save:
    weights.save(fused.policy, out, parts=ranks)
part = max(s.numel() * 4 for s in shards)
found = {"own": own, "load": load.grown, "save": save.grown, "tensor": largest, "part": part}
print(json.dumps(found), flush=True)
ranks.wait()
"""


@pytest.mark.slow
def test_a_gigabyte_is_loaded_and_saved_in_the_ranks_own_memory(tmp_path):
    """fill holds a rank's shards and one slice at a time; save holds at most two tensors; the files are the same."""
    shape = {"hidden_size": 1024, "intermediate_size": 2816, "num_hidden_layers": 16, "vocab_size": 32003}
    tiny.write_model(tmp_path / "model", **shape)
    size = (tmp_path / "model/model.safetensors").stat().st_size
    assert size > 10**9
    (tmp_path / "io.py").write_text(SCRIPT)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    command += [str(tmp_path / "io.py"), str(tmp_path / "model"), str(tmp_path / "out")]
    env = tiny.environment()
    done = subprocess.run(command, capture_output=True, text=True, env=env, timeout=300, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    ranks = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    assert len(ranks) == 2
    for rank in ranks:
        print({name: f"{n / 2**20:.0f} MiB" for name, n in rank.items()})
        assert rank["load"] < rank["own"] + rank["part"] * 1.25 + 2**25  # a slice, and which of it is finite
        assert rank["save"] < 2 * rank["tensor"] + 2**25
    one, two = (tmp_path / name / "model.safetensors" for name in ("model", "out"))
    assert one.stat().st_size == two.stat().st_size
    with open(one, "rb") as a, open(two, "rb") as b:
        while chunk := a.read(2**24):
            assert chunk == b.read(2**24)
