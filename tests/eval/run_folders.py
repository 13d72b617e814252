"""Folders of runs as evaluators leave them, and what a report made of them."""

import csv
import json

from eval import scores
from eval.runs import Run

GAINS = [0.02, 0.05, -0.01]


def line(checkpoint, value, metric="overall", benchmark="quiz", **more):
    return {"checkpoint": checkpoint, "benchmark": benchmark, "version": "v", "metric": metric, "value": value,
            "stderr": 0.01, "n": 100, "judge": "j"} | more  # fmt: skip


def run_folder(path, *, loss="dpo", data="pairs.jsonl", lines=None, n_steps=4, words="said"):
    path.mkdir(parents=True)
    (path / "config.yaml").write_text(f"model: m\nloss: {loss}\ndata:\n- {json.dumps(data)}\nepochs: 3\n")
    made = [line("base", 0.4), *(line(f"epoch-{i:02d}", 0.4 + g) for i, g in enumerate(GAINS, 1))]
    made += [line("base", 0.5, "parts"), line("epoch-02", 0.7, "parts")]
    scores.write(path / "eval/scores.jsonl", made if lines is None else lines)
    with open(path / "metrics.jsonl", "w") as file:
        for i in range(1, n_steps + 1):
            values = {"step": i, "epoch": i / 2, "rewards/chosen": 0.1 * i, "rewards/rejected": -0.1 * i}
            values |= {"perf/step_seconds": 90.0, "perf/pairs_per_second": 0.5}
            values |= {f"eval_logps/{s}": -10.0 - i for s in ("chosen", "rejected")} if i % 2 == 0 else {}
            file.write(json.dumps(values) + "\n")
    with open(path / "eval/samples.jsonl", "w") as file:
        for checkpoint in ("base", "epoch-01", "epoch-02"):
            file.write(
                json.dumps({"checkpoint": checkpoint, "prompt": words, "response": f"{words} {checkpoint}"}) + "\n"
            )
    return path


def cells(path):
    with open(path, newline="") as file:
        return list(csv.reader(file))


def run_of(metrics, lines=(), **settings):
    return Run(
        "r",
        "dpo",
        "d",
        list(lines),
        [{"step": i, "epoch": float(i), **x} for i, x in enumerate(metrics, 1)],
        [],
        settings,
    )
