"""A grid of runs: trained once, gone on with, and its table from what the runs have written."""

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml
from safetensors.torch import load_file, save_file

import losses
from engine.inputs import TrainingInputs
from engine.step.objective import Objective
from examples import children, grid, room
from examples.grid import Cell, GridConfig
from examples.room import Room
from examples.slots import Slots
from system import InputError, run_folder
from system.errors import RunError
from tests import tiny
from tests.rows import id_rows

pytestmark = pytest.mark.usefixtures("registered")

SCORER = """
import json, pathlib, sys
run = pathlib.Path(sys.argv[1])
seed, loss = run.parts[-3], run.name
value = {"dpo": 0.2, "dpo_dpo.beta=0.3": 0.2, "sft": 0.4}[loss] + 0.1 * int(seed[-1])
lines = [{"checkpoint": name, "benchmark": "mine", "version": "1", "metric": "overall", "value": v, "stderr": None,
          "judge": None} for name, v in (("base", 0.1), ("epoch-01", value), ("epoch-02", value - 0.1))]
(run / "eval").mkdir(exist_ok=True)
(run / "eval/scores.jsonl").write_text("".join(json.dumps(line) + "\\n" for line in lines))
"""
MINE = """
from torch.nn.functional import logsigmoid
from losses import Result, loss


@loss("mine", data="pairs", reference=True)
def mine(chosen, rejected, *, beta: float = 0.1, by: float = 1.0) -> Result:
    \"\"\"For these tests.\"\"\"
    return Result(-logsigmoid(beta * (chosen.logratios - rejected.logratios) - by), chosen.logps, rejected.logps)
"""


@pytest.mark.slow
def test_every_cell_is_trained_once_and_the_table_is_of_their_scores(tmp_path):
    model = tiny.write_model(tmp_path / "m", ["hello world"] * 9)
    rows = tiny.write_rows(
        tmp_path / "pairs.jsonl", [{"prompt": f"a {i}", "chosen": "hello", "rejected": "world"} for i in range(4)]
    )
    (tmp_path / "scorer.py").write_text(SCORER)
    (tmp_path / "train.yaml").write_text("epochs: 2\nbatch_size: 2\neval_pairs: 1\n")
    flags = ["--model", str(model), "--data", f"mine={rows}", "--loss", "dpo", "dpo dpo.beta=0.3", "sft"]
    flags += ["--lr", "dpo=1e-5", "sft=1e-4"]
    flags += ["--seeds", "2", "--at-once", "2", "--out", str(tmp_path / "g"), "--train", str(tmp_path / "train.yaml")]
    flags += ["--score", f"python {tmp_path / 'scorer.py'} {{run}}"]
    grid.main(flags)
    metrics = sorted((tmp_path / "g").glob("seed-*/mine/*/metrics.jsonl"))
    assert [str(path.parent.relative_to(tmp_path / "g")) for path in metrics] == [
        f"seed-{seed}/mine/{name}" for seed in (0, 1) for name in ("dpo", "dpo_dpo.beta=0.3", "sft")
    ]
    said = (tmp_path / "g/report/tables/grid.md").read_text()
    # dpo: gains 10 and 20 points at best, 5 and 15 on average; the deviation of two is their distance by sqrt(2)
    assert "| mine | dpo | 2 | +15.00 | 7.07 | +10.00 | 7.07 |" in said
    assert "| mine | dpo dpo.beta=0.3 | 2 |" in said
    assert "| mine | sft | 2 | +35.00 | 7.07 | +30.00 | 7.07 |" in said
    times = (tmp_path / "g/report/tables/table-5.md").read_text()
    assert all(f"| pairs | {name} |" in times for name in ("dpo beta=0.1", "dpo beta=0.3", "sft"))
    times = [path.stat().st_mtime_ns for path in metrics]
    grid.main(flags)
    assert [path.stat().st_mtime_ns for path in metrics] == times
    assert (tmp_path / "g/report/report.html").read_text().index("over seeds") < 20_000  # first on the page


def test_rates_are_one_for_all_or_one_for_each():
    shared = {"model": "m", "data": ("a=b.jsonl",), "loss": ("dpo", "sft"), "out": "o"}
    assert GridConfig(lr=("1e-5",), **shared).rates() == {"dpo": 1e-5, "sft": 1e-5}
    assert GridConfig(lr=("sft=1e-4", "dpo=1e-5"), **shared).cells()[1] == Cell("a", Path("b.jsonl"), "sft", 0, 1e-4)
    with pytest.raises(InputError, match="NAME=RATE for every --loss; 'sft' is missing"):
        GridConfig(lr=("dpo=1e-5",), **shared)
    for changed, words in (
        ({"lr": ("1e-5", "2e-5")}, "--lr: give one number"),
        ({"data": ("pairs.jsonl",)}, "NAME=FILE"),
        ({"data": ("clair=",)}, "NAME=FILE"),
        ({"data": ("a=b.jsonl", "a=c.jsonl")}, "--data: a is given twice"),
        ({"loss": ("dpo", "dpo")}, "--loss: dpo is given twice"),
        ({"loss": ("dpo beta=x",)}, "x is not a number"),
        ({"loss": ("dro beta=1",)}, "dro has no beta"),
        ({"loss": ("apo_zero apo_zero.bet=1",)}, "perhaps --apo_zero.beta"),
        ({"loss": ("dpo out=elsewhere",)}, "out is set by the grid"),
        ({"loss": ("dpo bacth_size=8",)}, "--loss: dpo bacth_size=8: "),
        ({"loss": ("dpo lr=fast",)}, "--loss: dpo lr=fast: "),
        ({"score": "no-such-program {run}"}, "needs an installed program"),
        ({"score": "true"}, "where it takes the run's folder"),
        ({"score": "true {folder}"}, "cannot be read"),
    ):
        with pytest.raises(InputError, match=re.escape(words)):
            GridConfig(**(shared | changed))


@pytest.mark.parametrize(
    ("said", "rate"),
    [("epochs: 1", 2e-7), ("lora_rank: 4\nlora_alpha: 8", 2e-6), ("lr: 3e-5", 3e-5), ("learning_rate: 3e-5", 3e-5)],
)
def test_an_unset_rate_is_that_of_the_settings_or_the_trainers_own(tmp_path, said, rate):
    (tmp_path / "train.yaml").write_text(f"{said}\n")
    shared = {"model": "m", "data": ("a=b.jsonl",), "out": "o", "train": str(tmp_path / "train.yaml")}
    assert GridConfig(loss=("dpo", "sft lr=1e-3"), **shared).rates() == {"dpo": rate, "sft lr=1e-3": 1e-3}
    assert GridConfig(loss=("dpo",), lr=("1e-4",), **shared).rates() == {"dpo": 1e-4}


@pytest.mark.parametrize(
    "said",
    [
        "seed: 3",
        "loss: dpo",
        "data: [x.jsonl]",
        "reference-cache: c",
        "out: x",
        "output_dir: x",
        "data_seed: 1",
        "loss_weights: [1]",
    ],
)
def test_settings_for_all_cannot_hold_what_the_grid_sets(tmp_path, said):
    (tmp_path / "train.yaml").write_text(f"epochs: 1\n{said}\n")
    shared = {"model": "m", "data": ("a=b.jsonl",), "loss": ("dpo",), "out": "o"}
    with pytest.raises(InputError, match=r"--train: .*train\.yaml: \w+ is set by the grid; leave it out"):
        GridConfig(train=str(tmp_path / "train.yaml"), **shared)


def test_an_objective_is_told_flags_of_its_own(tmp_path):
    for text, name, flags in (
        ("apo_zero", "apo_zero", {}),
        ("apo_zero beta=0.3 batch_size=8", "apo_zero", {"beta": "0.3", "batch-size": "8"}),
        ("my files/a=b.py:mine  mine.by_much=2", "my files/a=b.py:mine", {"mine.by_much": "2"}),
        ("apo_zero:1,sft:0.1 lr=1e-6", "apo_zero:1,sft:0.1", {"lr": "1e-6"}),
    ):
        assert grid.parse_loss(text) == (name, flags)
    assert grid._spelt({"shuffle": "false", "skip-bad-rows": "true", "x.y": "true", "lr": "1"}) == [
        "--no-shuffle", "--skip-bad-rows", "--x.y", "true", "--lr", "1",
    ]  # fmt: skip
    grid.check_loss("dpo shuffle=false skip_bad_rows=true")
    (tmp_path / "train.yaml").write_text("reference_update: soft\n")
    grid.check_loss("dpo reference_update_steps=64", str(tmp_path / "train.yaml"))
    with pytest.raises(InputError, match="needs --reference-update"):
        grid.check_loss("dpo reference_update_steps=64")
    rates = {"model": "m", "data": ("a=b.jsonl",), "out": "o", "loss": ("dpo", "dpo beta=0.3"), "lr": ("dpo=1e-5",)}
    assert [cell.lr for cell in GridConfig(**rates).cells()] == [1e-5, 1e-5]


def test_a_finished_run_is_not_taken_for_another(tmp_path):
    """One that was told something else, or whose objective or rows have changed since."""
    data, mine, held = tmp_path / "pairs.jsonl", tmp_path / "mine.py", tmp_path / "held/test.jsonl"
    cell = Cell("a", data, f"{mine}:mine", 0, 1e-4, (("beta", "0.5"),))
    where = grid.folder(tmp_path, cell)
    held.parent.mkdir()
    data.write_text("")
    held.write_text("")
    mine.write_text(MINE)
    where.mkdir(parents=True)
    settings = (
        f"model: m\ndata:\n- {data}\nloss: {mine}:mine\nlr: 0.0001\nseed: 0\nbeta: 0.5\nmine.by: 1.0\nepochs: 3\n"
    )
    (where / "config.yaml").write_text(settings)
    flags = {"model": "m", "data": str(data), "loss": cell.loss, "lr": "1e-4", "seed": "0", "beta": "0.50"}
    grid.check_same(where, flags, None)
    for name, value in (("lr", "3e-4"), ("model", "n"), ("batch-size", "8")):
        with pytest.raises(InputError, match=f"was trained with {name.replace('-', '_')} .*, not {value}; remove it"):
            grid.check_same(where, flags | {name: value}, None)
    grid.check_same(where, flags | {"mine.beta": "0.5"}, None)  # which config.yaml calls beta
    grid.check_same(where, flags | {"beta": "0.3", "mine.beta": "0.5"}, None)  # the one over the other
    with pytest.raises(InputError, match=r"was trained with mine\.by 1\.0, not 2"):
        grid.check_same(where, flags | {"mine.by": "2"}, None)
    with pytest.raises(InputError, match=r"was trained with mine\.beta 0\.5, not 0\.3"):
        grid.check_same(where, flags | {"beta": "0.3"}, None)
    (where / "config.yaml").write_text(settings + "keep: 1\nmaster: whole\n")  # as release 0.1 wrote it
    grid.check_same(where, flags | {"keep-checkpoints": "1", "master-weights": "float32"}, None)
    grid.check_same(where, flags | {"keep": "1", "master": "whole"}, None)
    path = where / "config.yaml"  # whatever an objective is called with is the same again, where nothing was told
    for name in losses.names():
        objective = Objective(name)
        path.write_text(yaml.safe_dump({"model": "m", "data": [str(data)], "loss": name, **objective.settings}))
        grid.check_same(where, {"model": "m", "data": str(data), "loss": name}, None)
        if "beta" in objective.settings:
            told = {"beta": str(objective.settings["beta"])}
            grid.check_same(where, {"model": "m", "data": str(data), "loss": name, **told}, None)
    path.write_text(settings + f"eval_data: {held.parent}:test\n")
    for path in (mine, data, held):
        later = where.stat().st_mtime + 60
        os.utime(path, (later, later))
        with pytest.raises(InputError, match=f"{path.name} has changed since this run was trained"):
            grid.check_same(where, flags, None)
        os.utime(path, (1, 1))


@pytest.fixture
def small(tmp_path):
    """What a grid of a tiny model is given."""
    model = tiny.write_model(tmp_path / "m", vocab_size=101)
    rows = tiny.write_rows(tmp_path / "pairs.jsonl", without_scores(id_rows(8)))
    return {"model": str(model), "rows": rows, "rest": {"settings": None, "score": None, "slots": Slots(at_once=1)}}


def without_scores(rows):
    return [{name: row[name] for name in ("prompt_ids", "chosen_ids", "rejected_ids")} for row in rows]


@pytest.mark.slow
def test_a_run_that_fails_ends_the_grid_with_its_last_words(small, tmp_path):
    path = Path(small["model"]) / "model.safetensors"  # whose numbers no check looks at
    save_file({name: tensor * float("nan") for name, tensor in load_file(path).items()}, path, {"format": "pt"})
    cell = Cell("mine", small["rows"], "dpo", 0, 1e-5)
    with pytest.raises(RunError, match=r"dpo\.log: error: .* holds NaN or infinity; .* \(exit code 2\)"):
        grid.run_all([cell], tmp_path, model=small["model"], **small["rest"])


def test_a_run_that_does_not_fit_the_memory_is_told_before_the_first_begins(small, tmp_path):
    cells = [Cell("mine", small["rows"], "dpo", seed, 1e-5, (("gpu-memory", "0.001"),)) for seed in (0, 1)]
    with pytest.raises(InputError, match=r"dpo on mine: the run needs 0\.2 GB of memory"):
        grid.run_all(cells, tmp_path / "g", model=small["model"], **small["rest"])
    assert not (tmp_path / "g/seed-0/mine").exists()


def test_runs_that_share_memory_fit_together(small, tmp_path, monkeypatch):
    """As many as there are at the same time, of those that are left."""
    cells = [Cell("mine", small["rows"], "dpo", seed, 1e-5) for seed in (0, 1)]
    config = grid.configured(grid.flags_of(cells[0], small["model"], {}), tmp_path / "run", tmp_path, None)
    one = room.memory_of(Room(1).layout(TrainingInputs(config), 1))

    def check(at_once, cells=cells):
        told = {"model": small["model"], "settings": None, "score": None, "more": {}}
        grid.check_all(cells, tmp_path / "g", **told, room=Room(at_once))

    monkeypatch.setattr(room, "free_memory", lambda: 2 * one - 1)
    with pytest.raises(InputError, match=r"dpo on mine: at_once 9: 2 such runs that share their memory take .*"):
        check(9)
    check(1)
    check(9, cells[:1])
    monkeypatch.setattr(room, "free_memory", lambda: 2 * one)
    check(9)


def test_the_disk_has_to_hold_what_all_runs_that_are_left_keep(small, tmp_path, monkeypatch, capsys):
    cells = [Cell("mine", small["rows"], loss, seed, 1e-5) for loss in ("dpo", "sft") for seed in (0, 1, 2)]
    out, free = tmp_path / "g", [0]
    kept = grid.folder(out, cells[0]) / "epoch-01/model.safetensors"
    kept.parent.mkdir(parents=True)
    kept.write_bytes(bytes(4096))

    def check(score=None):
        grid.check_all(cells, out, model=small["model"], settings=None, score=score, more={}, room=Room(1))

    monkeypatch.setattr(room, "free_on", lambda _: free[0])
    config = grid.configured(grid.flags_of(cells[0], small["model"], {}), out / "run", out, None)
    plan = Room(1).layout(TrainingInputs(config), 1)
    needed = 6 * sum(plan.disk_bytes(config)) + plan.spare_bytes(config)  # a new state is whole before the oldest goes
    assert plan.spare_bytes(config) == plan.state_bytes and plan.spare_bytes(config.with_flags(epochs=2)) == 0
    free[0] = needed - 4096
    check()
    free[0] -= 1
    with pytest.raises(InputError, match=r"all runs take .* of disk at most, and .* are free beside .* of theirs;"):
        check()
    assert "all runs take" not in capsys.readouterr().err
    check("{python} -m json.tool {run}")  # a scorer may delete what it has scored
    assert "all runs take" in capsys.readouterr().err


@pytest.mark.slow
def test_where_there_is_a_gpu_another_process_looks_and_its_sentence_arrives(small, tmp_path, monkeypatch):
    monkeypatch.setattr(room.torch.cuda, "device_count", lambda: 1)
    cell = Cell("mine", tmp_path / "absent.jsonl", "dpo", 0, 1e-5)
    with pytest.raises(InputError, match=r"the grid cannot run as it is:\n  dpo on mine: .*absent\.jsonl"):
        grid.run_all([cell], tmp_path / "g", model=small["model"], **small["rest"])
    assert room.looked_at_apart(os.getpid) != os.getpid()


def test_every_cell_is_checked_before_the_first_one_trains(small, tmp_path, monkeypatch):
    """What is wrong with rows, objectives, flags, the model or a finished run is told at once, by cell."""
    started = []
    monkeypatch.setattr(children.subprocess, "Popen", lambda *given, **named: started.append(given))
    rows, out = small["rows"], tmp_path / "g"
    good = Cell("mine", rows, "dpo", 0, 1e-5)
    done = grid.folder(out, good._replace(loss="sft"))
    done.mkdir(parents=True)
    (done / "metrics.jsonl").write_text('{"step": 4, "epoch": 1.0}\n')
    (done / "config.yaml").write_text(
        f"model: {small['model']}\ndata:\n- {rows}\nloss: sft\nlr: 0.5\nseed: 0\nepochs: 1\n"
    )
    cells = [
        good,
        good._replace(loss="odpo"),  # which needs scores
        good._replace(data="other", file=tmp_path / "absent.jsonl"),
        good._replace(loss="apo_zero batch_size=0"),
        good._replace(loss="sft"),
        good._replace(loss="odpo", seed=1),
    ]
    with pytest.raises(InputError) as fault:
        grid.run_all(cells, out, model=small["model"], **small["rest"])
    first, *told = str(fault.value).splitlines()
    assert first == "the grid cannot run as it is:" and len(told) == 4
    assert told[0].startswith("  odpo on mine: ") and "odpo needs a score of each response" in told[0]
    assert told[1].startswith("  dpo on other: ") and "absent.jsonl" in told[1]
    assert told[2].startswith("  apo_zero batch_size=0 on mine: --batch-size: 0 has to be above 0")
    assert told[3].startswith("  sft on mine: ") and "was trained with lr 0.5, not 1e-05" in told[3]
    with pytest.raises(InputError, match=r"dpo on mine: .*no-such-model"):
        grid.run_all([good], out, model=str(tmp_path / "no-such-model"), **small["rest"])
    assert not started and not (out / "seed-0/mine/dpo").exists()


@pytest.mark.parametrize("score", ["{python} no_such_scorer.py {run}", "{python} -m no.such.scorer {run}"])
def test_a_scorer_that_is_not_there_is_told_before_anything_else(score):
    with pytest.raises(InputError, match=r"--score: .*there is no (file|module)"):
        GridConfig(model="m", data=("a=b.jsonl",), loss=("dpo",), out="o", score=score)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_signal_ends_the_child_and_what_it_has_started(tmp_path, number):
    """Two real processes below the one that is signalled: a child, and a child of it."""
    (tmp_path / "child.py").write_text(CHILD)
    (tmp_path / "parent.py").write_text(PARENT)
    parent = subprocess.Popen(
        [sys.executable, str(tmp_path / "parent.py"), str(tmp_path)], env=tiny.environment(), stderr=subprocess.PIPE
    )
    found = wait_for(tmp_path / "pids", parent)
    parent.send_signal(number)
    _, said = parent.communicate(timeout=120)
    assert parent.returncode == 128 + number, said.decode()
    assert b"stopping when the runs in progress have saved their state" in said
    assert (tmp_path / "saved").read_text() == "saved"  # the child heard SIGTERM, and had its time
    assert not any(is_alive(pid) for pid in found) and not (tmp_path / "second").exists()


CHILD = """
import os, pathlib, signal, subprocess, sys, time
folder = pathlib.Path(sys.argv[1])

def hear(number, frame):
    time.sleep(0.2)
    (folder / "saved").write_text("saved")
    sys.exit(143)

signal.signal(signal.SIGTERM, hear)
own = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
(folder / "pids.part").write_text(f"{os.getpid()} {own.pid}")
(folder / "pids.part").rename(folder / "pids")
time.sleep(600)
"""
PARENT = """
import os, pathlib, sys
from concurrent.futures import ThreadPoolExecutor
from examples.children import Children
from system import cli

folder = pathlib.Path(sys.argv[1])

def main(argv):
    with Children() as children, ThreadPoolExecutor(1) as pool:
        commands = [[sys.executable, str(folder / "child.py"), str(folder)], ["touch", str(folder / "second")]]
        jobs = [pool.submit(children.run, command, folder / "log", dict(os.environ)) for command in commands]
        for job in jobs:
            job.result()

cli.run(main)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="where nobody can be asked to end with who started it")
def test_where_the_grid_is_killed_the_child_saves_its_state_all_the_same(tmp_path):
    (tmp_path / "child.py").write_text(CHILD)
    (tmp_path / "parent.py").write_text(PARENT)
    parent = subprocess.Popen(
        [sys.executable, str(tmp_path / "parent.py"), str(tmp_path)], env=tiny.environment(), stderr=subprocess.PIPE
    )
    child, own = wait_for(tmp_path / "pids", parent)
    parent.kill()
    parent.communicate()
    while is_alive(child):
        time.sleep(0.05)
    os.kill(own, signal.SIGKILL)  # nobody was left to end it
    assert (tmp_path / "saved").read_text() == "saved"


def wait_for(path, process):
    while not path.exists():
        assert process.poll() is None, process.stderr.read().decode()
        time.sleep(0.05)
    return [int(pid) for pid in path.read_text().split()]


def is_alive(pid):
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"  # nobody has waited for it yet


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_a_grid_that_is_stopped_goes_on_and_ends_as_if_it_had_not_been(small, tmp_path, number):
    """The command itself, stopped while a run trains, and given again."""
    (tmp_path / "train.yaml").write_text("epochs: 50\nbatch_size: 2\nkeep_checkpoints: 1\nlr: 1e-3\n")
    given = ["--data", f"mine={small['rows']}", "--loss", "dpo", "--train", str(tmp_path / "train.yaml")]
    command = [sys.executable, "-m", "examples.grid", "--model", small["model"], *given, "--out"]
    options = {"env": tiny.environment(), "cwd": tiny.ROOT, "stderr": subprocess.PIPE}
    subprocess.run([*command, str(tmp_path / "calm")], check=True, **options)
    stopped = subprocess.Popen([*command, str(tmp_path / "g")], **options)
    run = tmp_path / "g/seed-0/mine/dpo"
    while not [*run_folder.lines_of(run)]:
        assert stopped.poll() is None, stopped.stderr.read().decode()
        time.sleep(0.05)
    stopped.send_signal(number)
    _, said = stopped.communicate(timeout=300)
    assert stopped.returncode == {signal.SIGTERM: 143, signal.SIGKILL: -9}[number], said.decode()
    if number == signal.SIGTERM:  # it waits for its run; whoever is killed waits for nothing
        newest = max(int(path.name[5:]) for path in run.glob("state/step-*"))
        assert newest == len([*run_folder.lines_of(run)]) < 200
    again = subprocess.run([*command, str(tmp_path / "g")], check=True, **options)
    assert b"1 of 1: dpo on mine, seed 0" in again.stderr
    assert re.search(r"resumes after step \d+", (run.parent / "dpo.log").read_text())
    calm = tmp_path / "calm/seed-0/mine/dpo"
    assert numbers(run) == numbers(calm) and len(numbers(run)) == 200
    newest = "epoch-50/model.safetensors"
    assert (run / newest).read_bytes() == (calm / newest).read_bytes()


def numbers(run):
    """What a run has logged, but for the clock's."""
    lines = run_folder.lines_of(run)
    return [{name: value for name, value in line.items() if not name.startswith("perf/")} for line in lines]
