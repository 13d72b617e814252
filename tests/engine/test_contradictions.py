"""Folders whose files or fields contradict each other: taken as transformers takes them, named, or refused, and that
by every command which opens a model.
"""

import json
import re

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from engine import convert, generate, plan, score, train, weights
from engine.train import TrainConfig
from system import InputError
from tests import tiny
from tests.rows import id_rows

WHOLE, INDEX = "model.safetensors", "model.safetensors.index.json"
EMBED, HEAD, NORM = "model.embed_tokens.weight", "lm_head.weight", "model.norm.weight"


def write(path, *, dtype=torch.float32, shard_bytes=10**9, seed=0, **changes):
    weights.save(tiny.random_llama(seed=seed, **changes), path, dtype=dtype, shard_bytes=shard_bytes)
    return path


def edit(folder, *, without=(), **changes):
    path = folder / "config.json"
    made = {k: v for k, v in json.loads(path.read_text()).items() if k not in without} | changes
    path.write_text(json.dumps(made))


def change(folder, what):
    """Rewrites model.safetensors after a change to its dictionary of tensors."""
    tensors = load_file(folder / WHOLE)
    what(tensors)
    save_file(tensors, folder / WHOLE, metadata={"format": "pt"})


def refused(folder):
    """What every command says of a folder, which is the same one sentence."""
    rows = tiny.write_rows(folder.parent / "rows.jsonl", id_rows(4))
    prompts = tiny.write_rows(folder.parent / "prompts.jsonl", [{"prompt_ids": [5, 6, 7]}])
    model, out = ("--model", str(folder)), ("--out", str(folder.parent / "out"))
    commands = [
        lambda: train.run(TrainConfig(model=str(folder), data=(str(rows),), out=out[1], loss="dpo")),
        lambda: score.main([*model, "--data", str(rows), *out]),
        lambda: generate.main([*model, "--prompts", str(prompts), *out]),
        lambda: convert.main([*model, *out, "--dtype", "bfloat16"]),
        lambda: plan.main([*model, "--gpus", "1"]),
        lambda: weights.load(folder),
    ]
    said = []
    for command in commands:
        with pytest.raises(InputError) as fault:
            command()
        said.append(str(fault.value))
        assert not (folder.parent / "out").exists()
    assert len(set(said)) == 1 and "\n" not in said[0] and str(folder) in said[0], said
    return said[0]


def ours(folder, *flags):
    """Log-probs of the responses of four pairs by engine.score, [4, 2]."""
    rows, out = tiny.write_rows(folder.parent / "rows.jsonl", id_rows(4)), folder.parent / "logps.jsonl"
    out.unlink(missing_ok=True)
    score.main(["--model", str(folder), "--data", str(rows), "--out", str(out), *flags])
    found = [json.loads(line) for line in out.read_text().splitlines()]
    return torch.tensor([[row["logps/chosen"], row["logps/rejected"]] for row in found])


@torch.no_grad()
def theirs(folder, dtype=torch.float32):
    """The same by transformers, each sequence alone."""
    peer = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype).eval()
    made = []
    for row in id_rows(4):
        pair = []
        for name in ("chosen_ids", "rejected_ids"):
            ids, n = torch.tensor([row["prompt_ids"] + row[name]]), len(row["prompt_ids"])
            logps = peer(ids).logits[0, n - 1 : -1].float().log_softmax(-1)
            pair.append(logps.gather(1, ids[0, n:, None]).sum())
        made.append(pair)
    return torch.tensor(made)


def assert_same_logps(folder, **options):
    torch.testing.assert_close(ours(folder), theirs(folder, **options), rtol=0, atol=2e-4)


# --- the head and the embedding ------------------------------------------------------------------------------------


def test_a_tied_flag_beside_another_head_is_refused(tmp_path):
    folder = write(tmp_path / "model")
    edit(folder, tie_word_embeddings=True)
    said = refused(folder)
    assert "tie_word_embeddings of config.json is true, and lm_head.weight differs from model.embed_tokens.wei" in said


def test_a_head_that_is_the_embedding_is_taken(tmp_path, capfd):
    folder = write(tmp_path / "model", shape="llama3.2")
    change(folder, lambda t: t.update({HEAD: t[EMBED].clone()}))
    assert_same_logps(folder)
    change(folder, lambda t: t.update({HEAD: t[EMBED].double()}))  # the same numbers in another dtype
    assert_same_logps(folder)
    assert "differs" not in capfd.readouterr().err
    change(folder, lambda t: t[HEAD].view(-1)[-1:].add_(1e-3))
    assert "lm_head.weight differs from" in refused(folder)
    change(folder, lambda t: t.update({HEAD: t[EMBED][:90].clone()}))
    assert "lm_head.weight is [90, 32], config.json says [101, 32]" in refused(folder)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_tensors_are_compared_to_their_last_number(tmp_path, monkeypatch, dtype):
    """They are read in pieces: here of some rows, with one that is short at the end."""
    monkeypatch.setattr("engine.weights.tensor_files.PIECE_BYTES", 1000)
    folder = write(tmp_path / "model", shape="llama3.2")
    change(folder, lambda t: t.update({HEAD: t[EMBED].to(dtype, copy=True)}))
    weights.load(folder)
    change(folder, lambda t: t[HEAD].view(-1)[-1:].add_(1e-3))
    with pytest.raises(InputError, match=r"lm_head\.weight differs from"):
        weights.load(folder)


def test_a_tied_model_with_its_head_alone_is_read_and_written_as_its_embedding(tmp_path):
    folder = write(tmp_path / "model", shape="llama3.2")
    expected = theirs(folder)
    change(folder, lambda t: t.update({HEAD: t.pop(EMBED)}))
    assert_same_logps(folder)
    torch.testing.assert_close(ours(folder), expected, rtol=0, atol=2e-4)
    convert.main(["--model", str(folder), "--out", str(tmp_path / "out"), "--dtype", "float32"])
    assert EMBED in load_file(tmp_path / "out" / WHOLE) and HEAD not in load_file(tmp_path / "out" / WHOLE)
    torch.testing.assert_close(ours(tmp_path / "out"), expected, rtol=0, atol=2e-4)
    plan.main(["--model", str(folder), "--gpus", "1"])


def test_a_head_that_is_missing_is_told_with_the_flag(tmp_path):
    folder = write(tmp_path / "model")
    change(folder, lambda t: t.pop(HEAD))
    assert "tie_word_embeddings of config.json is false, and no lm_head.weight is there" in refused(folder)


# --- a whole file and shards ---------------------------------------------------------------------------------------


def both(tmp_path, seed=1, **changes):
    """A folder with a whole file, and shards with an index: of another model, unless the seed is 0."""
    folder = write(tmp_path / "model")
    other = write(tmp_path / "other", shard_bytes=20_000, seed=seed, **changes)
    for path in [*other.glob("model-*"), other / INDEX]:
        path.rename(folder / path.name)
    return folder


def test_a_whole_file_beside_the_shards_of_another_model_is_refused(tmp_path):
    said = refused(both(tmp_path))
    assert f"{WHOLE} and the shards of {INDEX} are two models (" in said and "differs)" in said


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"dtype": torch.bfloat16}, "is F32 [101, 32] in the one and BF16 [101, 32] in the others"),
        ({"vocab_size": 99}, "is F32 [101, 32] in the one and F32 [99, 32] in the others"),
        ({"num_hidden_layers": 4}, "model.layers.3.input_layernorm.weight is only in the shards"),
        ({"shape": "llama3.2"}, "lm_head.weight is only in the one file"),
    ],
)
def test_where_a_whole_file_and_shards_differ_is_said(tmp_path, changes, said):
    assert said in refused(both(tmp_path, seed=0, **changes))


def test_a_whole_file_and_shards_of_the_same_numbers_are_one_model(tmp_path, capfd):
    folder = both(tmp_path, seed=0)
    assert_same_logps(folder)
    assert "not read" not in capfd.readouterr().err
    one, second = sorted(folder.glob("model-*"))[:2]
    second.unlink()
    assert f"lies beside {INDEX} and some of its shards, of which {second.name} is missing" in refused(folder)
    assert one.exists()


def test_an_index_without_its_shards_gives_way_to_the_whole_file(tmp_path, capfd):
    folder = both(tmp_path)
    for shard in folder.glob("model-*"):
        shard.unlink()
    assert_same_logps(folder)
    assert f"{folder}: {WHOLE} is read; {INDEX} names shards that are not there" in capfd.readouterr().err


def test_weights_that_nothing_reads_are_named_once(tmp_path, capfd):
    folder = write(tmp_path / "model")
    for name in ("consolidated.safetensors", "pytorch_model.bin", "model-00001-of-00002.safetensors"):
        (folder / name).write_bytes(b"x")
    assert_same_logps(folder)
    said = capfd.readouterr().err
    assert said.count("these weights are not read: consolidated.safetensors and 2 more") == 1


# --- config.json against itself, and against the tensors -----------------------------------------------------------

LLAMA31 = tiny.SHAPES["llama3.1"]["rope_scaling"]


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        (
            {"rope_scaling": LLAMA31, "rope_parameters": LLAMA31 | {"factor": 32.0, "rope_theta": 500000.0}},
            "rope_parameters comes to factor = 32.0, rope_scaling to 8.0",
        ),
        (
            {"rope_scaling": {"rope_type": "default"}, "rope_parameters": LLAMA31 | {"rope_theta": 500000.0}},
            "rope_parameters comes to rope_type = 'llama3', rope_scaling to 'default'",
        ),
        (
            {"rope_theta": None, "rope_scaling": LLAMA31, "rope_parameters": LLAMA31 | {"rope_theta": 500000.0}},
            "rope_parameters comes to rope_theta = 500000.0, rope_scaling to 10000.0",
        ),
        (
            {"rope_theta": 500000.0, "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0}},
            "rope_theta = 500000.0, and rope_parameters has rope_theta = 10000.0",
        ),
        (
            {"rope_scaling": LLAMA31 | {"type": "linear"}},
            "rope_type 'llama3' beside type 'linear'",
        ),
        (
            {"original_max_position_embeddings": 8192, "rope_scaling": LLAMA31},
            "original_max_position_embeddings = 8192, and rope_scaling has original_max_position_embeddings = 64",
        ),
        ({"partial_rotary_factor": 0.5}, "partial_rotary_factor = 0.5 is not supported"),
        ({"transformers_weights": "x.safetensors"}, "transformers_weights = 'x.safetensors' is not supported"),
        ({"model_type": "mistral"}, "architectures says LlamaForCausalLM, and model_type"),
    ],
    ids=[
        "factors",
        "types",
        "bases",
        "a base beside",
        "two types",
        "two contexts",
        "part of a head",
        "other weights",
        "two families",
    ],
)
def test_a_config_that_says_two_things_is_refused_with_both(tmp_path, fields, said):
    folder = write(tmp_path / "model")
    edit(folder, **fields)
    assert said in refused(folder)


@pytest.mark.parametrize(
    "fields",
    [
        {"rope_scaling": LLAMA31, "rope_parameters": LLAMA31 | {"rope_theta": 500000.0}},
        {"rope_scaling": LLAMA31 | {"type": "llama3", "rope_theta": 500000.0}, "rope_theta": 500000.0},
        {"rope_scaling": None, "rope_parameters": LLAMA31, "rope_theta": 500000.0},
        {"rope_scaling": {}, "rope_parameters": {"rope_theta": 500000.0, "partial_rotary_factor": 1.0}},
        {
            "rope_scaling": {k: v for k, v in LLAMA31.items() if k != "original_max_position_embeddings"},
            "rope_theta": 500000.0,
            "original_max_position_embeddings": 64,
        },
        {
            "rope_scaling": {k: v for k, v in LLAMA31.items() if k != "original_max_position_embeddings"},
            "max_position_embeddings": 128,
        },
    ],
    ids=["both", "both spellings of the type", "null", "empty", "the context beside", "the context of the model"],
)
def test_two_places_that_agree_are_read_as_transformers_reads_them(tmp_path, fields):
    folder = write(tmp_path / "model")
    edit(folder, **fields)
    assert_same_logps(folder)


@pytest.mark.parametrize(
    ("stored", "announced", "verb"),
    [
        (torch.float16, "bfloat16", "rounds"),
        (torch.float32, "bfloat16", "rounds"),
        (torch.bfloat16, "float16", "rounds"),
        (torch.bfloat16, "float32", "converts"),
    ],
)
def test_another_dtype_than_the_announced_one_is_said_and_the_numbers_are_the_files(
    tmp_path, capfd, stored, announced, verb
):
    folder = write(tmp_path / "model", dtype=stored)
    edit(folder, dtype=announced)
    assert_same_logps(folder)
    name = str(stored).removeprefix("torch.")
    said = (
        f"{folder}: config.json announces {announced}, and its weights are {name}: the numbers are taken as they are; "
        f'transformers\' dtype="auto" {verb} them to {announced}\n'
    )
    assert capfd.readouterr().err.count(said) == 1
    auto = AutoModelForCausalLM.from_pretrained(folder, dtype="auto")
    assert auto.dtype == getattr(torch, announced)
    if stored != torch.bfloat16:
        pairs = [(tensor, auto.state_dict()[name]) for name, tensor in load_file(folder / WHOLE).items()]
        assert any(not torch.equal(tensor.float(), loaded.float()) for tensor, loaded in pairs)


def test_dtype_counts_beside_another_torch_dtype(tmp_path, capfd):
    folder = write(tmp_path / "model")
    edit(folder, torch_dtype="bfloat16")
    assert_same_logps(folder)
    said = capfd.readouterr().err
    assert "dtype float32 beside torch_dtype bfloat16: the former counts" in said and "announces" not in said
    edit(folder, dtype=None)
    assert_same_logps(folder)
    assert "config.json announces bfloat16" in capfd.readouterr().err
    assert AutoModelForCausalLM.from_pretrained(folder, dtype="auto").dtype == torch.bfloat16


def mix(folder):
    """bfloat16, with norms in float32 that bfloat16 does not hold."""
    change(folder, lambda t: t.update({k: v.float() + 0.001 for k, v in t.items() if "norm" in k}))


@pytest.mark.parametrize("shard_bytes", [10**9, 20_000])
def test_mixed_dtypes_are_kept_per_tensor_where_the_sources_are_asked_for(tmp_path, capfd, shard_bytes, monkeypatch):
    folder = write(tmp_path / "model", dtype=torch.bfloat16)
    mix(folder)
    monkeypatch.setitem(weights.save.__kwdefaults__, "shard_bytes", shard_bytes)
    before = load_file(folder / WHOLE)
    assert_same_logps(folder)
    said = "announces bfloat16, and model.layers.0.input_layernorm.weight and 6 more are float32"
    assert said in capfd.readouterr().err
    rows = tiny.write_rows(tmp_path / "rows.jsonl", id_rows(4))
    settings = {"model": str(folder), "data": (str(rows),), "loss": "dpo", "batch_size": 2, "epochs": 1}
    result = train.run(TrainConfig(**settings, out=str(tmp_path / "run"), save_dtype="source", lr=1e-3))
    epoch = result.checkpoints[-1]
    after = {k: v for path in epoch.glob("*.safetensors") for k, v in load_file(path).items()}
    assert {k: v.dtype for k, v in after.items()} == {k: v.dtype for k, v in before.items()}
    assert {v.dtype for v in after.values()} == {torch.float32, torch.bfloat16}
    assert not torch.equal(after[NORM], before[NORM])
    assert json.loads((epoch / "config.json").read_text())["dtype"] == "bfloat16"
    assert_same_logps(epoch)
    found = AutoModelForCausalLM.from_pretrained(epoch, output_loading_info=True)[1]
    assert not any(found[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    said = (tmp_path / "run" / "config.yaml").read_text()
    assert "save_dtype: bfloat16, 7 tensors in float32" in said
    size = sum(t.numel() * t.dtype.itemsize for t in after.values())
    assert sum(p.stat().st_size for p in epoch.glob("*.safetensors")) >= size
    plan.main(["--model", str(folder), "--gpus", "0", "--gpu-memory", "4", "--json", "--save-dtype", "source"])
    chosen = json.loads(capfd.readouterr().out)["chosen"]
    assert chosen["checkpoint_bytes"] == 18 * size


# --- what is no whole model ----------------------------------------------------------------------------------------

QUANTISED = {
    "bitsandbytes, 4 bits": {"quant_method": "bitsandbytes", "load_in_4bit": True, "bnb_4bit_quant_type": "nf4"},
    "bitsandbytes, 8 bits": {"load_in_8bit": True},
    "GPTQ, 4 bits": {"quant_method": "gptq", "bits": 4, "group_size": 128, "desc_act": False},
    "AWQ, 4 bits": {"quant_method": "awq", "bits": 4, "version": "gemm"},
    "compressed-tensors, float-quantized": {"quant_method": "compressed-tensors", "format": "float-quantized"},
    "modelopt, FP8": {"quant_method": "modelopt", "quant_algo": "FP8"},
    "fine-grained FP8": {"quant_method": "fp8", "weight_block_size": [128, 128]},
    "HQQ": {"quant_method": "hqq", "quant_config": {}},
    "torchao": {"quant_method": "torchao", "quant_type": {"default": {"_type": "Int4WeightOnlyConfig"}}},
    "something_new": {"quant_method": "something_new"},
}


@pytest.mark.parametrize(("said", "asked"), QUANTISED.items(), ids=QUANTISED)
def test_a_quantised_checkpoint_is_called_that_by_its_config(tmp_path, said, asked):
    folder = write(tmp_path / "model")
    edit(folder, quantization_config=asked)
    assert refused(folder) == (
        f"{folder / 'config.json'}: quantization_config says that the weights are quantised ({said}); "
        "give the checkpoint that it was made from, in bfloat16, float16 or float32"
    )


def test_a_quantised_checkpoint_is_called_that_by_modelopts_file(tmp_path):
    folder = write(tmp_path / "model")
    inside = {"quant_algo": "FP8", "kv_cache_quant_algo": "FP8", "exclude_modules": ["lm_head"]}
    written = {"producer": {"name": "modelopt", "version": "0.23.0"}, "quantization": inside}
    (folder / "hf_quant_config.json").write_text(json.dumps(written))
    assert "hf_quant_config.json: says that the weights are quantised (modelopt, FP8)" in refused(folder)
    written["quantization"]["quant_algo"] = None
    (folder / "hf_quant_config.json").write_text(json.dumps(written))
    assert "(modelopt, FP8 for the cache of keys and values)" in refused(folder)


UP = "model.layers.1.mlp.up_proj"
BYTES = torch.zeros(56, 4, dtype=torch.uint8)
TENSORS = {
    "GPTQ": {"qweight": BYTES.int(), "qzeros": BYTES.int(), "scales": BYTES.half(), "g_idx": torch.zeros(32).int()},
    "AWQ": {"qweight": BYTES.int(), "qzeros": BYTES.int(), "scales": BYTES.half()},
    "bitsandbytes, 4 bits": {"weight": BYTES, "weight.absmax": BYTES, "weight.quant_state.bitsandbytes__nf4": BYTES},
    "bitsandbytes, 8 bits": {"weight": BYTES.to(torch.int8), "SCB": torch.zeros(56), "weight_format": BYTES[0, 0]},
    "compressed-tensors or modelopt": {"weight": torch.zeros(56, 32).to(torch.float8_e4m3fn), "weight_scale": BYTES},
    "compressed-tensors": {"weight_packed": BYTES.int(), "weight_scale": BYTES, "weight_shape": torch.zeros(2).int()},
    "modelopt, NVFP4": {"weight": BYTES, "weight_scale": BYTES, "weight_scale_2": torch.zeros(1)},
    "fine-grained FP8": {"weight": torch.zeros(56, 32).to(torch.float8_e4m3fn), "weight_scale_inv": torch.zeros(1, 1)},
    "HQQ": {"W_q": BYTES, "scale": torch.zeros(1), "zero": torch.zeros(1)},
    "torchao": {"_weight_qdata": BYTES, "_weight_scale": torch.zeros(1)},
    "a form of FP8": {"weight": torch.zeros(56, 32).to(torch.float8_e4m3fn)},
}


@pytest.mark.parametrize(("said", "tensors"), TENSORS.items(), ids=TENSORS)
def test_a_quantised_checkpoint_is_called_that_by_its_tensors(tmp_path, said, tensors):
    folder = write(tmp_path / "model")

    def swap(found):
        del found[f"{UP}.weight"]
        found.update({f"{UP}.{name}": tensor.clone() for name, tensor in tensors.items()})

    change(folder, swap)
    assert re.search(rf"{UP}\.\S+ belongs to a quantised checkpoint \({said}\), which config.json", refused(folder))


def test_an_adapter_in_the_folder_is_named(tmp_path):
    folder = write(tmp_path / "model")
    (folder / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": "some/base"}))
    assert "adapter_config.json: an adapter of some/base beside a whole model" in refused(folder)
    (folder / "config.json").unlink()
    with pytest.raises(InputError, match=r"/model: is an adapter; name its base by --model and the adapter by"):
        plan.main(["--model", str(folder)])
