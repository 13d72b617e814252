"""The paper in miniature: what its page says of claims, whom its prompts meet, and how rates are looked for."""

import json
import re
from pathlib import Path

import pytest

from eval.runs import Run
from examples import findings
from examples.grid import Cell
from examples.miniature import model, paper, rounds, tune
from examples.miniature.rounds import Round
from examples.miniature.score import ScoreConfig
from system import InputError

ROOT = Path(__file__).resolve().parents[2]
LOSSES = ("apo_zero", "apo_down", "dpo")


def run(data, loss, gain, rewards):
    """A run of one epoch that gains so many points and ends with these held-out rewards of winner and loser."""
    line = {"benchmark": "mine", "version": "1", "metric": "overall", "stderr": None, "judge": None}
    lines = [line | {"checkpoint": "base", "value": 0.2}, line | {"checkpoint": "epoch-01", "value": 0.2 + gain / 100}]
    contrast = line | {"benchmark": "contrast", "checkpoint": "data", "version": data}
    values = {"clair": (80.0, 9.0)}.get(data, (40.0, 40.0))
    named = zip(("Jaccard of tokens, %", "Levenshtein, characters"), values, strict=True)
    lines += [contrast | {"metric": name, "value": value} for name, value in named]
    metrics = [{"step": 1, "epoch": 1.0, "eval_rewards/chosen": rewards[0], "eval_rewards/rejected": rewards[1]}]
    metrics[0] |= {"eval_logps/chosen": -9.0, "eval_logps/rejected": -9.0}
    return Run(f"{loss} on {data}", loss, data, lines, metrics, [], {})


def table(rewards_of_dpo):
    """The claims of two seeds on two data sets; in the second seed APO-zero gains nothing on judged pairs."""
    rewards = {"apo_zero": (2.0, -1.0), "apo_down": (-2.0, -5.0)}
    found = {}
    for seed in (0, 1):
        for data in ("clair", "judge-on-policy"):
            for loss, gain in zip(LOSSES, (30.0, 5.0, 10.0), strict=True):
                is_off = (seed, data, loss) == (1, "judge-on-policy", "apo_zero")
                made = run(data, loss, 0.0 if is_off else gain - (data != "clair"), rewards.get(loss, rewards_of_dpo))
                found[Cell(data, Path(f"{data}.jsonl"), loss, seed, 1e-4)] = made
    return paper.claims(found)


def test_claims_are_counted_over_seeds_and_data_sets():
    made = table(rewards_of_dpo=(-1.0, -4.0))
    rows = {claim: rest for claim, *rest in made.rows}
    assert rows["CLAIR with APO-zero has the best mean of all cells"] == ["holds here", "2 of 2", "", "yes"]
    assert rows["winners better than the model (judge-on-policy): APO-zero beats APO-down"] == [
        "holds here in part", "1 of 2", "", "no",
    ]  # fmt: skip
    assert rows["DPO is nearer to APO-down in the last"] == ["holds here", "4 of 4", "", ""]
    assert rows["DPO is nearer to APO-zero in the first epoch"] == [
        "does not hold here", "0 of 4", "clair, judge-on-policy", "",
    ]  # fmt: skip
    assert rows[findings.MARGINS][0] == "holds here, by construction"
    assert any(note.startswith(f"By construction: {findings.MARGINS}") for note in made.notes)


def test_an_objective_beside_the_papers_has_its_own_rate_and_a_beta_only_where_it_has_one(tmp_path):
    mine = tmp_path / "a=b.py"
    mine.write_text((ROOT / "examples/my_loss.py").read_text().replace('"lead"', '"lead_here"'))
    bare = f"{tmp_path}/bare.py:bare"
    (tmp_path / "bare.py").write_text(
        "from losses import Result, loss\n\n\n@loss('bare', data='pairs')\ndef bare(chosen, rejected):\n"
        "    return Result(rejected.logps - chosen.logps, chosen.logps, rejected.logps)\n"
    )
    also = [f"{mine}:lead_here lead_here.by=2", f"{bare} lr=3e-4"]
    cells = paper.cells_of({0: {"clair": tmp_path}}, quick=True, also=also)
    assert [(c.loss, c.lr, c.flags) for c in cells[-3:]] == [
        ("apo_down", paper.RATES["apo_down"], (paper.BETA,)), (also[0], paper.RATES["dpo"], (paper.BETA,)),
        (also[1], paper.RATES["dpo"], ()),
    ]  # fmt: skip
    known = paper.cells_of({0: {"clair": tmp_path}}, quick=True, also=["apo_zero beta=0.1"])[-1]
    assert (known.loss, known.lr) == ("apo_zero beta=0.1", paper.RATES["apo_zero"])
    with pytest.raises(InputError, match="--also apo_zero: is trained already; give it flags of its own"):
        paper.cells_of({0: {"clair": tmp_path}}, quick=True, also=["apo_zero"])
    with pytest.raises(InputError, match="apo_zeero"):
        paper.PaperConfig(also=("apo_zeero lr=1e-4",))


def test_grades_say_where_winners_are_better_than_the_model(tmp_path):
    rows = [
        {"chosen_score": 9, "rejected_score": 3, "own_score": 5},
        {"chosen_score": 4, "rejected_score": 2, "own_score": 5},
    ]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in [*rows, {"chosen_score": 1}]))
    made = paper.grades({0: {"a": tmp_path / "a.jsonl"}, 1: {"a": tmp_path / "a.jsonl"}})
    assert made.rows == [("a", "4", "6.50", "2.50", "5.00", "50")]


def test_no_prompt_of_the_grid_is_tested_on_or_tuned_by():
    _, every, test = model.split_questions()
    tuned = {q.prompt for q in every[-paper.N_FOR_TUNING :]}
    tested = {q.prompt for q in test}
    drawn = [{q.prompt for q in paper.prompts(seed)} for seed in (0, 1, 2)]
    assert all(len(prompts) == paper.N_PROMPTS for prompts in drawn) and drawn[0] != drawn[1]
    assert paper.SCORE in tune.SCORE and int(tune.SCORE.rpartition(" ")[2]) >= max(
        rounds.N_TEST, ScoreConfig(run=".").n
    )
    assert not tuned & tested and all(not prompts & (tuned | tested) for prompts in drawn)


@pytest.mark.parametrize(("peak", "tried"), [(1e-4, 3), (3e-4, 4), (1e-3, 4), (1e-5, 5)])
def test_rates_are_tried_until_the_best_has_neighbours(monkeypatch, peak, tried):
    def gains(loss, rate, *_):
        return {"clair": -abs(tune.LADDER.index(rate) - tune.LADDER.index(peak))}

    monkeypatch.setattr(tune, "gains", gains)
    found = tune.search("sft", {}, Path(), Path())
    assert tune.best(found) == peak and len(found) == tried


def test_the_curve_of_rounds_has_both_lines_from_the_same_beginning():
    found = [
        Round("before", 0, 0.2, 0.1, 0.3),
        Round("round 1", 100, 0.5, 0.4, 0.6),
        Round("round 2", 180, 0.7, 0.6, 0.8),
    ]
    figure = rounds.chart([*found, Round("all prompts at once", 200, 0.6, 0.5, 0.7)])
    lines = [re.findall(r"[\d.]+,[\d.]+", points) for points in re.findall(r'points="([^"]+)"', figure)]
    assert [len(line) for line in lines] == [3, 2] and lines[0][0] == lines[1][0]
