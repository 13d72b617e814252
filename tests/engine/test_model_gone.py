"""A model's folder that goes away or changes while a run trains: epochs are what they would have been, and a run can be
gone on with where its state has all the weights that it needs.
"""

import json
import shutil
import subprocess
import sys
import time

import pytest
from safetensors import safe_open

from engine import train, weights
from engine.config import TrainConfig
from engine.step import Hooks
from system import InputError
from tests import tiny
from tests.engine.kills import outcome

FOLDERS = ("epoch-01", "epoch-02", "epoch-03")


@pytest.fixture
def go(tmp_path):
    """A function that runs a training of 3 epochs of 2 steps on texts, in a folder by name."""
    words = ["one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten"]
    model = tiny.write_model(tmp_path / "model", [" ".join(words)] * 20)
    (model / "chat_template.jinja").write_text(tiny.TEMPLATE)
    (model / "additional_chat_templates").mkdir()
    (model / "additional_chat_templates/rag.jinja").write_text("{{ messages }}")
    (model / "README.md").write_text("---\nbase_model: some/base\n---\n")
    rows = [{"prompt": words[i], "chosen": words[i + 1], "rejected": words[i + 2]} for i in range(8)]
    data = tiny.write_rows(tmp_path / "rows.jsonl", rows)

    def run(name, hooks=None, **changes):
        settings = {"model": str(model), "data": str(data), "lr": 1e-4, "batch_size": 4, "epochs": 3, "loss": "dpo"}
        config = TrainConfig(
            **(
                settings
                | {
                    "out": str(tmp_path / name),
                }
                | changes
            )
        )
        return train.run(config, hooks or Hooks())

    run.tmp, run.model, run.data = tmp_path, model, data
    return run


def files(folder):
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def made_of(run):
    """The fingerprint of the reference's table, which says of what weights it is, and the digest of its numbers."""
    path = run / "reference.safetensors"
    if not path.exists():
        return None
    with safe_open(path, framework="pt") as table:
        return table.metadata()


def gone(model):
    shutil.rmtree(model)


def without_tokenizer(model):
    for path in model.iterdir():
        if path.name.startswith("tokenizer"):
            path.unlink()


def another(model):
    shutil.rmtree(model)
    tiny.write_model(model, ["other words, of another tokenizer"] * 20, shape="llama2", vocab_size=300)


@pytest.mark.parametrize("change", [gone, without_tokenizer, another])
def test_every_epoch_has_what_the_model_had_when_the_run_began(change, go):
    go("whole")
    go("changed", Hooks(after_step=lambda _, step: change(go.model) if step.number == 1 else None))
    assert outcome(go.tmp / "changed") == outcome(go.tmp / "whole")
    assert made_of(go.tmp / "changed") == made_of(go.tmp / "whole")
    for folder in FOLDERS:
        found, expected = files(go.tmp / "changed" / folder), files(go.tmp / "whole" / folder)
        assert {"tokenizer.json", "chat_template.jinja", "additional_chat_templates/rag.jinja"} < expected.keys()
        assert found.pop("README.md").replace(b"changed", b"whole") == expected.pop("README.md")
        assert found == expected


@pytest.mark.parametrize("settings", [{}, {"loss": "simpo"}, {"reference_update": "soft", "reference_update_steps": 2}])
def test_a_run_goes_on_without_it_where_its_state_has_the_weights(settings, go, capsys):
    go("whole", **settings)
    go("stopped", stop_after=3, **settings)
    gone(go.model)
    go("stopped", resume=True, **settings)
    assert f"{go.model}: no such folder; what {go.tmp / 'stopped'} has kept of it is used" in capsys.readouterr().err
    assert outcome(go.tmp / "stopped") == outcome(go.tmp / "whole")
    assert files(go.tmp / "stopped/epoch-03").keys() == files(go.tmp / "whole/epoch-03").keys()
    assert made_of(go.tmp / "stopped") == made_of(go.tmp / "whole")


NEEDED = [
    ({"stop_after": 1}, "the reference's log-probs are computed from it"),  # it knows half of them
    ({"stop_after": 3, "eval_pairs": 2}, "held-out rows are measured against it"),
    ({"stop_after": 3, "loss": "kto"}, "the reference's log-probs are computed from it"),  # of mismatched ones
]


@pytest.mark.parametrize(("settings", "why"), NEEDED)
def test_where_it_needs_the_model_s_weights_the_folder_is_named(settings, why, go):
    go("stopped", **settings)
    gone(go.model)
    with pytest.raises(InputError, match=rf"^{go.model}: no such folder, and {why}; put it back there$"):
        go("stopped", resume=True, **settings | {"stop_after": None})


def test_a_run_that_begins_says_that_there_is_no_such_folder(go):
    gone(go.model)
    for resume in (False, True):
        with pytest.raises(InputError, match=rf"^{go.model}: no such file or folder"):
            go("new", resume=resume)


def test_what_is_kept_is_no_model(go):
    go("whole", max_steps=1)
    kept = go.tmp / "whole/state/model"
    assert json.loads((kept / "weights.json").read_text())["model"] == str(go.model)
    with pytest.raises(InputError, match=r"no model\.safetensors"):
        weights.load(kept)
    with pytest.raises(InputError, match="has no weights, only what a run has kept"):
        train.run(TrainConfig(model=str(kept), data=str(go.data), out=str(go.tmp / "new")))
    assert weights.file_digests(kept) == weights.file_digests(go.model)


@pytest.mark.slow
def test_the_command_ends_well_when_the_folder_is_removed_meanwhile(go):
    out = go.tmp / "run"
    flags = ["--model", go.model, "--data", go.data, "--batch-size", 4, "--epochs", 300, "--keep-checkpoints", 2]
    command = [sys.executable, "-m", "engine.train", *map(str, flags), "--out", str(out)]
    running = subprocess.Popen(command, env=tiny.environment(), stderr=subprocess.PIPE, text=True)
    while not (out / "epoch-02").exists() and running.poll() is None:
        time.sleep(0.02)
    gone(go.model)
    _, said = running.communicate(timeout=300)
    assert running.returncode == 0 and "Traceback" not in said
    assert {"tokenizer.json", "chat_template.jinja"} < files(out / "epoch-300").keys()
