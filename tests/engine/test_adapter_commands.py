"""Commands on an adapter's folder, or on a base with --adapter: they compute W + s B A, or say why not."""

import json
import shutil

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file

from engine import convert, generate, plan, publish, score, train, weights
from engine.config import TrainConfig
from engine.generate import GenerateConfig
from engine.model import Adapter
from engine.run import AdapterCard
from system import InputError
from tests.engine.adapter_folders import by_torchrun, run_of, write_adapter, write_folders, write_merged
from tests.engine.hub import serving
from tests.metrics import lines

pytestmark = [
    pytest.mark.slow,  # the fast set has tests/engine/test_adapters.py
    pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning"),  # of huggingface_hub's own upload
]


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    return write_folders(tmp_path_factory.mktemp("adapters"), tokenizer=True)


def scored(tmp_path, data, *flags):
    """engine.score's lines of a file of pairs, [n, 2] float64."""
    out = tmp_path / "logps.jsonl"
    out.unlink(missing_ok=True)
    score.main([*map(str, flags), "--data", str(data), "--out", str(out), "--dtype", "float32"])
    found = [json.loads(line) for line in out.read_text().splitlines()]
    return torch.tensor([[x["logps/chosen"], x["logps/rejected"]] for x in found], dtype=torch.float64)


def answers(tmp_path, prompts, *flags, name="answers.jsonl"):
    """engine.generate's greedy answers."""
    out = tmp_path / name
    out.unlink(missing_ok=True)
    more = ["--temperature", "0", "--max-new-tokens", "12", "--dtype", "float32"]
    generate.main([*map(str, flags), "--prompts", str(prompts), "--out", str(out), *more])
    return [json.loads(line)["response"] for line in out.read_text().splitlines()]


def of(found):
    """The mean of chosen and of rejected."""
    return found.mean(dim=0).tolist()


HELD = [None, "int8", *(pytest.param(held, marks=pytest.mark.slow) for held in ("nf4", "bfloat16"))]


@pytest.mark.parametrize("held", HELD)
def test_the_score_of_an_epochs_folder_is_what_the_run_has_measured(made, tmp_path, held):
    (line,) = [
        x
        for x in run_of(made, made / f"run-{held}", eval_data=str(made / "pairs.jsonl"), base_dtype=held)
        if "eval_logps/chosen" in x
    ]
    measured = [line["eval_logps/chosen"], line["eval_logps/rejected"]]
    epoch = made / f"run-{held}/epoch-01"
    assert of(scored(tmp_path, made / "pairs.jsonl", "--model", epoch)) == pytest.approx(measured, abs=1e-5)
    beside = scored(tmp_path, made / "pairs.jsonl", "--model", made / "base", "--adapter", epoch)
    assert of(beside) == pytest.approx(measured, abs=1e-5)
    start = scored(tmp_path, made / "pairs.jsonl", "--model", made / "base")
    assert abs(of(start)[0] - measured[0]) > 0.1
    if held in ("int8", "nf4"):
        plain = scored(tmp_path, made / "pairs.jsonl", "--model", epoch, "--base-dtype", "float32")
        assert abs(of(plain)[0] - measured[0]) > 1e-3


def test_the_score_of_an_adapter_is_that_of_the_merged_weights(made, tmp_path):
    rows = made / "pairs.jsonl"
    found = scored(tmp_path, rows, "--model", made / "adapter")
    merged = write_merged(tmp_path / "merged", made / "base", made / "adapter")
    torch.testing.assert_close(found, scored(tmp_path, rows, "--model", merged), rtol=0, atol=2e-5)
    assert (found - scored(tmp_path, rows, "--model", made / "base")).abs().max() > 1
    found = scored(tmp_path, rows, "--model", made / "adapter", "--base-dtype", "int8")
    merged = write_merged(tmp_path / "merged-int8", made / "base", made / "adapter", held="int8")
    torch.testing.assert_close(found, scored(tmp_path, rows, "--model", merged), rtol=0, atol=2e-5)


def test_the_base_that_is_named_counts(made, tmp_path, capsys):
    found = scored(tmp_path, made / "pairs.jsonl", "--model", made / "other", "--adapter", made / "adapter")
    said = f"{made / 'adapter'}: names {made / 'base'} as its base, and is used with {made / 'other'}"
    assert said in capsys.readouterr().err
    merged = write_merged(tmp_path / "merged", made / "other", made / "adapter")
    expected = scored(tmp_path, made / "pairs.jsonl", "--model", merged)
    torch.testing.assert_close(found, expected, rtol=0, atol=2e-5)
    scored(tmp_path, made / "pairs.jsonl", "--model", made / "base", "--adapter", made / "adapter")
    assert "names" not in capsys.readouterr().err


def test_greedy_answers_are_those_of_the_merged_weights(made, tmp_path):
    merged = write_merged(tmp_path / "merged", made / "base", made / "adapter")
    prompts = made / "prompts.jsonl"
    expected = answers(tmp_path, prompts, "--model", merged)
    assert answers(tmp_path, prompts, "--model", made / "adapter") == expected
    assert answers(tmp_path, prompts, "--model", made / "base", "--adapter", made / "adapter") == expected
    assert answers(tmp_path, prompts, "--model", made / "base") != expected and len(set(expected)) > 3
    int8 = write_merged(tmp_path / "int8", made / "base", made / "adapter", held="int8")
    expected = answers(tmp_path, prompts, "--model", int8)
    assert answers(tmp_path, prompts, "--model", made / "adapter", "--base-dtype", "int8") == expected


def test_answers_on_their_way_are_of_one_adapter_and_of_one_base(made, tmp_path, monkeypatch):
    """What is in OUT.partial is not gone on with by another adapter, on another base, or one that is held otherwise."""
    again = write_adapter(tmp_path / "again", made / "base", seed=1)
    flags = ["--model", made / "base", "--adapter", made / "adapter"]
    others = [
        ["--model", made / "base"],
        ["--model", made / "base", "--adapter", again],
        ["--model", made / "other", "--adapter", made / "adapter"],
        [*flags, "--base-dtype", "int8"],
    ]
    out = tmp_path / "answers.jsonl"
    with monkeypatch.context() as patched, pytest.raises(FileNotFoundError):
        patched.setattr(generate.Partial, "finish", lambda *_: None)  # as if it had been stopped before
        answers(tmp_path, made / "prompts.jsonl", *flags)
    assert len((tmp_path / "answers.jsonl.partial").read_text().splitlines()) == 11 and not out.exists()
    for other in others:
        with pytest.raises(InputError, match="holds answers of another model, prompts or settings"):
            answers(tmp_path, made / "prompts.jsonl", *other)
    assert len(answers(tmp_path, made / "prompts.jsonl", "--model", made / "adapter")) == 10  # the same, by itself


REFUSED = [
    (["--model", "base", "--base-dtype", "int8"], "--base-dtype int8: applies to the base of an adapter, and .*base"),
    (["--model", "adapter", "--adapter", "adapter"], "--model .*adapter: is an adapter itself, and --adapter names"),
    (["--model", "base", "--adapter", "other"], r"other: a model, not an adapter \(adapter_config.json is not"),
    (["--model", "base", "--adapter", "gone"], "gone: no such file or folder; give a checkpoint folder"),
]  # fmt: skip


@pytest.mark.parametrize(("flags", "said"), REFUSED)
@pytest.mark.parametrize("act", [scored, answers])
def test_flags_that_do_not_go_together_are_a_sentence(made, tmp_path, flags, said, act):
    rows = made / ("pairs.jsonl" if act is scored else "prompts.jsonl")
    given = [flag if flag.startswith("--") or flag == "int8" else made / flag for flag in flags]
    with pytest.raises(InputError, match=said):
        act(tmp_path, rows, *given)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("flag", [{"adapter": "a"}, {"base_dtype": "int8"}])
def test_an_adapter_is_of_a_checkpoint_and_not_of_a_server(flag):
    name = f"--{next(iter(flag)).replace('_', '-')}"
    with pytest.raises(InputError, match=rf"^{name}: applies to a local checkpoint, not to --endpoint; leave it out"):
        GenerateConfig(model="m", prompts="p", out="o", endpoint=("http://h/v1",), **flag)


def test_a_base_that_is_gone_is_named_with_its_remedy(made, tmp_path):
    folder = write_adapter(tmp_path / "adapter", made / "base", names=str(tmp_path / "gone"))
    for act, rows in ((scored, "pairs.jsonl"), (answers, "prompts.jsonl")):
        with pytest.raises(
            InputError, match=rf"^{folder}: its base, {tmp_path}/gone, is not there .*--model BASE --adap"
        ):
            act(tmp_path, made / rows, "--model", folder)


def test_an_adapter_is_no_model_to_train_plan_or_convert(made, tmp_path):
    folder, rows = str(made / "adapter"), str(made / "pairs.jsonl")
    with pytest.raises(InputError, match=r"^--model .*adapter: is an adapter; name its base by --model and the"):
        train.run(TrainConfig(model=folder, data=rows, out=str(tmp_path / "run")))
    with pytest.raises(InputError, match=r"^--model .*adapter: is an adapter; name its base by --model"):
        plan.main(["--model", folder, "--data", rows])
    with pytest.raises(InputError, match=r"^--model .*adapter: is an adapter, not a whole model; use engine\.merge"):
        convert.main(["--model", folder, "--out", str(tmp_path / "out"), "--dtype", "bfloat16"])
    assert not list(tmp_path.iterdir())


def test_digests_of_an_adapter_cover_its_base_and_how_that_is_held(made, tmp_path):
    base = shutil.copytree(made / "base", tmp_path / "base")
    folder = write_adapter(tmp_path / "adapter", base)
    found = [weights.file_digests(folder)]
    (folder / "engine.json").write_text('{"base_dtype": "int8"}')
    found.append(weights.file_digests(folder))
    tensors = load_file(base / "model.safetensors")
    tensors["model.norm.weight"] += 1
    save_file(tensors, base / "model.safetensors")
    found.append(weights.file_digests(folder))
    tensors = load_file(folder / "adapter_model.safetensors")
    save_file({name: 2 * tensor for name, tensor in tensors.items()}, folder / "adapter_model.safetensors")
    found.append(weights.file_digests(folder))
    assert len({b"".join(one) for one in found}) == 4
    assert weights.stored_dtypes(folder).main == torch.float32


# --- references ----------------------------------------------------------------------------------------------------


def whole_run(made, tmp_path, other, name, **changes):
    """The lines of a run of all weights against another reference."""
    given = {"model": str(made / "other"), "data": str(made / "pairs.jsonl"), "eval_data": str(made / "pairs.jsonl")}
    given |= {"reference_model": str(other), "out": str(tmp_path / name), "lr": 1e-4, "epochs": 2, "batch_size": 4}
    return lines(train.run(TrainConfig(**(given | changes))).out)


@pytest.mark.slow
@pytest.mark.parametrize("reference", ["fused", "precompute"])
def test_an_adapter_can_be_the_reference_of_a_run_of_all_weights(made, tmp_path, reference):
    merged = write_merged(tmp_path / "merged", made / "base", made / "adapter")
    found = whole_run(made, tmp_path, made / "adapter", "a", reference=reference)
    expected = whole_run(made, tmp_path, merged, "b", reference=reference)
    against_base = whole_run(made, tmp_path, made / "base", "c", reference=reference)
    for one, other, third in zip(found, expected, against_base, strict=True):
        for name in ("loss", "logratios/chosen", "logratios/rejected", "eval_logratios/margins"):
            assert name not in one or one[name] == pytest.approx(other[name], abs=1e-4)
        assert abs(one["logratios/chosen"] - third["logratios/chosen"]) > 0.1
    identity = [json.loads((tmp_path / f"{name}/state/identity.json").read_text()) for name in "ac"]
    assert identity[0]["reference weights"] != identity[1]["reference weights"]


def test_a_reference_that_moves_is_no_adapter(made, tmp_path):
    with pytest.raises(
        InputError, match=r"^--reference-update hard: moves the .*adapter is an adapter beside its base;"
    ):
        whole_run(made, tmp_path, made / "adapter", "a", reference_update="hard")
    assert not (tmp_path / "a").exists()


@pytest.mark.slow
def test_a_run_whose_base_is_gone_says_so_when_it_goes_on(made, tmp_path):
    base = shutil.copytree(made / "base", tmp_path / "base")
    given = {"model": str(base), "data": str(made / "pairs.jsonl"), "out": str(tmp_path / "run"), "lora_rank": 2}
    given |= {"epochs": 2, "batch_size": 4}
    train.run(TrainConfig(**given, stop_after=1))
    shutil.rmtree(base)
    with pytest.raises(
        InputError, match=f"^{base}: no such folder, and the base of an adapter is read from it; put it back there$"
    ):
        train.run(TrainConfig(**given, resume=True))
    shutil.copytree(made / "base", base)
    assert train.run(TrainConfig(**given, resume=True)).is_finished


# --- cards and publishing ------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_card_says_what_the_adapter_is_and_how_it_is_loaded(made, tmp_path):
    base = shutil.copytree(made / "base", tmp_path / "base")
    (base / "README.md").write_text("---\nbase_model: org/base\ntags: [anchored-preference-optimization]\n---\n")
    run_of(made, tmp_path / "run", model=str(base), base_dtype="int8", lora_targets=("q_proj", "up_proj"))
    text = (tmp_path / "run/epoch-01/README.md").read_text()
    assert yaml.safe_load(text.split("---\n")[1]) == {
        "library_name": "peft",
        "pipeline_tag": "text-generation",
        "base_model": "org/base",
        "base_model_relation": "adapter",
        "tags": ["anchored-preference-optimization", "preference-alignment", "lora", "dpo"],
    }
    for said in (
        "A LoRA adapter for `base`, aligned on preferences with the objective `dpo`: rank 4, alpha 8, on q_proj, up_",
        "its numbers after step 2 of 2, in float32.",
        'AutoPeftModelForCausalLM.from_pretrained("epoch-01")',
        "vllm serve org/base --enable-lora --max-lora-rank 8 --lora-modules epoch-01=epoch-01",
        "python -m engine.merge --model org/base --adapter epoch-01 --out epoch-01-merged",
        "a base whose matrices are held in int8 (engine.json)",
        "--lora-rank 4 --lora-targets q_proj up_proj --base-dtype int8",
    ):
        assert said in text, said
    assert "transformers and vLLM load as they are" not in text and str(tmp_path) not in text
    run_of(made, tmp_path / "next", model=str(base), lora_rank=None, adapter=str(tmp_path / "run/epoch-01"))
    text, identity = ((tmp_path / "next" / x).read_text() for x in ("epoch-01/README.md", "state/identity.json"))
    assert f"- adapter that it started from: `epoch-01`, digest of its files {json.loads(identity)['adapter']}" in text
    assert "held in int8" not in text


@pytest.mark.parametrize(
    ("rank", "whole", "said"),
    [
        (16, ("lm_head",), "vLLM serves no adapter with lm_head whole; `python -m engine.merge"),
        (513, (), "vLLM serves no adapter of a rank above 512; `python -m engine.merge"),
        (17, (), "--max-lora-rank 32 "),
    ],
)
def test_a_card_says_what_vllm_does_not_serve(rank, whole, said):
    adapter = Adapter(rank=rank, alpha=1, modules=("a",), whole=whole)
    card = AdapterCard(adapter=adapter, targets=["q_proj"], base_dtype="float32", start=None)
    assert said in "\n".join(card.use(None, "epoch-01")) and ("vllm serve" in said or "--max" in said) == (rank == 17)


@pytest.fixture
def hub(monkeypatch):
    """A stand-in for the hub, which the library in this process asks."""
    with serving() as found:
        monkeypatch.setenv("HF_TOKEN", "hf_test")
        monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", found.address)
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_DISABLE_XET", True)
        yield found


def content(folder):
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def test_an_adapter_is_published_in_the_place_of_a_model_and_a_model_in_that_of_an_adapter(made, tmp_path, hub, capsys):
    folder = write_adapter(tmp_path / "adapter", made / "base", tokenizer=True)
    publish.main([str(made / "base"), "--repo", "org/m"])
    publish.main([str(folder), "--repo", "org/m"])
    held, left = hub.repos["org/m"]["files"], {"generation_config.json"}
    assert {name: data for name, data in held.items() if name not in left} == content(folder)
    said = f"adapter_config.json: names its base by a path of this machine, {made / 'base'}; write the base's hub id"
    assert said in capsys.readouterr().err
    publish.main([str(made / "base"), "--repo", "org/m"])
    assert held == content(made / "base")


def test_an_adapter_of_a_hubs_base_is_published_without_a_look_at_that(made, tmp_path, hub, capsys):
    folder = write_adapter(tmp_path / "adapter", made / "base", names="org/base")
    publish.main([str(folder), "--repo", "org/m", "--dry-run"])
    assert "adapter_model.safetensors" in capsys.readouterr().out and not hub.asked
    (folder / "adapter_model.safetensors").write_bytes((folder / "adapter_model.safetensors").read_bytes()[:-9])
    with pytest.raises(InputError, match=r"adapter_model\.safetensors"):
        publish.main([str(folder), "--repo", "org/m", "--dry-run"])


@pytest.mark.slow
def test_two_processes_score_an_adapter(made, tmp_path):
    flags = ["--model", made / "adapter", "--base-dtype", "int8"]
    expected = scored(tmp_path, made / "pairs.jsonl", *flags)
    by_torchrun("engine.score", *flags, "--data", made / "pairs.jsonl", "--out", tmp_path / "two.jsonl")
    found = [json.loads(line) for line in (tmp_path / "two.jsonl").read_text().splitlines()]
    assert [x["logps/chosen"] for x in found] == pytest.approx(expected[:, 0].tolist(), abs=1e-4)


@pytest.mark.slow
def test_two_processes_train_against_an_adapter(made, tmp_path):
    expected = whole_run(made, tmp_path, made / "adapter", "one", epochs=1)
    flags = ["--model", made / "other", "--reference-model", made / "adapter", "--data", made / "pairs.jsonl"]
    flags += ["--epochs", 1, "--batch-size", 4, "--lr", 1e-4, "--track", "none", "--out", tmp_path / "two"]
    by_torchrun("engine.train", *flags)
    for one, two in zip(expected, lines(tmp_path / "two"), strict=True):
        assert one["logratios/chosen"] == pytest.approx(two["logratios/chosen"], abs=1e-4)
