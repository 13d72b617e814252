"""An adapter that a run's reference has, wherever it computes: beside the policy, before it, on two ranks; and the
tokenizer and template that an adapter brings with it.
"""

import json
import shutil

import pytest
import torch

from data import contrast
from engine import convert, score
from engine.bench import bench
from engine.inputs import TrainingInputs
from system import InputError
from tests import tiny
from tests.engine.adapter_folders import by_torchrun, config_of, run_of, write_adapter, write_folders
from tests.metrics import lines

OTHER_TEMPLATE = tiny.TEMPLATE.replace("<|start_header_id|>", "<|start_header_id|>the ")


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    return write_folders(tmp_path_factory.mktemp("references"))


STARTS = [{}, {"lora_rank": None, "adapter": "second"}]


@pytest.mark.parametrize("start", STARTS, ids=["fresh", "given"])
def test_a_reference_that_is_read_before_the_policy_has_its_adapter(made, tmp_path, start):
    start = {name: str(made / v) if name == "adapter" else v for name, v in start.items()}
    of = {how: run_of(made, tmp_path / how, reference=how, reference_model=str(made / "adapter"), **start)
          for how in ("fused", "precompute")}  # fmt: skip
    base = {"reference_model": "base"} if "adapter" in start else {}
    bare = run_of(made, tmp_path / "bare", reference="precompute", **base, **start)
    for name in ("logratios/chosen", "logratios/rejected"):
        assert of["precompute"][0][name] == pytest.approx(of["fused"][0][name], abs=1e-4)
        assert abs(of["fused"][0][name] - bare[0][name]) > 0.1


def test_held_out_rows_are_measured_against_the_adapter_too(made, tmp_path):
    held = {"eval_data": str(made / "pairs.jsonl"), "reference_model": str(made / "adapter")}
    found = [run_of(made, tmp_path / how, reference=how, **held)[-1] for how in ("fused", "precompute")]
    for name in ("eval_logratios/chosen", "eval_logratios/rejected"):
        assert found[0][name] == pytest.approx(found[1][name], abs=1e-4)


@pytest.mark.parametrize("reference", ["other", "copy"])
def test_a_reference_that_moves_is_on_the_policys_base(made, tmp_path, reference):
    if reference == "copy":
        shutil.copytree(made / "base", tmp_path / "copy")
    other = str(made / "other" if reference == "other" else tmp_path / "copy")
    with pytest.raises(InputError, match=r"^--reference-update hard: with an adapter .* and .* is another model"):
        TrainingInputs(config_of(made, tmp_path / "run", reference_model=other, reference_update="hard"))


def test_an_adapters_base_may_be_a_copy_of_the_model(made, tmp_path):
    """One base in memory, whatever it is called; another model's is a model of its own."""
    copy = shutil.copytree(made / "base", tmp_path / "copy")
    for model, shares in ((copy, True), (made / "other", False)):
        inputs = TrainingInputs(
            config_of(made, tmp_path / "run", model=str(model), reference_model=str(made / "adapter"))
        )
        assert inputs.adapting.shares_base is shares
    inputs = TrainingInputs(
        config_of(made, tmp_path / "run", model=str(copy), lora_rank=None, adapter=str(made / "adapter"),
              reference_model=str(made / "adapter"))
    )  # fmt: skip
    assert inputs.adapting.is_start


def test_a_run_from_an_adapter_has_its_template_and_hands_it_on(made, tmp_path, capsys):
    adapter = write_adapter(tmp_path / "adapter", made / "base", tokenizer=True)
    (adapter / "chat_template.jinja").write_text(OTHER_TEMPLATE)
    run_of(made, tmp_path / "run", lora_rank=None, adapter=str(adapter))
    assert f"template: {adapter}/chat_template.jinja" in (tmp_path / "run/first_example.txt").read_text()
    assert (tmp_path / "run/epoch-01/chat_template.jinja").read_text() == OTHER_TEMPLATE
    assert f"{adapter}: its own tokenizer and chat template are used" in capsys.readouterr().err
    for path in adapter.glob("tokenizer*"):
        path.unlink()
    run_of(made, tmp_path / "bare", lora_rank=None, adapter=str(adapter))
    assert "are used" not in capsys.readouterr().err


def test_an_adapter_of_another_vocabulary_is_refused_where_it_is_scored(made, tmp_path):
    adapter = write_adapter(tmp_path / "adapter", made / "base", tokenizer=True)
    found = json.loads((adapter / "tokenizer.json").read_text())
    ids = found["model"]["vocab"]
    first, second = [word for word in ids if word.isalpha()][:2]
    ids[first], ids[second] = ids[second], ids[first]
    (adapter / "tokenizer.json").write_text(json.dumps(found))
    flags = ["--data", str(made / "pairs.jsonl"), "--out", str(tmp_path / "out.jsonl")]
    with pytest.raises(InputError, match=r"adapter: token \d+ of its tokenizer is .*; give the base that it was"):
        score.main(["--model", str(made / "base"), "--adapter", str(adapter), *flags])


def test_commands_that_take_no_adapter_say_so(made, tmp_path):
    with pytest.raises(InputError, match=r"^--shape: .*adapter: is an adapter; name its base, and its rank"):
        bench.write_model(tmp_path / "model", str(made / "adapter"), None)
    flags = ["--model", str(made / "other"), "--out", str(tmp_path / "out"), "--dtype", "bfloat16"]
    with pytest.raises(InputError, match=r"adapter: is an adapter, not a whole model; merge it first: engine\.merge"):
        convert.main([*flags, "--base", str(made / "adapter")])
    contrast.main([str(made / "pairs.jsonl"), "--tokenizer", str(made / "adapter")])  # its base's


def test_exclusions_are_read_as_peft_reads_them(made, tmp_path):
    """A text is an expression over whole names, so that a short name means none; a list holds ends of names."""
    for exclude, shown in (("k_proj", None), (["q_proj"], "does not name"), (r".*\.q_proj", "does not name")):
        adapter = shutil.copytree(made / "adapter", tmp_path / "adapter", dirs_exist_ok=True)
        said = json.loads((adapter / "adapter_config.json").read_text())
        (adapter / "adapter_config.json").write_text(json.dumps(said | {"exclude_modules": exclude}))
        run = config_of(made, tmp_path / "run", lora_rank=None, adapter=str(adapter))
        if shown is None:
            TrainingInputs(run)
        else:
            with pytest.raises(InputError, match=shown):
                TrainingInputs(run)


WRONG = [
    ({"layers_to_transform": 0}, r"layers_to_transform is 0, and name the layers in target_modules"),
    ({"lora_alpha": 10**400}, r"lora_alpha is 1000.*; it has to be a number above 0"),
    ({"target_modules": "a{99999999999}"}, r"target_modules: 'a\{99999999999\}' is not a regular expression"),
]


@pytest.mark.parametrize(("changes", "said"), WRONG)
def test_values_that_would_be_misread_are_named(made, tmp_path, changes, said):
    adapter = shutil.copytree(made / "adapter", tmp_path / "adapter")
    config = json.loads((adapter / "adapter_config.json").read_text())
    (adapter / "adapter_config.json").write_text(json.dumps(config | changes))
    with pytest.raises(InputError, match=said):
        TrainingInputs(config_of(made, tmp_path / "run", lora_rank=None, adapter=str(adapter)))


TWO = [
    {"loss": "tdpo2", "train_also": "lm_head"},
    {"loss": "tdpo2", "shard_size": "2", "reshard": "yes"},
    {"loss": "dpo", "base_dtype": "nf4"},
    {"loss": "dpo", "reference": "precompute", "reference_model": "adapter"},
]


@pytest.mark.slow
@pytest.mark.parametrize("changes", TWO, ids=lambda c: " ".join(c.values()))
def test_two_ranks_compute_what_one_does(made, tmp_path, changes):
    changes = changes | ({"reference_model": str(made / "adapter")} if "reference_model" in changes else {})
    alone = {name: v for name, v in changes.items() if name not in ("shard_size", "reshard")}
    one = run_of(made, tmp_path / "one", **{n: (v,) if n == "train_also" else v for n, v in alone.items()})
    flags = ["--model", made / "base", "--data", made / "pairs.jsonl", "--out", tmp_path / "two", "--lr", "1e-2"]
    flags += ["--epochs", "1", "--batch-size", "4", "--lora-rank", "4", "--track", "none", "--dtype", "float32"]
    for name, value in changes.items():
        flags += [f"--{name.replace('_', '-')}", value]
    by_torchrun("engine.train", *flags)
    two = lines(tmp_path / "two")
    assert len(one) == len(two) == 2
    for ours, theirs in zip(one, two, strict=True):
        assert theirs["loss"] == pytest.approx(ours["loss"], rel=1e-5)
        assert torch.tensor(theirs["grad_norm"]) == pytest.approx(ours["grad_norm"], rel=1e-4)
