"""The tutorial's commands, run one after the other as they stand, in a copy of what is committed."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.test_docs import ROOT, blocks

SCREEN = ("./launch.sh setup", "source .venv/bin/activate")  # what the tests themselves are run in


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_every_command_of_the_tutorial_works(tmp_path):
    tracked = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout.split(
        "\n"
    )
    for name in filter(None, tracked):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(ROOT / name, tmp_path / name)
    lines = "\n".join(blocks(ROOT / "docs/tutorial.md")).replace("\\\n", " ").splitlines()
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    env = os.environ | {"PATH": path, "PYTHONPATH": str(tmp_path)}
    beside = []
    try:
        for line in lines:
            if line.endswith("&"):
                server = subprocess.Popen(
                    ["bash", "-c", f"exec {line[:-1]}"], cwd=tmp_path, env=env, stdout=subprocess.PIPE, text=True
                )
                beside.append(server)
                assert "answers at" in server.stdout.readline()
            elif line not in SCREEN:
                done = subprocess.run(
                    line, shell=True, cwd=tmp_path, env=env, capture_output=True, text=True, check=False
                )
                assert done.returncode == 0, (line, done.stderr[-2000:])
    finally:
        for server in beside:
            server.terminate()
            server.communicate(timeout=10)
    assert (tmp_path / "runs/tiny/report/report.html").exists()
    assert len(list((tmp_path / "runs/tiny").glob("*/epoch-03"))) == 2  # DPO's was stopped and went on
