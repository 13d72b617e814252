"""Writes docs/commands.md: what every command says of itself.

    python -m examples.commands_page

A test compares the page with what this would write.
"""

import os
import re
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

DOCS = Path(__file__).resolve().parents[1] / "docs"
COMMANDS = {
    "Train": [
        "engine.train", "engine.plan", "engine.merge", "engine.convert", "engine.publish", "engine.bench",
        "engine.bench_generation",
    ],
    "Make pairs": [
        "revise clair", "revise judge-on-policy", "revise judge-off-policy", "revise stronger-preferred",
        "revise score", "revise show", "data.show", "data.contrast",
    ],
    "Sample and score": ["engine.generate", "engine.score"],
    "Measure": [
        "eval mixeval", "eval alpacaeval", "eval trajectories", "eval contrast", "eval advise", "eval report",
    ],
    "The whole pipeline": ["examples.align", "examples.grid"],
    "Examples": [
        "examples.miniature.demo", "examples.real.demo", "examples.miniature.paper", "examples.miniature.tune",
        "examples.real.checkpoint", "examples.real.figure4", "examples.real.rounding", "examples.fp8",
        "examples.real.lora_demo", "examples.real.lora_search", "examples.real.lora_bases",
        "examples.miniature.study", "examples.real.study",
        "examples.miniature.model", "examples.miniature.score", "examples.miniature.reviser",
        "examples.miniature.teachers", "examples.real.reviser", "examples.real.score",
    ],
}  # fmt: skip
HEAD = """# Commands

Written by `python -m examples.commands_page` from each command's `--help`. Where a command has `--config`, every flag
can also be set in a YAML file, `--config my.yaml`, under its name with `_` for `-`; flags win over the file.
`{None}|X` is an optional value; `[X ...]` takes several values, separated by blanks. Without arguments most commands
print a complete example. The demos, `examples.miniature.paper`, `examples.miniature.tune`, `examples.real.checkpoint`,
`examples.real.lora_search` and both studies start at once. Exit codes: 2 for bad input (with one sentence), 1 if a run
cannot continue, 3 if `--minutes` ran out before all runs were done, 129 if the terminal was closed, 130 after Ctrl-C,
143 after SIGTERM; finished work is saved.

"""


def page() -> str:
    """The page's text."""
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        said = dict(
            zip(every := [c for part in COMMANDS.values() for c in part], pool.map(help_of, every), strict=True)
        )
    links = " · ".join(f"[{command}](#{_anchor(command)})" for command in every)
    door = subprocess.run(["./launch.sh", "help"], cwd=DOCS.parent, capture_output=True, text=True, check=True).stdout
    parts = [HEAD + links, f"## launch.sh\n\n```\n{door.strip()}\n```"]
    for title, commands in COMMANDS.items():
        parts.append(f"## {title}")
        parts += [f"### {command}\n\n```\n{said[command]}\n```" for command in commands]
    return "\n\n".join(parts) + "\n"


def help_of(command: str) -> str:
    """What a command prints for --help, without colours, boxes and this machine's paths."""
    env = os.environ | {"COLUMNS": "100", "NO_COLOR": "1", "TERM": "dumb", "CUDA_VISIBLE_DEVICES": ""}
    asked = [sys.executable, "-m", *command.split(), "--help"]
    done = subprocess.run(asked, cwd=DOCS.parent, capture_output=True, text=True, env=env, check=True)
    lines = [re.sub(r"^[│╭╰] ?| *[│╮╯]$", "", line).rstrip() for line in done.stdout.splitlines()]
    lines = [re.sub(r"^─ (.*?)(?: ─*)?$", r"\1:", re.sub(r"─{2,}", "", line).rstrip()) for line in lines]
    return re.sub(r"\n{3,}", "\n\n", "\n".join(lines)).strip()


def _anchor(command: str) -> str:
    return re.sub(r"[^a-z0-9 _-]", "", command.lower()).replace(" ", "-")


def main() -> None:
    """The command."""
    (DOCS / "commands.md").write_text(page(), encoding="utf-8")


if __name__ == "__main__":
    main()
