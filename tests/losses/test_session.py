"""Objectives that are typed into a session: a notebook's cells and a REPL's lines can be run again."""

import subprocess
import sys

import pytest

from tests import forks, tiny

CELL = """
from torch.nn.functional import logsigmoid
from losses import Responses, Result, loss

@loss("typed", data="pairs", reference=True, aliases=("also_typed",))
def typed(chosen, rejected, *, beta: float = 0.1, by: float = {by}):
    r_w, r_l = beta * chosen.logratios, beta * rejected.logratios
    return Result(-logsigmoid(r_w - r_l - by), r_w.detach(), r_l.detach())
"""
OTHER = CELL.replace('"typed"', '"other"').replace("also_typed", "an_other")
IPYTHON = """
def run_cell(text, n=iter(range(9))):  # as ipykernel compiles a cell: under a name of its own, in __main__
    exec(compile(text, f"/tmp/ipykernel_1/{next(n)}.py", "exec"), globals())
"""
CONSOLE = """
import code
session = code.InteractiveInterpreter(globals())
def run_cell(text):
    session.runsource(text, "<console>", "exec")
"""
SAYS = """
import losses
def by():
    return losses.get("typed").defaults["by"], losses.get("also_typed").defaults["by"]
"""


def session(tmp_path, *parts):
    """What a second process says into whose __main__ these are read, as into a notebook's; and its faults."""
    command = "import sys\nfor part in sys.argv[1:]:\n    exec(part, globals())\n"
    return forks.run([sys.executable, "-c", command, *parts], cwd=tmp_path, env=tiny.environment())


@pytest.mark.parametrize("kind", [IPYTHON, CONSOLE], ids=["ipython", "console"])
def test_what_is_typed_anew_holds(tmp_path, kind):
    cells = [CELL.format(by=by) for by in (1.0, 3.0, 3.0)]
    run = "\n".join(f"run_cell({cell!r}); print(*by())" for cell in cells)
    done = session(tmp_path, kind, SAYS, run)
    assert done.stdout.splitlines() == ["1.0 1.0", "3.0 3.0", "3.0 3.0"], done.stderr


def test_an_alias_that_is_typed_no_more_is_gone(tmp_path):
    without = CELL.format(by=3.0).replace(', aliases=("also_typed",)', "")
    run = f"run_cell({CELL.format(by=1.0)!r}); run_cell({without!r}); print(losses.aliases())"
    done = session(tmp_path, IPYTHON, SAYS, run)
    assert "'sigmoid'" in done.stdout and "typed" not in done.stdout, done.stderr


def test_a_cell_with_a_fault_leaves_what_was_there(tmp_path):
    wrong = CELL.format(by=3.0).replace("by: float = 3.0", "by: float")
    run = f"run_cell({CELL.format(by=1.0)!r})\ntry:\n    run_cell({wrong!r})\nexcept losses.LossError as fault:\n"
    done = session(tmp_path, IPYTHON, SAYS, run + "    print(fault)\nprint(*by())")
    said, held = done.stdout.splitlines()
    assert said.startswith("objective 'typed': the argument 'by' has no default") and held == "1.0 1.0"


@pytest.mark.parametrize("name", ["dpo", "sigmoid", "other", "an_other"])
def test_the_name_of_a_package_or_of_another_file_stays_taken(tmp_path, name):
    (tmp_path / "other.py").write_text(OTHER.format(by=1.0))
    cell = CELL.format(by=1.0).replace('"typed"', repr(name))
    done = session(tmp_path, IPYTHON, "import losses\nlosses.get('other.py:other')", f"run_cell({cell!r})")
    assert f"LossError: objective '{name}': the name '{name}' is taken; choose another" in done.stderr


def test_a_file_does_not_replace_what_was_typed(tmp_path):
    (tmp_path / "mine.py").write_text(CELL.format(by=3.0))
    done = session(tmp_path, IPYTHON, f"run_cell({CELL.format(by=1.0)!r})\nimport losses\nlosses.get('mine.py:typed')")
    assert "mine.py: objective 'typed': the name 'typed' is taken; choose another" in done.stderr


def test_two_of_one_name_in_a_script_contradict_one_another(tmp_path):
    """And the script can be run again in one session, as IPython's %run does."""
    cell = CELL.format(by=1.0)
    (tmp_path / "twice.py").write_text(cell + cell)
    done = subprocess.run(
        [sys.executable, "twice.py"],
        cwd=tmp_path, env=tiny.environment(), capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert done.returncode == 1 and "the name 'typed' is taken; choose another" in done.stderr
    (tmp_path / "once.py").write_text(cell)
    again = "import runpy\nrunpy.run_path('once.py', run_name='__main__')\n"
    more = f"from pathlib import Path\nPath('once.py').write_text({CELL.format(by=3.0)!r} + '# longer')\n"
    assert session(tmp_path, again, more, again, SAYS + "print(*by())").stdout == "3.0 3.0\n"


def test_the_run_that_follows_computes_with_the_new_one(tmp_path):
    """While policy and reference are one, the loss of step 1 is log(1 + exp(by))."""
    model = tiny.write_model(tmp_path / "model", vocab_size=101)
    pairs = [{"prompt_ids": [2, 3], "chosen_ids": [4 + i], "rejected_ids": [9 + i, 5]} for i in range(4)]
    data = tiny.write_rows(tmp_path / "pairs.jsonl", pairs)
    train = f"""
import json
from math import exp, log1p
from engine.train import TrainConfig, run
def first_loss(out):
    told = dict(model={str(model)!r}, data={str(data)!r}, loss="typed", epochs=1, batch_size=4)
    return json.loads((run(TrainConfig(**told, out=out)).out / "metrics.jsonl").read_text().splitlines()[0])["loss"]
"""
    runs = "\n".join(
        f"run_cell({CELL.format(by=by)!r}); print(abs(first_loss('run{by}') - log1p(exp({by}))) < 1e-12)"
        for by in (1.0, 3.0)
    )
    done = session(tmp_path, IPYTHON, train, runs)
    assert done.stdout.splitlines()[-2:] == ["True", "True"], done.stderr
