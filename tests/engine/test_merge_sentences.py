"""What engine.merge cannot do is one sentence and exit code 2, and leaves nothing behind."""

import json
import re
import shutil
import sys
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from engine import merge, weights
from system import InputError
from tests import forks, tiny
from tests.engine import adapter_of_any_base
from tests.rows import id_rows

SIZES: dict[str, Any] = {"num_hidden_layers": 1, "hidden_size": 16, "intermediate_size": 24}


@pytest.fixture
def case(tmp_path):
    """A base, an adapter of it, and what to type."""

    class Case:
        base = tmp_path / "base"
        adapter = tmp_path / "adapter"
        out = tmp_path / "out"
        tmp = tmp_path

        def refused(self, *flags, adapter=None):
            """What is said where these flags are given; nothing is written."""
            before = {p.name for p in tmp_path.iterdir()}
            with pytest.raises(InputError) as caught:
                merge.main(["--adapter", str(adapter or self.adapter), "--out", str(self.out), *map(str, flags)])
            assert {p.name for p in tmp_path.iterdir()} == before
            assert "\n" not in str(caught.value) or "--data" in flags  # whose faults are listed
            return str(caught.value)

        def changed(self, **keys):
            """The adapter with other keys in its adapter_config.json."""
            made = shutil.copytree(self.adapter, tmp_path / "changed")
            path = made / "adapter_config.json"
            path.write_text(json.dumps(json.loads(path.read_text()) | keys))
            return made

    weights.save(tiny.random_llama(**SIZES), Case.base)
    adapter_of_any_base.write(Case.adapter, Case.base)
    return Case()


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--dtype", "nf4"], "--dtype nf4: merged weights are not written quantised, since .*; write --dtype bfloat16"),
        (["--dtype", "int8"], "--dtype int8: merged weights are not written quantised"),
        (["--dtype", "half"], "--dtype: 'half' is not one of float32, bfloat16, float16"),
        (
            ["--rounding", "stochastic"],
            "--rounding stochastic: rounds to bfloat16, not to float32; name --dtype bfloat",
        ),
        (["--seed", "-1"], "--seed: -1 has to be between 0 and"),
        (["--base-dtype", "fp8"], "--base-dtype: .*fp8"),
        (["--max-tokens", "9"], "--max-tokens: applies to the rows of --data; add --data, or leave it out"),
        (["--micro-tokens", "9"], "--micro-tokens: applies to the rows of --data"),
        (["--data", "nowhere.jsonl"], "nowhere.jsonl: no such file"),
        (["--model", "nowhere"], "nowhere: no such file or folder"),
    ],
)
def test_a_wrong_flag_is_named(case, flags, said):
    assert re.search(said, case.refused(*flags))


def test_a_folder_that_is_there_stays(case):
    case.out.mkdir()
    assert case.refused() == f"{case.out}: exists already; give another file, or remove it"


def test_the_two_folders_are_told_apart(case):
    said = case.refused("--model", case.adapter)
    assert said == f"{case.adapter}: is an adapter, not a base; merge it into its own base first, and give that folder"
    said = case.refused(adapter=case.base)
    assert said == f"{case.base}: a model, not an adapter (adapter_config.json is not there); name it with --model"


def test_an_adapter_that_names_no_base_asks_for_one(case):
    adapter = case.changed(base_model_name_or_path=None)
    assert case.refused(adapter=adapter).startswith(f"{adapter}: an adapter that does not name its base ")
    gone = json.loads((adapter / "adapter_config.json").read_text()) | {"base_model_name_or_path": "gone/for ever"}
    (adapter / "adapter_config.json").write_text(json.dumps(gone))
    assert case.refused(adapter=adapter).startswith(f"{adapter}: its base, ")


def test_an_adapter_of_another_base_names_the_tensor(case):
    deeper, wider = case.tmp / "deeper", case.tmp / "wider"
    weights.save(tiny.random_llama(**SIZES | {"num_hidden_layers": 2}), deeper)
    weights.save(tiny.random_llama(**SIZES | {"intermediate_size": 32}), wider)
    adapter = adapter_of_any_base.write(case.tmp / "deep", deeper)
    said = case.refused("--model", case.base, adapter=adapter)
    assert said == (
        f"{adapter}: has an adapter for model.layers.1.mlp.down_proj, which {case.base} lacks; give the base that it "
        "was trained on"
    )
    said = case.refused("--model", wider)
    assert "base_model.model.model.layers.0.mlp.down_proj.lora_A.weight is [4, 24]" in said and "[4, 32]" in said


def test_an_adapter_of_another_vocabulary_is_named(case):
    larger = case.tmp / "larger"
    weights.save(tiny.random_llama(**SIZES, vocab_size=120), larger)
    adapter = adapter_of_any_base.write(case.tmp / "whole", larger, whole=("lm_head",))
    said = case.refused("--model", case.base, adapter=adapter)
    assert "lm_head.weight is [120, 16]" in said and "[101, 16]" in said


@pytest.mark.slow
def test_tokenizers_of_two_vocabularies_are_told_apart(case):
    texts = ["some words to learn merges from"] * 9, ["quite other things are written here"] * 9
    tiny.write_tokenizer(case.adapter, texts[0])
    n = 1 + max(token["id"] for token in json.loads((case.adapter / "tokenizer.json").read_text())["added_tokens"])
    said = case.refused()
    assert said == (
        f"{case.adapter}: its tokenizer has {n} tokens, and {case.base} has rows for 101; give the base that it was "
        "trained on"
    )
    base = tiny.write_model(case.tmp / "other", texts[1], **SIZES)
    said = case.refused("--model", base)
    assert said.startswith(f"{case.adapter}: token ") and f"in {base}; give the base that it was trained on" in said
    shutil.copy(case.adapter / "tokenizer.json", base)
    path = base / "tokenizer.json"  # a control token that is called otherwise is no other vocabulary
    path.write_text(path.read_text().replace("<|end_header_id|>", "<|spare_1|>"))
    merge.main(["--adapter", str(case.adapter), "--out", str(case.out), "--model", str(base)])


def test_a_base_that_another_program_quantised_is_refused(case):
    path = case.base / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"quantization_config": {"quant_method": "gptq"}}))
    assert "quantization_config" in case.refused()


def test_a_sum_beyond_float16_is_named(case):
    path = case.base / "model.safetensors"
    tensors = load_file(path)
    tensors["model.layers.0.mlp.up_proj.weight"][0, 0] = 1e6
    save_file(tensors, path)
    said = case.refused("--dtype", "float16")
    assert said.startswith(f"{case.out}: model.layers.0.mlp.up_proj.weight holds 1,000,0")
    assert "beyond 65,504, the largest float16; store float32 or bfloat16" in said


def test_numbers_that_are_none_are_named(case):
    path = case.adapter / "adapter_model.safetensors"
    tensors = load_file(path)
    name = "base_model.model.model.layers.0.mlp.up_proj.lora_B.weight"
    tensors[name][0, 0] = torch.nan
    save_file(tensors, path)
    assert case.refused() == f"{path}: {name} holds NaN or infinity; copy the folder again"


def test_rows_that_cannot_be_used_end_it_before_anything_is_written(case):
    rows = tiny.write_rows(case.tmp / "rows.jsonl", [{"prompt_ids": [1], "chosen_ids": [2], "rejected_ids": [999]}])
    assert f"{rows}:1" in case.refused("--data", rows)


def test_another_base_than_the_adapter_names_is_said_and_rows_are_measured(case, capfd):
    moved = case.tmp / "moved"
    shutil.copytree(case.base, moved)
    rows = tiny.write_rows(case.tmp / "rows.jsonl", id_rows(4))
    asked = ["--adapter", str(case.adapter), "--out", str(case.out), "--model", str(moved), "--data", str(rows)]
    merge.main(asked)
    said = capfd.readouterr()
    assert f"{case.adapter}: names {case.base.resolve()} as its base, and is used with {moved}\n" in said.err
    assert f"{case.out}: of the adapter's log-ratios of 8 responses 100.0% survive" in said.err
    assert said.out == f"{case.out}\n"


@pytest.mark.slow
def test_the_command_says_it_in_one_line_with_exit_code_2(case):
    for flags, code in ((["--dtype", "nf4"], 2), (["--model", case.adapter], 2), ([], 0)):
        asked = [sys.executable, "-m", "engine.merge", "--adapter", case.adapter, "--out", case.out, *flags]
        ended = forks.run(asked, env=tiny.environment(), timeout=300)
        assert ended.returncode == code and "Traceback" not in ended.stderr and ended.stderr.count("\n") == 1
        assert ended.stdout == ("" if code else f"{case.out}\n")
