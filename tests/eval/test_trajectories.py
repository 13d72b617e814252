"""Held-out pairs and sampled answers through a run's checkpoints, by the real command."""

import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from data.rows import Example, Limits
from data.rows.dataset import RowSettings, read_examples
from data.rows.model_folder import open_model
from engine.config import TrainConfig
from engine.inputs import TrainingInputs
from engine.score import score_under
from engine.train import run as train
from eval import checkpoints, trajectories
from eval.trajectories import TrajectoriesConfig
from system.errors import InputError
from tests import forks, tiny
from tests.revise.commands import read_rows

TEXTS = ["Why is the sky blue? Because of the light.", "Say something short of the heron."]


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A run of two epochs, its base, and held-out pairs."""
    folder = tmp_path_factory.mktemp("trajectories")
    base = tiny.write_model(folder / "base", texts=TEXTS, max_position_embeddings=96)
    rows = [{"prompt": f"Why {i}?", "chosen": f"Because of {i}.", "rejected": "I do not know it."} for i in range(14)]
    pairs = tiny.write_rows(folder / "pairs.jsonl", rows[:8])
    tiny.write_rows(folder / "held.jsonl", rows[8:])
    train(TrainConfig(model=str(base), data=(str(pairs),), loss="dpo", beta=0.3, epochs=2, batch_size=4, lr=1e-3,
                      optimizer="adamw", out=str(folder / "run")))  # fmt: skip
    return folder


def follow(made, *more):
    arguments = [sys.executable, "-m", "eval", "trajectories", made / "run", "--max-new-tokens", "24", *more]
    return forks.run(arguments)


def test_held_out_pairs_are_scored_at_every_checkpoint(made, tmp_path):
    done = follow(made, "--data", made / "held.jsonl", "--answers", "3", "--out", tmp_path)
    assert done.returncode == 0, done.stderr
    lines = {(x["checkpoint"], x["metric"]): x for x in read_rows(tmp_path / "scores.jsonl")}
    _, chat = open_model(str(made / "base"))
    settings = RowSettings()
    rows = read_examples([str(made / "held.jsonl")], chat, settings.limits, settings.reading, n_ids=400).examples
    base = torch.stack(list(score_under(made / "base", rows)))
    for name in ("base", "epoch-01", "epoch-02"):
        model = made / "base" if name == "base" else made / "run" / name
        logps = torch.stack(list(score_under(model, rows)))
        logratios = logps - base
        for i, side in enumerate(("chosen", "rejected")):
            assert lines[name, f"logps/{side}"]["value"] == pytest.approx(logps[:, i].mean().item(), abs=1e-4)
            expected = logratios[:, i].mean().item()
            assert lines[name, f"logratios/{side}"]["value"] == pytest.approx(expected, abs=1e-4)
        is_won = logratios[:, 0] > logratios[:, 1]
        assert lines[name, "logratios/accuracies"]["value"] == is_won.double().mean().item()
        assert not any(metric.startswith("rewards/") for _, metric in lines)
    samples = read_rows(tmp_path / "samples.jsonl")
    assert [s["checkpoint"] for s in samples] == [n for n in ("base", "epoch-01", "epoch-02") for _ in range(3)]
    assert samples[0]["prompt"] == samples[3]["prompt"] and samples[0]["prompt"].startswith("Why")
    mean = np.mean([len(s["response"]) for s in samples[6:]])
    assert lines["epoch-02", "characters"]["value"] == pytest.approx(mean, abs=1e-9)
    assert lines["base", "kl"]["value"] == 0.0
    n = len(read_rows(tmp_path / "scores.jsonl"))
    trajectories.main([str(made / "run"), "--data", str(made / "held.jsonl"), "--answers", "0", "--out", str(tmp_path)])
    assert len(read_rows(tmp_path / "scores.jsonl")) == n == len(lines)
    again = ["--data", str(made / "held.jsonl"), "--answers", "0", "--out", str(tmp_path), "--beta", "0.5"]
    trajectories.main([str(made / "run"), *again])
    found = {(x["checkpoint"], x["metric"]): x for x in read_rows(tmp_path / "scores.jsonl")}
    for name in ("margins", "chosen"):
        reward, logratio = (found["epoch-02", f"{what}/{name}"] for what in ("rewards", "logratios"))
        assert reward["value"] == pytest.approx(0.5 * logratio["value"], abs=1e-9) and reward["value"] != 0
        assert reward["beta"] == 0.5 and "beta" not in logratio


def test_rewards_are_measured_against_the_reference_that_the_run_was_given(made, tmp_path):
    other = tiny.write_model(tmp_path / "other", texts=TEXTS, max_position_embeddings=96, seed=5, num_hidden_layers=2)
    shutil.copytree(made / "base", tmp_path / "base")
    settings = {"model": str(tmp_path / "base"), "data": str(made / "pairs.jsonl"), "out": str(tmp_path / "run")}
    train(TrainConfig(**settings, loss="dpo", beta=0.3, epochs=1, batch_size=4, reference_model=str(other)))
    held = str(made / "held.jsonl")
    trajectories.main([str(tmp_path / "run"), "--data", held, "--answers", "0", "--out", str(tmp_path)])
    lines = {(x["checkpoint"], x["metric"]): x["value"] for x in read_rows(tmp_path / "scores.jsonl")}
    _, chat = open_model(str(other))
    rows = read_examples([held], chat, RowSettings().limits, RowSettings().reading, n_ids=400).examples
    base, reference = (torch.stack(list(score_under(folder, rows))) for folder in (tmp_path / "base", other))
    expected = (base - reference).mean(dim=0)
    assert lines["base", "logratios/chosen"] == pytest.approx(expected[0].item(), abs=1e-4) and abs(expected[0]) > 0.01
    shutil.rmtree(other)
    with pytest.raises(
        InputError, match=r"run: the --reference-model of config\.yaml is not where it says; put it there"
    ):
        trajectories.main([str(tmp_path / "run"), "--data", held, "--out", str(tmp_path)])


@pytest.mark.slow
def test_the_distance_is_an_estimate_of_the_divergence(made):
    """Of two distributions over one token, next to the sum over the vocabulary."""
    from engine import weights
    from engine.sampling.decoding import generate
    from engine.sampling.sampling import Sampling

    prompt, models = [5, 6, 7], [weights.load(made / name).eval() for name in ("run/epoch-02", "base")]
    with torch.no_grad():
        whole = [generate_logits(model, prompt) for model in models]
    p, q = (torch.log_softmax(x.double(), -1) for x in whole)
    exact = (p.exp() * (p - q)).sum().item()
    answers = generate(models[0], [prompt], Sampling(n=1000, max_new_tokens=1), [])
    asked = [trajectories.Example("here", np.array(prompt, dtype=np.int32), ())] * len(answers)
    config = trajectories.TrajectoriesConfig(run=str(made / "run"))
    found = trajectories._distance(
        trajectories.Checkpoint("epoch-02", made / "run/epoch-02"), trajectories.Checkpoint("base", made / "base"),
        asked, answers, config,
    )  # fmt: skip
    assert abs(found.mean() - exact) < 4 * found.std() / np.sqrt(len(found)) and exact > 0


def generate_logits(model, prompt):
    from engine.sampling.decoding import Answer, Running, Slots

    slots = Slots(model, 1, len(prompt))
    slots.add(Running(Answer(0, 0), prompt, np.random.default_rng(0)))
    return slots.step(100)[1][0]


def test_what_training_has_measured_is_not_measured_again(made, tmp_path, capsys):
    train(TrainConfig(model=str(made / "base"), data=(str(made / "pairs.jsonl"),), loss="apo_zero", epochs=1,
                      batch_size=4, eval_pairs=4, out=str(tmp_path / "run")))  # fmt: skip
    trajectories.main([str(tmp_path / "run"), "--answers", "0"])
    out, err = capsys.readouterr()
    assert "were measured in training" in err
    assert not (tmp_path / "run/eval/scores.jsonl").read_text()
    assert [row.split()[0] for row in out.splitlines()] == ["epoch-01"]


def test_what_was_measured_inside_epochs_and_before_the_first_step_is_shown(made, tmp_path, capsys):
    """Beside what is sampled at the checkpoints, in the order of their steps. Epochs of 2 steps."""
    train(TrainConfig(model=str(made / "base"), data=(str(made / "pairs.jsonl"),), loss="dpo", epochs=2, batch_size=2,
                      eval_pairs=4, eval_every=1, save_every=3, lr=1e-3, out=str(tmp_path / "run")))  # fmt: skip
    trajectories.main([str(tmp_path / "run"), "--answers", "1", "--max-new-tokens", "4"])
    shown = {row.split()[0]: row for row in capsys.readouterr().out.splitlines()}
    assert list(shown) == ["base", "step-000001", "epoch-01", "step-000003", "epoch-02"]
    lines = {line["step"]: line for line in read_rows(tmp_path / "run/metrics.jsonl")}
    for (name, row), step in zip(shown.items(), range(5), strict=True):
        assert f"logps {lines[step]['eval_logps/chosen']:.1f}" in row
        assert f"rewards {lines[step]['eval_rewards/chosen']:+.3f}" in row
        assert ("characters" in row) == (name != "step-000001")  # which has no folder
    assert len({row.partition("KL")[0] for row in shown.values()}) == 5


def test_the_prompts_are_those_that_were_held_out_of_all_files(made, tmp_path):
    sources = []
    for name in "ab":
        rows = [{"prompt": f"Why {name} {i}?", "chosen": "Because.", "rejected": "No."} for i in range(30)]
        sources.append(str(tiny.write_rows(tmp_path / f"{name}.jsonl", rows)))
    config = TrainConfig(model=str(made / "base"), data=tuple(sources), data_weights=(1, 0.5), loss="dpo", epochs=1,
                         batch_size=8, eval_pairs=10, seed=3, out=str(tmp_path / "run"))  # fmt: skip
    expected = [e.location for e in TrainingInputs(config).heldout]
    train(config)
    asked = TrajectoriesConfig(run=str(tmp_path / "run"), n=10)
    found = trajectories._pairs(asked, trajectories.checkpoints.base_of(tmp_path / "run"))
    assert sorted(e.location for e in found) == sorted(expected)
    Path(sources[0]).rename(tmp_path / "gone")
    with pytest.raises(InputError, match=r"its rows cannot be read again \(.*a\.jsonl.*\); name a file of pairs"):
        trajectories._pairs(asked, trajectories.checkpoints.base_of(tmp_path / "run"))


def test_a_run_that_followed_no_held_out_pairs_asks_for_them(made):
    with pytest.raises(InputError, match="name a file of them by --data"):
        trajectories.main([str(made / "run")])


def test_lengths_that_run_away_are_warned_of():
    line = {"benchmark": "samples", "metric": "characters", "version": "v"}
    lines = [line | {"checkpoint": "base", "value": 100.0}, line | {"checkpoint": "epoch-01", "value": 149.0},
             line | {"checkpoint": "epoch-02", "value": 1900.0}]  # fmt: skip
    assert trajectories.runaway(lines) == [
        "warning: epoch-02 writes 1900 characters where the base writes 100; read samples.jsonl"
    ]


def test_columns_of_an_objectives_own_numbers_are_for_training_alone():
    """They may be missing in the rows that a run's checkpoints are followed on."""
    assert checkpoints.rows_of({"columns": "chosen=w, margin=gap,rejected=l"}).columns == "chosen=w,rejected=l"
    assert checkpoints.rows_of({"columns": "margin=gap"}).columns is None


def test_rows_are_cut_and_left_out_as_the_run_has_done():
    """By what config.yaml says, as text; runs before there was --beyond-context took rows beyond it."""
    before = checkpoints.rows_of({"max_prompt_tokens": "512", "max_response_tokens": "512"})
    assert before.limits_in(64) == Limits()
    asked = {
        "max_tokens": "1024",
        "max_prompt_tokens": "null",
        "max_response_tokens": "null",
        "beyond_context": "false",
    }
    limits = checkpoints.rows_of(asked).limits_in(64)
    assert limits == Limits(prompt_tokens=None, response_tokens=None, tokens=1024, context=64)


def test_a_runs_rows_are_read_as_it_has_read_them():
    asked = {
        "ignore_columns": "context",
        "roles": "bot=assistant",
        "keep_json_text": "true",
        "columns": "system=persona",
    }
    reading = checkpoints.rows_of(asked).reading
    assert (reading.ignored, reading.roles, reading.keeps_json_text) == (("context",), (("bot", "assistant"),), True)
    assert reading.columns == (("system", "persona"),)
    plain = checkpoints.rows_of({"ignore_columns": "null", "roles": "null", "keep_json_text": "false"}).reading
    assert (plain.ignored, plain.roles, plain.keeps_json_text) == ((), (), False)


def test_prompts_are_shown_from_the_columns_that_the_run_has_read(tmp_path):
    rows = [{"question": "Why?", "chosen": "a", "rejected": "b"}, {"question": "How?", "chosen": "a", "rejected": "b"}]
    path = tiny.write_rows(tmp_path / "rows.jsonl", rows)
    ids = np.array([1], dtype=np.int32)
    pairs = [Example(f"{path}:{i}", ids, (ids, ids)) for i in (2, 1)]
    reading = checkpoints.rows_of({"columns": "prompt=question"}).reading
    assert trajectories._texts(pairs, reading) == ["How?", "Why?"]
