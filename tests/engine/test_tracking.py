"""Where a run is watched: what each library is given, that a run that goes on is the same run there, and that no
library can stop or slow the training.
"""

import json
import os
import signal
import struct
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from engine import train
from engine.config import TrainConfig, trl_names
from engine.run import MetricsLog
from engine.tracking import process
from engine.tracking.process import Followers, names_of
from engine.train import Hooks
from system import InputError, cli
from tests import tiny
from tests.metrics import lines
from tests.rows import id_rows

STAND_IN = """
import json, os, time
def note(*what):
    with open(os.environ["HEARD"], "a") as file:
        file.write(json.dumps(what) + "\\n")
class Settings:
    model_fields = {"x_stats_pid": None}
    def __init__(self, **given): self.sync_dir = "here"
class Config:
    def update(self, given, allow_val_change): note("config", given)
class Run:
    url, config, settings = "https://watched/run", Config(), Settings()
    def log(self, line, step):
        note("log", step, line)
        if os.environ.get("ACT") == "raise" and step == 2: raise ConnectionError("the server\\nis gone")
        if os.environ.get("ACT") == "hang" and step == 2: time.sleep(600)
        if os.environ.get("ACT") == "die" and step == 2: os.kill(os.getpid(), 9)
    def finish(self, exit_code): note("finish", exit_code)
def init(**given):
    if os.environ.get("ACT") == "hang in init": time.sleep(600)
    given.pop("settings"); note("init", given); return Run()
"""


@pytest.fixture
def heard(tmp_path, monkeypatch):
    """What a stand-in for wandb was told, in its own process; ACT decides how it fails."""
    (tmp_path / "site").mkdir()
    (tmp_path / "site/wandb.py").write_text(STAND_IN)
    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    monkeypatch.setenv("HEARD", str(tmp_path / "heard.jsonl"))
    for name in [name for name in os.environ if name.startswith(("WANDB_", "MLFLOW_", "TRACKIO_"))]:
        monkeypatch.delenv(name)
    (tmp_path / "heard.jsonl").touch()
    return lambda: [json.loads(line) for line in (tmp_path / "heard.jsonl").read_text().splitlines()]


@pytest.fixture
def job(tmp_path):
    """A tiny run; its flags, by name."""
    model = tiny.write_model(tmp_path / "model", vocab_size=101)
    rows = tiny.write_rows(tmp_path / "rows.jsonl", id_rows(12))

    def config(**changes):
        given = {"model": str(model), "data": str(rows), "out": str(tmp_path / "runs/first"), "track": "wandb"}
        return TrainConfig(**(given | {"lr": 1e-4, "batch_size": 4, "epochs": 2, "state_every": 2} | changes))

    return config


def logged(found):
    return [(what[1], what[2]) for what in found if what[0] == "log"]


def test_a_library_gets_the_settings_and_every_line_and_how_the_run_ended(job, heard, capsys):
    result = train.run(job())
    (begun, config, *steps, ended) = heard()
    assert begun[0] == "init" and begun[1] | {"id": ""} == {
        "project": "runs", "name": "first", "dir": str(result.out.absolute()), "id": "", "resume": "allow",
    }  # fmt: skip
    assert config == ["config", yaml.safe_load((result.out / "config.yaml").read_text())] and config[1]["lr"] == 1e-4
    found = lines(result.out)
    assert len(found) == 6 and logged(steps) == [(line.pop("step"), line) for line in found]
    assert ended == ["finish", 0]
    assert capsys.readouterr().err.count("wandb: https://watched/run") == 1
    assert not list(result.out.glob("*tfevents*"))  # the default is replaced, not added to


def test_names_and_places_are_the_librarys_own_where_its_variables_give_them(job, heard, monkeypatch):
    for name, value in {"WANDB_PROJECT": "p", "WANDB_NAME": "n", "WANDB_DIR": "d", "WANDB_RUN_ID": "abc"}.items():
        monkeypatch.setenv(name, value)
    train.run(job(max_steps=1))
    assert heard()[0][1] == {"project": None, "name": None, "dir": None, "id": "abc", "resume": "allow"}


def test_a_run_is_called_as_its_folder_is(tmp_path):
    assert names_of(tmp_path / "my runs/a b") == ("my-runs", "a b")
    assert names_of(tmp_path / "runs/first/stage-02") == ("runs", "first-stage-02")


def test_a_run_that_goes_on_is_the_same_run_and_no_line_is_logged_twice(job, heard):
    train.run(job(stop_after=3))
    before = heard()
    assert before[-1] == ["finish", 1]  # it is not finished
    result = train.run(job(resume=True))
    first, second = (what[1] for what in heard() if what[0] == "init")
    assert first == second and first["id"]
    assert [step for step, _ in logged(heard())] == [1, 2, 3, 4, 5, 6]
    assert len(lines(result.out)) == 6


@pytest.mark.slow
def test_lines_that_resume_cuts_and_computes_again_are_not_logged_again(job, heard, tmp_path):
    """A kill behind a state: the lines after it are cut from metrics.jsonl, and were logged already."""
    script = (
        "import os, signal, time; from pathlib import Path; from engine import train\n"
        "from engine.config import TrainConfig; from engine.train import Hooks\n"
        "def after(step, line):\n"
        "    if step.number == 5:\n"
        f"        heard = Path({str(tmp_path / 'heard.jsonl')!r})\n"
        "        while '[\"log\", 5,' not in heard.read_text(): time.sleep(0.05)\n"
        "        os.kill(os.getpid(), signal.SIGKILL)\n"
        f"train.run(TrainConfig(**{job().flat() | {'config': None}!r}), Hooks(after_log=after))\n"
    )
    done = subprocess.run([sys.executable, "-c", script], env=tiny.environment(tmp_path / "site"), check=False)
    assert done.returncode == -signal.SIGKILL
    out = tmp_path / "runs/first"
    assert [line["step"] for line in lines(out)] == [1, 2, 3, 4, 5]
    train.run(job(resume=True))
    assert [step for step, _ in logged(heard())] == [1, 2, 3, 4, 5, 6]
    assert [line["step"] for line in lines(out)] == [1, 2, 3, 4, 5, 6]
    assert json.loads((out / "state/wandb.json").read_text())["step"] == 6
    ends = [what[1] for what in heard() if what[0] == "finish"]
    assert ends == [1, 0]  # the process of the killed run told that it failed


def test_a_run_that_ends_early_is_finished_and_what_comes_before_the_first_step_is_logged(job, heard, tmp_path):
    rows = tiny.write_rows(tmp_path / "held-out.jsonl", id_rows(4, seed=1))
    result = train.run(job(eval_data=str(rows), eval_every=1, early_stop="eval_loss:1", lr=0.5))
    steps = [step for step, _ in logged(heard())]
    assert steps == list(range(result.n_steps + 1)) and result.n_steps < 6  # step 0 too
    assert heard()[-1] == ["finish", 0]


def test_what_was_not_logged_before_a_kill_is_logged_when_the_run_goes_on(job, heard, monkeypatch):
    monkeypatch.setenv("ACT", "die")
    train.run(job(stop_after=4))
    assert [step for step, _ in logged(heard())] == [1, 2]
    monkeypatch.delenv("ACT")
    train.run(job(resume=True))
    assert [step for step, _ in logged(heard())] == [1, 2, 2, 3, 4, 5, 6]  # whether 2 had arrived nobody knows


@pytest.mark.parametrize(
    ("act", "said"),
    [
        ("raise", "wandb: gets no more lines (ConnectionError: the server); metrics.jsonl has every line"),
        ("die", "wandb: gets no more lines (its process ended with -9); metrics.jsonl has every line"),
        ("hang", "wandb: gets no more lines (it did not finish within 1 s of the run's end)"),
        ("hang in init", "wandb: gets no more lines (it did not finish within 1 s of the run's end)"),
    ],
)
def test_a_library_that_fails_or_hangs_is_told_of_once_and_the_run_goes_on(
    act, said, job, heard, monkeypatch, capsys, tmp_path
):
    monkeypatch.setenv("ACT", act)
    monkeypatch.setitem(process.END_SECONDS, "finished", 1.0 if "hang" in act else 300.0)

    def until_it_hangs(step, _):
        while act == "hang" and step.number == 6 and len(logged(heard())) < 2:
            time.sleep(0.05)

    result = train.run(job(), Hooks(after_log=until_it_hangs))  # it hangs for 600 s, longer than a test may take
    told = capsys.readouterr().err
    assert said in told and told.count("gets no more lines") == 1
    assert len(lines(result.out)) == 6 and result.n_steps == 6
    steps = [step for step, _ in logged(heard())]
    assert steps == ([] if act == "hang in init" else [1, 2])
    shown = subprocess.run(["ps", "-eo", "args"], capture_output=True, text=True, check=False).stdout
    assert str(tmp_path) not in shown  # nothing is left of it


def test_a_trainer_that_is_gone_leaves_no_process_that_hangs(tmp_path, heard, monkeypatch):
    """A kill while the library hangs: nobody waits for it, so it ends itself."""
    (tmp_path / "run/state").mkdir(parents=True)
    (tmp_path / "run/config.yaml").write_text("lr: 1.0\n")
    (tmp_path / "run/metrics.jsonl").write_text('{"step": 2}\n')
    code = (
        "from engine.tracking import following; following.LAST_SECONDS = 0.5; import sys\n"
        "following.follow('wandb', sys.argv[1], 'p', 'n', '1')"
    )
    environment = tiny.environment(tmp_path / "site") | {"ACT": "hang"}
    child = subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path / "run")],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        env=environment,
        start_new_session=True,
    )
    while not logged(heard()):
        time.sleep(0.05)
    child.stdin.close()
    assert child.wait(30) == -signal.SIGKILL


def test_a_process_that_cannot_be_started_is_told_of(tmp_path, monkeypatch):
    def full(*_, **__):
        raise OSError(12, "Cannot allocate memory")

    said = []
    monkeypatch.setattr(process.subprocess, "Popen", full)
    Followers(["wandb"], tmp_path, said.append).close("finished")
    (sentence,) = said
    assert sentence.startswith("wandb: gets no more lines ([Errno 12] Cannot allocate memory)")


def test_only_the_rank_that_writes_starts_one(tmp_path, monkeypatch):
    monkeypatch.setattr(process.subprocess, "Popen", None)  # would raise
    log = MetricsLog(tmp_path, n_steps=1, per_epoch=1, n_done=0, n_tokens=0, facts={}, writes=False, track=("wandb",))
    with log:
        pass
    assert not list(tmp_path.iterdir())


# --- the flag ------------------------------------------------------------------------------------------------------


def test_a_library_that_is_not_there_is_an_error_before_anything_is_read(job, monkeypatch):
    monkeypatch.setattr("engine.config.trackers.find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"--track wandb mlflow: not installed; pip install wandb mlflow, or choose"):
        train.run(job(track=("wandb", "mlflow"), model="nowhere", data="nowhere"))


def test_a_folder_of_a_librarys_name_is_no_library(tmp_path, monkeypatch):
    (tmp_path / "emptylib").mkdir()  # as wandb leaves one in the current folder
    monkeypatch.syspath_prepend(str(tmp_path))
    from engine.config import trackers

    assert not trackers.is_installed("emptylib")
    (tmp_path / "emptylib/__init__.py").touch()
    assert trackers.is_installed("emptylib")


@pytest.mark.parametrize(
    ("given", "said"),
    [(("none", "wandb"), "none cannot be combined with another"), (("wandb", "wandb"), "names one twice")],
)
def test_contradictions_of_the_flag(job, given, said):
    with pytest.raises(InputError, match=f"--track: .*{said}"):
        job(track=given)


def test_none_leaves_metrics_alone(job):
    result = train.run(job(track="none", max_steps=1))
    assert not list(result.out.glob("*tfevents*")) and len(lines(result.out)) == 1


@pytest.mark.parametrize(("text", "track"), [("none", ("none",)), ("[trackio, mlflow]", ("trackio", "mlflow"))])
def test_a_file_names_them_too(tmp_path, text, track):
    (tmp_path / "run.yaml").write_text(f"model: m\ndata: d\nout: o\ntrack: {text}\n")
    argv = ["--config", str(tmp_path / "run.yaml")]
    found = cli.parse(TrainConfig, argv, command="x", example="x", peer=trl_names)
    assert found.watching.track == track


def test_a_run_that_goes_on_may_be_watched_elsewhere(job, heard):
    train.run(job(stop_after=2, track="tensorboard"))
    train.run(job(resume=True))
    assert [step for step, _ in logged(heard())] == [1, 2, 3, 4, 5, 6]  # those from before it too


# --- names in a file for TRL ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("report_to", "track"),
    [
        ("wandb", ["wandb"]),
        (["tensorboard", "wandb"], ["tensorboard", "wandb"]),
        ("none", ["none"]),
        (["none"], ["none"]),
        ("all", ["tensorboard", "wandb"]),
        ("trackio", None),
        ("null", None),
        (["mlflow", "tensorboard", "comet_ml"], ["tensorboard"]),
    ],
)
def test_report_to_names_what_is_there_and_tells_of_the_rest(report_to, track, monkeypatch):
    monkeypatch.setattr("engine.config.trackers.is_installed", lambda name: name in ("tensorboard", "wandb"))
    said = []
    made = trl_names.translate({"report_to": report_to}, said.append)
    assert made.get("track") == track  # None: the default holds
    told = "\n".join(said)
    assert ("is --track" in told) == (track is not None)
    assert ("trackio is not installed, and left out; pip install trackio" in told) == (report_to == "trackio")
    assert ("mlflow is not installed" in told) == ("mlflow" in report_to)
    assert ("comet_ml is not supported here" in told) == ("comet_ml" in report_to)


def test_a_file_says_none_of_what_has_it(tmp_path):
    """It stood for a setting that is not given."""
    (tmp_path / "run.yaml").write_text("model: m\ndata: d\nout: o\nreference: none\ntrack: none\n")
    argv = ["--config", str(tmp_path / "run.yaml")]
    found = cli.parse(TrainConfig, argv, command="x", example="x", peer=trl_names)
    assert found.reference.mode == "none" and found.watching.track == ("none",)


# --- the libraries themselves --------------------------------------------------------------------------------------


def has(name):
    return pytest.mark.skipif(
        subprocess.run([sys.executable, "-c", f"import {name}"], capture_output=True, check=False).returncode != 0,
        reason=f"{name} is not installed",
    )


def twice(job, track):
    """A run that is stopped and goes on; its folder and lines."""
    train.run(job(track=track, stop_after=3))
    result = train.run(job(track=track, resume=True))
    return result.out, lines(result.out)


@pytest.fixture
def slowly(monkeypatch, tmp_path):
    """Time for libraries that are slow to load, and none of the user's own settings."""
    for how in process.END_SECONDS:
        monkeypatch.setitem(process.END_SECONDS, how, 300.0)
    for name in [name for name in os.environ if name.startswith(("WANDB_", "MLFLOW_", "TRACKIO_"))]:
        monkeypatch.delenv(name)
    return monkeypatch


@pytest.mark.slow
@has("wandb")
def test_wandb_holds_every_line_offline(job, slowly, capsys):
    slowly.setenv("WANDB_MODE", "offline")
    out, found = twice(job, "wandb")
    told = capsys.readouterr().err
    assert told.count("wandb: offline; wandb sync") == 2 and "no more lines" not in told
    parts = sorted((out / "wandb").glob("offline-run-*"))
    run = json.loads((out / "state/wandb.json").read_text())["id"]
    assert len(parts) == 2 and all(part.name.endswith(run) for part in parts)  # one run, in two parts
    history = {}
    for part in parts:
        for line in of_wandb(next(part.glob("*.wandb"))):
            assert line["_step"] not in history  # none twice
            history[line["_step"]] = line
    for line in found:
        step = line.pop("step")
        assert {name: history[step][name] for name in line} == line
    assert len(history) == 6


def of_wandb(path: Path):
    """The lines of history in a run's file: LevelDB's log format behind seven bytes of wandb's own."""
    from wandb.proto import wandb_internal_pb2

    data, at, whole = path.read_bytes(), 7, b""
    while at + 7 <= len(data):
        if (left := 32768 - at % 32768) < 7:  # no room for a head in this block
            at += left
            continue
        _, size, kind = struct.unpack("<IHB", data[at : at + 7])
        whole, at = whole + data[at + 7 : at + 7 + size], at + 7 + size
        if kind in (1, 4):  # all of a record, or its last part
            record, whole = wandb_internal_pb2.Record.FromString(whole), b""
            if record.WhichOneof("record_type") == "history":
                yield {"/".join(i.nested_key) or i.key: json.loads(i.value_json) for i in record.history.item}


@pytest.mark.slow
@has("trackio")
def test_trackio_holds_every_line(job, slowly, tmp_path, capsys):
    slowly.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))
    _, found = twice(job, "trackio")
    assert "no more lines" not in capsys.readouterr().err
    code = (
        "import json; from trackio.sqlite_storage import SQLiteStorage as S\n"
        "print(json.dumps([S.get_runs('runs'), S.get_logs('runs', 'first')]))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    runs, rows = json.loads(done.stdout.splitlines()[-1])
    assert runs == ["first"] and [row["step"] for row in rows] == [1, 2, 3, 4, 5, 6]
    for row, line in zip(rows, found, strict=True):
        assert {name: row[name] for name in line} == line


@pytest.mark.slow
@has("mlflow")
def test_mlflow_holds_every_line(job, slowly, tmp_path, capsys):
    slowly.setenv("MLFLOW_TRACKING_URI", (tmp_path / "mlruns").as_uri())
    slowly.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    out, found = twice(job, "mlflow")
    assert "no more lines" not in capsys.readouterr().err
    run = json.loads((out / "state/mlflow.json").read_text())["id"]
    (folder,) = (tmp_path / "mlruns").glob(f"*/{run}")
    assert (folder / "params/lr").read_text() == "0.0001"
    for name in ("loss", "rewards/chosen", "learning_rate"):
        rows = [line.split() for line in (folder / "metrics" / name).read_text().splitlines()]
        assert [(int(step), float(value)) for _, value, step in rows] == [(x["step"], x[name]) for x in found]
    assert "status: 3" in (folder / "meta.yaml").read_text()  # finished
