"""./launch.sh gpu-checks on the CPU: what is chosen, what fits into a slice, and what is kept of a call that is cut."""

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from system import InputError
from tests import tiny
from tests.gpu import checks, real_model, slices
from tests.gpu.slices import Item, Machine, Result, Row, SliceConfig

MACHINE = Machine("a card", "2.11.0", "abc")
SCRIPT = """
import sys, time
from pathlib import Path
from system import cli
from tests.gpu.slices import Item, Machine, Row, SliceConfig, work

def item(name, seconds, check):
    return Item(name, seconds, f"the item {name}", check)

def note(name):
    with open("ran", "a") as file:
        file.write(name + " ")
    return [Row(f"what {name} measures", "1.5 ms")]

def hang(clock):
    note("hangs")
    Path("hanging").touch()
    time.sleep(120)

items = [
    item("one", 5, lambda clock: note("one")), item("two", 7, lambda clock: note("two")), item("hangs", 8, hang),
]
def main(argv):
    config = cli.parse(SliceConfig, argv, command="checks", example="checks one")
    sys.exit(work(config, items, Machine("a card", "2.11.0", "abc")))
cli.run(main)
"""


@pytest.fixture
def start(tmp_path):
    """Starts the script's items in a process of their own."""
    (tmp_path / "script.py").write_text(SCRIPT)

    def started(*arguments):
        command = [sys.executable, tmp_path / "script.py", *arguments]
        return subprocess.Popen(command, cwd=tmp_path, env=tiny.environment(), text=True, stdout=-1, stderr=-1)

    return started


def ended(process):
    out, err = process.communicate(timeout=100)
    return process.returncode, out, err


def ran(folder):
    return (folder / "ran").read_text().split() if (folder / "ran").exists() else []


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_a_call_goes_on_where_the_one_before_was_killed(start, tmp_path):
    done = tmp_path / "done.jsonl"
    cut = start("one", "two", "hangs", "--done", str(done))
    try:
        while not (tmp_path / "hanging").exists():
            assert cut.poll() is None
            time.sleep(0.05)
    finally:
        os.kill(cut.pid, signal.SIGKILL)
    cut.communicate()
    found = lines(done)
    assert [(line["item"], line["passed"]) for line in found] == [("one", True), ("two", True)]
    assert found[0]["rows"] == [{"check": "what one measures", "figure": "1.5 ms", "asked": "", "holds": None}]
    assert (found[0]["device"], found[0]["torch"], found[0]["commit"]) == MACHINE and found[0]["seconds"] >= 0
    code, out, _ = ended(start("one", "two", "--done", str(done)))
    assert (code, ran(tmp_path)) == (slices.PASSED, ["one", "two", "hangs"])  # nothing ran again
    assert "| one | passed |" in out and "| what two measures | 1.5 ms |  | reported |" in out
    assert lines(done) == found


def noting(*seconds, fails=()):
    """Items a, b, c ... of so many expected seconds, and the names of those that have run."""
    found = []

    def check(name):
        found.append(name)
        if name in fails:
            raise ValueError("the kernel is wrong")
        return [Row(f"what {name} measures", "1.5 ms")]

    return [Item(n, s, "", lambda _, n=n: check(n)) for n, s in zip("abcdef", seconds, strict=False)], found


def test_what_does_not_fit_is_left_and_said(capsys, tmp_path):
    items, found = noting(5, 700, 30, 1000)
    config = SliceConfig(names=("a", "b", "c"), seconds=600.0, done=str(tmp_path / "done"))
    assert (slices.work(config, items, MACHINE), found) == (slices.LEFT, ["a", "c"])  # what is too long stops no other
    out, err = capsys.readouterr()
    assert "| b | left | (700 expected) |" in out and "| d |" not in out
    assert "left: b (takes 700 s, more than --seconds has; give it more)" in err
    assert (slices.work(replace(config, seconds=800.0), items, MACHINE), found) == (slices.PASSED, ["a", "c", "b"])
    assert [line["item"] for line in lines(tmp_path / "done")] == ["a", "c", "b"]


def test_time_that_is_gone_is_no_ones(tmp_path):
    items = [Item("slow", 1, "", lambda _: time.sleep(0.3) or []), Item("next", 1.9, "", lambda _: [])]
    config = SliceConfig(seconds=2.0, done=str(tmp_path / "done"))
    assert slices.work(config, items, MACHINE) == slices.LEFT
    assert [line["item"] for line in lines(tmp_path / "done")] == ["slow"]
    assert slices.work(config, items, MACHINE) == slices.PASSED


def test_what_fails_is_told_in_a_row_and_tried_again_last(capsys, tmp_path):
    items, found = noting(5, 6, 7, fails=("b",))
    config = SliceConfig(done=str(tmp_path / "done"))
    assert slices.work(replace(config, names=("a", "b")), items, MACHINE) == slices.FAILED
    out = capsys.readouterr().out
    assert "| b | failed: the kernel is wrong |  | DOES NOT HOLD |" in out and "| b | FAILED |" in out
    assert (slices.work(replace(config, names=("b", "c")), items, MACHINE), found) == (slices.FAILED, list("abcb"))
    assert "what a measures" not in capsys.readouterr().out  # it was not asked for, and stays in the file
    assert {x["item"]: x["passed"] for x in lines(tmp_path / "done")} == {"a": True, "b": False, "c": True}


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("{", ":1: not JSON"),
        ('{"item": "one"}', ":1: no result of a check"),
        ("[]", ":1: no result of a check"),
        ("\n" + json.dumps(dict.fromkeys(slices.KINDS, "x")), ":2: no result of a check"),
    ],
)
def test_a_file_that_is_none_of_results_is_refused(tmp_path, text, said):
    path = tmp_path / "done.jsonl"
    path.write_text(text)
    with pytest.raises(InputError, match=said):
        slices.read_done(str(path))
    assert path.read_text() == text


def test_rows_that_are_none_are_refused(tmp_path):
    result = Result(item="a", passed=True, seconds=1, device="d", torch="t", commit=None, rows=(Row("x", "1"),))
    slices.write_done(tmp_path / "done", {"a": result})
    assert slices.read_done(str(tmp_path / "done")) == {"a": result}
    for wrong in ("colour", "holds"):
        made = lines(tmp_path / "done")[0]
        made["rows"][0][wrong] = "red"
        (tmp_path / "wrong").write_text(json.dumps(made))
        with pytest.raises(InputError, match=":1: one of its rows is none"):
            slices.read_done(str(tmp_path / "wrong"))


def test_bad_input_is_one_sentence_and_2(start, tmp_path):
    code, out, err = ended(start("tow", "--done", "done.jsonl"))
    assert (code, out, ran(tmp_path)) == (2, "", [])
    assert err == "error: tow: no such check; one of one, two, hangs\n"


def test_a_slice_of_no_time_and_a_file_that_is_a_folder_are_refused(tmp_path):
    for seconds in (0.0, -1.0, float("nan")):
        with pytest.raises(InputError, match="--seconds"):
            SliceConfig(seconds=seconds)
    (tmp_path / "link").symlink_to("nowhere")
    for path in (tmp_path, tmp_path / "link"):
        with pytest.raises(InputError):
            slices.read_done(str(path))


def test_results_of_another_commit_count_and_are_named(capsys, tmp_path):
    items = [Item("one", 1, "", lambda clock: [])]
    config = SliceConfig(done=str(tmp_path / "done"))
    assert slices.work(config, items, MACHINE) == slices.PASSED
    capsys.readouterr()
    assert slices.work(config, items, MACHINE._replace(commit="def")) == slices.PASSED
    assert "of another commit than def, and not run again: one" in capsys.readouterr().err


def test_what_runs_beside_begins_where_its_item_has_its_turn(tmp_path):
    begun = []
    items = [Item(n, s, "", lambda clock: [], lambda n=n: begun.append(n)) for n, s in [("a", 5), ("b", 9), ("c", 4)]]
    slices.work(SliceConfig(seconds=10), items, MACHINE)
    assert begun == ["a", "c"]


# --- the real items ------------------------------------------------------------------------------------------------


def test_every_item_has_a_name_and_fits_into_a_slice(capsys):
    checks.main(["--list"])
    items = [line.split(maxsplit=3) for line in capsys.readouterr().out.splitlines()]
    assert [name for name, *_ in items] == [
        "sharded", "split", "small", "lora-8b", "lora-70b", "families", "families-compiled", "families-speed",
        "figure4", "real-study", "long-pairs", "one-card", "kernels", "lora", "answers", "trajectories", "tests",
    ]  # fmt: skip
    assert all(f"\n{name} " in (checks.__doc__ or "") for name, *_ in items)
    assert all(0 < float(seconds) < 230 and unit == "s" for _, seconds, unit, _ in items)
    assert sum(float(seconds) for name, seconds, *_ in items if name.startswith("families")) < 230  # in one call


def test_without_a_gpu_it_says_so():
    with pytest.raises(InputError, match="there is no GPU that torch can use here; --list"):
        checks.main(["families"])


def test_what_pytest_says_becomes_rows():
    said = "....\nFIGURE speed, 32 heads: 1.9 ms\nnoise\n=== 4 passed, 3 deselected in 5.1s ===\n"
    rows = checks.rows_of("tests/x.py", said)
    assert rows == [
        Row("tests/x.py", "4 passed, 3 deselected in 5.1s", "all pass", True), Row("speed, 32 heads", "1.9 ms"),
    ]  # fmt: skip
    for last in ("1 failed, 3 passed in 5s", "2 skipped in 1s", "1 passed, 2 skipped in 1s", "1 error in 1s", "killed"):
        assert checks.rows_of("tests/x.py", last)[0].holds is False, last


@pytest.mark.slow
def test_an_adapters_case_that_fails_is_a_row_and_the_next_has_its_turn(tmp_path):
    config = checks.ChecksConfig(logs=str(tmp_path))
    few = ["--layers", "1", "--pairs", "1", "--steps", "1"]
    cases = [("tiny", "no-such-dtype", 16.0, few), ("tiny", "int8", 16.0, few)]
    failed, *rows = checks.adapter_in(config, slices.Clock(None), *cases)
    assert failed.check == "tiny, no-such-dtype, 16 GB" and failed.holds is False and "base-dtype" in failed.figure
    found = {row.check.removeprefix("tiny, int8, 16 GB: "): row.holds for row in rows}
    assert found["rewards of step 1"] and found["gradient norm of step 1"] and found["peak memory"]


@pytest.mark.slow
def test_a_command_that_outlasts_its_slice_leaves_nothing_behind(tmp_path):
    child = "import subprocess, time\nprint(subprocess.Popen(['sleep', '100']).pid, flush=True)\ntime.sleep(100)"
    with pytest.raises(subprocess.TimeoutExpired):
        checks._run(tmp_path / "log", ["-c", child], limit=3)
    pid = int((tmp_path / "log").read_text())
    for _ in range(100):
        status = Path(f"/proc/{pid}/stat")
        if not status.exists() or status.read_text().split()[2] == "Z":
            return
        time.sleep(0.05)
    pytest.fail("the command's own process still runs")


def test_a_commit_has_a_plus_where_files_differ(tmp_path):
    assert slices.commit_of(tmp_path) is None
    git = ["git", "-C", str(tmp_path), "-c", "user.name=a", "-c", "user.email=a@b"]
    (tmp_path / "a").write_text("1")
    for command in (["init", "-q"], ["add", "a"], ["commit", "-qm", "First"]):
        subprocess.run([*git, *command], check=True)
    commit = slices.commit_of(tmp_path)
    assert commit is not None and len(commit) == 12
    (tmp_path / "a").write_text("2")
    assert slices.commit_of(tmp_path) == f"{commit}+"


def test_torchs_version_is_one_that_a_file_can_hold(tmp_path):
    """torch.__version__ is a text of a class of its own."""
    result = slices._run(
        Item("a", 1, "", lambda clock: []), slices.Clock(None), MACHINE._replace(torch=torch.__version__)
    )
    slices.write_done(tmp_path / "done", {"a": result})
    assert slices.read_done(str(tmp_path / "done"))["a"].torch == str(torch.__version__)


def test_the_real_models_items_go_on_until_nothing_is_left(tmp_path):
    """A run of the study that is new counts; what the paper says of its figure is a row each."""
    pairs = tmp_path / "pairs.jsonl"
    pairs.write_text("{}\n" * 150)
    config = checks.ChecksConfig(
        logs=str(tmp_path), records=str(tmp_path / "records"), pairs=str(pairs), real_model="m"
    )
    asked = []

    def run(log, command, *, limit):
        asked.append((command, limit))
        if command[1] == "examples.real.study":
            (tmp_path / "records").mkdir(exist_ok=True)
            with open(tmp_path / "records/seed-0.jsonl", "a") as file:
                file.write(json.dumps({"kind": "run" if len(asked) > 1 else "base"}) + "\n")
            if len(asked) < 3:
                raise ValueError("2 runs are on record and others are left; the same command continues")
        elif "--as-it-stands" in command:
            (tmp_path / "figure4").mkdir(exist_ok=True)
            stopped = "" if len(asked) > 6 else "kto_pair was stopped after epoch 14. "
            (tmp_path / "figure4/figure4.md").write_text(f"{stopped}\n| claim | here |\n| it holds | holds |\n")
        else:
            raise subprocess.TimeoutExpired(command, limit)
        return ""

    found = [real_model.study(config, slices.Clock(None), run) for _ in range(3)]
    name = "the real model's study: runs"
    assert found == [
        [Row(name, "0 on record, 0 of them new; the next call goes on", "none is left", False)],
        [Row(name, "1 on record, 1 of them new; the next call goes on", "none is left", False)],
        [Row(name, "2 on record, 1 of them new; none is left", "none is left", True)],
    ]
    found = [real_model.figure4(config, slices.Clock(None), run) for _ in range(2)]
    assert [(rows[0].holds, rows[1:]) for rows in found] == [(h, [Row("it holds", "holds")]) for h in (False, True)]
    command, limit = asked[3]
    assert command[command.index("--n") + 1] == "50" and command[-2:] == ["--model", "m"] and limit == 200
    with pytest.raises(ValueError, match="--pairs names no pairs"):
        real_model.figure4(checks.ChecksConfig(logs=str(tmp_path)), slices.Clock(None), run)
