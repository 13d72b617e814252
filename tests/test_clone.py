"""A fresh clone anywhere: a path with blanks and umlauts, another working directory that has folders of all our names,
a HOME that cannot be written, a TMPDIR on another file system.
"""

import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

from tests import tiny

ROOT = Path(__file__).parents[1]
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not (ROOT / ".git").exists(), reason="not a checkout"),
]
INSTALLED = "cat setup.cfg pyproject.toml constraints.txt launch.sh - <<<'' | cksum > .venv/.installed"


@pytest.fixture(scope="module")
def clone(tmp_path_factory):
    """What git has of this checkout, with an environment that sees the packages of this one."""
    made = tmp_path_factory.mktemp("clone") / "Jörgs Läufe, neu (2)" / "a b"
    listed = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    names = subprocess.run(listed, cwd=ROOT, capture_output=True, text=True, check=True).stdout.split("\0")
    for name in filter(None, names):
        if (ROOT / name).is_file():
            (made / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, made / name)
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", made / ".venv"], check=True)
    (packages,) = (made / ".venv/lib").glob("python*/site-packages")
    (packages / "paths.pth").write_text(f"{made}\n{sysconfig.get_path('purelib')}\n")  # an editable install is this
    subprocess.run(["bash", "-c", INSTALLED], cwd=made, check=True)
    return made


@pytest.fixture
def job(clone, tmp_path):
    """A working directory with a model and rows, and folders called as our packages are; and a run's flags."""
    work = tiny.write_work(tmp_path / "Arbeit mit Blanks", "mödel")
    flags = ["--model", "data/mödel", "--data", "data/rows.jsonl", "--epochs", "1", "--batch-size", "4"]
    return work, [*flags, "--out", "Läufe/erster"]


CASES = {
    "as it is": {},
    "HOME is no folder": {"HOME": "/dev/null/nobody", "XDG_CACHE_HOME": "/dev/null/cache"},
    "TMPDIR on another file system": {"TMPDIR": "/dev/shm"},
}


@pytest.mark.parametrize("case", CASES)
def test_a_run_of_two_ranks_from_another_directory(case, clone, job):
    work, flags = job
    if case.startswith("TMPDIR") and not (
        Path("/dev/shm").is_dir() and os.stat("/dev/shm").st_dev != os.stat(work).st_dev
    ):
        pytest.skip("no other file system at hand")
    env = {k: v for k, v in tiny.environment().items() if k != "PYTHONPATH"} | CASES[case]
    ask = {"cwd": work, "env": env, "capture_output": True, "text": True, "timeout": 300, "check": False}
    done = subprocess.run([clone / "launch.sh", "train", "--nproc", "2", *flags], **ask)
    assert done.returncode == 0 and "Traceback" not in done.stderr, done.stderr
    assert done.stdout.splitlines()[-1] == flags[-1]
    written = work / flags[-1] / "epoch-01"
    python = clone / ".venv/bin/python"
    shown = subprocess.run([python, "-m", "data.show", "data/rows.jsonl", "--model", written], **ask)
    assert shown.returncode == 0 and "some" in shown.stdout, shown.stderr
    where = subprocess.run([python, "-c", "import engine; print(engine.__file__)"], **ask)
    assert where.stdout.strip() == str(clone / "engine/__init__.py")  # or else another checkout was tried
