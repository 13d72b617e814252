"""The faults themselves: that each strikes where it is asked for, at everything that a program writes by."""

import errno
import signal
import subprocess
import sys

import pytest

from tests import faults, tiny

WRITES = """
import os, pathlib, shutil, sys
from tests import faults

seen = []
faults.watch(lambda operation, path: seen.append((operation, os.path.basename(path))))
folder = pathlib.Path(sys.argv[1])
(folder / "text").write_text("x")
(folder / "bytes").write_bytes(b"x")
with open(folder / "raw", "xb", buffering=0) as file:
    file.write(b"x")
    os.posix_fallocate(file.fileno(), 0, 10)
    os.pwrite(file.fileno(), b"y", 2)
    os.fsync(file.fileno())
with open(folder / "text", "a", encoding="utf-8") as file:
    file.write("1\\n")
    file.flush()
    file.write("2\\n")
(folder / "raw").rename(folder / "named")
os.replace(folder / "named", folder / "bytes")
(folder / "deep").mkdir()
shutil.copyfile(folder / "text", folder / "deep/copy")
os.truncate(folder / "text", 1)
shutil.rmtree(folder / "deep")
assert (folder / "text").read_text() == "x"
print(*(f"{operation}:{name}" for operation, name in seen))
"""


def test_all_that_a_program_writes_by_is_watched(tmp_path):
    command = [sys.executable, "-c", WRITES, str(tmp_path)]
    done = subprocess.run(command, env=tiny.environment(), capture_output=True, text=True, timeout=120, check=False)
    assert done.stdout.split() == [
        *("write:text", "write:bytes", "write:raw", "write:raw", "write:raw", "fsync:raw"),
        *("write:text", "write:text", "rename:named", "rename:bytes", "write:copy", "write:copy"),
        *("write:text", "remove:copy", "remove:deep"),
    ], done.stderr


@pytest.mark.parametrize(
    ("fault", "calls", "struck"),
    [
        ("write:2:ENOSPC", ["write", "fsync", "write", "write"], 2),
        ("any:3:EIO", ["write", "fsync", "rename", "write"], 2),
        ("backward:1:RAISE", ["forward", "backward", "backward"], 1),
        ("rename:1:EIO:1", ["rename", "rename"], None),  # of rank 1, and this is 0
    ],
)
def test_a_fault_strikes_once_where_it_is_asked_for(monkeypatch, fault, calls, struck):
    monkeypatch.delenv("RANK", raising=False)
    made, found = faults.Fault(fault), []
    for i, operation in enumerate(calls):
        try:
            made(operation, "/a/file")
        except (OSError, RuntimeError) as raised:
            found.append((i, raised))
    assert [i for i, _ in found] == ([] if struck is None else [struck])
    for i, raised in found:
        if isinstance(raised, OSError):
            assert raised.errno == getattr(errno, fault.split(":")[2])
            assert raised.filename == ("/a/file" if calls[i] == "rename" else None)


@pytest.mark.parametrize("how", ["runner", "sitecustomize"])
def test_a_process_is_struck_from_outside(tmp_path, how):
    """A module that knows nothing of it writes twice, and dies before the second time."""
    (tmp_path / "writes.py").write_text(
        "import sys\nfor name in sys.argv[1:]:\n    with open(name, 'w') as f:\n        f.write(name)\n"
    )
    names, env = [str(tmp_path / "one"), str(tmp_path / "two")], tiny.environment(tmp_path)
    program = ["-m", "tests.faults", "write:2", "writes", *names]
    if how == "sitecustomize":
        program = ["-m", "writes", *names]
        env = tiny.environment(faults.sitecustomize(tmp_path / "site", "write:2"), tmp_path) | {"RANK": "0"}
    done = subprocess.run([sys.executable, *program], env=env, cwd=tmp_path, timeout=120, check=False)
    assert done.returncode == -signal.SIGKILL
    assert [(tmp_path / name).stat().st_size > 0 for name in ("one", "two")] == [True, False]
