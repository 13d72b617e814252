"""The model card of every checkpoint folder: what it says and leaves out, and that it is as whole as the weights."""

import json
import re
import shlex

import pytest
import yaml
from huggingface_hub import ModelCard

from engine import convert, train
from engine.config import TrainConfig
from engine.run import card as cards
from engine.train import Hooks
from system import cli
from tests import tiny
from tests.metrics import lines
from tests.rows import id_rows


@pytest.fixture
def job(tmp_path):
    """A tiny run, with rows held out; gives its result and its lines."""

    def go(**changes):
        result = train.run(config(**changes))
        return result, lines(result.out)

    def config(**changes):
        given = {"model": str(model), "data": str(rows), "out": str(tmp_path / "runs/first"), "eval_data": str(heldout)}
        return TrainConfig(**(given | {"lr": 1e-4, "batch_size": 4, "epochs": 2} | changes))

    model = tiny.write_model(tmp_path / "base-model", vocab_size=101)
    rows = tiny.write_rows(tmp_path / "rows.jsonl", id_rows(12))
    heldout = tiny.write_rows(tmp_path / "held-out.jsonl", id_rows(6, seed=1))
    go.config, go.tmp, go.model = config, tmp_path, model
    return go


def test_a_card_says_what_the_weights_are(job):
    result, found = job(loss="apo_zero", beta=0.3)
    for number, step in ((1, 3), (2, 6)):
        text = (result.out / f"epoch-{number:02d}/README.md").read_text()
        front = yaml.safe_load(text.split("---\n")[1])
        assert front == {
            "library_name": "transformers",
            "pipeline_tag": "text-generation",
            "tags": ["anchored-preference-optimization", "preference-alignment", "apo_zero"],
        }
        assert f"# first, epoch-{number:02d}\n" in text
        assert f"the weights after step {step} of 6, in float32" in text
        facts = yaml.safe_load((result.out / "config.yaml").read_text())["facts"]
        identity = json.loads((result.out / "state/identity.json").read_text())
        assert f"`base-model`, digest of its files {identity['weights']}" in text
        assert f"`rows.jsonl`; 12 rows, SHA-256 of their token ids {facts['token_ids_sha256']}" in text
        assert f"`held-out.jsonl`; 6 rows, SHA-256 of their token ids {facts['eval_token_ids_sha256']}" in text
        assert "loss = s(-r_w) + s(r_l): eq. 7 of arXiv 2408.06266" in text and "`apo_zero.beta = 0.3`" in text
        shown = dict(re.findall(r"\| (eval_\S+) \| (\S+) \|", text))
        line = found[step - 1]
        assert shown == {name: f"{value:.6g}" for name, value in line.items() if name.startswith("eval_")}
        assert len(shown) >= 4


def test_a_card_names_no_path_of_the_machine(job):
    result, _ = job(reference_cache=str(job.tmp / "shared"))
    text = (result.out / "epoch-01/README.md").read_text()
    assert str(job.tmp) not in text and not re.search(r"(?<![\w.>])/\w", text)
    assert "reference_cache: shared" in text and "--eval-data held-out.jsonl" in text


def test_the_hubs_own_reader_takes_it_and_the_licence_is_open(job):
    result, _ = job()
    path = result.out / "epoch-02/README.md"
    card, text = ModelCard.load(path), path.read_text()
    assert card.data.library_name == "transformers" and card.data.pipeline_tag == "text-generation"
    assert card.data.license is None and card.data.base_model is None
    assert "# license: yours to name" in text and "# base_model: the hub id of base-model" in text


def test_the_command_of_a_card_starts_the_same_run(job):
    """Paths shortened, so that it is read where the files are."""
    config = job.config(loss="apo_zero:1,sft:0.25").with_flags(
        shuffle=False, max_grad_norm=0.5, hyperparameters={"apo_zero.beta": "0.2"}
    )
    result = train.run(config)
    text = (result.out / "epoch-02/README.md").read_text()
    (line,) = re.findall(r"\npython -m engine.train (.*)\n", text)
    again = cli.parse(TrainConfig, shlex.split(line), command="x", example="x")
    shortened = {"model": "base-model", "data": ("rows.jsonl",), "out": "first", "eval_data": "held-out.jsonl"}
    assert again.flat() == config.with_flags(**shortened).flat() | {"hyperparameters": {"apo_zero.beta": "0.2"}}
    assert "--no-shuffle" in line and "`sft` x 0.25" in text


def test_hub_ids_stand_where_the_hub_looks_for_them(job, tmp_path, monkeypatch):
    card = made(job, model="meta-llama/Llama-3.2-1B@main", data=("org/pairs:train", "rows.jsonl", "org/more"))
    front = yaml.safe_load(card.split("---\n")[1])
    assert front["base_model"] == "meta-llama/Llama-3.2-1B" and front["datasets"] == ["org/pairs", "org/more"]
    assert "`meta-llama/Llama-3.2-1B@main` aligned" in card and "# base_model" not in card
    snapshot = "cache/models--meta-llama--Llama-3.2-1B/snapshots/0123"
    front = yaml.safe_load(made(job, model=str(tmp_path / snapshot)).split("---\n")[1])
    assert front["base_model"] == "meta-llama/Llama-3.2-1B"
    monkeypatch.chdir(tmp_path)
    (tmp_path / "org/pairs").mkdir(parents=True)  # a folder here, not the hub's
    assert "datasets" not in yaml.safe_load(made(job, data=("org/pairs",)).split("---\n")[1])


def made(job, **changes):
    """A card as a run with these settings would write it."""
    config = job.config(**changes)
    objective = cards.Objective(config.objective.loss)
    card = cards.Card(config=config, objective=objective, settings={}, facts={}, n_steps=6, n_ranks=8)
    step = type("Step", (), {"number": 3, "epoch": 1})
    return card.text("epoch-01", step, {}, cards.torch.bfloat16)


def test_a_run_of_several_ranks_names_torchrun_and_rows_that_are_not_held_out_are_not_claimed(job):
    text = made(job, eval_data=None)
    assert "torchrun --nproc_per_node 8 -m engine.train --model base-model" in text
    assert "None: no rows were held out" in text


def test_markup_in_names_is_none(job, tmp_path):
    text = made(job, data=(str(tmp_path / "a`b|c\n# d.jsonl"),), out=str(tmp_path / "x\n---\ny"))
    assert "# x --- y, epoch-01\n" in text and "`a b c # d.jsonl`" in text
    assert text.count("\n---\n") == 1


def test_a_base_model_goes_from_card_to_card(job):
    """A run that starts where another ended names what that one began with; a stranger's card names nothing."""
    (job.model / "README.md").write_text("---\nbase_model: some/other\n---\na card of the source\n")
    result, _ = job(max_steps=1)
    text = (result.out / "epoch-01/README.md").read_text()
    assert "a card of the source" not in text and "\nbase_model" not in text  # its own, not a copy
    mine = text.replace("---\nlibrary_name", "---\nbase_model: meta-llama/Llama-3.2-1B\nlibrary_name", 1)
    (result.out / "epoch-01/README.md").write_text(mine)
    again, _ = job(model=str(result.out / "epoch-01"), out=str(job.tmp / "runs/second"), max_steps=1)
    assert cards.front_of(again.out / "epoch-01/README.md")["base_model"] == "meta-llama/Llama-3.2-1B"


def test_a_card_is_whole_or_not_there(job, monkeypatch):
    """It is written before the folder gets its name."""
    seen = []
    from system import files

    rename = files.os.rename
    monkeypatch.setattr(
        files.os, "rename", lambda a, b: (seen.append((b.name, (a / "README.md").exists())), rename(a, b))
    )
    job(max_steps=1)
    assert [has_card for name, has_card in seen if name == "epoch-01"] == [True]


def test_what_a_hook_saves_beside_it_claims_no_numbers(job):
    result = train.run(job.config(max_steps=1), Hooks(save_epoch=lambda t, folder: t.save(folder / "own")))
    assert (result.out / "epoch-01/README.md").exists() and not (result.out / "epoch-01/own/README.md").exists()


def test_a_conversion_takes_the_card_along_and_says_what_was_done(job, capsys):
    result, _ = job(max_steps=1)
    before = (result.out / "epoch-01/README.md").read_text()
    asked = ["--model", str(result.out / "epoch-01"), "--dtype", "bfloat16"]
    convert.main([*asked, "--out", str(job.tmp / "narrow")])
    assert (job.tmp / "narrow/README.md").read_text() == (
        f"{before}\n**Converted** from float32 to bfloat16 since, rounded to the nearest: the numbers above are of the "
        "weights before.\n"
    )
    assert "not copied" not in capsys.readouterr().err
    convert.main([*asked, "--out", str(job.tmp / "noisy"), "--rounding", "stochastic", "--seed", "3"])
    assert "since, rounded stochastically with seed 3: the" in (job.tmp / "noisy/README.md").read_text()


def test_a_folder_inside_an_epoch_has_the_numbers_of_its_own_step(job):
    """Measured every second step, saved every third: only step 6's folder has numbers, those of its line."""
    result, found = job(batch_size=2, epochs=1, eval_every=2, save_every=3)
    text = {p.name: (p / "README.md").read_text() for p in result.checkpoints}
    (inside,) = [name for name in text if name.startswith("step-")]
    assert f"# first, {inside}\n" in text[inside] and "the weights after step 3 of 6" in text[inside]
    assert "none were measured at this step" in text[inside]
    shown = dict(re.findall(r"\| (eval_\S+) \| (\S+) \|", text["epoch-01"]))
    assert shown["eval_loss"] == f"{found[-1]['eval_loss']:.6g}"
