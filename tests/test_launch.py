"""The door: exit codes and what is printed, through the real script."""

import os
import subprocess
from pathlib import Path

import pytest

from tests import tiny

ROOT = Path(__file__).parents[1]
pytestmark = pytest.mark.skipif(not (ROOT / ".venv/.installed").exists(), reason="./launch.sh setup has not been run")


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


def test_setup_does_nothing_when_nothing_has_changed():
    done = launch("setup")
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_an_unknown_verb_ends_in_2():
    done = launch("trian")
    assert done.returncode == 2 and "error: there is no ./launch.sh trian" in done.stderr


def test_train_on_two_processes(flags, tmp_path):
    done = launch("train", "--nproc", "2", *flags)
    assert done.returncode == 0, done.stderr[-2000:]
    assert (tmp_path / "run/epoch-01/config.json").exists()
    assert done.stdout.split() == [str(tmp_path / "run")]


@pytest.mark.parametrize("n", [[], ["--nproc", "2"]], ids=["one process", "two processes"])
def test_bad_input_ends_in_2_with_one_sentence(flags, tmp_path, n):
    (tmp_path / "rows.jsonl").write_text('{"prompt_ids": [1], "chosen_ids": [2], "rejected_ids": [999]}\n')
    done = launch("train", *n, *flags)
    assert done.returncode == 2
    said = [line for line in done.stderr.splitlines() if "error" in line.lower()]
    assert len(said) == 1 and "Traceback" not in done.stderr and "ChildFailed" not in done.stderr
    assert "rows.jsonl:1: token id 999 is outside the model's vocabulary of 101" in done.stderr
    assert not (tmp_path / "run").exists()


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
