"""Commands begin again without the allocator's caches of small blocks: real processes."""

import os
import subprocess
import sys

import pytest

from system.malloc import GPU, TUNABLE, VARIABLE

pytestmark = pytest.mark.skipif(
    sys.platform != "linux" or GPU.exists(), reason="only on Linux without a GPU is anything begun again"
)


def said_by(tmp_path, command, **variables):
    """What a process of a package that begins again prints: its tunables, and its arguments."""
    package = tmp_path / "commanded"
    package.mkdir()
    (package / "__init__.py").write_text("from system.malloc import begin_again\nbegin_again()\n")
    (package / "job.py").write_text(f"import os, sys\nprint(os.environ.get({VARIABLE!r}), sys.argv[1:])\n")
    environment = {k: v for k, v in os.environ.items() if k != VARIABLE} | {"PYTHONPATH": str(tmp_path)} | variables
    ran = subprocess.run([sys.executable, *command], env=environment, capture_output=True, text=True, check=True)
    return ran.stdout.strip()


def test_a_command_begins_again_with_its_arguments(tmp_path):
    assert said_by(tmp_path, ["-m", "commanded.job", "--a", "b c"]) == f"{TUNABLE} ['--a', 'b c']"


def test_other_tunables_stay(tmp_path):
    found = said_by(tmp_path, ["-m", "commanded.job"], **{VARIABLE: "glibc.malloc.perturb=1"})
    assert found == f"glibc.malloc.perturb=1:{TUNABLE} []"


def test_what_is_said_of_caches_is_left(tmp_path):
    found = said_by(tmp_path, ["-m", "commanded.job"], **{VARIABLE: "glibc.malloc.tcache_count=3"})
    assert found == "glibc.malloc.tcache_count=3 []"


def test_a_program_that_imports_the_package_goes_on(tmp_path):
    assert said_by(tmp_path, ["-c", "import commanded.job"]) == "None []"
