"""The real command in a real process, and a reviser for it to ask."""

import json
import os
import subprocess
import sys
from pathlib import Path

from revise.loopback import Reply
from tests import forks

ROOT = Path(__file__).parents[2]
CLEAN = {name: value for name, value in os.environ.items() if name not in ("OPENAI_API_KEY", "TARGET_API_KEY")}


def write_rows(path, rows):
    """A .jsonl file."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def read_rows(path):
    """What a .jsonl file holds."""
    return [json.loads(line) for line in path.read_bytes().splitlines()]


def prompts(path, n):
    """n prompts, each with the model's own answer."""
    return write_rows(
        path, [{"prompt": f"Name bird {i}.", "response": f"The otter is bird number {i}, I think."} for i in range(n)]
    )


def released(i, **more):
    """A row as the released CLAIR pairs have it: the prompt is text, the answers are whole conversations."""
    question = {"role": "user", "content": f"Name bird {i}."}
    return {
        "prompt": f"Name bird {i}.",
        "chosen": [question, {"role": "assistant", "content": f"The heron is bird number {i}, I think."}],
        "rejected": [question, {"role": "assistant", "content": f"The otter is bird number {i}, I think."}],
        "rational": "Otters are no birds.",
    } | more


def judged(i, **more):
    """A row as UltraFeedback has it: three answers, the first the best."""
    answers = [{"model": f"m{k}", "response": f"answer {k} to {i}", "overall_score": 9 - k} for k in range(3)]
    return {"instruction": f"Name bird {i}.", "completions": answers, "source": "flan"} | more


def revise(seen):
    """A well-behaved reviser: otters become herons."""
    student = seen.text.partition("{student_solution}: ")[2].partition("\n\n-----")[0]
    better = student.replace("otter", "heron")
    text = f"{{teacher_reasoning}}: otters are no birds.\n\n{{corrected_student_solution}}:\n{better}"
    return Reply.chat(text, usage=(100, 50))


def command(name, folder, base, *more, rows=None):
    """The arguments of a recipe whose files are in a folder."""
    made = [sys.executable, "-m", "revise", name, "--prompts", rows or folder / "prompts.jsonl"]
    made += ["--out", folder / "pairs.jsonl", "--store", folder / "store.sqlite", "--model", "reviser"]
    made += ["--endpoint", base] if base else []
    return [*map(str, made), *map(str, more)]


def run(arguments, *, env=None, timeout=120, **more):
    """The finished process. more: of subprocess.run, for one that is started from nothing."""
    if arguments[:2] == [sys.executable, "-m"] and not more:
        return forks.run(arguments, cwd=ROOT, env=CLEAN | (env or {}), timeout=timeout)
    return subprocess.run(
        arguments,
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
        env=CLEAN | (env or {}),
        **more,
    )


def start(arguments, *, env=None):
    """The running process, in a group of its own."""
    return subprocess.Popen(
        arguments,
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=CLEAN | (env or {}),
        start_new_session=True,
    )
