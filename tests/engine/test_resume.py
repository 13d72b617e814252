"""A run that is stopped or killed, and gone on with, is the run that was never disturbed: to the last bit."""

import hashlib
import io
import json
import os
import pickle
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

import engine
from engine import train
from engine.config import TrainConfig
from engine.distributed import stop
from engine.distributed.ranks import Ranks
from engine.inputs import TrainingInputs
from engine.layout import splits_masters
from engine.run import states as checkpoint
from engine.step import Hooks, reference_passes
from losses import registry
from system import InputError, RunError
from system.errors import Stopped
from tests import tiny
from tests.engine.kills import outcome
from tests.metrics import lines
from tests.proofs import Watch
from tests.rows import id_rows


@pytest.fixture
def go(tmp_path):
    """A function that runs a training of 3 epochs of 3 steps in a folder by name; what it did is in its `watch`."""
    model = tiny.write_model(tmp_path / "model", vocab_size=101)
    rows = tiny.write_rows(tmp_path / "rows.jsonl", id_rows(22))

    def run(name, **changes):
        settings = {"model": str(model), "data": str(rows), "lr": 1e-4, "batch_size": 8, "epochs": 3}
        run.watch = Watch()
        return train.run(TrainConfig(**(settings | {"out": str(tmp_path / name)} | changes)), run.watch.hooks)

    run.tmp, run.model, run.rows = tmp_path, model, rows
    return run


JOBS = {
    "fused": {"loss": "apo_zero"},
    "precompute": {"loss": "dpo", "reference": "precompute", "eval_pairs": 4},
    "none": {"loss": "simpo", "optimizer": "adamw", "weight_decay": 0.1, "schedule": "cosine", "warmup_steps": 3},
    "muon": {"loss": "simpo", "optimizer": "muon", "schedule": "wsd", "warmup_ratio": 0.2, "min_lr_ratio": 0.1},
    "mismatched": {"loss": "kto"},
    "state of its own": {"loss": "bco"},
    "moving": {"loss": "dpo", "reference_update": "soft", "reference_update_steps": 2, "eval_pairs": 4},
    # The table is whole when an epoch ends, and the reference moves later all the same.
    "moving seldom": {"loss": "dpo", "reference_update": "hard", "reference_update_steps": 4},
    "stages": {"loss": "dpo", "stages": 2, "epochs": 2},
}


@pytest.mark.parametrize("kind", [*list(JOBS)[:2], *(pytest.param(k, marks=pytest.mark.slow) for k in list(JOBS)[2:])])
def test_a_run_that_stops_after_every_step_is_the_same_run(go, kind):
    go("whole", **JOBS[kind])
    inside = "." if kind != "stages" else "stage-02"
    n = len(lines(go.tmp / "whole" / inside))  # 9 steps of pairs, 18 of responses taken apart, 4 of a stage
    for step in range(1, n + 1):
        result = go("stopped", **JOBS[kind], resume=True, stop_after=step)
        assert kind == "stages" or go.watch.steps == [step]
    result = go("stopped", **JOBS[kind], resume=True)
    assert not go.watch.steps
    assert result.metrics["step"] == n > 3
    for folder in {".", inside} if kind != "stages" else {"stage-01", "stage-02"}:
        assert outcome(go.tmp / "whole" / folder) == outcome(go.tmp / "stopped" / folder)


def test_a_state_between_two_epochs_is_enough(go):
    """Killed after step 5 of 9, whose last state is that of step 4: step 5 is done again, and stands there once."""
    go("whole")
    go("killed", state_every=2, stop_after=5)
    newest = go.tmp / "killed/state/step-000005"
    assert newest.is_dir()
    shutil.rmtree(newest)
    go("again", state_every=4, stop_after=4)
    shutil.copytree(go.tmp / "again/state/step-000004", go.tmp / "killed/state/step-000004")
    assert len(lines(go.tmp / "killed")) == 5
    with open(go.tmp / "killed/metrics.jsonl", "a") as file:
        file.write('{"step": 6, "lo')  # torn
    go("killed", resume=True)
    assert go.watch.steps == [5, 6, 7, 8, 9]
    assert outcome(go.tmp / "whole") == outcome(go.tmp / "killed")


def test_random_numbers_go_on_where_they_were(go):
    """Nothing of ours draws from torch's generator while it trains; an objective from outside may."""
    drawn = {}
    settings = {"model": str(go.model), "data": (str(go.rows),), "batch_size": 8, "epochs": 3, "resume": True}
    for seed, name, changes in ((1, "whole", {}), (1, "parts", {"stop_after": 4}), (2, "parts", {})):
        hooks = Hooks(
            begin=lambda _, seed=seed: torch.manual_seed(seed),
            after_step=lambda _, step: drawn.setdefault(step.number, []).append(torch.rand(()).item()),
        )
        train.run(TrainConfig(**settings, out=str(go.tmp / name), **changes), hooks)
    assert list(drawn) == list(range(1, 10)) and all(a == b for a, b in drawn.values())


def test_a_finished_run_says_so_and_a_fresh_one_begins(go, capsys):
    go("run", resume=True)
    before = (go.tmp / "run/metrics.jsonl").read_bytes()
    result = go("run", resume=True)
    assert "is finished, all 9 steps" in capsys.readouterr().err
    assert result.n_steps == 9 and result.metrics["step"] == 9 and len(result.checkpoints) == 3
    assert (go.tmp / "run/metrics.jsonl").read_bytes() == before
    with pytest.raises(InputError, match="holds a run already; resume it with --resume"):
        go("run")


@pytest.mark.slow
def test_what_was_changed_is_named_with_both_values(go):
    go("run", stop_after=4)
    before = {p: p.read_bytes() for p in (go.tmp / "run").rglob("*") if p.is_file() and p.name != "run.lock"}
    rows = go.rows.read_text()
    changes = {
        "lr: 0.0001 -> 0.0002": {"lr": 2e-4},
        "epochs: 3 -> 4": {"epochs": 4},
        "beta: 0.1 -> 0.3": {"beta": 0.3},
        "loss: apo_zero -> dpo": {"loss": "dpo"},
    }
    for said, change in changes.items():
        with pytest.raises(InputError, match=said):
            go("run", resume=True, **change)
    go.rows.write_text(rows.replace('"rejected_ids": [', '"rejected_ids": [7, ', 1))
    with pytest.raises(InputError, match=r"rows: 22 of \w+ -> 22 of \w+"):
        go("run", resume=True)
    go.rows.write_text(rows)
    shard = go.model / "model.safetensors"
    bits = bytearray(shard.read_bytes())
    bits[-1] ^= 1
    shard.write_bytes(bits)
    with pytest.raises(InputError, match=r"weights: .* -> "):
        go("run", resume=True)
    bits[-1] ^= 1
    shard.write_bytes(bits)
    assert before == {p: p.read_bytes() for p in (go.tmp / "run").rglob("*") if p.is_file() and p.name != "run.lock"}
    go("run", resume=True, keep_state=3, micro_tokens=30, state_every=2, keep_checkpoints=1)  # these may change
    assert [p.name for p in sorted((go.tmp / "run").glob("epoch-*"))] == ["epoch-03"]
    assert sorted(p.name for p in (go.tmp / "run/state").glob("step-*")) == [
        "step-000004",
        "step-000006",
        "step-000008",
    ]


@pytest.mark.parametrize("program", ["0.1.0", "not installed"])
def test_a_run_that_an_earlier_version_began_is_gone_on_with(go, program):
    go("whole")
    go("old", stop_after=4)
    path = go.tmp / "old/state/identity.json"
    begun = json.loads(path.read_text()) | {"program": program}
    path.write_text(json.dumps(begun))
    go("old", resume=True)
    assert go.watch.steps == [5, 6, 7, 8, 9]
    assert outcome(go.tmp / "whole") == outcome(go.tmp / "old")
    assert json.loads(path.read_text())["program"] == program  # it says who began


def test_a_run_of_a_version_that_may_compute_otherwise_is_refused(go):
    go("run", stop_after=4)
    path = go.tmp / "run/state/identity.json"
    begun = json.loads(path.read_text())
    assert begun["program"] == engine.__version__
    path.write_text(json.dumps(begun | {"program": "9.0.0"}))
    with pytest.raises(InputError, match=rf"program: 9\.0\.0 -> {re.escape(engine.__version__)}"):
        go("run", resume=True)


@pytest.mark.slow
def test_how_masters_lie_and_what_computes_is_the_states_to_say(go, monkeypatch):
    """--master-weights auto looks at the memory that is free, which may change; a run's config.yaml names the dtype."""
    split = {"master": "split", "loss": "dpo"}
    go("whole", **split)
    go("run", **split, stop_after=4)
    go("run", loss="dpo", resume=True, stop_after=5)
    monkeypatch.setenv("WORLD_SIZE", "2")
    config = TrainConfig(model=str(go.model), data=(str(go.rows),), out=str(go.tmp / "run"), resume=True)
    with pytest.raises(InputError, match="its state has split master weights, which work with one process"):
        splits_masters(TrainingInputs(config))
    monkeypatch.delenv("WORLD_SIZE")
    for changes in ({"master": "whole"}, {"dtype": "float32"}):
        with pytest.raises(InputError, match=r"master: split -> whole|dtype: bfloat16 -> float32"):
            go("run", loss="dpo", resume=True, **changes)
    go("run", loss="dpo", resume=True, dtype="bfloat16")
    assert go.watch.steps == [6, 7, 8, 9]
    assert outcome(go.tmp / "whole") == outcome(go.tmp / "run")


def test_a_damaged_state_is_found_and_the_one_before_it_used(go, capsys):
    """Every file of the newest state: a bit flipped, cut, removed, a byte more; a stranger's file beside them."""
    go("whole")
    go("run", state_every=2, keep_state=2, stop_after=6)
    states = go.tmp / "run/state"
    shutil.copytree(go.tmp / "run", go.tmp / "kept")
    newest = sorted(p.name for p in (states / "step-000006").iterdir())
    assert len(newest) == 4  # tensors, their metadata, numbers, manifest
    flips = 0
    for name in newest:
        for kind in ("bit", "cut", "gone", "more"):
            path = states / "step-000006" / name
            content = bytearray(path.read_bytes())
            if kind == "bit":
                content[len(content) // 2] ^= 4
            if kind == "gone":
                path.unlink()
            else:
                path.write_bytes(content[: len(content) // 2] if kind == "cut" else content + b"\0" * (kind == "more"))
            said = checkpoint.damage(states / "step-000006")
            if name == checkpoint.MANIFEST and kind == "bit" and said is None:
                continue  # a blank between two numbers
            assert said is not None and (name in said or name == checkpoint.MANIFEST), (name, kind, said)
            flips += 1
            shutil.rmtree(states)
            shutil.copytree(go.tmp / "kept/state", states)
    assert flips >= 15
    (states / "step-000006/.metadata").unlink()
    go("run", resume=True)
    said = capsys.readouterr().err
    assert ".metadata: missing; set aside as step-000006.damaged" in said and "resumes after step 4" in said
    assert go.watch.steps == [5, 6, 7, 8, 9]
    assert outcome(go.tmp / "whole") == outcome(go.tmp / "run")
    for kept in (go.tmp / "kept/state").glob("step-*"):
        (kept / "run.json").unlink()
    before = (go.tmp / "kept/metrics.jsonl").read_bytes()
    with pytest.raises(InputError, match="every state is damaged"):
        go("kept", resume=True)
    assert (go.tmp / "kept/metrics.jsonl").read_bytes() == before


class Hostile:
    """What a stranger puts into a pickle."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (Path.touch, (Path(self.path),))


def test_no_code_in_a_state_is_run(go):
    """A state with a manifest that fits, whose metadata, or an entry of which, is a hostile pickle."""
    go("run", stop_after=4)
    state = go.tmp / "run/state/step-000004"
    metadata = pickle.loads((state / ".metadata").read_bytes())
    (state / ".metadata").write_bytes(pickle.dumps(Hostile(go.tmp / "ran")))
    seal(state)
    with pytest.raises(InputError, match="not a state that this program wrote"):
        go("run", resume=True)
    key = next(k for k in metadata.state_dict_metadata if k.startswith("policy."))
    metadata.state_dict_metadata[key] = torch.distributed.checkpoint.metadata.BytesStorageMetadata()
    (state / ".metadata").write_bytes(pickle.dumps(metadata))
    seal(state)
    with pytest.raises(InputError, match="BytesStorageMetadata: not a state"):
        go("run", resume=True)
    assert not (go.tmp / "ran").exists()
    pickle.loads(pickle.dumps(Hostile(go.tmp / "ran")))
    assert (go.tmp / "ran").exists()  # the payload works where it is let


class Asked:
    """What getattr is asked for in a pickle: members of enums, as Python 3.11.2 writes them."""

    def __init__(self, *asked):
        self.asked = asked

    def __reduce__(self):
        return getattr, self.asked


def test_a_member_of_an_enum_is_read_as_older_pythons_write_it_and_nothing_else_is():
    def read(asked):
        return checkpoint._Unpickler(io.BytesIO(pickle.dumps(asked))).load()

    kind = torch.distributed.checkpoint.metadata._MEM_FORMAT_ENCODING
    assert read(Asked(kind, "TORCH_PRESERVE_FORMAT")) is kind.TORCH_PRESERVE_FORMAT
    for asked in (Asked(kind, "__subclasses__"), Asked(torch.distributed.checkpoint.metadata.Metadata, "__init__")):
        with pytest.raises(InputError, match="not a state that this program wrote"):
            read(asked)


def seal(state):
    """A manifest that fits whatever the files hold."""
    files = [p for p in state.iterdir() if p.name != checkpoint.MANIFEST]
    made = {p.name: (p.stat().st_size, hashlib.sha256(p.read_bytes()).hexdigest()) for p in files}
    (state / checkpoint.MANIFEST).write_text(json.dumps(made))


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_saves_the_step_and_leaves(go, monkeypatch, number):
    go("whole")
    measure, seen, before = train.training_metrics, [], signal.getsignal(signal.SIGINT)

    def signalled(*arguments):
        seen.append(1)
        if len(seen) == 5:
            os.kill(os.getpid(), number)
        return measure(*arguments)

    monkeypatch.setattr(train, "training_metrics", signalled)
    with pytest.raises(Stopped, match="stopped after step 5 of 9; its state is saved") as ending:
        go("run", state_every=0)
    assert ending.value.code == 128 + number
    assert signal.getsignal(signal.SIGINT) is before  # given back
    monkeypatch.undo()
    go("run", resume=True)
    assert go.watch.steps == [6, 7, 8, 9]
    assert outcome(go.tmp / "whole") == outcome(go.tmp / "run")


def test_a_signal_is_heard_before_the_first_step(go, monkeypatch, capsys):
    """While the reference's log-probs are computed, which may take as long as an epoch's forward passes."""
    scored = reference_passes.compute_batch

    def signalled(*arguments, **named):
        os.kill(os.getpid(), signal.SIGTERM)
        return scored(*arguments, **named)

    go("whole", **JOBS["precompute"])
    with monkeypatch.context() as patched:
        patched.setattr(reference_passes, "compute_batch", signalled)
        with pytest.raises(Stopped, match="stopped before step 1; start it again with --resume") as ending:
            go("run", **JOBS["precompute"])
    assert ending.value.code == 143 and not lines(go.tmp / "run")
    go("run", **JOBS["precompute"], resume=True)
    assert outcome(go.tmp / "whole") == outcome(go.tmp / "run")


def test_states_of_hosts_that_share_no_disk_are_refused_before_the_first_step(go, monkeypatch):
    monkeypatch.setattr(Ranks, "all_see", lambda *_: False)
    with pytest.raises(InputError, match="not every rank sees this folder, and states of several hosts need one"):
        go("run")
    assert not (go.tmp / "run/metrics.jsonl").exists()
    assert go("run", state_every=0).n_steps == 9


UNSHARED = """
import json, os, signal, sys
from pathlib import Path
from system import InputError
from system.errors import Stopped
from engine import train
from engine.distributed import ranks as parallel
from engine.config import TrainConfig
from engine.distributed.ranks import Ranks
folder, rank = Path(sys.argv[1]), int(os.environ["RANK"])
parallel.LOOK, ranks, plain = 0.2, Ranks.join(), train.training_metrics
own, common = folder / f"host-{rank}", folder / "common"
for path in (own, common):
    path.mkdir(exist_ok=True)
assert ranks.all_see(common) and not ranks.all_see(own)
ranks.wait()
assert not list(folder.rglob(".seen*"))
settings = {"model": sys.argv[2], "data": (sys.argv[3],), "lr": 1e-4, "batch_size": 8, "epochs": 3, "out": str(own)}
said = []
for more in ({}, {"state_every": 0, "stop_after": 2}):
    try:
        train.run(TrainConfig(**settings, **more))
    except InputError as fault:
        said.append(str(fault))
def signalled(*arguments):
    os.kill(os.getpid(), signal.SIGTERM)
    return plain(*arguments)
train.training_metrics = signalled
try:
    train.run(TrainConfig(**settings, state_every=0))
except Stopped as ending:
    said.append(str(ending))
(folder / f"said-{rank}.json").write_text(json.dumps([*said, len(list(own.glob("state/step*")))]))
"""


@pytest.mark.slow
def test_hosts_that_share_no_disk_keep_no_state_and_say_so(go):
    """Two ranks whose folders bear one name and are two: half a state in each would pass for a whole one."""
    script = go.tmp / "unshared.py"
    script.write_text(UNSHARED)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", str(script)]
    command += [str(go.tmp), str(go.model), str(go.rows)]
    env = tiny.environment()
    done = subprocess.run(command, capture_output=True, text=True, env=env, timeout=300, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    for rank in (0, 1):
        *refused, stopped, n_states = json.loads((go.tmp / f"said-{rank}.json").read_text())
        assert len(refused) == 2 and all("not every rank sees this folder" in fault for fault in refused)
        assert "stopped after step 1 of 9; no state is kept" in stopped and n_states == 0


def test_room_is_asked_for_what_will_be_written(go, monkeypatch):
    """A run that ends within its first epoch keeps no state, whatever --epochs says."""
    one = go("whole").checkpoints[0] / "model.safetensors"
    usage = shutil.disk_usage(go.tmp)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=one.stat().st_size * 2))
    assert go("short", max_steps=2).n_steps == 2
    with pytest.raises(InputError, match="GB are free, and a checkpoint and its states take"):
        go("long")


def test_another_objective_under_the_same_name_is_another_run(go, monkeypatch):
    for name in ("_losses", "_aliases", "_files"):
        monkeypatch.setattr(registry, name, dict(getattr(registry, name)))
    mine = go.tmp / "mine.py"
    text = Path("examples/my_loss.py").read_text().replace('"lead"', '"lead_here"')
    mine.write_text(text)
    go("run", loss=f"{mine}:lead_here", stop_after=4)
    mine.write_text(text.replace("by: float = 1.0", "by: float = 1.0 + 0.0"))
    with pytest.raises(InputError, match=r"the file of lead_here: \w{16} -> \w{16}"):
        go("run", loss=f"{mine}:lead_here", resume=True)
    mine.write_text(text)
    assert go("run", loss=f"{mine}:lead_here", resume=True).n_steps == 9


def test_a_launcher_can_ask_by_a_file(go, monkeypatch):
    (go.tmp / "stop").write_text("15")
    monkeypatch.setenv(stop.FILE_VARIABLE, str(go.tmp / "stop"))
    with pytest.raises(Stopped, match="after step 1 of 9") as ending:
        go("run")
    assert ending.value.code == 143


def test_a_second_run_in_a_folder_is_told_who_is_there(go, tmp_path):
    go("run", stop_after=4)
    holder = subprocess.Popen(
        [sys.executable, "-c", "import fcntl, sys, time, json, os, socket\nf = open(sys.argv[1], 'r+')\n"
         "fcntl.flock(f, fcntl.LOCK_EX)\nf.truncate()\n"
         "f.write(json.dumps({'pid': os.getpid(), 'host': socket.gethostname(), 'since': 'noon'}))\n"
         "f.flush(); print('held', flush=True); time.sleep(600)", str(tmp_path / "run/run.lock")],
        stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(InputError, match=rf"process {holder.pid} on .+ \(since noon\) is writing here"):
            go("run", resume=True)
    finally:
        holder.kill()
        holder.communicate()
    assert go("run", resume=True).n_steps == 9


@pytest.mark.slow
def test_other_numbers_of_ranks_go_on_with_it(go):
    """4 ranks to 2 to 1 and back to 4: the same order of examples, losses within 1e-5."""
    go("whole", batch_size=6, state_every=2)
    settings = {"model": str(go.model), "data": [str(go.rows)], "lr": 1e-4, "batch_size": 6, "epochs": 3}
    settings |= {"out": str(go.tmp / "moved"), "resume": True}
    for ranks, stop_after in ((4, 3), (2, 6), (1, 7), (4, None)):
        ((first, *_),) = on_ranks(go.tmp, ranks, [settings | {"stop_after": stop_after}])
        assert first.mesh == ([ranks] if ranks > 1 else []) and first.steps[-1] == (stop_after or 12)
    whole, moved = lines(go.tmp / "whole"), lines(go.tmp / "moved")
    assert [x["step"] for x in moved] == [*range(1, 13)]
    for a, b in zip(whole, moved, strict=True):
        assert a["num_tokens"] == b["num_tokens"] and abs(a["loss"] - b["loss"]) < 1e-5


@pytest.mark.slow
def test_two_ranks_go_on_bit_for_bit(go):
    settings = {"model": str(go.model), "data": [str(go.rows)], "lr": 1e-4, "batch_size": 4, "epochs": 2}
    whole = [settings | {"out": str(go.tmp / "whole")}]
    parts = [settings | {"out": str(go.tmp / "parts"), "resume": True, "stop_after": n} for n in (1, 5, 6, 9, None)]
    moving = {"loss": "dpo", "reference_update": "hard", "reference_update_steps": 3}
    whole += [w | moving | {"out": w["out"] + "-moving"} for w in whole]
    parts += [p | moving | {"out": p["out"] + "-moving"} for p in parts]
    did = on_ranks(go.tmp, 2, whole + parts)
    assert all(each.mesh == [2] for ranks in did for each in ranks)
    assert [ranks[1].steps for ranks in did[2:7]] == [[1], [2, 3, 4, 5], [6], [7, 8, 9], [10, 11, 12]]
    assert outcome(go.tmp / "whole") == outcome(go.tmp / "parts")
    assert outcome(go.tmp / "whole-moving") == outcome(go.tmp / "parts-moving")


def on_ranks(folder, n, jobs):
    """Runs trainings one after the other on n ranks."""
    (folder / "jobs.json").write_text(json.dumps(jobs))
    script = folder / "jobs.py"
    script.write_text(
        "import json, os, sys\nfrom pathlib import Path\nfrom engine import train\n"
        "from engine.config import TrainConfig\nfrom tests.proofs import Watch\n"
        "for i, job in enumerate(json.load(open(sys.argv[1]))):\n    watch = Watch()\n"
        "    train.run(TrainConfig(**job | {'data': tuple(job['data'])}), watch.hooks)\n"
        "    watch.write(Path(f'{sys.argv[1]}.did/{i}-{os.environ.get(\"RANK\", 0)}'))\n"
    )
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(n)]
    env = tiny.environment()
    command = [*(launch if n > 1 else [sys.executable]), str(script), str(folder / "jobs.json")]
    done = subprocess.run(command, capture_output=True, text=True, env=env, timeout=300, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return [[Watch.read(folder / f"jobs.json.did/{i}-{rank}") for rank in range(n)] for i in range(len(jobs))]


def test_saving_does_not_hold_up_a_step(go, monkeypatch):
    """The writing of a state is made slow: steps go on meanwhile, and the run ends only when it is whole."""
    during = []
    finish = checkpoint._Writer.finish

    def slow(writer, **named):
        before = len(lines(go.tmp / "run"))
        deadline = time.monotonic() + 30
        while len(lines(go.tmp / "run")) < before + 2 and time.monotonic() < deadline:
            time.sleep(0.01)
        during.append(len(lines(go.tmp / "run")) - before)
        finish(writer, **named)

    monkeypatch.setattr(checkpoint._Writer, "finish", slow)
    go("run", state_every=5)
    assert during and during[0] >= 2
    assert checkpoint.damage(go.tmp / "run/state/step-000005") is None


@pytest.mark.slow
def test_copies_of_shards_equal_one_process(go):
    """2 x 2 and 4 x 1 ranks (hybrid sharding): uneven counts, and ranks that get no pair in a step."""
    go("one", batch_size=3, epochs=1, eval_pairs=2, loss="dpo")
    plain = {"model": str(go.model), "data": [str(go.rows)], "lr": 1e-4, "batch_size": 3, "epochs": 1, "loss": "dpo"}
    plain |= {"eval_pairs": 2}
    jobs = [plain | {"out": str(go.tmp / f"by{size}"), "shard_size": size} for size in (1, 2, 4)]
    jobs += [plain | {"out": str(go.tmp / "parts"), "shard_size": s, "resume": True, "stop_after": n}
             for s, n in ((2, 2), (4, 4), (2, None))]  # fmt: skip
    did = on_ranks(go.tmp, 4, jobs)
    assert [ranks[0].mesh for ranks in did] == [[4, 1], [2, 2], [4], [2, 2], [4], [2, 2]]
    one = lines(go.tmp / "one")
    for name in ("by1", "by2", "by4", "parts"):
        other = lines(go.tmp / name)
        assert [x["step"] for x in other] == [x["step"] for x in one]
        for a, b in zip(one, other, strict=True):
            for key in ("loss", "grad_norm", "rewards/chosen", "eval_rewards/margins"):
                assert key not in a or abs(a[key] - b[key]) < 1e-5, (name, a["step"], key)
        assert (go.tmp / name / "epoch-01/model.safetensors").is_file()


def test_a_rank_that_is_out_of_memory_says_what_to_lower(go, monkeypatch):
    """The allocator is really asked for more than there is, in the third step; the state of the second is there."""
    plain, calls = train.training_metrics, []

    def greedy(*arguments):
        calls.append(1)
        if len(calls) == 3:
            torch.empty(2**50)
        return plain(*arguments)

    monkeypatch.setattr(train, "training_metrics", greedy)
    said = r"rank 0 is out of memory in step 3, optimizer when it asked for \d+ bytes; lower --micro-tokens"
    with pytest.raises(RunError, match=said):
        go("run", state_every=2)
    monkeypatch.undo()
    go("whole")
    go("run", resume=True)
    assert go.watch.steps == [3, 4, 5, 6, 7, 8, 9]
    assert outcome(go.tmp / "whole") == outcome(go.tmp / "run")


def test_a_second_signal_waits_for_the_save(go, monkeypatch):
    """SIGTERM twice, the second while the state is being written: it becomes whole, and the run ends as asked."""
    plain, finish, sent = train.training_metrics, checkpoint._Writer.finish, []

    def signalled(*arguments):
        if not sent:
            sent.append(os.kill(os.getpid(), signal.SIGTERM))
        return plain(*arguments)

    def slow(writer, **named):
        os.kill(os.getpid(), signal.SIGTERM)
        finish(writer, **named)
        sent.append(2)

    monkeypatch.setattr(train, "training_metrics", signalled)
    monkeypatch.setattr(checkpoint._Writer, "finish", slow)
    with pytest.raises(Stopped, match="after step 1 of 9"):
        go("run")
    assert len(sent) == 2 and checkpoint.damage(go.tmp / "run/state/step-000001") is None


@pytest.mark.slow
def test_of_two_runs_that_start_together_one_goes_on(go):
    """Twenty times, the second a little later each time: one writes the folder, the other is told and leaves in 2."""
    script = go.tmp / "two.py"
    script.write_text(
        "import os, sys, time\n"
        "from system import InputError\nfrom engine import train\nfrom engine.config import TrainConfig\n"
        "for n in range(20):\n"
        "    pids = []\n"
        "    for late in (0, n * 0.01):\n"
        "        pid = os.fork()\n"
        "        if pid == 0:\n"
        "            time.sleep(late)\n"
        "            try:\n"
        "                train.run(TrainConfig(model=sys.argv[1], data=(sys.argv[2],), out=f'{sys.argv[3]}/{n}',\n"
        "                                      lr=1e-4, batch_size=8, epochs=1))\n"
        "                os._exit(0)\n"
        "            except InputError as fault:\n"
        "                os._exit(2 if 'is writing here' in str(fault) or 'holds a run' in str(fault) else 3)\n"
        "            except BaseException:\n"
        "                os._exit(4)\n"
        "        pids.append(pid)\n"
        "    codes = sorted(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in pids)\n"
        "    print(*codes, flush=True)\n"
    )
    env = tiny.environment()
    command = [sys.executable, str(script), str(go.model), str(go.rows), str(go.tmp / "out")]
    done = subprocess.run(command, capture_output=True, text=True, env=env, timeout=200, check=False)
    assert done.stdout.splitlines() == ["0 2"] * 20, done.stdout + done.stderr[-2000:]
    for n in range(20):
        assert [line["step"] for line in lines(go.tmp / f"out/{n}")] == [1, 2, 3]
