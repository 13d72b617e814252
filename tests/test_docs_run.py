"""The documentation's commands, run as they stand in a fresh clone of what is committed: the tutorial's one after the
other, then every page's, with tiny stand-ins for the files that they name.

Not run: blocks marked `# needs ...` or `# takes ...` (a GPU, a key, an hour), outlines with "..." in a command, and the
tests themselves.
"""

import os
import re
import shutil
import subprocess

import pytest

from examples.miniature import reviser, sets
from examples.requests import serve_models
from tests.pages import GENERATED, PAGES, ROOT, blocks, command_of

TUTORIAL = ROOT / "docs/tutorial.md"
COMMANDS = ("python -m ", "torchrun ", "./launch.sh ")
FOREIGN = ("vllm ", "git ", "lm_eval ", "hf ", "pip ", "curl ")
SKIPPED = ("./launch.sh test", "source .venv/bin/activate")  # the second is done by PATH
PORT = 8000
LONGEST = 1800
"""Seconds of one command. What takes more says so in its page."""


def lines_of(block):
    """A block's commands, joined where a line goes on, without what is said of them."""
    return [command_of(line) for line in re.sub(r"\\\n\s*", " ", block).splitlines()]


def run(line, folder):
    """One command by a shell; it says what it said where it fails."""
    done = subprocess.run(
        ["bash", "-c", line],
        cwd=folder,
        env=environment(folder),
        capture_output=True,
        text=True,
        check=False,
        timeout=LONGEST,
    )
    assert done.returncode == 0, (line, done.stdout[-500:], done.stderr[-2000:])


def run_all(lines, folder):
    """Commands one after the other; those that end in & beside the others, until the last is done."""
    beside = []
    try:
        for line in lines:
            if line.endswith("&"):
                command = ["bash", "-c", f"exec {line[:-1]}"]
                server = subprocess.Popen(
                    command, cwd=folder, env=environment(folder), stdout=subprocess.PIPE, text=True
                )
                beside.append(server)
                assert "answers at" in server.stdout.readline()
            else:
                run(line, folder)
    finally:
        for server in beside:
            server.terminate()
            server.communicate(timeout=10)


def environment(folder):
    """Of a shell in which the clone's .venv is active, and nothing is known of this checkout."""
    env = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "VIRTUAL_ENV")}
    return env | {"PATH": f"{folder}/.venv/bin:{env['PATH']}"}


def follow_tutorial(clone):
    """Runs all of it; checks where it ends."""
    run_all([line for block in blocks(TUTORIAL) for line in lines_of(block) if line.startswith(COMMANDS)], clone)
    assert (clone / "runs/tiny/report/report.html").exists()
    assert len(list((clone / "runs/tiny").glob("*/epoch-03"))) == 2  # DPO's was stopped and went on


def stock(clone):
    """The files that the other pages name."""
    for name in ("path/to/Llama-3-8B-Instruct", "path/to/Qwen3-8B", "path/to/llama", "runs/demo/base-tiny/model"):
        shutil.copytree(clone / "runs/tiny/model", clone / name)
    pairs, prompts = (
        (clone / f"runs/tiny/{name}.jsonl").read_text().splitlines(keepends=True) for name in ("pairs", "prompts")
    )
    for name, rows in {"pairs": pairs[:48], "other": pairs[48:72], "heldout": pairs[72:88]}.items():
        (clone / f"{name}.jsonl").write_text("".join(rows))
    for name in ("prompts.jsonl", "runs/demo/prompts.jsonl"):
        (clone / name).write_text("".join(prompts[:30]))
    for name in ("first", "second"):
        flags = f"--data pairs.jsonl --eval-pairs 4 --out runs/{name}"
        run(f"python -m engine.train --model path/to/llama {flags}", clone)
    with served():
        flags = f"--endpoint http://127.0.0.1:{PORT}/v1 --model judge --target-model path/to/llama --store s.sqlite"
        run(f"python -m revise score --pairs pairs.jsonl --out scored_pairs.jsonl {flags}", clone)


def served():
    """Who answers at the address that the pages give."""
    models = {
        "reviser": reviser.reply,
        "judge": lambda seen: sets.judge(seen.text),
        "llama": lambda seen: f"The heron. {seen.text[:80]}",
    }
    return serve_models(models, port=PORT)


def follow(page, clone):
    """Runs every block of a page that does not say what it needs."""
    for block in blocks(page):
        if re.search(r"# (needs|takes) ", block):
            continue
        lines = lines_of(block)
        assert not any(line.startswith(FOREIGN) for line in lines), f"{page.name}: say what is needed: {block}"
        chosen = [x for x in lines if x.startswith(COMMANDS) and not x.startswith(SKIPPED) and "..." not in x]
        if any(line.endswith("&") for line in chosen):
            run_all(chosen, clone)
        elif chosen:
            with served():
                run_all(chosen, clone)


@pytest.mark.slow
@pytest.mark.timeout(7200)
def test_every_command_of_the_documentation_works_or_says_what_it_needs(tmp_path):
    """One test, for its servers have the pages' ports."""
    clone = tmp_path / "clone"
    subprocess.run(["git", "clone", "--quiet", str(ROOT), str(clone)], check=True)
    follow_tutorial(clone)
    stock(clone)
    kept = {name: tmp_path / name for name in ("runs", "path")}
    for name, copy in kept.items():
        shutil.copytree(clone / name, copy)
    rows = {path.name: path.read_bytes() for path in clone.glob("*.jsonl")}
    for page in PAGES:
        if page not in (GENERATED, TUTORIAL):
            for name, copy in kept.items():  # each page begins with the same files
                shutil.rmtree(clone / name)
                shutil.copytree(copy, clone / name)
            subprocess.run(["git", "clean", "-fdq", "-e", ".venv", "-e", "runs", "-e", "path"], cwd=clone, check=True)
            for name, content in rows.items():
                (clone / name).write_bytes(content)
            if page.name == "README.md":
                shutil.rmtree(clone / "runs/first")  # README makes it
            follow(page, clone)
