"""A recipe of a tiny model for align, the finished command, and what its servers were asked."""

import json
import subprocess
import sys

import yaml

from tests import tiny
from tests.eval.upstream import checkout

PROGRAM = "{python} -m tests.examples.align_servers"
TEXTS = ["Why is the heron a bird of the marsh?", "The otter says so.", "Say a letter. Be short."] * 3


def small(folder, **sections):
    """A recipe of a tiny model in a folder, whose paths are relative to it; sections are added to."""
    folder.mkdir()
    tiny.write_model(folder / "m", texts=TEXTS, max_position_embeddings=256)
    prompts = [{"prompt": f"Why is the heron a bird {i}?"} for i in range(24)]
    (folder / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in prompts))
    shared = {"endpoint": ["{teacher}"], "target_max_tokens": 12, "concurrency": 4}
    said = {
        "out": "o",
        "teacher": f"{PROGRAM} teacher --port {{port}} --log asked.txt",
        "revise": {
            "clair": {**shared, "prompts": "prompts.jsonl", "model": "reviser", "min_length_ratio": 0.01,
                      "max_length_ratio": 100, "cut_answers": "keep", "price_in": 1, "price_out": 2},
            "score": {**shared, "model": "grader"},
        },
        "train": {"model": "m", "loss": "dpo", "epochs": 3, "batch_size": 4, "lr": 1e-3, "state_every": 2,
                  "eval_pairs": 4},
        "score": f"{PROGRAM} score {{run}}",
        "eval": {"trajectories": {"answers": 2, "max_new_tokens": 6}},
    }  # fmt: skip
    for name, more in sections.items():
        said[name] = said[name] | more if isinstance(more, dict) and name in said else more
    (folder / "recipe.yaml").write_text(yaml.safe_dump(json.loads(json.dumps(said)), sort_keys=False))
    return folder


def align(folder, *more):
    """The finished command."""
    command = [sys.executable, "-m", "examples.align", "recipe.yaml", *more]
    return subprocess.run(command, cwd=folder, env=tiny.environment(), capture_output=True, text=True, check=False)


def asked(folder):
    """Requests that the teacher got, without those that only try whether it answers."""
    lines = (folder / "asked.txt").read_text().split("\n")[:-1]
    return [line.split()[1] for line in lines if line.split()[2] == "False"]


SERVED = f"{PROGRAM} model --port {{port}} --log served.txt --name {{name}} --checkpoint {{checkpoint}} --base {{base}}"
"""A model behind a server, which answers in sentences."""


def mixeval_checkout(folder):
    """A checkout of MixEval with six queries of each kind, in a folder."""
    data = checkout(folder) / "mix_eval/data/mixeval-2024-06-01/mixeval-hard"
    data.mkdir(parents=True)
    row = {"problem_type": "x", "context": None, "benchmark_name": "DROP"}
    rows = [row | {"prompt": f"Why {i}?"} for i in range(6)]
    splits = {
        "free-form": {str(i): r | {"target": ["a"]} for i, r in enumerate(rows)},
        "multiple-choice": {str(i): r | {"target": [i % 2], "options": ["o", "p"]} for i, r in enumerate(rows)},
    }
    for name, queries in splits.items():
        (data / f"{name}.json").write_text(json.dumps(queries))


JUDGED = {"mixeval": "MixEval", "judge_endpoint": ["{teacher}"], "judge": "judge", "any_data": True,
          "version": ["2024-06-01"]}  # fmt: skip
"""How align measures with that checkout."""
