"""Folders in the working directory that are called as our packages are: plain ones harm nothing, a package is told."""

import shutil
import subprocess
import sys
import zipfile

import pytest

from system.neighbours import PACKAGES
from tests import tiny
from tests.rows import id_rows

COMMANDS = {
    "data": "engine.plan", "engine": "data.show", "eval": "engine.train", "examples": "engine.score", "losses": "eval",
    "revise": "eval", "system": "revise",
}  # fmt: skip
"""Hidden package -> a command of another one."""


def started(*command, cwd):
    """A command elsewhere, to which our packages are an entry of the path."""
    return subprocess.run(
        [sys.executable, *map(str, command)],
        cwd=cwd, env=tiny.environment(), capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip


@pytest.fixture
def elsewhere(tmp_path):
    """A working directory with a plain folder for each of our packages, as people have a data/."""
    folder = tiny.write_work(tmp_path / "work")
    tiny.write_rows(folder / "data/ids.jsonl", id_rows(4))
    return folder


def test_a_plain_folder_stands_before_no_package_nor_in_a_command_s_children(elsewhere):
    """The template is tried in a process of its own."""
    done = started("-m", "data.show", "data/rows.jsonl", "--model", "data/m", cwd=elsewhere)
    assert (done.returncode, done.stderr) == (0, "") and "some" in done.stdout


@pytest.mark.slow
def test_nor_in_the_ranks_that_torchrun_starts(elsewhere):
    ranks = ("-m", "torch.distributed.run", "--standalone", "--nproc_per_node", 2)
    flags = ("--model", "data/m", "--data", "data/rows.jsonl", "--epochs", 1, "--batch-size", 4, "--out", "r")
    done = started(*ranks, "-m", "engine.train", *flags, cwd=elsewhere)
    assert done.returncode == 0, done.stderr
    assert (elsewhere / "r/epoch-01/model.safetensors").exists()


@pytest.mark.parametrize("name", COMMANDS)
def test_a_package_of_one_of_our_names_is_a_sentence_that_names_it(name, tmp_path):
    assert COMMANDS.keys() == set(PACKAGES) and not COMMANDS[name].startswith(name)
    (tmp_path / name).mkdir()
    (tmp_path / name / "__init__.py").touch()
    done = started("-m", COMMANDS[name], cwd=tmp_path)
    said = f"{tmp_path / name}: hides the package {name} of {tiny.ROOT}; rename it, or start in another directory"
    assert (done.returncode, done.stderr) == (2, f"error: {said}\n")


def test_in_another_program_it_is_an_import_error(tmp_path):
    (tmp_path / "losses").mkdir()
    (tmp_path / "losses/__init__.py").touch()
    done = started("-c", "import engine", cwd=tmp_path)
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].startswith(f"ImportError: {tmp_path / 'losses'}: hides the package losses")


def test_where_the_installation_looks_for_ours_last_a_plain_folder_is_named_with_the_remedy(tmp_path):
    """As an installation of before, by a finder that comes behind the path, does."""
    (tmp_path / "work/data").mkdir(parents=True)
    (tmp_path / "ours").mkdir()
    for name in ("engine", "system"):
        (tmp_path / "ours" / name).symlink_to(tiny.ROOT / name)
    code = "import sys; sys.path.append(sys.argv.pop()); import engine"
    done = started("-P", "-c", f"import sys; sys.path[:0] = ['']; sys.path.remove({str(tiny.ROOT)!r}); {code}",
                   tmp_path / "ours", cwd=tmp_path / "work")  # fmt: skip
    assert "hides the package data of " in done.stderr and "; run ./launch.sh setup again" in done.stderr


@pytest.mark.slow
def test_an_editable_installation_is_an_entry_of_the_path(tmp_path):
    """And not a finder, which is asked once the path, with the working directory first, has nothing."""
    pytest.importorskip("setuptools", minversion="77")
    for name in ("setup.cfg", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(tiny.ROOT / name, tmp_path)
    for name in set(PACKAGES) - {"examples"}:
        shutil.copytree(tiny.ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__"))
    code = "import setuptools.build_meta as b; b.build_editable('built')"
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, check=True)
    (wheel,) = (tmp_path / "built").glob("*.whl")
    with zipfile.ZipFile(wheel) as held:
        top = [name for name in held.namelist() if "dist-info" not in name]
        (path,) = top  # no finder beside it
        assert path.endswith(".pth") and held.read(path).decode().strip() == str(tmp_path)
