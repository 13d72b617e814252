"""Data sets of several recipes and several objectives by one command, scored by both benchmarks; and pairs alone."""

import json
import re

import pytest

from eval import alpacaeval_run, scores
from examples import align as conductor
from examples.align import recipe
from tests import tiny
from tests.eval.upstream import TEMPLATE
from tests.examples.align_recipes import JUDGED, SERVED, align, asked, mixeval_checkout, small

ASKED = {"endpoint": ["{teacher}"], "target_max_tokens": 12, "prompts": "prompts.jsonl"}
SETS = {
    "judged": {**ASKED, "recipe": "judge-on-policy", "model": "chooser"},
    "others": {"recipe": "judge-off-policy", "prompts": "others.jsonl"},
}


def with_sets(folder, **sections):
    """The recipe with two sets beside CLAIR's."""
    small(folder, revise=SETS, serve=SERVED, **sections)
    rows = [
        {
            "instruction": f"Why is the heron a bird {i}?",
            "completions": [
                {"model": f"m{score}", "response": f"The otter {i} says {score}.", "overall_score": score}
                for score in (2, 7)
            ],
        }
        for i in range(20)
    ]
    (folder / "others.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def alpaca_checkout(folder):
    """A checkout of alpaca_eval with five instructions, in a folder."""
    rows = [{"dataset": "d", "instruction": f"Say {i}.", "output": "A letter.", "generator": "gpt"} for i in range(5)]
    for path, text in (
        (alpacaeval_run.OUTPUTS, json.dumps(rows)),
        ("src/alpaca_eval/" + alpacaeval_run.TEMPLATE, TEMPLATE),
    ):
        (folder / path).parent.mkdir(parents=True)
        (folder / path).write_text(text)


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_three_data_sets_and_two_objectives_are_scored_by_both_benchmarks(tmp_path):
    alpaca = {"alpaca_eval": "alpaca", "judge_endpoint": ["{teacher}"], "judge": "annotator", "any_data": True}
    train = {"loss": ["dpo", "apo_zero beta=0.3"], "epochs": 2}
    folder = with_sets(tmp_path / "a", train=train, eval={"mixeval": JUDGED, "alpacaeval": alpaca})
    mixeval_checkout(folder / "MixEval")
    alpaca_checkout(folder / "alpaca")
    done = align(folder)
    assert done.returncode == 0, done.stderr
    told = re.search(r"in all: ([\d,]+) requests", done.stderr)
    assert told and 300 < len(asked(folder)) <= int(told[1].replace(",", ""))
    for n, benchmark in ((156, "mixeval"), (65, "alpacaeval")):  # 13 models, the base among them
        assert f"{n} answers of the served model" in done.stderr.partition(f"({benchmark})")[2], done.stderr
    runs = sorted((folder / "o/round-1/runs/seed-0").glob("*/*/config.yaml"))
    assert [str(run.parent.relative_to(folder / "o/round-1/runs/seed-0")) for run in runs] == [
        f"{name}/{loss}" for name in ("clair", "judged", "others") for loss in ("apo_zero_beta=0.3", "dpo")
    ]
    bases = []
    for run in runs:
        lines = scores.read(run.parent / "eval" / scores.NAME)
        assert {x["checkpoint"] for x in lines if x["benchmark"] == "mixeval-hard"} == {"base", "epoch-01", "epoch-02"}
        best = alpacaeval_run.best(run.parent / "eval" / scores.NAME)
        assert {x["checkpoint"] for x in lines if x["benchmark"] == "alpacaeval-2"} == {"base", *best} and best
        judged = [x for x in lines if x["benchmark"] in ("mixeval-hard", "alpacaeval-2")]
        bases.append([x["value"] for x in judged if x["checkpoint"] == "base"])
    assert all(values == bases[0] for values in bases) and len(bases[0]) > 3
    page = (folder / "o/report/report.html").read_text()
    assert all(page.count(name) > 2 for name in ("clair", "judged", "others", "apo_zero beta=0.3"))
    n = (folder / "asked.txt").read_text().count("\n")
    again = align(folder)
    assert again.returncode == 0 and "done in" not in again.stderr.replace("report: done in", ""), again.stderr
    assert (folder / "asked.txt").read_text().count("\n") == n


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_judge_that_cannot_do_its_work_is_told_before_an_answer_is_drawn(tmp_path):
    """One that gives no log-probs, and one that finds right answers wrong."""
    alpaca = {"alpaca_eval": "alpaca", "judge_endpoint": ["{teacher}"], "judge": "grader", "any_data": True}
    folder = with_sets(tmp_path / "a", eval={"mixeval": JUDGED | {"judge": "grader"}, "alpacaeval": alpaca})
    mixeval_checkout(folder / "MixEval")
    alpaca_checkout(folder / "alpaca")
    done = align(folder)
    assert done.returncode == 2 and not (folder / "o/round-1").exists(), done.stderr
    assert "recipe.yaml: eval: mixeval: " in done.stderr and "recipe.yaml: eval: alpacaeval: --judge" in done.stderr


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_pairs_alone_are_made_by_the_same_stages(tmp_path, monkeypatch, capsys):
    folder = with_sets(tmp_path / "a")
    monkeypatch.chdir(folder)
    for name, value in tiny.environment().items():
        monkeypatch.setenv(name, value)
    made = conductor.make_pairs(recipe.read(folder / "recipe.yaml"))
    assert {name: str(path) for name, path in made.items()} == {
        name: f"o/round-1/pairs/{name}.scored.jsonl" for name in ("clair", "judged", "others")
    }
    said = capsys.readouterr().err
    assert "24 answers of the served model; drawn here they would take" in said and "training" not in said, said
    for path in made.values():
        rows = [json.loads(line) for line in path.read_text().splitlines()]
        assert len(rows) > 10 and all(row.keys() >= {"chosen_score", "rejected_score"} for row in rows)
    assert not (folder / "o/round-1/runs").exists() and not (folder / "o/report").exists()
    n = (folder / "asked.txt").read_text().count("\n")
    assert conductor.make_pairs(recipe.read(folder / "recipe.yaml")) == made
    assert (folder / "asked.txt").read_text().count("\n") == n
