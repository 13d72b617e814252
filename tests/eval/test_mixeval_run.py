"""A pass over MixEval-Hard by the real command: a tiny model, made-up queries, a judge behind a real server."""

import hashlib
import json
import os
import random
import signal
import subprocess
import sys

import numpy as np
import pytest

from eval import mixeval_run
from revise.loopback import Reply, serve
from tests import tiny
from tests.eval.test_mixeval import checkout
from tests.revise.commands import read_rows, run, start

TEXTS = ["Why is the heron a bird of the marsh?", "Say a letter. Be short.", "Question: Answer."]


def entries(n=24):
    """Both splits; every third query stands twice."""
    rows = [
        {
            "problem_type": "x",
            "context": None,
            "prompt": f"Why {i - i % 3 // 2}?",
            "benchmark_name": ["DROP", "AGIEval"][i % 2],
        }
        for i in range(n)
    ]
    return {
        "free-form": {str(i): row | {"target": ["a"]} for i, row in enumerate(rows)},
        "multiple-choice": {str(i): row | {"target": [i % 2], "options": ["o", "p"]} for i, row in enumerate(rows)},
    }


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """(checkout, a run with two epochs)."""
    folder = tmp_path_factory.mktemp("mixeval")
    checkout(folder / "MixEval")
    for version in mixeval_run.VERSIONS:
        data = folder / f"MixEval/mix_eval/data/mixeval-{version}/mixeval-hard"
        data.mkdir(parents=True)
        for split, queries in entries().items():
            (data / f"{split}.json").write_text(json.dumps(queries))
    for epoch in ("epoch-01", "epoch-02"):
        tiny.write_model(folder / "run" / epoch, texts=TEXTS, max_position_embeddings=160)
    return folder


def judge(seen):
    """Says what the hash of the request says; of one in twelve nothing that can be read."""
    h = int(hashlib.sha256(json.dumps(seen.body["messages"]).encode()).hexdigest()[:8], 16)
    if h % 12 == 0:
        return Reply.chat("I cannot say.")
    is_choice = seen.body["messages"][0]["content"] == "Extract."
    return Reply.chat(f"[[{'AB'[h % 2]}]]" if is_choice else f"[[{h % 11 / 10}]]")


def command(made, out, base, *more):
    arguments = [sys.executable, "-m", "eval", "mixeval", made / "run", "--mixeval", made / "MixEval", "--any-data"]
    arguments += [
        "--store",
        out / "judge.sqlite",
        "--out",
        out / "eval",
        "--judge-endpoint",
        base,
        "--judge",
        "j",
        *more,
    ]
    return [str(a) for a in arguments]


def test_a_pass_is_scored_twice_alike_and_in_upstreams_layout(made, tmp_path):
    with serve(judge) as server:
        arguments = command(made, tmp_path, server.base, "--version", "2024-06-01")
        done = run(arguments)
        assert done.returncode == 0, done.stderr
        n, first = server.n_seen, (tmp_path / "eval/scores.jsonl").read_bytes()
        assert run(arguments).returncode == 0
        assert server.n_seen == n and (tmp_path / "eval/scores.jsonl").read_bytes() == first
    folder = tmp_path / "eval/epoch-01/mixeval_hard/2024-06-01"
    assert sorted(path.name for path in folder.iterdir()) == [
        "epoch-01_close_freeform_hard.jsonl", "epoch-01_close_multichoice_hard.jsonl",
        "judge_results_ff_model_judge_j.jsonl", "judge_results_mp_model_judge_j.jsonl", "score.json",
    ]  # fmt: skip
    judged = read_rows(folder / "judge_results_ff_model_judge_j.jsonl")
    assert len(judged) == 24 and judged[3]["formated_input" if "formated_input" in judged[3] else "prompt"]
    lines = read_rows(tmp_path / "eval/scores.jsonl")
    assert {line["checkpoint"] for line in lines} == {"epoch-01", "epoch-02"}
    overall = next(line for line in lines if line["metric"] == "table4_compat/overall")
    ff = round(sum(row["judge_score"] for row in judged) / 24, 3)
    choices = read_rows(folder / "judge_results_mp_model_judge_j.jsonl")
    mc = round(sum("AB".index(row["judge_option"]) == row["target"][0] for row in choices) / 24, 3)
    assert overall["value"] == pytest.approx((ff + mc) / 2, abs=1e-12) and 0 < overall["stderr"] < 0.2
    assert overall["n_fallbacks"] == sum("fallback" in row for row in judged + choices)
    assert f"epoch-01  2024-06-01  {100 * overall['value']:.2f}" in done.stdout


@pytest.mark.slow
def test_a_judge_that_fails_and_a_pass_that_is_killed_five_times_give_the_same_scores(made, tmp_path):
    for name in ("calm", "hard"):
        (tmp_path / name).mkdir()
    more = ["--version", "2024-06-01", "--rounds", "2"]
    with serve(judge) as server:
        assert run(command(made, tmp_path / "calm", server.base, *more)).returncode == 0
    rng = random.Random(0)

    def hard(seen):
        return (
            Reply.error(503, "busy", retry_after="0.01")
            if rng.random() < 0.2
            else judge(seen).after(0.1 * rng.random())
        )

    with serve(hard) as server:
        arguments = command(made, tmp_path / "hard", server.base, *more, "--concurrency", "4")
        for _ in range(5):
            running = start(arguments)
            try:
                running.communicate(timeout=2 + 4 * rng.random())
            except subprocess.TimeoutExpired:
                os.killpg(running.pid, signal.SIGKILL)
                running.communicate()
        assert run(arguments).returncode == 0
    calm, after = (read_rows(tmp_path / name / "eval/scores.jsonl") for name in ("calm", "hard"))
    assert calm == after and len(calm) > 10


def test_data_that_is_not_the_published_is_refused(made, tmp_path):
    arguments = [a for a in command(made, tmp_path, "http://127.0.0.1:9/v1") if a != "--any-data"]
    done = run(arguments)
    assert done.returncode == 2 and "free-form.json: not the published data" in done.stderr


@pytest.mark.parametrize(
    ("more", "said"),
    [(["--version", "2023-01-01"], "2023-01-01"), (["--rounds", "0"], "--rounds"),
     (["--mixeval", "/nowhere"], "MixEval checkout"), (["--endpoint", "http://localhost/v1"], "--model")],
)  # fmt: skip
def test_bad_input_is_one_sentence(made, tmp_path, more, said):
    done = run(command(made, tmp_path, "http://127.0.0.1:9/v1", *more))
    assert done.returncode == 2 and said in done.stderr and len(done.stderr.strip().splitlines()) <= 2


def test_a_served_model_answers_in_the_place_of_a_checkpoint(made, tmp_path):
    asked = []
    with serve(lambda seen: asked.append(seen.body) or Reply.chat("It is A.")) as model, serve(judge) as server:
        arguments = command(made, tmp_path, server.base, "--version", "2024-08-11", "--preset", "paper")
        arguments[4] = "served"
        done = run([*arguments, "--endpoint", model.base, "--model", "llama"])
        assert done.returncode == 0, done.stderr
    assert asked[0]["temperature"] == 0.6 and asked[0]["top_p"] == 0.9 and asked[0]["max_tokens"] == 512
    assert len(asked) == len({json.dumps(body) for body in asked}) < 48  # equal queries are asked once
    assert read_rows(tmp_path / "eval/scores.jsonl")[0]["checkpoint"] == "served"


def test_copies_of_a_query_widen_the_error():
    same = {"free-form": {str(i): {"prompt": "p", "target": ["a"]} for i in range(40)}}
    each = {"free-form": {str(i): {"prompt": f"p{i}", "target": ["a"]} for i in range(40)}}
    half = {"free-form": {str(i): {"prompt": f"p{i // 2}", "target": ["a"]} for i in range(40)}}
    values = {"free-form": {str(i): float(i // 2 % 2) for i in range(40)}}
    naive = np.std([i // 2 % 2 for i in range(40)]) / np.sqrt(40)
    assert mixeval_run.standard_error(same, values) == 0  # one cluster: drawn every time
    assert mixeval_run.standard_error(each, values) == pytest.approx(naive, rel=0.1)
    assert mixeval_run.standard_error(half, values) == pytest.approx(naive * np.sqrt(2), rel=0.1)
