"""The documentation's commands, run as they stand in a copy of what is committed: the tutorial's one after the other,
then every page's, with tiny stand-ins for the files that they name.

Not run: blocks marked `# needs ...` or `# takes ...` (a GPU, a key, an hour), outlines with "..." in a command, and the
commands that set up and run these tests.
"""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from examples.miniature import reviser, sets
from examples.requests import serve_models
from tests.test_docs import GENERATED, PAGES, ROOT, blocks

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]
TUTORIAL = ROOT / "docs/tutorial.md"
COMMANDS = ("python -m ", "torchrun ", "./launch.sh ")
SCREEN = ("./launch.sh setup", "./launch.sh test", "source .venv/bin/activate")  # what the tests themselves are run in
FOREIGN = ("vllm ", "git ", "lm_eval ", "huggingface-cli ", "pip ", "curl ")
PORT = 8000


def lines_of(block):
    """A block's commands, without what is said of them, joined where a line goes on."""
    joined = re.sub(r"\\\n\s*", " ", block).splitlines()
    return [re.split(r"\s{3,}(?!-)|\s#\s", line.strip())[0] for line in joined]


def run(line, folder):
    """One command by a shell; what it said where it fails."""
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    env = os.environ | {"PATH": path, "PYTHONPATH": str(folder)}
    done = subprocess.run(line, shell=True, cwd=folder, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, (line, done.stdout[-500:], done.stderr[-2000:])


def run_all(lines, folder):
    """Commands one after the other; those that end in & beside the others, until the last is done."""
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    env, beside = os.environ | {"PATH": path, "PYTHONPATH": str(folder)}, []
    try:
        for line in lines:
            if line.endswith("&"):
                command = ["bash", "-c", f"exec {line[:-1]}"]
                beside.append(subprocess.Popen(command, cwd=folder, env=env, stdout=subprocess.PIPE, text=True))
                assert "answers at" in beside[-1].stdout.readline()
            else:
                run(line, folder)
    finally:
        for server in beside:
            server.terminate()
            server.communicate(timeout=10)


@pytest.fixture(scope="module")
def tutorial(tmp_path_factory):
    """A copy of what is committed, in which the tutorial was followed to its end."""
    folder = tmp_path_factory.mktemp("copy")
    tracked = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    for name in filter(None, tracked.split("\n")):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, folder / name)
    (folder / ".venv").symlink_to(ROOT / ".venv")
    lines = [line for block in blocks(TUTORIAL) for line in lines_of(block) if not line.startswith(SCREEN)]
    run_all([line for line in lines if line], folder)
    return folder


def test_the_tutorial_ends_in_a_report_and_in_runs_that_went_on(tutorial):
    assert (tutorial / "runs/tiny/report/report.html").exists()
    assert len(list((tutorial / "runs/tiny").glob("*/epoch-03"))) == 2  # DPO's was stopped and went on


@pytest.fixture(scope="module")
def stocked(tutorial):
    """The same with the files that the other pages name."""
    for name in ("path/to/Llama-3-8B-Instruct", "path/to/llama", "runs/demo/base-tiny/model"):
        shutil.copytree(tutorial / "runs/tiny/model", tutorial / name)
    pairs = (tutorial / "runs/tiny/pairs.jsonl").read_text().splitlines(keepends=True)
    prompts = (tutorial / "runs/tiny/prompts.jsonl").read_text().splitlines(keepends=True)
    for name, rows in {"pairs": pairs[:24], "other": pairs[24:48], "heldout": pairs[48:64]}.items():
        (tutorial / f"{name}.jsonl").write_text("".join(rows))
    for name in ("prompts.jsonl", "runs/demo/prompts.jsonl"):
        (tutorial / name).write_text("".join(prompts[:30]))
    (tutorial / "runs").mkdir(exist_ok=True)
    for name in ("first", "second"):
        run(f"python -m engine.train --model path/to/llama --data pairs.jsonl --out runs/{name}", tutorial)
    with served():
        flags = f"--endpoint http://127.0.0.1:{PORT}/v1 --model judge --target-model path/to/llama --store s.sqlite"
        run(f"python -m revise score --pairs pairs.jsonl --out scored_pairs.jsonl {flags}", tutorial)
    return tutorial


def served():
    """Who answers at the address that the pages give."""
    models = {"reviser": reviser.reply, "judge": lambda seen: sets.judge(seen.text), "llama": lambda _: "The heron."}
    return serve_models(models, port=PORT)


@pytest.mark.parametrize("page", [p for p in PAGES if p not in (GENERATED, TUTORIAL)], ids=lambda p: p.name)
def test_every_command_of_a_page_works_or_says_what_it_needs(stocked, tmp_path, page):
    folder = tmp_path / "copy"
    shutil.copytree(stocked, folder, symlinks=True)
    if page.name == "README.md":
        shutil.rmtree(folder / "runs/first")  # README makes it
    for block in blocks(page):
        if re.search(r"# (needs|takes) ", block):
            continue
        lines = [line for line in lines_of(block) if not line.startswith(SCREEN)]
        assert not any(line.startswith(FOREIGN) for line in lines), f"{page.name}: say what is needed: {block}"
        chosen = [line for line in lines if line.startswith(COMMANDS) and "..." not in line]
        if any(line.endswith("&") for line in chosen):
            run_all(chosen, folder)
        elif chosen:
            with served():
                run_all(chosen, folder)
