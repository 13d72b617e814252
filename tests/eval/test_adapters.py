"""Evaluators on an adapter's run and folders: what is its base, its reference, and that numbers are training's own."""

import json
import shutil

import pytest

from engine import train
from engine.config import TrainConfig
from eval import advise, checkpoints, trajectories
from eval.answering import How, Model
from eval.checkpoints import Checkpoint
from eval.judge_client import JudgedConfig
from revise.client import open_store
from revise.prompts import Prompts
from revise.recipes import ClairConfig
from revise.target import Target
from system import run_folder
from tests import tiny
from tests.engine.adapter_folders import write_adapter, write_merged
from tests.revise.commands import read_rows

pytestmark = pytest.mark.slow  # the fast set has tests/engine/test_adapters.py

TEXTS = ["Why is the sky blue? Because of the light.", "Say something short of the heron."]


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A base, an adapter of it, the two as one model, and rows."""
    folder = tmp_path_factory.mktemp("adapters")
    base = tiny.write_model(folder / "base", texts=TEXTS, max_position_embeddings=96)
    (base / "chat_template.jinja").write_text(tiny.TEMPLATE)
    write_adapter(folder / "adapter", base)
    write_merged(folder / "merged", base, folder / "adapter")
    rows = [{"prompt": f"Why {i}?", "chosen": f"Because of {i}.", "rejected": "I do not know it."} for i in range(14)]
    tiny.write_rows(folder / "pairs.jsonl", rows[:8])
    tiny.write_rows(folder / "held.jsonl", rows[8:])
    scored = [row | {"chosen_score": 3 + i % 2, "rejected_score": 1, "own_score": 2} for i, row in enumerate(rows)]
    tiny.write_rows(folder / "scored.jsonl", scored)
    return folder


def run_of(made, out, **changes):
    given = {"model": str(made / "base"), "data": str(made / "pairs.jsonl"), "loss": "dpo", "out": str(out)}
    train.run(TrainConfig(**(given | {"epochs": 1, "batch_size": 4, "lr": 1e-2, "dtype": "float32"} | changes)))
    return out


def settings_in(tmp_path, **settings):
    (tmp_path / "config.yaml").write_text(json.dumps(settings))
    return tmp_path


def test_the_checkpoints_of_an_adapters_run_are_found(tmp_path, made):
    for i in (1, 2):
        write_adapter(tmp_path / f"run/epoch-{i:02d}", made / "base")
    (tmp_path / "run/epoch-03").mkdir()  # not written through
    (tmp_path / "run/config.yaml").write_text(f"model: {made / 'base'}\nlora_rank: 4\nchat_template: null\n")
    found = checkpoints.find(tmp_path / "run", with_base=True)
    assert [c.name for c in found] == ["base", "epoch-01", "epoch-02"]
    assert found[0] == Checkpoint("base", made / "base")
    epoch = tmp_path / "run/epoch-01"
    assert checkpoints.find(epoch, with_base=True) == [Checkpoint("epoch-01", epoch)]


REFERENCES = [
    ({}, Checkpoint("base", "base"), Checkpoint("base", "base")),
    ({"lora_rank": 4, "base_dtype": "int8"}, *[Checkpoint("base", "base", base_dtype="int8")] * 2),
    ({"adapter": "adapter"}, *[Checkpoint("base", "adapter", base="base")] * 2),
    ({"adapter": "adapter", "reference_model": "base"}, Checkpoint("base", "adapter", base="base"),
     Checkpoint("reference", "base")),
    ({"lora_rank": 4, "base_dtype": "nf4", "reference_model": "adapter"}, Checkpoint("base", "base", base_dtype="nf4"),
     Checkpoint("reference", "adapter", base_dtype="nf4")),
    ({"lora_rank": 4, "base_dtype": "nf4", "reference_model": "merged"}, Checkpoint("base", "base", base_dtype="nf4"),
     Checkpoint("reference", "merged")),
    ({"reference_model": "adapter"}, Checkpoint("base", "base"), Checkpoint("reference", "adapter")),
]  # fmt: skip


@pytest.mark.parametrize(("settings", "base", "reference"), REFERENCES)
def test_what_a_run_began_with_and_is_measured_against(made, tmp_path, settings, base, reference):
    """base: what the run's model is before training; folders by their names."""
    named = {name: str(made / value) if (made / str(value)).exists() and value != "base" else value
             for name, value in settings.items()}  # fmt: skip
    run = settings_in(tmp_path, model=str(made / "base"), **named)

    def whole(c):
        return c._replace(folder=made / c.folder, base=c.base and made / c.base)

    assert checkpoints.base_of(run) == whole(base)
    assert checkpoints.reference_of(run) == whole(reference)


def test_a_copy_of_the_base_is_a_reference_of_its_own_as_in_the_run(made, tmp_path):
    copy = shutil.copytree(made / "base", tmp_path / "copy")
    run = settings_in(tmp_path, model=str(made / "base"), lora_rank=4, base_dtype="nf4", reference_model=str(copy))
    assert checkpoints.reference_of(run) == Checkpoint("reference", copy)


def test_a_reference_adapter_whose_base_has_moved_is_on_the_runs_model(made, tmp_path):
    gone = write_adapter(tmp_path / "gone", made / "base", names=str(tmp_path / "nowhere"))
    run = settings_in(tmp_path, model=str(made / "base"), lora_rank=4, reference_model=str(gone))
    assert checkpoints.reference_of(run) == Checkpoint("reference", gone, base=made / "base")


def test_checkpoints_of_a_run_that_was_moved_with_its_base_are_on_that(made, tmp_path):
    write_adapter(tmp_path / "epoch-01", made / "base", names=str(tmp_path / "nowhere"))
    run = settings_in(tmp_path, model=str(made / "base"), lora_rank=4)
    assert checkpoints.of(run) == [Checkpoint("epoch-01", tmp_path / "epoch-01", base=made / "base")]


def test_a_start_that_is_gone_is_no_base(made, tmp_path):
    run = settings_in(tmp_path, model=str(made / "base"), adapter=str(tmp_path / "gone"))
    assert checkpoints.base_of(run) is None


RUNS = [
    {"lora_rank": 4},
    {"lora_rank": 4, "base_dtype": "int8"},
    {"adapter": "adapter"},
    {"adapter": "adapter", "reference_model": "base", "base_dtype": "int8"},
]


@pytest.mark.slow
@pytest.mark.parametrize("changes", RUNS)
def test_trajectories_are_those_that_training_has_measured(made, tmp_path, changes):
    changes = {name: str(made / value) if value == "adapter" else value for name, value in changes.items()}
    run = run_of(made, tmp_path / "run", eval_data=str(made / "held.jsonl"), eval_every=1, **changes)
    first, *_, last = (line for line in run_folder.lines_of(run) if "eval_logps/chosen" in line)
    flags = ["--data", made / "held.jsonl", "--answers", 2, "--max-new-tokens", 8, "--out", tmp_path / "e"]
    trajectories.main([str(run), *map(str, flags)])
    found = {(x["checkpoint"], x["metric"]): x["value"] for x in read_rows(tmp_path / "e/scores.jsonl")}
    for name, line in (("base", first), ("epoch-01", last)):
        for metric in ("logps/chosen", "logps/rejected", "logratios/chosen", "logratios/rejected"):
            assert found[name, metric] == pytest.approx(line[f"eval_{metric}"], abs=1e-5), (name, metric)
    assert abs(found["epoch-01", "logratios/chosen"]) > 0.1 and found["base", "kl"] == 0
    assert (abs(found["base", "logratios/chosen"]) > 0.1) == ("reference_model" in changes)


def test_advice_on_an_adapter_is_that_on_the_merged_model(made, tmp_path, capsys):
    found = []
    for name in ("adapter", "merged", "base"):
        out = tmp_path / f"{name}.json"
        advise.main(["--model", str(made / name), "--data", str(made / "scored.jsonl"), "--out", str(out)])
        found.append(json.loads(out.read_text())["logps_per_token"])
    assert found[0] == pytest.approx(found[1], abs=1e-5)
    assert abs(found[0]["chosen"] - found[2]["chosen"]) > 0.1


def test_an_adapter_answers_a_benchmark_as_the_merged_model_does(made, tmp_path):
    prompts, said, whose = {"a": "Why is the sky blue?", "b": "Say something."}, [], []
    for name in ("adapter", "merged", "base"):
        config = JudgedConfig(what=str(made / name), judge_endpoint=("http://127.0.0.1:9/v1",), judge="j", store="s")
        (checkpoint,) = checkpoints.find(made / name, with_base=False)
        how, model = How(0.0, 1.0, 12), Model(checkpoint, config, None)
        said.append(model.answers(prompts, how, tmp_path / f"{name}.jsonl"))
        whose.append(model.identity(how))
    assert said[0] == said[1] != said[2] and len(set(whose)) == 3


def test_own_answers_are_an_adapters(made, tmp_path):
    tiny.write_rows(tmp_path / "prompts.jsonl", [{"prompt": f"Why {i}?"} for i in range(4)])
    texts, fingerprints = [], []
    for name in ("adapter", "merged"):
        shared = {"prompts": str(tmp_path / "prompts.jsonl"), "out": str(tmp_path / "o.jsonl"), "model": "m",
                  "store": str(tmp_path / f"{name}.sqlite"), "endpoint": ("http://127.0.0.1:9/v1",)}  # fmt: skip
        config = ClairConfig(**shared, target_model=str(made / name), target_max_tokens=8, target_temperature=0.0)
        target, prompts = Target(config, config, n=1, seed=0), Prompts(config)
        with open_store(tmp_path / f"{name}.sqlite") as store:
            target.fill(lambda prompts=prompts: prompts, store, len(prompts))
            texts.append([target.answers(item, store)[0].text for item in prompts])
        fingerprints.append(target.settings["model"])
    assert texts[0] == texts[1] and all(texts[0]) and fingerprints[0] != fingerprints[1]
