"""Which variant of APO: the interval, the rule and the command."""

import json
import re
import subprocess
import sys

import numpy as np
import pytest

from data.rows.examples import Example
from data.rows.records import Ratings
from eval import advise
from revise.loopback import Reply, serve
from system.errors import InputError
from tests import forks, tiny


@pytest.mark.parametrize(
    ("k", "n", "low", "high"), [(8, 10, 0.4902, 0.9433), (180, 400, 0.4020, 0.4990), (0, 20, 0.0, 0.1611)]
)
def test_the_interval_is_wilsons(k, n, low, high):
    found = advise.wilson(k, n)
    assert (found.share, found.low, found.high) == pytest.approx((k / n, low, high), abs=5e-5)


@pytest.mark.parametrize(
    ("k", "objective"), [(40, "apo_zero"), (180, "apo_zero"), (200, "apo_select"), (220, "apo_down"), (390, "apo_down")]
)
def test_the_rule_follows_the_interval(k, objective):
    assert advise.choose(advise.wilson(k, 400))[0] == objective


def pairs(leads, shared=5):
    """Pairs whose own answers lead the winners by so much; winner and loser share so many of ten tokens."""
    ids = [np.arange(10), np.arange(10 - shared, 20 - shared)]
    return [Example(f"f:{i}", ids[0], tuple(ids), None, Ratings((3.0, 1.0), 3.0 + x)) for i, x in enumerate(leads)]


def test_ties_count_half():
    found, _ = advise.advise(pairs([1.0] * 30 + [0.0] * 40 + [-1.0] * 130), n=400, seed=0)
    assert (found["own_better"], found["ties"], found["share"]) == (30, 40, 0.25)


def test_the_draw_is_that_of_the_seed_and_not_the_whole():
    examples = pairs([float(i) for i in range(-300, 300)])
    (a, drawn), (b, again), (c, _) = (advise.advise(examples, n=100, seed=s) for s in (0, 0, 1))
    assert a == b and drawn == again and len(drawn) == 100 and c["share"] != a["share"]


@pytest.mark.parametrize(
    ("leads", "shared", "said"),
    [
        ([-1.0] * 150, 1, "every contrastive objective lost to sft"),
        ([1.0] * 60 + [-1.0] * 140, 5, "apo_select chooses per pair"),
        ([1.0] * 20, 5, "20 pairs are few"),
    ],
)
def test_caveats_are_said(leads, shared, said):
    found, _ = advise.advise(pairs(leads, shared), n=400, seed=0)
    assert [note for note in found["notes"] if said in note]


def test_a_clear_case_has_no_caveats():
    assert advise.advise(pairs([-1.0] * 150), n=400, seed=0)[0]["notes"] == []


def run(*arguments):
    return forks.run([sys.executable, "-m", "eval", *arguments])


def scored_rows(n):
    rng = np.random.default_rng(0)

    def ids():
        return rng.integers(2, 101, rng.integers(2, 9)).tolist()

    return [
        {
            "prompt_ids": ids(),
            "chosen_ids": ids(),
            "rejected_ids": ids(),
            "chosen_score": 5,
            "rejected_score": 2 + i % 4,
        }
        for i in range(n)
    ]


@pytest.mark.slow
def test_the_command_advises_by_the_scores_in_the_rows(tmp_path):
    model = tiny.write_model(tmp_path / "model", vocab_size=101)
    rows = tiny.write_rows(tmp_path / "rows.jsonl", scored_rows(120))
    done = run(
        "advise", "--model", str(model), "--data", str(rows), "--own-score", "rejected", "--out", f"{tmp_path}/o"
    )
    assert done.returncode == 0, done.stderr
    found = json.loads((tmp_path / "o").read_text())
    assert found["objective"] == "apo_zero" and found["share"] == 0.125 and found["ties"] == 30  # 5 ties with 5
    assert "advice: --loss apo_zero" in done.stdout and "12.5%" in done.stdout
    scores = tmp_path / "logps"
    command = [sys.executable, "-m", "engine.score", "--model", str(model), "--data", str(rows), "--out", str(scores)]
    subprocess.run(command, check=True, capture_output=True)
    lines = [json.loads(line) for line in scores.read_text().splitlines()]
    mean = np.mean([line["logps/chosen"] / line["tokens/chosen"] for line in lines])
    assert found["logps_per_token"]["chosen"] == pytest.approx(mean, abs=1e-9)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ((), "python -m eval needs a command (advise, mixeval, alpacaeval,"),
        (("advice",), "there is no command 'advice'; the commands are advise"),
        (("advise",), "python -m eval advise needs arguments, such as"),
    ],
)
def test_a_command_that_is_none_is_answered_in_a_sentence(arguments, said):
    done = run(*arguments)
    assert done.returncode == 2 and said in done.stderr and "Traceback" not in done.stderr


def test_rows_without_scores_are_refused(tmp_path):
    model = tiny.write_model(tmp_path / "model", vocab_size=101)
    rows = tiny.write_rows(tmp_path / "rows.jsonl", scored_rows(3))
    done = run("advise", "--model", str(model), "--data", str(rows))
    assert done.returncode == 2 and 'no pair has both "chosen_score" and "own_score"' in done.stderr


def test_a_judge_reads_the_rows_as_they_were_read_before(tmp_path):
    """Columns of other names; and token ids it cannot read."""
    folder = tiny.write_model(tmp_path / "m", texts=["Why is the sky blue?"], max_position_embeddings=96)
    rows = [{"q": f"Why {i}?", "winner": "yes", "loser": "no"} for i in range(100)]
    data = tiny.write_rows(tmp_path / "pairs.jsonl", rows)
    ids = [{"prompt_ids": [3, 4], "chosen_ids": [5], "rejected_ids": [6]}] * 100
    with serve(lambda seen: Reply.chat("[1]" if "yes" in seen.text else "[2]")) as server:
        flags = ["--model", folder, "--n", "100", "--judge-endpoint", server.base, "--judge", "j",
                 "--store", tmp_path / "j.sqlite", "--max-new-tokens", "4"]  # fmt: skip
        flags = [*map(str, flags), "--out", str(tmp_path / "a.json")]
        advise.main([*flags, "--data", str(data), "--columns", "prompt=q,chosen=winner,rejected=loser"])
        n = server.n_seen
        with pytest.raises(InputError, match=r"ids\.jsonl:\d+: token ids, but a judge reads text"):
            advise.main([*flags[:-1], str(tmp_path / "b.json"), "--data",
                         str(tiny.write_rows(tmp_path / "ids.jsonl", ids))])  # fmt: skip
        assert n == server.n_seen == 100
    assert json.loads((tmp_path / "a.json").read_text())["pairs"] == 100


def test_a_judge_takes_the_place_of_scores(tmp_path):
    """The judge prefers the longer answer; the model's own come first in half of the questions."""
    folder = tiny.write_model(
        tmp_path / "m", texts=["Why is the sky blue? Because of light."], max_position_embeddings=1024
    )
    rows = [{"prompt": f"Why {i}?", "chosen": "x" * (1 if i < 90 else 4000), "rejected": "no"} for i in range(120)]
    data = tiny.write_rows(tmp_path / "pairs.jsonl", rows)
    own_first = []

    def judge(seen):
        first, second = re.search(
            r"solution_1\}: (.*?)\n\n\{student_solution_2\}: (.*?)\n\n---", seen.text, re.DOTALL
        ).groups()
        own_first.append(set(first) != {"x"})
        longer = 1 if len(first) > len(second) else 2
        return Reply.chat(f"{{teacher_reasoning}}: longer is better.\n[{longer}]")

    with serve(judge) as server:
        flags = ["--model", folder, "--data", data, "--n", "120", "--judge-endpoint", server.base, "--judge", "j",
                 "--store", tmp_path / "j.sqlite", "--max-new-tokens", "20",
                 "--scores", tmp_path / "run/eval/scores.jsonl"]  # fmt: skip
        advise.main([*map(str, flags), "--out", str(tmp_path / "a.json")])
        advise.main([*map(str, flags), "--out", str(tmp_path / "b.json")])
        assert server.n_seen == len(own_first) == 120
    found = json.loads((tmp_path / "a.json").read_text())
    assert (found["own_better"], found["pairs"], found["objective"]) == (90, 120, "apo_down")
    assert sum(own_first) == 60
    (line,) = (json.loads(x) for x in (tmp_path / "run/eval/scores.jsonl").read_text().splitlines())
    assert (line["benchmark"], line["value"], line["objective"], line["judge"]) == ("advice", 0.75, "apo_down", "j")


@pytest.mark.parametrize(
    ("more", "said"),
    [(["--judge-endpoint", "http://localhost:1/v1"], "--judge"), (["--judge", "j"], "go with --judge-endpoint"),
     (["--judge-endpoint", "http://localhost:1/v1", "--judge", "j", "--store", "s", "--judge-extra", "1"],
      "--judge-extra: ")],
)  # fmt: skip
def test_a_judge_that_is_half_named_is_one_sentence(tmp_path, more, said):
    with pytest.raises(InputError, match=said):
        advise.main(["--model", "m", "--data", "d", *more])
