"""docs/reproduce.md, followed from the first command to the last as it stands in a fresh clone.

A tiny model is in the place of the 8B one, made-up rows in the published files' layout are where `hf download` leaves
what it brings, and one server on this machine is every model that is asked. `hf`, `git` and `vllm` are programs that
note what they were asked for: nothing is downloaded.
"""

import csv
import json
import math
import os
import re
import subprocess
import sys

import pytest

from eval import alpacaeval_run, mixeval_run
from examples.requests import parts
from revise.loopback import Reply, serve
from tests import tiny
from tests.eval.upstream import TEMPLATE as COMPARISON
from tests.eval.upstream import checkout
from tests.pages import ROOT, blocks
from tests.revise.commands import judged, released, revise

PAGE = ROOT / "docs/reproduce.md"
MODEL, RELEASED, JUDGED = (
    "meta-llama/Meta-Llama-3-8B-Instruct",
    "ContextualAI/ultrafeedback_clair_32k",
    "openbmb/UltraFeedback",
)
SHA = "c" * 40
N, N_HELD_OUT, N_TASKS = 24, 6, 4
SMALLER = {
    "paper.yaml": {"loss: [dpo, kto_pair, sft, apo_zero, apo_down, apo_zero_unpaired]": "loss: [apo_zero, dpo]"},
    "paper-kto.yaml": {"gpus: 8\n": ""},
    "one-gpu.yaml": {"skip_bad_rows: true": "skip_bad_rows: true\nepochs: 2"},
    "eight-gpus.yaml": {"skip_bad_rows: true": "skip_bad_rows: true\nepochs: 2"},
}
"""What of the recipes is smaller here, or takes eight GPUs."""


def stock_hub(home):
    """What `hf download` of the page's three ids leaves in the hub's cache."""
    from pyarrow import Table, parquet

    folder = hub_folder(home, "models", MODEL)
    texts = [
        "Name a bird. The heron is bird number 1, I think. Otters are no birds.",
        "Say a letter. Be short. Answer.",
    ]
    tiny.write_model(folder, texts * 10, max_position_embeddings=192, vocab_size=600)
    (folder / "chat_template.jinja").write_text(tiny.TEMPLATE)
    data = hub_folder(home, "datasets", RELEASED) / "data"
    data.mkdir(parents=True)
    for split, rows in (("train", range(N)), ("test", range(N, N + N_HELD_OUT))):
        table = Table.from_pylist([released(i) for i in rows])
        parquet.write_table(table, data / f"{split}-00000-of-00001.parquet")
    rows = [judged(i) for i in range(N + 10)]
    folder = hub_folder(home, "datasets", JUDGED)
    folder.mkdir()
    tiny.write_rows(folder / "flan.jsonl", rows)


def hub_folder(home, kind, name):
    root = home / "hub" / f"{kind}--{name.replace('/', '--')}"
    (root / "refs").mkdir(parents=True)
    (root / "refs/main").write_text(SHA)
    (root / "snapshots").mkdir()
    return root / "snapshots" / SHA


def stock_checkouts(clone):
    """The two repositories and df_gamed.csv, with a few tasks each."""
    checkout(clone / "MixEval")
    for version in mixeval_run.VERSIONS:
        data = clone / f"MixEval/mix_eval/data/mixeval-{version}/mixeval-hard"
        data.mkdir(parents=True)
        row = {"problem_type": "x", "context": None, "benchmark_name": "DROP"}
        for split, more in (
            ("free-form", {"target": ["a"]}),
            ("multiple-choice", {"target": [0], "options": ["o", "p"]}),
        ):
            queries = {str(i): row | more | {"prompt": f"Why {i}?"} for i in range(N_TASKS)}
            (data / f"{split}.json").write_text(json.dumps(queries))
    rows = [
        {"dataset": "d", "instruction": f"Say {i}.", "output": "word " * (i + 1), "generator": "gpt"}
        for i in range(N_TASKS)
    ]
    for path, text in (
        (alpacaeval_run.OUTPUTS, json.dumps(rows)),
        (f"src/alpaca_eval/{alpacaeval_run.TEMPLATE}", COMPARISON),
    ):
        (clone / "alpaca_eval" / path).parent.mkdir(parents=True)
        (clone / "alpaca_eval" / path).write_text(text)
    columns = ["model", "index", "preference", "std_delta_len", "instruction_difficulty", "not_gamed_baseline"]
    with open(clone / "df_gamed.csv", "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(columns)
        for model, sign in (("verbose", -1), ("concise", 1)):
            for i in range(N_TASKS):
                writer.writerow([model, i, 0.5 - 0.3 * sign, sign * (0.5 + i / N_TASKS), 0.1 * i - 0.2, False])


def reply(seen):
    """Every model that the page asks: who samples, revises, picks, judges and compares."""
    body, system = seen.body, seen.body["messages"][0]["content"]
    if body.get("logprobs"):
        top = [{"token": t, "logprob": math.log(p)} for t, p in (("m", 0.3 + 0.1 * (seen.number % 5)), ("M", 0.2))]
        content = {"token": "m", "logprob": -0.5, "top_logprobs": top}
        choice = {"index": 0, "message": {"role": "assistant", "content": "m"}, "finish_reason": "length"}
        usage = {"prompt_tokens": 9, "completion_tokens": 1}
        return Reply.json({"model": "a", "choices": [choice | {"logprobs": {"content": [content]}}], "usage": usage})
    if system == "Extract.":
        return Reply.chat("[[A]]" if seen.text.endswith("\nA: A\n") else "[[B]]")
    if system == "Judge.":
        return Reply.chat("[[1.0]]" if "\nA: a\nVerdict" in seen.text else "[[0.4]]")
    if body["model"] == "llama":
        return Reply.chat(f"The otter is bird number {seen.number}.")
    if "{student_solution_1}" in seen.text:
        _, first, second = parts(seen.text)
        return Reply.chat(f"The longer, or later, one.\n\n[{1 if (len(first), first) > (len(second), second) else 2}]")
    return revise(seen) if "{student_solution}: " in seen.text else Reply.chat(f"The heron is bird {seen.number}.")


def write_programs(folder):
    """`hf`, `git` and `vllm`: a line of what each was asked for goes into a log."""
    folder.mkdir()
    for name in ("hf", "git", "vllm"):
        path = folder / name
        path.write_text(f'#!/bin/sh\necho {name} "$@" >> "{folder}/asked.txt"\n')
        path.chmod(0o755)
    return folder


@pytest.mark.slow
@pytest.mark.timeout(2400)
def test_the_page_is_followed_from_the_first_command_to_the_last(tmp_path):
    clone, home = tmp_path / "clone", tmp_path / "hf"
    subprocess.run(["git", "clone", "--quiet", str(ROOT), str(clone)], check=True)
    (clone / ".venv").symlink_to(sys.prefix)
    pytest.importorskip("pyarrow")
    stock_hub(home)
    stock_checkouts(clone)
    for name, changes in SMALLER.items():
        change(clone / "examples/recipes" / name, changes)
    programs = write_programs(tmp_path / "programs")
    kept = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "VIRTUAL_ENV")}
    env = kept | {
        "PATH": f"{programs}:{clone}/.venv/bin:{kept['PATH']}",
        "HF_HOME": str(home),
        "HF_HUB_OFFLINE": "1",
        "OPENAI_API_KEY": "test",
    }
    said = []
    with serve(reply) as server:
        here = {f"{address}/v1": server.base for address in ("https://api.openai.com", "http://localhost:8001")}
        for path in (clone / "examples/recipes").glob("*.yaml"):
            change(
                path, here | {"http://localhost:8000/v1": server.base, "--preset paper": "--preset paper --any-data"}
            )
        for block in blocks(PAGE):
            script = block.replace("https://api.openai.com/v1", server.base)
            script = script.replace("--preset paper", "--preset paper --any-data")  # or checksums would refuse our rows
            done = subprocess.run(
                ["bash", "-euo", "pipefail", "-c", script],
                cwd=clone, env=env, capture_output=True, text=True, check=False, timeout=1500,
            )  # fmt: skip
            assert done.returncode == 0, (script, done.stdout[-1500:], done.stderr[-3000:])
            said.append(done.stdout + done.stderr)
    check_asked((programs / "asked.txt").read_text())
    check_left(clone)


def change(path, changes):
    """Other words in a file, where they are in it."""
    text = path.read_text()
    for before, after in changes.items():
        text = text.replace(before, after)
    path.write_text(text)


def check_asked(asked):
    """What was to be downloaded is what stood ready."""
    assert re.findall(r"^hf download (\S+)", asked, re.MULTILINE) == [MODEL, RELEASED, JUDGED, "tatsu-lab/alpaca_eval"]
    assert re.findall(r"^git clone \S+/(\w+)$", asked, re.MULTILINE) == ["MixEval", "alpaca_eval"]
    assert re.findall(r"^vllm serve (\S+)", asked, re.MULTILINE) == [MODEL]


def check_left(clone):
    """The four sets, a run of each cell with a score of every checkpoint, and the report with both grids' runs."""
    for name in ("judge-on-policy", "judge-off-policy", "stronger-preferred"):
        assert len((clone / f"{name}.jsonl").read_text().splitlines()) == N
    runs = sorted(path.parent for path in clone.glob("runs/paper-8b*/seed-0/*/*/metrics.jsonl"))
    assert len(runs) == 4 * 2 + 4
    for run in runs:
        scores = [json.loads(line) for line in (run / "eval/scores.jsonl").read_text().splitlines()]
        of_mixeval = {line["checkpoint"] for line in scores if line["benchmark"].startswith("mixeval")}
        assert of_mixeval == {"base", "epoch-01", "epoch-02"}, run
        is_kto = "paper-8b-kto" in str(run)
        assert is_kto != any(line["benchmark"].startswith("alpaca") for line in scores), run
        lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
        assert "eval_loss" in lines[-1]
    page = (clone / "runs/paper-8b/report/report.html").read_text()
    for word in ("apo_zero", "dpo", "kto", "AlpacaEval"):
        assert word in page
