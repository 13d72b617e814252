"""From prompts to the report by one command, killed in between, served, with adapters, in rounds."""

import contextlib
import json
import os
import re
import signal
import sqlite3
import subprocess
import sys
import time

import pytest
import yaml

from examples.children import MARK
from tests import tiny
from tests.examples.align_recipes import JUDGED, SERVED, align, asked, mixeval_checkout, small

COUNTS = ("step", "epoch", "loss", "rewards/chosen", "logps/rejected", "grad_norm", "learning_rate")


def metrics(folder):
    """Of every step of the run, what is not the clock's."""
    lines = map(json.loads, (folder / "o/round-1/runs/seed-0/clair/dpo/metrics.jsonl").read_text().splitlines())
    return [{name: line[name] for name in COUNTS} for line in lines if "loss" in line]


def files_of(folder):
    """The bytes that have no time in them: pairs without provenance, weights, scores."""
    run = folder / "o/round-1/runs/seed-0/clair/dpo"
    made = {str(path.relative_to(folder)): path.read_bytes() for path in sorted(run.glob("epoch-*/*"))}
    rows = (folder / "o/round-1/pairs/clair.scored.jsonl").read_text().splitlines()
    made["pairs"] = [
        [row[name] for name in ("prompt", "chosen", "rejected", "own_score")] for row in map(json.loads, rows)
    ]
    return made | {"scores": (run / "eval/scores.jsonl").read_text()}


def killed(folder, when):
    """The command killed with -9 once `when` says so."""
    command = [sys.executable, "-m", "examples.align", "recipe.yaml"]
    with open(folder / "log", "a") as log:
        process = subprocess.Popen(command, cwd=folder, env=tiny.environment(), stderr=log)
        deadline = time.monotonic() + 300
        while not when() and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.02)
        assert process.poll() is None, (folder / "log").read_text()
        process.kill()
        process.wait()


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_killed_twice_it_comes_to_the_same_and_asks_and_trains_nothing_again(tmp_path):
    calm, hard = small(tmp_path / "calm"), small(tmp_path / "hard")
    done = align(calm)
    assert done.returncode == 0, done.stderr
    page = (calm / "o/report/report.html").read_text()
    assert done.stdout.strip().endswith("o/report/report.html") and "The pairs, and which objective they fit" in page
    assert "advice for clair: --loss" in done.stderr
    n = len(asked(calm))
    pairs = (calm / "o/round-1/pairs/clair.jsonl").read_text().splitlines()
    assert n == len(set(asked(calm))) == len(pairs) + 2 * len(pairs) and len(pairs) > 20  # a revision, two grades each

    killed(hard, lambda: (hard / "asked.txt").is_file() and len(asked(hard)) >= 10)
    run = hard / "o/round-1/runs/seed-0/clair/dpo"
    killed(hard, lambda: (run / "metrics.jsonl").is_file() and len(metrics(hard)) >= 6)
    states = [int(found[1]) for path in (run / "state").iterdir() if (found := re.fullmatch(r"step-(\d+)", path.name))]
    again = align(hard)
    assert again.returncode == 0, again.stderr
    assert "pairs (clair): taken as it was" in again.stderr
    repeated = len(asked(hard)) - len(set(asked(hard)))
    assert set(asked(hard)) == set(asked(calm)) and repeated <= 4  # at most those in flight
    said = (hard / "o/round-1/runs/seed-0/clair/dpo.log").read_text()
    gone_on = re.findall(r"resumes after step (\d+)", said)
    assert states and len(gone_on) == 1 and int(gone_on[0]) >= max(states), said  # from the newest state
    assert metrics(hard) == metrics(calm) and len(metrics(calm)) == 15
    assert files_of(hard) == files_of(calm)
    n_lines = (hard / "asked.txt").read_text().count("\n")
    third = align(hard)
    assert third.returncode == 0 and third.stderr.count("taken as it was") == 6, third.stderr
    assert (hard / "asked.txt").read_text().count("\n") == n_lines  # whoever makes pairs may be gone by then


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_what_it_takes_is_told_and_nothing_is_asked(tmp_path):
    folder = small(tmp_path / "a")
    done = align(folder, "--dry-run")
    assert done.returncode == 0, done.stderr
    assert not (folder / "asked.txt").exists() and not (folder / "o/round-1").exists()
    for words in (
        "24 answers of the model, drawn here, of 12 tokens at most",
        "clair: 24 requests",
        "score: 48 requests",
        "(none for grades (clair): price_in, price_out)",
        "training (1 run)",
        "dpo on clair:",
        "evaluation (trajectories)",
        "in all: 72 requests, $",
    ):
        assert words in done.stdout, (words, done.stdout)


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize(
    ("sections", "words"),
    [
        ({"revise": {"clair": {"prompts": "none.jsonl", "endpoint": ["{teacher}"], "model": "reviser"}}}, "none.jsonl"),
        ({"train": {"model": "m", "loss": "odpo", "lr": 1e-3}, "revise": {"score": {}}}, "revise: score: "),
        ({"train": {"gpu_memory": 0.01}}, "recipe.yaml: train: the run needs"),
        ({"eval": {"mixeval": {"mixeval": "nowhere", "judge": "j", "judge_endpoint": ["{teacher}"]}}}, "nowhere"),
        ({"train": {"model": "other"}}, "recipe.yaml: train: "),
        ({"revise": {"score": {"endpoint": ["{teacher}"], "model": "nobody"}}}, "revise: score: "),
        (
            {
                "revise": {
                    "long": {
                        "recipe": "clair",
                        "prompts": "prompts.jsonl",
                        "endpoint": ["{teacher}"],
                        "model": "reviser",
                        "target_max_tokens": 300,
                    }
                }
            },
            "dpo on long: prompts.jsonl:1: a pair to be made of this prompt, with answers as long as they may be: ",
        ),
        ({"eval": {"trajectories": {"data": "nowhere.jsonl"}}}, "eval: trajectories: nowhere.jsonl"),
        (
            {"eval": {"advise": {"judge_endpoint": ["{teacher}"], "judge": "judge", "judge_template": "no.txt"}}},
            "eval: advise: --judge-template: no.txt cannot be read",
        ),
        ({"revise": {"given": {"recipe": "judge-off-policy", "prompts": "prompts.jsonl"}}}, "revise: given: "),
    ],
    ids=[
        "prompts",
        "grades",
        "memory",
        "a checkout",
        "a model",
        "a name at the server",
        "context",
        "no ratings",
        "rows to follow",
        "wording",
    ],
)
def test_what_cannot_work_is_told_before_an_answer_is_drawn(tmp_path, sections, words):
    folder = small(tmp_path / "a", **sections)
    done = align(folder)
    assert done.returncode == 2 and words in done.stderr and "Traceback" not in done.stderr, done.stderr
    assert not (folder / "o/round-1").exists()
    assert not (folder / "asked.txt").exists() or not asked(folder)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_rows_that_are_no_pairs_are_trained_on_and_their_contrast_is_not_measured(tmp_path):
    train = {"loss": "kto", "data": ["mine=labels.jsonl"], "skip_bad_rows": True, "epochs": 1, "eval_pairs": 0}
    folder = small(tmp_path / "a", revise=None, train=train, eval={"trajectories": None})
    said = yaml.safe_load((folder / "recipe.yaml").read_text())
    del said["revise"], said["eval"]
    (folder / "recipe.yaml").write_text(yaml.safe_dump(said))
    rows = [{"prompt": f"Why {i}?", "completion": f"The otter {i}.", "label": i % 2 == 0} for i in range(12)]
    (folder / "labels.jsonl").write_text("".join(json.dumps(row) + "\n" for row in [*rows, {"prompt": 3}]))
    done = align(folder)
    assert done.returncode == 0, done.stderr
    assert "contrast (mine): not measured (" in done.stderr
    assert (folder / "o/report/report.html").is_file() and (folder / "o/round-1/runs/seed-0/mine/kto/epoch-01").is_dir()


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_rounds_of_an_adapter_are_served_and_scored_by_a_judge(tmp_path):
    train = {"lora_rank": 2, "lora_alpha": 4, "epochs": 1}
    folder = small(tmp_path / "a", rounds=2, serve=SERVED, train=train, eval={"mixeval": JUDGED})
    mixeval_checkout(folder / "MixEval")
    done = align(folder)
    assert done.returncode == 0, done.stderr
    first, second = (folder / f"o/round-{n}/runs/seed-0/clair/dpo" for n in (1, 2))
    said = yaml.safe_load((second / "config.yaml").read_text())
    assert said["adapter"] == "o/round-1/runs/seed-0/clair/dpo/epoch-01" and said["lora_rank"] is None
    assert said["model"] == "m"
    lines = [json.loads(line) for line in (second / "metrics.jsonl").read_text().splitlines()]
    assert lines[0]["rewards/chosen"] == 0.0 == lines[0]["rewards/rejected"]  # the reference is where the round began
    served_to = [line.split() for line in (folder / "served.txt").read_text().splitlines()]
    assert {base for *_, base in served_to} == {"m"}
    whose = [checkpoint for _, _, is_tried, checkpoint, _ in served_to if is_tried == "False"]
    assert set(whose) == {"m", *(f"o/round-{n}/runs/seed-0/clair/dpo/epoch-01" for n in (1, 2))}
    rejected = [
        json.loads(line)["rejected"][-1]["content"]
        for line in (folder / "o/round-2/pairs/clair.jsonl").read_text().splitlines()
    ]
    assert all("The otter of epoch-01" in text for text in rejected)  # the newest checkpoint's own answers
    for run, names in ((first, {"base", "epoch-01"}), (second, {"base", "epoch-01"})):
        found = [json.loads(line) for line in (run / "eval/scores.jsonl").read_text().splitlines()]
        assert {line["checkpoint"] for line in found if line["benchmark"] == "mixeval-hard"} == names
    page = (folder / "o/report/report.html").read_text()
    assert "round 1: clair" in page and "round 2: clair" in page


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("stage", ["pairs", "training"])
def test_a_signal_ends_everything_that_was_started_and_keeps_it(tmp_path, number, stage):
    """While the reviser is asked, whose server runs beside, and while a run trains."""
    folder = small(tmp_path / "a", train={"epochs": 400})
    path, store = folder / "o/round-1/runs/seed-0/clair/dpo/metrics.jsonl", folder / "asked.txt"
    seen = {
        "pairs": lambda: store.is_file() and len(asked(folder)) >= 4,
        "training": lambda: path.is_file() and len(metrics(folder)) >= 3,
    }[stage]
    command = [sys.executable, "-m", "examples.align", "recipe.yaml"]
    with open(folder / "log", "w") as log:
        process = subprocess.Popen(command, cwd=folder, env=tiny.environment(), stderr=log)
        deadline = time.monotonic() + 300
        while not seen() and time.monotonic() < deadline:
            time.sleep(0.02)
        n_left = len(left_of(folder))
        process.send_signal(number)
        code = process.wait(120)
    assert code == 128 + number and "Traceback" not in (folder / "log").read_text()
    assert n_left >= (2 if stage == "pairs" else 1) and not left_of(folder)
    if stage == "training":
        assert (path.parent / "state").is_dir()
    else:
        with contextlib.closing(sqlite3.connect(folder / "o/answers.sqlite")) as answers:
            assert answers.execute("SELECT count(*) FROM answers").fetchone()[0] >= 4


def left_of(folder):
    """Processes that the recipe in a folder has started."""
    mark = f"{MARK}={(folder / 'o').resolve()}".encode()
    return [p for p in os.listdir("/proc") if p.isdigit() and mark in environ_of(p).split(b"\0")]


def environ_of(process):
    try:
        with open(f"/proc/{process}/environ", "rb") as file:
            return file.read()
    except OSError:
        return b""
