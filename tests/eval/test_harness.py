"""An epoch's folder goes as it is into lm-evaluation-harness: pip install -e '.[harness]' brings it."""

import importlib.util
import json
import os
import subprocess
import sys

import numpy as np
import pytest

from data.rows import open_model
from data.rows.examples import Example
from data.text import Message
from engine.config import TrainConfig
from engine.score import score_under
from engine.train import run as train
from tests import tiny

TASK = """
task: herons
dataset_path: json
dataset_kwargs: {data_files: {test: DATA}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{question}}"
doc_to_choice: "{{choices}}"
doc_to_target: label
target_delimiter: ""
metric_list: [{metric: acc}]
"""
CHOICES = ["marsh", "barn", "river"]


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("lm_eval") is None, reason="lm-evaluation-harness is not installed")
def test_an_epoch_is_measured_by_lm_evaluation_harness_as_by_the_engine(tmp_path):
    base = tiny.write_model(tmp_path / "base", texts=["Where is the heron? In the marsh, the barn, the river."])
    pairs = tiny.write_rows(tmp_path / "pairs.jsonl", [{"prompt": "a", "chosen": "b", "rejected": "c"}] * 4)
    done = train(TrainConfig(model=str(base), data=(str(pairs),), epochs=1, lr=1e-3, out=str(tmp_path / "run")))
    epoch = done.checkpoints[-1]
    docs = [{"question": f"Where is heron {i}?", "choices": CHOICES, "label": i % 3} for i in range(6)]
    (tmp_path / "tasks").mkdir()
    data = tiny.write_rows(tmp_path / "docs.jsonl", docs)
    (tmp_path / "tasks/herons.yaml").write_text(TASK.replace("DATA", str(data)))
    command = [sys.executable, "-m", "lm_eval", "--model", "hf", "--model_args", f"pretrained={epoch},dtype=float32"]
    command += [
        "--apply_chat_template",
        "--tasks",
        "herons",
        "--include_path",
        str(tmp_path / "tasks"),
        "--device",
        "cpu",
    ]
    command += ["--output_path", str(tmp_path / "out"), "--log_samples"]
    env = os.environ | {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "HF_HOME": str(tmp_path / "hf")}
    found = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False, env=env)
    assert found.returncode == 0, found.stderr[-3000:]
    (samples,) = (tmp_path / "out").rglob("samples_herons_*.jsonl")
    rows = sorted(map(json.loads, samples.read_text().splitlines()), key=lambda row: row["doc_id"])
    theirs = [[float(answer[0][0]) for answer in row["resps"]] for row in rows]
    folder, chat = open_model(str(epoch))
    (blank,) = chat.tokenizer.encode(["\n\n"], goes_on=True)  # ends the prompt; the harness counts it to the answer
    answers = [np.array(blank + ids, dtype=np.int32) for ids in chat.tokenizer.encode(CHOICES, goes_on=True)]
    prompts = [chat.prompt_ids([Message("user", str(doc["question"]))]) for doc in docs]
    assert all(prompt[-len(blank) :] == blank for prompt in prompts)
    examples = [Example("", np.array(prompt[: -len(blank)], dtype=np.int32), tuple(answers)) for prompt in prompts]
    ours = [logps.tolist() for logps in score_under(folder, examples)]
    np.testing.assert_allclose(theirs, ours, rtol=0, atol=1e-3)
    (result,) = (tmp_path / "out").rglob("results_*.json")
    accuracy = np.mean([int(np.argmax(o)) == doc["label"] for o, doc in zip(ours, docs, strict=True)])
    assert json.loads(result.read_text())["results"]["herons"]["acc,none"] == pytest.approx(accuracy)
