"""docs/python.md: what stands there runs, in order, and each of its examples does what it says."""

import json
import re

import pytest
import torch

from engine import weights
from engine.inputs import TrainingInputs
from engine.train import Hooks, join, run, train
from losses import registry
from tests import tiny

PAGE = (tiny.ROOT / "docs/python.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```python\n(.*?)^```", PAGE, flags=re.MULTILINE | re.DOTALL)
MOST_LINES = 20


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    """The page's names after all of it has run, and the folder that it ran in."""
    folder = tmp_path_factory.mktemp("page")
    texts = [f"question {i}: what is {i} and {i}?" for i in range(40)]
    (folder / "runs/tiny").mkdir(parents=True)
    tiny.write_model(folder / "runs/tiny/model", texts)
    rows = [{"prompt": text, "chosen": f"{2 * i}, margin", "rejected": f"{i}"} for i, text in enumerate(texts)]
    tiny.write_rows(folder / "runs/tiny/pairs.jsonl", [row | {"margin_of_judge": 0.5} for row in rows])
    names = {"__name__": "__main__"}
    with pytest.MonkeyPatch.context() as registered:
        for held in ("_losses", "_aliases"):  # what the page brings is gone afterwards
            registered.setattr(registry, held, dict(getattr(registry, held)))
        with pytest.MonkeyPatch.context() as patched:
            patched.chdir(folder)
            for block in BLOCKS:
                exec(compile(block, "docs/python.md", "exec"), names)
        yield names, folder / "runs"


def lines(folder):
    """A run's metrics."""
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def test_every_example_is_short(page):
    written = [[line for line in block.splitlines() if line.strip()] for block in BLOCKS]
    assert len(BLOCKS) >= 6 and max(map(len, written)) <= MOST_LINES


def test_a_notebook_runs(page):
    names, runs = page
    assert names["result"].n_steps == 4 == len(lines(runs / "notebook"))
    assert lines(runs / "cautious")[-1]["loss"] != lines(runs / "notebook")[-1]["loss"]


def test_the_average_is_that_of_the_weights_after_each_step(page):
    """By hand from the run's own epoch and one step's: four steps of a run are four runs of one to four."""
    names, runs = page
    base = {n: p.detach() for n, p in weights.load(runs / "tiny/model").named_parameters()}
    average = {n: p.clone() for n, p in base.items()}
    seen = []

    def keep(training, step):
        seen.append({n: p.clone() for n, p in training.master_weights().items()})

    with pytest.MonkeyPatch.context() as patched:
        patched.chdir(runs.parent)
        run(names["config"].with_flags(out="runs/watched"), Hooks(after_step=keep))
    for after in seen:
        average = {n: 0.9 * p + 0.1 * after[n] for n, p in average.items()}
    found = dict(weights.load(runs / "ema/epoch-02/ema").named_parameters())
    assert len(seen) == 4
    for name, expected in average.items():
        torch.testing.assert_close(found[name].detach(), expected, rtol=0, atol=1e-6)
        assert not torch.equal(found[name], seen[-1][name]) or "norm" in name
    policy = dict(weights.load(runs / "ema/epoch-02").named_parameters())
    assert all(torch.equal(p, seen[-1][n]) for n, p in policy.items())  # watching and averaging change nothing


def test_an_average_survives_a_stop(page):
    names, runs = page
    with pytest.MonkeyPatch.context() as patched:
        patched.chdir(runs.parent)
        settings = {"out": "runs/stopped", "state_every": 1}
        for more in ({"stop_after": 2}, {"resume": True}):
            ema = names["Ema"](0.9)
            hooks = Hooks(
                begin=ema.begin,
                after_step=ema.after_step,
                tensors=lambda ema=ema: ema.average,
                save_epoch=lambda training, folder, ema=ema: training.save(folder / "ema", ema.average),
            )
            run(names["config"].with_flags(**settings, **more), hooks)
    a, b = (weights.load(runs / name / "epoch-02/ema") for name in ("ema", "stopped"))
    assert all(torch.equal(x, y) for x, y in zip(a.parameters(), b.parameters(), strict=True))


def test_groups_have_rates_of_their_own(page):
    _, runs = page
    for line in lines(runs / "groups"):
        rates = [value for name, value in line.items() if name.startswith("learning_rate")]
        assert max(rates) == pytest.approx(10 * min(rates))


def test_other_groups_are_not_gone_on_with(page):
    names, runs = page
    with pytest.MonkeyPatch.context() as patched:
        patched.chdir(runs.parent)
        config = names["config"].with_flags(optimizer="adamw", out="runs/other", state_every=1)
        run(config.with_flags(stop_after=1), Hooks(parameter_options=names["options"]))
        with pytest.raises(ValueError, match=r"parameter groups: .*lr 1e-05.* -> None"):
            run(config.with_flags(resume=True))


def test_options_that_the_inputs_do_not_know_are_no_secret(page):
    names, runs = page
    with pytest.MonkeyPatch.context() as patched:
        patched.chdir(runs.parent)
        inputs = TrainingInputs(names["config"].with_flags(out="runs/unknown"))
        with pytest.raises(ValueError, match=r"TrainingInputs\(config, options=...\) has to be given the same"):
            train(inputs, join(inputs), Hooks(parameter_options=names["options"]))


def test_what_is_added_moves_the_weights_and_is_told(page):
    _, runs = page
    plain, added = lines(runs / "notebook"), lines(runs / "added")
    assert added[0]["loss"] == pytest.approx(plain[0]["loss"] + added[0]["loss/added"], abs=1e-12)
    first = plain[0]  # before any step: the same log-probs, so that the term can be told from them
    assert added[0]["logps/chosen"] == first["logps/chosen"] and added[0]["loss/added"] > 0
    assert added[-1]["logps/chosen"] > plain[-1]["logps/chosen"]


@pytest.mark.parametrize("loss", ["dpo", "bco_pair"])
@pytest.mark.parametrize("micro_tokens", [40, 10_000])
def test_what_is_added_counts_once_however_a_step_is_split(page, loss, micro_tokens):
    """Of an additive objective and of one that sees the whole step; -logps of all winners is SFT's loss, weighted."""
    names, runs = page
    passes = []

    def term(training, micro, inputs):
        passes.append(len(micro.indices))
        return -1e-3 * inputs.logps[:, 0].sum()

    config = names["config"].with_flags(loss=loss, max_steps=1, micro_tokens=micro_tokens)
    with pytest.MonkeyPatch.context() as patched:
        patched.chdir(runs.parent)
        out = f"runs/{loss}-{micro_tokens}"
        found = run(config.with_flags(out=out), Hooks(add_to_loss=term)).metrics
    assert (len(passes) > 1) == (micro_tokens == 40) and sum(passes) == 16  # the two splits differ
    assert found["loss/added"] == pytest.approx(-1e-3 * found["logps/chosen"], abs=1e-9)
    mixture = config.with_flags(loss=f"{loss}:1,sft:0.001", hyperparameters={"sft.per": "sum"}, out=f"{out}-mixed")
    with pytest.MonkeyPatch.context() as patched:
        patched.chdir(runs.parent)
        mixed = run(mixture).metrics
    assert found["grad_norm"] == pytest.approx(mixed["grad_norm"], rel=1e-5)
